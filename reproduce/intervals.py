"""Means over a few seeds with their 95 % intervals, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The 97.5 % quantile of Student's t by degrees of freedom: seeds are few, and a normal's 1.96 would flatter them.
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
MOST_SEEDS = 10


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval; NaN for a single seed, which has no spread to judge by."""

    mean: float
    half_width: float

    @property
    def excludes_zero(self) -> bool:
        """False for a single seed: nothing is shown by it."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        spread = "" if math.isnan(self.half_width) else f" ± {self.half_width:.3f}"
        return f"{self.mean:.3f}{spread}"


def interval(values: Sequence[float]) -> Interval:
    """The mean of 1 to 10 values with t · s / √n, s with n - 1 in the denominator."""
    n = len(values)
    if not 1 <= n <= MOST_SEEDS:
        raise ValueError(f"values: found {n}, expected 1 to {MOST_SEEDS}")
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, math.nan)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Interval(mean, T_975[n - 1] * math.sqrt(variance / n))


def paired(higher: Mapping[int, float], lower: Mapping[int, float]) -> Interval:
    """The mean of `higher - lower` over the seeds, with its interval; both hold the same seeds.

    Rows of a seed share their start, so most of what differs between seeds is the same in both and cancels.
    """
    if higher.keys() != lower.keys():
        raise ValueError(f"seeds: found {sorted(higher)} and {sorted(lower)}, expected the same")
    return interval([higher[seed] - lower[seed] for seed in sorted(higher)])
