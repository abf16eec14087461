"""Text about the page instead of on it."""

from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.documents import Document
from pipeline.filters.filter import BaseFilter
from pipeline.shares import Share, exceeds

PHRASES = (
    "use cookies",
    "uses cookies",
    "cookie policy",
    "privacy policy",
    "terms of service",
    "terms of use",
    "all rights reserved",
    "enable javascript",
    "javascript is disabled",
    "our newsletter",
    "share on facebook",
    "click here to",
    "lorem ipsum",
    "project gutenberg",
)


class Boilerplate(BaseFilter):
    """Documents of which more than this share of the bytes is in lines that hold one of the phrases: notes
    about cookies, scripts and rights, and what cleaning left of Project Gutenberg's licence. Longer lines are
    paragraphs that may well speak of such things, and count as text."""

    reasons: ClassVar[Mapping[str, str]] = {
        "boilerplate": "too much of it is in lines about cookies, scripts, rights and licences"
    }

    name: Literal["boilerplate"] = "boilerplate"
    maximum: Share = Fraction(1, 5)
    maximum_line: Annotated[int, Field(ge=1)] = 500
    """Bytes; a longer line is never boilerplate."""
    phrases: tuple[Annotated[str, Field(min_length=3)], ...] = PHRASES
    """Their letters from a to z in either case."""

    def reason(self, document: Document) -> str | None:
        content = document.text.encode(errors="surrogatepass").lower()
        found = [phrase for phrase in _in_bytes(self.phrases) if phrase in content]
        if not found:
            return None
        lines = [line for line in map(bytes.strip, content.splitlines()) if line]
        short = (line for line in lines if len(line) <= self.maximum_line)
        about = sum(len(line) for line in short if any(phrase in line for phrase in found))
        return "boilerplate" if exceeds(about, self.maximum, sum(map(len, lines))) else None


@cache
def _in_bytes(phrases: tuple[str, ...]) -> list[bytes]:
    return [phrase.encode(errors="surrogatepass").lower() for phrase in phrases]
