"""fetch: remote files, part by part, into the work storage.

A part is a sealed file under its final name or it is not there, so an interrupted download goes on with the next
part, parts are fetched by as many workers as there are, and the parts lie wherever the work storage does. What the
server says of the version (ETag, time of change) holds for every part: a file that changes in between is an error.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from pipeline.decisions import content_id
from pipeline.errors import InputError
from pipeline.fetch import PART_BYTES, Input, open_input, open_remote, scheme_of, wrong_checksum
from pipeline.storage import Stores
from pipeline.units import PublishedFile, Record, find_record

_BLOCK = 1 << 20


@dataclass(frozen=True)
class FetchUnit:
    """One part of one remote file."""

    stage: ClassVar[str] = "fetch"
    item: Input
    number: int

    @property
    def id(self) -> str:
        return content_id(self.stage, 1, _identity(self.item), PART_BYTES, self.number)

    @property
    def _begin(self) -> int:
        return self.number * PART_BYTES

    @property
    def size(self) -> int:
        return self._end - self._begin

    @property
    def _end(self) -> int:
        return min(self._begin + PART_BYTES, self.item.bytes) if self.item.ranges else self.item.bytes

    @property
    def about(self) -> str:
        return f"{self.item.key}, part {self.number + 1:,} of {_last(self.item) + 1:,}"

    def run(self, stores: Stores) -> Record:
        """Fetches the part. A server that knows no ranges is asked once for the whole file, which this unit then
        cuts into its parts."""
        files = []
        with open_remote(self.item, self._end) as stream:
            stream.seek(self._begin)
            for number in range(
                self.number, _last(self.item) + 1 if not self.item.ranges else self.number + 1
            ):
                end = min((number + 1) * PART_BYTES, self.item.bytes)
                with stores.work.create(part_name(self.item, number)) as writer:
                    while stream.tell() < end:
                        writer.write(stream.read(min(_BLOCK, end - stream.tell())))
                files.append(PublishedFile.of("work", part_name(self.item, number), writer.written))
        return Record(files, {"input": self.item.key})


@dataclass(frozen=True)
class VerifyUnit:
    """Compares a remote file's hash with what it must be, once it is fetched: the sha256, where it is known; git's, of
    a small file on the hub."""

    stage: ClassVar[str] = "fetch"
    item: Input

    @property
    def id(self) -> str:
        return content_id("verify", 1, _identity(self.item), self.item.sha256)

    @property
    def size(self) -> int:
        return self.item.bytes

    @property
    def about(self) -> str:
        return self.item.key

    def run(self, stores: Stores) -> Record:
        """Raises InputError, and removes the parts, so that the next run fetches them again, where it differs."""
        item = self.item
        digest = hashlib.sha256() if item.sha256 else _git_hash(item.bytes)
        with open_input(item, stores.work) as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
        found = digest.hexdigest()
        if found != (item.sha256 or item.version):
            for name in item.parts:
                stores.work.remove(name)
            if item.sha256:
                raise wrong_checksum(item, found)
            raise InputError(
                f"{item.name}: its hash is {found}; expected {item.version}, as the hub lists it; the same command "
                "fetches it anew"
            )
        return Record([], {"hash": found})


def _git_hash(size: int) -> "hashlib._Hash":
    """What git, and so the hub, names a file of this size by, once its content is added."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def is_fetched(item: Input) -> bool:
    """Whether an input is brought into the work storage before it is read. Objects in buckets are near and read in
    place."""
    return scheme_of(item.uri) in ("http", "https", "hf") and item.bytes > 0


def plan_fetch(item: Input) -> Iterator[FetchUnit]:
    """The units that fetch an input; none for one that is read where it is."""
    if is_fetched(item):
        for number in range(_last(item) + 1 if item.ranges else 1):
            yield FetchUnit(item, number)


def plan_verify(item: Input) -> Iterator[VerifyUnit]:
    """The unit that looks at an input's checksum, which runs after the units of `plan_fetch`. A local file's is
    looked at when the plan is made."""
    scheme = scheme_of(item.uri)
    if (item.sha256 and scheme != "") or (scheme == "hf" and item.bytes):
        yield VerifyUnit(fetched(item))


def fetched(item: Input) -> Input:
    """The input as it is read after its units of `plan_fetch` ran."""
    if not is_fetched(item):
        return item
    return replace(item, parts=tuple(part_name(item, number) for number in range(_last(item) + 1)))


def verify_parts(item: Input, stores: Stores) -> None:
    """Reads the parts of a fetched input once more: what they hold must be what was fetched. DamagedFile, by which the
    part is fetched again, where it is not."""
    for unit in plan_fetch(item):
        record = find_record(unit, stores)
        for file in record.files if record else ():
            stores.work.verify(file.name, file.sha256)


def part_name(item: Input, number: int) -> str:
    return f"fetch/{content_id('file', 1, _identity(item), PART_BYTES)}/{number:05d}.part"


def _last(item: Input) -> int:
    return (item.bytes - 1) // PART_BYTES


def _identity(item: Input) -> tuple[str, str, int]:
    if not item.version:
        raise InputError(f"{item.name}: of no known version")
    # A strong ETag names the content whatever signature the address carries today.
    return item.name if item.version.startswith('"') else item.uri, item.version, item.bytes
