"""A document, and what stands in the place of one that could not be read."""

from dataclasses import dataclass

INVALID_UTF8 = "invalid_utf8"
INVALID_JSON = "invalid_json"
NO_TEXT = "no_text"
TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class Document:
    """One text, under an id that is unique in the corpus: the source's name, then the document's own name."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A document that could not be read: where it is in its input, and why. It never holds its text."""

    position: str
    reason: str
    detail: str = ""


def readable_name(name: str) -> str:
    """A file's name as a part of an id. Bytes of it that are not UTF-8, which Python keeps as half surrogate
    pairs and no Arrow file takes, are spelt out, as in `caf\\xe9.txt`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def decode_text(content: bytes) -> str:
    """The text of a file: UTF-8 with or without a byte-order mark, any line ends, given back with "\\n".

    Raises UnicodeDecodeError.
    """
    return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
