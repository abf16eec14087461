"""What the lines of a document are."""

import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import ClassVar, Literal

from pipeline.documents import Document
from pipeline.filters.filter import BaseFilter
from pipeline.shares import Share, exceeds

_BULLETS = tuple("•‣⁃◦▪▫●○■□–—*-")
_ELLIPSES = ("...", "…")
_BLANK = re.compile(r"\n[^\S\n]*\n\s*")


class RepeatedLines(BaseFilter):
    """Documents of which more than this share of the lines is a copy of an earlier line: menus, logs."""

    reasons: ClassVar[Mapping[str, str]] = {"repeated_lines": "too many lines are copies of earlier ones"}

    name: Literal["repeated_lines"] = "repeated_lines"
    maximum: Share = Fraction(1, 2)

    def reason(self, document: Document) -> str | None:
        lines = stripped_lines(document.text)
        copies = len(lines) - len(set(lines))
        return "repeated_lines" if exceeds(copies, self.maximum, len(lines)) else None


class LineEnds(BaseFilter):
    """Documents of lists and of teasers: too many lines start with a bullet or end with an ellipsis. Lines of white
    space do not count."""

    reasons: ClassVar[Mapping[str, str]] = {
        "bullet_lines": "too many lines start with a bullet",
        "ellipsis_lines": "too many lines end with an ellipsis",
    }

    name: Literal["line_ends"] = "line_ends"
    maximum_bullets: Share = Fraction(9, 10)
    maximum_ellipses: Share = Fraction(3, 10)

    def reason(self, document: Document) -> str | None:
        lines = stripped_lines(document.text)
        bullets = sum(line.startswith(_BULLETS) for line in lines)
        if exceeds(bullets, self.maximum_bullets, len(lines)):
            return "bullet_lines"
        ellipses = sum(line.endswith(_ELLIPSES) for line in lines)
        if exceeds(ellipses, self.maximum_ellipses, len(lines)):
            return "ellipsis_lines"
        return None


def stripped_lines(text: str) -> list[str]:
    """The lines that hold anything, without the white space around it."""
    return [line for line in map(str.strip, text.splitlines()) if line]


def stripped_paragraphs(text: str) -> list[str]:
    """What blank lines part, without the white space around it."""
    return [paragraph for paragraph in map(str.strip, _BLANK.split(text)) if paragraph]


def repeated_characters(parts: Iterable[str]) -> int:
    """Characters in parts that are copies of earlier parts."""
    seen: set[str] = set()
    repeated = 0
    for part in parts:
        if part in seen:
            repeated += len(part)
        else:
            seen.add(part)
    return repeated
