"""How much of a document is neither letter nor digit."""

from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar, Literal

from pipeline.documents import Document
from pipeline.filters.filter import BaseFilter
from pipeline.shares import Share, exceeds
from pipeline.words import SPACE, SYMBOL, count_kinds


class Symbols(BaseFilter):
    """Documents of which more than this share of the characters that are not white space is neither letter, nor a
    mark over one, nor digit: tables, code, markup."""

    reasons: ClassVar[Mapping[str, str]] = {
        "symbols": "too many of the characters are neither letters nor digits"
    }
    version: ClassVar[int] = 2  # 1 took the marks over letters, a third of Hindi, for symbols

    name: Literal["symbols"] = "symbols"
    maximum: Share = Fraction(2, 5)

    def reason(self, document: Document) -> str | None:
        counts = count_kinds(document.text)
        visible = sum(counts) - counts[SPACE]
        return "symbols" if exceeds(counts[SYMBOL], self.maximum, visible) else None
