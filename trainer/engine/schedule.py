"""Learning rates as functions of the update's number, counted from 1."""

from __future__ import annotations

import math
from typing import Literal

Decay = Literal["polynomial", "linear", "cosine", "constant"]


def learning_rate(
    update: int,
    *,
    peak: float,
    warmup_steps: int,
    steps: int,
    decay: Decay = "polynomial",
    power: float = 3.0,
) -> float:
    """The rate of update `update` (1..steps): linear warm-up to `peak`, then the decay to 0 at the last update.

    Longformer's continued pretraining is polynomial of power 3 after 500 steps of warm-up (section 5): of 65,000
    updates at a peak of 3e-5, update 501 has 2.9998604673e-5 and update 32,750 has 3.75e-6.
    """
    if update <= warmup_steps:
        return peak * update / warmup_steps
    left = max(0.0, (steps - update) / max(1, steps - warmup_steps))
    if decay == "constant":
        return peak
    if decay == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (1 - left)))
    return peak * left ** (power if decay == "polynomial" else 1.0)
