"""Which texts are for training, validation and test, where the data does not say: by seed and id alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from trainer.engine.config import InputError
from trainer.engine.randomness import hash64
from trainer.model.json_files import read_json
from trainer.tasks.task import SPLITS, Split


def stratified(truth: Mapping[str, str], seed: int) -> dict[Split, set[str]]:
    """A tenth of each class's ids for validation and for test, the rest for train; by hashes of seed and id alone."""
    splits: dict[Split, set[str]] = {split: set() for split in SPLITS}
    for label in sorted(set(truth.values())):
        ids = [name for name, own in truth.items() if own == label]
        ids.sort(key=lambda name: (uniform("hyperpartisan split", seed, name), name))
        tenth = round(len(ids) / 10)
        splits["validation"].update(ids[:tenth])
        splits["test"].update(ids[tenth : 2 * tenth])
        splits["train"].update(ids[2 * tenth :])
    return splits


def published(path: Path, truth: Mapping[str, str]) -> dict[Split, set[str]]:
    """The ids of {train, dev, test: [number, …]}, where 182 is article 0000182."""
    found = read_json(path)
    splits: dict[Split, set[str]] = {}
    for split, key in zip(SPLITS, ("train", "dev", "test"), strict=True):
        numbers = found.get(key)
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise InputError(f"{path}: {key}: found {str(numbers)[:80]}, expected a list of whole numbers")
        splits[split] = {f"{number:07d}" for number in numbers}
        if unknown := splits[split] - truth.keys():
            raise InputError(
                f"{path}: {key}: {len(unknown)} ids such as {min(unknown)} are no articles', expected ids of the set"
            )
    return splits


def uniform(purpose: str, seed: int, name: str) -> float:
    """In [0, 1), of a seed and an id."""
    word = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest(), "little")
    return int(hash64(purpose, seed, word)) / 2.0**64
