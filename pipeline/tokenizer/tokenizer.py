"""Loading tokenizers, checking them, naming them by a fingerprint.

The tokenizer file is the truth: whatever it says is what a corpus holds, and the fingerprint of what it
says travels with every shard, so that a model trained with another tokenizer is refused.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from pipeline.shards import token_dtype, write_atomically
from pipeline.tokenizer.engines import AUTO, Choice, choose, resolved
from pipeline.tokenizer.ranks import entry_bytes

BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
SPECIAL_TOKENS = (BOS, PAD, EOS, UNK, MASK)
"""RoBERTa's five. They are found by these strings; their ids are the tokenizer's own business."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
"""What `Tokenizer.files` gives."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

# Settings of a tokenizer.json that change the offsets tokens report, or how they are decoded or wrapped in
# special tokens, but never the ids of a text.
_NO_EFFECT_ON_IDS = frozenset({"trim_offsets"})

_chosen: dict[tuple[str, str], Choice] = {}
"""Engines of this process, by fingerprint and what was asked for: a driver that is its own worker tries one once."""


class Tokenizer:
    """A byte-level BPE with RoBERTa's special tokens.

    Made by `load_tokenizer`. `encode` adds no special tokens and reads none out of the text: a literal `<mask>` in
    a document is six characters. The engine behind it is chosen when it is first asked for: who only decodes, or
    wants an id, waits for nothing.
    """

    def __init__(self, backend: tokenizers.Tokenizer, location: str, engine: str = AUTO) -> None:
        """Takes over `backend`. ValueError where it is no byte-level BPE, or one of the five special tokens is
        missing, or the engine asked for cannot be had."""
        missing = [token for token in SPECIAL_TOKENS if backend.token_to_id(token) is None]
        if not missing:
            # Those that the file declares stay as they are; the others become special here, so that both kinds
            # of file behave, and are fingerprinted, alike. `<mask>` takes the space before it, as RoBERTa's does.
            declared = {token.content for token in backend.get_added_tokens_decoder().values()}
            backend.add_special_tokens(
                [AddedToken(t, lstrip=t == MASK, special=True) for t in SPECIAL_TOKENS if t not in declared]
            )
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self._json = backend.to_str()
        settings = orjson.loads(self._json)
        kind, splitters = _model_and_splitters(settings)
        if kind != "BPE" or "ByteLevel" not in splitters:
            raise ValueError(
                f"tokenizer {location}: its model is {kind} and its pre-tokenizer {', '.join(splitters) or 'none'}; "
                "expected BPE and ByteLevel, as RoBERTa and GPT-2 have"
            )
        if missing:
            raise ValueError(
                f"tokenizer {location}: no {' '.join(missing)} in its vocabulary of "
                f"{backend.get_vocab_size():,} entries; RoBERTa's {' '.join(SPECIAL_TOKENS)} are all needed"
            )
        self._backend = backend
        self._location = location
        self._choice: Choice | None = None
        self.bos_id, self.pad_id, self.eos_id, self.unk_id, self.mask_id = (
            _known_id(backend, token) for token in SPECIAL_TOKENS
        )
        added = [token["id"] for token in settings["added_tokens"]]
        self.vocabulary_size: int = max(*settings["model"]["vocab"].values(), *added) + 1
        """One more than the largest id: the number of rows an embedding table needs."""
        self.special_ids: frozenset[int] = _special_ids(settings)
        """Ids that no text gives: declared special tokens, and entries no merge leads to. Neither masking
        nor random replacement may touch or produce them."""
        self.covers_bytes: bool = _covers_bytes(settings)
        """Whether each token stands for at least one byte of the text, so that a text of n bytes cannot have
        more than n tokens."""
        self.fingerprint: str = _fingerprint(settings)
        """16 hexadecimal digits over everything that decides the ids of a text, and the special ids."""
        if engine != AUTO:
            self._choose(engine)

    @property
    def engine(self) -> str:
        """The name and version of the library that `encode` runs, such as "fastokens 0.3.5". The first call tries
        engines out, which takes about a second."""
        return self._choose(AUTO).name

    @property
    def passed_over(self) -> tuple[str, ...]:
        """A line for each faster engine that is not used, with the reason."""
        return self._choose(AUTO).remarks

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of texts without special tokens, those of `encode_batch`, by the fastest engine that gives them.

        Returns:
            ids: those of all texts one after another, (total,) uint16, or uint32 above 65,536 entries.
            offsets: where each text's ids begin, and where the last's end, (len(texts) + 1,) int64.

        Raises UnicodeEncodeError for a lone surrogate, which no UTF-8 holds.
        """
        try:
            ids, offsets = self._choose(AUTO).engine.encode(texts)
        except TypeError:
            for text in texts:
                text.encode()  # tokenizers calls a lone surrogate an argument of the wrong type
            raise
        return ids.astype(token_dtype(self.vocabulary_size), copy=False), offsets

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, without special tokens, by the reference: `tokenizers`."""
        return [e.ids for e in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _choose(self, asked: str) -> Choice:
        if self._choice is None:
            asked = resolved(asked)
            known = _chosen.get((self.fingerprint, asked))
            if known is None:
                try:
                    known = choose(self._backend, orjson.loads(self._json), asked)
                except ValueError as error:
                    raise ValueError(f"tokenizer {self._location}: {error}") from error
                _chosen[self.fingerprint, asked] = _chosen[self.fingerprint, known.name] = known
            self._choice = known
        return self._choice

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens are shown as their strings."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def byte_lengths(self) -> np.ndarray:
        """int64 (vocabulary_size,): the bytes of text that each id stands for, 0 for special tokens."""
        lengths = np.zeros(self.vocabulary_size, np.int64)
        for entry, index in orjson.loads(self._json)["model"]["vocab"].items():
            if index not in self.special_ids:
                lengths[index] = len(entry_bytes(entry))
        return lengths

    def added_ids(self) -> dict[str, int]:
        """The ids of the tokens that the file declares beside its vocabulary's merges, special ones included."""
        return {token["content"]: token["id"] for token in orjson.loads(self._json)["added_tokens"]}

    def named_special_ids(self) -> dict[str, int]:
        """The five by role, as a corpus's manifest records them."""
        return {
            "bos": self.bos_id,
            "pad": self.pad_id,
            "eos": self.eos_id,
            "unk": self.unk_id,
            "mask": self.mask_id,
        }

    def to_json(self) -> str:
        """A tokenizer.json that wraps a text as RoBERTa does: `<s> text </s>`."""
        wrapped = orjson.loads(self._json)
        wrapped["post_processor"] = {
            "type": "RobertaProcessing",
            "sep": [EOS, self.eos_id],
            "cls": [BOS, self.bos_id],
            "trim_offsets": True,
            "add_prefix_space": False,
        }
        return orjson.dumps(wrapped).decode() + "\n"

    def files(self) -> dict[str, bytes]:
        """tokenizer.json and tokenizer_config.json for `transformers.AutoTokenizer`, by name."""
        config = {
            "tokenizer_class": "RobertaTokenizer",
            "add_prefix_space": False,
            "bos_token": BOS,
            "cls_token": BOS,
            "eos_token": EOS,
            "sep_token": EOS,
            "pad_token": PAD,
            "unk_token": UNK,
            "mask_token": MASK,
        }
        texts = (self.to_json(), json.dumps(config, indent=2) + "\n")
        return {name: text.encode() for name, text in zip(TOKENIZER_FILES, texts, strict=True)}

    def save(self, folder: str | Path) -> None:
        """Writes `files` into a local folder."""
        for name, content in self.files().items():
            write_atomically(Path(folder) / name, content)


def load_tokenizer(location: str | Path, engine: str = AUTO) -> Tokenizer:
    """Loads a tokenizer.json, a folder with one or with vocab.json and merges.txt, or a hub id.

    Args:
        location: the file, folder or id.
        engine: what `encode` runs: "auto" for the fastest that fits, which LONGSPAN_TOKENIZER_ENGINE may name; a
            name; or another process's `Tokenizer.engine`, name and version, which this one must have too.

    Raises ValueError, naming the location and what is wrong with it: not there, not readable, without
    RoBERTa's special tokens; or with the engine asked for: unknown, not installed, of another version, with
    other ids than the reference.
    """
    path = Path(location).expanduser()
    if path.is_file():
        return Tokenizer(_read_tokenizer_json(path), str(path), engine)
    if path.is_dir():
        return Tokenizer(_read_folder(path), str(path), engine)
    # "data/tokenizer" has the form of a hub id; where "data" is a folder here, it is a path with a slip.
    inside_a_folder = path.parent != Path() and path.parent.is_dir()
    if inside_a_folder or not _HUB_ID.fullmatch(str(location)):
        raise ValueError(
            f"tokenizer {location}: no such file or folder, and not the form of a hub id (org/name)"
        )
    return Tokenizer(_read_hub(str(location)), str(location), engine)


def _read_folder(folder: Path) -> tokenizers.Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return _read_tokenizer_json(folder / "tokenizer.json")
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        raise ValueError(
            f"tokenizer {folder}: the folder holds neither tokenizer.json nor vocab.json and merges.txt"
        )
    try:
        model = models.BPE.from_file(str(vocabulary), str(merges))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"tokenizer {folder}: vocab.json and merges.txt do not fit: {error}") from error
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"tokenizer {path}: not a tokenizer.json: {error}") from error


def _read_hub(name: str) -> tokenizers.Tokenizer:
    # Imported here: a local tokenizer should not cost the import of an HTTP stack in every worker.
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        try:
            return _read_tokenizer_json(Path(hf_hub_download(name, "tokenizer.json")))
        except RemoteEntryNotFoundError:
            vocabulary = Path(hf_hub_download(name, "vocab.json"))
            hf_hub_download(name, "merges.txt")
            return _read_folder(vocabulary.parent)
    except ValueError:
        raise
    except Exception as error:  # the hub's client and its HTTP stack have no common base class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"tokenizer {name}: no such file or folder here, and the hub did not give it: {reason}"
        ) from error


def _known_id(backend: tokenizers.Tokenizer, token: str) -> int:
    index = backend.token_to_id(token)
    assert index is not None
    return index


def _model_and_splitters(settings: Mapping[str, Any]) -> tuple[str, list[str]]:
    splitter = settings["pre_tokenizer"] or {}
    parts = splitter.get("pretokenizers", [splitter] if splitter else [])
    return settings["model"]["type"], [part["type"] for part in parts]


def _special_ids(settings: Mapping[str, Any]) -> frozenset[int]:
    special = {token["id"] for token in settings["added_tokens"] if token["special"]}
    model = settings["model"]
    if model["type"] == "BPE":
        # What training left in the table but no merge leads to: RoBERTa's <|endoftext|> and madeupwords.
        added = {token["content"] for token in settings["added_tokens"]}
        reachable = {left + right for left, right in model["merges"]}
        special |= {
            index
            for token, index in model["vocab"].items()
            if len(token) > 1 and token not in reachable and token not in added
        }
    return frozenset(special)


def _covers_bytes(settings: Mapping[str, Any]) -> bool:
    splitter = settings["pre_tokenizer"] or {}
    return (
        settings["model"]["type"] == "BPE"
        and settings["normalizer"] is None
        and splitter.get("type") == "ByteLevel"
        and not splitter.get("add_prefix_space")
    )


def _fingerprint(settings: Mapping[str, Any]) -> str:
    # An empty prefix or suffix and none are the same; which of them is written depends on who wrote the file.
    model = {k: v or None for k, v in settings["model"].items() if k not in ("vocab", "merges")}
    truth = {
        "model": model,
        "vocabulary": sorted(settings["model"].get("vocab", {}).items(), key=itemgetter(1)),
        "merges": settings["model"].get("merges"),
        "added_tokens": sorted(
            (token["id"], token["content"], token["special"]) for token in settings["added_tokens"]
        ),
        "normalizer": _without_offsets(settings["normalizer"]),
        "pre_tokenizer": _without_offsets(settings["pre_tokenizer"]),
    }
    canonical = json.dumps(truth, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]


def _without_offsets(setting: Any) -> Any:
    if isinstance(setting, Mapping):
        return {k: _without_offsets(v) for k, v in setting.items() if k not in _NO_EFFECT_ON_IDS}
    if isinstance(setting, list):
        return [_without_offsets(item) for item in setting]
    return setting
