"""transformers' own Longformer and LED models over `windowed_attention`: the same weights, the same outputs.

Three things are exchanged, on the model in hand and on no other: the class of each of its encoder's self-attention
modules, whose parameters stay where they are; the function by which the model pads its input to a multiple of the
window, which windowed attention does not want; and the one by which it makes of its padding mask a matrix of all pairs
of tokens, of which it then reads a row. So whatever looks at modules, parameters or names finds what it knew.
"""

from __future__ import annotations

from functools import update_wrapper
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.models.led import modeling_led
from transformers.models.longformer import modeling_longformer

from attention.few_global import FewGlobal
from attention.problem import softmax_dtype
from attention.windowed import windowed_attention

Model = TypeVar("Model", bound=nn.Module)


class _Windowed:
    """The forward of a self-attention module; the rest is that of transformers' class, which comes after it."""

    num_heads: int
    head_dim: int
    one_sided_attn_window_size: int
    dropout: float
    training: bool
    query: nn.Module
    key: nn.Module
    value: nn.Module
    query_global: nn.Linear
    key_global: nn.Linear
    value_global: nn.Linear

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        is_index_masked: Tensor | None = None,
        is_index_global_attn: Tensor | None = None,
        is_global_attn: bool | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor]:
        """Hidden states (batch, n, width) in and out, of any length n.

        Padding and global tokens are read from the two masks (batch, n) that transformers makes of its own;
        `attention_mask` says the same once more. Rows of padding are 0.
        """
        if output_attentions:
            raise ValueError(
                "output_attentions is True; expected False, as windowed attention never forms the matrix of weights: "
                "attention.huggingface.restore(model) brings back the attention that does"
            )
        batch, length, width = hidden_states.shape

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)

        real = None if is_index_masked is None else torch.logical_not(is_index_masked)
        dropout_p = self.dropout if self.training else 0.0
        is_global = query_global = key_global = value_global = few_global = global_rows = seed = None
        if is_global_attn:
            is_global = is_index_global_attn
            assert is_global is not None
            few_global = self._few_global(hidden_states, is_global)
            if few_global is not None:
                if dropout_p:  # one for both, drawn as windowed_attention draws it
                    seed = torch.randint(-(1 << 63), (1 << 63) - 1, (batch,), dtype=torch.int64)
                projections = (self.query_global, self.key_global, self.value_global)
                global_rows = few_global.attend(
                    hidden_states, *projections, self.num_heads, real, dropout_p, seed
                )
            else:
                # Only rows of global tokens are read; but a graph would break at a number of them that masks decide.
                if torch.compiler.is_compiling():
                    query_global = heads(self.query_global(hidden_states))
                else:
                    rows = self.query_global(hidden_states[is_global])
                    query_global = heads(rows.new_zeros(batch, length, width).index_put((is_global,), rows))
                key_global = heads(self.key_global(hidden_states))
                value_global = heads(self.value_global(hidden_states))
        output = windowed_attention(
            heads(self.query(hidden_states)),
            heads(self.key(hidden_states)),
            heads(self.value(hidden_states)),
            2 * self.one_sided_attn_window_size,
            attention_mask=real,
            global_attention_mask=is_global,
            query_global=query_global,
            key_global=key_global,
            value_global=value_global,
            dropout_p=dropout_p,
            dropout_seed=seed,
        )
        output = output.transpose(1, 2).reshape(batch, length, width)
        if few_global is not None and global_rows is not None:
            output = few_global.put(global_rows, output)  # theirs from the local projections fall away
        return (output,)

    def _few_global(self, hidden: Tensor, is_global: Tensor) -> FewGlobal | None:
        """None where global rows want all tokens' projections: many global tokens, projections that are more than their
        weights, and those of a graph that is being traced."""
        if torch.compiler.is_compiling():
            return None
        dtype = softmax_dtype(hidden.dtype)
        if not all(_is_plain(x, dtype) for x in (self.query_global, self.key_global, self.value_global)):
            return None
        return FewGlobal.of(is_global, None, None, self.head_dim)


def _is_plain(projection: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a projection does nothing but its weight and bias, of this dtype: it is no adapter and not quantised, and
    nobody looks at or changes what it is called with, gives or sends back, as those do that move weights."""
    return (
        type(projection) is nn.Linear
        and type(projection.weight) in (nn.Parameter, Tensor)
        and projection.weight.dtype == dtype
        and projection.bias is not None
        and "forward" not in vars(projection)
        and not any(getattr(projection, hooks) for hooks in _HOOKS)
        and not torch.nn.modules.module._has_any_global_hook()
    )


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


# Under their own names, by which FSDP and device maps know the modules that they must not take apart.
class LongformerSelfAttention(_Windowed, modeling_longformer.LongformerSelfAttention):
    """Longformer's self-attention, of the same parameters."""


class LEDEncoderSelfAttention(_Windowed, modeling_led.LEDEncoderSelfAttention):
    """The self-attention of LED's encoder, of the same parameters."""


def _row_of_mask(*, inputs_embeds: Tensor, **options: Any) -> Tensor:
    """transformers' `create_bidirectional_mask` for one query instead of all: (B, 1, 1, N), where it has N × N."""
    options |= {"inputs_embeds": inputs_embeds[:, :1], "encoder_hidden_states": inputs_embeds}
    mask: Any = modeling_longformer.create_bidirectional_mask(**options)
    assert isinstance(mask, Tensor)
    return mask


def _row_of_led_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """LED's own of the same."""
    row: Tensor = modeling_led._prepare_4d_attention_mask_inverted(mask, dtype, tgt_len=1)
    return row


def _with_globals(function: Any, **names: Any) -> Any:
    """A copy of a function in whose module these names mean something else."""
    module = {**function.__globals__, **names}
    del module["__name__"]  # by which torch.compile would find the names of the module as it is
    copy = FunctionType(
        function.__code__, module, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return update_wrapper(copy, function)


class LongformerModel(modeling_longformer.LongformerModel):
    """Longformer's encoder, without a matrix of n × n."""

    forward = _with_globals(
        modeling_longformer.LongformerModel.forward, create_bidirectional_mask=_row_of_mask
    )


class LEDEncoder(modeling_led.LEDEncoder):
    """LED's encoder, likewise."""

    forward = _with_globals(
        modeling_led.LEDEncoder.forward, _prepare_4d_attention_mask_inverted=_row_of_led_mask
    )


_WINDOWED: dict[type, type] = {
    modeling_longformer.LongformerSelfAttention: LongformerSelfAttention,
    modeling_led.LEDEncoderSelfAttention: LEDEncoderSelfAttention,
    modeling_longformer.LongformerModel: LongformerModel,
    modeling_led.LEDEncoder: LEDEncoder,
}
_ORIGINAL = {windowed: original for original, windowed in _WINDOWED.items()}
_ATTENTION = (modeling_longformer.LongformerSelfAttention, modeling_led.LEDEncoderSelfAttention)
_THAT_PAD = (modeling_longformer.LongformerModel, modeling_led.LEDEncoder)
_PADDED = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")


def _without_padding(**inputs: Any) -> tuple[Any, ...]:
    """In place of a model's `_pad_to_window_size`: no padding, and the inputs as they are, in its order."""
    return (0, *(inputs[name] for name in _PADDED if name in inputs))


def accelerate(model: Model) -> Model:
    """Compute the self-attention of a Longformer, or of LED's encoder, by `windowed_attention`, in place.

    Weights, state dict, configuration and outputs stay the same; what changes is time and memory, and that the input
    is not padded to a multiple of the window. Dropout of attention weights draws its seed from torch's generator, so
    it drops other weights than before. LED's decoder is as it was. A model accelerated already stays so.

    Args:
        model: any model of transformers' Longformer or LED family, or one that holds such models.

    Returns:
        The same model.

    Raises:
        ValueError: for a model without such self-attention, or whose self-attention somebody else has changed. With
            `output_attentions=True` the model then raises one as well.
    """
    modules: list[nn.Module] = [module for module in model.modules() if isinstance(module, _ATTENTION)]
    if not modules:
        raise ValueError(
            f"the model is a {type(model).__name__}, in which there is no self-attention of Longformer or of LED's "
            'encoder; expected one of their models. Other encoders take attn_implementation="longspan"'
        )
    for module in modules:
        if type(module) not in _WINDOWED and type(module) not in _ORIGINAL:
            raise ValueError(
                f"the model's self-attention is a {_path(type(module))}; expected transformers' own"
            )
    _check_forward([module for module in modules if type(module) in _WINDOWED])
    for module in model.modules():
        module.__class__ = _WINDOWED.get(type(module), type(module))
        if isinstance(module, _THAT_PAD):
            # A plain function, which copies, pickles and replicas of the model share: it knows no model.
            vars(module)["_pad_to_window_size"] = _without_padding
    return model


def restore(model: Model) -> Model:
    """Undo `accelerate`, in place; a model without it stays as it is. Returns the same model.

    Raises:
        ValueError: where hooks have been put around the forward of its self-attention since.
    """
    modules = list(model.modules())
    _check_forward(
        [module for module in modules if type(module) in _ORIGINAL and isinstance(module, _ATTENTION)]
    )
    for module in modules:
        module.__class__ = _ORIGINAL.get(type(module), type(module))
        if isinstance(module, _THAT_PAD):
            vars(module).pop("_pad_to_window_size", None)
    return model


def _check_forward(modules: list[nn.Module]) -> None:
    """ValueError where somebody holds the forward of a class that is about to be exchanged."""
    for module in modules:
        if "forward" in vars(module):
            raise ValueError(
                f"the forward of a {type(module).__name__} has been replaced, as by hooks that move weights between "
                "devices; expected the class's own: accelerate the model before, and restore it after they are removed"
            )


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
