"""Measures how much text a CPU second turns into sealed shards, beside what one would use instead, in one run.

    python -m pipeline.benchmark --megabytes 4 --rounds 5

The text is made here: documents of made-up words, some frequent and most rare, one a row of a .jsonl file, and a
byte-level BPE trained on it, unless --tokenizer names another. Every round runs each method once, each in a
process of its own with one thread, on a small file first, for imports; then counted is its CPU time from the name
of the file to written sequences. All must give the ids of the same text, which is checked by a digest over how
often each id occurs.

The bound is `encode_batch_fast` of the same tokenizer on the same text, already read and with nothing written: with
this engine nothing that tokenises is faster. The peer is the recipe of transformers' run_mlm.py, datasets' `map`
with a tokenizer, then with group_texts.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import yaml

from pipeline.shards import open_corpus
from pipeline.tokenizer import SPECIAL_TOKENS, load_tokenizer

SEQUENCE_LENGTH = 4096
MINIMUM_BYTES = 200
LEXICON = 60_000
LETTERS = np.array(list("etaoinshrdlucmfwypvbgkqjxzéß"))
LETTER_SHARES = 1 / np.arange(2, 2 + len(LETTERS))

Result = tuple[float, int, str]  # cpu seconds, ids of text, digest of their counts


def write_text(file: Path, megabytes: float, seed: int = 0) -> int:
    """Write about so many MB of documents, a JSON row each; returns the bytes of text."""
    random = np.random.default_rng(seed)
    letters = random.choice(LETTERS, (LEXICON, 14), p=LETTER_SHARES / LETTER_SHARES.sum())
    lengths = 1 + random.binomial(13, np.linspace(0.1, 0.6, LEXICON))  # rare words are longer
    words = np.array(["".join(row[:length]) for row, length in zip(letters, lengths, strict=True)])
    shares = 1 / np.arange(10, 10 + LEXICON)
    written = 0
    with file.open("w", encoding="utf-8") as rows:
        number = 0
        while written < megabytes * 1e6:
            drawn = random.choice(words, int(random.integers(100, 2000)), p=shares / shares.sum())
            ends = random.random(len(drawn)) < 0.08
            parts = [f"{word}. " if end else f"{word} " for word, end in zip(drawn, ends, strict=True)]
            text = ". ".join(sentence.capitalize() for sentence in "".join(parts).split(". "))
            rows.write(json.dumps({"id": f"{number}", "text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode())
            number += 1
    return written


def train_tokenizer(text: Path, file: Path, vocabulary: int) -> None:
    """A byte-level BPE in RoBERTa's manner, trained on the rows of a .jsonl file."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(read_texts(text), trainer)
    tokenizer.save(str(file))


def read_texts(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as rows:
        return [json.loads(row)["text"] for row in rows]


def build(folder: Path, text: Path) -> Result:
    """Ours: the builder's own command, without Ray."""
    from pipeline.build_corpus import main as build_corpus

    config = {
        "tokenizer": str(folder / "tokenizer"),
        "sequence_length": SEQUENCE_LENGTH,
        "sources": [{"kind": "text", "path": str(text)}],
        "filters": [{"name": "length", "minimum_bytes": MINIMUM_BYTES}],
    }
    (folder / "corpus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with tempfile.TemporaryDirectory(dir=folder) as output:
        command = ["--config", str(folder / "corpus.yaml"), "--output", f"{output}/corpus", "--local"]
        with (folder / "build.log").open("w") as log, contextlib.redirect_stdout(log):
            with contextlib.redirect_stderr(log):
                start = time.process_time()
                status = build_corpus(command)
                seconds = time.process_time() - start
        assert status == 0, (folder / "build.log").read_text()
        splits = [open_corpus(f"{output}/corpus", split) for split in ("train", "validation")]
        sequences = [split.input_ids(index) for split in splits for index in range(len(split))]
        return seconds, *_digest(sequences, folder)


def encode(folder: Path, text: Path) -> Result:
    """The bound: nothing but the tokenizer."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    texts = read_texts(text)
    start = time.process_time()
    ids = tokenizer.encode_batch(texts)
    seconds = time.process_time() - start
    return seconds, *_digest([np.array(row) for row in ids], folder)


def group(folder: Path, text: Path) -> Result:
    """The peer: run_mlm.py's preprocessing."""
    import datasets
    from transformers import AutoTokenizer

    def group_texts(examples: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {key: list(chain(*rows)) for key, rows in examples.items()}
        total = len(next(iter(joined.values()))) // SEQUENCE_LENGTH * SEQUENCE_LENGTH
        starts = range(0, total, SEQUENCE_LENGTH)
        return {key: [row[i : i + SEQUENCE_LENGTH] for i in starts] for key, row in joined.items()}

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        start = time.process_time()
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        rows = datasets.load_dataset("json", data_files=str(text), split="train", cache_dir=cache)
        encoded = rows.map(
            lambda examples: tokenizer(examples["text"], return_special_tokens_mask=True),
            batched=True,
            remove_columns=rows.column_names,
        )
        encoded.map(group_texts, batched=True)
        seconds = time.process_time() - start
        # Before grouping, which drops what fills no sequence at the end of every thousand documents.
        return seconds, *_digest([np.array(ids) for ids in encoded["input_ids"]], folder)


def _digest(sequences: Sequence[np.ndarray], folder: Path) -> tuple[int, str]:
    """How many ids of text there are, and a digest of how often each occurs, in whatever order."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    counts = np.bincount(np.concatenate(sequences), minlength=tokenizer.vocabulary_size)
    counts[list(tokenizer.special_ids)] = 0
    return int(counts.sum()), hashlib.sha256(counts.astype(np.int64).tobytes()).hexdigest()[:16]


METHODS: dict[str, Callable[[Path, Path], Result]] = {
    "longspan, jsonl to sealed shards": build,
    "datasets, map and group_texts": group,
    "bound: tokenizers alone": encode,
}


def run_alone(method: Callable[[Path, Path], Result], folder: Path) -> Result:
    """What a process of its own runs."""
    method(folder, folder / "first.jsonl")
    return method(folder, folder / "text.jsonl")


def compare(folder: Path, size: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each method."""
    spawn = multiprocessing.get_context("spawn")
    results: dict[str, list[Result]] = {name: [] for name in METHODS}
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as alone:
        for _ in range(rounds):
            for name, method in METHODS.items():
                results[name].append(alone.submit(run_alone, method, folder).result())
    ours, *_, bound = ([seconds for seconds, _, _ in found] for found in results.values())
    rows = []
    for name, found in results.items():
        seconds = [result[0] for result in found]
        row = {"method": name, "rate": size / 1e6 / statistics.median(seconds), "seconds": seconds}
        row["ratio"] = statistics.median(a / b for a, b in zip(seconds, ours, strict=True))
        row["of_bound"] = statistics.median(b / a for a, b in zip(seconds, bound, strict=True))
        row["ids"], row["digests"] = found[0][1], sorted({digest for _, _, digest in found})
        rows.append(row)
    return rows


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at least 1")
    return int(text)


def _size(text: str) -> float:
    try:
        if float(text) > 0:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"found {text!r}, expected a number above 0")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--megabytes", type=_size, default=4, help="of text (default 4)")
    parser.add_argument("--rounds", type=_positive, default=5, help="how often each is measured (default 5)")
    parser.add_argument("--tokenizer", metavar="WHERE", help="as in a corpus's configuration")
    parser.add_argument(
        "--vocabulary", type=_positive, default=16_384, help="of the tokenizer trained here (default 16384)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    options = parser.parse_args(arguments)
    # For the processes started below; datasets would else ask the hub about its readers.
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(prefix="longspan-benchmark-") as temporary:
        folder = Path(temporary)
        write_text(folder / "first.jsonl", 0.05, seed=1)
        size = write_text(folder / "text.jsonl", options.megabytes)
        if not options.tokenizer:
            train_tokenizer(folder / "text.jsonl", folder / "trained.json", options.vocabulary)
        try:
            tokenizer = load_tokenizer(options.tokenizer or folder / "trained.json")
        except ValueError as error:
            parser.error(str(error))
        tokenizer.save(folder / "tokenizer")
        about = (
            f"corpus, {size / 1e6:,.1f} MB of made-up words, byte-level BPE of {tokenizer.vocabulary_size:,}, "
            f"sequences of {SEQUENCE_LENGTH:,}"
        )
        conditions = (
            f"median of {options.rounds} interleaved rounds, cpu time, one process of one thread each; "
            f"{platform.machine()}, Python {platform.python_version()}"
        )
        for package in ("tokenizers", "datasets", "transformers", "pyarrow"):
            conditions += f", {package} {version(package)}"
        print(f"{about}\n{conditions}\n")
        rows = compare(folder, size, options.rounds)
    print(f"{'method':34}  MB/cpu s  ratio  of bound  ids of text")
    for row in rows:
        print(
            f"{row['method']:34}  {row['rate']:8.2f}  {row['ratio']:5.2f}  {row['of_bound']:8.0%}  {row['ids']:11,}"
        )
    same = len({digest for row in rows for digest in row["digests"]}) == 1
    print(f"the ids are {'the same in all' if same else 'NOT the same'}")
    if options.json:
        found = {"about": about, "conditions": conditions, "bytes": size, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
