"""plan: the units of the first stage, a pure function of the configuration and the inputs.

The later stages' units follow from what the earlier ones published, just as purely.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.config import LoadedConfig, SourceConfig
from pipeline.fetch import Input, with_version
from pipeline.ledger import Ledger
from pipeline.sources.formats import is_small_file
from pipeline.stages.fetch import FetchUnit, VerifyUnit, fetched, plan_fetch, plan_verify
from pipeline.stages.split import Chunk, SplitUnit, within_limit
from pipeline.units import Record

GROUP_FILES = 1000
"""Small files a unit reads at most: a unit travels to its worker with their names."""

LIMITED_BYTES = 64_000_000
"""Of small files a unit reads at most, where it stops after some documents."""


@dataclass(frozen=True)
class SourcePlan:
    """One source, and its inputs with their versions."""

    source: SourceConfig
    inputs: tuple[Input, ...]
    chunk_bytes: int
    limit: int | None

    @property
    def fetch_units(self) -> Iterator[FetchUnit]:
        """The units that bring remote files into the work storage: all but for a `limit`, for which their beginnings
        are read where they are."""
        if self.limit is None:
            for item in self.inputs:
                yield from plan_fetch(item)

    @property
    def check_units(self) -> Iterator[VerifyUnit]:
        """The units that then compare fetched files with their checksums."""
        if self.limit is None:
            for item in self.inputs:
                yield from plan_verify(item)

    @property
    def units(self) -> Iterator[SplitUnit]:
        """The units that read them."""
        inputs = self.inputs if self.limit is not None else tuple(map(fetched, self.inputs))
        # With a limit, which documents a unit comes to read must not depend on chunks: what it could not is counted.
        size = self.chunk_bytes if self.limit is None else LIMITED_BYTES
        for group in _grouped(inputs, size):
            yield SplitUnit(self.source.name, self.source.reader, group, self.chunk_bytes, self.limit)


@dataclass(frozen=True)
class Plan:
    """What will be read, in which version; the later stages' units follow from it."""

    sources: tuple[SourcePlan, ...]
    evaluation: tuple[Input, ...]
    """The evaluation files that the corpus must not hold."""


def make_plan(loaded: LoadedConfig, limit: int | None) -> Plan:
    """Looks at the inputs as they are now. InputError where one has gone since the configuration was read."""
    chunk_bytes = loaded.config.chunk_bytes
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
        sources = tuple(
            SourcePlan(source, tuple(pool.map(with_version, inputs)), chunk_bytes, limit)
            for source, inputs in zip(loaded.config.sources, loaded.inputs, strict=True)
        )
        return Plan(sources, tuple(pool.map(with_version, loaded.evaluation)))


def split_records(
    plan: SourcePlan, limit: int | None, ledger: Ledger
) -> Iterator[tuple[Record, list[tuple[Chunk, int]]]]:
    """The records of split that a source's documents are taken from, each with its chunks and how many documents
    of each to take."""
    own = (record for record in ledger.records("split") if record.facts["source"] == plan.source.name)
    return within_limit(own, limit)


def _grouped(inputs: tuple[Input, ...], size: int) -> Iterator[tuple[Input, ...]]:
    """Each archive and each file of rows by itself, small text files together up to `size` bytes."""
    group: list[Input] = []
    gathered = 0
    for item in inputs:
        small = is_small_file(item.key)
        if group and (not small or gathered + item.bytes > size or len(group) == GROUP_FILES):
            yield tuple(group)
            group, gathered = [], 0
        if small:
            group.append(item)
            gathered += item.bytes
        else:
            yield (item,)
    if group:
        yield tuple(group)
