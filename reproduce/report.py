"""The tables of a reproduction, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reproduce.intervals import Interval, interval, paired
from reproduce.recipe import Plan, Row

Found = Mapping[str, Mapping[int, float]]
"""{model name: {seed: BPC}}"""


@dataclass(frozen=True)
class Step:
    """Two neighbours in the paper's order: how much worse the second is here, and in the paper."""

    better: str
    worse: str
    here: Interval
    paper: float

    @property
    def holds(self) -> bool:
        return self.here.mean > 0 and self.here.excludes_zero


@dataclass(frozen=True)
class Table:
    """Cells of text under headings; the first column is left-aligned."""

    title: str
    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    note: str = ""

    def plain(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.headings, *self.lines, strict=True)]
        rows = [self.headings, *self.lines]
        text = [
            "  ".join(
                cell.ljust(width) if not number else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([f"== {self.title}", *text, *([self.note] if self.note else [])])

    def markdown(self) -> str:
        rule = "|---|" + "---:|" * (len(self.headings) - 1)
        rows = [
            "| " + " | ".join(cell.strip() for cell in row) + " |" for row in (self.headings, *self.lines)
        ]
        text = [f"**{self.title}**", "", rows[0], rule, *rows[1:]]
        return "\n".join([*text, *(["", self.note] if self.note else [])])


def steps_of_order(plan: Plan, found: Found) -> list[Step]:
    """The paper's order, neighbour by neighbour."""
    paper = {row.name: row.paper for row in plan.rows}
    steps = []
    for better, worse in zip(plan.order, plan.order[1:], strict=False):
        there = (paper[worse] or 0) - (paper[better] or 0)
        steps.append(Step(better, worse, paired(found[worse], found[better]), there))
    return steps


def tables(plan: Plan, found: Found, unigram: float) -> list[Table]:
    """Table 5, the order of its rows, the effect of the window, of keeping documents apart and of training alone."""
    titles = {row.name: row.title.strip() for row in (*plan.rows, plan.control, plan.documents)}
    return [
        _table_5(plan, found, unigram),
        Table(
            "The paper's order, neighbour by neighbour: how much worse, paired by seed",
            ("worse − better", "here", "paper", "beyond the spread"),
            tuple(
                (
                    f"{titles[step.worse]} − {titles[step.better]}",
                    str(step.here),
                    f"{step.paper:.3f}",
                    "yes" if step.holds else "no",
                )
                for step in steps_of_order(plan, found)
            ),
        ),
        _windows(plan, found),
        Table(
            "What else: paired differences",
            ("", "BPC"),
            (
                (
                    f"documents kept apart − not, after {plan.recipe.effects['steps']:,} updates",
                    str(paired(found["documents"], found[plan.at_window(plan.recipe.window)[1]])),
                ),
                (
                    f"{titles['longer']} − {titles['many']}: what longer sequences give beyond more training",
                    str(paired(found["longer"], found["many"])),
                ),
            ),
        ),
    ]


def _table_5(plan: Plan, found: Found, unigram: float) -> Table:
    seeds = sorted(found["roberta"])

    def line(row: Row) -> tuple[str, ...]:
        values = found[row.name]
        paper = "" if row.paper is None else f"{row.paper:.3f}"
        return (row.title, str(interval(list(values.values()))), paper, *(f"{values[s]:.3f}" for s in seeds))

    return Table(
        "Table 5: bits per masked token, mean ± 95 % interval over the seeds",
        ("", "here", "paper (base)", *(f"seed {seed}" for seed in seeds)),
        tuple(line(row) for row in (*plan.rows, plan.control, plan.documents)),
        f"Guessing by the frequencies of tokens alone, the plateau that training leaves: {unigram:.3f}.",
    )


def _windows(plan: Plan, found: Found) -> Table:
    lines = []
    for window in plan.windows:
        before, after = plan.at_window(window)
        cells = [str(interval(list(found[name].values()))) for name in (before, after)]
        against = paired(found[after], found[plan.at_window(plan.recipe.window)[1]])
        difference = "" if window == plan.recipe.window else str(against)
        lines.append((str(window), *cells, difference))
    return Table(
        f"The window: BPC right after conversion, and after {plan.recipe.effects['steps']:,} updates",
        ("total width", "converted", "updated", f"updated − at width {plan.recipe.window}"),
        tuple(lines),
    )


def figures(plan: Plan, found: Found, unigram: float, corpus: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the tables say, for table5.json."""
    return {
        "recipe": plan.recipe.model_dump(mode="json"),
        "corpus": dict(corpus),
        "unigram_bpc": unigram,
        "bpc": {name: {str(seed): value for seed, value in values.items()} for name, values in found.items()},
        "mean": {name: asdict(interval(list(values.values()))) for name, values in found.items()},
        "paper": {row.name: row.paper for row in plan.rows},
        "order": [
            {**asdict(step), "here": asdict(step.here), "holds": step.holds}
            for step in steps_of_order(plan, found)
        ],
    }


def markdown(parts: Sequence[Table], heading: str) -> str:
    return "\n\n".join([heading, *(part.markdown() for part in parts)]) + "\n"
