"""Curves of a run, or of several on the same axes, finished or still going on.

    python -m trainer.plot RUN [RUN …] [--output FILE.png] [--keys bpc grad_norm …] [--against tokens]

Reads RUN/metrics.jsonl. Without --keys: bits per masked token with the points of the validation split, learning rate,
gradient norm and tokens a second. The pale line is every logged row; the strong one is the mean over the rows around
(--smooth N of them, fewer towards both ends). Small triangles at the
foot are restarts from a checkpoint. The picture is RUN/plot.png, or --output in .png, .svg or .html, a page with the
last figures in a table.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from attention import figure
from attention.files import writable_path
from pipeline.shards import write_atomically
from trainer.engine.config import MOST_STEPS, InputError
from trainer.engine.monitor import METRICS, STARTS

COLOURS = (
    figure.BLUE,
    figure.RED,
    figure.GREEN,
    figure.PURPLE,
    figure.ORANGE,
    figure.SKY,
    figure.BLACK,
)
LINES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
PANELS = 4
HELD_OUT = "validation_"
KEYS = ("bpc", "learning_rate", "grad_norm", "tokens_per_second")
VALIDATION = {"bpc": "validation_bpc", "loss": "validation_loss"}
NAMES = {
    "bpc": "bits per masked token (of a character model: per character)",
    "loss": "loss (nats)",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens / s",
    "mfu": "model FLOPs utilisation",
    "epoch": "epoch",
}
STEPS = [1, 2, 2.5, 5, 10]
FORMATS = (*figure.FORMATS, ".html")
LARGEST = 1e100
MEAN_ROWS = 1 / 40
"""Of a run's rows, how many the strong line averages over."""


@dataclass(frozen=True)
class Run:
    """What a run has written until now. A figure that a row lacks, or that is not finite, is NaN."""

    name: str
    steps: NDArray[np.int64]
    figures: dict[str, NDArray[np.float64]]
    resumed: tuple[int, ...]
    """Steps of the checkpoints that it went on from."""

    def places(self, steps: ArrayLike, against: str) -> NDArray[np.float64]:
        """Where steps lie on the axis: they themselves, or the tokens seen until then, between rows by a line."""
        if against == "updates":
            return np.asarray(steps, dtype=np.float64)
        known, tokens = self.series("tokens")
        if not len(known):
            raise InputError(f"--against tokens: {self.name} has no row that says `tokens`")
        return np.interp(np.asarray(steps, dtype=np.float64), [0, *known], [0, *tokens])

    @property
    def phases(self) -> tuple[int, ...]:
        """The first logged step of each phase but the first, of a run that has several."""
        steps, phase = self.series("phase")
        return tuple(int(step) for step in steps[1:][np.diff(phase) > 0])

    def series(self, key: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Steps and values of the rows that have this figure."""
        values = self.figures.get(key, np.full(len(self.steps), np.nan))
        there = ~np.isnan(values)
        return self.steps[there], values[there]


def read_run(folder: Path) -> Run:
    """The rows of RUN/metrics.jsonl; InputError where there are none. The line that is being written is left out."""
    path = folder / METRICS
    rows = _rows(path)
    if not rows:
        raise InputError(f"{path}: found no row yet, expected one a logged step")
    names = {name for row in rows for name, value in row.items() if _is_number(value)} - {"step"}
    if not names:
        raise InputError(f"{path}: found no figure in {len(rows)} rows, expected some beside `step`")
    figures = {
        name: np.array([row[name] if _is_number(row.get(name)) else np.nan for row in rows], dtype=np.float64)
        for name in sorted(names)
    }
    steps = np.array([row["step"] for row in rows], dtype=np.int64)
    starts = _rows(folder / STARTS) if (folder / STARTS).is_file() else []
    resumed = tuple(sorted({int(row["step"]) for row in starts if row["step"] > 0}))
    return Run(folder.resolve().name, steps, figures, resumed)


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}, expected the metrics of a run that has logged a step"
        ) from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not (type(row["step"]) is int and 0 <= row["step"] <= MOST_STEPS):
                raise TypeError
            rows.append(row)
        except (ValueError, KeyError, TypeError, RecursionError):
            if number < len(lines):  # the last one may be half written, or cut by a kill
                print(f"{path}: line {number} is no row, passed over", file=sys.stderr)
    return rows


def _is_number(value: object) -> bool:
    """A finite number, and none so large that drawing it overflows."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def running_mean(values: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """The mean over `rows` values around each, over fewer at the ends.

    At the start only over as many behind as there are before, since a curve is steep there; at the end over all that
    are left, since a last value alone is noise.
    """
    count, half = len(values), max(1, rows) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(count)
    before = np.minimum(half, index)
    behind = np.minimum(before, count - 1 - index)
    return (sums[index + behind + 1] - sums[index - before]) / (before + behind + 1)


def draw(
    runs: Sequence[Run], keys: Sequence[str], smooth: int | None = None, against: str = "updates"
) -> Figure:
    """A wide panel for the first key over small ones for the others, each with all runs."""
    # Names of runs and figures are text, dollar signs and all.
    with matplotlib.rc_context({**figure.STYLE, "text.parse_math": False}):
        others = keys[1:]
        columns = min(3, max(1, len(others)))
        lines = -(-len(others) // columns)
        result = Figure(
            figsize=(7.2, 3.4 + 1.75 * lines), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
        )
        grid = result.add_gridspec(1 + lines, columns, height_ratios=[1.75] + [1.0] * lines)
        panels = [result.add_subplot(grid[0, :])]
        panels += [result.add_subplot(grid[1 + n // columns, n % columns]) for n in range(len(others))]
        for number, (axis, key) in enumerate(zip(panels, keys, strict=True)):
            _draw_panel(axis, key, runs, smooth, against, large=number == 0)
        _legend(panels[0], runs, keys[0], smooth)
    return result


def _draw_panel(
    axis: Axes, key: str, runs: Sequence[Run], smooth: int | None, against: str, large: bool
) -> None:
    strong: list[NDArray[np.float64]] = []
    drawn: list[NDArray[np.float64]] = []
    for number, run in enumerate(runs):
        colour, line = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
        steps, values = run.series(key)
        places = run.places(steps, against)
        for border in run.places(run.phases, against):
            axis.axvline(border, color=colour, linewidth=0.8, linestyle=(0, (4, 4)), alpha=0.4, zorder=0)
        mean = running_mean(values, _mean_rows(len(values), smooth))
        strong.append(mean)
        drawn.append(values)
        if not np.array_equal(mean, values):
            axis.plot(places, values, color=colour, linewidth=0.7, alpha=0.3)
        marker = "o" if len(values) == 1 else ""
        width = 1.6 if large else 1.2
        axis.plot(places, mean, color=colour, linestyle=line, linewidth=width, marker=marker, markersize=4)
        steps, values = run.series(VALIDATION.get(key, ""))
        if len(values):
            strong.append(values)
            drawn.append(values)
            axis.plot(
                run.places(steps, against),
                values,
                color=colour,
                linestyle=(0, (1, 2)),
                linewidth=1,
                marker="o",
                markersize=4.5 if large else 3,
                markeredgecolor=figure.BACKGROUND,
                markeredgewidth=0.8,
                zorder=3,
            )
        if run.resumed:
            axis.plot(
                run.places(run.resumed, against),
                np.full(len(run.resumed), 0.012),
                linestyle="",
                marker=6,  # a triangle that stands on its point's height
                markersize=5,
                color=colour,
                transform=axis.get_xaxis_transform(),
                clip_on=False,
            )
    _limit(axis, strong, drawn)
    axis.set_title(NAMES.get(key, key), fontsize=10.5 if large else 9.5, loc="left", pad=6)
    axis.set_xlabel(against, fontsize=9 if large else 8.5)
    axis.xaxis.set_major_locator(
        MaxNLocator(nbins=8 if large else 4, steps=STEPS, integer=against == "updates")
    )
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    if key in ("tokens_per_second", "learning_rate"):
        axis.set_ylim(bottom=0)
    if key == "tokens_per_second":
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    elif key == "mfu":
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    elif key == "learning_rate":
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}".replace("e-0", "e-")))
    axis.yaxis.set_major_locator(MaxNLocator(nbins=7 if large else 4, steps=STEPS))
    axis.tick_params(labelsize=8.5 if large else 8, length=3)
    axis.grid(axis="y", color=figure.FAINT, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.margins(x=0.01)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _limit(axis: Axes, strong: Sequence[NDArray[np.float64]], drawn: Sequence[NDArray[np.float64]]) -> None:
    """Let the first rows of a run from scratch not squeeze the rest: they leave the panel, and it says so."""
    values, rows = np.concatenate([*strong, np.empty(0)]), np.concatenate([*drawn, np.empty(0)])
    if len(values) < 20:
        return
    middle, most = np.median(values), rows.max()
    low, high = np.quantile(rows, [0, 0.99])
    top = max(low + 4 * (middle - low), min(high, low + 6 * (middle - low)))
    if middle > low and most > low + 1.3 * (top - low):
        axis.set_ylim(low - 0.04 * (top - low), top)
        axis.annotate(
            f"↑ up to {most:.3g}",
            (0, 1),
            xytext=(6, -3),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top",
            fontsize=8,
            color=figure.MUTED,
            bbox={"facecolor": figure.BACKGROUND, "edgecolor": "none", "pad": 1.5, "alpha": 0.85},
        )


def _mean_rows(rows: int, smooth: int | None) -> int:
    """How many rows the strong line averages over: an odd number, 1 for a short run."""
    chosen = round(rows * MEAN_ROWS) if smooth is None else smooth
    return max(1, chosen) // 2 * 2 + 1 if chosen > 1 else 1


def _short(value: float) -> str:
    """12,500 as 12.5K; 2.1e9 as 2.1B."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"


def _legend(axis: Axes, runs: Sequence[Run], key: str, smooth: int | None) -> None:
    """Who is who, with the last figures, and what the marks mean, where there are any."""
    handles, labels = [], []
    for number, run in enumerate(runs):
        colour, line = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
        handles.append(Line2D([], [], color=colour, linestyle=line, linewidth=1.8))
        labels.append(run.name)
    grey = figure.MUTED
    rows = max(_mean_rows(len(run.series(key)[0]), smooth) for run in runs)
    if rows > 1:
        handles.append(Line2D([], [], color=grey, linewidth=0.7, alpha=0.5))
        labels.append(f"every row (strong: mean of {rows})")
    if any(len(run.series(VALIDATION.get(key, ""))[0]) for run in runs):
        handles.append(Line2D([], [], color=grey, linestyle=(0, (1, 2)), marker="o", markersize=4.5))
        labels.append("validation split")
    if any(run.resumed for run in runs):
        handles.append(Line2D([], [], color=grey, linestyle="", marker=6, markersize=5))
        labels.append("resumed")
    axis.legend(handles, labels, frameon=False, fontsize=8.5, loc="upper right", labelcolor=figure.TEXT)


def last_figures(run: Run, key: str, smooth: int | None = None) -> tuple[int, float, int] | None:
    """The last step with this figure, its mean over the last rows, and how many they are; None where there is none."""
    steps, values = run.series(key)
    if not len(values):
        return None
    rows = _mean_rows(len(values), smooth)
    return int(steps[-1]), float(values[-rows:].mean()), rows


def table(runs: Sequence[Run], keys: Sequence[str], smooth: int | None = None) -> list[list[str]]:
    """A row a run: name, last step, and the last figures, the mean over as many rows as the strong line."""
    shown = [name for key in keys for name in (key, VALIDATION.get(key, "")) if name]
    shown = [name for name in shown if any(name in run.figures for run in runs)]
    head = ["run", "updates", *shown]
    body = []
    for run in runs:
        row = [run.name, f"{run.steps[-1]:,}"]
        for name in shown:
            found = last_figures(run, name, 1 if name in VALIDATION.values() else smooth)
            row.append("" if found is None else f"{found[1]:.4g}")
        body.append(row)
    return [head, *body]


def default_keys(known: Sequence[str]) -> list[str]:
    """What to draw of runs with these figures; of a finetuning, which has no bpc, its loss and its task's metric."""
    keys = [key for key in KEYS if key in known]
    if "bpc" in known or "loss" not in known:
        return keys or list(known[:4])
    metric = [key for key in known if key.startswith(HELD_OUT) and key not in VALIDATION.values()]
    return ["loss", *metric[:2], *keys][:PANELS]


def save(picture: Figure, rows: Sequence[Sequence[str]], output: Path) -> None:
    """Write the figure, whole or not at all; .html wraps an SVG and a table into a page of its own."""
    if output.suffix.lower() != ".html":
        figure.save(picture, output)
        return
    drawn = io.StringIO()
    with matplotlib.rc_context(figure.STYLE):
        picture.savefig(drawn, format="svg", metadata={"Date": None})
    svg = drawn.getvalue()
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    cells = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body)
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Curves</title>"
        "<meta name=viewport content='width=device-width'>"
        "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;"
        "background:#fff;color:#1a1a1a}svg{width:100%;height:auto}table{border-collapse:collapse;margin-top:1em}"
        "td,th{padding:.3em .9em;text-align:right;border-bottom:1px solid #ddd}"
        "td:first-child,th:first-child{text-align:left}</style>"
        f"{svg[svg.index('<svg') :]}<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{cells}</table>\n"
    )
    write_atomically(output, page.encode())


def picture_path(text: str) -> Path:
    """An option's value: a file whose ending says the format, in a folder that exists."""
    if Path(text).suffix.lower() not in FORMATS:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a name that ends in {', '.join(FORMATS)}")
    return writable_path(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--output", type=picture_path, metavar="FILE", help=f"{', '.join(FORMATS)} (default: RUN/plot.png)"
    )
    parser.add_argument(
        "--keys",
        nargs="+",
        metavar="KEY",
        help=f"a panel each (default: {' '.join(KEYS)}; of a finetuning its loss and its metric first)",
    )
    parser.add_argument("--smooth", type=int, metavar="N", help="rows a mean is over; 1 draws the rows alone")
    parser.add_argument(
        "--against", choices=("updates", "tokens"), default="updates", help="the horizontal axis"
    )
    options = parser.parse_args(arguments)
    try:
        if options.smooth is not None and options.smooth < 1:
            raise InputError(f"--smooth: found {options.smooth}, expected at least 1")
        runs = [read_run(folder) for folder in options.runs]
        known = sorted({name for run in runs for name in run.figures})
        keys = options.keys or default_keys(known)
        if unknown := [key for key in keys if key not in known]:
            raise InputError(f"--keys: found {', '.join(unknown)}, expected some of {', '.join(known)}")
        rows = table(runs, keys, options.smooth)
        output = options.output or options.runs[0] / "plot.png"
        save(draw(runs, keys, options.smooth, options.against), rows, output)
    except (InputError, OSError) as error:
        print(f"plot: {error}", file=sys.stderr)
        return 2
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
