"""`attn_implementation="longspan"`: windowed attention in any encoder that asks transformers' attention interface.

transformers calls two functions by that name: one makes of a model's padding mask what its layers are handed, once a
forward; the other is each layer's attention. Whatever they are asked for that is no encoder's self-attention is
refused, never approximated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function

from attention.windowed import windowed_attention

NAME = "longspan"

_UNKNOWN = (
    "cu_seq_lens_k",
    "cu_seq_lens_q",
    "head_mask",
    "is_causal",
    "output_attentions",
    "position_bias",
    "s_aux",
    "sliding_window",
    "softcap",
)
"""What models hand to their attention that would change its result, or asks for weights that are never formed."""


def register() -> None:
    """Make transformers know `attn_implementation="longspan"`. Importing `attention.huggingface` does it."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, padding_mask)


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
        ValueError: where the window is missing, or for what is no self-attention of an encoder.
    """
    name = type(module).__name__
    if getattr(module, "is_causal", False):
        raise ValueError(f'{name} is causal; "{NAME}" expects an encoder, not a decoder')
    if query.shape[2] != key.shape[2]:
        raise ValueError(
            f"{name} has {query.shape[2]} queries and {key.shape[2]} keys; "
            f'"{NAME}" expects self-attention, without cross-attention or a cache of keys'
        )
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(_mask_message(attention_mask))
    for option in _UNKNOWN:
        value_given = options.get(option)
        if value_given is not None and value_given is not False:
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
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    attention_mask: Tensor | None = None,
    **_: Any,
) -> Tensor | None:
    """The mask that a model's layers are handed: its padding mask (batch, n) as it is, or None.

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
