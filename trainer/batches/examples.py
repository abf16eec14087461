"""Examples of a downstream task as a batch: rows side by side, and where in them the head reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainer.tasks.example import Example

_ROW_STEP = -7046029254386353131  # odd: splitmix64's, as int64. Rows of an example are so many seeds apart.


@dataclass(frozen=True)
class ExampleBatch:
    """R rows of some examples, filled to the longest row's N tokens."""

    examples: tuple[Example, ...]
    input_ids: Tensor
    """int64 (R, N)."""
    attention_mask: Tensor | None
    """bool (R, N); None where all tokens are real."""
    global_mask: Tensor | None
    """bool (R, N); None where the model has no global attention."""
    places: Tensor | None
    """int64 (R, M): the tokens that the last layer computes, None for all. Spare ones are place 0."""
    example_of_row: Tensor
    """int64 (R,): which example's dropout seed a row has."""
    row_of_example: Tensor
    """int64 (R,): a row's number in its example."""
    read: tuple[Tensor, ...]
    """int64 (read places,) for each example: where they are in the encoder's output, its rows joined."""

    @property
    def scored(self) -> int:
        """Summands of the loss."""
        return sum(example.scored for example in self.examples)

    def to(self, device: torch.device) -> ExampleBatch:
        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=moved(self.attention_mask),
            global_mask=moved(self.global_mask),
            places=moved(self.places),
            example_of_row=self.example_of_row.to(device),
            row_of_example=self.row_of_example.to(device),
            read=tuple(index.to(device) for index in self.read),
        )

    def row_seeds(self, seeds: Tensor) -> Tensor:
        """int64 (R, layers), from an example's (examples, layers): no two rows drop alike, and an example of one row
        drops as it would in any other batch."""
        return seeds[self.example_of_row] + self.row_of_example[:, None] * _ROW_STEP


def as_batch(examples: Sequence[Example], pad_id: int, global_attention: bool = True) -> ExampleBatch:
    """Examples as tensors. Padding is never attended, and positions count real tokens alone.

    With `global_attention` the mask is there even where no token is global, so that all weights have a gradient.
    """
    rows = [row for example in examples for row in example.rows]
    lengths = np.array([len(row) for row in rows])
    R, N = len(rows), int(lengths.max())
    input_ids = np.full((R, N), pad_id, np.int64)
    for number, row in enumerate(rows):
        input_ids[number, : len(row)] = row
    owners = np.repeat(np.arange(len(examples)), [len(example.rows) for example in examples])
    numbers = np.concatenate([np.arange(len(example.rows)) for example in examples])
    global_mask = np.zeros((R, N), bool)
    read: list[tuple[np.ndarray, np.ndarray]] = []  # rows and columns
    first = 0
    for example in examples:
        row, column = _placed(example)
        own = example.global_places
        global_mask[first + row[own], column[own]] = True
        wanted = slice(None) if example.read is None else example.read
        read.append((first + row[wanted], column[wanted]))
        first += len(example.rows)
    everything = any(example.read is None for example in examples)
    if everything:
        places, index = None, [row * N + column for row, column in read]
    else:
        places, index = _some_places(read, R)
    return ExampleBatch(
        tuple(examples),
        torch.from_numpy(input_ids),
        torch.from_numpy(np.arange(N) < lengths[:, None]) if (lengths < N).any() else None,
        torch.from_numpy(global_mask) if global_attention else None,
        None if places is None else torch.from_numpy(places),
        torch.from_numpy(owners),
        torch.from_numpy(numbers),
        tuple(map(torch.from_numpy, index)),
    )


def _placed(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of each place of an example's joined rows."""
    lengths = [len(row) for row in example.rows]
    rows = np.repeat(np.arange(len(lengths)), lengths)
    columns = np.concatenate([np.arange(length) for length in lengths])
    return rows, columns


def _some_places(
    read: Sequence[tuple[np.ndarray, np.ndarray]], R: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The columns (R, M) to read of each row, and for each example where among them, joined, its places are."""
    rows = np.concatenate([row for row, _ in read])
    columns = np.concatenate([column for _, column in read])
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=R)
    M = max(1, int(counts.max(initial=0)))
    within = np.empty(len(rows), np.int64)  # a place's number among its row's
    within[order] = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    places = np.zeros((R, M), np.int64)
    places[rows, within] = columns
    bounds = np.cumsum([len(row) for row, _ in read])[:-1]
    return places, np.split(rows * M + within, bounds)
