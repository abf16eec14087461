"""Examples as a batch: each sees itself alone, and the head gets the places that it asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batches.example_batches import TOKENS_PER_BATCH, by_length
from trainer.batches.examples import as_batch
from trainer.model.longformer import EncoderConfig, initialise
from trainer.model.task_model import TaskModel
from trainer.tasks.example import Example

PAD = 1


@pytest.fixture(scope="module")
def model() -> TaskModel:
    torch.manual_seed(0)
    config = EncoderConfig(
        "longformer", 40, 16, 2, 2, 32, 34, attention_window=[4, 8], hidden_dropout_prob=0.0
    )
    made = TaskModel(config, {})
    initialise(made, 0.3)
    return made


@st.composite
def drawn(draw: st.DrawFn) -> Example:
    rows = draw(st.lists(st.lists(st.integers(2, 39), min_size=1, max_size=32), min_size=1, max_size=3))
    places = st.integers(0, sum(map(len, rows)) - 1)
    global_places = sorted(draw(st.sets(places, max_size=4)))
    read = draw(st.none() | st.lists(places, max_size=6))
    return Example(
        "x",
        tuple(np.array(row, np.int32) for row in rows),
        np.array(global_places, np.int32),
        None if read is None else np.array(read, np.int32),
    )


@settings(deadline=None, max_examples=60)
@given(examples=st.lists(drawn(), min_size=1, max_size=4))
def test_an_example_is_the_same_alone_whole_and_row_by_row(model: TaskModel, examples: list[Example]) -> None:
    model.eval()
    with torch.no_grad():
        found = model.states(as_batch(examples, PAD))
        for example, states in zip(examples, found, strict=True):
            expected = []
            first = 0
            for row in example.rows:  # one row, no padding, all hidden states
                ids = torch.from_numpy(row.astype(np.int64))[None]
                mask = torch.zeros(1, len(row), dtype=torch.bool)
                own = example.global_places - first
                mask[0, own[(own >= 0) & (own < len(row))]] = True
                expected.append(model.encoder(ids, global_mask=mask)[0])
                first += len(row)
            joined = torch.cat(expected)
            if example.read is not None:
                joined = joined[torch.from_numpy(example.read.astype(np.int64))]
            torch.testing.assert_close(states, joined, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(one=drawn(), other=drawn())
def test_dropout_is_of_the_example_and_its_row_alone(model: TaskModel, one: Example, other: Example) -> None:
    """Attention's; the hidden one is off in this model."""
    model.train()
    seeds = torch.tensor([[5, 6], [7, 8]])
    with torch.no_grad():
        together = model.states(as_batch([one, other], PAD), seeds)
        alone = model.states(as_batch([other], PAD), seeds[1:])
    torch.testing.assert_close(together[1], alone[0], rtol=1e-4, atol=1e-5)


def test_rows_of_an_example_drop_differently(model: TaskModel) -> None:
    row = np.arange(2, 30, dtype=np.int32)
    batch = as_batch([Example("x", (row, row, row))], PAD)
    seeds = batch.row_seeds(torch.tensor([[3, 4]]))
    assert len({tuple(each) for each in seeds.tolist()}) == 3
    assert seeds[0].tolist() == [3, 4]
    model.train()
    with torch.no_grad():
        first, second, third = model.states(batch, torch.tensor([[3, 4]]))[0].split(28)
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, third)


def test_no_parameter_is_without_a_gradient_where_no_token_is_global(model: TaskModel) -> None:
    model.train()
    model.zero_grad(set_to_none=True)
    torch.cat(
        model.states(as_batch([Example("x", (np.arange(2, 9, dtype=np.int32),))], PAD))
    ).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@given(lengths=st.lists(st.lists(st.integers(1, 5000), min_size=1, max_size=9), max_size=30))
def test_groups_are_of_like_length_and_bounded(lengths: list[list[int]]) -> None:
    examples = [Example("x", tuple(np.zeros(length, np.int32) for length in rows)) for rows in lengths]
    groups = list(by_length(examples))
    assert sorted(number for group in groups for number in group) == list(range(len(examples)))
    longest = [max(lengths[number]) for group in groups for number in group]
    assert longest == sorted(longest, reverse=True)
    for group in groups:
        filled = sum(len(lengths[number]) for number in group) * max(lengths[group[0]])
        assert filled <= TOKENS_PER_BATCH or len(group) == 1
