"""What the trainer's benchmarks set out to reach, and what they reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from attention.benchmark.measure import print_table


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
