"""Files that a command writes: to a place that is checked before the work, and whole or not at all."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def writable_path(text: str) -> Path:
    """An option's value: a file to be written, in a folder that exists."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a file in a folder that exists")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"found the folder {text!r}, expected a file's name")
    return path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside path to write to; it becomes path at the end, in one step, unless something failed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
