"""A storage in a bucket of an object store, s3:// or gs://.

An object appears whole or not at all; what else a build needs rests on conditional writes, which S3 has had since
November 2024, Google Cloud Storage always, and MinIO, Ceph, R2 and SeaweedFS in their current versions.
"""

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import GCSStore, S3Store

from pipeline.errors import BuildError
from pipeline.shards import WrittenFile
from pipeline.storage.cache import DamagedObject, cached
from pipeline.storage.connection import connect, repeated
from pipeline.storage.interface import LOCK, Lock, Storage, Writer, changed, checked_name
from pipeline.storage.lease import leased

SINGLE = 32 << 20
"""Bytes up to which an object is written by one conditional request. Larger ones are uploaded in parts, which is
also what bounds a writer's memory; what they are written to before lies on the local disk."""
PART = 8 << 20
"""Bytes of a part, at least: a store takes 10,000 of them."""
UPLOADS = 4
"""Parts on their way at one time."""
STREAMED = 8 << 20
"""Bytes read at one time from an object that is read to its end."""
TAIL = 64 << 10
"""Bytes at the end of an Arrow file that are read at once: its footer and, mostly, nothing else."""
_ATTEMPTS = 5
_SHA256 = "sha256"
"""The object's metadata that holds the checksum of its content."""


@dataclass(frozen=True)
class _Version:
    """An object as it was seen."""

    size: int
    sha256: str | None
    condition: Any
    """Makes a write one that only replaces this version: its ETag, its generation."""
    etag: str | None


@dataclass(frozen=True)
class ObjectStorage(Storage):
    """The objects below a prefix of a bucket. Holds no connection and no credentials: each process makes its own."""

    scheme: str
    bucket: str
    prefix: str
    """Without slashes at its ends; "" is the whole bucket."""

    @property
    def uri(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")

    def under(self, folder: str) -> "ObjectStorage":
        return ObjectStorage(self.scheme, self.bucket, self._key(folder))

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{checked_name(name)}" if self.prefix else checked_name(name)

    @property
    def _store(self) -> S3Store | GCSStore:
        return connect(self.scheme, self.bucket)

    def size(self, name: str) -> int | None:
        version = self._version(name)
        return version.size if version else None

    def read(self, name: str) -> bytes:
        key, store = self._key(name), self._store

        def get() -> tuple[bytes, str | None]:
            answer = obstore.get(store, key)
            return bytes(answer.bytes()), answer.attributes.get(_SHA256)

        content, expected = repeated(self.where(name), get)
        if expected and (found := hashlib.sha256(content).hexdigest()) != expected:
            raise changed(self.where(name), found, expected)
        return content

    def list(self, folder: str) -> list[str]:
        prefix = self._key(folder) if folder else self.prefix
        store = self._store
        where = f"{self.uri}/{folder}"
        found = repeated(where, lambda: obstore.list_with_delimiter(store, prefix or None)["objects"])
        names = (meta["path"].rsplit("/", 1)[-1] for meta in found)
        return sorted(f"{folder}/{name}" if folder else name for name in names if name != LOCK)

    def is_empty(self) -> bool:
        def look() -> bool:
            return not any(path.rsplit("/", 1)[-1] != LOCK for paths in self._below(100) for path in paths)

        return repeated(self.uri, look)

    def _below(self, page: int) -> Iterator[Sequence[str]]:
        """The keys of everything in this storage, at any depth."""
        for metas in obstore.list(self._store, self.prefix or None, chunk_size=page):
            yield [meta["path"] for meta in metas]

    def publish(self, name: str, content: bytes | pa.Buffer) -> WrittenFile:
        """Writes an object, whole or not at all.

        Two workers on one unit publish the same bytes: the first does, the second finds them there and is content.
        Other bytes under that name, of an unfinished build of other inputs, are replaced; two writers of different
        bytes at one time are two builds at one place, and one of them gets a BuildError. (Objects in parts are the
        exception to the last: the stores' conditions do not reach them, and the last writer wins.)
        """
        view = memoryview(content).cast("B")
        written = WrittenFile(len(view), hashlib.sha256(view).hexdigest())
        if len(view) <= SINGLE:
            self._put(name, bytes(view), written)
        else:
            size = _part_size(len(view))
            starts = range(0, len(view), size)
            self._put_parts(name, lambda: (bytes(view[start : start + size]) for start in starts), written)
        return written

    @contextmanager
    def create(self, name: str) -> Iterator[Writer]:
        """As `publish`. What is written goes to a nameless local file first (in TMPDIR; in memory as long as it is
        small), since the object carries its checksum from its beginning."""
        where = self.where(name)
        with tempfile.SpooledTemporaryFile(max_size=SINGLE) as spool:
            writer = Writer(cast(BinaryIO, spool), f"{tempfile.gettempdir()}, before its upload to {where}")
            yield writer
            written = writer.so_far

            def parts() -> Iterator[bytes]:
                spool.seek(0)
                return iter(lambda: spool.read(_part_size(written.bytes)), b"")

            if written.bytes <= SINGLE:
                self._put(name, b"".join(parts()), written)
            else:
                self._put_parts(name, parts, written)
        writer.mark_published()

    def _put(self, name: str, content: bytes, written: WrittenFile) -> None:
        where, key, store = self.where(name), self._key(name), self._store
        attributes = {_SHA256: written.sha256}
        mode: Any = "create"

        def put() -> None:
            obstore.put(store, key, content, attributes=attributes, mode=mode, use_multipart=False)

        for _ in range(_ATTEMPTS):
            try:
                repeated(where, put)
                return
            except (AlreadyExistsError, PreconditionError, FileNotFoundError):
                # Somebody wrote or removed it since it was looked at; or this did, and the answer was lost.
                there = self._version(name)
                if there and there.sha256 == written.sha256 and there.size == written.bytes:
                    return
                mode = there.condition if there else "create"
        raise BuildError(f"{where}: somebody else is writing other content here; is a second build running?")

    def _put_parts(self, name: str, parts: Callable[[], Iterable[bytes]], written: WrittenFile) -> None:
        key, store = self._key(name), self._store

        def put() -> None:
            obstore.put(
                store,
                key,
                parts(),
                attributes={_SHA256: written.sha256},
                use_multipart=True,
                chunk_size=_part_size(written.bytes),
                max_concurrency=UPLOADS,
            )

        if self.holds(name, written.bytes, written.sha256):
            return
        try:
            repeated(self.where(name), put)
        except FileNotFoundError:  # there is no such upload any more: it ended, and the answer was lost
            if not self.holds(name, written.bytes, written.sha256):
                raise

    def _version(self, name: str) -> _Version | None:
        key, store = self._key(name), self._store
        try:
            answer = repeated(self.where(name), lambda: obstore.get(store, key, options={"head": True}))
        except FileNotFoundError:
            return None
        meta = answer.meta
        condition = {key: meta[key] for key in ("e_tag", "version") if meta[key] is not None}
        return _Version(meta["size"], answer.attributes.get(_SHA256), condition, meta["e_tag"])

    def _existing(self, name: str) -> _Version:
        version = self._version(name)
        if version is None:
            raise FileNotFoundError(2, "no such object", self.where(name))
        return version

    def open(self, name: str) -> BinaryIO:
        version = self._existing(name)
        return cast(BinaryIO, io.BufferedReader(ObjectFile(self, name, version), buffer_size=STREAMED))

    def open_arrow_ranged(self, name: str, sha256: str) -> pa.ipc.RecordBatchFileReader:
        """The checksum is compared with what the store keeps beside the object; its content is not read for it."""
        version = self._existing(name)
        if version.sha256 not in (sha256, None):
            self.remove(name)
            raise changed(self.where(name), str(version.sha256), sha256)
        return pa.ipc.open_file(pa.PythonFile(ObjectFile(self, name, version, tail=TAIL), mode="r"))

    def local_copy(self, name: str, sha256: str, *, remove_damaged: bool = True) -> Path:
        size = self._existing(name).size

        def read() -> Path:
            return cached(sha256, size, lambda: self._stream(name))

        return self._undamaged(name, sha256, read, remove_damaged)

    def verify(self, name: str, sha256: str) -> None:
        def look() -> Path:
            digest = hashlib.sha256()
            for chunk in self._stream(name):
                digest.update(chunk)
            if digest.hexdigest() != sha256:
                raise DamagedObject(digest.hexdigest())
            return Path()

        self._undamaged(name, sha256, look)

    def _undamaged(
        self, name: str, sha256: str, read: Callable[[], Path], remove_damaged: bool = True
    ) -> Path:
        """Reads a second time before it removes an object: the first damage may have been the network's."""
        try:
            return read()
        except DamagedObject:
            try:
                return read()
            except DamagedObject as error:
                if remove_damaged:
                    self.remove(name)
                raise changed(self.where(name), error.found, sha256, remove_damaged) from None

    def _stream(self, name: str) -> Iterator[bytes]:
        """All of an object, by ranges: one request for it all would be cut off after the patience, however it went.
        BuildError where it ends early."""
        file = ObjectFile(self, name, self._existing(name))
        while chunk := file.read(STREAMED):
            yield chunk

    def holds(self, name: str, size: int, sha256: str) -> bool:
        # An object that was copied here by other tools may have lost its metadata. Readers verify its content.
        version = self._version(name)
        return version is not None and version.size == size and version.sha256 in (sha256, None)

    def remove(self, name: str) -> None:
        self._remove(self._key(name))

    def _remove(self, keys: str | Sequence[str]) -> None:
        store = self._store
        with suppress(FileNotFoundError):  # only some stores say so
            repeated(self.uri, lambda: obstore.delete(store, keys))

    def remove_leftovers(self) -> None:
        """Nothing to do: parts of uploads that were killed are no objects. The bucket's lifecycle rule removes them
        (AbortIncompleteMultipartUpload), which every bucket that large files are written to should have."""

    def destroy(self) -> None:
        """Removes the objects below the prefix, all but the lock, which its holder removes at its end."""
        if not self.prefix:
            raise BuildError(f"{self.uri}: a whole bucket will not be removed; expected a folder in it")
        lock = self._key(LOCK)

        def some() -> list[str]:
            return next(([key for key in page if key != lock] for page in self._below(1000)), [])

        # Listed again until nothing is left, since removing while listing may pass over pages.
        while keys := repeated(self.uri, some):
            for key in keys if self.scheme == "gs" else ():
                self._remove(key)  # one by one, so that one that is gone already stops nothing
            if self.scheme == "s3":
                self._remove(keys)

    def locked(self) -> AbstractContextManager[Lock]:
        """By a lease, an object that the holder renews: see `pipeline.storage.lease`."""
        return leased(self.scheme, self.bucket, self._key(LOCK), self.uri)


class ObjectFile(io.RawIOBase):
    """Reads an object by ranges: a request for each read, all of the version that was there at its opening."""

    def __init__(self, storage: ObjectStorage, name: str, version: _Version, tail: int = 0) -> None:
        self._storage = storage
        self._name = name
        self._version = version
        self._position = 0
        self._tail_start = version.size - min(tail, version.size)
        self._tail: bytes | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._version.size}[whence]
        if base + offset < 0:
            raise ValueError(f"{self._storage.where(self._name)}: cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def size(self) -> int:
        return self._version.size

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def read(self, size: int | None = -1) -> bytes:
        """`size` bytes, fewer only at the end of the object."""
        left = max(0, self._version.size - self._position)
        length = left if size is None or size < 0 else min(size, left)
        if length == 0:
            return b""
        start = self._position
        self._position += length
        if start >= self._tail_start:
            if self._tail is None:
                self._tail = self._range(self._tail_start, self._version.size)
            return self._tail[start - self._tail_start :][:length]
        return self._range(start, start + length)

    def _range(self, start: int, end: int) -> bytes:
        storage, where = self._storage, self._storage.where(self._name)
        store = storage._store
        options: Any = {"range": (start, end), "if_match": self._version.etag}
        try:
            content = repeated(
                where, lambda: bytes(obstore.get(store, storage._key(self._name), options=options).bytes())
            )
        except PreconditionError as error:
            raise BuildError(f"{where}: was replaced while it was being read") from error
        if len(content) != end - start:
            raise BuildError(f"{where}: {len(content):,} bytes came, {end - start:,} were asked for")
        return content


def _part_size(size: int) -> int:
    """Bytes of each part of an upload of `size`."""
    return max(PART, -(-size // 9_000))
