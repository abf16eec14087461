"""BPC against updates: a run's curve, and the seeds' mean with their range as a band."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

Curve = Sequence[tuple[int, float]]


def curve(rows: Sequence[Mapping[str, float]]) -> list[tuple[int, float]]:
    """(step, BPC) of a run: on the validation split where the run looked at it, else of its training batches."""
    key = "validation_bpc" if any("validation_bpc" in row for row in rows) else "bpc"
    return [(int(row["step"]), row[key]) for row in rows if not math.isnan(row.get(key, math.nan))]


def band(curves: Sequence[Curve]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps that all curves have, with the least, the mean and the greatest value there."""
    by_step = [dict(one) for one in curves]
    steps = sorted(set.intersection(*(set(one) for one in by_step))) if by_step else []
    values = [[one[step] for one in by_step] for step in steps]
    return (
        steps,
        [min(v) for v in values],
        [math.fsum(v) / len(v) for v in values],
        [max(v) for v in values],
    )


def draw_band(axes: Axes, curves: Sequence[Curve], colour: str, label: str) -> None:
    """The mean of a row's curves, and their range behind it."""
    steps, low, middle, high = band(curves)
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(steps, middle, color=colour, linewidth=1.5, label=label)
