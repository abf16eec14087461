"""Units of work: each reads sealed inputs and publishes sealed files, then a record that says so.

The delivery guarantee rests on three things. A unit's id names everything its result depends on, so a result is
found again, or known to be another's, by its name. Files appear whole or not at all, and the record appears
after them, so an interrupted unit has no record and is simply run again. And a unit is a pure function, so
running it twice, here and there or at the same time, publishes the same bytes.
"""

import time
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa
import tokenizers

from pipeline.errors import BuildError, DamagedFile
from pipeline.sealed_json import read_sealed_json, seal_json
from pipeline.shards import WrittenFile
from pipeline.storage import Stores

VERSIONS = {
    "numpy": np.__version__,
    "pyarrow": pa.__version__,
    "tokenizers": tokenizers.__version__,
    "unicode": unicodedata.unidata_version,
}
"""The libraries, and the tables of characters, that decide bytes. They are part of every unit's id and of the
manifest."""


@dataclass(frozen=True)
class PublishedFile:
    """A file of a unit's result."""

    store: Literal["work", "output"]
    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, store: Literal["work", "output"], name: str, written: WrittenFile) -> "PublishedFile":
        return cls(store, name, written.bytes, written.sha256)


@dataclass(frozen=True)
class Record:
    """What a unit did: the files it published, and its counts and other facts, small enough to return to the
    driver. `notes` (examples, what was reused, where the time went) and `seconds` of processor time are for the eyes
    only: they decide nothing, and may differ between two runs of a unit."""

    files: list[PublishedFile]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class Unit(Protocol):
    """What a runner needs to know of a unit."""

    stage: ClassVar[str]

    @property
    def id(self) -> str: ...

    @property
    def size(self) -> int:
        """Bytes it will read, roughly: the largest are started first."""
        ...

    @property
    def about(self) -> str:
        """What it reads, for people."""
        ...

    def run(self, stores: Stores) -> Record: ...


def find_record(unit: Unit, stores: Stores) -> Record | None:
    """The record of a unit that ran before and whose files are all there; None where it has to run. The files'
    content is checked by whoever reads them."""
    try:
        record = read_record(stores.work.read(record_name(unit)))
    except (FileNotFoundError, DamagedFile, ValueError):  # damaged, if there is one: it was published whole
        return None
    stored = (getattr(stores, file.store).holds(file.name, file.bytes, file.sha256) for file in record.files)
    return record if all(stored) else None


def execute(unit: Unit, stores: Stores) -> Record:
    """Runs a unit and publishes its record. BuildError where an input, or the disk, is at fault."""
    started = time.process_time()
    try:
        result = unit.run(stores)
        seconds = round(time.process_time() - started, 3)
        record = Record(result.files, result.facts, result.notes, seconds)
        stores.work.publish(record_name(unit), seal_json(asdict(record)))
    except FileNotFoundError as error:
        where = str(error.filename)
        if not where.startswith((stores.work.uri, stores.output.uri)):
            raise BuildError(f"{where}: {error.strerror or error} (in stage {unit.stage})") from error
        # Another unit may have found it damaged and removed it; whoever did, what made it can make it again.
        raise DamagedFile(
            where, f"is missing (in stage {unit.stage}). The same command again makes it anew"
        ) from error
    except OSError as error:
        where = error.filename or stores.work.uri
        raise BuildError(f"{where}: {error.strerror or error} (in stage {unit.stage})") from error
    return record


def record_name(unit: Unit) -> str:
    """Where in the work storage the record of a unit is."""
    return f"{unit.stage}/{unit.id}.json"


def read_record(content: bytes) -> Record:
    """A published record from its file's content. ValueError where it is not what was published."""
    return record_of(read_sealed_json(content))


def record_of(data: Mapping[str, Any]) -> Record:
    """A record from what `asdict` makes of it."""
    files = [PublishedFile(**file) for file in data["files"]]
    return Record(files, data["facts"], data["notes"], data["seconds"])
