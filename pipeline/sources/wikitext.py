"""Wikitext to text: what a reader of the article reads as prose.

Comments, references, tables, formulas and templates are cut out first, in one linear pass; what is left, links,
tags, entities and headings, mwparserfromhell takes apart. Alone it takes five times as long, most of it in what
is thrown away.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

import mwparserfromhell
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Node, Tag, Text, Wikilink
from mwparserfromhell.parser import ParserError

from pipeline.documents import Dropped

VERSION = f"1, mwparserfromhell {mwparserfromhell.__version__}"
"""Of what decides the text: part of the ids of units that clean."""

_CUT_TAGS = (  # noqa: SIM905 - a list of words reads better as a text
    "ref references math chem ce gallery timeline score hiero imagemap mapframe graph syntaxhighlight source "
    "templatestyles inputbox"
).split()
_LITERAL_TAGS = ("nowiki", "pre", "code")
_MARK = re.compile(
    rf"""
      <!-- | -->
    | <(?P<end>/?)(?P<tag>{"|".join((*_CUT_TAGS, *_LITERAL_TAGS))})\b[^<>]*?(?P<alone>/?)>
    | \{{\{{ | \}}\}}
    | ^[\ \t:]*\{{\| | ^[\ \t]*\|\}}(?!\}})
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_COMMENT, _TEMPLATE, _TABLE = "<!--", "{{", "{|"

# Templates whose parameter of this number is prose, or whose whole is a character.
_PROSE = {"lang": 2, "transl": -1, "transliteration": -1, "script": -1} | dict.fromkeys(
    (  # noqa: SIM905
        "nowrap nobr abbr quote blockquote cquote quotation bquote small big nihongo title smallcaps sc "
        "ill interlanguage_link as_of currency frac fraction sub sup val oldstyledate"
    ).split(),
    1,
)
_CHARACTERS = {
    "ndash": "–",
    "mdash": "—",
    "snd": " – ",
    "spaced_ndash": " – ",
    "'": "'",
    "!": "|",
    "·": " · ",
}
_MEASURES = frozenset({"convert", "cvt"})
_PIPE = re.compile(r"\|(?![^\[\]]*\]\])")  # none inside [[a link|its text]]

# Files and categories, in the largest Wikipedias' languages.
_NO_LINKS = frozenset(
    (  # noqa: SIM905
        "file image media category datei bild kategorie fichier catégorie archivo imagen categoría immagine "
        "categoria ficheiro imagem bestand afbeelding categorie plik grafika kategoria файл изображение "
        "категория fil kategori tiedosto luokka ファイル 画像 カテゴリ 文件 分类 檔案 分類 קובץ קטגוריה ملف تصنيف"
    ).split()
)
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*|simple")
_PARAGRAPH, _PIECE = 2_000, 8_000
_LINE_TAGS = frozenset({"br", "p", "div", "li", "dd", "dt", "blockquote", "hr"})


def plain_text(wikitext: str) -> str:
    """The prose of an article: paragraphs with a blank line between, headings on lines of their own, each list
    item on a line. Raises Dropped where the markup cannot be parsed."""
    parts: list[str] = []
    try:
        for piece in _pieces(_without_blocks(wikitext)):
            _add(mwparserfromhell.parse(piece, skip_style_tags=True).nodes, parts)
    except (ParserError, RecursionError) as error:
        raise Dropped("unreadable_markup") from error
    return _tidy("".join(parts))


def _pieces(text: str) -> Iterator[str]:
    """The text in paragraphs: the parser's time grows with the square of what is opened and never closed."""
    held: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        for at in range(0, len(line), _PIECE):
            held.append(line[at : at + _PIECE])
            size += len(held[-1])
            if size >= _PIECE or (size >= _PARAGRAPH and not held[-1].strip()):
                yield "".join(held)
                held, size = [], 0
    yield "".join(held)


class _Frame:
    """Something opened and not yet closed, and the text in it."""

    def __init__(self, kind: str, begin: int) -> None:
        self.kind = kind
        self.begin = begin
        self.parts: list[str] = []


def _without_blocks(text: str) -> str:
    frames = [_Frame("", 0)]
    at = 0
    for mark in _MARK.finditer(text):
        top = frames[-1]
        top.parts.append(text[at : mark.start()])
        at = mark.end()
        kind = mark["tag"].lower() if mark["tag"] else mark[0].strip(" \t:")
        ends = bool(mark["end"])
        if top.kind == _COMMENT or top.kind in _LITERAL_TAGS or top.kind in _CUT_TAGS:
            # In here only its own end counts.
            if kind == "-->" if top.kind == _COMMENT else (ends and kind == top.kind):
                frames.pop()
                if top.kind in _LITERAL_TAGS:
                    frames[-1].parts.append(text[top.begin : at])
        elif mark["tag"]:
            if not ends and not mark["alone"]:
                frames.append(_Frame(kind, mark.start()))
        elif kind in (_COMMENT, _TEMPLATE, _TABLE):
            frames.append(_Frame(kind, mark.start()))
        elif kind == "}}" and top.kind == _TEMPLATE:
            frames.pop()
            frames[-1].parts.append(_template("".join(top.parts)))
        elif kind == "|}" and top.kind == _TABLE:
            frames.pop()
        elif kind != "-->":
            top.parts.append(mark[0])
    frames[-1].parts.append(text[at:])
    # What was never closed is text, but for tables and comments.
    return "".join(part for frame in frames if frame.kind not in (_TABLE, _COMMENT) for part in frame.parts)


def _template(content: str) -> str:
    """What of a template is prose: "" for nearly all."""
    name, *parameters = _PIPE.split(content)
    name = name.strip().lower().replace(" ", "_")
    if name in _CHARACTERS:
        return _CHARACTERS[name]
    positional = [value for value in map(_value, parameters) if value is not None]
    if name in _MEASURES:
        return " ".join(positional[:2])
    number = 1 if name.startswith("lang-") else _PROSE.get(name)
    if number is None or len(positional) < abs(number):
        return ""
    return positional[number - 1 if number > 0 else number]


def _value(parameter: str) -> str | None:
    """A positional parameter's value, None of one with a name."""
    name, equals, value = parameter.partition("=")
    if not equals or "[" in name or "<" in name or " " in name.strip():
        return parameter.strip()
    return value.strip() if name.strip().isdecimal() else None


def _add(nodes: Iterable[Node], parts: list[str]) -> None:
    """Appends the prose of `nodes`."""
    for node in nodes:
        if isinstance(node, Text):
            parts.append(node.value)
        elif isinstance(node, Wikilink):
            _add_link(node, parts)
        elif isinstance(node, ExternalLink):
            if node.title is not None:
                _add(node.title.nodes, parts)
            elif not node.brackets:
                parts.append(str(node.url))
        elif isinstance(node, HTMLEntity):
            parts.append(_character(node))
        elif isinstance(node, Heading):
            parts.append("\n\n")
            _add(node.title.nodes, parts)
            parts.append("\n\n")
        elif isinstance(node, Tag):
            _add_tag(node, parts)


def _add_link(link: Wikilink, parts: list[str]) -> None:
    title = str(link.title).strip()
    prefix, colon, _ = title.partition(":")
    prefix = prefix.strip().lower()
    if colon and (prefix in _NO_LINKS or (link.text is None and _LANGUAGE.fullmatch(prefix))):
        return
    if link.text is not None:
        _add(link.text.nodes, parts)
    else:
        parts.append(title.removeprefix(":"))


def _add_tag(tag: Tag, parts: list[str]) -> None:
    name = str(tag.tag).strip().lower()
    if name == "table" or name in _CUT_TAGS:
        return
    if name in _LINE_TAGS and not tag.wiki_markup:
        parts.append("\n")
    if tag.contents is not None:
        _add(tag.contents.nodes, parts)


def _character(entity: HTMLEntity) -> str:
    try:
        character = entity.normalize()
    except (ValueError, OverflowError):
        return str(entity)
    # One that no UTF-8 spells, such as &#xD800;, stays as it is written.
    return str(entity) if "\ud800" <= character <= "\udfff" else character


_TIDY: Sequence[tuple[re.Pattern[str], str]] = [
    (re.compile(r"'{2,5}"), ""),  # bold and italic
    (re.compile(r"__[A-Z]+__"), ""),  # __NOTOC__ and the like
    (re.compile(r"[ \t\xa0]+"), " "),
    # Brackets around a pronunciation or a formula, which is gone.
    (re.compile(r" ?\(\s*(?:[,;:]\s*)*\)"), ""),
    (re.compile(r"\(\s*(?:[,;]\s*)+"), "("),
    (re.compile(r" (?=[,;.)](?:\s|$))"), ""),
    (re.compile(r"^[ *#:;|!-]+$|^ +| +$", re.MULTILINE), ""),
    (re.compile(r"\n{3,}"), "\n\n"),
]


def _tidy(text: str) -> str:
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    return text.strip()
