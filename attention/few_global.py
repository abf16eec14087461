"""Rows of few global tokens, without the projections of all tokens that they are attention over.

A global token g scores a token j by (W_q h_g + b_q) · (W_k h_j + b_k), head by head, and takes the mean of W_v h_j +
b_v by these scores' softmax. Products may be taken in another order: W_kᵀ (W_q h_g + b_q), once a global token and
head, is as wide as h_j, and its products with all h_j are the scores; the mean of the h_j comes before W_v. So keys
and values of all N tokens, 2 N × width² products a layer, become 2 N × width × heads for each global token: less,
while there are fewer of them than a head has dimensions. The function, its gradients and what dropout drops are the
same.

On a CPU alone: counting the global tokens would make a GPU wait. What is tuned for a GPU has not run on one here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention import dropout
from attention.problem import softmax_dtype


@dataclass(frozen=True)
class FewGlobal:
    """Where a batch has its global tokens, G at most in a row."""

    index: Tensor
    """int64 (B, G): their places, ascending; spare ones are others' places."""
    used: Tensor
    """bool (B, G): those that are no spare ones."""
    alone: bool
    """Whether of the last layer nothing but them is read."""

    @classmethod
    def of(
        cls,
        global_mask: Tensor | None,
        attention_mask: Tensor | None,
        places: Tensor | None,
        head_dim: int,
    ) -> FewGlobal | None:
        """None where there is nothing to save: no global token, or too many."""
        if global_mask is None or global_mask.device.type != "cpu":
            return None
        mask = global_mask != 0
        if attention_mask is not None:
            mask &= attention_mask != 0
        counts = mask.sum(1)
        most = int(counts.max())
        if not 0 < most <= head_dim // 2:
            return None
        index = mask.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        alone = places is not None and bool(mask.gather(1, places).all())
        return cls(index, torch.arange(most) < counts[:, None], alone)

    def attend(
        self,
        hidden: Tensor,
        query: nn.Linear,
        key: nn.Linear,
        value: nn.Linear,
        heads: int,
        attention_mask: Tensor | None,
        dropout_p: float,
        dropout_seed: Tensor | None,
    ) -> Tensor:
        """The rows (used places, width) that attention gives the global tokens by these projections of hidden (B, N,
        width), in float32: products of few rows cost nothing beside the others'."""
        B, N, width = hidden.shape
        G, dtype = self.index.shape[1], softmax_dtype(hidden.dtype)
        with torch.autocast("cpu", enabled=False):
            hidden = hidden.to(dtype)
            own = hidden.gather(1, self.index[..., None].expand(-1, -1, width))
            queries = F.linear(own, query.weight, query.bias).view(B, G, heads, -1) / math.sqrt(
                width // heads
            )
            keys, key_bias = key.weight.view(heads, -1, width), key.bias.view(heads, -1)
            towards = torch.einsum("bghd,hdw->bhgw", queries, keys).reshape(B, heads * G, width)
            score = (towards @ hidden.mT).view(B, heads, G, N)
            score = score + torch.einsum("bghd,hd->bhg", queries, key_bias)[..., None]
            if attention_mask is not None:
                score = score.masked_fill((attention_mask == 0)[:, None, None], torch.finfo(dtype).min)
            weight = score.softmax(-1)
            if dropout_p:
                assert dropout_seed is not None
                state = dropout.row_state(dropout_seed, heads, self.index, dropout.GLOBAL_STREAM)
                row = dropout.RowState(state.low[..., None], state.high[..., None])
                keep = dropout.keep(row, torch.arange(N, dtype=torch.int32), dropout_p, dtype)
                weight = weight * keep / (1 - dropout_p)
            mean = (weight.view(B, heads * G, N) @ hidden).view(B, heads, G, width)
            rows = torch.einsum("bhgw,hdw->bghd", mean, value.weight.view(heads, -1, width))
            rows = rows + torch.einsum("bhg,hd->bghd", weight.sum(-1), value.bias.view(heads, -1))
            return rows.reshape(B, G, width)[self.used]

    def put(self, rows: Tensor, into: Tensor) -> Tensor:
        """`into` (B, N, width) with the global tokens' rows in their places."""
        example, slot = self.used.nonzero(as_tuple=True)
        return into.index_put((example, self.index[example, slot]), rows.to(into.dtype))
