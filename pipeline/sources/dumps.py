"""MediaWiki XML dumps, such as enwiki-latest-pages-articles.xml.bz2: a document a page, under the page's id.

A dump has `<page>` and `</page>` on lines of their own, and no text can spell them, since `<` is escaped in it. So
pages are cut out as lines and each is parsed by itself: memory is bounded by a page, a broken page costs no other,
and reading can begin at any page. A document type cannot be declared in the middle of a file, so there are no
entities that could expand or name other files.

What is no article is given all the same, in a line, so that it is counted; `clean` says what to count it under.
"""

from collections.abc import Iterator, Mapping
from typing import IO
from xml.parsers import expat

from pipeline.documents import INVALID_XML, NO_TEXT, Document, Dropped, Position, Quarantined, too_large
from pipeline.sources.streams import Damaged, Lines
from pipeline.sources.wikitext import plain_text

_ARTICLE, _REDIRECT, _OTHER_NAMESPACE, _NOT_WIKITEXT = (
    "article",
    "redirect",
    "other_namespace",
    "not_wikitext",
)
_MARKUP = "<mediawiki {}>\n"
"""Begins a document whose text is wikitext, as no row's text does."""

_FIELDS = {
    ("page", "id"),
    ("page", "ns"),
    ("page", "redirect"),
    ("page", "revision", "model"),
    ("page", "revision", "text"),
}
_DEPTH = 8


def read_dump(
    name: str, stream: IO[bytes], start: Position, maximum: int
) -> Iterator[tuple[Document | Quarantined, Position]]:
    """The pages of a stream that stands at `start`. Damaged where it is no dump, or not a whole one."""
    lines = Lines(stream, maximum, start.offset, start.number)
    held = bytearray()
    first, last, inside = 0, b"", False
    for line in lines:
        mark = line.strip() if len(line) < 100 else b""
        if lines.number == 1 and not line.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(
            (b"<mediawiki", b"<?xml")
        ):
            raise Damaged("its first line is not <mediawiki …>: no MediaWiki dump")
        if mark == b"<page>":
            held, first, inside = bytearray(), lines.number, True
        if inside:
            held += line[: maximum + 1 - len(held)]
        last = mark or last
        if inside and mark == b"</page>":
            inside = False
            yield _page(name, first, held, maximum), Position(start.member, lines.offset, lines.number)
    if last != b"</mediawiki>":
        raise Damaged("truncated: its last line is not </mediawiki>")


def clean(text: str) -> str:
    """The prose of a document from a dump, and any other text as it is. Raises Dropped for what is no article."""
    head, _, wikitext = text.partition("\n")
    for kind in (_REDIRECT, _OTHER_NAMESPACE, _NOT_WIKITEXT):
        if head + "\n" == _MARKUP.format(kind):
            raise Dropped(kind)
    return plain_text(wikitext) if head + "\n" == _MARKUP.format(_ARTICLE) else text


def _page(name: str, line: int, content: bytearray, maximum: int) -> Document | Quarantined:
    position = f"{name}, page at line {line}"
    if len(content) > maximum:
        return too_large(position, maximum)
    try:
        fields = _fields(bytes(content))
    except expat.ExpatError as error:
        where = f"line {line + error.lineno - 1}, column {error.offset + 1}"
        return Quarantined(position, INVALID_XML, f"{expat.ErrorString(error.code)} at {where}")
    except _TooDeepError:
        return Quarantined(position, INVALID_XML, f"elements nested more than {_DEPTH} deep")
    identifier = fields.get("id", "").strip()
    if not identifier.isdecimal():
        return Quarantined(
            position, INVALID_XML, f"expected a number as the page's <id>, found {identifier[:80]!r}"
        )
    if fields.get("ns", "0").strip() != "0":
        return Document(identifier, _MARKUP.format(_OTHER_NAMESPACE))
    if "redirect" in fields:
        return Document(identifier, _MARKUP.format(_REDIRECT))
    if fields.get("model", "wikitext").strip() != "wikitext":
        return Document(identifier, _MARKUP.format(_NOT_WIKITEXT))
    if "text" not in fields:
        return Quarantined(position, NO_TEXT, "expected a <text> in the page's <revision>")
    return Document(identifier, _MARKUP.format(_ARTICLE) + fields["text"])


class _TooDeepError(Exception):
    pass


def _fields(content: bytes) -> Mapping[str, str]:
    """The text of the elements that matter, by name; of several revisions the last one's."""
    path: list[str] = []
    fields: dict[str, str] = {}
    parts: list[str] = []

    def begin(tag: str, attributes: Mapping[str, str]) -> None:
        path.append(tag)
        parts.clear()
        if len(path) > _DEPTH:
            raise _TooDeepError

    def end(tag: str) -> None:
        if tuple(path) in _FIELDS:
            fields[tag] = "".join(parts)
        path.pop()
        parts.clear()

    parser = expat.ParserCreate("UTF-8")
    parser.buffer_text = True
    parser.StartElementHandler = begin
    parser.EndElementHandler = end
    parser.CharacterDataHandler = parts.append
    parser.Parse(content, True)
    return fields
