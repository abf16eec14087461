"""evaluation: the index of the evaluation data that a corpus must not hold; one unit, before encode.

An Arrow file with one column, `hash`: the sorted hashes of the n-grams, which the encode units map into memory.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import pyarrow as pa

from pipeline.decisions import content_id
from pipeline.decontaminate import Decontaminate, Index, build_index
from pipeline.fetch import Input
from pipeline.storage import Storage, Stores
from pipeline.units import VERSIONS, PublishedFile, Record


@dataclass(frozen=True)
class EvaluationUnit:
    """All evaluation files."""

    stage: ClassVar[str] = "evaluation"
    inputs: tuple[Input, ...]
    settings: Decontaminate

    @property
    def id(self) -> str:
        versions = [(item.key, item.version, item.bytes) for item in self.inputs]
        settings = self.settings.model_dump(mode="json", exclude={"paths", "maximum_hits", "maximum_share"})
        return content_id(self.stage, 1, VERSIONS, versions, settings)

    @property
    def size(self) -> int:
        return sum(item.bytes for item in self.inputs)

    @property
    def about(self) -> str:
        return f"{len(self.inputs):,} evaluation files"

    def run(self, stores: Stores) -> Record:
        index = build_index(self.inputs, self.settings)
        name = f"{self.stage}/{self.id}.arrow"
        written = stores.work.publish_arrow(name, pa.record_batch([pa.array(index.hashes)], names=["hash"]))
        facts = {"ngrams": index.ngrams, "texts": index.texts, "left_out": index.left_out}
        return Record([PublishedFile.of("work", name, written)], facts)


@dataclass(frozen=True)
class Evaluation:
    """A published index, and what holding evaluation data means; travels with the units that look."""

    file: PublishedFile
    ngrams: tuple[int, ...]
    settings: Decontaminate

    @classmethod
    def of(cls, record: Record, settings: Decontaminate) -> "Evaluation":
        return cls(record.files[0], tuple(record.facts["ngrams"]), settings)

    @property
    def identity(self) -> tuple[object, ...]:
        """All that its decisions about a document depend on."""
        settings = self.settings
        return (self.file.sha256, self.ngrams, settings.ngram, settings.maximum_hits, settings.maximum_share)


@lru_cache(maxsize=1)
def open_index(evaluation: Evaluation, work: Storage) -> Index:
    """The index, in a memory map that a process opens once."""
    batch = work.open_arrow(evaluation.file.name, evaluation.file.sha256).get_batch(0)
    return Index(batch.column("hash").to_numpy(), evaluation.ngrams)
