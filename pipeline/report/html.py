"""Pieces of HTML that the sections are made of. What comes from data goes through `text`."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

SHOWN_CHARACTERS = 700
"""Of an example's text."""

_UNFIT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Column:
    """A table's column: its head, whether it holds numbers, and a hint."""

    head: str
    number: bool = False
    hint: str = ""


def text(value: object) -> str:
    """Data as inert text: escaped, and without characters that a page cannot hold or that turn its direction."""
    return escape(_UNFIT.sub("\N{REPLACEMENT CHARACTER}", str(value)))


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Cells are HTML. A wide one scrolls by itself."""
    kinds = ["n" if column.number else "t" for column in columns]
    head = "".join(
        f'<th class="{kind}" scope="col"{_title(column.hint)}>{text(column.head)}</th>'
        for kind, column in zip(kinds, columns, strict=True)
    )
    body = "\n".join(
        "<tr>" + "".join(f'<td class="{k}">{cell}</td>' for k, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def section(title: str, lead: str, *parts: str) -> str:
    """A section of the page; none where no part has content. `lead` is plain text."""
    content = "\n".join(part for part in parts if part)
    if not content:
        return ""
    said = f'<p class="lead">{text(lead)}</p>\n' if lead else ""
    return f'<section id="{anchor(title)}">\n<h2>{text(title)}</h2>\n{said}{content}\n</section>'


def anchor(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower())


def details(summary: str, content: str, is_open: bool = False) -> str:
    """Content folded under `summary`, which is plain text."""
    if not content:
        return ""
    return f"<details{' open' if is_open else ''}><summary>{text(summary)}</summary>\n{content}\n</details>"


def code(value: object) -> str:
    return f"<code>{text(value)}</code>"


def shortened(value: str, characters: int = SHOWN_CHARACTERS) -> str:
    """The start of a text, with what was left out counted."""
    if len(value) <= characters:
        return value
    return f"{value[:characters].rstrip()} … ({len(value) - characters:,} more characters)"


def excerpt(value: str) -> str:
    """A document's start; many empty lines, as title pages have them, are one."""
    tight = re.sub(r"\n\s*\n\s*\n", "\n\n", value.strip("\n"))
    return f'<pre class="excerpt">{text(shortened(tight))}</pre>'


def link(value: str) -> str:
    """An address as a link, anything else as text. The page itself never follows it."""
    if value.startswith(("https://", "http://")) and not any(c.isspace() for c in value):
        return f'<a href="{text(value)}" rel="noreferrer noopener">{text(value)}</a>'
    return text(value)


def count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def short(value: float) -> str:
    """1,234 as it is, 12.3 K, 4.56 M, 6.5 B: three figures."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= (size if size > 1e3 else 1e4):
            scaled = value / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {unit}"
    return f"{value:,.0f}"


def size(value: int) -> str:
    """Bytes for people."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if value >= factor:
            return f"{value / factor:,.1f} {unit}"
    return f"{value:,} B"


def share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def bar(part: float, whole: float, kind: str = "") -> str:
    """A share as a small bar and its figure."""
    width = 100 * part / whole if whole else 0
    return (
        f'<span class="share"><span class="track"><span class="fill {kind}" style="width:{width:.1f}%"></span></span>'
        f"<span>{share(part, whole)}</span></span>"
    )


def _title(hint: str) -> str:
    return f' title="{text(hint)}"' if hint else ""
