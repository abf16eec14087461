"""windowed_attention: the checks, the choice of backend, and the operators behind torch.compile and autograd.

Two operators are registered with torch.library: `longspan::windowed_attention` and its backward. Both rebuild the
pattern from the masks, ask the backend of the given name, and save nothing but q, k, v, the output and logsumexp.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from attention import chunks, cpu, cuda, dropout, loop
from attention.pattern import Pattern
from attention.problem import Backend, Problem, softmax_dtype

_BACKENDS: dict[str, Backend] = {"loop": loop, "chunks": chunks, "cpu": cpu, "cuda": cuda}
_FASTEST_FIRST = ("cuda", "cpu", "chunks")  # that are chosen from where none is named
_FAR = 1 << 31  # no two tokens are as far apart; a product of two such numbers fits int64
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def backends() -> list[str]:
    """The names of the backends that work on this machine, the reference first."""
    return [name for name, backend in _BACKENDS.items() if backend.usable()]


def windowed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int,
    *,
    dilation: int | Sequence[int] = 1,
    causal: bool = False,
    attention_mask: Tensor | None = None,
    global_attention_mask: Tensor | None = None,
    query_global: Tensor | None = None,
    key_global: Tensor | None = None,
    value_global: Tensor | None = None,
    document_ids: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | int | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Attention in which a token sees its window, and global tokens see and are seen by all (Longformer, section 3).

    Args:
        query, key, value: (batch, heads, n, head_dim), n >= 0; float64, float32, bfloat16 or float16.
        window: total width, even, >= 0: window / 2 keys on each side, besides the token itself.
        dilation: the step between visible keys, >= 1, one for all heads or one a head; 1 is without gaps.
        causal: only keys at or before the query, for global keys and global rows too.
        attention_mask: (batch, n), nonzero for real tokens. Padding is seen by nobody, and its rows are 0.
        global_attention_mask: (batch, n), nonzero for global tokens; padding is never global.
        query_global, key_global, value_global: what global rows are computed from, like query. Each defaults to its
            local counterpart, gradient included. Without a global token they get no gradient but zeros; without
            `global_attention_mask` they are not touched at all.
        document_ids: (batch, n) integers, each id one contiguous run. A token sees its own document only.
        dropout_p: the probability with which a weight is dropped, in [0, 1); see `attention.dropout`.
        dropout_seed: int64 (batch,), a seed an example; an int, spread over the batch by `dropout.spread_seed`; or
            None: drawn from torch's generator. The same seeds drop the same weights in every backend.
        scale: what scores are multiplied by; 1 / sqrt(head_dim) by default.
        backend: one of `backends()`; by default the fastest for the device.

    Returns:
        (batch, heads, n, head_dim) in query's dtype, contiguous. Softmax is in float32 (float64 for float64). A row
        that sees nothing is 0. Under autocast float32 inputs are cast to its dtype, as in PyTorch's own attention.

    Raises:
        ValueError: for an argument out of these bounds, naming what was given and what was expected. On CUDA the
            contiguity of `document_ids` is checked only where ATTENTION_CHECK=1, as it waits for the device.
    """
    if global_attention_mask is None:
        query_global = key_global = value_global = None
    projections = {
        "query": query,
        "key": key,
        "value": value,
        "query_global": query_global,
        "key_global": key_global,
        "value_global": value_global,
    }
    _check_projections(projections)
    batch, heads, length, head_dim = query.shape
    if head_dim == 0:
        raise ValueError(f"query has shape {tuple(query.shape)}; expected a head_dim of at least 1")
    per_head = _per_head(dilation, heads)
    width = _integer(window)
    if width is None or width < 0 or width % 2:
        raise ValueError(f"window is {window!r}; expected an even integer >= 0, the total width")
    if scale is not None and not _is_between(-math.inf, scale, math.inf):
        raise ValueError(f"scale is {scale!r}; expected a finite number, or None for 1 / sqrt(head_dim)")
    masks = {
        "attention_mask": attention_mask,
        "global_attention_mask": global_attention_mask,
        "document_ids": document_ids,
    }
    _check_masks(masks, (batch, length), query.device)
    if not (dropout_p == 0 or _is_between(0, dropout_p, 1)):
        raise ValueError(f"dropout_p is {dropout_p!r}; expected a probability in [0, 1)")
    if backend is not None and not isinstance(backend, str):
        raise ValueError(f"backend is {backend!r}; expected None or one of {', '.join(backends())}")
    seed = _seeds(dropout_seed, batch, query.device) if dropout_p > 0 else None
    if (
        _autocasts(query.device)
        and torch.is_autocast_enabled(query.device.type)
        and query.dtype != torch.float64
    ):
        dtype = torch.get_autocast_dtype(query.device.type)
        projections = {name: None if x is None else x.to(dtype) for name, x in projections.items()}

    output, _ = _forward(
        *projections.values(),
        None if attention_mask is None else attention_mask != 0,
        None if global_attention_mask is None else global_attention_mask != 0,
        None if document_ids is None else document_ids.long(),
        seed,
        min(width, _FAR),
        [min(step, _FAR) for step in per_head],
        causal,
        dropout_p,
        1 / math.sqrt(head_dim) if scale is None else scale,
        backend or "",
    )
    return output


@torch.library.custom_op("longspan::windowed_attention", mutates_args=())
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_global: Tensor | None,
    key_global: Tensor | None,
    value_global: Tensor | None,
    real: Tensor | None,
    is_global: Tensor | None,
    document: Tensor | None,
    dropout_seed: Tensor | None,
    window: int,
    dilation: Sequence[int],
    causal: bool,
    dropout_p: float,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Output and logsumexp (B, H, N)."""
    chosen = _chosen(backend, query)
    if query.numel() == 0:
        return _fake_forward(query)
    pattern = Pattern.of(query, window, tuple(dilation), causal, real, is_global, document)
    if query.device.type == "cpu" or os.environ.get("ATTENTION_CHECK") == "1":
        pattern.check_documents()
    projections = (query, key, value, query_global, key_global, value_global)
    with torch.autocast(query.device.type, enabled=False):
        return chosen.forward(Problem(*projections, pattern, scale, dropout_p, dropout_seed))


@_forward.register_fake
def _fake_forward(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape[:3], dtype=softmax_dtype(query.dtype))


@torch.library.custom_op("longspan::windowed_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_global: Tensor | None,
    key_global: Tensor | None,
    value_global: Tensor | None,
    real: Tensor | None,
    is_global: Tensor | None,
    document: Tensor | None,
    dropout_seed: Tensor | None,
    window: int,
    dilation: Sequence[int],
    causal: bool,
    dropout_p: float,
    scale: float,
    backend: str,
) -> list[Tensor]:
    """The gradients of the given ones among the six projections, in their order."""
    projections = (query, key, value, query_global, key_global, value_global)
    if query.numel() == 0:
        return [torch.zeros_like(x) for x in projections if x is not None]
    pattern = Pattern.of(query, window, tuple(dilation), causal, real, is_global, document)
    problem = Problem(*projections, pattern, scale, dropout_p, dropout_seed)
    with torch.autocast(query.device.type, enabled=False):
        found = _chosen(backend, query).backward(problem, output, logsumexp, grad)
    gradients = (
        found.query,
        found.key,
        found.value,
        found.query_global,
        found.key_global,
        found.value_global,
    )
    return [gradient.to(query.dtype) for gradient, x in zip(gradients, projections) if x is not None]


@_backward.register_fake
def _fake_backward(grad: Tensor, output: Tensor, logsumexp: Tensor, *inputs: Any) -> list[Tensor]:
    return [x.new_empty(x.shape) for x in inputs[:6] if x is not None]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, window, dilation, causal, dropout_p, scale, backend = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.options = (window, dilation, causal, dropout_p, scale, backend)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    output, logsumexp, *tensors = ctx.saved_tensors
    found = iter(_backward(grad, output, logsumexp, *tensors, *ctx.options))
    return *(None if x is None else next(found) for x in tensors[:6]), *[None] * 10


_forward.register_autograd(_differentiate, setup_context=_save)


def _chosen(name: str, query: Tensor) -> Backend:
    """The named backend, or, for "", the fastest trusted one.

    Inside the operators, so that torch.compile neither traces the question nor remembers the answer.
    """
    if not name:
        suitable = (_BACKENDS[name] for name in _FASTEST_FIRST)
        return next(x for x in suitable if x.usable() and x.rejects(query) is None and x.trusted(query))
    if name not in _BACKENDS or not _BACKENDS[name].usable():
        raise ValueError(f"backend is {name!r}; expected None or one of {', '.join(backends())}")
    expected = _BACKENDS[name].rejects(query)
    if expected is not None:
        raise ValueError(
            f"backend {name!r} is given query of {query.dtype} on {query.device} with head_dim "
            f"{query.shape[3]}; expected {expected}"
        )
    return _BACKENDS[name]


def _check_projections(projections: dict[str, Tensor | None]) -> None:
    for name, tensor in projections.items():
        if not isinstance(tensor, Tensor) and (tensor is not None or not name.endswith("_global")):
            raise ValueError(f"{name} is a {type(tensor).__name__}; expected a tensor")
    query = projections["query"]
    assert query is not None
    if query.dim() != 4:
        raise ValueError(f"query has shape {tuple(query.shape)}; expected (batch, heads, n, head_dim)")
    if query.dtype not in _DTYPES:
        raise ValueError(f"query is {query.dtype}; expected one of {', '.join(map(str, _DTYPES))}")
    properties: dict[str, Callable[[Tensor], Any]] = {
        "shape": lambda x: tuple(x.shape),
        "dtype": lambda x: x.dtype,
        "device": lambda x: x.device,
    }
    for name, tensor in projections.items():
        # torch.library's operators would drop it, and the derivative be 0.
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"{name} carries a forward-mode tangent; expected none, only gradients are known"
            )
        for what, of in properties.items():
            if tensor is not None and of(tensor) != of(query):
                raise ValueError(f"{name} has {what} {of(tensor)}; expected {of(query)}, as query has")


def _autocasts(device: torch.device) -> bool:
    """Whether torch knows autocast for this device; it does not for meta."""
    return torch.amp.is_autocast_available(device.type)


def _integer(value: Any) -> int | None:
    """An int, of Python or of NumPy; None for anything else, booleans included."""
    if isinstance(value, int):  # torch.compile's symbols too, which operator.index would make constants
        return None if isinstance(value, bool) else value
    try:
        return operator.index(value)
    except TypeError:
        return None


def _is_between(low: float, value: Any, high: float) -> bool:
    """Whether a number, torch.compile's too, lies strictly between; False for what is none."""
    try:
        return bool(low < value < high)
    except (TypeError, ValueError, RuntimeError):
        return False


def _per_head(dilation: int | Sequence[int], heads: int) -> list[int]:
    one = _integer(dilation)
    given = list(dilation) if one is None and isinstance(dilation, Iterable) else [dilation] * heads
    if len(given) != heads:
        raise ValueError(
            f"dilation has {len(given)} entries; expected one int, or one for each of {heads} heads"
        )
    per_head = [step for step in map(_integer, given) if step is not None and step >= 1]
    if len(per_head) != heads:
        raise ValueError(f"dilation is {dilation}; expected integers >= 1 (1 is a window without gaps)")
    return per_head


def _check_masks(masks: dict[str, Tensor | None], shape: tuple[int, int], device: torch.device) -> None:
    for name, mask in masks.items():
        if mask is None:
            continue
        if not isinstance(mask, Tensor):
            raise ValueError(f"{name} is a {type(mask).__name__}; expected a tensor of shape (batch, n)")
        if tuple(mask.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(mask.shape)}; expected (batch, n) = {tuple(shape)}")
        if mask.device != device:
            raise ValueError(f"{name} is on {mask.device}; expected {device}, as query is")
    ids = masks["document_ids"]
    if ids is not None and (ids.is_floating_point() or ids.is_complex()):
        raise ValueError(f"document_ids is {ids.dtype}; expected integers")


def _seeds(seed: Tensor | int | None, batch: int, device: torch.device) -> Tensor:
    """A dropout seed an example, int64 (B,)."""
    if seed is None:
        # From the default generator of the device, which activation checkpointing saves and replays.
        return torch.randint(-(1 << 63), (1 << 63) - 1, (batch,), dtype=torch.int64, device=device)
    if not isinstance(seed, Tensor):
        number = _integer(seed)
        if number is None:
            raise ValueError(f"dropout_seed is {seed!r}; expected int64 of shape ({batch},), an int or None")
        return dropout.spread_seed((number + (1 << 63)) % (1 << 64) - (1 << 63), batch, device)
    if seed.dtype != torch.int64 or tuple(seed.shape) != (batch,):
        raise ValueError(
            f"dropout_seed is {seed.dtype} of shape {tuple(seed.shape)}; "
            f"expected int64 of shape ({batch},), an int or None"
        )
    return seed.to(device)
