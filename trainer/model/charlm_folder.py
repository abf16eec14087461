"""Folders that hold a character model: config.json and its weights, in and out.

config.json        {"model_type": "longspan-characters", sizes, "lookback", "vocabulary", "characters"}
model.safetensors  float32, by parameter name; weights.safetensors in a checkpoint
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from trainer.batches.text import MOST_CHARACTERS, Alphabet
from trainer.engine.checkpoint import save_tensors
from trainer.engine.config import InputError, problems
from trainer.model.charlm import CharacterConfig, CharacterModel
from trainer.model.json_files import read_json
from trainer.model.output_folder import CARD, replaced
from trainer.model.weights import read_shapes, read_tensors

MODEL_TYPE = "longspan-characters"
WEIGHTS = ("model.safetensors", "weights.safetensors")
FILES = ("config.json", WEIGHTS[0], CARD)


@dataclass(frozen=True)
class TrainedText:
    """The text that a model was trained on, so that it is not evaluated on what it has read."""

    sha256: str
    sizes: tuple[int, int, int]
    """Characters of train, validation and test."""


@dataclass(frozen=True)
class CharacterDescription:
    """What a folder's config.json says."""

    config: CharacterConfig
    lookback: tuple[int, ...]
    """Of the phase that the weights are of."""
    alphabet: Alphabet
    text: TrainedText | None = None

    def as_json(self) -> dict[str, Any]:
        text = self.text and {"sha256": self.text.sha256, "characters": list(self.text.sizes)}
        return {
            "model_type": MODEL_TYPE,
            **self.config.model_dump(mode="json"),
            "lookback": list(self.lookback),
            "vocabulary": self.alphabet.kind,
            "characters": self.alphabet.characters,
            "text": text,
        }


@dataclass(frozen=True)
class StoredCharacterModel:
    """What a folder holds."""

    model: CharacterModel
    """In float32, not training."""
    lookback: tuple[int, ...]
    alphabet: Alphabet
    text: TrainedText | None


def is_character_model(folder: Path) -> bool:
    """Whether a folder's config.json is of a character model."""
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("model_type") == MODEL_TYPE


def read_character_config(folder: Path) -> CharacterDescription:
    """What a folder says of its model; InputError names what does not fit."""
    path = folder / "config.json"
    found = read_json(path)
    if found.get("model_type") != MODEL_TYPE:
        raise InputError(
            f"{path}: model_type: found {found.get('model_type')!r}, expected {MODEL_TYPE!r}, "
            "a model of trainer/charlm.py"
        )
    lookback, kind, characters, text = (
        found.pop(key, None) for key in ("lookback", "vocabulary", "characters", "text")
    )
    del found["model_type"]
    try:
        config = CharacterConfig.model_validate(found)
    except ValidationError as error:
        raise InputError(f"{path}:\n" + "\n".join(f"  {line}" for line in problems(error))) from error
    layers = config.num_hidden_layers
    if (
        not isinstance(lookback, list)
        or len(lookback) != layers
        or not all(type(back) is int and back >= 0 for back in lookback)
    ):
        raise InputError(f"{path}: lookback: found {lookback!r}, expected {layers} counts of characters")
    valid = kind == "bytes" or (
        kind == "characters"
        and isinstance(characters, str)
        and 0 < len(characters) <= MOST_CHARACTERS
        and list(characters) == sorted(set(characters))
        and not any("\ud800" <= character <= "\udfff" for character in characters)  # JSON can say half a pair
    )
    if not valid:
        raise InputError(
            f"{path}: vocabulary: found {kind!r}, expected 'bytes', or 'characters' with a list of them"
        )
    alphabet = Alphabet(kind, "" if kind == "bytes" else characters)
    if config.vocab_size != alphabet.size:
        raise InputError(
            f"{path}: vocab_size: found {config.vocab_size}, expected the {alphabet.size} of its alphabet"
        )
    return CharacterDescription(config, tuple(lookback), alphabet, _trained_text(text, path))


def _trained_text(found: object, path: Path) -> TrainedText | None:
    if found is None:
        return None
    match found:
        case {"sha256": str(sha256), "characters": [int(train), int(validation), int(test)]} if (
            min(train, validation, test) >= 0
        ):
            return TrainedText(sha256, (train, validation, test))
    raise InputError(f"{path}: text: found {found!r}, expected its sha256 and the characters of three splits")


def load_character_model(folder: Path) -> StoredCharacterModel:
    """The model in RUN/export or in a checkpoint; every parameter must be there in its shape."""
    described = read_character_config(folder)
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"{folder}: found no {' and no '.join(WEIGHTS)}")
    model = _hollow(described.config)
    _check_shapes(read_shapes([path]), model, path)
    tensors = {name: tensor.to(torch.float32, copy=True) for name, tensor in read_tensors([path]).items()}
    model.load_state_dict(tensors, assign=True)
    return StoredCharacterModel(model.eval(), described.lookback, described.alphabet, described.text)


def check_character_tensors(tensors: Mapping[str, Tensor], config: CharacterConfig, where: Path) -> None:
    """InputError lists parameters that are missing, unknown, or of another shape."""
    _check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, _hollow(config), where)


def _hollow(config: CharacterConfig) -> CharacterModel:
    """The model without memory for its parameters: what is read takes the place of each."""
    with torch.device("meta"):
        return CharacterModel(config)


def _check_shapes(found: Mapping[str, tuple[int, ...]], model: CharacterModel, where: Path) -> None:
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    lines = [
        f"  {name}: found {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if lines:
        raise InputError(f"{where}: does not fit its config.json\n" + "\n".join(lines[:20]))


def write_character_model(
    folder: Path, described: CharacterDescription, tensors: Mapping[str, Tensor], card: str = ""
) -> None:
    """Write a folder that `load_character_model` reads; it is never there half-written."""
    with replaced(folder, FILES) as beside:
        save_tensors(
            beside / WEIGHTS[0], {name: tensor.float().contiguous() for name, tensor in tensors.items()}
        )
        settings = json.dumps(described.as_json(), indent=2) + "\n"
        (beside / "config.json").write_text(settings, encoding="utf-8")
        if card:
            (beside / CARD).write_text(card, encoding="utf-8")
