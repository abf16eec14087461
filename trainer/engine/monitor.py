"""What a run tells about itself: metrics.jsonl, TensorBoard, Weights & Biases, a progress line."""

from __future__ import annotations

import json
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.shards import write_atomically

METRICS = "metrics.jsonl"
STARTS = "starts.jsonl"
# How a figure reads in the progress line; others keep four digits.
SHOWN: dict[str, Callable[[float], str]] = {
    "bpc": lambda value: f"{value:.4f}",
    "validation_bpc": lambda value: f"{value:.4f}",
    "learning_rate": lambda value: f"{value:.3e}",
    "tokens_per_second": lambda value: f"{value:,.0f}",
    "mfu": lambda value: f"{value:.1%}",
}
LABELS = {"learning_rate": "lr", "tokens_per_second": "tokens/s", "validation_bpc": "validation bpc"}
LINE = ("bpc", "validation_bpc", "learning_rate", "tokens_per_second", "mfu")
VALIDATION = "validation_"
"""How figures of held-out data begin."""


class Monitor:
    """Writes the rows of a run; made on the first rank alone.

    metrics.jsonl has a row a logged step and ends at the checkpoint that a run resumes from: rows of steps that
    will be done again are cut off, so that an interrupted run's file is the uninterrupted one's, times apart.
    starts.jsonl has a row a start, with the step it went on from, the time and what `started` says.
    """

    def __init__(
        self,
        run: Path,
        resumed_at: int,
        steps: int,
        write_events: Callable[[dict[str, float], int], None],
        started: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = run / METRICS
        self.write_events = write_events
        if self.path.exists():
            self._cut(resumed_at)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        append_row(run / STARTS, {"step": resumed_at, "time": now, **(started or {})})
        self.bar = tqdm(
            initial=resumed_at,
            total=steps,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.05,  # of the time left: checkpoints and evaluations in between are part of it
            disable=not sys.stderr.isatty(),
        )
        self.steps = steps
        self.start = (resumed_at, time.monotonic())
        self.shown: dict[str, str] = {}

    def _cut(self, step: int) -> None:
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step and line.endswith("\n"):
                    kept.append(line)
            except (ValueError, KeyError, TypeError):  # the line that a kill cut short
                continue
        write_atomically(self.path, "".join(kept).encode())

    def log(self, row: Mapping[str, Any]) -> None:
        """Write one row, of a training step or of an evaluation: `step`, and whatever figures there are.

        bpc, or where it has none its loss, learning_rate, tokens_per_second, mfu and all figures of held-out data also
        go to the progress line.
        """
        row = append_row(self.path, row)
        figures = {
            name: float(value)
            for name, value in row.items()
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        self.write_events(figures, row["step"])
        held_out = [name for name in figures if name.startswith(VALIDATION)]
        loss = [] if "bpc" in figures else ["loss"]
        shown = {
            LABELS.get(name, name.removeprefix(VALIDATION)): SHOWN.get(name, "{:.4f}".format)(figures[name])
            for name in dict.fromkeys([*loss, *held_out, *LINE])
            if name in figures
        }
        if self.bar.disable:
            words = [
                f"step {row['step']:,}/{self.steps:,}",
                *(f"{name} {text}" for name, text in shown.items()),
            ]
            print("  ".join([*words, self._time_left(row["step"])]), flush=True)
        else:
            self.shown |= shown
            self.shown.pop("lr", None)  # the bar has little room, and the rate is known beforehand
            self.bar.set_postfix(self.shown)

    def _time_left(self, step: int) -> str:
        """From the mean over the steps of this process, with all that lay between them."""
        first, since = self.start
        seconds = (self.steps - step) * (time.monotonic() - since) / max(1, step - first)
        return f"{duration(seconds)} left"

    def advance(self) -> None:
        self.bar.update()

    def close(self) -> None:
        self.bar.close()


def append_row(path: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """Append a line of JSON, and return it as written: NaN and infinities, which JSON does not have, are null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(finite, allow_nan=False) + "\n")
    return finite


def duration(seconds: float) -> str:
    """A time to read: 40 s, 12 min, 3.5 h, 12 days."""
    for limit, unit, name in ((100, 1, "s"), (100 * 60, 60, "min"), (100 * 3600, 3600, "h")):
        if seconds < limit:
            amount = seconds / unit
            return f"{amount:.1f} {name}" if amount < 10 and unit > 1 else f"{amount:.0f} {name}"
    return f"{seconds / 86400:.0f} days"


def prepare_wandb(run: Path) -> None:
    """Let Weights & Biases write below RUN, and go on with the run that lies there; before DeepSpeed opens it.

    What the user's environment says already stands.
    """
    name = run / "wandb" / "run-id"
    if not name.is_file():
        write_atomically(name, secrets.token_hex(8).encode())
    os.environ.setdefault("WANDB_DIR", str(run.absolute()))
    os.environ.setdefault("WANDB_RUN_ID", name.read_text(encoding="utf-8"))
    os.environ.setdefault("WANDB_RESUME", "allow")
    os.environ.setdefault("WANDB_NAME", run.absolute().name)
