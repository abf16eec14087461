"""What table 4's trainings on a text have come to: tables, and curves of BPC against updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import matplotlib
from matplotlib.figure import Figure

from attention.figure import BLACK, BLUE, GREEN, ORANGE, PURPLE, STYLE
from reproduce.ablation import TextAblation
from reproduce.curves import Curve, draw_band
from reproduce.tables import Table, order_table

COLOURS = {"decreasing": ORANGE, "fixed": PURPLE, "increasing": BLUE, "dilated": GREEN}


def tables(text: TextAblation) -> list[Table]:
    """Table 4, and the order of its rows."""
    ablation, found = text.ablation, text.found()
    seeds = (f"seed {seed.number}" for seed in text.seeds)
    order = order_table(ablation.rows, ablation.order, found, places=2)
    return [
        Table(
            f"Table 4 on {text.name}: bits per character, mean ± 95 % interval over the seeds",
            ("windows, from the bottom to the top", "here", "paper (text8)", *seeds),
            tuple(row.cells(found, places=2) for row in ablation.rows),
        ),
        replace(order, title=f"{order.title}, {text.name}"),
    ]


def draw(texts: Sequence[TextAblation]) -> Figure:
    """A line of two panels for each text; without pyplot, so that no state is shared."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.8 * len(texts)), layout="constrained")
        panels = figure.subplots(len(texts), 2, squeeze=False)
        for text, (left, right) in zip(texts, panels, strict=True):
            fixed = text.curves("fixed")
            for row in text.ablation.rows:
                curves = text.curves(row.name)
                draw_band(left, curves, COLOURS[row.name], row.title)
                if row.name != "fixed":
                    draw_band(right, differences(curves, fixed), COLOURS[row.name], row.title)
            right.axhline(0, color=BLACK, linestyle=":", linewidth=1, label="fixed")
            left.set_ylabel("bits per character")
            right.set_ylabel("difference to fixed windows")
            for axes in (left, right):
                axes.set_title(text.name)
                axes.set_xlabel("updates")
                axes.legend(frameon=False, fontsize=8)
                axes.spines[["top", "right"]].set_visible(False)
    return figure


def differences(curves: Sequence[Curve], others: Sequence[Curve]) -> list[Curve]:
    """Seed by seed, where both have a value."""
    return [
        [(step, value - dict(other)[step]) for step, value in one if step in dict(other)]
        for one, other in zip(curves, others, strict=True)
    ]
