"""What one would use in place of windowed_attention: the peers that the benchmark times.

Each is a function of query, key and value (1, H, N, D) that attends within the window, but for "SDPA, dense", which has
none. What depends on the length alone (masks, compiled kernels) is made at first use, before anything is timed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from attention.benchmark.workload import HEAD_DIM, HEADS, Attend, band_mask

BLOCKS = (64, 128, 256)  # that blocked SDPA chooses from
MASKED_TOKENS = 2048  # of SDPA with a mask; above, it takes what dense SDPA takes, and n² bytes more
DENSE = "SDPA, dense (no window)"
SLIDING_CHUNKS, BLOCKED = "transformers, sliding chunks", "SDPA over blocks"


@dataclass(frozen=True)
class Method:
    """A way to attend: what the benchmark compares. Time and memory grow with the length to the power `order`."""

    attend: Attend
    order: int = 1
    windowed: bool = True
    longest: int | None = None  # above so many tokens it is left out

    def note(self, tokens: int, what: str) -> str:
        """What it chose for a length and pass, if anything."""
        chosen = getattr(self.attend, "chosen", {})
        return f"blocks of {chosen[tokens, what]}" if (tokens, what) in chosen else ""


def peers(window: int, device: torch.device) -> dict[str, Method]:
    """Those that can be had on the device."""
    found = {
        SLIDING_CHUNKS: Method(sliding_chunks(window)),
        "FlexAttention, compiled": Method(FlexAttention(window)),
    }
    if device.type == "cpu":
        found[BLOCKED] = Method(BlockedSDPA(window))
    if device.type == "cuda" and importlib.util.find_spec("flash_attn"):
        found["flash-attn, window_size"] = Method(flash_attention(window))
    found["SDPA, band as mask"] = Method(MaskedSDPA(window), order=2, longest=MASKED_TOKENS)
    found[DENSE] = Method(F.scaled_dot_product_attention, order=2, windowed=False)
    return found


def sliding_chunks(window: int) -> Attend:
    """What LongformerSelfAttention does between its projections, without its masks and global tokens."""
    config = transformers.LongformerConfig(
        hidden_size=HEADS * HEAD_DIM, num_attention_heads=HEADS, attention_window=[window]
    )
    module = LongformerSelfAttention(config, layer_id=0)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (B, N, H, D)
        scores = module._sliding_chunks_query_key_matmul(query / math.sqrt(HEAD_DIM), key, window // 2)
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).type_as(scores)
        return module._sliding_chunks_matmul_attn_probs_value(weights, value, window // 2).transpose(1, 2)

    return attend


def flash_attention(window: int) -> Attend:
    """The flash-attn package's own window. Has not run here: it needs a GPU."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attention: Any = importlib.import_module("flash_attn").flash_attn_func
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (B, N, H, D)
        return attention(query, key, value, window_size=(window // 2, window // 2)).transpose(1, 2)

    return attend


class MaskedSDPA:
    """SDPA given the band as a mask."""

    def __init__(self, window: int) -> None:
        self.mask = functools.lru_cache(maxsize=1)(functools.partial(band_mask, window=window))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mask = self.mask(query.shape[2], device=query.device)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class FlexAttention:
    """torch.compile's kernel for the blocks of the band, compiled for each length. On CPUs it has no backward pass."""

    def __init__(self, window: int) -> None:
        def in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query - key).abs() <= window // 2

        def blocks(tokens: int, device: torch.device) -> BlockMask:
            # Compiled, where the matrix of all pairs that plain Python goes through would be large.
            make: Any = create_block_mask if tokens <= 4096 else torch.compile(create_block_mask)
            return make(in_window, None, None, tokens, tokens, device=device)

        self.blocks = functools.lru_cache(maxsize=1)(blocks)
        self.compiled: Any = torch.compile(flex_attention, dynamic=False)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if query.device.type == "cpu" and torch.is_grad_enabled() and query.requires_grad:
            # Asked for it, PyTorch says so too, but runs uncompiled from then on.
            raise NotImplementedError("PyTorch has no backward pass of FlexAttention on CPUs")
        return self.compiled(query, key, value, block_mask=self.blocks(query.shape[2], query.device))


@dataclass
class BlockedSDPA:
    """The window in pure PyTorch over the CPU's flash kernel: blocks of queries, each with the keys around it.

    The blocks are the kernel's batch: one call a pass. Keys and values are read through overlapping views of one padded
    copy; in the backward pass each block's gradients are added where its view lay. A mask cuts the corners. The size of
    the blocks is the fastest of BLOCKS for this length and pass, tried at first use.
    """

    window: int
    chosen: dict[tuple[int, str], int] = field(default_factory=dict)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        tokens = query.shape[2]
        backward = torch.is_grad_enabled() and query.requires_grad
        what = "forward+backward" if backward else "forward"
        if (tokens, what) not in self.chosen:
            self.chosen[tokens, what] = self._fastest((query, key, value), backward)
        return _Blocked.apply(query, key, value, self.window // 2, self.chosen[tokens, what])

    def _fastest(self, inputs: tuple[Tensor, ...], backward: bool) -> int:
        leaves = [x.detach().requires_grad_(backward) for x in inputs]
        tokens = inputs[0].shape[2]
        sizes = [size for size in BLOCKS if tokens % size == 0] or [tokens]

        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

        def seconds(size: int) -> float:
            start = clock()
            output = _Blocked.apply(*leaves, self.window // 2, size)
            if backward:
                torch.autograd.grad(output, leaves, torch.ones_like(output))
            return clock() - start

        if len(sizes) == 1:
            return sizes[0]
        best = {size: min(seconds(size) for _ in range(4)) for size in sizes}
        return min(sizes, key=best.__getitem__)


class _Blocked(torch.autograd.Function):
    """Attention of each block of `size` queries to the keys from `half` before it to `half` behind it.

    C is the number of blocks, L = size + 2 * half the keys that a block is given.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, half: int, size: int) -> Tensor:
        assert query.shape[0] == 1
        operands = _blocks(query, size), _windows(key, half, size), _windows(value, half, size)
        mask = _block_mask(query.shape[2], half, size, query.dtype)
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output, logsumexp = attend(*operands, 0.0, False, attn_mask=mask)  # (C, H, size, D)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.half, ctx.size = half, size
        return _unblock(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, logsumexp = ctx.saved_tensors
        half, size, tokens = ctx.half, ctx.size, query.shape[2]
        operands = _blocks(query, size), _windows(key, half, size), _windows(value, half, size)
        mask = _block_mask(tokens, half, size, query.dtype)
        differentiate = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        found = differentiate(_blocks(grad, size), *operands, output, logsumexp, 0.0, False, attn_mask=mask)
        return _unblock(found[0]), *(_add_windows(x, tokens, half, size) for x in found[1:]), None, None


def _blocks(x: Tensor, size: int) -> Tensor:
    """(1, H, N, D) as (C, H, size, D), a view."""
    return x[0].unflatten(1, (-1, size)).transpose(0, 1)


def _unblock(x: Tensor) -> Tensor:
    """(C, H, size, D) as (1, H, N, D)."""
    return x.transpose(0, 1).flatten(1, 2)[None]


def _windows(x: Tensor, half: int, size: int) -> Tensor:
    """(1, H, N, D) as (C, H, L, D): overlapping views of a copy with `half` zeros at each end."""
    return F.pad(x[0], (0, 0, half, half)).unfold(1, size + 2 * half, size).permute(1, 0, 3, 2)


def _add_windows(x: Tensor, tokens: int, half: int, size: int) -> Tensor:
    """The reverse of `_windows`: what overlaps is added, one stretch of `size` of all windows at a time."""
    blocks, heads, length, head_dim = x.shape
    stretches = -(-length // size)
    total = x.new_zeros(heads, (blocks + stretches) * size, head_dim)
    for start in range(0, length, size):
        stretch = x[:, :, start : start + size].transpose(0, 1)  # (H, C, size or less, D)
        place = total[:, start : start + blocks * size].unflatten(1, (blocks, size))
        place[:, :, : stretch.shape[2]].add_(stretch)
    return total[None, :, half : half + tokens]


@functools.lru_cache(maxsize=len(BLOCKS))
def _block_mask(tokens: int, half: int, size: int, dtype: torch.dtype) -> Tensor:
    """0 where a query of a block sees a key of its window, else -inf: (C, 1, size, L)."""
    query = torch.arange(tokens).view(-1, 1, size, 1)
    key = torch.arange(0, tokens, size).view(-1, 1, 1, 1) - half + torch.arange(size + 2 * half)
    seen = ((query - key).abs() <= half) & (key >= 0) & (key < tokens)
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)


def describe(error: Exception) -> str:
    """Why a peer could not run, in a line."""
    line = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {line}"
