"""Everything random in training, as a pure function of (purpose, seed, step, index).

No generator carries state from one step to the next, so the number of processes, an interruption or the order in
which micro-batches run cannot change a draw. The hash is splitmix64's finaliser (Steele et al., 2014), chained over
the words; NumPy computes it over arrays, and its bits do not depend on a library's version.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def _mix(word: np.ndarray) -> np.ndarray:
    word = (word ^ (word >> np.uint64(30))) * _FIRST
    word = (word ^ (word >> np.uint64(27))) * _SECOND
    return word ^ (word >> np.uint64(31))


def hash64(purpose: str, *words: int | np.integer[Any] | np.ndarray) -> np.ndarray:
    """Hash a purpose and integers, or arrays of them that broadcast, to uniform uint64.

    The purpose keeps streams apart: masks and order drawn from one stream would be correlated.
    """
    start = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    state = np.asarray(start, dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic is modulo 2^64 by intent
        for word in words:
            if isinstance(word, int):
                word = np.uint64(word & 0xFFFFFFFFFFFFFFFF)
            state = _mix((state ^ np.asarray(word).astype(np.uint64)) + _GOLDEN)
    return state


def as_seed(purpose: str, *words: int) -> int:
    """A non-negative 63-bit seed for a generator that wants one."""
    return int(hash64(purpose, *words)) >> 1


def reseed_torch(seed: int, step: int, micro_batch: int) -> None:
    """Set torch's generators (hidden dropout draws from them) for one micro-batch of one step."""
    torch.manual_seed(as_seed("hidden dropout", seed, step, micro_batch))


def attention_dropout_seeds(seed: int, step: int, places: np.ndarray, layers: int) -> np.ndarray:
    """int64 (places, layers): the attention's dropout seed in each layer, of the sequence at each place of a batch."""
    drawn = hash64("attention dropout", seed, step, places[:, None], np.arange(layers)[None, :])
    return drawn.view(np.int64)
