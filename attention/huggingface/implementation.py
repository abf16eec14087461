"""`attn_implementation="longspan"`: windowed attention in any encoder that asks transformers' attention interface.

transformers calls two functions by that name: one makes of a model's padding mask what its layers are handed, once a
forward; the other is each layer's attention. Whatever they are asked for that is no encoder's self-attention is
refused, never approximated.

A model that computes its attention itself would not be windowed and would misread such a mask, and transformers does
not look whether a model asks for the implementation that it is given. So `register` has it look.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function

from attention.windowed import windowed_attention

NAME = "longspan"

_HARMLESS = (
    "deterministic",
    "global_attention_mask",
    "max_length_k",
    "max_length_q",
    "num_items_in_batch",
    "output_hidden_states",
    "position_ids",
    "return_dict",
    "use_cache",
)
"""What models hand to their attention, besides what `attend` reads, that does not change its result."""


def register() -> None:
    """Make transformers know `attn_implementation="longspan"`. Importing `attention.huggingface` does it.

    From then on a ValueError ends the making of a model by this implementation that does not use it.
    """
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, padding_mask)
    chosen = PreTrainedModel.get_correct_attn_implementation
    if not hasattr(chosen, "__wrapped__"):
        PreTrainedModel.get_correct_attn_implementation = _checked(chosen)  # type: ignore[method-assign]


def _checked(chosen: Callable[..., str]) -> Callable[..., str]:
    """transformers' check of an implementation that is asked for, and that the model asks for it in turn."""

    @functools.wraps(chosen)
    def check(model: PreTrainedModel, requested_attention: str | None, *more: Any, **options: Any) -> str:
        if requested_attention == NAME and not _asks(type(model)):
            raise ValueError(
                f"{type(model).__name__} does not ask transformers' attention interface; "
                f'"{NAME}" expects an encoder that does, such as BERT or RoBERTa. Longformer and LED take '
                "attention.huggingface.accelerate"
            )
        return chosen(model, requested_attention, *more, **options)

    return check


def _asks(kind: type) -> bool:
    """Whether a class of models, or one that it comes from, asks transformers' attention interface."""
    return any(
        each._can_set_attn_implementation()
        for each in kind.__mro__
        if issubclass(each, PreTrainedModel) and each is not PreTrainedModel
    )


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """A layer's self-attention, as transformers' attention interface calls it.

    Args:
        module: the layer's attention, of whose `config.attention_window` the window is: the total, even width, an
            int or one a layer.
        query, key, value: (batch, heads, n, head_dim).
        attention_mask: (batch, n), true for real tokens, of `padding_mask`.
        scaling: what scores are multiplied by; 1 / sqrt(head_dim) by default.
        dropout: the probability with which a weight is dropped, by a seed of torch's generator.
        options: what else the model was called with. `global_attention_mask` (batch, n) names global tokens, which
            use the same projections as all others.

    Returns:
        The output (batch, n, heads, head_dim), rows of padding 0, and no weights.

    Raises:
        ValueError: where the window is missing, or for what is no self-attention of an encoder. Cross-attention with as
            many keys as queries is known by the name of its class, or else taken for self-attention.
    """
    name = type(module).__name__
    if getattr(module, "is_causal", False) or getattr(module, "is_decoder", False):
        raise ValueError(f'{name} is a decoder\'s; "{NAME}" expects an encoder')
    if "crossattention" in name.lower():
        raise ValueError(f'{name} is cross-attention; "{NAME}" expects self-attention')
    if query.shape[2] != key.shape[2]:
        raise ValueError(
            f"{name} has {query.shape[2]} queries and {key.shape[2]} keys; "
            f'"{NAME}" expects self-attention, without cross-attention or a cache of keys'
        )
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(_mask_message(attention_mask))
    asked = {option: given for option, given in options.items() if given is not None}
    asked.setdefault(
        "output_attentions", getattr(getattr(module, "config", None), "output_attentions", False)
    )
    for option, given in asked.items():
        if option not in _HARMLESS and given is not False:
            raise ValueError(f'{name} is called with {option}, which "{NAME}" does not know; expected none')
    output = windowed_attention(
        query,
        key,
        value,
        _window(module),
        attention_mask=attention_mask,
        global_attention_mask=options.get("global_attention_mask"),
        dropout_p=dropout,
        scale=scaling,
    )
    return output.transpose(1, 2).contiguous(), None


def padding_mask(
    *,
    kv_length: int,
    mask_function: Callable[..., Any],
    attention_mask: Tensor | None = None,
    q_length: int | None = None,
    cache_position: Tensor | None = None,
    **_: Any,
) -> Tensor | None:
    """The mask that a model's layers are handed: its padding mask (batch, n) as it is, or None.

    The queries are `q_length`; transformers before 5.4 give `cache_position` (queries,) in its place.

    Raises:
        ValueError: for masks of decoders and of cross-attention, and for what a model adds to the padding.
    """
    if mask_function is not bidirectional_mask_function:
        raise ValueError(
            "the model asks for a mask that is causal or has a pattern of its own; "
            f'"{NAME}" expects an encoder in which all tokens see each other'
        )
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(_mask_message(attention_mask))
    if q_length is None:
        assert cache_position is not None
        q_length = len(cache_position)
    if q_length != kv_length:
        raise ValueError(
            f"the model asks for a mask of {q_length} queries and {kv_length} keys; "
            f'"{NAME}" expects self-attention, without cross-attention or a cache of keys'
        )
    return attention_mask


def _window(module: nn.Module) -> int:
    config = getattr(module, "config", None)
    windows = getattr(config, "attention_window", None)
    if windows is None:
        raise ValueError(
            f"{type(config).__name__} has no attention_window; "
            f'"{NAME}" expects one, as in model.config.attention_window = 512: the total, even width'
        )
    if not isinstance(windows, list | tuple):
        return windows
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise ValueError(
            f"attention_window is {windows}; expected one integer, as a {type(module).__name__} does not know its layer"
        )
    if layer >= len(windows):
        raise ValueError(
            f"attention_window is {windows}; expected one entry a layer, and one for layer {layer}"
        )
    return windows[layer]


def _mask_message(mask: Tensor) -> str:
    return f'attention_mask has shape {tuple(mask.shape)}; "{NAME}" expects (batch, n), 1 for real tokens'
