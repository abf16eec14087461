"""Which language a document is in, by CLD2 (`pip install 'longspan[language]'`).

CLD2 is a naive Bayes classifier over groups of four letters whose tables hold small integers: the same answer on every
machine, where the others give floats. It is also the fastest, 20 MB per cpu-second; it looks at a few kB a document.
"""

import difflib
import re
from collections.abc import Mapping
from fractions import Fraction
from importlib.metadata import version
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from pipeline.documents import Document
from pipeline.filters.filter import BaseFilter
from pipeline.shares import Share

# CLD2 refuses a text with one of these: control characters, and code points that are no characters.
_REFUSED = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)


class Language(BaseFilter):
    """Documents of which less than this share is in one of the languages."""

    reasons: ClassVar[Mapping[str, str]] = {
        "language": "too little of it is in one of the languages",
        "unknown_language": "no language was recognised, as in lists of names",
    }

    name: Literal["language"] = "language"
    languages: Annotated[tuple[str, ...], Field(min_length=1, validate_default=True)] = ("en",)
    """By CLD2's codes: ISO 639-1, and zh or zh-Hant."""
    minimum: Share = Fraction(1, 2)
    """Of the bytes that were looked at, in whole percent, which is as fine as CLD2 tells it."""
    keep_unknown: bool = True
    """Whether to keep a document in which no language at all was recognised."""
    characters: Annotated[int, Field(ge=200)] = 1200
    """How many to look at: a third each from the beginning, the middle and the end."""

    @field_validator("languages")
    @classmethod
    def _are_known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        try:
            import pycld2
        except ImportError:
            raise ValueError(
                "this filter needs the package pycld2: pip install 'longspan[language]'"
            ) from None
        known = {code for name, code in pycld2.LANGUAGES if name in pycld2.DETECTED_LANGUAGES}
        for language in languages:
            if language not in known:
                close = ", ".join(difflib.get_close_matches(language, sorted(known), cutoff=0.5))
                raise ValueError(
                    f"no language that CLD2 knows{f', perhaps {close} was meant' if close else ''}"
                )
        return languages

    @property
    def libraries(self) -> dict[str, str]:
        return {"pycld2": version("pycld2")}

    def reason(self, document: Document) -> str | None:
        import pycld2

        looked_at = _parts(document.text, self.characters)
        try:
            found = pycld2.detect(looked_at)[2]
        except (pycld2.error, UnicodeEncodeError):
            found = pycld2.detect(_REFUSED.sub(" ", looked_at))[2]
        percents = {code: percent for _, code, percent, _ in found}
        if not sum(percents.values()):
            return None if self.keep_unknown else "unknown_language"
        percent = sum(percents.get(language, 0) for language in set(self.languages))
        return "language" if percent < 100 * self.minimum else None


def _parts(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    third = characters // 3
    middle = (len(text) - third) // 2
    return " ".join((text[:third], text[middle : middle + third], text[-third:]))
