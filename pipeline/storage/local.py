"""A storage that is a local folder, which may be on a file system that several machines mount."""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from pipeline.errors import BuildError
from pipeline.shards import file_sha256, is_temporary
from pipeline.storage.interface import LOCK, Storage, Writer, changed, checked_name, name_file

_REMOVALS = 100
"""Attempts to remove a folder that files appear in."""


@dataclass(frozen=True)
class LocalStorage(Storage):
    """A folder; it need not exist before something is published. Renames make files appear whole."""

    root: Path
    must_exist: bool = False
    """Whether nothing is written once the folder is gone."""

    @property
    def uri(self) -> str:
        return str(self.root)

    def under(self, folder: str) -> "LocalStorage":
        return LocalStorage(self.root / checked_name(folder))

    def only_while_there(self) -> "LocalStorage":
        return replace(self, must_exist=True)

    def path(self, name: str) -> Path:
        """The local path of a file."""
        return self.root / checked_name(name)

    def size(self, name: str) -> int | None:
        path = self.path(name)
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def list(self, folder: str) -> list[str]:
        path = self.path(folder) if folder else self.root
        if not path.is_dir():
            return []
        names = (entry.name for entry in path.iterdir() if entry.is_file() and _is_content(entry))
        return sorted(f"{folder}/{name}" if folder else name for name in names)

    def is_empty(self) -> bool:
        entries = self.root.rglob("*") if self.root.is_dir() else ()
        return not any(_is_content(entry) and not entry.is_dir() for entry in entries)

    @contextmanager
    def create(self, name: str) -> Iterator[Writer]:
        path = self.path(name)
        self._make_folder(path.parent)
        # A random name, so that writers of the same file do not meet: the last rename wins. A short one, so that
        # a long name with an addition is not too long.
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            file = temporary.open("xb")
            try:
                writer = Writer(file, str(path))
                yield writer
                try:
                    file.flush()
                    os.fsync(file.fileno())
                except OSError as error:
                    raise name_file(error, path)  # noqa: B904 - it is the same error
            finally:
                with suppress(OSError):  # of another attempt to write what could not be written
                    file.close()
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
        writer.mark_published()

    def _make_folder(self, folder: Path) -> None:
        if not self.must_exist:
            folder.mkdir(parents=True, exist_ok=True)
            return
        made = self.root  # not with its parents, so that no one can remove it between a look and this
        for part in folder.relative_to(self.root).parts:
            made /= part
            made.mkdir(exist_ok=True)

    def open(self, name: str) -> BinaryIO:
        return self.path(name).open("rb")

    def local_copy(self, name: str, sha256: str, *, remove_damaged: bool = True) -> Path:
        path = self.path(name)
        status = path.stat()
        found = _known_sha256(path, status.st_ino, status.st_size, status.st_mtime_ns)
        self._refuse_changed(name, found, sha256, remove_damaged)
        return path

    def open_arrow_ranged(self, name: str, sha256: str) -> pa.ipc.RecordBatchFileReader:
        """As `open_arrow`: verified once a process, then a memory map."""
        return self.open_arrow(name, sha256)

    def verify(self, name: str, sha256: str) -> None:
        self._refuse_changed(name, file_sha256(self.path(name)), sha256)

    def _refuse_changed(self, name: str, found: str, sha256: str, remove_damaged: bool = True) -> None:
        if found != sha256:
            if remove_damaged:
                self.remove(name)
            raise changed(self.path(name), found, sha256, remove_damaged)

    def holds(self, name: str, size: int, sha256: str) -> bool:
        return self.size(name) == size

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        for folder, _, names in os.walk(self.root):
            for name in filter(is_temporary, names):
                Path(folder, name).unlink(missing_ok=True)

    def destroy(self) -> None:
        """Removes the folder with all that is in it; the lock last, so that nobody writes to it meanwhile."""
        if self.root in (Path(self.root.anchor), Path.home()):
            raise BuildError(f"{self.root}: will not be removed; expected a folder of the build's own")
        # Again, since a worker that outlived its killed build may still write there.
        for last in (False,) * _REMOVALS + (True,):
            try:
                self._remove_all()
                return
            except OSError:
                if last:
                    raise

    def _remove_all(self) -> None:
        for path in self.root.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        self.remove(LOCK)
        self.root.rmdir()

    @contextmanager
    def locked(self) -> Iterator["_FileLock"]:
        """On this machine and on those that mount the folder. A file system that has no locks keeps nobody out."""
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / LOCK
        while True:
            with path.open("ab") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise BuildError(
                        f"{self.root}: another build is writing here; wait for its end"
                    ) from None
                except OSError as error:
                    if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                        raise
                lock = _FileLock(path, os.fstat(file.fileno()))
                # The build before may have removed the file between its opening and its locking.
                if lock.is_held():
                    try:
                        yield lock
                    finally:
                        if lock.is_held():
                            path.unlink()
                    return


@dataclass(frozen=True)
class _FileLock:
    path: Path
    opened: os.stat_result

    def is_held(self) -> bool:
        """The kernel keeps the lock as long as the process lives, but on the file, which may lose its name."""
        try:
            return os.path.samestat(self.opened, self.path.stat())
        except FileNotFoundError:
            return False

    def check(self) -> None:
        if not self.is_held():
            raise BuildError(
                f"{self.path}: was removed while a build was writing here; another one may have begun. "
                "The same command again goes on"
            )


def _is_content(path: Path) -> bool:
    return path.name != LOCK and not is_temporary(path.name)


def _sync_folder(folder: Path) -> None:
    # The rename is a change of the folder: without this a power cut can take the name back.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=100_000)
def _known_sha256(path: Path, *version: int) -> str:
    return file_sha256(path)
