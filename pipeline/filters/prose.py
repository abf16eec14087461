"""Whether a document is made of words, after the rules of Gopher (Rae et al. 2021, arXiv 2112.11446, A.1.1)."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.documents import Document
from pipeline.filters.filter import BaseFilter
from pipeline.shares import Exact, Share, exceeds
from pipeline.words import LETTER, SPACE, kinds, pieces

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")

WordLength = Annotated[Exact, Field(ge=0)]


class Prose(BaseFilter):
    """Documents that are no running text of a language that puts spaces between words. Words here are what white
    space parts, punctuation included."""

    reasons: ClassVar[Mapping[str, str]] = {
        "too_few_words": "fewer words than minimum_words",
        "too_many_words": "more words than maximum_words",
        "short_words": "words are shorter on average than minimum_word_length",
        "long_words": "words are longer on average than maximum_word_length",
        "words_without_letters": "too many words have no letter",
        "hashes": "too many # for its words",
        "ellipses": "too many ellipses for its words",
        "no_stop_words": "too few of the stop words of its language occur",
    }

    name: Literal["prose"] = "prose"
    minimum_words: Annotated[int, Field(ge=0)] = 50
    maximum_words: Annotated[int, Field(ge=1)] | None = None
    """Gopher's is 100,000, which drops most books."""
    minimum_word_length: WordLength = Fraction(3)
    """Characters a word, the mean of the document."""
    maximum_word_length: WordLength = Fraction(10)
    maximum_without_letters: Share = Fraction(1, 5)
    maximum_hashes: Share = Fraction(1, 10)
    """Of each a word: `#`, and `…` or `...`."""
    maximum_ellipses: Share = Fraction(1, 10)
    minimum_stop_words: Annotated[int, Field(ge=0)] = 2
    """So many different ones of `stop_words`; 0 for documents of other languages."""
    stop_words: tuple[Annotated[str, Field(pattern=r"^\S+$")], ...] = STOP_WORDS

    @model_validator(mode="after")
    def _something_is_between(self) -> "Prose":
        for what in ("words", "word_length"):
            least, most = getattr(self, f"minimum_{what}"), getattr(self, f"maximum_{what}")
            if most is not None and most < least:
                raise ValueError(f"maximum_{what}: expected at least minimum_{what} = {least}, found {most}")
        if self.minimum_stop_words > len({word.lower() for word in self.stop_words}):
            raise ValueError(
                f"minimum_stop_words: expected at most {len(set(self.stop_words))}, the number of different "
                f"stop_words, found {self.minimum_stop_words}"
            )
        return self

    def reason(self, document: Document) -> str | None:
        text = document.text
        words, characters, without_letters = _measure(text)
        if words < self.minimum_words:
            return "too_few_words"
        if self.maximum_words is not None and words > self.maximum_words:
            return "too_many_words"
        if exceeds(-characters, -self.minimum_word_length, words):
            return "short_words"
        if exceeds(characters, self.maximum_word_length, words):
            return "long_words"
        if exceeds(without_letters, self.maximum_without_letters, words):
            return "words_without_letters"
        if exceeds(text.count("#"), self.maximum_hashes, words):
            return "hashes"
        if exceeds(text.count("...") + text.count("…"), self.maximum_ellipses, words):
            return "ellipses"
        return None if self._has_stop_words(text) else "no_stop_words"

    def _has_stop_words(self, text: str) -> bool:
        missing = {word.lower() for word in self.stop_words}
        enough = len(missing) - self.minimum_stop_words
        if enough == len(missing):
            return True
        for piece in pieces(text, 500):  # running text has them in its first lines
            missing.difference_update(piece.lower().split())
            if len(missing) <= enough:
                return True
        return False


def _measure(text: str) -> tuple[int, int, int]:
    """(words, characters of words, words without a letter); a word of more than 65,536 characters is several."""
    words = characters = without_letters = 0
    for piece in pieces(text):
        found = kinds(piece)
        inside = np.zeros(len(found) + 2, dtype=bool)
        inside[1:-1] = found != SPACE
        edges = np.flatnonzero(inside[1:] != inside[:-1])
        letters = np.zeros(len(found) + 1, dtype=np.int32)
        np.cumsum(found == LETTER, out=letters[1:])
        seen = letters[edges]
        words += len(edges) // 2
        characters += int((edges[1::2] - edges[::2]).sum())
        without_letters += int(np.count_nonzero(seen[1::2] == seen[::2]))
    return words, characters, without_letters
