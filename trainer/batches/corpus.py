"""From a sealed corpus to micro-batches of masked sequences on a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.shards import Corpus, open_corpus
from trainer.batches.cache import is_uri, local_corpus
from trainer.batches.integrity import check_shards
from trainer.batches.masking import IGNORED, MaskedSequences, Masking
from trainer.engine.config import InputError
from trainer.model.folder import read_tokenizer


@dataclass
class MaskedBatch:
    """What the model reads for B sequences of N tokens with M masked places.

    attention_mask (B, N) is None where no token is padding, document_ids (B, N) where documents are not kept apart.
    """

    input_ids: Tensor
    places: Tensor
    labels: Tensor
    attention_mask: Tensor | None
    document_ids: Tensor | None

    @property
    def scored(self) -> int:
        """Places that count in the loss."""
        return int((self.labels != IGNORED).sum())

    def to(self, device: torch.device) -> MaskedBatch:
        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return MaskedBatch(
            self.input_ids.to(device, non_blocking=True),
            self.places.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            move(self.attention_mask),
            move(self.document_ids),
        )


class Sequences:
    """A split of a corpus as sequences of `sequence_length` tokens, at or below the corpus's own length.

    A shorter length cuts each stored sequence into consecutive pieces: sequence i is piece i % pieces of stored
    sequence i // pieces. That is how a model with fewer positions trains and is scored on the same text.
    """

    def __init__(self, corpus: Corpus, sequence_length: int) -> None:
        if corpus.sequence_length % sequence_length:
            raise InputError(
                f"sequence_length: found {sequence_length}, expected a divisor of {corpus.sequence_length}, "
                f"the length of the sequences in {corpus.folder}"
            )
        self.corpus = corpus
        self.sequence_length = sequence_length
        self.pieces = corpus.sequence_length // sequence_length

    def __len__(self) -> int:
        """How many sequences have a token; the end of a split's last stored one may be padding alone."""
        if not len(self.corpus):
            return 0
        real = int(np.count_nonzero(self.corpus.input_ids(len(self.corpus) - 1) != self.corpus.pad_id))
        return (len(self.corpus) - 1) * self.pieces + -(-real // self.sequence_length)

    def input_ids(self, indices: np.ndarray) -> np.ndarray:
        """int64 (B, N): the tokens of the sequences."""
        N = self.sequence_length
        out = np.empty((len(indices), N), dtype=np.int64)
        for row, index in enumerate(indices):
            stored, piece = divmod(int(index), self.pieces)
            out[row] = self.corpus.input_ids(stored)[piece * N : (piece + 1) * N]
        if (most := out.max(initial=0)) >= self.corpus.vocabulary_size:
            raise InputError(
                f"{self.corpus.folder}: found the token {most} in one of the {self.corpus.split} sequences "
                f"{sorted({int(index) // self.pieces for index in indices})}, "
                f"expected less than {self.corpus.vocabulary_size}"
            )
        return out

    def document_ids(self, indices: np.ndarray) -> np.ndarray:
        """int64 (B, N): which of the documents packed into its sequence each token belongs to, from 0."""
        N = self.sequence_length
        out = np.empty((len(indices), N), dtype=np.int64)
        for row, index in enumerate(indices):
            stored, piece = divmod(int(index), self.pieces)
            starts = self.corpus.document_starts(stored)
            within = np.arange(piece * N, (piece + 1) * N)
            out[row] = np.searchsorted(starts, within, side="right") - 1
        return out


def open_sequences(
    location: str | Path,
    split: str,
    sequence_length: int | None = None,
    cache_dir: Path | None = None,
    may_be_empty: bool = False,
) -> Sequences:
    """The sequences of a split of a corpus, in a folder or at a URI; None: as long as stored.

    What lies at s3:// or gs:// is copied first, once a machine, to `cache_dir` (trainer/batches/cache.py). InputError
    where the corpus cannot serve.
    """
    folder = local_corpus(location, [split], cache_dir)
    try:
        corpus = open_corpus(folder, split=split)
    except ValueError as error:
        raise InputError(str(error)) from error
    if not is_uri(location):  # a copy was checked when it was made
        check_shards(folder, split)
    if not len(corpus) and not may_be_empty:
        raise InputError(f"{location}: the {split} split is empty, expected at least one sequence")
    return Sequences(corpus, corpus.sequence_length if sequence_length is None else sequence_length)


def corpus_masking(corpus: Corpus, fraction: float = 0.15) -> Masking:
    """The masking rule for a corpus's vocabulary, by the tokenizer that travels with it."""
    tokenizer = read_tokenizer(corpus.folder / "tokenizer.json")
    return Masking(corpus.vocabulary_size, tokenizer.special_ids, tokenizer.mask_id, fraction)


def as_batch(masked: MaskedSequences, pad_id: int, document_ids: np.ndarray | None) -> MaskedBatch:
    """Masked arrays as tensors."""
    real = masked.input_ids != pad_id
    return MaskedBatch(
        input_ids=torch.from_numpy(masked.input_ids),
        places=torch.from_numpy(masked.places),
        labels=torch.from_numpy(masked.labels),
        attention_mask=None if real.all() else torch.from_numpy(real.astype(np.int64)),
        document_ids=None if document_ids is None else torch.from_numpy(document_ids),
    )
