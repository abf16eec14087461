"""Markdown from values that are not ours: taken as text, they end no cell of a table and no block of code."""

from __future__ import annotations

import re
from collections.abc import Iterable

from trainer.model.provenance import LONGEST

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#|!~&$@:])")


def text(value: object) -> str:
    """Foreign text as one line of Markdown that means itself, cut where it is long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    if len(line) > LONGEST:
        line = line[: LONGEST - 1] + "…"
    return _MARKDOWN.sub(r"\\\1", line)


def code(value: object) -> str:
    """Foreign text in a code span."""
    return "`" + "".join(c for c in str(value)[:LONGEST] if c.isprintable() and c != "`") + "`"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *(tuple(map(text, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fenced(code: str, language: str) -> str:
    """A block of code whose fence is longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"
