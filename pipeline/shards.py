"""The shard format, and how a corpus of shards is read back.

A corpus is a folder with a manifest.json and, for each split, shards: uncompressed Arrow IPC files of one
record batch, read through a memory map. A row is one sequence of exactly `sequence_length` = n ids. The manifest's
`packing` says how documents fill it.

**concatenate**:

    <s>  n-2 tokens of the stream  </s>

The stream is every document of the split in the order of its hash, each followed by its own `</s>`. So the
sequence that a document ends in goes on with the next document, a long document goes on through several
sequences, and sequence i holds exactly the stream's tokens [i·(n-2), (i+1)·(n-2)): the layout of RoBERTa and
Longformer ("FULL-SENTENCES"). The last sequence of a split has fewer: its `</s>` follows them, and `<pad>`
fills the rest.

**best_fit**:

    <s>  piece </s>  piece </s>  ...  <pad> ...

A piece is a whole document, or n-2 tokens of one that is longer, or what is left of that; every row may end with
`<pad>`.

No text encodes to `<pad>`, so a row's real length is its number of ids other than `<pad>`.

A row's other columns have one entry for each *piece*, the part of one document that lies in the row:

- `documents`: the document's id, and `sources`: the name of its source.
- `document_starts`: the piece's first position in the row; 0 for the first, strictly increasing. A piece ends
  where the next one starts, the last one at the row's real length. So the leading `<s>` is in the first
  piece, the `</s>` after a document in that document's piece, and the closing `</s>` in the last piece.
- `document_offsets`: how many of the document's tokens come before the piece. The piece's first *document*
  token is at position 1 in the first piece (after `<s>`), at `document_starts` in the others.

Where, concatenated, a document fills a sequence to its last stream position, its `</s>` is the first stream token of
the next one; that sequence then begins with a piece of no document tokens, `<s> </s>`, whose offset is the document's
length.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.errors import BuildError

if TYPE_CHECKING:
    from pipeline.storage import Storage

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

_VERSION_KEY = b"longspan.version"
_TOKENIZER_KEY = b"longspan.tokenizer"
_LENGTH_KEY = b"longspan.sequence_length"


class CorpusError(ValueError):
    """A corpus, or one of its files, is not there, not whole, or not of this format. Names the file."""


def token_dtype(vocabulary_size: int) -> type[np.uint16] | type[np.uint32]:
    """The narrowest type that holds every id: uint16 up to 65,536 entries, else uint32."""
    return np.uint16 if vocabulary_size <= 65_536 else np.uint32


def shard_schema(sequence_length: int, vocabulary_size: int, tokenizer_fingerprint: str) -> pa.Schema:
    """The Arrow schema of a shard, its metadata included."""
    ids = pa.list_(pa.from_numpy_dtype(token_dtype(vocabulary_size)), sequence_length)
    return pa.schema(
        [
            pa.field("input_ids", ids),
            pa.field("document_starts", pa.list_(pa.int32())),
            pa.field("documents", pa.list_(pa.string())),
            pa.field("document_offsets", pa.list_(pa.int64())),
            pa.field("sources", pa.list_(pa.string())),
        ],
        metadata={
            _VERSION_KEY: str(FORMAT_VERSION).encode(),
            _TOKENIZER_KEY: tokenizer_fingerprint.encode(),
            _LENGTH_KEY: str(sequence_length).encode(),
        },
    )


@dataclass(frozen=True)
class WrittenFile:
    """What was published under a path: its size in bytes and its sha256, in hexadecimal."""

    bytes: int
    sha256: str


def write_shard(
    path: str | Path,
    schema: pa.Schema,
    input_ids: np.ndarray,
    document_starts: Sequence[Sequence[int]],
    documents: Sequence[Sequence[str]],
    document_offsets: Sequence[Sequence[int]],
    sources: Sequence[Sequence[str]],
) -> WrittenFile:
    """Publishes one shard at a local path: whole under its name, or not there.

    `input_ids` is (sequences, sequence_length) of the schema's type; each other argument has one entry a
    sequence, a list with one item a piece. The same arguments give the same bytes.
    """
    columns = (document_starts, documents, document_offsets, sources)
    return write_atomically(path, serialise_shard(schema, input_ids, *columns))


def serialise_shard(
    schema: pa.Schema,
    input_ids: np.ndarray,
    document_starts: Sequence[Sequence[int]] | pa.ListArray,
    documents: Sequence[Sequence[str]] | pa.ListArray,
    document_offsets: Sequence[Sequence[int]] | pa.ListArray,
    sources: Sequence[Sequence[str]] | pa.ListArray,
) -> pa.Buffer:
    """The bytes that `write_shard` publishes."""
    flat = pa.array(np.ascontiguousarray(input_ids).reshape(-1))
    columns = [pa.FixedSizeListArray.from_arrays(flat, type=schema.field("input_ids").type)]
    for name, values in (
        ("document_starts", document_starts),
        ("documents", documents),
        ("document_offsets", document_offsets),
        ("sources", sources),
    ):
        is_array = isinstance(values, pa.Array)
        columns.append(values if is_array else pa.array(values, type=schema.field(name).type))
    return serialise_arrow(pa.record_batch(columns, schema=schema))


def serialise_arrow(batch: pa.RecordBatch) -> pa.Buffer:
    """`batch` as an uncompressed Arrow IPC file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def write_atomically(path: str | Path, content: bytes | pa.Buffer) -> WrittenFile:
    """Writes beside `path`, flushes to the disk and renames: a reader sees all of it or nothing.

    Two writers of the same path do not meet: each has its own temporary name, and the last rename wins.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return WrittenFile(bytes=len(memoryview(content)), sha256=hashlib.sha256(content).hexdigest())


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that `write_atomically` was writing when it was killed."""
    base = name.rsplit("/", 1)[-1]
    return base.startswith(".") and base.endswith(".tmp")


def _sync_folder(folder: Path) -> None:
    # The rename is a change of the folder: without this a power cut can take the name back.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal, read in bounded memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Corpus:
    """One split of a sealed corpus: a read-only sequence of packed sequences, memory-mapped.

    Indices run over all shards of the split, 0 ≤ index < len(corpus). Open it with `open_corpus`.
    """

    def __init__(
        self, place: "Path | Storage", split: str, manifest: Mapping[str, Any], verify: bool
    ) -> None:
        self._place = place
        self.uri = str(place) if isinstance(place, Path) else place.uri
        """Where it lies, for messages."""
        self.split = split
        self.sequence_length: int = manifest["sequence_length"]
        self.fingerprint: str = manifest["fingerprint"]
        """Names the corpus's content: a hash over the checksums of its shards."""
        self.tokenizer_fingerprint: str = manifest["tokenizer"]["fingerprint"]
        self.vocabulary_size: int = manifest["tokenizer"]["vocabulary_size"]
        self.special_ids: dict[str, int] = dict(manifest["tokenizer"]["special_ids"])
        """bos, pad, eos, unk and mask."""
        expected = shard_schema(self.sequence_length, self.vocabulary_size, self.tokenizer_fingerprint)
        entries = manifest["splits"][split]["shards"]
        self._shards: Sequence[_Shard | _RemoteShard] = (
            [_Shard(place / entry["path"], entry, expected, verify) for entry in entries]
            if isinstance(place, Path)
            else _remote_shards(place, entries, expected, verify)
        )
        self._ends = np.cumsum([shard.sequences for shard in self._shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @cached_property
    def folder(self) -> Path:
        """A local folder with the corpus's tokenizer: the corpus itself, or one in the cache of a corpus that lies
        in an object store."""
        if isinstance(self._place, Path):
            return self._place
        from pipeline.storage.cache import folder as cache_folder

        folder = cache_folder().parent / "tokenizers" / self.tokenizer_fingerprint
        for name in ("tokenizer.json", "tokenizer_config.json"):
            with _corpus_errors():
                write_atomically(folder / name, self._place.read(name))
        return folder

    @property
    def pad_id(self) -> int:
        return self.special_ids["pad"]

    def input_ids(self, index: int) -> np.ndarray:
        """(sequence_length,) of uint16 or uint32: a read-only view into the memory map."""
        shard, row = self._locate(index)
        return shard.input_ids[row]

    def document_starts(self, index: int) -> np.ndarray:
        """(pieces,) of int32: where each piece starts, 0 first."""
        return self._piece_column(index, "document_starts").to_numpy(zero_copy_only=False)

    def document_offsets(self, index: int) -> np.ndarray:
        """(pieces,) of int64: how many tokens of its document come before each piece."""
        return self._piece_column(index, "document_offsets").to_numpy(zero_copy_only=False)

    def documents(self, index: int) -> list[str]:
        """The document id of each piece."""
        return self._piece_column(index, "documents").to_pylist()

    def sources(self, index: int) -> list[str]:
        """The source name of each piece."""
        return self._piece_column(index, "sources").to_pylist()

    def _piece_column(self, index: int, name: str) -> pa.Array:
        shard, row = self._locate(index)
        return shard.batch.column(name)[row].values

    def _locate(self, index: int) -> tuple["_Shard | _RemoteShard", int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.uri} has {len(self)} {self.split} sequences; there is no number {index}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self._shards[number]
        return shard, index - int(self._ends[number]) + shard.sequences


class _Shard:
    """One memory-mapped shard, checked against the manifest's entry for it."""

    def __init__(self, path: Path, entry: Mapping[str, Any], expected: pa.Schema, verify: bool) -> None:
        if not path.is_file():
            raise CorpusError(f"{path}: missing, though the manifest lists it")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise CorpusError(f"{path}: has {size:,} bytes, the manifest says {entry['bytes']:,}")
        if verify and (found := file_sha256(path)) != entry["sha256"]:
            raise CorpusError(f"{path}: its sha256 is {found}, the manifest says {entry['sha256']}")
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            raise CorpusError(f"{path}: not a readable Arrow file: {error}") from error
        if not reader.schema.equals(expected, check_metadata=True):
            raise CorpusError(
                f"{path}: not a shard of this corpus; expected version, tokenizer and sequence length "
                f"{dict(expected.metadata)}, found {dict(reader.schema.metadata or {})}"
            )
        if len(batches) != 1 or batches[0].num_rows != entry["sequences"]:
            raise CorpusError(f"{path}: does not hold the {entry['sequences']} sequences of the manifest")
        self.batch = batches[0]
        self.sequences: int = entry["sequences"]
        column = self.batch.column("input_ids")
        self.input_ids = column.flatten().to_numpy().reshape(self.sequences, column.type.list_size)


@dataclass(frozen=True)
class _RemoteShard:
    """One shard in an object store, copied to this machine's cache and checked when it is first read."""

    storage: "Storage"
    entry: Mapping[str, Any]
    expected: pa.Schema

    @property
    def sequences(self) -> int:
        return self.entry["sequences"]

    @property
    def batch(self) -> pa.RecordBatch:
        return self._copy.batch

    @property
    def input_ids(self) -> np.ndarray:
        return self._copy.input_ids

    @cached_property
    def _copy(self) -> _Shard:
        with _corpus_errors():
            # Whoever reads a corpus does not change it, not even where it is damaged.
            path = self.storage.local_copy(self.entry["path"], self.entry["sha256"], remove_damaged=False)
        return _Shard(path, self.entry, self.expected, verify=False)


def _remote_shards(
    storage: "Storage", entries: Sequence[Mapping[str, Any]], expected: pa.Schema, verify: bool
) -> list[_RemoteShard]:
    """Their presence and sizes checked, and with `verify` copied and checked now."""
    shards = [_RemoteShard(storage, entry, expected) for entry in entries]

    def check(shard: _RemoteShard) -> None:
        where, entry = storage.where(shard.entry["path"]), shard.entry
        with _corpus_errors():
            size = storage.size(entry["path"])
        if size is None:
            raise CorpusError(f"{where}: missing, though the manifest lists it")
        if size != entry["bytes"]:
            raise CorpusError(f"{where}: has {size:,} bytes, the manifest says {entry['bytes']:,}")
        if verify:
            _ = shard.batch

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, shards))
    return shards


@contextmanager
def _corpus_errors() -> Iterator[None]:
    """What an object store says, as what is wrong with a corpus."""
    try:
        yield
    except (BuildError, OSError) as error:
        raise CorpusError(str(error)) from error


def _place(folder: str | Path) -> "Path | Storage":
    """The folder of a corpus, or its storage where it lies in an object store."""
    if "://" not in str(folder):
        return Path(folder)
    from pipeline.storage import LocalStorage, open_storage  # which imports this module

    with _corpus_errors():
        storage = open_storage(str(folder))
    return storage.root if isinstance(storage, LocalStorage) else storage


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a sealed corpus, in a local folder or at an s3:// or gs:// URI. CorpusError where there is none,
    or not one of this format."""
    return _read_manifest(_place(folder))


def _read_manifest(place: "Path | Storage") -> dict[str, Any]:
    path = place / MANIFEST if isinstance(place, Path) else place.where(MANIFEST)
    try:
        content = (place / MANIFEST).read_bytes() if isinstance(place, Path) else place.read(MANIFEST)
        manifest = json.loads(content)
    except FileNotFoundError:
        raise CorpusError(f"{path}: missing; not a corpus, or one whose build has not finished") from None
    except BuildError as error:
        raise CorpusError(str(error)) from error
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path}: not readable as JSON: {error}") from error
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise CorpusError(f"{path}: format version {version}, expected {FORMAT_VERSION}")
    return manifest


def open_corpus(folder: str | Path, split: str = "train", verify: bool = False) -> Corpus:
    """Opens a sealed corpus for reading. Sizes and formats are always checked, checksums with `verify`.

    At an s3:// or gs:// URI the sizes are checked; a shard is copied to this machine's cache and checked, checksum and
    all, when it is first read. Raises CorpusError, naming the file, where one is missing, torn or of another format.
    """
    place = _place(folder)
    manifest = _read_manifest(place)
    try:
        if split not in manifest["splits"]:
            raise CorpusError(f"{folder}: no split {split!r}, it has {', '.join(manifest['splits'])}")
        return Corpus(place, split, manifest, verify)
    except (KeyError, TypeError) as error:
        raise CorpusError(f"{folder}/{MANIFEST}: damaged; no {error}") from error
