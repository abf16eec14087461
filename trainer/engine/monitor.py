"""What a run tells about itself: metrics.jsonl, TensorBoard, a progress line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.shards import write_atomically

METRICS = "metrics.jsonl"


class Monitor:
    """Writes the rows of a run; made on the first rank alone.

    metrics.jsonl has a row a logged step and ends at the checkpoint that a run resumes from: rows of steps that
    will be done again are cut off, so that an interrupted run's file is the uninterrupted one's, times apart.
    """

    def __init__(
        self, run: Path, resumed_at: int, steps: int, write_events: Callable[[dict[str, float], int], None]
    ) -> None:
        self.path = run / METRICS
        self.write_events = write_events
        if self.path.exists():
            self._cut(resumed_at)
        self.bar = tqdm(
            initial=resumed_at,
            total=steps,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        self.steps = steps
        self.last = (resumed_at, time.monotonic())

    def _cut(self, step: int) -> None:
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):  # the line that a kill cut short
                continue
        write_atomically(self.path, "".join(kept).encode())

    def log(self, row: dict[str, Any]) -> None:
        """Write one row; `step`, `loss`, `bpc`, `tokens_per_second` also go to the progress line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        figures = {
            name: value for name, value in row.items() if isinstance(value, int | float) and name != "step"
        }
        self.write_events(figures, row["step"])
        if "tokens_per_second" not in row:  # an evaluation's
            text = f"step {row['step']}  " + "  ".join(
                f"{name} {value:.4f}" for name, value in figures.items()
            )
            self.bar.write(text)
        elif self.bar.disable:
            done, then = self.last
            now = time.monotonic()
            left = (self.steps - row["step"]) * (now - then) / max(1, row["step"] - done)
            print(
                f"step {row['step']}/{self.steps}  bpc {row['bpc']:.4f}  lr {row['learning_rate']:.3e}  "
                f"{row['tokens_per_second']:.0f} tokens/s  {left / 60:.1f} min left",
                flush=True,
            )
            self.last = (row["step"], now)
        else:
            self.bar.set_postfix(bpc=f"{row['bpc']:.4f}", tokens_per_s=f"{row['tokens_per_second']:.0f}")

    def advance(self) -> None:
        self.bar.update()

    def close(self) -> None:
        self.bar.close()
