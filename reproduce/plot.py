"""BPC against updates: RoBERTa leaving the unigram plateau, and what continues from it; bands are the seeds' range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attention.figure import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, STYLE
from reproduce.steps import Reproduction, read_metrics

COLOURS = {"roberta": BLACK, "many": BLUE, "few": GREEN, "positions": ORANGE, "longer": GREY}
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


def draw(reproduction: Reproduction, unigram: float) -> Figure:
    """Left RoBERTa's own training, right the continued ones; without pyplot, so that no state is shared."""
    plan, starts = reproduction.plan, reproduction.starts()

    def curves(name: str) -> list[list[tuple[int, float]]]:
        return [curve(read_metrics(seed.run(name))) for seed in reproduction.seeds]

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
        _draw(left, "roberta", "RoBERTa", curves("roberta"))
        left.axhline(unigram, color=GREY, linestyle=":", linewidth=1, label="frequencies of tokens alone")
        left.legend(frameon=False, fontsize=8)
        left.set_title(f"RoBERTa, {plan.recipe.roberta_tokens} tokens")
        titles = {row.name: row.title.strip() for row in (*plan.rows, plan.control)}
        copied = [(0, value) for value in starts["copied"].values()]
        for name in ("positions", "longer", "few", "many"):
            start = [(0, value) for value in starts["roberta"].values()] if name == "longer" else copied
            continued = [[first, *rest] for first, rest in zip(start, curves(name), strict=True)]
            _draw(right, name, titles[name], continued)
        level = list(starts["roberta"].values())
        right.axhline(
            math.fsum(level) / len(level), color=BLACK, linestyle="--", linewidth=1, label=titles["roberta"]
        )
        uncopied = list(starts["uncopied"].values())
        right.plot(
            [], [], color=RED, marker="^", linestyle="", label=_off_the_scale(titles["uncopied"], uncopied)
        )
        right.plot(
            [0] * len(copied), [value for _, value in copied], "o", color=PURPLE, label=titles["copied"]
        )
        right.set_title(f"continued, {plan.recipe.longformer_tokens} tokens, window {plan.recipe.window}")
        for axes in (left, right):
            axes.set_xlabel("updates")
            axes.set_ylabel("bits per masked token")
            axes.spines[["top", "right"]].set_visible(False)
        right.legend(frameon=False, fontsize=8)
    return figure


def _draw(axes: Axes, name: str, label: str, curves: Sequence[Curve]) -> None:
    steps, low, middle, high = band(curves)
    axes.fill_between(steps, low, high, color=COLOURS[name], alpha=0.2, linewidth=0)
    axes.plot(steps, middle, color=COLOURS[name], linewidth=1.5, label=label)


def _off_the_scale(title: str, values: Sequence[float]) -> str:
    return f"{title}: {math.fsum(values) / len(values):.2f}, off the scale"
