"""Local copies of objects, for memory maps: named by their content, shared by the processes of a machine, bounded.

LONGSPAN_CACHE_GB bounds them (default 50). Beyond it the least recently used go; a process that has one mapped
keeps its pages, and the disk gets their room back when it ends.
"""

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from pipeline.errors import BuildError
from pipeline.shards import file_sha256
from pipeline.storage.interface import name_file

GRACE = 60.0
"""Seconds for which a copy stays after its use, whatever the bound: time to open it."""
_PART = ".part"


class DamagedObject(Exception):
    """What came was not what had been asked for. Holds the sha256 of what came."""

    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found


def cached(sha256: str, size: int, download: Callable[[], Iterable[bytes]]) -> Path:
    """The local copy of the content with this checksum, verified; where there is none, of what `download` gives.

    Of several processes one downloads, the others wait. DamagedObject where it is something else.
    """
    path = folder() / sha256
    if _is_whole(path, sha256):
        return path
    with _locked(sha256):
        if not _is_whole(path, sha256):  # nobody was faster
            _make_room(size, keep=path)
            _complete(path, sha256, download())
    return path


def folder() -> Path:
    """LONGSPAN_CACHE, else longspan in XDG_CACHE_HOME or ~/.cache; the folder `objects` in it. Where there is no
    home, a temporary one."""
    given = os.environ.get("LONGSPAN_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        path = Path(given or f"{home}/longspan").expanduser().absolute()
    except RuntimeError:
        path = Path(tempfile.gettempdir(), f"longspan-{os.getuid()}")
    path = path / "objects"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def bound() -> int:
    """Bytes that may lie in the cache. BuildError where LONGSPAN_CACHE_GB is not a number."""
    given = os.environ.get("LONGSPAN_CACHE_GB", "50")
    try:
        return int(float(given) * 1e9)
    except (ValueError, OverflowError):
        raise BuildError(f"LONGSPAN_CACHE_GB: expected a number of gigabytes, found {given!r}") from None


def _is_whole(path: Path, sha256: str) -> bool:
    """Whether the copy is there and right; looked at once a process. Marks it as used."""
    try:
        status = path.stat()
        # Only the time of use: that of the change stands for the content.
        os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
        return known_sha256(path, status.st_ino, status.st_size, status.st_mtime_ns) == sha256
    except FileNotFoundError:
        return False


@lru_cache(maxsize=100_000)
def known_sha256(path: Path, *version: int) -> str:
    """The checksum of a file of which this is the version, computed once a process."""
    return file_sha256(path)


def _complete(path: Path, sha256: str, content: Iterable[bytes]) -> None:
    part = path.with_suffix(_PART)
    digest = hashlib.sha256()
    try:
        with part.open("wb") as file:
            for chunk in content:
                digest.update(chunk)
                try:
                    file.write(chunk)
                except OSError as error:
                    raise name_file(error, f"{part} (LONGSPAN_CACHE chooses another folder)")  # noqa: B904
        if digest.hexdigest() != sha256:
            raise DamagedObject(digest.hexdigest())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _make_room(size: int, keep: Path) -> None:
    """Removes what was used longest ago, until `size` more bytes are within the bound."""
    entries = []
    with os.scandir(keep.parent) as found:
        for entry in found:
            try:
                if entry.is_file():
                    entries.append((entry.stat().st_atime_ns, entry.stat().st_size, entry.name))
            except FileNotFoundError:  # another process evicted it
                continue
    excess = sum(bytes_ for _, bytes_, _ in entries) + size - bound()
    newest = time.time_ns() - int(GRACE * 1e9)
    for used, bytes_, name in sorted(entries):
        if excess <= 0 or used > newest:
            return
        path = keep.with_name(name)
        if path != keep and (path.suffix != _PART or not _is_being_written(path.stem)):
            path.unlink(missing_ok=True)
            excess -= bytes_


@contextmanager
def _locked(sha256: str, block: bool = True) -> Iterator[bool]:
    """Keeps other processes from writing copies that begin with the same two digits."""
    locks = folder() / "locks"
    locks.mkdir(exist_ok=True)
    with (locks / sha256[:2]).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _is_being_written(sha256: str) -> bool:
    with _locked(sha256, block=False) as is_free:
        return not is_free
