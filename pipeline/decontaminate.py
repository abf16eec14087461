"""Decontamination: documents that hold text of evaluation files stay out of the corpus, else a model is tested on what
it was trained on. As for GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C), by n-grams of words in lower case
without punctuation.

    decontaminate:
      paths: [squad/dev.json, hotpotqa/*.parquet]

Read are .txt (a file is one text), .jsonl and .parquet (rows), .json (rows, or any nesting). Every string in a row is a
text; a list of strings, such as sentences, is one text. All n-grams of these texts, as 64-bit hashes, are the *index*:
with ten million of them, and a thousand million n-grams in the corpus, one document in a hundred corpora goes by
mistake.

A text of fewer than `ngram` words has no n-gram. Questions are that short, so down to `shortest` words the whole text
is looked for. Texts that are shorter still (names, answers, numbers) would be found everywhere and are left out; the
index counts them.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import orjson
import pyarrow.parquet
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.errors import InputError
from pipeline.fetch import Input, open_input
from pipeline.shares import Share, exceeds
from pipeline.words import hash_ngrams, hash_several_ngrams, hash_words

CONTAMINATED = "contaminated"
_FORMATS = (".txt", ".jsonl", ".json", ".parquet")
_HELD = 4_000_000
"""Hashes gathered before they are sorted into the index: 32 MB."""


def _list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Names = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_list), Field(min_length=1)
]


class Decontaminate(BaseModel):
    """Which evaluation data the corpus must not hold, and what holding them means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    paths: Names
    """The evaluation files: files, folders, globs, URIs, as of a source."""
    columns: Names | None = None
    """The keys, at any depth, whose texts count, as in [question, answers]; all, if left out. Evaluation data made
    from Wikipedia quote it: `context` of HotpotQA would drop the articles, which may or may not be meant."""
    ngram: Annotated[int, Field(ge=2, le=64)] = 13
    """Words. Fewer find more, and quotations and set phrases too."""
    shortest: Annotated[int, Field(ge=2, le=64)] = 8
    """Words of the shortest text that is looked for as a whole; `ngram`, for none."""
    maximum_hits: Annotated[int, Field(ge=0)] = 0
    """A document goes if it has more different n-grams of the evaluation data than this. 0: 13 words in a row are
    enough. 7: a passage of more than 20 words, or several."""
    maximum_share: Share = Fraction(0)
    """... and if more than this share of its own n-grams are in the evaluation data. Above 0 it keeps a book that
    quotes a paragraph."""

    @model_validator(mode="after")
    def _shortest_is_not_longer(self) -> "Decontaminate":
        if self.shortest > self.ngram:
            raise ValueError(f"shortest: expected at most ngram = {self.ngram}, found {self.shortest}")
        return self


@dataclass(frozen=True)
class Index:
    """The n-grams of evaluation data."""

    hashes: np.ndarray
    """(n-grams,) uint64, sorted, each once."""
    ngrams: tuple[int, ...]
    """The lengths that occur, ascending."""
    texts: int = 0
    """How many texts they are from."""
    left_out: int = 0
    """How many texts had fewer than `shortest` words, or none."""

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """(n,) bool: which of `hashes`, (n,) uint64, are in the index."""
        possible = np.flatnonzero(np.take(self._cells, (hashes >> self._shift).astype(np.int64)))
        found = np.zeros(len(hashes), dtype=bool)
        if len(possible) and len(self.hashes):
            wanted = hashes[possible]
            places = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
            found[possible] = self.hashes[places] == wanted
        return found

    @cached_property
    def _shift(self) -> np.uint64:
        return np.uint64(64 - min(28, len(self.hashes).bit_length() + 4))

    @cached_property
    def _cells(self) -> np.ndarray:
        """(cells,) bool: whether any hash begins with these digits. Few do, and a search in the whole index takes
        twenty times as long."""
        cells = np.zeros(1 << (64 - int(self._shift)), dtype=bool)
        cells[self.hashes >> self._shift] = True
        return cells


def accepts(name: str) -> bool:
    """Whether a file of this name is read."""
    return name.lower().endswith(_FORMATS)


def contaminated(text: str, index: Index, settings: Decontaminate) -> str | None:
    """Why the document is dropped, None to keep it."""
    words = hash_words(text)
    hits: list[np.ndarray] = []
    for hashes in hash_several_ngrams(words, index.ngrams):
        found = index.find(hashes)
        if found.any():
            hits.append(hashes[found])
    if not hits:
        return None
    found = np.concatenate(hits)
    own = max(1, len(words) - settings.ngram + 1)
    if len(set(found.tolist())) > settings.maximum_hits and exceeds(len(found), settings.maximum_share, own):
        return CONTAMINATED
    return None


def build_index(inputs: Iterable[Input], settings: Decontaminate) -> Index:
    """Reads the evaluation files; the same index whatever their order. Raises InputError, naming the file and what is
    wrong in it. Holds the index and, of the files, a row at a time; a .json, and a file over https, as a whole."""
    hashes = np.zeros(0, dtype=np.uint64)
    held: list[np.ndarray] = []
    lengths: set[int] = set()
    texts = left_out = size = 0
    for item in inputs:
        for text in _texts(item, settings.columns):
            words = hash_words(text)
            length = min(len(words), settings.ngram)
            if length < settings.shortest:
                left_out += 1
                continue
            texts += 1
            lengths.add(length)
            held.append(hash_ngrams(words, length))
            size += len(held[-1])
            if size >= _HELD:
                hashes, held, size = _merged([hashes, *held]), [], 0
    return Index(_merged([hashes, *held]), tuple(sorted(lengths)), texts, left_out)


def _merged(parts: Sequence[np.ndarray]) -> np.ndarray:
    ordered = np.sort(np.concatenate(parts))
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


def _texts(item: Input, columns: tuple[str, ...] | None) -> Iterator[str]:
    if item.key.lower().endswith(".txt"):
        try:
            yield _read(item).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{item.uri}: not UTF-8: {error.reason} at byte {error.start}") from error
        return
    seen: set[str] = set()
    for row in _rows(item):
        if columns is None:
            yield from _strings(row)
        else:
            yield from _under(row, frozenset(columns), seen)
    missing = sorted(set(columns or ()) - seen)
    if missing:
        raise InputError(f"{item.uri}: no column named {', '.join(missing)} (decontaminate.columns)")


def _rows(item: Input) -> Iterator[Any]:
    name = item.key.lower()
    if name.endswith(".parquet"):
        try:
            with open_input(item) as stream:
                file = pyarrow.parquet.ParquetFile(stream if stream.seekable() else io.BytesIO(stream.read()))
                for batch in file.iter_batches(batch_size=256):
                    yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            raise InputError(f"{item.uri}: not a readable parquet file: {error}") from error
    elif name.endswith(".jsonl"):
        with open_input(item) as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield _parsed(line, f"{item.uri}: line {number}")
    else:
        yield _parsed(_read(item), item.uri)


def _read(item: Input) -> bytes:
    with open_input(item) as stream:
        return stream.read()


def _parsed(content: bytes, where: str) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        try:  # NaN and lone surrogates, which orjson refuses and evaluation data have
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON: {error}") from error


def _under(value: Any, columns: frozenset[str], seen: set[str]) -> Iterator[str]:
    """The texts under any of the keys."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key in columns:
            seen.add(key)
            yield from _strings(inner)
        else:
            yield from _under(inner, columns, seen)
    for inner in value if isinstance(value, list) else ():
        yield from _under(inner, columns, seen)


def _strings(value: Any) -> Iterator[str]:
    """Every text in a row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        joined = _joined(value)
        if joined is not None:
            yield joined
        else:
            for inner in value:
                yield from _strings(inner)


def _joined(value: Sequence[Any]) -> str | None:
    """A list of strings, or of lists of strings, as one text; None where it holds anything else."""
    parts: list[str] = []
    for inner in value:
        part = inner if isinstance(inner, str) else _joined(inner) if isinstance(inner, list) else None
        if part is None:
            return None
        parts.append(part)
    return " ".join(parts) if parts else None
