"""A model folder that is written: there whole or not at all, and never in the place of anything but a model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.engine.checkpoint import sync
from trainer.engine.config import InputError

CARD = "README.md"


@contextmanager
def replaced(folder: Path, files: Collection[str]) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` at the block's end.

    A folder that is empty, or holds files of these names and nothing else, is replaced; any other is left alone with
    an InputError.
    """
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - set(files)):
        raise InputError(
            f"{folder}: holds something else, expected a new or empty folder, or a model to replace"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder, "partial")
    beside = _beside(folder, "partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        for file in (*beside.iterdir(), beside):
            sync(file)
        if folder.exists():
            previous = _beside(folder, "previous")
            folder.rename(previous)
            beside.rename(folder)
            shutil.rmtree(previous)
        else:
            beside.rename(folder)
        sync(folder.parent)
        _remove_leftovers(folder, "previous")
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _beside(folder: Path, what: str) -> Path:
    """A name of this process's own beside a folder."""
    return folder.with_name(f".{folder.name}.{os.uname().nodename}.{os.getpid()}.{what}")


def _remove_leftovers(folder: Path, what: str) -> None:
    """Remove what was left beside a folder by processes of this machine that were killed."""
    own = _beside(folder, what).name
    prefix = own.removesuffix(f"{os.getpid()}.{what}")
    for left in folder.parent.iterdir():
        process = left.name.removeprefix(prefix).removesuffix(f".{what}")
        if left.name == f"{prefix}{process}.{what}" and process.isdigit() and not _runs(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True
