"""What the trainer's benchmarks set out to reach, and what they reach."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attention.benchmark.measure import print_table
from attention.files import whole


@dataclass(frozen=True)
class Target:
    """A figure, and what it is to reach."""

    name: str
    figure: float
    target: float
    at_least: bool = True
    unit: str = "×"

    @property
    def reached(self) -> bool:
        return self.figure >= self.target if self.at_least else self.figure <= self.target

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"reached": self.reached}


def tell(targets: Sequence[Target], found: dict[str, Any], path: Path | None) -> None:
    """Print what was reached, and write it to a file with all else that was found, where one is given."""
    print_targets(targets)
    if path:
        with whole(path) as beside:
            report = found | {"targets": [target.as_dict() for target in targets]}
            beside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def print_targets(targets: Sequence[Target]) -> None:
    print("\n== targets ==")
    cells = [
        [
            target.name,
            f"{target.figure:,.2f}{target.unit}",
            f"{'≥' if target.at_least else '≤'} {target.target:g}{target.unit}",
            "yes" if target.reached else "no",
        ]
        for target in targets
    ]
    print_table(["target", "found", "to reach", "reached"], cells)
