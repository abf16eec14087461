"""The naive reference: a dense mask, a full matrix of weights, PyTorch's own autograd. For any dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attention import dropout
from attention.pattern import Pattern


def dense_attention(
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
    dropout_seed: Tensor | None = None,
) -> Tensor:
    """What `windowed_attention` computes, with an n x n matrix.

    Softmax is in float32 or wider, products in the input's dtype, as a user of plain PyTorch would write it.
    """
    _, heads, length, head_dim = query.shape
    dtype = query.dtype
    per_head = (dilation,) * heads if isinstance(dilation, int) else tuple(dilation)
    real = None if attention_mask is None else attention_mask.bool()
    is_global = None if global_attention_mask is None else global_attention_mask.bool()
    pattern = Pattern.of(query, window, per_head, causal, real, is_global, document_ids)
    seen = pattern.dense()  # (B, H, N, N)

    # A padded query, key or value must not reach anything: whatever stands there is replaced before use.
    def clean(x: Tensor) -> Tensor:
        return x if real is None else torch.where(real[:, None, :, None], x, 0)

    local = [clean(x) for x in (query, key, value)]
    own = [clean(x) if x is not None else y for x, y in zip((query_global, key_global, value_global), local)]

    def rows(projections: Sequence[Tensor], stream: int) -> Tensor:
        q, k, v = projections
        score = (q / math.sqrt(head_dim)) @ k.mT
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        weight = score.masked_fill(~seen, -torch.inf).softmax(-1, dtype=wide)
        weight = torch.where(seen.any(-1, keepdim=True), weight, 0)
        if dropout_p > 0:
            assert dropout_seed is not None
            position = torch.arange(length)[None]
            low, high = dropout.row_state(dropout_seed, heads, position, stream)
            state = dropout.RowState(low[..., None], high[..., None])
            weight = weight * dropout.keep(state, position, dropout_p, wide) / (1 - dropout_p)
        return weight.to(dtype) @ v

    global_row = pattern.tokens.is_global[:, None, :, None]
    result = torch.where(global_row, rows(own, dropout.GLOBAL_STREAM), rows(local, dropout.LOCAL_STREAM))
    return torch.where(pattern.tokens.real[:, None, :, None], result, 0)
