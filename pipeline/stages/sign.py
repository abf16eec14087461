"""sign: the MinHash keys of the documents of one tokens file, for near-duplicates.

An Arrow file with a row for each row of the tokens file and a column for each band. It depends on token ids alone, so
that changing what counts as a near-duplicate tokenises nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from pipeline.decisions import content_id
from pipeline.deduplicate import NearDuplicates, signatures
from pipeline.stages.select.duplicates import band_column
from pipeline.stages.tokens import TokensFile
from pipeline.storage import Stores
from pipeline.units import VERSIONS, PublishedFile, Record


@dataclass(frozen=True)
class SignUnit:
    """One tokens file."""

    stage: ClassVar[str] = "sign"
    tokens: PublishedFile
    settings: NearDuplicates

    @property
    def id(self) -> str:
        # The threshold is looked at when pairs are compared, not here.
        settings = self.settings.model_dump(mode="json", exclude={"threshold"})
        return content_id(self.stage, 1, VERSIONS, self.tokens.sha256, settings)

    @property
    def size(self) -> int:
        return self.tokens.bytes

    @property
    def about(self) -> str:
        return self.tokens.name

    def run(self, stores: Stores) -> Record:
        file = TokensFile(stores.work.open_arrow(self.tokens.name, self.tokens.sha256))
        keys = [signatures(rows.values, rows.offsets, self.settings) for rows in file.batches()]
        bands = np.concatenate([np.zeros((0, self.settings.bands), np.uint64), *keys])
        columns = {band_column(band): pa.array(bands[:, band]) for band in range(self.settings.bands)}
        name = f"{self.stage}/{self.id}.arrow"
        batch = pa.record_batch(list(columns.values()), names=list(columns))
        return Record([PublishedFile.of("work", name, stores.work.publish_arrow(name, batch))])
