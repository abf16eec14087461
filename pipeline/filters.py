"""Filters: what keeps a document out before it is tokenised. Each gives None to keep it, or its reason.

A configuration lists them by name, with their parameters; they are asked in that order, and the first reason
counts. Limits in tokens belong to a source (`minimum_tokens`), since they need the tokenizer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.documents import Document

EMPTY = "empty"


class _Filter(BaseModel, ABC):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: tuple[str, ...] | None = None
    """Names of the sources it looks at; all of them if left out."""

    @abstractmethod
    def reason(self, document: Document) -> str | None:
        """Why it drops the document, None to keep it."""


class Length(_Filter):
    """Documents of fewer or more bytes (UTF-8) than these."""

    name: Literal["length"]
    minimum_bytes: Annotated[int, Field(ge=0)] = 0
    maximum_bytes: Annotated[int, Field(ge=1)] | None = None

    def reason(self, document: Document) -> str | None:
        size = len(document.text.encode())
        if size < self.minimum_bytes:
            return "too_few_bytes"
        if self.maximum_bytes is not None and size > self.maximum_bytes:
            return "too_many_bytes"
        return None


class Symbols(_Filter):
    """Documents of which more than this share of the characters that are not white space is neither letter
    nor digit: tables, code, markup."""

    name: Literal["symbols"]
    maximum: Annotated[float, Field(ge=0, le=1)]

    def reason(self, document: Document) -> str | None:
        characters = "".join(document.text.split())
        if not characters:
            return None
        symbols = sum(not character.isalnum() for character in characters)
        return "symbols" if symbols > self.maximum * len(characters) else None


class RepeatedLines(_Filter):
    """Documents of which more than this share of the lines is a copy of an earlier line: menus, logs."""

    name: Literal["repeated_lines"]
    maximum: Annotated[float, Field(ge=0, le=1)]

    def reason(self, document: Document) -> str | None:
        lines = [line.strip() for line in document.text.splitlines() if line.strip()]
        repeated = len(lines) - len(set(lines))
        return "repeated_lines" if repeated > self.maximum * len(lines) else None


Filter = Annotated[Length | Symbols | RepeatedLines, Field(discriminator="name")]


def first_reason(filters: Sequence[_Filter], source: str, document: Document) -> str | None:
    """Why the document is dropped, None where no filter objects."""
    if not document.text.strip():
        return EMPTY
    for item in filters:
        if item.sources is None or source in item.sources:
            reason = item.reason(document)
            if reason is not None:
                return reason
    return None
