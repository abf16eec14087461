"""What the Hyperpartisan experiment has come to: tables, JSON and a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attention.figure import BLACK, BLUE, GREEN, GREY, ORANGE, STYLE
from reproduce.articles import Labels, score
from reproduce.curves import curve, draw_band
from reproduce.hyperpartisan_steps import (
    FIRST_WORDS,
    FREQUENT,
    LONG,
    LONGFORMER,
    POSITIVE,
    ROBERTA,
    SHORT,
    TRUTH,
    WORDS,
    Experiment,
)
from reproduce.intervals import Interval, interval, paired
from reproduce.tables import Row, Table
from reproduce.trainings import read_metrics

METRICS = ("accuracy", "f1")
COLOURS = {LONG: BLUE, SHORT: ORANGE, WORDS: GREEN, FIRST_WORDS: GREY}


@dataclass(frozen=True)
class Difference:
    """One row less another, paired by seed; the paper's, of F1 in percent, where it has both."""

    more: str
    less: str
    paper: float | None = None


class Results:
    """Each row's predictions scored, over the seeds' test articles."""

    def __init__(self, experiment: Experiment, predicted: Mapping[str, Mapping[int, Labels]]) -> None:
        """predicted: as Experiment.predicted gives them."""
        short, long = experiment.recipe.roberta_tokens, experiment.recipe.longformer_tokens
        self.experiment = experiment
        self.rows = (
            Row(FREQUENT, "always the more frequent class"),
            Row(POSITIVE, "always hyperpartisan"),
            Row(FIRST_WORDS, f"bag of words, first {short:,} tokens"),
            Row(WORDS, "bag of words, whole articles"),
            Row(SHORT, f"Longformer, first {short:,} tokens", 87.4),
            Row(LONG, f"Longformer, {long:,} tokens", 94.8),
        )
        self.differences = (
            Difference(LONG, SHORT, 94.8 - 87.4),
            Difference(WORDS, FIRST_WORDS),
            Difference(SHORT, FIRST_WORDS),
            Difference(LONG, WORDS),
        )
        truth = predicted[TRUTH]
        self.found = {
            metric: {
                row.name: {seed: score(truth[seed], own)[metric] for seed, own in predicted[row.name].items()}
                for row in self.rows
            }
            for metric in METRICS
        }
        """{metric: {row: {seed: value}}}"""
        fits = {name for name, length in experiment.lengths.items() if length + 2 <= short}
        self.beyond = {
            row.name: {
                seed: score(_without(truth[seed], fits), _without(own, fits))["accuracy"]
                for seed, own in predicted[row.name].items()
            }
            for row in self.rows
        }
        """Accuracy on those test articles that do not fit into RoBERTa's length."""

    def tables(self) -> list[Table]:
        titles = {row.name: row.title for row in self.rows}
        seeds = sorted(self.found["f1"][LONG])
        main = [
            (
                row.title,
                *(_told(self.found[metric][row.name]) for metric in METRICS),
                "" if row.paper is None else f"{row.paper / 100:.3f}",
                *(f"{self.found['f1'][row.name][seed]:.3f}" for seed in seeds),
            )
            for row in self.rows
        ]
        compared = [
            (
                f"{titles[each.more]} − {titles[each.less]}",
                *(str(self.difference(each, metric)) for metric in METRICS),
                "" if each.paper is None else f"{each.paper / 100:.3f}",
                str(paired(self.beyond[each.more], self.beyond[each.less])),
            )
            for each in self.differences
        ]
        return [
            Table(
                "Hyperpartisan: mean ± 95 % interval over the seeds (standard deviation)",
                ("", "accuracy", "F1", "paper's F1", *(f"F1, seed {seed}" for seed in seeds)),
                tuple(main),
                "The paper's 87.4 is RoBERTa-base's, 94.8 Longformer-base's, both on one split.",
            ),
            Table(
                "Hyperpartisan: paired differences",
                ("", "accuracy", "F1", "paper's F1", "accuracy, articles over the short length"),
                tuple(compared),
            ),
            self._lengths(),
        ]

    def difference(self, each: Difference, metric: str) -> Interval:
        return paired(self.found[metric][each.more], self.found[metric][each.less])

    def _lengths(self) -> Table:
        about = self.lengths()
        return Table(
            "Lengths of all articles in wordpieces (table 6)",
            (
                "",
                "mean",
                "95th percentile",
                "longest",
                *(f"over {tokens:,} tokens" for tokens in about["over"]),
            ),
            (
                (
                    "here",
                    f"{about['mean']:,.0f}",
                    f"{about['percentile_95']:,.0f}",
                    f"{about['longest']:,}",
                    *(f"{share:.1%}" for share in about["over"].values()),
                ),
                ("paper (RoBERTa's wordpieces)", "705", "1,975", "", *("" for _ in about["over"])),
            ),
        )

    def lengths(self) -> dict[str, Any]:
        """Of the articles before anything is cut off, without special tokens."""
        recipe = self.experiment.recipe
        lengths = np.array(list(self.experiment.lengths.values()))
        return {
            "mean": float(lengths.mean()),
            "percentile_95": float(np.percentile(lengths, 95)),
            "longest": int(lengths.max()),
            "over": {
                tokens: float((lengths + 2 > tokens).mean())
                for tokens in (recipe.roberta_tokens, recipe.longformer_tokens)
            },
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": {
                row.name: {
                    "title": row.title,
                    "paper_f1": row.paper,
                    **{metric: _in_full(self.found[metric][row.name]) for metric in METRICS},
                    "accuracy_beyond_the_short_length": _in_full(self.beyond[row.name]),
                }
                for row in self.rows
            },
            "differences": [
                {
                    "more": each.more,
                    "less": each.less,
                    **{metric: asdict(self.difference(each, metric)) for metric in METRICS},
                }
                for each in self.differences
            ],
            "lengths": self.lengths(),
        }

    def draw(self) -> Figure:
        """Pretraining, validation while finetuning, and each seed's F1 on test; without pyplot, so that no state is
        shared."""
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(13, 4.2), layout="constrained")
            left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
            self._draw_pretraining(left)
            self._draw_validation(middle)
            self._draw_test(right)
            for axes in (left, middle, right):
                axes.spines[["top", "right"]].set_visible(False)
        return figure

    def _draw_pretraining(self, axes: Axes) -> None:
        seed, recipe, before = self.experiment.pretraining, self.experiment.recipe, 0
        for training, colour, tokens in zip(
            self.experiment.pretrainings,
            (BLACK, BLUE),
            (recipe.roberta_tokens, recipe.longformer_tokens),
            strict=True,
        ):
            rows = curve(read_metrics(seed.run(training.name)))
            title = {ROBERTA: "RoBERTa", LONGFORMER: "Longformer"}[training.name]
            axes.plot(
                [before + step for step, _ in rows],
                [bits for _, bits in rows],
                ".-",
                color=colour,
                label=f"{title}, {tokens:,} tokens",
            )
            before += training.steps
        axes.set(title="pretraining", xlabel="updates", ylabel="bits per masked token, validation")
        axes.legend(frameon=False, fontsize=8)

    def _draw_validation(self, axes: Axes) -> None:
        titles = {row.name: row.title for row in self.rows}
        for training in self.experiment.finetunings:
            curves = [
                [
                    (int(row["step"]), row["validation_f1"])
                    for row in read_metrics(seed.run(training.name))
                    if not math.isnan(row.get("validation_f1", math.nan))
                ]
                for seed in self.experiment.seeds
            ]
            draw_band(axes, curves, COLOURS[training.name], titles[training.name])
        axes.set(
            title="finetuning: mean and range of the seeds",
            xlabel="updates",
            ylabel="F1, validation",
            ylim=(0, 1),
        )
        axes.legend(frameon=False, fontsize=8, loc="lower right")

    def _draw_test(self, axes: Axes) -> None:
        shown = [row for row in self.rows if row.name in COLOURS]
        by_seed = [
            [self.found["f1"][row.name][seed.number] for row in shown] for seed in self.experiment.seeds
        ]
        for values in by_seed:
            axes.plot(values, range(len(shown)), color=GREY, linewidth=0.5, alpha=0.5)
        for place, row in enumerate(shown):
            values = list(self.found["f1"][row.name].values())
            axes.plot(values, [place] * len(values), "o", color=COLOURS[row.name], alpha=0.6)
            axes.plot([math.fsum(values) / len(values)], [place], "|", color=BLACK, markersize=22)
        positive = list(self.found["f1"][POSITIVE].values())
        floor = math.fsum(positive) / len(positive)
        axes.axvline(floor, color=GREY, linestyle=":", linewidth=1, label="always hyperpartisan")
        axes.set_yticks(range(len(shown)), [row.title for row in shown])
        axes.set(title="F1 on test: each seed, and the mean", xlabel="F1", xlim=(0, 1))
        axes.legend(frameon=False, fontsize=8, loc="lower left")


def _without(labels: Labels, left_out: Set[str]) -> dict[str, str]:
    return {name: label for name, label in labels.items() if name not in left_out}


def _deviation(values: Sequence[float]) -> float:
    """With n - 1 in the denominator; NaN of a single value."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _told(values: Mapping[int, float]) -> str:
    own = list(values.values())
    deviation = f" ({_deviation(own):.3f})" if len(own) > 1 else ""
    return f"{interval(own)}{deviation}"


def _in_full(values: Mapping[int, float]) -> dict[str, Any]:
    own = list(values.values())
    return {
        **asdict(interval(own)),
        "deviation": _deviation(own),
        "seeds": {str(seed): value for seed, value in values.items()},
    }
