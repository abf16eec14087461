"""Tables of a reproduction, for the terminal and as Markdown: rows beside the paper's, and the paper's order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.shards import write_atomically
from reproduce.intervals import Interval, interval, paired

Found = Mapping[str, Mapping[int, float]]
"""{model name: {seed: BPC}}"""


@dataclass(frozen=True)
class Row:
    """A row of a table: which model it is, by its name in the plan, and the paper's BPC, if it has one."""

    name: str
    title: str
    paper: float | None = None

    def cells(self, found: Found, places: int = 3) -> tuple[str, ...]:
        """The title, the mean with its interval, the paper's figure in its own number of places, and each seed's."""
        values = found[self.name]
        paper = "" if self.paper is None else f"{self.paper:.{places}f}"
        mean = str(interval(list(values.values())))
        return (self.title, mean, paper, *(f"{values[seed]:.3f}" for seed in sorted(values)))


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


def steps_of_order(rows: Sequence[Row], order: Sequence[str], found: Found) -> list[Step]:
    """The paper's order, best first, neighbour by neighbour."""
    paper = {row.name: row.paper for row in rows}
    steps = []
    for better, worse in pairwise(order):
        there = (paper[worse] or 0) - (paper[better] or 0)
        steps.append(Step(better, worse, paired(found[worse], found[better]), there))
    return steps


def order_table(rows: Sequence[Row], order: Sequence[str], found: Found, places: int = 3) -> Table:
    """`places` of the paper's figures."""
    titles = {row.name: row.title.strip() for row in rows}
    return Table(
        "The paper's order, neighbour by neighbour: how much worse, paired by seed",
        ("worse − better", "here", "paper", "beyond the spread"),
        tuple(
            (
                f"{titles[step.worse]} − {titles[step.better]}",
                str(step.here),
                f"{step.paper:.{places}f}",
                "yes" if step.holds else "no",
            )
            for step in steps_of_order(rows, order, found)
        ),
    )


def figures(rows: Sequence[Row], order: Sequence[str], found: Found) -> dict[str, Any]:
    """What the tables of rows and their order say, as JSON."""
    return {
        "bpc": {name: {str(seed): value for seed, value in values.items()} for name, values in found.items()},
        "mean": {name: asdict(interval(list(values.values()))) for name, values in found.items()},
        "paper": {row.name: row.paper for row in rows},
        "order": [
            {**asdict(step), "here": asdict(step.here), "holds": step.holds}
            for step in steps_of_order(rows, order, found)
        ],
    }


def tell_results(
    folder: Path, name: str, heading: str, parts: Sequence[Table], results: Mapping[str, Any], picture: Path
) -> None:
    """Write FOLDER/NAME.json and FOLDER/NAME.md, print the tables, and say where everything is."""
    json_file, markdown = folder / f"{name}.json", folder / f"{name}.md"
    write_atomically(json_file, (json.dumps(results, indent=2) + "\n").encode())
    text = "\n\n".join([heading, *(part.markdown() for part in parts)]) + "\n"
    write_atomically(markdown, text.encode())
    print("\n" + "\n\n".join(part.plain() for part in parts))
    print(f"\n{markdown}, {json_file}, {picture}")
