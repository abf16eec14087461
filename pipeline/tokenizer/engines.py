"""The libraries that encode, fastest first, and how one of them earns its place behind the tokenizer's truth.

`tokenizers` is the reference: what it gives is right by definition. Another engine is used only where it is
installed, where `ranks` shows that merging by rank is what the tokenizer says, and where the engine gives the
reference's ids on `sample_texts` at start-up, in every process. What it cannot encode, the reference encodes.

Measured on this project's sample texts, one thread, first pass: fastokens 65-75 MB of text a CPU second, tiktoken
6-11, tokenizers 1.2-2. gigatoken (70) is left out: its cache of words grows without bound (1.6 GB after 160 MB of
distinct words), and it wants awkward arrays.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, pairwise
from typing import Protocol

import numpy as np
import orjson
import tokenizers

from pipeline.tokenizer.ranks import Settings, obstacle, rank_table, unreachable_entry
from pipeline.tokenizer.sample import sample_texts

AUTO = "auto"
REFERENCE = "tokenizers"
ENGINE_VARIABLE = "LONGSPAN_TOKENIZER_ENGINE"
"""Names the engine where a caller asks for AUTO. It is no key of a configuration, as no engine changes a corpus."""

REFERENCE_BATCH = 1_000_000
"""Characters given to `tokenizers` at a time: its results take some fifty times the room of their ids."""

# GPT-2's pattern in tiktoken's words. Possessive quantifiers give the same pieces, as nothing that follows them could
# start within the run they took; `\s++$` takes what `\s+(?!\S)` would at the end of a text; and a single blank is
# all that is left for `\s`.
_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

Flat = tuple[np.ndarray, np.ndarray]
"""Ids of all texts, (total,) of unsigned integers, and where each text's begin and the last's end, (n+1,) int64."""


class Engine(Protocol):
    """Encodes with one thread, as Ray places units by CPUs and a unit's CPU seconds are then its own; `tokenizers` with
    as many as TOKENIZERS_PARALLELISM lets it, which is one in Ray's workers.

    Time grows with a text's length, memory with that of its longest piece: some 45 bytes for each of a run of letters
    that nothing interrupts."""

    def encode(self, texts: Sequence[str]) -> Flat:
        """The ids of `texts`. May raise whatever the library raises on what it cannot encode."""


class Reference:
    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    def encode(self, texts: Sequence[str]) -> Flat:
        parts: list[np.ndarray] = []
        lengths: list[int] = []
        start, characters = 0, 0
        for end, text in enumerate(texts, 1):
            characters += len(text)
            if characters >= REFERENCE_BATCH or end == len(texts):
                encodings = self._backend.encode_batch_fast(list(texts[start:end]), add_special_tokens=False)
                rows = [encoding.ids for encoding in encodings]
                lengths.extend(map(len, rows))
                parts.append(np.fromiter(chain.from_iterable(rows), np.uint32, sum(map(len, rows))))
                start, characters = end, 0
        return _joined(parts), _offsets(lengths)


class Fastokens:
    def __init__(self, settings: Settings) -> None:
        # Read once a process, when the library first encodes.
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        import fastokens

        # Without added tokens a literal `<mask>` is text, as it is for the reference here.
        bare = {**settings, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        self._encoder = fastokens.Tokenizer.from_json_str(orjson.dumps(bare).decode())

    def encode(self, texts: Sequence[str]) -> Flat:
        ids, offsets = self._encoder.encode_batch_flat(list(texts))
        return np.frombuffer(ids, "<u4"), np.frombuffer(offsets, "<u8").astype(np.int64)


class Tiktoken:
    def __init__(self, settings: Settings) -> None:
        import tiktoken

        ranks, self._ids = rank_table(settings)
        self._encoder = tiktoken.Encoding(
            "longspan", pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    def encode(self, texts: Sequence[str]) -> Flat:
        rows = [self._encoder.encode_to_numpy(text, disallowed_special=()) for text in texts]
        return self._ids[_joined(rows)], _offsets([len(row) for row in rows])


FAST: dict[str, type[Fastokens] | type[Tiktoken]] = {"fastokens": Fastokens, "tiktoken": Tiktoken}
"""Fastest first."""


class Guarded:
    """An engine, and the reference for texts that it refuses: tiktoken's pattern runs out of stack on a run of
    about a million blanks before a word, and a bug of any of them must cost time, not a build."""

    def __init__(self, engine: Engine, reference: Reference) -> None:
        self._engine, self._reference = engine, reference

    def encode(self, texts: Sequence[str]) -> Flat:
        try:
            return self._engine.encode(texts)
        except BaseException as error:
            if not _is_refusal(error):
                raise
        if len(texts) == 1:
            return self._reference.encode(texts)
        rows = [self.encode([text])[0] for text in texts]
        return _joined(rows), _offsets([len(row) for row in rows])


@dataclass(frozen=True)
class Choice:
    """An engine for a tokenizer, its name and version, and a line for each faster one with why it is not used."""

    engine: Engine
    name: str
    remarks: tuple[str, ...]


def resolved(asked: str) -> str:
    """What is asked for, where AUTO is what the environment names."""
    return os.environ.get(ENGINE_VARIABLE, AUTO) if asked == AUTO else asked


def choose(backend: tokenizers.Tokenizer, settings: Settings, asked: str) -> Choice:
    """The engine for a tokenizer.

    Args:
        backend: the reference, without padding or truncation, with `encode_special_tokens`.
        settings: the same tokenizer as a parsed tokenizer.json.
        asked: AUTO, a name, or a name and version as an earlier choice gave it: such a choice, made for the
            same settings, is not proved again, only tried on a part of the sample.

    Raises ValueError where the engine asked for is unknown, of another version, or not fit for this tokenizer.
    """
    name, _, wanted = asked.partition(" ")
    if name not in (AUTO, REFERENCE, *FAST):
        raise ValueError(f"engine {asked!r}: expected {AUTO}, {', '.join(FAST)} or {REFERENCE}")
    reference = Reference(backend)
    remarks: list[str] = []
    for candidate, kind in FAST.items():
        if name not in (AUTO, candidate):
            continue
        try:
            found = version(candidate)
        except PackageNotFoundError:
            reason: str | None = "is not installed"
        else:
            if wanted and found != wanted:
                reason = f"is installed in version {found}"
            else:
                engine, reason = _tried(kind, backend, reference, settings, proved=bool(wanted))
                if engine is not None:
                    return Choice(Guarded(engine, reference), f"{candidate} {found}", tuple(remarks))
        remarks.append(f"{candidate} {reason}")
        if name != AUTO:
            raise ValueError(f"engine {asked}: {remarks[-1]}")
    found = version(REFERENCE)
    if wanted and found != wanted:
        raise ValueError(f"engine {asked}: {REFERENCE} is installed in version {found}")
    return Choice(reference, f"{REFERENCE} {found}", tuple(remarks))


def _tried(
    kind: type[Fastokens] | type[Tiktoken],
    backend: tokenizers.Tokenizer,
    reference: Reference,
    settings: Settings,
    proved: bool,
) -> tuple[Engine | None, str | None]:
    """The engine, or why it cannot stand in for the reference."""
    against = obstacle(settings) or (None if proved else unreachable_entry(backend, settings))
    if against is not None:
        return None, f"does not fit this tokenizer: {against}"
    model = settings["model"]
    texts = sample_texts(model["vocab"], model["merges"], share=8 if proved else 1)
    try:
        engine = kind(settings)
        ids, offsets = engine.encode(texts)
    except BaseException as error:
        if not _is_refusal(error):
            raise
        return None, f"failed on the sample texts: {type(error).__name__}: {error}"
    expected, expected_offsets = reference.encode(texts)
    if np.array_equal(offsets, expected_offsets) and np.array_equal(ids, expected):
        return engine, None
    pairs = zip(texts, _rows(ids, offsets), _rows(expected, expected_offsets))  # it may even have lost some
    differing = (text for text, row, right in pairs if not np.array_equal(row, right))
    return None, f"gives other ids than {REFERENCE} for {next(differing, texts[-1])[:60]!r}"


def _is_refusal(error: BaseException) -> bool:
    # A panic of a Rust library is a BaseException of a class that no module exports.
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _joined(rows: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(rows) if rows else np.zeros(0, np.uint32)


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _rows(ids: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    return [ids[start:end] for start, end in pairwise(offsets)]
