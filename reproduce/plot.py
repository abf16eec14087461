"""BPC against updates: RoBERTa leaving the unigram plateau, and what continues from it; bands are the seeds' range."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from attention.figure import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, STYLE
from reproduce.curves import Curve, curve, draw_band
from reproduce.steps import Reproduction
from reproduce.trainings import read_metrics

COLOURS = {"roberta": BLACK, "many": BLUE, "few": GREEN, "positions": ORANGE, "longer": GREY}


def draw(reproduction: Reproduction, unigram: float) -> Figure:
    """Left RoBERTa's own training, right the continued ones; without pyplot, so that no state is shared."""
    plan, starts = reproduction.plan, reproduction.starts()

    def curves(name: str) -> list[Curve]:
        return [curve(read_metrics(seed.run(name))) for seed in reproduction.seeds]

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
        draw_band(left, curves("roberta"), COLOURS["roberta"], "RoBERTa")
        left.axhline(unigram, color=GREY, linestyle=":", linewidth=1, label="frequencies of tokens alone")
        left.legend(frameon=False, fontsize=8)
        left.set_title(f"RoBERTa, {plan.recipe.roberta_tokens} tokens")
        titles = {row.name: row.title.strip() for row in (*plan.rows, plan.control)}
        copied = [(0, value) for value in starts["copied"].values()]
        for name in ("positions", "longer", "few", "many"):
            start = [(0, value) for value in starts["roberta"].values()] if name == "longer" else copied
            continued = [[first, *rest] for first, rest in zip(start, curves(name), strict=True)]
            draw_band(right, continued, COLOURS[name], titles[name])
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


def _off_the_scale(title: str, values: Sequence[float]) -> str:
    return f"{title}: {math.fsum(values) / len(values):.2f}, off the scale"
