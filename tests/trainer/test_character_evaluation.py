"""Overlapping evaluation: against a forward pass for each character, in shares, and in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer.character_models import SMALLER, tiny_model
from trainer.batches import character_evaluation
from trainer.batches.character_evaluation import Windows, character_loss
from trainer.model.charlm import CharacterModel

LOOKBACK = (2, 3)
SIZES_OF_MODEL = {**SMALLER, "vocab_size": 7}
SIZES = st.integers(1, 9).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length)))


def text(characters: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 7, characters, dtype=np.uint8)


@given(st.integers(0, 60), SIZES)
def test_each_character_but_the_first_is_scored_once_and_sees_all_but_a_step_of_a_window(
    characters: int, sizes: tuple[int, int]
) -> None:
    length, step = sizes
    windows = Windows(characters, length, step)
    scored = []
    for window in (windows[number] for number in range(len(windows))):
        assert window.stop - window.start <= length
        assert 0 <= window.start <= window.scored_from < window.stop < characters
        assert window.start == 0 or window.scored_from - window.start == length - step
        scored += [place + 1 for place in range(window.scored_from, window.stop)]
    assert scored == list(range(1, characters))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 30), SIZES, st.integers(0, 99))
def test_it_is_the_loss_of_a_forward_pass_for_each_character(
    characters: int, sizes: tuple[int, int], seed: int
) -> None:
    length, step = sizes
    model, ids = tiny_model(**SIZES_OF_MODEL), text(characters, seed)
    expected = 0.0
    for place in range(1, characters):
        start = 0  # of the first window, a multiple of the step on, that reaches the character
        while start + length < place:
            start += step
        before = torch.from_numpy(ids[start:place].astype(np.int64))[None]
        with torch.no_grad():
            expected -= float(model(before, LOOKBACK)[0, -1].double().log_softmax(-1)[ids[place]])
    loss, scored = character_loss(model, LOOKBACK, ids, length, step)
    assert scored == max(0, characters - 1)
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("per_batch", [8, 40, 1000])
def test_shares_add_up_to_the_whole_whatever_the_batches(
    per_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = tiny_model(**SIZES_OF_MODEL), text(101)
    whole = character_loss(model, LOOKBACK, ids, sequence_length=8, step=4)
    monkeypatch.setattr(character_evaluation, "CHARACTERS_PER_BATCH", per_batch)
    beats: list[int] = []
    shares = [
        character_loss(model, LOOKBACK, ids, 8, 4, slice(rank, None, 3), lambda: beats.append(0))
        for rank in range(3)
    ]
    assert np.sum(shares, axis=0) == pytest.approx(whole, rel=1e-6)
    assert len(beats) == len(Windows(101, 8, 4)) == 24
    assert character_loss(model, LOOKBACK, ids, 8, 4, slice(24, None)) == (0, 0)
    assert character_loss(model, LOOKBACK, ids, 8, 4, slice(3))[1] == 8 + 4 + 4


class Counting(CharacterModel):
    """Notes how many numbers of logits are made at a time."""

    made: list[int]

    def logits(self, hidden: Tensor) -> Tensor:
        logits = super().logits(hidden)
        assert not logits.requires_grad
        self.made.append(logits.numel())
        return logits


class Read:
    """A text that notes how many characters are read at a time, and would be too long to hold."""

    def __init__(self) -> None:
        self.at_once: list[int] = []

    def __len__(self) -> int:
        return 10**15

    def __getitem__(self, places: slice, /) -> np.ndarray:
        self.at_once.append(places.stop - places.start)
        return np.arange(places.start, places.stop) % 7


def test_logits_are_made_of_scored_characters_alone_and_memory_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(character_evaluation, "LOGITS_AT_ONCE", 7 * 5)
    model, read = tiny_model(kind=Counting, **SIZES_OF_MODEL), Read()
    assert isinstance(model, Counting)
    model.made = []
    normed: list[int] = []
    model.norm.register_forward_hook(lambda _module, _inputs, output: normed.append(output.shape[1]))
    monkeypatch.setattr(character_evaluation, "CHARACTERS_PER_BATCH", 12)
    _, scored = character_loss(model, LOOKBACK, read, 12, 3, slice(4))
    assert scored == 12 + 3 * 3
    assert model.made == [35, 35, 14, 21, 21, 21]
    assert normed == [12, 3, 3, 3]
    assert read.at_once == [13] * 4
