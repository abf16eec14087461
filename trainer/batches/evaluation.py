"""The fixed masked set that models are compared on: the same text and the same masked places for every model.

Masks depend on the seed and a sequence's number alone. A model with fewer positions than the corpus's sequences gets
them in consecutive pieces, so that RoBERTa and Longformer are scored on the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from trainer.batches.corpus import MaskedBatch, Sequences, as_batch
from trainer.batches.masking import IGNORED, MaskedSequences, Masking
from trainer.engine.randomness import hash64
from trainer.model.heads import MaskedLanguageModel, masked_loss_sum

TOKENS_PER_BATCH = 16_384


def cut_into_pieces(masked: MaskedSequences, tokens: int, pad_id: int) -> MaskedSequences:
    """Sequences (B, N) with their masked places as consecutive pieces of `tokens` (B·⌈N/tokens⌉, tokens).

    The last piece of a sequence is filled with padding where `tokens` does not divide N. The pieces hold different
    numbers of places; spare ones are place 0 with an ignored label.
    """
    B, N = masked.input_ids.shape
    pieces = -(-N // tokens)
    input_ids = np.pad(masked.input_ids, ((0, 0), (0, pieces * tokens - N)), constant_values=pad_id)
    row, column = np.nonzero(masked.labels != IGNORED)
    place = masked.places[row, column]
    piece = row * pieces + place // tokens
    # Places ascend within a sequence, so those of a piece stand together: number them within it.
    counts = np.bincount(piece, minlength=B * pieces)
    within = np.arange(len(piece)) - np.repeat(np.cumsum(counts) - counts, counts)
    widest = max(1, int(counts.max(initial=0)))
    places = np.zeros((B * pieces, widest), dtype=np.int64)
    labels = np.full((B * pieces, widest), IGNORED, dtype=np.int64)
    places[piece, within] = place % tokens
    labels[piece, within] = masked.labels[row, column]
    return MaskedSequences(input_ids.reshape(B * pieces, tokens), places, labels)


def masked_batches(
    sequences: Sequences,
    masking: Masking,
    chosen: np.ndarray,
    tokens: int,
    seed: int,
    documents: bool = False,
) -> Iterator[MaskedBatch]:
    """The sequences `chosen` with their fixed masks, in pieces of `tokens`, in batches of bounded size.

    `documents` keeps packed documents apart, for a model that was trained so.
    """
    pad_id = sequences.corpus.pad_id
    per_batch = max(1, TOKENS_PER_BATCH // sequences.sequence_length)
    for start in range(0, len(chosen), per_batch):
        indices = chosen[start : start + per_batch]
        masked = masking.apply(sequences.input_ids(indices), hash64("evaluation masks", seed, indices))
        ids = None
        if documents:
            whole = sequences.document_ids(indices)
            pieces = -(-whole.shape[1] // tokens)
            spare = pieces * tokens - whole.shape[1]
            ids = np.pad(whole, ((0, 0), (0, spare)), mode="edge").reshape(-1, tokens)
        yield as_batch(cut_into_pieces(masked, tokens, pad_id), pad_id, ids)


@torch.no_grad()
def loss_of_batches(
    model: MaskedLanguageModel, batches: Iterable[MaskedBatch], beat: Callable[[], None] = lambda: None
) -> tuple[float, int]:
    """The summed cross-entropy in nats and the number of scored tokens; `beat` is called after each batch."""
    device = next(model.parameters()).device
    loss, scored = 0.0, 0
    for batch in batches:
        scored += batch.scored
        here = batch.to(device)
        logits = model(here.input_ids, here.places, here.attention_mask, here.document_ids)
        loss += float(masked_loss_sum(logits, here.labels).double())
        beat()
    return loss, scored


def bits(loss: float, scored: float) -> float:
    """Bits per masked token, which the paper's table 5 calls BPC."""
    return loss / scored / math.log(2)
