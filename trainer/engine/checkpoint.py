"""Checkpoints by parameter name: fp32 weights and Adam's moments in safetensors, independent of world size and ZeRO.

A checkpoint is a folder `step-00000100` that appears whole: written beside under another name, completed by a
manifest of sizes and sha256 sums, synced, renamed. Resuming takes the newest whose manifest holds; a broken one is
reported and passed over. safetensors runs no code on load.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.shards import file_sha256

MANIFEST = "manifest.json"
_NAME = re.compile(r"^step-(\d{8})$")
State = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: `facts` is what the trainer wrote beside the tensors (state.json)."""

    folder: Path
    step: int
    facts: dict[str, Any]

    def state(self) -> State:
        return {file.stem: load_file(file) for file in sorted(self.folder.glob("*.safetensors"))}

    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "weights.safetensors")


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file with the permissions of any other new file (the library's own are private)."""
    path.touch()
    mode = path.stat().st_mode & 0o777
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(
    checkpoints: Path, step: int, state: State, facts: dict[str, Any], extra: dict[str, str]
) -> Path:
    """Write one checkpoint; `extra` are small text files by name. Call on one process."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    target = checkpoints / f"step-{step:08d}"
    beside = checkpoints / f".{target.name}.partial"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    for name, tensors in state.items():
        save_tensors(beside / f"{name}.safetensors", tensors)
    for name, text in {**extra, "state.json": json.dumps({"step": step, **facts}, indent=2) + "\n"}.items():
        (beside / name).write_text(text, encoding="utf-8")
    files = sorted(beside.iterdir())
    for file in files:
        _sync(file)
    listed = {file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in files}
    manifest = beside / MANIFEST
    manifest.write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    _sync(manifest)
    _sync(beside)
    # A broken checkpoint of the same step may be in the way: it was passed over when this run resumed.
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)
    _sync(checkpoints)
    return target


def open_checkpoint(folder: Path) -> Checkpoint:
    """A complete checkpoint, every file checked; ValueError says what is wrong with it."""
    match = _NAME.match(folder.name)
    if not match:
        raise ValueError(f"{folder}: found the name {folder.name!r}, expected step-00000100 or the like")
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"{folder}: found no {MANIFEST}, so it was never completed")
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))
        for name, facts in listed.items():
            file = folder / Path(name).name
            if not file.is_file():
                raise ValueError(f"{file}: not there")
            if file.stat().st_size != facts["bytes"]:
                raise ValueError(f"{file}: found {file.stat().st_size} bytes, expected {facts['bytes']}")
            if file_sha256(file) != facts["sha256"]:
                raise ValueError(f"{file}: its sha256 is not the manifest's")
        facts = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, OSError) as error:
        raise ValueError(f"{manifest}: not a checkpoint's manifest ({error})") from error
    return Checkpoint(folder, int(match.group(1)), facts)


def _steps(checkpoints: Path) -> list[tuple[int, Path]]:
    if not checkpoints.is_dir():
        return []
    matches = ((_NAME.match(folder.name), folder) for folder in checkpoints.iterdir() if folder.is_dir())
    return sorted((int(match.group(1)), folder) for match, folder in matches if match)


def newest_checkpoint(checkpoints: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest complete checkpoint of a run, or None; broken ones are reported and passed over."""
    for _, folder in reversed(_steps(checkpoints)):
        try:
            return open_checkpoint(folder)
        except ValueError as error:
            report(f"passing over a broken checkpoint: {error}")
    return None


def prune_checkpoints(checkpoints: Path, keep_last: int, newest: int) -> None:
    """Remove all but the last `keep_last` checkpoints up to step `newest`, and what interrupted saves left.

    `newest` is the step just saved. Later ones were broken, or this run would have resumed from them.
    """
    for partial in checkpoints.glob(".step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    steps = _steps(checkpoints)
    kept = {step for step, _ in steps if step <= newest}
    kept = set(sorted(kept)[-keep_last:])
    for step, folder in steps:
        if step in kept:
            continue
        # Without its manifest it is no checkpoint any more, whatever interrupts the removal.
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
