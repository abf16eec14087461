"""Longer texts for an encoder with learned positions, by tiling them (Longformer, section 5)."""

from __future__ import annotations

from numbers import Integral
from typing import Any, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)

_ABSOLUTE = {
    "position_embedding_type": "absolute",
    "relative_attention": False,
    "sinusoidal_embeddings": False,
    "sinusoidal_pos_embds": False,
}
"""What configurations say where positions are learned and absolute, and nothing else."""


def lengthen(model: Model, max_positions: int) -> Model:
    """Let a model take texts of `max_positions` tokens, its learned positions repeated, in place.

    RoBERTa and its kin keep the rows of the table up to that of padding for themselves, 0 and 1, and count from
    the next; those rows stay, and the table has as many rows more. BERT's counts from 0. The last copy is cut where
    `max_positions` is no multiple of the model's own. Configuration and buffers are changed along. The table is a new
    parameter: make the optimizer after this. A tokenizer has its own limit, `model_max_length`.

    Args:
        model: a model of transformers with one table of learned absolute positions (BERT, RoBERTa, XLM-RoBERTa,
            DistilBERT, ELECTRA, Longformer, …), in any task's dress.
        max_positions: tokens, at least as many as the model takes now.

    Returns:
        The same model.

    Raises:
        ValueError: for a model without such a table, or fewer positions than it has.
    """
    embeddings, table, config = _embeddings(model)
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    own = table.num_embeddings - first
    if not isinstance(max_positions, Integral) or isinstance(max_positions, bool) or max_positions < own:
        raise ValueError(
            f"max_positions is {max_positions!r}; expected an integer of at least the model's {own}"
        )
    max_positions = int(max_positions)
    rows = first + max_positions
    with torch.no_grad():
        learned = table.weight[first:]
        tiled = learned.repeat(-(-max_positions // own), 1)[:max_positions]
        weight = torch.cat([table.weight[:first], tiled])
    table.weight = nn.Parameter(weight, requires_grad=table.weight.requires_grad)
    table.num_embeddings = rows
    for name, buffer in embeddings.named_buffers(recurse=False):
        if name == "position_ids":
            setattr(embeddings, name, torch.arange(rows, device=buffer.device).expand(1, -1))
        elif name == "token_type_ids":
            setattr(embeddings, name, buffer.new_zeros(1, rows))
    config.max_position_embeddings = rows
    return model


def _embeddings(model: nn.Module) -> tuple[nn.Module, nn.Embedding, Any]:
    """The module that holds the table of positions, the table, and the configuration it was made by."""
    name = type(model).__name__
    config = getattr(model, "config", None)
    for key, expected in _ABSOLUTE.items():
        found = getattr(config, key, expected)
        if found != expected:
            raise ValueError(f"the configuration of the {name} has {key} {found!r}; expected {expected!r}")
    said = getattr(config, "max_position_embeddings", None)
    # Some have further ones, of boxes or images, as long as the configuration says and counted in another way.
    tables = [
        (module, table)
        for module in model.modules()
        for place, table in module.named_children()
        if isinstance(table, nn.Embedding)
        and (
            place == "position_embeddings"
            or (place.endswith("position_embeddings") and table.num_embeddings == said)
        )
    ]
    if len(tables) != 1:
        raise ValueError(
            f"the {name} has {len(tables)} tables of learned absolute positions, called position_embeddings; "
            "expected one"
        )
    holder, table = tables[0]
    if said != len(table.weight):
        raise ValueError(
            f"the {name} has a table of {len(table.weight)} positions; "
            f"expected config.max_position_embeddings, {said}"
        )
    return holder, table, config
