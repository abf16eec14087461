"""A corpus at a URI, copied to this machine before training: once a node, verified, whatever was killed on the way.

    s3://bucket/corpora/longformer  →  CACHE/corpora/<sha256 of its manifest>/{manifest.json, tokenizer.json, train/…}

The copy is a corpus folder like any other, with the shards of the splits that were asked for, so that training reads
memory maps and waits for no network. It is named by the manifest's checksum: a corpus that was built anew is another
folder. A file has its final name once its content has the manifest's sha256, and a copy that was interrupted goes on
with the files that are missing. One process copies, and the others of the machine wait for it at a lock, which the
kernel frees when its holder ends, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.errors import BuildError
from pipeline.shards import MANIFEST, CorpusError, read_manifest, write_atomically
from pipeline.storage import LocalStorage, Storage, open_storage
from pipeline.storage.cache import folder as object_cache
from pipeline.tokenizer import load_tokenizer
from trainer.engine.config import InputError

AT_ONCE = 8
"""Files on their way at one time."""
PIECE = 8 << 20
TELL_EVERY = 30.0
"""Seconds between two lines about progress, where there is no terminal."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
PARTIAL = ".partial"


@dataclass(frozen=True)
class Shard:
    """A file of the corpus as its manifest describes it."""

    path: str
    bytes: int
    sha256: str


def default_cache() -> Path:
    """$LONGSPAN_CACHE, else longspan in $XDG_CACHE_HOME or in ~/.cache."""
    return object_cache().parent


def is_uri(location: str | Path) -> bool:
    return "://" in str(location)


def local_corpus(location: str | Path, splits: Sequence[str], cache_dir: Path | None = None) -> Path:
    """The local folder of a corpus: itself, or, of one at s3:// or gs://, a copy that holds these splits.

    InputError where the corpus cannot be read, is damaged, or has no room in `cache_dir` (None: `default_cache`).
    """
    if not is_uri(location):
        return Path(location).expanduser()
    try:
        storage = open_storage(str(location))
        if isinstance(storage, LocalStorage):
            return storage.root
        read_manifest(storage.uri)  # says what is wrong with it
        text = storage.read(MANIFEST)
        manifest = json.loads(text)
        corpora = (default_cache() if cache_dir is None else cache_dir.expanduser().absolute()) / "corpora"
        folder = corpora / hashlib.sha256(text).hexdigest()
        wanted = _shards(manifest, splits, storage)
        with alone(folder, str(location)):
            _remove_partials(folder)
            _copy(storage, [shard for shard in wanted if not _has(folder, shard)], folder)
            _copy_tokenizer(storage, manifest, folder)
            write_atomically(folder / MANIFEST, text)
        return folder
    except (BuildError, CorpusError) as error:
        raise InputError(f"corpus: {error}") from error
    except OSError as error:
        raise InputError(f"corpus: {location}: {error}") from error


def _shards(manifest: dict[str, Any], splits: Sequence[str], storage: Storage) -> list[Shard]:
    try:
        entries = [entry for split in splits for entry in manifest["splits"][split]["shards"]]
        return [Shard(str(entry["path"]), int(entry["bytes"]), str(entry["sha256"])) for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{storage.where(MANIFEST)}: damaged, or without the splits {splits}: no {error}"
        ) from error


@contextmanager
def alone(folder: Path, location: str) -> Iterator[None]:
    """One process of the machine at a time; what the others waited for is there when it is their turn."""
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                print(f"waiting for another process that prepares {location}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_partials(folder: Path) -> None:
    for partial in folder.rglob(f"*{PARTIAL}"):
        partial.unlink(missing_ok=True)


def _has(folder: Path, shard: Shard) -> bool:
    """Whether the file is there. Its content was checked before it got its name."""
    path = folder / shard.path
    return path.is_file() and path.stat().st_size == shard.bytes


def _copy(storage: Storage, missing: Sequence[Shard], folder: Path) -> None:
    if not missing:
        return
    needed, free = sum(shard.bytes for shard in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise _no_room(
            storage, folder, f"{gigabytes(needed)} for {len(missing)} shards, found {gigabytes(free)}"
        )
    pool = ThreadPoolExecutor(AT_ONCE)
    with _Progress(storage.uri, folder, needed) as progress:
        try:
            copies = [pool.submit(_copy_one, storage, shard, folder, progress) for shard in missing]
            for copy in as_completed(copies):
                copy.result()
        finally:  # after a failure those under way end, and the others never start
            pool.shutdown(cancel_futures=True)


def _copy_one(storage: Storage, shard: Shard, folder: Path, progress: _Progress) -> None:
    """A file under its final name, or nothing. Read a second time where the content is wrong: the network may be it."""
    target = folder / shard.path
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}{PARTIAL}")
    try:
        for _ in range(2):
            found = _download(storage, shard, partial, progress)
            if found == shard.sha256:
                partial.replace(target)
                return
        raise InputError(
            f"{storage.where(shard.path)}: found the sha256 {found}, expected {shard.sha256} as the manifest says"
        )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(
                storage, folder, f"{gigabytes(shard.bytes)} for {shard.path}, found none"
            ) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _download(storage: Storage, shard: Shard, partial: Path, progress: _Progress) -> str:
    """Write the object to `partial`, synced; returns its sha256."""
    digest = hashlib.sha256()
    received = 0
    with storage.open(shard.path) as source, partial.open("wb") as file:
        while piece := source.read(PIECE):
            received += len(piece)
            if received > shard.bytes:
                break
            digest.update(piece)
            file.write(piece)
            progress.advance(len(piece))
        file.flush()
        os.fsync(file.fileno())
    if received != shard.bytes:
        progress.advance(-min(received, shard.bytes))
        raise InputError(f"{storage.where(shard.path)}: found {received:,} bytes, expected {shard.bytes:,}")
    return digest.hexdigest()


def _copy_tokenizer(storage: Storage, manifest: dict[str, Any], folder: Path) -> None:
    """The tokenizer's files; what came must be the one that the manifest names."""
    if (folder / MANIFEST).is_file():
        return
    for name in TOKENIZER:
        write_atomically(folder / name, storage.read(name))
    found, expected = load_tokenizer(folder / TOKENIZER[0]).fingerprint, manifest["tokenizer"]["fingerprint"]
    if found != expected:
        raise InputError(f"{storage.where(TOKENIZER[0])}: found the tokenizer {found}, expected {expected}")


def _no_room(storage: Storage, folder: Path, problem: str) -> InputError:
    others = [path.name[:12] for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    beside = f"; copies of other corpora lie there too ({', '.join(sorted(others))})" if others else ""
    return InputError(
        f"data.cache_dir: {folder} has no room for {storage.uri}: expected {problem}{beside}. What was copied is kept"
    )


def gigabytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e7 else f"{count:,} bytes"


class _Progress:
    """A bar on a terminal, a line now and then elsewhere; for several threads."""

    def __init__(self, uri: str, folder: Path, total: int) -> None:
        self.about, self.total = f"copying {uri} to {folder}", total
        self.done, self.told = 0, time.monotonic()
        self.bar = tqdm(
            desc=f"copying {uri}", total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty()
        )

    def __enter__(self) -> _Progress:
        self._tell(f"{self.about}: {gigabytes(self.total)}")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, count: int) -> None:
        self.done += count
        self.bar.update(count)
        if time.monotonic() - self.told > TELL_EVERY:
            self._tell(f"{self.about}: {self.done / self.total:.0%} of {gigabytes(self.total)}")

    def _tell(self, line: str) -> None:
        self.told = time.monotonic()
        if self.bar.disable:
            print(line, file=sys.stderr, flush=True)
