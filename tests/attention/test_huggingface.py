"""Parity with Hugging Face's LongformerSelfAttention, weights shared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from attention import windowed_attention
from tests.attention.cases import on_the_cpu

HEADS, WIDTH, WINDOW, LENGTH = 3, 24, 16, 64  # Hugging Face wants the length to be a multiple of the window


def ours(
    module: LongformerSelfAttention, hidden: Tensor, real: Tensor, is_global: Tensor, backend: str
) -> Tensor:
    batch, length, _ = hidden.shape

    def project(name: str) -> Tensor:
        return getattr(module, name)(hidden).view(batch, length, HEADS, -1).transpose(1, 2)

    own = {name: project(name) for name in ("query_global", "key_global", "value_global")}
    output = windowed_attention(
        *(project(name) for name in ("query", "key", "value")),
        WINDOW,
        attention_mask=real,
        global_attention_mask=is_global,
        backend=backend,
        **own,
    )
    return output.transpose(1, 2).reshape(batch, length, WIDTH)


def theirs(module: LongformerSelfAttention, hidden: Tensor, real: Tensor, is_global: Tensor) -> Tensor:
    is_global = is_global & real
    bias = torch.where(is_global, 10000.0, torch.where(real, 0.0, -10000.0))
    masks = {
        "is_index_masked": ~real,
        "is_index_global_attn": is_global,
        "is_global_attn": bool(is_global.any()),
    }
    return module(hidden, attention_mask=bias, **masks)[0]


@pytest.mark.parametrize("backend", on_the_cpu())
@pytest.mark.parametrize(
    "global_tokens", [[[], [], []], [[0], [0], [0]], [[0, 7, 40], [5], [1, 2, 3, 30, 49]]], ids=str
)
def test_same_function(backend: str, global_tokens: list[list[int]]) -> None:
    torch.manual_seed(0)
    config = LongformerConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, attention_window=[WINDOW], num_hidden_layers=1
    )
    module = LongformerSelfAttention(config, 0).eval()
    hidden = torch.randn(3, LENGTH, WIDTH)
    real = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 9], [50]])
    is_global = torch.zeros_like(real)
    for example, places in enumerate(global_tokens):
        is_global[example, places] = True

    results = []
    weight = torch.randn(3, LENGTH, WIDTH)
    for attend in (theirs, lambda *x: ours(*x, backend=backend)):
        leaf = hidden.clone().requires_grad_()
        output = attend(module, leaf, real, is_global)
        results.append((output.detach(), *torch.autograd.grad((output * weight).sum(), leaf)))
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
