"""Examples as the model takes them, kept in an Arrow file: made once a machine, then read from a memory map.

    official files → read → encode → CACHE/examples/<name>/{examples.arrow, facts.json}

A folder is named by all that decides its content: the task and its settings, the official files, the tokenizer, the
lengths, and this package's code. One process of a machine fills it, and the others wait; it is whole when facts.json is
there, and made again where that or the examples are not as they were written. What a run is trained on is known by the
content's own hash, wherever the official files lie.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.shards import file_sha256, write_atomically
from trainer.batches.cache import TELL_EVERY, alone, default_cache
from trainer.engine.checkpoint import sync
from trainer.engine.config import InputError
from trainer.tasks.example import Example, Skipped
from trainer.tasks.task import DownstreamTask, Lengths, Split
from trainer.tasks.wordpieces import Wordpieces

EXAMPLES, FACTS = "examples.arrow", "facts.json"
PARTIAL = ".partial.arrow"
BATCH = 16
"""Examples of a record batch: what is read to get at one."""
_INTS = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("input_ids", _INTS),
        ("row_lengths", _INTS),
        ("global_places", _INTS),
        ("read", _INTS),
        ("features", pa.list_(_INTS)),
        ("context_tokens", pa.int32()),
        ("tokens_cut", pa.int32()),
        ("scored", pa.int32()),
        ("about", pa.large_string()),
    ]
)


@dataclass(frozen=True)
class ContextLengths:
    """Of the contexts before anything was cut off, in wordpieces: table 6's columns."""

    mean: float
    percentile_95: float
    longest: int


class Damaged(Exception):
    """A folder whose files are not those that `write_examples` has left."""


class Examples(Sequence[Example]):
    """The examples of a folder, in memory maps; Damaged where they are not whole."""

    def __init__(self, folder: Path) -> None:
        try:
            self._open(folder)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise Damaged(f"{folder}: {error}") from error

    def _open(self, folder: Path) -> None:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if (folder / EXAMPLES).stat().st_size != facts["bytes"]:
            raise ValueError(f"{EXAMPLES} is not of {facts['bytes']} bytes")
        self._reader = pa.ipc.open_file(pa.memory_map(str(folder / EXAMPLES)))
        self._features: list[str] = facts["features"]
        self.skipped: dict[str, int] = facts["skipped"]
        """How many entries were left out, by reason."""
        self.fingerprint: str = facts["sha256"]
        """Of the examples' content."""
        batches = [self._reader.get_batch(number) for number in range(self._reader.num_record_batches)]
        self._count = sum(batch.num_rows for batch in batches)

        def column(name: str) -> np.ndarray:
            return np.concatenate(
                [np.empty(0, np.int32), *(batch.column(name).to_numpy() for batch in batches)]
            )

        self.scored = column("scored")
        self.context_tokens = column("context_tokens")
        self.tokens_cut = column("tokens_cut")
        self.row_lengths: list[list[int]] = [
            lengths for batch in batches for lengths in batch.column("row_lengths").to_pylist()
        ]
        self.tokens = np.array([sum(lengths) for lengths in self.row_lengths], np.int64)
        """Of all rows of each."""
        self.rows = np.array([len(lengths) for lengths in self.row_lengths], np.int64)
        self.longest_rows = np.array([max(lengths) for lengths in self.row_lengths], np.int64)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        batch = self._reader.get_batch(int(number) // BATCH)
        row = int(number) % BATCH

        def ints(name: str) -> np.ndarray | None:
            found = batch.column(name)[row]
            return found.values.to_numpy() if found.is_valid else None

        ids, lengths, global_places = ints("input_ids"), ints("row_lengths"), ints("global_places")
        assert ids is not None
        assert lengths is not None
        assert global_places is not None
        features = [values.values.to_numpy() for values in batch.column("features")[row]]
        return Example(
            batch.column("id")[row].as_py(),
            tuple(np.split(ids, np.cumsum(lengths)[:-1])),
            global_places,
            ints("read"),
            dict(zip(self._features, features, strict=True)),
            int(batch.column("context_tokens")[row].as_py()),
            int(batch.column("tokens_cut")[row].as_py()),
            batch.column("about")[row].as_py(),
            int(batch.column("scored")[row].as_py()),
        )

    def context_lengths(self) -> ContextLengths:
        if not len(self):
            return ContextLengths(0.0, 0.0, 0)
        lengths = self.context_tokens
        return ContextLengths(float(lengths.mean()), float(np.percentile(lengths, 95)), int(lengths.max()))


def open_examples(
    task: DownstreamTask,
    split: Split,
    wordpieces: Wordpieces,
    lengths: Lengths,
    cache_dir: Path | None = None,
) -> Examples:
    """A split's examples, made now where no earlier run has made them. InputError says what is wrong with its files."""
    cache = (default_cache() if cache_dir is None else cache_dir.expanduser().absolute()) / "examples"
    try:
        folder = cache / f"{task.name}-{split}-{_name(task, split, wordpieces, lengths)}"
        with alone(folder, f"the {split} examples of {task.name}"):
            try:
                if (folder / FACTS).is_file():
                    return Examples(folder)
            except Damaged as damage:
                print(f"{damage}; making the examples again", file=sys.stderr, flush=True)
            encoded = encode_all(task, task.read(split), wordpieces, lengths, training=split == "train")
            write_examples(folder, encoded, f"{task.name} {split}")
            return Examples(folder)
    except OSError as error:
        raise InputError(f"{error.filename or cache}: {error.strerror or error}") from error


def _name(task: DownstreamTask, split: Split, wordpieces: Wordpieces, lengths: Lengths) -> str:
    """What decides a split's examples, as 24 hexadecimal digits."""
    code = [file_sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    files = []
    for path in task.files(split):
        about = path.stat()
        files.append([str(path.absolute()), about.st_size, about.st_mtime_ns])
    decided = {
        "task": dict(task.describe()),
        "files": files,
        "tokenizer": [wordpieces.tokenizer.fingerprint, wordpieces.added],
        "lengths": [lengths.tokens, lengths.longer],
        "code": code,
    }
    return hashlib.sha256(json.dumps(decided, sort_keys=True, default=str).encode()).hexdigest()[:24]


def encode_all(
    task: DownstreamTask, entries: Iterator[Any], wordpieces: Wordpieces, lengths: Lengths, training: bool
) -> Iterator[Example | Skipped]:
    """Each entry as an example, or why it is none."""
    for entry in entries:
        try:
            yield task.encode(entry, wordpieces, lengths, training)
        except Skipped as reason:
            yield reason


def write_examples(folder: Path, examples: Iterator[Example | Skipped], about: str) -> None:
    """Write examples into a folder; they are there when FACTS is. Tells how far it is. OSError where there is no room,
    and then nothing of them is left."""
    digest = hashlib.sha256()
    skipped: Counter[str] = Counter()
    features: list[str] | None = None
    rows: list[dict[str, Any]] = []
    count, told = 0, time.monotonic()
    with _new_file(folder) as writer:
        for example in examples:
            if isinstance(example, Skipped):
                skipped[str(example)] += 1
                continue
            features = sorted(example.features) if features is None else features
            assert sorted(example.features) == features, "all examples of a task have the same features"
            rows.append(_row(example, features, digest))
            count += 1
            if len(rows) == BATCH:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, _SCHEMA))
                rows = []
            if time.monotonic() - told > TELL_EVERY:
                told = time.monotonic()
                print(f"{about}: {count:,} examples made", file=sys.stderr, flush=True)
        if rows:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, _SCHEMA))
    facts = {
        "bytes": (folder / EXAMPLES).stat().st_size,
        "features": features or [],
        "skipped": dict(sorted(skipped.items())),
        "sha256": digest.hexdigest(),
    }
    write_atomically(folder / FACTS, json.dumps(facts, indent=2).encode())


@contextmanager
def _new_file(folder: Path) -> Iterator[pa.RecordBatchWriter]:
    """EXAMPLES, written beside and renamed: what was there may be in another process's memory map."""
    partial = folder / PARTIAL
    try:
        with partial.open("wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
            yield writer
        sync(partial)
        (folder / FACTS).unlink(missing_ok=True)  # those of what is replaced
        partial.replace(folder / EXAMPLES)
    finally:
        partial.unlink(missing_ok=True)


def _row(example: Example, features: list[str], digest: Any) -> dict[str, Any]:
    """An example by the schema's columns; what it holds goes into the digest."""
    row = {
        "id": example.id,
        "input_ids": np.concatenate(example.rows).astype(np.int32),
        "row_lengths": np.array([len(row) for row in example.rows], np.int32),
        "global_places": np.asarray(example.global_places, np.int32),
        "read": None if example.read is None else np.asarray(example.read, np.int32),
        "features": [np.asarray(example.features[name], np.int32) for name in features],
        "context_tokens": example.context_tokens,
        "tokens_cut": example.tokens_cut,
        "scored": example.scored,
        "about": example.about,
    }
    for name, value in row.items():
        parts = value if isinstance(value, list) else [value]
        digest.update(f"{name} {len(parts)}\0".encode())
        for part in parts:
            content = part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode()
            digest.update(f"{len(content)}\0".encode() + content)
    return row
