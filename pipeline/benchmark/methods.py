"""What is compared: jsonl to tokenised sequences by us and by others, and the tokenizer alone.

Each runs in a process of its own with one thread, on a small file first, for imports. Then its CPU time counts, that of
processes it starts included, from the name of the file to written sequences.
"""

import contextlib
import hashlib
import importlib.util
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.benchmark.text import MINIMUM_BYTES, read_texts
from pipeline.benchmark.tree import peak_bytes
from pipeline.shards import open_corpus, token_dtype
from pipeline.tokenizer import EOS, Tokenizer, load_tokenizer
from pipeline.tokenizer import tokenizer as tokenizer_module
from pipeline.tokenizer.engines import ENGINE_VARIABLE, FAST, REFERENCE

SEQUENCE_LENGTH = 4096
ENGINES = [name for name in (*FAST, REFERENCE) if importlib.util.find_spec(name)]


@dataclass
class Result:
    """One run of one method."""

    seconds: float
    """Of CPU."""
    ids: int
    """Of text; special ones do not count."""
    digest: str
    """Of how often each id occurs."""
    peak_bytes: int = 0
    """The largest resident set of the process."""
    parts: dict[str, float] = field(default_factory=dict)
    """CPU seconds of a build's stages, and of tokenising within them."""
    start: float = 0.0
    """CPU seconds that next to no text takes: loading the tokenizer, trying its engine, the frame of a build."""
    start_parts: dict[str, float] = field(default_factory=dict)


Method = Callable[[Path, Path], Result]


def run_alone(method: Method, folder: Path, text: str) -> Result:
    """What a process of its own runs."""
    method(folder, folder / "first.jsonl")  # for imports
    tokenizer_module._chosen.clear()  # or the engine would be chosen, as no build finds it
    small = method(folder, folder / "first.jsonl")
    tokenizer_module._chosen.clear()
    result = method(folder, folder / text)
    result.start, result.start_parts = small.seconds, small.parts
    return result


def _result(seconds: float, folder: Path, ids: Callable[[], Sequence[np.ndarray]], **more: Any) -> Result:
    """With the peak as it is before all ids are read back for their digest."""
    # getrusage's figure is inherited from the process that started this one; Linux knows this one's own.
    peak = peak_bytes(os.getpid()) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return Result(seconds, *_digest(ids(), folder), peak_bytes=peak, **more)


def cpu_seconds() -> float:
    """Of this process and of those it started that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@dataclass(frozen=True)
class Build:
    """Ours: the builder's own command, without Ray."""

    engine: str

    def __call__(self, folder: Path, text: Path) -> Result:
        from pipeline.build_corpus import main as build_corpus

        os.environ[ENGINE_VARIABLE] = self.engine
        config = write_config(folder, [text])
        with tempfile.TemporaryDirectory(dir=folder) as output:
            command = ["--config", str(config), "--output", f"{output}/corpus", "--local"]
            with _quiet(folder / "build.log"), _parts() as parts:
                start = cpu_seconds()
                status = build_corpus(command)
                seconds = cpu_seconds() - start
            assert status == 0, (folder / "build.log").read_text()
            return _result(seconds, folder, lambda: _sequences(f"{output}/corpus"), parts=parts)


def _sequences(corpus: str) -> list[np.ndarray]:
    splits = [open_corpus(corpus, split) for split in ("train", "validation")]
    return [split.input_ids(index) for split in splits for index in range(len(split))]


def write_config(folder: Path, texts: Sequence[Path]) -> Path:
    """A corpus of these files with the length filter only."""
    config = {
        "tokenizer": str(folder / "tokenizer"),
        "sequence_length": SEQUENCE_LENGTH,
        "sources": [{"kind": "text", "name": f"text{i}", "path": str(text)} for i, text in enumerate(texts)],
        "filters": [{"name": "length", "minimum_bytes": MINIMUM_BYTES}],
    }
    file = folder / f"{texts[0].stem}.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


@contextlib.contextmanager
def _parts() -> Iterator[dict[str, float]]:
    """CPU seconds of a build in this process: of its stages' units, and of tokenising within them."""
    from pipeline import runner

    parts: dict[str, float] = {}
    execute, encode, encode_batch = runner.execute, Tokenizer.encode, Tokenizer.encode_batch

    def timed(call: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = time.process_time()
            result = call(*arguments)
            key = name(*arguments)
            parts[key] = parts.get(key, 0.0) + time.process_time() - start
            return result

        return run

    runner.execute = timed(execute, lambda unit, stores: unit.stage)
    Tokenizer.encode = timed(encode, lambda *_: "tokenising")  # type: ignore[method-assign]
    Tokenizer.encode_batch = timed(encode_batch, lambda *_: "tokenising")  # type: ignore[method-assign]
    try:
        yield parts
    finally:
        runner.execute = execute
        Tokenizer.encode, Tokenizer.encode_batch = encode, encode_batch  # type: ignore[method-assign]


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[None]:
    with log.open("w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield


@dataclass(frozen=True)
class Encode:
    """A bound: nothing but an engine, on texts already read, with nothing written."""

    engine: str

    def __call__(self, folder: Path, text: Path) -> Result:
        tokenizer = load_tokenizer(folder / "tokenizer", self.engine)
        texts = read_texts(text)
        start = cpu_seconds()
        ids, _ = tokenizer.encode(texts)
        seconds = cpu_seconds() - start
        return _result(seconds, folder, lambda: [ids])


def datatrove(folder: Path, text: Path) -> Result:
    """datatrove's readers, a filter, and its tokenised output, one worker."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.filters import LambdaFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    with tempfile.TemporaryDirectory(dir=folder) as output, _quiet(folder / "datatrove.log"):
        start = cpu_seconds()
        LocalPipelineExecutor(
            pipeline=[
                JsonlReader(str(text.parent), glob_pattern=text.name),
                LambdaFilter(lambda document: len(document.text.encode()) >= MINIMUM_BYTES),
                DocumentTokenizer(
                    output_folder=f"{output}/tokens",
                    tokenizer_name_or_path=str(folder / "tokenizer/tokenizer.json"),
                    eos_token=EOS,
                    shuffle_documents=False,
                    save_final_metadata=False,
                ),
            ],
            tasks=1,
            workers=1,
            logging_dir=f"{output}/logs",
        ).run()
        seconds = cpu_seconds() - start
        dtype = token_dtype(load_tokenizer(folder / "tokenizer").vocabulary_size)
        files = sorted(Path(output, "tokens").rglob("*.ds"))
        return _result(seconds, folder, lambda: [np.fromfile(file, dtype) for file in files])


def datasets_map(folder: Path, text: Path) -> Result:
    """run_mlm.py's preprocessing, in transformers' examples: `map` with a tokenizer, then with group_texts."""
    import datasets
    from transformers import AutoTokenizer

    def group_texts(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {key: list(chain(*rows)) for key, rows in examples.items()}
        total = len(next(iter(joined.values()))) // SEQUENCE_LENGTH * SEQUENCE_LENGTH
        starts = range(0, total, SEQUENCE_LENGTH)
        return {key: [row[i : i + SEQUENCE_LENGTH] for i in starts] for key, row in joined.items()}

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        start = cpu_seconds()
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        rows = datasets.load_dataset("json", data_files=str(text), split="train", cache_dir=cache)
        kept = rows.filter(lambda row: len(row["text"].encode()) >= MINIMUM_BYTES)
        encoded = kept.map(
            lambda examples: tokenizer(examples["text"], return_special_tokens_mask=True),
            batched=True,
            remove_columns=rows.column_names,
        )
        encoded.map(group_texts, batched=True)
        seconds = cpu_seconds() - start
        # Before grouping, which drops what fills no sequence at the end of every thousand documents.
        return _result(seconds, folder, lambda: [np.array(ids) for ids in encoded["input_ids"]])


def methods() -> tuple[dict[str, Method], list[str]]:
    """Each method by name, ours first; and a line for each peer that is not installed."""
    found: dict[str, Method] = {f"longspan, {engine}": Build(engine) for engine in ENGINES}
    missing = []
    if importlib.util.find_spec("datatrove"):
        found["datatrove, JsonlReader to DocumentTokenizer"] = datatrove
    else:
        missing.append("datatrove is not installed (pip install datatrove): no row for it")
    found["datasets, map and group_texts"] = datasets_map
    found |= {f"bound: {engine} alone": Encode(engine) for engine in ENGINES}
    return found, missing


def _digest(sequences: Sequence[np.ndarray], folder: Path) -> tuple[int, str]:
    """How many ids of text there are, and a digest of how often each occurs, in whatever order."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    counts = np.bincount(np.concatenate(sequences), minlength=tokenizer.vocabulary_size)
    counts[list(tokenizer.special_ids)] = 0
    return int(counts.sum()), hashlib.sha256(counts.astype(np.int64).tobytes()).hexdigest()[:16]
