"""The tokenizer that travels with a model folder: which files it is, what it is called, copying it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.tokenizer import Tokenizer, load_tokenizer
from trainer.engine.config import InputError
from trainer.model.json_files import read_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
# Any of these is a tokenizer; the others only say more about it.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "sentencepiece.bpe.model")
# What transformers takes for a folder that does not say. As a Longformer's it would be RoBERTa's, whatever the files.
_CLASSES = {
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "roberta": "RobertaTokenizer",
    "longformer": "RobertaTokenizer",
}
_BERTS_TOKENS = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
_ROBERTAS_TOKENS = {
    "bos": "<s>",
    "eos": "</s>",
    "unk": "<unk>",
    "cls": "<s>",
    "sep": "</s>",
    "pad": "<pad>",
    "mask": "<mask>",
}
# What these classes take where nothing is named. Before 5.6 transformers reads a Longformer's tokenizer.json without
# the class that is written down, and then could not pad.
_DEFAULT_TOKENS = {
    "BertTokenizer": _BERTS_TOKENS,
    **dict.fromkeys(("CamembertTokenizer", "XLMRobertaTokenizer", "RobertaTokenizer"), _ROBERTAS_TOKENS),
}


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _VOCABULARIES)


def tokenizer_fingerprint(folder: Path) -> str | None:
    """The fingerprint of a model folder's tokenizer, None where it has none.

    InputError where it is of a kind that no corpus of pipeline.build_corpus is made with (WordPiece, sentencepiece).
    """
    return read_tokenizer(folder).fingerprint if has_tokenizer(folder) else None


def read_tokenizer(location: Path) -> Tokenizer:
    """The tokenizer of a folder or file; InputError says what is wrong with it."""
    try:
        return load_tokenizer(location)
    except ValueError as error:
        raise InputError(str(error)) from error


def special_token_id(folder: Path, role: str, default: str) -> int | None:
    """The id of a folder's `cls` or `sep` token, which a BERT's config.json does not tell; None where unknown.

    `default` is the token's text where tokenizer_config.json does not name it.
    """
    named = _read_if_there(folder / "tokenizer_config.json").get(f"{role}_token", default)
    token = named.get("content") if isinstance(named, dict) else named
    if (folder / "tokenizer.json").is_file():
        stored = read_json(folder / "tokenizer.json")
        added = stored.get("added_tokens")
        for entry in added if isinstance(added, list) else []:
            if isinstance(entry, dict) and entry.get("content") == token and isinstance(entry.get("id"), int):
                return entry["id"]
        model = stored.get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        index = vocabulary.get(str(token)) if isinstance(vocabulary, dict) else None
        return index if isinstance(index, int) else None
    if (folder / "vocab.txt").is_file():
        tokens = (folder / "vocab.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        return tokens.index(token) if token in tokens else None
    return None


def copy_tokenizer(source: Path, target: Path, max_tokens: int) -> None:
    """Copy a tokenizer's files as they are, but for the length `transformers` truncates at and the tokenizer's class,
    with the tokens that the class takes by default.

    A bare byte-level tokenizer.json (as a corpus folder holds) gets the tokenizer_config.json `transformers` needs.
    """
    if not has_tokenizer(source):
        return
    present = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in present:
        shutil.copyfile(source / name, target / name)
    kind = _read_if_there(source / "config.json").get("model_type")
    if present == ["tokenizer.json"] and kind not in ("bert", "camembert", "xlm-roberta"):
        read_tokenizer(source / "tokenizer.json").save(target)
    path = target / "tokenizer_config.json"
    settings = _read_if_there(path)
    if isinstance(kind, str) and kind in _CLASSES:
        chosen = str(settings.setdefault("tokenizer_class", _CLASSES[kind])).removesuffix("Fast")
        named = _read_if_there(target / "special_tokens_map.json")
        for role, token in _DEFAULT_TOKENS.get(chosen, {}).items():
            if f"{role}_token" not in named:
                settings.setdefault(f"{role}_token", token)
    settings["model_max_length"] = max_tokens
    settings.pop("max_len", None)  # the same under its older name
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
