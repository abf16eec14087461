"""plan: the units of the first stage, a pure function of the configuration and the inputs.

The later stages' units follow from what the earlier ones published, just as purely.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.config import LoadedConfig, SourceConfig
from pipeline.fetch import Input, with_version
from pipeline.sources.formats import is_small_file
from pipeline.stages.split import SplitUnit


@dataclass(frozen=True)
class SourcePlan:
    """One source: its inputs with their versions, and the units that read them."""

    source: SourceConfig
    inputs: tuple[Input, ...]
    units: tuple[SplitUnit, ...]


def make_plan(loaded: LoadedConfig, limit: int | None) -> list[SourcePlan]:
    """Looks at the inputs as they are now. InputError where one has gone since the configuration was read."""
    plans = []
    for source, inputs in zip(loaded.config.sources, loaded.inputs, strict=True):
        with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
            versioned = tuple(pool.map(with_version, inputs))
        units = tuple(
            SplitUnit(source.name, source.reader, group, loaded.config.chunk_bytes, limit)
            for group in _grouped(versioned, loaded.config.chunk_bytes)
        )
        plans.append(SourcePlan(source, versioned, units))
    return plans


def _grouped(inputs: tuple[Input, ...], size: int) -> Iterator[tuple[Input, ...]]:
    """Each archive and each file of rows by itself, small text files together up to `size` bytes."""
    group: list[Input] = []
    for item in inputs:
        small = is_small_file(item.key)
        if group and (not small or sum(member.bytes for member in group) + item.bytes > size):
            yield tuple(group)
            group = []
        if small:
            group.append(item)
        else:
            yield (item,)
    if group:
        yield tuple(group)
