"""The driver's memory for a plan of few units and of many: real units and records, that nobody runs."""

import contextlib
import hashlib
import io
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.benchmark.methods import write_config
from pipeline.benchmark.tree import peak_bytes
from pipeline.config import load_config
from pipeline.stages.encode import EncodeUnit
from pipeline.stages.run import Stages
from pipeline.stages.select.catalogue import write_catalogue
from pipeline.stages.split import Chunk
from pipeline.storage import Stores, open_storage
from pipeline.units import PublishedFile, Record, Unit

DOCUMENTS = 10_000
"""In a chunk of 64 MB, of some 6 KB each."""


class Pretended:
    """A runner that says a unit has run."""

    def run(self, units: Iterator[Unit], stores: Stores) -> Iterator[tuple[Unit, Record]]:
        for unit in units:
            names = (f"encode/{unit.id}.{kind}.arrow" for kind in ("tokens", "table"))
            files = [PublishedFile("work", name, 25_000_000, _sha256(name)) for name in names]
            kept = {"documents": DOCUMENTS, "tokens": 14_000_000}
            facts = {"source": "text0", "read": DOCUMENTS, "dropped": {}, "kept": kept}
            yield unit, Record(files, facts, {"lengths": [1000] * 16}, 1.0)

    def close(self) -> None:
        pass


def measure_driver(folder: Path, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Peak memory, and CPU seconds, of a driver that plans, follows and catalogues so many encode units, each in a
    process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as alone:
        return [alone.submit(_drive, folder, count).result() for count in counts]


def _drive(folder: Path, count: int) -> dict[str, Any]:
    loaded = load_config(write_config(folder, [folder / "first.jsonl"]))
    chunks = (Chunk(f"split/{n}.arrow", _sha256(str(n)), DOCUMENTS, 64_000_000) for n in range(count))
    [source] = loaded.config.sources
    units = (EncodeUnit.of(c, c.documents, source, loaded.config, None, loaded.tokenizer) for c in chunks)
    with tempfile.TemporaryDirectory(dir=folder) as work, contextlib.redirect_stdout(io.StringIO()):
        storage = open_storage(work)
        stages = Stages(Stores(work=storage, output=storage), Pretended())
        start = time.process_time()
        stages.run("encode", units)
        catalogue = write_catalogue(stages.ledger, {source.name: 0}, False, stages.stores)
        stages.close()
    assert catalogue.documents == count * DOCUMENTS
    seconds = time.process_time() - start
    return {"units": count, "seconds": seconds, "peak_bytes": peak_bytes(os.getpid())}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
