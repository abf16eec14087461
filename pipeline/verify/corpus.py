"""The whole check of a corpus: manifest, tokenizer, shards, rows, documents, quarantine."""

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import orjson
import pyarrow as pa

from pipeline.progress import Progress
from pipeline.shards import MANIFEST, CorpusError, file_sha256, shard_schema
from pipeline.stages.seal import corpus_fingerprint, sealed_beside_shards
from pipeline.storage import LocalStorage, Storage
from pipeline.tokenizer import TOKENIZER_FILES, Tokenizer, load_tokenizer
from pipeline.units import PublishedFile
from pipeline.verify.documents import Chain, Coverage
from pipeline.verify.manifest import CONCATENATE, Manifest, ShardEntry, check_counts, read_form
from pipeline.verify.problems import Problems
from pipeline.verify.rows import UNKNOWN, Block, Rules, read_pieces

BLOCK_BYTES = 32 << 20
"""Ids looked at in one go; bounds memory, changes nothing else."""
PIECE_BYTES = 8 << 20
"""Read at a time of a remote file."""


@dataclass
class Verdict:
    """What was found, and how much was looked at."""

    problems: Problems = field(default_factory=Problems)
    fingerprint: str = ""
    shards: int = 0
    bytes: int = 0
    sequences: int = 0
    tokens: int = 0


def verify_corpus(storage: Storage, quick: bool = False, stream: TextIO | None = None) -> Verdict:
    """Checks the corpus in `storage`; progress goes to `stream`. With `quick`, only sizes, formats and counts.

    CorpusError where there is no manifest. Nothing is written, removed or repaired.
    """
    verdict = Verdict()
    problems = verdict.problems
    try:
        content = storage.read(MANIFEST)
    except FileNotFoundError:
        raise CorpusError(
            f"{storage.where(MANIFEST)}: missing; not a corpus, or one whose build has not finished"
        ) from None
    manifest = read_form(content, problems)
    if manifest is None:
        return verdict
    verdict.fingerprint = manifest.fingerprint
    check_counts(manifest, problems)
    tokenizer = _check_tokenizer(storage, manifest, problems)
    _check_files(storage, manifest, problems)
    _check_quarantine(storage, manifest, problems)
    shards = _shards(manifest)
    verdict.shards, verdict.bytes = len(shards), sum(entry.bytes for _, entry in shards)
    verdict.sequences = sum(split.sequences for split in manifest.splits.values())
    verdict.tokens = sum(split.tokens for split in manifest.splits.values())
    if quick:
        for _, entry in shards:
            if storage.size(entry.path) == entry.bytes:
                _check_schema(storage, entry, manifest, problems)
        return verdict
    with (
        Coverage() as coverage,
        Progress("verify", len(shards), 0, verdict.bytes, stream) as progress,
    ):
        _check_rows(storage, manifest, _rules(manifest, tokenizer), coverage, problems, progress)
    return verdict


def _shards(manifest: Manifest) -> list[tuple[str, ShardEntry]]:
    return [(name, entry) for name, split in manifest.splits.items() for entry in split.shards]


def _check_tokenizer(storage: Storage, manifest: Manifest, problems: Problems) -> Tokenizer | None:
    """The tokenizer saved beside the shards; None where it is not to be read."""
    with tempfile.TemporaryDirectory() as folder:
        for name in TOKENIZER_FILES:
            try:
                Path(folder, name).write_bytes(storage.read(name))
            except FileNotFoundError:
                problems.add(name, "missing")
        if not Path(folder, TOKENIZER_FILES[0]).exists():
            return None
        try:
            tokenizer = load_tokenizer(folder)
        except ValueError as error:
            problems.add(TOKENIZER_FILES[0], str(error).removeprefix(f"tokenizer {folder}").lstrip(":/ "))
            return None
    said = manifest.tokenizer
    name = TOKENIZER_FILES[0]
    problems.differ(name, "fingerprint, as the manifest says", tokenizer.fingerprint, said.fingerprint)
    problems.differ(
        name, "vocabulary size, as the manifest says", tokenizer.vocabulary_size, said.vocabulary_size
    )
    named = said.special_ids.model_dump()
    for role, index in tokenizer.named_special_ids().items():
        problems.differ(name, f"id of {role}, as the manifest says", index, named[role])
    return tokenizer if tokenizer.fingerprint == said.fingerprint else None


def _check_files(storage: Storage, manifest: Manifest, problems: Problems) -> None:
    """Every file is there, in its size, and no other shard; the names and checksums give the fingerprint."""
    for name in sealed_beside_shards(source.name for source in manifest.sources):
        if name not in TOKENIZER_FILES and storage.size(name) is None:
            problems.add(name, "missing")
    listed = {entry.path: entry for _, entry in _shards(manifest)}
    for name, entry in listed.items():
        size = storage.size(name)
        if size is None:
            problems.add(name, "missing, though the manifest lists it")
        elif size != entry.bytes:
            problems.add(name, f"has {size:,} bytes, the manifest says {entry.bytes:,}")
    for split in manifest.splits:
        for name in storage.list(split):
            if name not in listed:
                problems.add(name, "not in the manifest")
    files = [PublishedFile("output", entry.path, entry.bytes, entry.sha256) for entry in listed.values()]
    expected = corpus_fingerprint(files, manifest.tokenizer.fingerprint, manifest.versions)
    problems.differ(
        MANIFEST, "fingerprint, from the shards' checksums and the versions", manifest.fingerprint, expected
    )


def _check_quarantine(storage: Storage, manifest: Manifest, problems: Problems) -> None:
    """The lines of the quarantine files, by reason, are what the manifest counts."""
    for source in manifest.sources:
        name = f"quarantine/{source.name}.jsonl"
        if storage.size(name) is None:
            continue
        reasons: Counter[str] = Counter()
        with storage.open(name) as file:
            for number, line in enumerate(file, 1):
                try:
                    entry = orjson.loads(line)
                    reasons[entry["reason"]] += 1
                    if entry["source"] != source.name:
                        problems.add(name, f"line {number:,} is of source {entry['source']!r}")
                except (ValueError, KeyError, TypeError):
                    problems.add(name, f"line {number:,} is not a JSON object with source and reason")
        for reason in sorted(reasons.keys() | source.quarantined.keys()):
            problems.differ(
                name, f"lines with reason {reason!r}", reasons[reason], source.quarantined.get(reason, 0)
            )


def _rules(manifest: Manifest, tokenizer: Tokenizer | None) -> Rules:
    ids = manifest.tokenizer.special_ids
    special = tokenizer.special_ids if tokenizer else frozenset(ids.model_dump().values())
    return Rules(
        manifest.sequence_length,
        manifest.packing,
        ids.bos,
        ids.eos,
        ids.pad,
        special | {ids.bos, ids.eos, ids.pad},
        manifest.tokenizer.vocabulary_size,
    )


def _check_rows(
    storage: Storage,
    manifest: Manifest,
    rules: Rules,
    coverage: Coverage,
    problems: Problems,
    progress: Progress,
) -> None:
    whole = True
    for split, entries in manifest.splits.items():
        chain = Chain()
        blocks = _blocks(storage, entries.shards, manifest, problems, progress)
        for block, following in _with_following(blocks):
            pieces = read_pieces(block, rules, following, problems) if block else None
            if block is None or pieces is None:
                chain.lose()
                whole = False
                continue
            if manifest.packing == CONCATENATE:
                chain.follow(block, pieces, problems)
            coverage.add(split, block, pieces, problems)
    if not whole:  # what is missing there would be said again, of every document it concerns
        return
    coverage.check(problems)
    for source in manifest.sources:
        for split in manifest.splits:
            said = source.splits.get(split)
            for what, found in (("documents", coverage.documents), ("tokens", coverage.tokens)):
                key = f"{what} of {source.name} in {split}, in the shards and here"
                problems.differ(MANIFEST, key, found[split, source.name], getattr(said, what, 0))
    unknown = {name for _, name in coverage.tokens} - {source.name for source in manifest.sources}
    for name in sorted(unknown):
        problems.add(MANIFEST, f"no source {name!r}, though the shards name it")


def _with_following(blocks: Iterator[Block | None]) -> Iterator[tuple[Block | None, int | None]]:
    """Each block with the offset of the first piece after it; None for the last one."""
    waiting: list[Block | None] = []
    for block in blocks:
        if waiting:
            yield waiting.pop(), UNKNOWN if block is None else block.first_offset
        waiting.append(block)
    if waiting:
        yield waiting.pop(), None


def _blocks(
    storage: Storage,
    shards: Sequence[ShardEntry],
    manifest: Manifest,
    problems: Problems,
    progress: Progress,
) -> Iterator[Block | None]:
    """The rows of a split in their order; None where a shard is not to be read. While one shard's rows are looked at,
    the next one is hashed, and fetched where it is remote."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(_fetch, storage, entry, Path(folder)) for entry in shards[:1]]
        for number, entry in enumerate(shards):
            fetched = coming.pop().result()
            coming += [
                pool.submit(_fetch, storage, other, Path(folder)) for other in shards[number + 1 : number + 2]
            ]
            started = time.process_time()
            if fetched.error:
                if storage.size(entry.path) is not None:  # else it was said before
                    problems.add(entry.path, fetched.error)
                yield None
                continue
            problems.differ(entry.path, "sha256, as the manifest says", fetched.sha256, entry.sha256)
            yield from _blocks_of(entry, fetched.path, manifest, problems)
            if not isinstance(storage, LocalStorage):
                fetched.path.unlink()
            progress.advance(entry.path, entry.bytes, time.process_time() - started)


@dataclass(frozen=True)
class _Fetched:
    path: Path
    sha256: str
    error: str = ""


def _fetch(storage: Storage, entry: ShardEntry, folder: Path) -> _Fetched:
    """The local file of a shard. Not `Storage.local_copy`, which removes a damaged file: a check must not."""
    path = folder / entry.sha256
    try:
        if isinstance(storage, LocalStorage):
            path = storage.path(entry.path)
            return _Fetched(path, file_sha256(path))
        digest = hashlib.sha256()
        with storage.open(entry.path) as source, path.open("wb") as copy:
            while piece := source.read(PIECE_BYTES):
                digest.update(piece)
                copy.write(piece)
        return _Fetched(path, digest.hexdigest())
    except OSError as error:
        return _Fetched(path, "", f"not readable: {error.strerror or error}")


def _blocks_of(
    entry: ShardEntry, path: Path, manifest: Manifest, problems: Problems
) -> Iterator[Block | None]:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        problems.add(entry.path, f"not a readable Arrow file: {error}")
        yield None
        return
    rows = sum(batch.num_rows for batch in batches)
    problems.differ(entry.path, "sequences, as the manifest says", rows, entry.sequences)
    if not _is_schema(reader.schema, entry.path, manifest, problems):
        yield None
        return
    first = 0
    step = max(BLOCK_BYTES // (4 * manifest.sequence_length), 1)
    for batch in batches:
        for start in range(0, batch.num_rows, step):
            part = batch.slice(start, step)
            yield Block(entry.path, first, part)
            first += part.num_rows


def _check_schema(storage: Storage, entry: ShardEntry, manifest: Manifest, problems: Problems) -> None:
    """The schema alone, without the rows."""
    try:
        with storage.open(entry.path) as file:
            schema = pa.ipc.open_file(pa.PythonFile(file, mode="r")).schema
    except (pa.ArrowException, OSError) as error:
        problems.add(entry.path, f"not a readable Arrow file: {error}")
        return
    _is_schema(schema, entry.path, manifest, problems)


def _is_schema(schema: pa.Schema, name: str, manifest: Manifest, problems: Problems) -> bool:
    """Whether it is that of this corpus' shards; further metadata are allowed."""
    tokenizer = manifest.tokenizer
    expected = shard_schema(manifest.sequence_length, tokenizer.vocabulary_size, tokenizer.fingerprint)
    if not schema.equals(expected):
        problems.add(
            name, f"not a shard of this corpus: its columns are {_columns(schema)}, not {_columns(expected)}"
        )
        return False
    found = schema.metadata or {}
    for key, value in expected.metadata.items():
        said = found.get(key, b"missing").decode("utf-8", "replace")
        problems.differ(name, f"{key.decode()} in its schema", said, value.decode())
    return True


def _columns(schema: pa.Schema) -> str:
    try:
        return ", ".join(f"{field.name} {field.type}" for field in schema)
    except UnicodeDecodeError:  # damaged names
        return "not readable"
