"""The tables of table 5's reproduction."""

from __future__ import annotations

from reproduce.intervals import interval, paired
from reproduce.recipe import Plan
from reproduce.tables import Found, Table, order_table


def tables(plan: Plan, found: Found, unigram: float) -> list[Table]:
    """Table 5, the order of its rows, the effect of the window, of keeping documents apart and of training alone."""
    rows = (*plan.rows, plan.control, plan.documents)
    titles = {row.name: row.title.strip() for row in rows}
    return [
        Table(
            "Table 5: bits per masked token, mean ± 95 % interval over the seeds",
            ("", "here", "paper (base)", *(f"seed {seed}" for seed in sorted(found["roberta"]))),
            tuple(row.cells(found) for row in rows),
            f"Guessing by the frequencies of tokens alone, the plateau that training leaves: {unigram:.3f}.",
        ),
        order_table(plan.rows, plan.order, found),
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
