"""The next character from a model's logits: temperature, top-k and top-p (Holtzman et al., 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How bold a choice is; the restrictions hold one after the other, in this order."""

    temperature: float = 1.0
    """Logits are divided by it; at 0 the likeliest is taken, the first of those that tie."""
    top_k: int | None = None
    """Only so many of the likeliest."""
    top_p: float = 1.0
    """Only the fewest of the likeliest that together have at least this share of the probability."""

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Ids (B,) int64 on the CPU, from logits (B, vocab_size) and numbers (B,) drawn uniformly from [0, 1).

        In float64, as the place of each number among the summed probabilities.
        """
        logits = logits.to("cpu", torch.float64)
        if self.temperature == 0:
            return logits.argmax(-1)
        # From the greatest, so that the smallest temperature divides to -inf, never to inf - inf.
        relative = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        chances = relative.softmax(-1)
        ranked, ids = chances.sort(dim=-1, descending=True, stable=True)
        ranked[:, self.top_k or ranked.shape[-1] :] = 0
        before = ranked.cumsum(-1) - ranked
        ranked[before >= self.top_p * ranked.sum(-1, keepdim=True)] = 0
        # Summed in the order of ids: in that of rank, one that ties with another by a hair would change places with
        # it, and a text take another way, where rounding differs.
        summed = torch.zeros_like(ranked).scatter(-1, ids, ranked).cumsum(-1)
        total = summed[:, -1:]
        place = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
        return torch.searchsorted(summed, place, right=True)[:, 0]
