"""Saving a checkpoint of the base model, beside a plain write of as many bytes to the same file system."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from attention.benchmark.measure import cpu_seconds, wall_seconds
from trainer.engine.checkpoint import open_checkpoint, save_checkpoint
from trainer.model.heads import MaskedLanguageModel
from trainer.model.longformer import EncoderConfig

KINDS = ("weights", "exp_avg", "exp_avg_sq")
BLOCK = 1 << 24


def measure_checkpoint(folder: Path, config: EncoderConfig, rounds: int) -> dict[str, Any]:
    """Wall and CPU seconds of a save, of opening it with every checksum looked at, and of the bytes alone."""
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in MaskedLanguageModel(config).named_parameters()}
    torch.manual_seed(0)
    state = {kind: {name: torch.randn(shape) for name, shape in shapes.items()} for kind in KINDS}
    size = sum(tensor.nbytes for tensors in state.values() for tensor in tensors.values())
    checkpoints, raw = folder / "checkpoints", folder / "raw"
    block = os.urandom(BLOCK)

    def save() -> None:
        save_checkpoint(checkpoints, 1, state, {}, {})

    def write() -> None:
        with raw.open("wb") as file:
            for start in range(0, size, BLOCK):
                file.write(block[: size - start])
            file.flush()
            os.fsync(file.fileno())

    runs: dict[str, Callable[[], object]] = {
        "write and fsync": write,
        "save": save,
        "open and verify": lambda: open_checkpoint(checkpoints / "step-00000001"),
    }
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            cpu[name].append(cpu_seconds(lambda run=run, name=name: wall[name].append(wall_seconds(run))))  # type: ignore[misc]
        # What is left of one round is not to be cleared away in the next one's time.
        shutil.rmtree(checkpoints)
        raw.unlink()
        os.sync()
    return {
        "bytes": size,
        "ratio": statistics.median(a / b for a, b in zip(wall["save"], wall["write and fsync"], strict=True)),
        "rows": [
            {"method": name, "wall": statistics.median(wall[name]), "cpu": statistics.median(cpu[name])}
            | {"wall_seconds": wall[name], "cpu_seconds": cpu[name]}
            for name in runs
        ],
    }
