"""A document, what stands in the place of one that could not be read, and the place behind either."""

from dataclasses import dataclass

INVALID_UTF8 = "invalid_utf8"
INVALID_JSON = "invalid_json"
INVALID_XML = "invalid_xml"
NO_TEXT = "no_text"
TOO_LARGE = "too_large"
NESTED_ARCHIVE = "nested_archive"
NOT_A_FILE = "not_a_file"


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


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two documents of an input, from which reading can go on. Three numbers, so that a record
    can hold it."""

    member: int = 0
    """Members of an archive that lie before it whole; 1 behind the only document of a file."""
    offset: int = 0
    """Bytes of the member, or of a file that is no archive, that lie before it, uncompressed; 0 in a parquet
    file."""
    number: int = 0
    """Lines, rows or pages of the member that lie before it: they name documents that have no id."""


START = Position()


def invalid_utf8(position: str, error: UnicodeDecodeError) -> Quarantined:
    return Quarantined(position, INVALID_UTF8, f"{error.reason} at byte {error.start}")


def too_large(position: str, maximum: int) -> Quarantined:
    return Quarantined(position, TOO_LARGE, f"more than {maximum:,} bytes")


class Dropped(Exception):
    """The text is none that a corpus wants. Its one argument is the reason that it is counted under."""


def readable_name(name: str) -> str:
    """A file's name as a part of an id. Bytes of it that are not UTF-8, which Python keeps as half surrogate
    pairs and no Arrow file takes, are spelt out, as in `caf\\xe9.txt`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def decode_text(content: bytes) -> str:
    """The text of a file: UTF-8 with or without a byte-order mark, any line ends, given back with "\\n".

    Raises UnicodeDecodeError.
    """
    return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
