"""Dynamic masking: which tokens of a sequence are hidden, by what, and what was there.

A sequence of n tokens has m = round(0.15 · (n − 2)) masked places, a fixed number, so that shapes are fixed and the
head runs on those places alone. Of them 80 % become `<mask>`, 10 % another token, 10 % stay (BERT's rule, kept by
RoBERTa and by the paper, section 5). Special tokens and padding are never chosen, and never put in by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.engine.randomness import hash64

IGNORED = -100  # the label of a place that is not scored
_UNIT = 2.0**-64


@dataclass(frozen=True)
class MaskedSequences:
    """input_ids (B, N) after masking; places (B, M) ascending; labels (B, M), IGNORED where a place is spare."""

    input_ids: np.ndarray
    places: np.ndarray
    labels: np.ndarray


class Masking:
    """Masks sequences of one vocabulary; what it draws depends on the key given with each sequence alone."""

    def __init__(
        self, vocabulary_size: int, special_ids: frozenset[int], mask_id: int, fraction: float = 0.15
    ) -> None:
        self.mask_id = mask_id
        self.fraction = fraction
        self.special = np.zeros(vocabulary_size, dtype=bool)
        self.special[[token for token in special_ids if token < vocabulary_size]] = True
        self.ordinary = np.flatnonzero(~self.special)

    def places_per_sequence(self, tokens: int) -> int:
        return max(1, round(self.fraction * (tokens - 2)))

    def apply(self, input_ids: np.ndarray, keys: np.ndarray) -> MaskedSequences:
        """Mask sequences (B, N) with one uint64 key (B,) each."""
        tokens = input_ids.shape[1]
        count = self.places_per_sequence(tokens)
        input_ids = input_ids.astype(np.int64)
        positions = np.arange(tokens)
        ranks = hash64("masked places", keys[:, None], positions)
        eligible = ~self.special[input_ids]
        ranks[~eligible] = np.iinfo(np.uint64).max
        places = np.sort(np.argpartition(ranks, count - 1, axis=1)[:, :count], axis=1)
        scored = np.take_along_axis(eligible, places, axis=1)
        original = np.take_along_axis(input_ids, places, axis=1)

        how = hash64("mask replacement", keys[:, None], places) * _UNIT
        drawn = self.ordinary[hash64("random token", keys[:, None], places) % np.uint64(len(self.ordinary))]
        replaced = np.where(how < 0.8, self.mask_id, np.where(how < 0.9, drawn, original))
        np.put_along_axis(input_ids, places, np.where(scored, replaced, original), axis=1)
        return MaskedSequences(input_ids, places, np.where(scored, original, IGNORED))
