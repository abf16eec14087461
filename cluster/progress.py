"""How far a training is, read from its run's folder, and told to Prometheus through Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.util.metrics import Gauge

TAIL = 65_536  # bytes of metrics.jsonl that hold its last rows

GAUGES = {
    "longspan_step": "The last step that metrics.jsonl tells of",
    "longspan_bpc": "Bits per masked token of that step",
    "longspan_tokens_per_second": "Tokens a second, over all machines",
    "longspan_machines": "Machines that train",
    "longspan_processes": "Processes that train",
    "longspan_restarts": "Times the training was started again",
}


class Progress:
    """The gauges of one training; made in the job's driver."""

    def __init__(self, run: Path) -> None:
        self._metrics = run / "metrics.jsonl"
        self._gauges = {name: Gauge(name, about) for name, about in GAUGES.items()}
        self._restarts = 0
        self._last: dict[str, Any] = {}
        self._gauges["longspan_restarts"].set(0)

    def started(self, machines: int, processes: int) -> None:
        self._gauges["longspan_machines"].set(machines)
        self._gauges["longspan_processes"].set(processes)

    def restarted(self) -> None:
        self._restarts += 1
        self._gauges["longspan_restarts"].set(self._restarts)

    def step(self) -> int | None:
        """The last step told of, None before the first."""
        self.look()
        return self._last.get("step")

    def look(self) -> None:
        """Read the last row of a step, and set the gauges."""
        try:
            with self._metrics.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - TAIL))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:  # not there yet
            return
        for line in reversed(lines):
            try:
                row = json.loads(line)
            except ValueError:  # being written
                continue
            if isinstance(row, dict) and "loss" in row:
                self._last = row
                break
        for name, key in (
            ("longspan_step", "step"),
            ("longspan_bpc", "bpc"),
            ("longspan_tokens_per_second", "tokens_per_second"),
        ):
            if isinstance(self._last.get(key), int | float):
                self._gauges[name].set(self._last[key])

    def __str__(self) -> str:
        if not self._last:
            return "no step was told of"
        bpc = self._last.get("bpc")
        return f"step {self._last['step']}" + (f", bpc {bpc:.4f}" if isinstance(bpc, float) else "")
