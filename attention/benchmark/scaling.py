"""Time and memory against the length, method by method: figure 1 of the paper, for this machine.

A method is left out where it would take too long or too much memory, judged by what it took at the length before, and
where it cannot run; the reason is told. What is compared must compute the same: up to CHECKED_TOKENS each result is
compared with dense attention in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from attention import backends, figure, windowed_attention
from attention.benchmark.measure import (
    Measured,
    clock_of,
    free_memory,
    megabytes,
    peak_memory,
    print_table,
    take_rounds,
)
from attention.benchmark.peers import BLOCKED, DENSE, SLIDING_CHUNKS, Method, describe, peers
from attention.benchmark.rates import Product, large_product, tile_product
from attention.benchmark.workload import PASSES, difference, exact, make_inputs, scratch, useful_flops

LOOP_TOKENS = 512  # above, the slow reference says nothing that is worth the wait
CHECKED_TOKENS = 8192  # above, the dense reference that results are compared with does not fit
OURS = "longspan (default)"


@dataclass(frozen=True)
class Setting:
    """What all lengths share."""

    window: int
    rounds: int
    threads: int
    device: torch.device
    dtype: torch.dtype
    limit: float  # seconds of one run, above which a method is left out

    def products(self) -> tuple[dict[str, Product], str]:
        """The matrix products whose rates are the bounds, and why one is missing if one is."""
        found = {"torch.mm": large_product(self.device, self.dtype)}
        if self.device.type != "cpu" or self.dtype != torch.float32:
            return found, ""
        try:
            return found | {"brgemm tiles": tile_product(self.threads)}, ""
        except RuntimeError as error:
            return found, f"no bound by brgemm tiles: {error}"


@dataclass(frozen=True)
class Past:
    """What one run took at a length."""

    tokens: int
    seconds: float
    peak_bytes: int | None

    def forbids(self, tokens: int, method: Method, setting: Setting) -> str | None:
        """Why the method is left out at another length, or None."""
        growth = (tokens / self.tokens) ** method.order
        if self.seconds * growth > setting.limit:
            return f"about {self.seconds * growth:,.1f} s a run, over the limit of {setting.limit:g} s"
        free = free_memory(setting.device)
        if free is not None and (self.peak_bytes or 0) * growth > 0.7 * free:
            return (
                f"about {megabytes(int((self.peak_bytes or 0) * growth))} MB, with {megabytes(free)} MB free"
            )
        return None


class Scaling:
    """Measures one length after the other, the shortest first, and remembers what each method took."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.clock = clock_of(setting.threads, setting.device)
        self.products, self.missing_bound = setting.products()
        ours = {
            "longspan (default)" if name is None else f"longspan {name}": Method(
                partial(windowed_attention, window=setting.window, backend=name),
                longest=LOOP_TOKENS if name == "loop" else None,
            )
            for name in [None, *backends()]
        }
        self.methods = ours | peers(setting.window, setting.device)
        self.past: dict[tuple[str, str], Past] = {}

    def at(self, tokens: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """A row for each pass and method, ours first, and for each that is left out."""
        setting = self.setting
        inputs = make_inputs(tokens, dtype=setting.dtype, device=setting.device)
        rows, left_out = [], []
        for what, compute in PASSES.items():
            expected = exact(what, inputs, setting.window) if tokens <= CHECKED_TOKENS else None
            runs: dict[str, Callable[[], list[Tensor]]] = {}
            found: dict[str, dict[str, Any]] = {}
            measured: dict[str, Measured] = {}
            for name, method in self.methods.items():
                run = partial(compute, method.attend, inputs)
                reason = self._warm_up(name, what, tokens, run, expected, found.setdefault(name, {}))
                if reason is not None:
                    left_out.append({"tokens": tokens, "pass": what, "method": name, "reason": reason})
                    continue
                runs[name], measured[name] = run, Measured([], found[name]["peak_bytes"])
                beyond, share = scratch(run, inputs)
                found[name] |= {
                    "scratch_bytes": beyond,
                    "scratch_share": share,
                    "note": method.note(tokens, what),
                }
            del expected
            _, rates = take_rounds(runs, measured, setting.rounds, self.clock, self.products)
            bounds = {name: useful_flops(what, tokens, setting.window) / rate for name, rate in rates.items()}
            for name, times in measured.items():
                rows.append(
                    {"tokens": tokens, "pass": what, "method": name}
                    | found[name]
                    | {
                        "median": times.median,
                        "ratio": times.ratio(measured[OURS]),
                        "of_bound": {bound: seconds / times.median for bound, seconds in bounds.items()},
                        "bounds": bounds,
                        "rates": rates,
                        "seconds": times.seconds,
                    }
                )
        return rows, left_out

    def _warm_up(
        self,
        name: str,
        what: str,
        tokens: int,
        run: Callable[[], list[Tensor]],
        expected: Sequence[Tensor] | None,
        found: dict[str, Any],
    ) -> str | None:
        """Run twice: to compile, choose and compare, and for memory. Why the method is left out, if it is."""
        method, past = self.methods[name], self.past.get((what, name))
        if method.longest is not None and tokens > method.longest:
            return f"measured up to {method.longest:,} tokens"
        if past is not None and (reason := past.forbids(tokens, method, self.setting)):
            return reason
        try:
            results = run()
        except Exception as error:
            if name.startswith("longspan") and not isinstance(error, ValueError):
                raise  # ours may refuse a device or a dtype, and must not fail
            return describe(error)
        found["difference"] = (
            None if expected is None or not method.windowed else difference(results, expected)
        )
        del results
        seconds = []
        found["peak_bytes"] = peak_memory(lambda: seconds.append(self.clock(run)), self.setting.device)
        self.past[what, name] = past = Past(tokens, seconds[0], found["peak_bytes"])
        return past.forbids(tokens, method, self.setting)


def print_rows(rows: Sequence[dict[str, Any]], left_out: Sequence[dict[str, Any]]) -> None:
    """The tables of one length."""
    for what in PASSES:
        here = [row for row in rows if row["pass"] == what]
        if not here:
            continue
        first = here[0]
        bounds = "; ".join(
            f"bound {_digits(seconds * 1e3)} ms at the {first['rates'][name] / 1e9:,.0f} GFLOP/s of {name}"
            for name, seconds in first["bounds"].items()
        )
        print(f"\n{first['tokens']:,} tokens, {what}: {bounds}")
        head = ["method", "ms", "ratio", *(f"of {name}" for name in first["bounds"])]
        head += ["peak MB", "scratch MB", "scratch", "difference"]
        cells = [
            [
                row["method"] + (f" ({row['note']})" if row["note"] else ""),
                _digits(row["median"] * 1e3),
                f"{row['ratio']:.2f}",
                *(f"{share:.0%}" for share in row["of_bound"].values()),
                megabytes(row["peak_bytes"]),
                f"{row['scratch_bytes'] / 1e6:,.1f}",
                f"{row['scratch_share']:.1%}",
                "-" if row["difference"] is None else f"{row['difference']:.0e}",
            ]
            for row in here
        ]
        print_table(head, cells)
        for left in left_out:
            if left["pass"] == what:
                print(f"  left out: {left['method']}: {left['reason']}")


def _digits(milliseconds: float) -> str:
    return f"{milliseconds:,.1f}" if milliseconds >= 10 else f"{milliseconds:.3g}"


# The picture.

COLOURS = {OURS: figure.BLUE, SLIDING_CHUNKS: figure.RED, DENSE: figure.BLACK, BLOCKED: figure.GREEN}
OTHER_COLOURS = (figure.SKY, figure.ORANGE, figure.PURPLE, figure.GREY, "#B59A00", "#7F4F24")
MARKERS = "oDs^vPX*<>"


def plot(sections: Sequence[dict[str, Any]]) -> Figure:
    """Time and memory against the length, log-log, a row of panels a section: figure 1 of the paper.

    Forward and backward pass together; a method that has a forward pass alone is drawn dashed. Grey lines show what
    growing with n and with n² looks like.
    """
    names = list(dict.fromkeys(row["method"] for section in sections for row in section["rows"]))
    others = iter(OTHER_COLOURS * 2)
    look: dict[str, dict[str, Any]] = {
        name: {"color": COLOURS.get(name) or next(others), "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(names)
    }
    with matplotlib.rc_context(figure.STYLE):
        result = Figure(figsize=(10.5, 4.2 * len(sections) + 0.9), layout="constrained")
        grid = result.subplots(len(sections), 2, squeeze=False)
        for (time_axis, memory_axis), section in zip(grid, sections, strict=True):
            rows = section["rows"]
            window, heading = section["window"], section["heading"]
            _draw_lines(time_axis, rows, look, lambda row: row["median"] * 1e3)
            _draw_lines(memory_axis, rows, look, lambda row: (row["peak_bytes"] or 0) / 1e6)
            time_axis.set_title(f"Time, window {window}, {heading}", fontsize=10.5, loc="left")
            memory_axis.set_title("Memory above the inputs", fontsize=10.5, loc="left")
            time_axis.set_ylabel("ms, forward + backward")
            memory_axis.set_ylabel("MB at the peak")
        handles = [
            Line2D([], [], color=look[name]["color"], marker=look[name]["marker"], markersize=5, label=name)
            for name in names
        ]
        dashed = Line2D([], [], color=figure.GREY, linestyle="--", label="forward pass alone")
        result.legend(
            handles=[*handles, dashed], loc="outside lower center", ncols=4, frameon=False, fontsize=8.5
        )
    return result


def _draw_lines(
    axis: Axes,
    rows: Sequence[dict[str, Any]],
    look: dict[str, dict[str, Any]],
    value: Callable[[dict[str, Any]], float],
) -> None:
    lowest = None
    for name in look:
        mine = [row for row in rows if row["method"] == name]
        both = [row for row in mine if row["pass"] == list(PASSES)[-1]]
        points = [(row["tokens"], value(row)) for row in both or mine if value(row) > 0]
        if not points:
            continue
        axis.plot(
            *zip(*points),
            **look[name],
            linestyle="-" if both else "--",
            linewidth=2.6 if name == OURS else 1.4,
            markersize=5,
            zorder=3 if name == OURS else 2,
        )
        lowest = min([point[1] for point in points] + ([] if lowest is None else [lowest]))
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    tokens = sorted({row["tokens"] for row in rows})
    if lowest is not None:
        for power, label in ((1, "n"), (2, "n²")):
            ends = (tokens[0], tokens[-1])
            heights = [lowest * (n / tokens[0]) ** power for n in ends]
            axis.plot(ends, heights, color=figure.GREY, linestyle=":", linewidth=1, zorder=1)
            axis.annotate(
                f" ∝ {label}", (ends[1], heights[1]), color=figure.MUTED, fontsize=8, annotation_clip=False
            )
    axis.set_xticks(tokens, [f"{n:,}" for n in tokens])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
    axis.set_xlabel("tokens n")
    axis.grid(color=figure.FAINT, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
