"""Filters: what keeps a document out before it is tokenised. Each gives None to keep it, or its reason.

A configuration lists them by name, with their parameters; they are asked in that order, and the first reason
counts. Limits in tokens belong to a source (`minimum_tokens`), since they need the tokenizer; duplicates and
evaluation data have keys of their own, `deduplicate` and `decontaminate`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from pipeline.documents import Document
from pipeline.filters.boilerplate import Boilerplate
from pipeline.filters.filter import BaseFilter
from pipeline.filters.language import Language
from pipeline.filters.length import Length
from pipeline.filters.lines import LineEnds, RepeatedLines
from pipeline.filters.prose import Prose
from pipeline.filters.repetition import Repetition
from pipeline.filters.symbols import Symbols

EMPTY = "empty"

Filter = Annotated[
    Length | Symbols | RepeatedLines | LineEnds | Repetition | Prose | Boilerplate | Language,
    Field(discriminator="name"),
]

FILTERS: Mapping[str, type[BaseFilter]] = {
    "length": Length,
    "symbols": Symbols,
    "repeated_lines": RepeatedLines,
    "line_ends": LineEnds,
    "repetition": Repetition,
    "prose": Prose,
    "boilerplate": Boilerplate,
    "language": Language,
}
"""By the names that a configuration lists. Each makes sense without parameters: `FILTERS[name]()`."""

REASONS: Mapping[str, str] = {
    EMPTY: "nothing but white space",
    **{reason: meaning for kind in FILTERS.values() for reason, meaning in kind.reasons.items()},
}
"""Every reason a document is dropped for here, and what it means."""


def first_reason(filters: Sequence[BaseFilter], source: str, document: Document) -> str | None:
    """Why the document is dropped, None where no filter objects."""
    if not document.text or document.text.isspace():
        return EMPTY
    for item in filters:
        if item.sources is None or source in item.sources:
            reason = item.reason(document)
            if reason is not None:
                return reason
    return None
