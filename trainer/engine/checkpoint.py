"""Checkpoints by parameter name: fp32 weights and Adam's moments in safetensors, independent of world size and ZeRO.

A checkpoint is a folder `step-00000100` that appears whole: written beside under another name, completed by a
manifest of sizes and sha256 sums, synced, renamed. Resuming takes the newest whose manifest holds; a broken one is
reported and passed over. safetensors runs no code on load, and only what the manifest lists is read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.shards import file_sha256
from trainer.engine.config import InputError

MANIFEST = "manifest.json"
STATE = "state.json"
TENSORS = ("weights", "exp_avg", "exp_avg_sq")  # a file each: the weights and Adam's moments
_NAME = re.compile(r"^step-(\d{8})$")
_WRITERS = 4  # files hashed and synced at a time
State = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: `facts` is what the trainer wrote beside the tensors (state.json)."""

    folder: Path
    step: int
    facts: dict[str, Any]

    def state(self) -> State:
        """{"weights" | moment: {parameter name: float32 tensor}}."""
        return {name: load_file(self.folder / f"{name}.safetensors") for name in TENSORS}

    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "weights.safetensors")


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file with the permissions of any other new file (the library's own are private).

    OSError where it cannot be written, with the path.
    """
    path.touch()
    mode = path.stat().st_mode & 0o777
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # what the library makes of a full disk
        raise OSError(f"{path}: {error}") from error
    path.chmod(mode)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _settle(file: Path) -> dict[str, Any]:
    """Bring a file to the disk; returns its line of the manifest.

    The hash is taken from memory while the disk is at work: fsync and sha256 both leave the interpreter to others.
    """
    with ThreadPoolExecutor(1) as beside:
        synced = beside.submit(sync, file)
        listed = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        synced.result()
    return listed


def save_checkpoint(
    checkpoints: Path, step: int, state: State, facts: dict[str, Any], extra: dict[str, str]
) -> Path:
    """Write one checkpoint; `extra` are small text files by name. Call on one process, under the run's lock.

    InputError where the disk is full or cannot be written: nothing of this checkpoint is left, earlier ones are as
    they were.
    """
    target = checkpoints / f"step-{step:08d}"
    beside = checkpoints / f".{target.name}.partial"
    texts = {**extra, STATE: json.dumps({**facts, "step": step}, indent=2) + "\n"}
    try:
        if not checkpoints.is_dir():
            checkpoints.mkdir(parents=True)
            sync(checkpoints.parent)
        _clear_partial(checkpoints)  # before writing: they may be what fills the disk
        beside.mkdir()
        _write(beside, state, texts)
        # A broken checkpoint of the same step may be in the way: it was passed over when this run resumed.
        if target.is_symlink():
            target.unlink()
        shutil.rmtree(target, ignore_errors=True)
        beside.rename(target)
        sync(checkpoints)
    except OSError as error:
        needed = sum(tensor.nbytes for tensors in state.values() for tensor in tensors.values())
        shutil.rmtree(beside, ignore_errors=True)
        raise InputError(_not_saved(target, error, needed)) from error
    return target


def _write(folder: Path, state: State, texts: dict[str, str]) -> None:
    """Fill a checkpoint's folder; it is complete, and on the disk, when this returns."""

    def write_tensors(name: str) -> tuple[str, dict[str, Any]]:
        file = folder / f"{name}.safetensors"
        save_tensors(file, state[name])
        return file.name, _settle(file)

    def write_text(name: str) -> tuple[str, dict[str, Any]]:
        (folder / name).write_text(texts[name], encoding="utf-8")
        return name, _settle(folder / name)

    with ThreadPoolExecutor(_WRITERS) as writers:
        listed = dict([*writers.map(write_tensors, state), *writers.map(write_text, texts)])
    # The manifest comes last, after all that it vouches for has reached the disk.
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(dict(sorted(listed.items())), indent=2) + "\n", encoding="utf-8")
    sync(manifest)
    sync(folder)


def _not_saved(target: Path, error: OSError, needed: int) -> str:
    """What to tell when a checkpoint could not be written."""
    reason = error.strerror or str(error)
    try:
        free = f"{shutil.disk_usage(target.parent).free / 2**20:,.0f} MiB are free"
    except OSError:
        free = "the folder is not there"
    last = [step for step, _ in _steps(target.parent)]
    return (
        f"{target}: not saved: {reason}. It takes {needed / 2**20:,.0f} MiB, {free}. "
        + (f"Step {last[-1]} is the last checkpoint" if last else "There is no checkpoint yet")
        + "; the same command goes on from there"
    )


def open_checkpoint(folder: Path) -> Checkpoint:
    """A complete checkpoint, every file checked; ValueError says what is wrong with it.

    PermissionError where it may not be read: that says nothing about the checkpoint.
    """
    match = _NAME.match(folder.name)
    if not match:
        raise ValueError(f"{folder}: found the name {folder.name!r}, expected step-00000100 or the like")
    step = int(match.group(1))
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"{folder}: found no {MANIFEST}, so it was never completed")
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))
        missing = {STATE, *(f"{name}.safetensors" for name in TENSORS)} - listed.keys()
        if missing:
            raise ValueError(f"{manifest}: does not list {', '.join(sorted(missing))}")
        with ThreadPoolExecutor(_WRITERS) as readers:
            list(readers.map(lambda name: _check(folder, name, listed[name]), listed))
        facts = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except PermissionError:
        raise
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, OSError) as error:
        raise ValueError(f"{manifest}: not a checkpoint's manifest ({error!r})") from error
    if not isinstance(facts, dict) or facts.get("step") != step:
        found = facts.get("step") if isinstance(facts, dict) else facts
        raise ValueError(f"{folder / STATE}: found step {found!r}, expected {step}")
    return Checkpoint(folder, step, facts)


def _check(folder: Path, name: str, listed: dict[str, Any]) -> None:
    """A file of a checkpoint against its line of the manifest; ValueError says how it differs."""
    file = folder / name
    # Written by us it is a plain file in this folder; anything else would read what does not belong to it.
    if name != Path(name).name or file.is_symlink():
        raise ValueError(f"{folder / MANIFEST}: lists {name!r}, expected a plain file beside it")
    if not file.is_file():
        raise ValueError(f"{file}: not there")
    if file.stat().st_size != listed["bytes"]:
        raise ValueError(f"{file}: found {file.stat().st_size} bytes, expected {listed['bytes']}")
    if file_sha256(file) != listed["sha256"]:
        raise ValueError(f"{file}: its sha256 is not the manifest's")


def _steps(checkpoints: Path) -> list[tuple[int, Path]]:
    if not checkpoints.is_dir():
        return []
    matches = ((_NAME.match(folder.name), folder) for folder in checkpoints.iterdir() if folder.is_dir())
    return sorted((int(match.group(1)), folder) for match, folder in matches if match)


def newest_checkpoint(
    checkpoints: Path, report: Callable[[str], None], keys: tuple[str, ...] = ()
) -> Checkpoint | None:
    """The newest complete checkpoint of a run, or None; broken ones are reported and passed over.

    `keys` are the facts that the caller will read. InputError where a complete checkpoint has not all of them, or may
    not be read: passed over it would be removed by the next save, and it is somebody's work.
    """
    for _, folder in reversed(_steps(checkpoints)):
        try:
            found = open_checkpoint(folder)
        except PermissionError as error:
            raise InputError(
                f"{error.filename}: {error.strerror}, expected a checkpoint that can be read"
            ) from error
        except ValueError as error:
            report(f"passing over a broken checkpoint: {error}")
            continue
        missing = [key for key in keys if key not in found.facts]
        if missing:
            raise InputError(
                f"{folder / STATE}: has no {', '.join(missing)}, expected a checkpoint of this kind of training; "
                f"give another --run"
            )
        return found
    return None


def _clear_partial(checkpoints: Path) -> None:
    """Remove what saves that were killed left."""
    for partial in checkpoints.glob(".step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def prune_checkpoints(checkpoints: Path, keep_last: int, newest: int, keep_every: int = 0) -> None:
    """Remove all but the last `keep_last` checkpoints up to step `newest` and those of every `keep_every`-th step.

    `newest` is the step just saved. Later ones were broken, or this run would have resumed from them. A link to a
    checkpoint elsewhere is the user's, and is left alone.
    """
    _clear_partial(checkpoints)
    steps = [(step, folder) for step, folder in _steps(checkpoints) if not folder.is_symlink()]
    whole = [step for step, folder in steps if step <= newest and (folder / MANIFEST).exists()]
    kept = {*whole[-keep_last:], *(step for step in whole if keep_every and step % keep_every == 0)}
    for step, folder in steps:
        if step in kept:
            continue
        # Without its manifest it is no checkpoint any more, whatever interrupts the removal.
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
