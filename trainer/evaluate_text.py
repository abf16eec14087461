"""Bits per character of a character model over a split of a text: `python -m trainer.evaluate --text`."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from trainer.batches.character_evaluation import (
    SEQUENCE_LENGTH,
    STEP,
    Characters,
    Windows,
    character_loss,
)
from trainer.batches.evaluation import bits
from trainer.batches.text import DEFAULT_SHARE, Alphabet, open_text, split_sizes
from trainer.engine.config import InputError
from trainer.model.charlm_folder import load_character_model

AT_ONCE = 1 << 24  # characters looked at


def evaluate_text(
    model: str | Path,
    text: str | Path,
    split: str = "validation",
    sequence_length: int = SEQUENCE_LENGTH,
    step: int = STEP,
    windows: int | None = None,
    validation: float | None = None,
    test: float | None = None,
    cache_dir: Path | None = None,
) -> dict[str, float]:
    """{"bpc", "characters", "windows"} of a folder's model: over all windows of a text's split or the first few.

    `split` is train, validation or test, or all. `validation` and `test` cut the text as a training's keys of that name
    do; by default the text that the model was trained on is cut as it was then, any other by 5 % and 5 %. The
    "characters" are those that were scored. InputError names what does not fit.
    """
    if not 1 <= step <= sequence_length:
        raise InputError(f"--step: found {step}, expected 1 to the --sequence-length of {sequence_length}")
    if windows is not None and windows < 1:
        raise InputError(f"--windows: found {windows}, expected at least 1")
    for name, part in (("validation", validation), ("test", test)):
        if part is not None and not 0 <= part < math.inf:
            raise InputError(f"--{name}: found {part}, expected a share below 1 or a count of characters")
    stored = load_character_model(Path(model))
    opened = open_text(text, stored.alphabet.kind, cache_dir)
    cut: tuple[float, float] = (DEFAULT_SHARE, DEFAULT_SHARE)
    trained = stored.text
    if trained and trained.sha256 == opened.sha256 and sum(trained.sizes) == len(opened.ids):
        cut = trained.sizes[1:]
    sizes = split_sizes(
        len(opened.ids),
        cut[0] if validation is None else validation,
        cut[1] if test is None else test,
    )
    opened = replace(opened, sizes=sizes)
    ids = opened.ids if split == "all" else opened.split(split)
    try:
        characters = as_numbered_by(ids, opened.alphabet, stored.alphabet)
    except InputError as error:
        raise InputError(f"{text}: {split}: {error}") from error
    count = len(range(len(Windows(len(characters), sequence_length, step)))[:windows])
    if not count:
        raise InputError(f"{text}: {split}: found {len(characters)} characters, expected at least 2")
    stored.model.to("cuda" if torch.cuda.is_available() else "cpu")
    with tqdm(total=count, desc="evaluating", disable=not sys.stderr.isatty()) as bar:
        loss, scored = character_loss(
            stored.model, stored.lookback, characters, sequence_length, step, slice(windows), bar.update
        )
    return {"bpc": bits(loss, scored), "characters": scored, "windows": count}


@dataclass(frozen=True)
class Renumbered:
    """Ids of one alphabet, read as those of another."""

    ids: np.ndarray
    other: np.ndarray
    """The other alphabet's id for each of the first."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, places: slice, /) -> np.ndarray:
        return self.other[self.ids[places]]


def as_numbered_by(ids: np.ndarray, own: Alphabet, model: Alphabet) -> Characters:
    """A text's ids in a model's alphabet: a text of characters is numbered by those that it holds itself."""
    if own == model:
        return ids
    numbers = {character: number for number, character in enumerate(model.characters)}
    other = np.array([numbers.get(character, -1) for character in own.characters])
    present = np.zeros(len(other), dtype=bool)
    for start in range(0, len(ids), AT_ONCE):
        present[ids[start : start + AT_ONCE]] = True
    unknown = [own.characters[number] for number in np.flatnonzero(present & (other < 0))]
    if unknown:
        shown = ", ".join(repr(character) for character in unknown[:8]) + (", …" if len(unknown) > 8 else "")
        raise InputError(f"found {shown}; expected only the {model.size} characters that the model knows")
    return Renumbered(ids, other)
