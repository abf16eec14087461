"""The order of sequences: a pure function of the seed, endless, each epoch a permutation of its own."""

from __future__ import annotations

import numpy as np

from trainer.engine.randomness import hash64


class SequenceOrder:
    """Which sequence stands at which place of the training stream.

    Place p lies in epoch p // sequences; an epoch's permutation sorts the sequences by a hash, so it depends on no
    generator's state and on no library's version. Only the epoch last asked for is kept: 8 bytes a sequence.
    """

    def __init__(self, sequences: int, seed: int) -> None:
        if sequences < 1:
            raise ValueError(f"sequences: found {sequences}, expected at least 1")
        self.sequences = sequences
        self.seed = seed
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            keys = hash64("order", self.seed, epoch, np.arange(self.sequences))
            self._permutation = np.argsort(keys, kind="stable")
            self._epoch = epoch
        return self._permutation

    def batch(self, step: int, batch_size: int) -> np.ndarray:
        """int64 (batch_size,): the sequences of step `step`, counted from 1."""
        return self.stretch((step - 1) * batch_size, batch_size)

    def stretch(self, first: int, count: int) -> np.ndarray:
        """int64 (count,): the sequences at `count` places of the stream from `first` on."""
        epochs, within = np.divmod(np.arange(first, first + count), self.sequences)
        chosen = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = self.permutation(int(epoch))[within[here]]
        return chosen
