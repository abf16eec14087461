"""What a benchmark of attention runs: tensors, passes, and the FLOPs and bytes that count.

Useful are the products of visible pairs of a query and a key, as flash-attention counts them: two a pair in the forward
pass (scores, output) and five more in the backward pass (scores again, as they are not stored, and the gradients of
weights, values, queries and keys), each 2 * head_dim FLOPs. What a method computes of hidden pairs is not useful.

Scratch is what a run allocates beyond its inputs, its output and its gradients.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attention import backends
from attention.benchmark.measure import CPU, allocated
from attention.pattern import visible_pairs

HEADS, HEAD_DIM = 12, 64  # RoBERTa-base's
PRODUCTS = {"forward": 2, "forward+backward": 7}  # matrix products a visible pair

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def make_inputs(
    tokens: int,
    layout: str = "model",
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> list[Tensor]:
    """Query, key, value and the output's gradient, (1, H, N, D), the same numbers in either layout.

    layout: "model", as a model's projections leave them: (batch, n, heads, head_dim) in memory, seen transposed; or
    "contiguous".
    """
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(4):
        x = torch.randn(1, tokens, HEADS, HEAD_DIM, generator=generator).to(device, dtype).transpose(1, 2)
        made.append(x.contiguous() if layout == "contiguous" else x)
    return made


def forward(attend: Attend, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output."""
    with torch.no_grad():
        return [attend(*inputs[:3])]


def forward_backward(attend: Attend, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output and the three gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    output = attend(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, inputs[3])]


PASSES = {"forward": forward, "forward+backward": forward_backward}


def band_mask(tokens: int, window: int, device: torch.device = CPU) -> Tensor:
    position = torch.arange(tokens, dtype=torch.int32, device=device)
    return (position[:, None] - position).abs_() <= window // 2


def exact(what: str, inputs: Sequence[Tensor], window: int) -> list[Tensor]:
    """What the pass must give for the first head: dense attention in float64."""
    tokens, device = inputs[0].shape[2], inputs[0].device
    mask = band_mask(tokens, window, device)

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    return PASSES[what](dense, [x[:, :1].double() for x in inputs])


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The greatest difference of output and gradients, on the first head."""
    return max(float((a[:, :1] - b).abs().max()) for a, b in zip(found, expected, strict=True))


def useful_flops(what: str, tokens: int, window: int) -> int:
    """Of a pass over all heads."""
    return PRODUCTS[what] * 2 * HEAD_DIM * HEADS * visible_pairs(tokens, window)


def scratch(run: Callable[[], list[Tensor]], inputs: Sequence[Tensor]) -> tuple[int, float]:
    """The most bytes a run holds beyond its inputs and results; and over the bytes of inputs and results.

    Counted by torch's allocator, and by native backends themselves, which say in `scratch_bytes()` what they had.
    """
    result_bytes: list[int] = []
    _native_scratch()  # forget what earlier runs had
    most = allocated(lambda: _keep_size(run(), result_bytes), inputs[0].device)
    beyond = max(0, most - result_bytes[0]) + _native_scratch()
    return beyond, beyond / (result_bytes[0] + sum(x.nbytes for x in inputs))


def _keep_size(results: list[Tensor], sizes: list[int]) -> list[Tensor]:
    sizes.append(sum(x.nbytes for x in results))
    return results


def _native_scratch() -> int:
    """Bytes of scratch outside torch's allocator at the most since the last call, of all backends."""
    modules = [importlib.import_module(f"attention.{name}") for name in backends()]
    return sum(module.scratch_bytes() for module in modules if hasattr(module, "scratch_bytes"))
