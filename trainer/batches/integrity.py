"""Whether the shards of a local corpus are what its manifest says: read once a machine, again where they changed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.shards import file_sha256, read_manifest, write_atomically
from trainer.batches.cache import default_cache, gigabytes
from trainer.engine.config import InputError

READERS = 4
WORTH_NOTING = 1 << 26
"""Bytes of a split from which on it is read once only."""
WORTH_TELLING = 1 << 31
"""Bytes from which on a line says what start-up waits for."""


def check_shards(folder: Path, split: str) -> None:
    """InputError names every shard of a split whose sha256 is not the manifest's.

    What was found whole is noted in the cache (`default_cache`), with the file's inode, size and time of change, and
    is not read again while these stay: training that is started again, and a node's other processes, wait for nothing.
    """
    shards = {str(entry["path"]): entry for entry in read_manifest(folder)["splits"][split]["shards"]}
    if sum(entry["bytes"] for entry in shards.values()) < WORTH_NOTING:
        _check(folder, shards)
        return
    place = hashlib.sha256(f"{folder.resolve()}\0{split}".encode()).hexdigest()[:32]
    try:
        note = default_cache() / "verified" / f"{place}.json"
    except OSError:  # nowhere to note it
        _check(folder, shards)
        return
    with _one_process(note):
        known = _read(note)
        found = {path: [entry["sha256"], *_identity(folder / path)] for path, entry in shards.items()}
        unknown = {path: entry for path, entry in shards.items() if known.get(path) != found[path]}
        _check(folder, unknown)
        if unknown:
            with suppress(OSError):  # without a note it is read again the next time
                write_atomically(note, json.dumps(found).encode())


def _check(folder: Path, shards: Mapping[str, Mapping[str, Any]]) -> None:
    size = sum(entry["bytes"] for entry in shards.values())
    if size >= WORTH_TELLING:
        print(f"checking {gigabytes(size)} of {folder}, once", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(READERS) as readers:
        sums = dict(zip(shards, readers.map(lambda path: file_sha256(folder / path), shards), strict=True))
    wrong = [
        f"{folder / path}: found the sha256 {sums[path]}, expected {entry['sha256']} as the manifest says"
        for path, entry in shards.items()
        if sums[path] != entry["sha256"]
    ]
    if wrong:
        raise InputError("\n".join(wrong))


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_ctime_ns


def _read(note: Path) -> dict[str, Any]:
    try:
        found = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _one_process(note: Path) -> Iterator[None]:
    """The processes of a machine one after the other; all at once where the cache cannot be written."""
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(note.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
