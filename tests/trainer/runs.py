"""Reading what a run wrote."""

import json
import shutil
from pathlib import Path
from typing import Any


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def step_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of steps; evaluations have rows of their own."""
    return [row for row in rows(run) if "loss" in row]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in step_rows(run)]


def timeless(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock had a part in."""
    timed = ("second", "mfu", "eta", "memory")
    return [{key: row[key] for key in row if not any(word in key for word in timed)} for row in rows(run)]


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def state_bytes(run: Path, step: int = 4) -> dict[str, bytes]:
    """The tensors of a checkpoint, byte for byte."""
    return {file.name: file.read_bytes() for file in sorted(step_folder(run, step).glob("*.safetensors"))}


def rewind(source: Path, target: Path, step: int) -> None:
    """What a run killed some steps after its checkpoint at `step` leaves: its metrics run ahead of it."""
    name = f"step-{step:08d}"
    shutil.copytree(source / "checkpoints" / name, target / "checkpoints" / name)
    lines = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
    there = [line for line in lines if json.loads(line)["step"] <= step]
    ahead = lines[len(there) :]  # a row, and of another as much as was written
    (target / "metrics.jsonl").write_text("".join(there + ahead[:1]) + "".join(ahead[1:2])[:20])
