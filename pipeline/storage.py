"""Where a build keeps its work and its output.

The seam for object stores: everything that the stages do with files goes through `Storage`. This version has
local folders only, which may be a file system that several machines mount.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from pipeline.errors import BuildError
from pipeline.shards import WrittenFile, file_sha256, serialise_arrow, write_atomically

LOCK = ".lock"
"""In a storage that a build is writing to."""


@dataclass(frozen=True)
class Storage:
    """A folder whose files appear whole or not at all. Names are relative, with "/" between parts."""

    root: Path

    def path(self, name: str) -> Path:
        """The local path of a file, for memory maps."""
        return self.root / name

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is none."""
        path = self.root / name
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def list(self, folder: str) -> list[str]:
        """The names of the files in `folder`, sorted; none where it does not exist."""
        path = self.root / folder
        return sorted(f"{folder}/{p.name}" for p in path.iterdir() if p.is_file()) if path.is_dir() else []

    def publish(self, name: str, content: bytes | pa.Buffer) -> WrittenFile:
        """Writes a file atomically, over any file of that name."""
        return write_atomically(self.root / name, content)

    def publish_arrow(self, name: str, batch: pa.RecordBatch) -> WrittenFile:
        """Writes a record batch as an Arrow IPC file, atomically."""
        return self.publish(name, serialise_arrow(batch))

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Whether a file is there with this content."""
        return self.size(name) == size and file_sha256(self.root / name) == sha256

    def open_arrow(self, name: str, sha256: str) -> pa.RecordBatch:
        """The one record batch of a file, memory-mapped. BuildError where its content is not what was published;
        a process looks once as long as the file does not change."""
        path = self.root / name
        status = path.stat()
        found = _known_sha256(path, status.st_ino, status.st_size, status.st_mtime_ns)
        if found != sha256:
            raise BuildError(changed(path, found, sha256))
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def destroy(self) -> None:
        """Removes the folder with all that is in it; the lock last, so that nobody writes to it meanwhile."""
        for path in self.root.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        self.remove(LOCK)
        self.root.rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other builds out, on this machine and on those that mount the folder, until the end of the
        block or of this process. BuildError where another one is in. A file system that has no locks keeps
        nobody out."""
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
                # The build before may have removed the file between its opening and its locking.
                if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    yield
                    return


def open_storage(uri: str) -> Storage:
    """The storage at a local path. BuildError for schemes this version does not write to."""
    scheme, separator, _ = uri.partition("://")
    if separator and scheme != "file":
        raise BuildError(
            f"{uri}: cannot write to {scheme}:// yet; expected a local path, or one on a file system that all "
            "machines of the cluster mount (inputs can be read from s3, gs, https and the hub)"
        )
    return Storage(Path(uri.removeprefix("file://")).expanduser().absolute())


def changed(path: Path, found: str, sha256: str) -> str:
    """What to say of a file whose sha256 is not what was published."""
    return (
        f"{path}: its sha256 is {found}, written was {sha256}; the disk or another program changed it. "
        "The same command again makes it anew"
    )


@lru_cache(maxsize=100_000)
def _known_sha256(path: Path, *version: int) -> str:
    return file_sha256(path)


@dataclass(frozen=True)
class Stores:
    """The two storages of a build."""

    work: Storage
    output: Storage
