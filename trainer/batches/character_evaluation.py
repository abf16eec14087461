"""The paper's evaluation of a character model (sections 4.2.1 and B): overlapping windows of which the end is scored.

Windows of n characters move by a step, and only the predictions made at the last `step` characters of one count, so
that each has at least n - step characters before it. What the paper leaves open, and is decided here:

- A window holds n characters that the model reads; the last prediction is of the character behind it.
- All of the first window's predictions count. There is nothing more before them to read, and a causal model predicts
  the same, however long its window goes on: sixty-three shorter windows would give the same figures.
- The last window is one step on like any other and ends with the text: no prediction depends on the text's length.

So each character but the text's first is scored exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from trainer.model.charlm import CharacterModel

SEQUENCE_LENGTH = 32_256  # the paper's, as is the step
STEP = 512
CHARACTERS_PER_BATCH = 32_768
LOGITS_AT_ONCE = 1 << 22  # numbers


class Characters(Protocol):
    """Ids (T,), of which slices are read as they are needed: a NumPy array in memory or in a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: slice, /) -> np.ndarray: ...


class Window(NamedTuple):
    """The model reads the characters [start, stop); what it predicts at those from `scored_from` on is scored."""

    start: int
    stop: int
    scored_from: int


@dataclass(frozen=True)
class Windows:
    """The windows over a text, numbered from its start."""

    characters: int
    """Of the text."""
    sequence_length: int
    """The most characters of a window."""
    step: int

    def __post_init__(self) -> None:
        assert 1 <= self.step <= self.sequence_length

    def __len__(self) -> int:
        read = self.characters - 1  # nothing follows the last
        return 0 if read < 1 else 1 + -(-max(0, read - self.sequence_length) // self.step)

    def __getitem__(self, number: int) -> Window:
        start = number * self.step
        end = start + self.sequence_length
        return Window(start, min(end, self.characters - 1), end - self.step if number else 0)

    def batches(self, numbers: range) -> Iterator[list[Window]]:
        """Some windows, those of one shape that follow each other together, up to CHARACTERS_PER_BATCH."""
        most = max(1, CHARACTERS_PER_BATCH // self.sequence_length)
        chosen = (self[number] for number in numbers)
        for _, alike in groupby(chosen, lambda window: (window.stop - window.start, window.scored_from == 0)):
            while batch := list(islice(alike, most)):
                yield batch


@torch.no_grad()
def character_loss(
    model: CharacterModel,
    lookback: tuple[int, ...],
    text: Characters,
    sequence_length: int = SEQUENCE_LENGTH,
    step: int = STEP,
    windows: slice | None = None,
    beat: Callable[[], object] = lambda: None,
) -> tuple[float, int]:
    """The summed cross-entropy in nats and the number of scored characters; (0, 0) for a text without a second one.

    `windows` takes some of the windows, by default all: a process's share, or the first few. `beat` is called once a
    window. The memory is that of one batch of windows, whatever the text's length.
    """
    device = next(model.parameters()).device
    cut = Windows(len(text), sequence_length, step)
    loss, scored = 0.0, 0
    for batch in cut.batches(range(len(cut))[windows or slice(None)]):
        rows = np.stack([text[window.start : window.stop + 1] for window in batch]).astype(np.int64)
        characters = torch.from_numpy(rows).to(device)
        first = batch[0].scored_from - batch[0].start
        hidden = model.encode(characters[:, :-1], lookback, scored_from=first).flatten(0, 1)
        following = characters[:, first + 1 :].flatten()
        at_once = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
        for some, labels in zip(hidden.split(at_once), following.split(at_once), strict=True):
            losses = F.cross_entropy(model.logits(some).float(), labels, reduction="none")
            loss += float(losses.double().sum())
        scored += len(following)
        for _ in batch:
            beat()
    return loss, scored
