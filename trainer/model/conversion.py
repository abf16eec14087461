"""RoBERTa to Longformer and back, as functions of a configuration and tensors by our names.

Source: arXiv 2004.05150, section 5, and allenai's conversion notebook, but for its uninitialised rows: those below the
first position keep their values here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainer.engine.randomness import as_seed
from trainer.model.longformer import EncoderConfig
from trainer.model.weights import POSITIONS, WORDS, with_global_projections, without_global_projections

ROBERTA_TOKENS = 512
Tensors = dict[str, Tensor]


def tile_positions(table: Tensor, first: int, tokens: int) -> Tensor:
    """A position table (first + tokens, hidden) whose rows from `first` repeat the learned ones of `table`.

    Rows below `first` (up to and including padding) keep their values. The learned rows are laid end to end, the
    last copy cut where `tokens` is no multiple of them (section 5: RoBERTa's 512 rows, eight times for 4,096).
    """
    learned = table[first:]
    copies = -(-tokens // len(learned))
    return torch.cat([table[:first], learned.repeat(copies, 1)[:tokens]])


def untiled_positions(table: Tensor, first: int, tokens: int, deviation: float, seed: int) -> Tensor:
    """As tile_positions, but rows beyond the learned ones are drawn as a new model's are."""
    new = tokens + first - len(table)
    generator = torch.Generator().manual_seed(as_seed("untiled positions", seed))
    drawn = torch.randn(max(0, new), table.shape[1], generator=generator) * deviation
    return torch.cat([table, drawn])[: first + tokens]


def lengthen(
    config: EncoderConfig,
    tensors: Tensors,
    tokens: int,
    windows: Sequence[int],
    copy_positions: bool,
    seed: int,
) -> tuple[EncoderConfig, Tensors]:
    """An encoder as a Longformer of `tokens` positions, at least its own, and a window a layer.

    The global projections start as copies of the local ones; those that a Longformer has stay.
    """
    first = config.pad_token_id + 1
    table = tensors[POSITIONS].float()
    assert tokens >= config.max_tokens
    assert len(windows) == config.num_hidden_layers
    if copy_positions:
        positions = tile_positions(table, first, tokens)
    else:
        positions = untiled_positions(table, first, tokens, config.initializer_range, seed)
    longer = replace(
        config,
        architecture="longformer",
        max_position_embeddings=first + tokens,
        attention_window=list(windows),
        original_max_position_embeddings=len(table),
    )
    local = without_global_projections(tensors)
    return longer, {**with_global_projections(local), **tensors, POSITIONS: positions}


def shorten(config: EncoderConfig, tensors: Tensors) -> tuple[EncoderConfig, Tensors]:
    """An encoder as a RoBERTa: of a Longformer the positions it was made from, or the first 512."""
    rows = config.max_position_embeddings
    if config.architecture == "longformer":
        rows = min(rows, config.original_max_position_embeddings or config.pad_token_id + 1 + ROBERTA_TOKENS)
    shorter = replace(
        config,
        architecture="roberta",
        max_position_embeddings=rows,
        attention_window=[],
        original_max_position_embeddings=0,
    )
    kept = without_global_projections(tensors)
    return shorter, {**kept, POSITIONS: kept[POSITIONS][:rows].clone()}


def new_head(config: EncoderConfig, tensors: Tensors, seed: int) -> Tensors:
    """The tensors with a masked-language-model head as a new model has it, over the word embeddings that are there."""
    width = config.hidden_size
    generator = torch.Generator().manual_seed(as_seed("new head", seed))
    return {
        **tensors,
        "lm_head.dense.weight": torch.randn(width, width, generator=generator) * config.initializer_range,
        "lm_head.dense.bias": torch.zeros(width),
        "lm_head.layer_norm.weight": torch.ones(width),
        "lm_head.layer_norm.bias": torch.zeros(width),
        "lm_head.bias": torch.zeros(len(tensors[WORDS])),
    }
