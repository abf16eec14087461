"""Text that says the same again and again, after the rules of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1)."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline.documents import Document
from pipeline.filters.filter import BaseFilter
from pipeline.filters.lines import repeated_characters, stripped_lines, stripped_paragraphs
from pipeline.shares import Share, exceeds
from pipeline.words import hash_ngrams, hash_words

Ngram = Annotated[int, Field(ge=1, le=64)]


class Repetition(BaseFilter):
    """Documents of which too large a share is a copy of an earlier part, or one phrase again and again. Shares of
    lines and paragraphs are of their characters, shares of phrases are of the words; the first of two copies does
    not count as one. An empty map, or a share of 1, asks nothing."""

    reasons: ClassVar[Mapping[str, str]] = {
        "duplicate_paragraphs": "too much of it is in paragraphs that are copies of earlier ones",
        "duplicate_lines": "too much of it is in lines that are copies of earlier ones",
        "top_ngram": "too much of it is one phrase of a few words",
        "duplicate_ngrams": "too many words are in phrases that occurred before",
    }

    name: Literal["repetition"] = "repetition"
    maximum_paragraphs: Share = Fraction(1, 5)
    maximum_lines: Share = Fraction(1, 5)
    maximum_top: Mapping[Ngram, Share] = {2: Fraction(20, 100), 3: Fraction(18, 100), 4: Fraction(16, 100)}
    """Words a phrase: the share of all words that the most frequent phrase makes up, n · its occurrences ÷ words."""
    maximum_duplicate: Mapping[Ngram, Share] = {5: Fraction(15, 100), 10: Fraction(10, 100)}
    """Words a phrase: the share of all words that are in a phrase of which there was an earlier copy. Gopher asks
    for each length from 5 to 10, with limits in between; the ends say nearly the same and cost a third."""

    def reason(self, document: Document) -> str | None:
        text = document.text
        if self.maximum_paragraphs < 1 and self._repeats(stripped_paragraphs(text), self.maximum_paragraphs):
            return "duplicate_paragraphs"
        if self.maximum_lines < 1 and self._repeats(stripped_lines(text), self.maximum_lines):
            return "duplicate_lines"
        if not self.maximum_top and not self.maximum_duplicate:
            return None
        words = hash_words(text)
        if self._exceeds(self.maximum_top, most_frequent, words):
            return "top_ngram"
        if self._exceeds(self.maximum_duplicate, duplicated_words, words):
            return "duplicate_ngrams"
        return None

    @staticmethod
    def _repeats(parts: list[str], share: Fraction) -> bool:
        return len(set(parts)) < len(parts) and exceeds(
            repeated_characters(parts), share, sum(map(len, parts))
        )

    @staticmethod
    def _exceeds(
        limits: Mapping[int, Fraction], measure: Callable[[np.ndarray, int], int], words: np.ndarray
    ) -> bool:
        """Whether `measure(words, n)` is over the limit of any n.

        Neither measure grows with n per occurrence: a long phrase has its beginnings inside it. So what the shortest
        has bounds the longer ones, and of most documents only the shortest phrases are counted."""
        bound = len(words)
        for ngram, share in sorted(limits.items()):
            scale = ngram if measure is most_frequent else 1
            if exceeds(bound * scale, share, len(words)):
                bound = measure(words, ngram)
                if exceeds(bound * scale, share, len(words)):
                    return True
        return False


def most_frequent(words: np.ndarray, ngram: int) -> int:
    """How often the most frequent n-gram of `words`, (words,) uint64, occurs; 0 where there is none."""
    hashes = hash_ngrams(words, ngram)
    if not len(hashes):
        return 0
    cells, counts = _count(hashes)
    # The fullest cell most likely has it; only fuller cells than it has copies could hold one more frequent.
    best = _most_copies(hashes[cells == counts.argmax()])
    rivals = np.flatnonzero(counts > best)
    return best if len(rivals) <= 1 else max(best, _most_copies(hashes[np.take(counts > best, cells)]))


def _most_copies(hashes: np.ndarray) -> int:
    ordered = np.sort(hashes)
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    return int(np.diff(np.append(starts, len(ordered))).max())


def duplicated_words(words: np.ndarray, ngram: int) -> int:
    """How many of `words`, (words,) uint64, lie in an n-gram that occurred before."""
    hashes = hash_ngrams(words, ngram)
    cells, counts = _count(hashes)
    places = np.flatnonzero(np.take(counts > 1, cells))
    if not len(places):
        return 0
    repeated = hashes[places]
    order = np.argsort(repeated, kind="stable")
    ordered = repeated[order]
    copies = np.sort(places[order[1:][ordered[1:] == ordered[:-1]]])
    if not len(copies):
        return 0
    return ngram + int(np.minimum(np.diff(copies), ngram).sum())  # those that overlap count once


def _count(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) the cell of each hash, its first digits, and (cells,) how many are in each: what occurs more than once is
    in a cell of more than one, and few others are. Far cheaper than to sort all of them."""
    bits = len(hashes).bit_length() + 2
    cells = (hashes >> np.uint64(64 - bits)).astype(np.int64)
    return cells, np.bincount(cells, minlength=1)
