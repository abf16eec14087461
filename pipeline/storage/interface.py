"""What a storage is: the contract that a local folder and an object store both keep."""

import hashlib
import io
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from pipeline.errors import DamagedFile
from pipeline.shards import WrittenFile, serialise_arrow

LOCK = ".lock"
"""In a storage that a build is writing to."""


class Writer(io.RawIOBase):
    """A sequential binary stream into a file that is not there yet; `pa.ipc.new_file` takes it as its sink.

    Closing it publishes nothing: the clean end of the block of `Storage.create` does.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file = file
        self._where = where
        self._bytes = 0
        self._digest = hashlib.sha256()
        self._published = False

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        """Takes all of `content`. OSError, naming the file to be, where there is no room for it."""
        with memoryview(content).cast("B") as view:
            try:
                self._file.write(view)
            except OSError as error:
                raise name_file(error, self._where)  # noqa: B904 - it is the same error
            self._digest.update(view)
            self._bytes += len(view)
            return len(view)

    def tell(self) -> int:
        return self._bytes

    @property
    def written(self) -> WrittenFile:
        """What was published; only after the end of the block."""
        assert self._published, f"{self._where}: asked for before it was published"
        return self.so_far

    @property
    def so_far(self) -> WrittenFile:
        return WrittenFile(self._bytes, self._digest.hexdigest())

    def mark_published(self) -> None:
        self._published = True


class Lock(Protocol):
    """Held for the time of the block of `Storage.locked`."""

    def check(self) -> None:
        """BuildError where it was lost meanwhile: somebody else may be writing. To be asked before what cannot be
        taken back, such as publishing a manifest."""
        ...


class Storage(ABC):
    """A folder, local or in an object store, whose files appear whole or not at all.

    Immutable, and small when pickled. Names are relative to it, with "/" between their parts. A file that is
    missing raises FileNotFoundError; a disk or a service that refuses raises OSError or BuildError, with the
    place named.
    """

    @property
    @abstractmethod
    def uri(self) -> str:
        """Where it is: an absolute path, or a URI with a scheme. `open_storage` makes the storage of it again."""

    def where(self, name: str) -> str:
        """The place of a file, for messages."""
        return f"{self.uri.rstrip('/')}/{checked_name(name)}"

    @abstractmethod
    def under(self, folder: str) -> "Storage":
        """The storage of a folder in this one."""

    def only_while_there(self) -> "Storage":
        """The same storage, for the workers of one build: what outlives its build shall not bring a folder back that
        was removed. An object store has no folders, and cannot tell."""
        return self

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is none."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """All of a file, meant for small ones."""

    @abstractmethod
    def list(self, folder: str) -> list[str]:
        """The names of the files in `folder`, those in its own folders not among them, sorted; none where it does not
        exist. "" is the storage itself. The lock and what killed writers left are not listed."""

    @abstractmethod
    def is_empty(self) -> bool:
        """Whether there is no file at all, at any depth, but a lock and what killed writers left."""

    def publish(self, name: str, content: bytes | pa.Buffer) -> WrittenFile:
        """Writes a file, whole or not at all, over any file of that name."""
        with self.create(name) as writer:
            writer.write(content)
        return writer.written

    def publish_arrow(self, name: str, batch: pa.RecordBatch) -> WrittenFile:
        """Writes a record batch as an Arrow IPC file, whole or not at all."""
        return self.publish(name, serialise_arrow(batch))

    @abstractmethod
    def create(self, name: str) -> AbstractContextManager[Writer]:
        """A stream into a file, in bounded memory. It is published at the clean end of the block, over any file of that
        name, and not at all where the block ends with an exception. Then `writer.written` says what it is."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """A seekable stream of a file's bytes, unverified."""

    @abstractmethod
    def local_copy(self, name: str, sha256: str, *, remove_damaged: bool = True) -> Path:
        """A local file with this content, for memory maps, verified: the file itself, or a copy in the cache. It is to
        be opened at once, and not to be written to. For a file with other content the BuildError of `changed` is
        raised, and it is removed, so that the unit that made it runs again; who only reads a corpus leaves it. A
        process looks once as long as the file does not change."""

    def open_arrow(self, name: str, sha256: str) -> pa.ipc.RecordBatchFileReader:
        """A verified Arrow file, memory-mapped, as `local_copy` gives it."""
        return pa.ipc.open_file(pa.memory_map(str(self.local_copy(name, sha256))))

    @abstractmethod
    def open_arrow_ranged(self, name: str, sha256: str) -> pa.ipc.RecordBatchFileReader:
        """An Arrow file of which only the batches that are asked for are read."""

    @abstractmethod
    def verify(self, name: str, sha256: str) -> None:
        """Reads the whole file, in bounded memory, each time. Like `local_copy` where its content is another."""

    @abstractmethod
    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Whether a file is there that should have this content, cheaply: it is not read. Readers verify it."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file; nothing happens where there is none."""

    @abstractmethod
    def remove_leftovers(self) -> None:
        """Removes what killed writers left. To be called under the lock, when no unit is running."""

    @abstractmethod
    def destroy(self) -> None:
        """Removes everything below this storage's own place. BuildError where that would be a whole disk or bucket."""

    @abstractmethod
    def locked(self) -> AbstractContextManager[Lock]:
        """Keeps other builds out until the end of the block, or of this process. BuildError where another one is
        in."""


@dataclass(frozen=True)
class Stores:
    """The two storages of a build."""

    work: Storage
    output: Storage


def checked_name(name: str) -> str:
    """`name`, where it stays inside of its storage and every kind of storage takes it; else ValueError."""
    outside = any(part in ("", ".", "..") for part in name.split("/"))
    if outside or "\\" in name or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise ValueError(
            f"{name!r}: expected printable parts joined by single slashes, relative to the storage"
        )
    return name


def changed(where: str | Path, found: str, sha256: str, removed: bool = True) -> DamagedFile:
    """What to raise for a file whose sha256 is not what was published."""
    remedy = ". The same command again makes it anew" if removed else ""
    return DamagedFile(
        str(where),
        f"its sha256 is {found}, written was {sha256}; the disk or another program changed it{remedy}",
    )


def name_file(error: OSError, where: str | Path) -> OSError:
    """`error`, which says what file it is about where it did not: a failed write or flush knows only a number."""
    if error.filename is None:
        error.filename = str(where)
    return error
