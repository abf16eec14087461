"""What the paper's corpus and its 65,000 updates would cost on more machines: the tables of SCALING.md.

    python -m cluster.scaling

The corpus is simulated: the units of work of each stage, with the times that measured rates give them, are handed to
workers as the builder hands them out. Training is arithmetic: FLOPs over an assumed part of a GPU's peak, and gradients
over the network. Nothing here has run on a GPU or on more than two CPU cores.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp
from typing import Any

from pipeline.benchmark.cost import PAPER
from pipeline.config import Config
from pipeline.deduplicate import NearDuplicates
from pipeline.estimate import BYTES_A_TOKEN, ENCODE, READ, TOKENISE
from pipeline.stages.select.ranges import DOCUMENTS, ROW_BYTES
from pipeline.stages.tokens import BATCHES
from trainer.engine.estimate import MFU, parameter_count
from trainer.engine.flops import peak_flops, step_flops
from trainer.model.longformer import EncoderConfig

CORPUS_TOKENS = 6.5e9
SEQUENCE = 4096
FILES = {"Books": 1, "Wikipedia": 41, "RealNews": 1, "Stories": 64}
"""Archives and files that one unit each reads. RealNews and the books are one archive; Wikipedia's number is the hub's,
Stories' is assumed."""
ARTICLES = {"Books": 17_868, "Wikipedia": 6.4e6, "RealNews": 31e6 * 0.95 / 3, "Stories": 0.95e6 / 3}
"""Documents that are tokenised. RealNews and Stories: assumed, from their bytes and mean lengths."""
KEPT = 0.5e9 / 95.9e3 + 2.1e9 / 506 + 1.8e9 / 1.7e3 + 2.1e9 / 7.8e3
"""Documents of the corpus, from the paper's tokens and mean lengths (appendix C)."""
START = 2.0
"""CPU seconds of a worker's first unit, most of them trying the tokenizer's engine: 1 to 2.5 measured."""
HASH = 1726.0
"""MB per CPU second of sha256, measured: what reading a sealed file for the first time costs a process."""
MAPPED = 3373.0
"""MB per CPU second read from a memory map, measured."""
A_SHARE = 1.5 / BATCHES
"""Of a tokens file, what a reader of few of its documents reads: one record batch, or two."""
REQUESTS = 3
"""Of a reader of few documents of a tokens file in a bucket: whether it is there, its end, a record batch."""
PAIR_BYTES = 120
"""Of memory a pair of near-duplicates, in the one process that joins them (pipeline/README.md)."""
WORKERS = (1, 8, 64, 1000)
COLUMNS = [f"{workers:,} CPU" + "s" * (workers > 1) for workers in WORKERS]


@dataclass(frozen=True)
class Stage:
    """Units of work of one stage, in CPU seconds each; `first` is what each worker pays once before its first."""

    name: str
    units: Sequence[float]
    first: float = 0.0


def makespan(stage: Stage, workers: int) -> float:
    """Seconds until the last unit ends: each worker that is free takes the largest unit that is left."""
    free = [stage.first] * min(workers, len(stage.units))
    for seconds in sorted(stage.units, reverse=True):
        heapq.heappush(free, heapq.heappop(free) + seconds)
    return max(free, default=0.0)


def corpus_stages(engine: str) -> list[Stage]:
    """The stages of a build of the paper's corpus from archives that are there already."""
    sizes = Config.model_fields
    chunk = sizes["chunk_bytes"].default / 1e6
    split, encode = [], []
    for source in PAPER:
        split += [source.raw * 1e3 / FILES[source.name] / READ] * FILES[source.name]
        seconds = source.text * 1e3 / ENCODE + source.tokenised * 1e3 / TOKENISE[engine]
        chunks = ceil(source.text * 1e3 / chunk)
        encode += [seconds / chunks] * chunks
    # A unit of select looks at a column of all tables, which each worker hashes once.
    documents = sum(ARTICLES.values()) / 1e6
    select = [8 * documents / MAPPED] * (2 * ranges(documents * 1e6))
    # A unit of pack reads its documents from every tokens file, which each worker hashes once; it writes and hashes a
    # shard.
    shard = CORPUS_TOKENS * 2 / 1e6 / shards()
    pack = tokens_bytes() / 1e6 * A_SHARE / MAPPED + 2 * shard / HASH
    return [
        Stage("split", split),
        Stage("encode", encode, START),
        Stage("select", select, ROW_BYTES * documents / HASH),
        Stage("pack", [pack] * shards(), tokens_bytes() / 1e6 / HASH),
        Stage("seal", [shard / HASH] * shards()),
    ]


def ranges(documents: float) -> int:
    """Units in which select decides on so many documents."""
    return ceil(documents / DOCUMENTS)


def shards() -> int:
    """Of the paper's corpus; also the units of pack."""
    return ceil(CORPUS_TOKENS / (SEQUENCE - 2) / Config.model_fields["shard_sequences"].default)


def touched(files: float, documents: float) -> float:
    """Of so many files, those that hold at least one of so many documents, which lie in them at random."""
    return files * (1 - exp(-documents / files))


def tokens_bytes() -> float:
    """Of all tokens files: what is tokenised, before budgets and lengths are applied, 2 bytes a token."""
    return sum(source.tokenised for source in PAPER) * 1e9 / BYTES_A_TOKEN * 2


def corpus_table() -> str:
    """Wall minutes by workers and engine, with the stage that takes longest."""
    rows = []
    for engine in ("fastokens", "tiktoken", "tokenizers"):
        stages = corpus_stages(engine)
        row = [engine]
        for workers in WORKERS:
            spans = {stage.name: makespan(stage, workers) for stage in stages}
            longest = max(spans, key=lambda name: spans[name])
            row.append(f"{sum(spans.values()) / 60:,.0f} ({longest} {spans[longest] / 60:,.0f})")
        rows.append(row)
    return table(["wall minutes, of them the longest stage", *COLUMNS], rows)


def parts_table() -> str:
    """As `corpus_table` with fastokens, RealNews' archive cut into more files beforehand."""
    rows = []
    for files in (1, 16, 128):
        stages = corpus_stages("fastokens")
        raw = next(source.raw for source in PAPER if source.name == "RealNews") * 1e3 / READ
        others = [seconds for seconds in stages[0].units if seconds != raw]
        stages[0] = Stage("split", [*others, *[raw / files] * files])
        row = [f"{files}"]
        for workers in WORKERS:
            row.append(f"{sum(makespan(stage, workers) for stage in stages) / 60:,.1f}")
        rows.append(row)
    return table(["RealNews as so many files: wall minutes", *COLUMNS], rows)


MODELS = {
    "base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}
GPUS = {"A100": "NVIDIA A100-SXM4-80GB", "H100": "NVIDIA H100 80GB HBM3"}
BATCH, UPDATES, WINDOW, PLACES = 64, 65_000, 512, 614
A_MACHINE = 8
"""GPUs that NVLink joins."""
WITHIN = 200e9
"""Bytes a second a GPU sends to its neighbours within a machine: assumed, two thirds of the A100's 300."""
BETWEEN = {"100 Gb/s": 12.5e9, "400 Gb/s": 50e9}
"""Bytes a second of a machine's network."""
MEASURED_STEP = 5.6
"""CPU seconds of a step of 2 layers × 768, one sequence, one thread (CHANGELOG.md): the rate for CPUs."""


def model(name: str, layers: int | None = None) -> EncoderConfig:
    """The paper's model of this size, or one of as many layers."""
    sizes: dict[str, Any] = MODELS[name] | ({"num_hidden_layers": layers} if layers else {})
    return EncoderConfig(
        architecture="longformer",
        vocab_size=50265,
        max_position_embeddings=SEQUENCE + 2,
        attention_window=[WINDOW] * sizes["num_hidden_layers"],
        **sizes,
    )


def rounds(processes: int, micro_batch: int) -> int:
    """Micro-batches that the busiest process computes for an update."""
    return ceil(BATCH // micro_batch / processes)


def gradient_seconds(parameters: int, gpus: int, between: float) -> float:
    """All-reduce of fp32 gradients, nothing of it hidden behind the backward pass. In a ring each byte leaves a member
    twice, less its own share; of a machine with several GPUs it leaves once for all of them."""
    machines = ceil(gpus / A_MACHINE)
    inner = min(gpus, A_MACHINE)
    within = 2 * (inner - 1) / inner * 4 * parameters / WITHIN
    return within + 2 * (machines - 1) / machines * 4 * parameters / between


def update_seconds(name: str, gpu: str, gpus: int, micro_batch: int, between: float) -> tuple[float, float]:
    """Seconds of an update that are computing, and that are exchanging gradients."""
    config = model(name)
    peak = peak_flops(GPUS[gpu], "bf16")
    assert peak is not None
    flops = step_flops(config, SEQUENCE, PLACES, micro_batch) * rounds(gpus, micro_batch)
    return flops / (peak * MFU), gradient_seconds(parameter_count(config), gpus, between)


def training_table() -> str:
    """Hours of 65,000 updates; with 64 GPUs one sequence each, which must be chosen before the run begins."""
    rows = []
    for name in MODELS:
        for gpu in GPUS:
            for gpus, micro_batch in ((1, 4), (8, 4), (64, 4), (64, 1)):
                computing, exchange = update_seconds(name, gpu, gpus, micro_batch, BETWEEN["100 Gb/s"])
                faster = update_seconds(name, gpu, gpus, micro_batch, BETWEEN["400 Gb/s"])
                hours = (computing + exchange) * UPDATES / 3600
                busy = min(gpus, BATCH // micro_batch)
                rows.append(
                    [
                        f"{name}, {gpus} × {gpu}",
                        f"{micro_batch}",
                        f"{busy}",
                        f"{1e3 * computing:,.0f}",
                        f"{1e3 * exchange:,.0f}",
                        f"{hours:,.1f}",
                        f"{sum(faster) * UPDATES / 3600:,.1f}",
                        f"{hours * gpus:,.0f}",
                    ]
                )
    head = [
        "",
        "micro-batch",
        "GPUs busy",
        "ms computing",
        "ms exchanging",
        "hours",
        "at 400 Gb/s",
        "GPU hours",
    ]
    return table(head, rows)


def cpu_table() -> str:
    """65,000 updates on CPUs, from the rate of the measured step."""
    rate = step_flops(model("base", 2), SEQUENCE, PLACES) / MEASURED_STEP
    rows = []
    for name in MODELS:
        config = model(name)
        seconds = step_flops(config, SEQUENCE, PLACES) / rate
        exchange = gradient_seconds(parameter_count(config), 8 * 32, BETWEEN["100 Gb/s"])
        for processes, threads in ((1, 1), (64, 1), (64, 16)):
            update = seconds * rounds(processes, 1) / threads + (exchange if processes > 1 else 0)
            shape = [f"{name}, {processes} × {threads}", f"{processes * threads:,}"]
            rows.append([*shape, f"{update:,.1f}", f"{update * UPDATES / 86400:,.1f}"])
    return table(["processes × threads", "CPUs", "seconds an update", "days"], rows)


def storage_table() -> str:
    """Bytes that a run keeps and moves."""
    rows = []
    for name in MODELS:
        parameters = parameter_count(model(name))
        checkpoint = 3 * 4 * parameters
        rows.append(
            [
                name,
                f"{parameters / 1e6:,.0f} M",
                f"{4 * parameters / 1e9:.2f}",
                f"{checkpoint / 1e9:.1f}",
                f"{checkpoint / 0.1e9:,.0f}",
                f"{checkpoint / 1e9:,.1f}",
            ]
        )
    head = [
        "",
        "parameters",
        "GB of gradients",
        "GB of a checkpoint",
        "s to write at 100 MB/s",
        "s at 1 GB/s",
    ]
    return table(head, rows)


def growth_table() -> str:
    """What grows faster than the corpus, or does not divide among machines."""
    rows = []
    stages = {stage.name: len(stage.units) for stage in corpus_stages("fastokens")}
    for times in (1, 10, 100):
        documents, tokens = sum(ARTICLES.values()) * times, tokens_bytes() * times
        bands = NearDuplicates().bands
        files, packs = stages["encode"] * times, stages["pack"] * times
        reads = packs * touched(files, KEPT / stages["pack"])
        rows.append(
            [
                f"{times}",
                f"{documents / 1e6:,.0f} M",
                f"{files:,} → {packs:,}",
                f"{REQUESTS * reads / 1e6:,.1f} M",
                f"{reads * tokens / files * A_SHARE / 1e12:,.1f}",
                f"{tokens / 1e6 / HASH:,.0f}",
                f"{bands * ranges(documents) * documents * 8 / 1e12:,.2f}",
                f"{documents * PAIR_BYTES / 1e9:,.0f}",
            ]
        )
    head = [
        "× the corpus",
        "documents",
        "tokens files → shards",
        "requests of pack in a bucket",
        "TB it reads",
    ]
    head += [
        "s a worker hashes before, on a file system",
        "TB that near-duplicates look at",
        "GB to join a pair a document",
    ]
    return table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


TABLES = (corpus_table, parts_table, training_table, cpu_table, storage_table, growth_table)


def main() -> int:
    print("\n\n".join(make() for make in TABLES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
