"""Draws who attends to whom: the paper's figure 2, or any pattern that windowed_attention computes.

    python -m attention.draw --output figure2.svg
    python -m attention.draw --tokens 32 --window 8 --causal --output causal.png
    python -m attention.draw --tokens 32 --window 8 --global 0 12-14 --output global.svg
    python -m attention.draw --window 6 --dilation 1 2 3 --output heads.svg
    python -m attention.draw --window 8 --documents 12 9 11 --global 0 12 --padding 30-31 --output packed.png

A row is a query, a column is a key, and a coloured cell is a key that the query attends to. Without an option for the
pattern the four panels of figure 2 of the Longformer paper are drawn; with any, that one pattern, in a panel a head
where --dilation names several. A window is a total, even width: window / 2 keys on each side of the token itself.

The picture is `Pattern.dense()` of attention/pattern.py, the definition that every backend is tested against, with a
colour for the reason why a cell is seen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from attention import figure
from attention.pattern import Pattern

TOKENS, WINDOW, MOST_TOKENS = 24, 6, 2048
VECTOR_TOKENS = (
    64  # up to here each cell is a square of its own, with a border; above, the panel is one bitmap
)
PANEL_INCHES = 3.0


class Cell(IntEnum):
    """What a cell of the picture shows: a pair that is not seen, or why it is."""

    UNSEEN = 0
    PADDING = 1
    WINDOW = 2
    COLUMN = 3
    ROW = 4
    ITSELF = 5

    @property
    def seen(self) -> bool:
        return self >= Cell.WINDOW


COLOURS = {
    Cell.UNSEEN: figure.FAINT,
    Cell.PADDING: "#C4C4C4",
    Cell.WINDOW: figure.SKY,
    Cell.COLUMN: figure.ORANGE,
    Cell.ROW: figure.GREEN,
    Cell.ITSELF: "#123A5A",
}
MEANINGS = {
    Cell.ITSELF: "the token itself",
    Cell.WINDOW: "its window",
    Cell.COLUMN: "global key, seen by all",
    Cell.ROW: "global query, sees all",
    Cell.PADDING: "padding",
}


@dataclass(frozen=True)
class Panel:
    """One head of one pattern, with what stands above it."""

    title: str
    note: str
    pattern: Pattern
    head: int = 0


def make_pattern(
    tokens: int,
    window: int,
    dilation: Sequence[int] = (1,),
    causal: bool = False,
    global_positions: Sequence[int] = (),
    documents: Sequence[int] = (),
    padding: Sequence[int] = (),
) -> Pattern:
    """The pattern of one sequence. documents: their lengths in order, which sum to tokens; none means one."""
    real = torch.ones(1, tokens, dtype=torch.bool)
    real[:, list(padding)] = False
    is_global = torch.zeros(1, tokens, dtype=torch.bool)
    is_global[:, list(global_positions)] = True
    lengths = torch.tensor(documents or [tokens])
    ids = torch.arange(len(lengths)).repeat_interleave(lengths)[None]
    query = torch.empty(1, len(dilation), tokens, 1)
    return Pattern.of(query, window, tuple(dilation), causal, real, is_global, ids)


def cells(pattern: Pattern, head: int = 0) -> NDArray[np.uint8]:
    """The picture as numbers of `Cell`: uint8 (n, n), queries before keys, of the first example.

    Which cells are seen is `Pattern.dense()` and nothing else; the rest is for whose sake. A token on the diagonal is
    itself whatever else it is, and where a global query meets a global key the row's colour is taken.
    """
    seen = pattern.dense()[0, head].numpy()
    tokens = pattern.tokens
    real, is_global = tokens.real[0].numpy(), tokens.is_global[0].numpy()
    picture = np.full(seen.shape, Cell.UNSEEN, dtype=np.uint8)
    picture[~(real[:, None] & real)] = Cell.PADDING
    picture[seen] = Cell.WINDOW
    picture[seen & is_global] = Cell.COLUMN
    picture[seen & is_global[:, None]] = Cell.ROW
    picture[seen & np.eye(len(seen), dtype=bool)] = Cell.ITSELF
    return picture


def figure_2(tokens: int = TOKENS) -> list[Panel]:
    """The panels of figure 2 of the paper, at a size where single cells can be told apart."""
    window = min(WINDOW, tokens // 4 * 2)
    global_positions = sorted({0, tokens * 7 // 12})
    named = ", ".join(map(str, global_positions))
    return [
        Panel("(a) Full n² attention", "every pair", make_pattern(tokens, 2 * tokens)),
        Panel("(b) Sliding window", f"window {window}", make_pattern(tokens, window)),
        Panel(
            "(c) Dilated sliding window",
            f"window {window}, dilation 2",
            make_pattern(tokens, window, dilation=(2,)),
        ),
        Panel(
            "(d) Global + sliding window",
            f"window {window}, global tokens {named}",
            make_pattern(tokens, window, global_positions=global_positions),
        ),
    ]


def draw(panels: Sequence[Panel]) -> Figure:
    """The panels side by side over one legend."""
    pictures = [cells(panel.pattern, panel.head) for panel in panels]
    with matplotlib.rc_context(figure.STYLE):
        beside = 2.4 if len(panels) == 1 else 0.0  # inches: one panel has its legend on the right
        size = (PANEL_INCHES * len(panels) + 0.5 + beside, PANEL_INCHES + (0.75 if beside else 1.0))
        result = Figure(figsize=size, layout="constrained")
        axes = result.subplots(1, len(panels), squeeze=False)[0]
        for axis, panel, picture in zip(axes, panels, pictures, strict=True):
            _draw_panel(axis, panel, picture)
        shown = {int(cell) for picture in pictures for cell in np.unique(picture)}
        handles = [Patch(color=COLOURS[cell], label=text) for cell, text in MEANINGS.items() if cell in shown]
        if beside:
            result.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9)
        else:
            result.legend(
                handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9
            )
    return result


def _draw_panel(axis: Axes, panel: Panel, picture: NDArray[np.uint8]) -> None:
    tokens = len(picture)
    single = tokens <= VECTOR_TOKENS
    axis.pcolormesh(
        np.arange(tokens + 1) - 0.5,
        np.arange(tokens + 1) - 0.5,
        picture,
        cmap=ListedColormap([COLOURS[cell] for cell in Cell]),
        vmin=0,
        vmax=len(Cell) - 1,
        edgecolors=figure.BACKGROUND if single else "none",
        linewidth=0.6 if single else 0,
        rasterized=not single,
    )
    document = panel.pattern.tokens.document[0].numpy()
    for border in np.flatnonzero(np.diff(document)) + 0.5:
        axis.axhline(border, color=figure.TEXT, linewidth=0.8, linestyle=(0, (3, 2)))
        axis.axvline(border, color=figure.TEXT, linewidth=0.8, linestyle=(0, (3, 2)))
    axis.set_aspect("equal")
    axis.invert_yaxis()  # the first query on top, as matrices are read
    axis.set_title(f"{panel.title}\n", fontsize=10.5, loc="left", pad=3)
    axis.text(0, 1.025, panel.note, transform=axis.transAxes, fontsize=8.5, color=figure.MUTED)
    axis.set_xlabel("key", fontsize=9)
    axis.set_ylabel("query", fontsize=9)
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
        ticks.set_tick_params(labelsize=8, length=2)
    for spine in axis.spines.values():
        spine.set_visible(False)


# The command.


def whole(text: str) -> int:
    """An option's value."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number") from None


def positions(text: str) -> list[int]:
    """An option's value: one position, or the first and last of a range."""
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected a position such as 3, or a range such as 3-5"
        )
    return list(range(int(first), int(last or first) + 1))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m attention.draw",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=figure.picture_path, required=True, metavar="FILE", help="a name in .png or .svg"
    )
    parser.add_argument(
        "--tokens",
        type=whole,
        metavar="N",
        help=f"how many, 1 to {MOST_TOKENS:,} (default {TOKENS}, or the sum of --documents)",
    )
    pattern = parser.add_argument_group("the pattern", "any of these draws that pattern in place of figure 2")
    pattern.add_argument(
        "--window", type=whole, metavar="W", help=f"total width, an even number (default {WINDOW})"
    )
    pattern.add_argument(
        "--dilation",
        type=whole,
        nargs="+",
        metavar="D",
        help="step between visible keys, one a head (default 1, no gaps)",
    )
    pattern.add_argument("--head", type=whole, metavar="H", help="draw this head of --dilation alone, from 0")
    pattern.add_argument("--causal", action="store_true", help="only keys at or before the query")
    pattern.add_argument(
        "--global",
        type=positions,
        nargs="+",
        dest="global_positions",
        metavar="I",
        help="global tokens: 0 12-14",
    )
    pattern.add_argument(
        "--documents", type=whole, nargs="+", metavar="N", help="lengths of packed documents, in order"
    )
    pattern.add_argument("--padding", type=positions, nargs="+", metavar="I", help="padded tokens: 30-31")
    return parser


def problems(options: argparse.Namespace) -> list[str]:
    """All that is wrong with the values, a line each: the option, what was found, what was expected."""
    found = []

    def expect(option: str, value: object, expected: str, holds: bool) -> None:
        if not holds:
            found.append(f"{option}: found {value}, expected {expected}")

    tokens, documents = options.tokens, options.documents
    expect("--tokens", tokens, f"1 to {MOST_TOKENS:,}", 1 <= tokens <= MOST_TOKENS)
    expect("--window", options.window, "an even number >= 0", options.window >= 0 and options.window % 2 == 0)
    for step in options.dilation:
        expect("--dilation", step, "numbers >= 1 (1 is without gaps)", step >= 1)
    heads = len(options.dilation)
    expect(
        "--head",
        options.head,
        f"0 to {heads - 1}, as --dilation names {heads}",
        options.head is None or 0 <= options.head < heads,
    )
    for option, places in (("--global", options.global_positions), ("--padding", options.padding)):
        outside = [place for place in places if place >= tokens]
        expect(option, ", ".join(map(str, outside)), f"positions from 0 to {tokens - 1}", not outside)
    if documents:
        expect("--documents", min(documents), "lengths of at least 1", min(documents) >= 1)
        expect(
            "--documents",
            f"lengths that sum to {sum(documents)}",
            f"{tokens}, as --tokens says",
            sum(documents) == tokens,
        )
    return found


def panels_of(options: argparse.Namespace) -> list[Panel]:
    """A panel a head, with its options as the note."""
    pattern = make_pattern(
        options.tokens,
        options.window,
        options.dilation,
        options.causal,
        options.global_positions,
        options.documents,
        options.padding,
    )
    note = [f"window {options.window}"]
    note += ["causal"] * options.causal
    note += [f"{len(set(options.global_positions))} global"] * bool(options.global_positions)
    note += [f"{len(options.documents)} documents"] * bool(options.documents)
    if len(options.dilation) == 1:
        note[1:1] = [f"dilation {options.dilation[0]}"] * (options.dilation[0] > 1)
        return [Panel(f"{options.tokens} tokens", ", ".join(note), pattern)]
    heads = range(len(options.dilation)) if options.head is None else [options.head]
    return [
        Panel(f"head {head}: dilation {options.dilation[head]}", ", ".join(note), pattern, head)
        for head in heads
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    pattern_options = ("window", "dilation", "head", "causal", "global_positions", "documents", "padding")
    is_figure_2 = not any(getattr(options, name) not in (None, False) for name in pattern_options)
    options.documents = options.documents or []
    options.global_positions = list(chain.from_iterable(options.global_positions or []))
    options.padding = list(chain.from_iterable(options.padding or []))
    options.dilation = options.dilation or [1]
    options.window = WINDOW if options.window is None else options.window
    if options.tokens is None:
        options.tokens = sum(options.documents) or TOKENS
    if wrong := problems(options):
        parser.error("\n  ".join(wrong))
    output: Path = options.output
    panels = figure_2(options.tokens) if is_figure_2 else panels_of(options)
    try:
        figure.save(draw(panels), output)
    except OSError as error:
        parser.error(f"--output: cannot write {output}: {error}")
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
