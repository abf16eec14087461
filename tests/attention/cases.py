"""Random attention problems with every feature at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from attention import windowed


def on_the_cpu() -> list[str]:
    """The backends that take tensors on the CPU, where these tests are: the `cuda` of a GPU does not."""
    return [
        name
        for name in windowed.backends()
        if windowed._BACKENDS[name].rejects(torch.empty(1, 1, 1, 1)) is None
    ]


def widest_dtype(backend: str) -> torch.dtype:
    """float64, or float32 for kernels that take nothing wider."""
    wide = torch.empty(1, 1, 1, 1, dtype=torch.float64)
    return torch.float64 if windowed._BACKENDS[backend].rejects(wide) is None else torch.float32


LENGTHS = (1, 2, 7, 20, 63, 64, 111, 129, 257)


@dataclass
class Case:
    """Tensors and options of one call. `projections` holds three tensors, or six with own global projections."""

    projections: list[Tensor]
    window: int
    options: dict[str, Any] = field(default_factory=dict)
    grad: Tensor = field(default_factory=lambda: torch.empty(0))

    def run(
        self, attention: Any, dtype: torch.dtype | None = None, **more: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """The output and the gradient of each projection, computed in `dtype`."""
        leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in self.projections]
        own = dict(zip(("query_global", "key_global", "value_global"), leaves[3:]))
        output = attention(*leaves[:3], self.window, **self.options, **own, **more)
        return output.detach(), list(torch.autograd.grad(output, leaves, self.grad.to(output.dtype)))


def make(
    seed: int,
    batch: int = 2,
    heads: int = 2,
    length: int = 63,
    head_dim: int = 8,
    window: int = 16,
    *,
    dilation: int | list[int] = 1,
    causal: bool = False,
    padding: str = "none",
    global_rate: float | None = None,
    own_global: bool = False,
    documents: bool = False,
    dropout_p: float = 0.0,
    transposed: bool = False,
    poison: bool = False,
) -> Case:
    """A case in float64. padding: none, ends, holes or all (the last example wholly padded)."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        if transposed:
            shape = (batch, length, heads, head_dim)
            return torch.randn(shape, generator=generator, dtype=torch.float64).transpose(1, 2)
        return torch.randn(batch, heads, length, head_dim, generator=generator, dtype=torch.float64)

    def coins(rate: float) -> Tensor:
        return torch.rand(batch, length, generator=generator) < rate

    options: dict[str, Any] = {"dilation": dilation, "causal": causal}
    real = torch.ones(batch, length, dtype=torch.bool)
    if padding in ("ends", "all"):
        position = torch.arange(length)
        real &= position >= torch.randint(0, length // 3 + 1, (batch, 1), generator=generator)
        real &= position < length - torch.randint(0, length // 3 + 1, (batch, 1), generator=generator)
    if padding == "holes":
        real &= coins(0.8)
    if padding == "all":
        real[-1] = False
    if padding != "none":
        options["attention_mask"] = real.long()
    if global_rate is not None:
        options["global_attention_mask"] = coins(global_rate).long()
    if documents:
        options["document_ids"] = coins(4 / (length + 1)).cumsum(1) * 3 - 5
    if dropout_p > 0:
        seeds = torch.randint(-(1 << 62), 1 << 62, (batch,), generator=generator)
        options |= {"dropout_p": dropout_p, "dropout_seed": seeds}
    count = 6 if own_global and global_rate is not None else 3
    projections, grad = [normal() for _ in range(count)], normal()
    if poison:  # what a padded token holds may be anything finite, however large, and changes nothing
        for x in projections:
            x.masked_fill_(~real[:, None, :, None], 1e4)
    return Case(projections, window, options, grad)


@st.composite
def cases(draw: st.DrawFn, lengths: tuple[int, ...] = LENGTHS) -> Case:
    """Every feature, drawn independently of the others."""
    heads = draw(st.integers(1, 3))
    return make(
        draw(st.integers(0, 1 << 30)),
        batch=draw(st.integers(1, 3)),
        heads=heads,
        length=draw(st.sampled_from(lengths)),
        head_dim=draw(st.sampled_from((1, 4, 8))),
        window=2 * draw(st.sampled_from((0, 1, 3, 8, 20, 150))),
        dilation=draw(
            st.one_of(st.integers(1, 4), st.lists(st.integers(1, 4), min_size=heads, max_size=heads))
        ),
        causal=draw(st.booleans()),
        padding=draw(st.sampled_from(("none", "ends", "holes", "all"))),
        global_rate=draw(st.sampled_from((None, 0.0, 0.03, 0.3, 1.0))),
        own_global=draw(st.booleans()),
        documents=draw(st.booleans()),
        dropout_p=draw(st.sampled_from((0.0, 0.0, 0.3))),
        transposed=draw(st.booleans()),
        poison=draw(st.booleans()),
    )
