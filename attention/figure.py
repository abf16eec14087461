"""Pictures that a command writes: one look, and the same bytes every time.

matplotlib's own classes are used without pyplot, so that nothing here touches global state or asks for a display.
The background is drawn, not transparent: dark text on it reads the same on a light page and on a dark one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from attention.files import whole, writable_path

FORMATS = (".png", ".svg")
BACKGROUND, TEXT, MUTED, FAINT = "#FFFFFF", "#1A1A1A", "#6B6B6B", "#EFEFEF"
# Okabe and Ito's palette, which people with any common colour blindness can tell apart.
BLUE, SKY, ORANGE, GREEN = "#0072B2", "#56B4E9", "#E69F00", "#009E73"
RED, PURPLE, BLACK, GREY = "#D55E00", "#CC79A7", "#101010", "#8A8A8A"
STYLE: dict[Any, str] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "text.color": TEXT,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": BACKGROUND,
    "savefig.facecolor": BACKGROUND,
    "svg.hashsalt": "longspan",  # ids in an SVG are hashes of their content and this, otherwise of chance
}
WITHOUT_DATES: dict[str, dict[str, str | None]] = {".png": {}, ".svg": {"Date": None}}


def picture_path(text: str) -> Path:
    """An option's value: a file whose ending says the format, in a folder that exists."""
    path = Path(text)
    if path.suffix.lower() not in FORMATS:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected a name that ends in {' or '.join(FORMATS)}"
        )
    return writable_path(text)


def save(figure: Figure, path: Path, dots_per_inch: int = 160) -> None:
    """Write the figure to path, as PNG or SVG by its ending."""
    ending = path.suffix.lower()
    with matplotlib.rc_context(STYLE), whole(path) as beside:
        figure.savefig(beside, format=ending[1:], dpi=dots_per_inch, metadata=WITHOUT_DATES[ending])
