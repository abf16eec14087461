"""Order, masks, learning rates: pure functions, checked by their statistics and against the paper's numbers."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.batches.masking import IGNORED, Masking
from trainer.batches.order import SequenceOrder
from trainer.engine.randomness import attention_dropout_seeds, hash64, reseed_torch
from trainer.engine.schedule import learning_rate

SPECIAL = frozenset({0, 1, 2, 3, 99})


def masking() -> Masking:
    return Masking(vocabulary_size=100, special_ids=SPECIAL, mask_id=99)


@pytest.mark.parametrize(
    ("update", "rate"),
    [
        (250, 1.5e-5),
        (500, 3e-5),
        (501, 2.9998604673e-5),
        (1000, 2.9307719935e-5),
        (32750, 3.75e-6),
        (65000, 0.0),
    ],
)
def test_the_papers_schedule_at_golden_updates(update: int, rate: float) -> None:
    found = learning_rate(update, peak=3e-5, warmup_steps=500, steps=65_000)
    assert found == pytest.approx(rate, rel=1e-10, abs=1e-18)


def test_other_decays_meet_their_ends() -> None:
    for decay, last in (("linear", 0.0), ("cosine", 0.0), ("constant", 1.0)):
        rates = [
            learning_rate(s, peak=1.0, warmup_steps=10, steps=100, decay=decay) for s in (5, 10, 55, 100)
        ]
        assert rates[:2] == [0.5, 1.0]
        assert rates[3] == pytest.approx(last, abs=1e-12)
        assert rates[2] == pytest.approx(1.0 if decay == "constant" else 0.5)
    assert learning_rate(1, peak=1.0, warmup_steps=0, steps=1) == 0.0


@given(st.integers(1, 300), st.integers(0, 2**40), st.integers(1, 17))
def test_every_epoch_is_a_permutation_and_batches_join_them(sequences: int, seed: int, batch: int) -> None:
    order = SequenceOrder(sequences, seed)
    steps = -(-2 * sequences // batch)
    stream = np.concatenate([order.batch(step, batch) for step in range(1, steps + 1)])
    assert sorted(stream[:sequences]) == list(range(sequences))
    assert sorted(stream[sequences : 2 * sequences]) == list(range(sequences))
    # A batch asked for alone, as a resumed run does, is the same.
    assert np.array_equal(SequenceOrder(sequences, seed).batch(steps, batch), stream[-batch:])


def test_epochs_and_seeds_have_different_orders() -> None:
    order = SequenceOrder(1000, seed=1)
    first, second = order.permutation(0).copy(), order.permutation(1).copy()
    other = SequenceOrder(1000, seed=2).permutation(0)
    assert 0 < (first == second).sum() + (first == other).sum() < 20  # by chance about one place each


def test_masks_have_the_papers_shares_and_spare_special_tokens() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 99, (64, 4096))
    ids[:, 0], ids[:, -1], ids[:, 100] = 0, 2, 3
    masked = masking().apply(ids, hash64("test", np.arange(64)))
    assert masked.places.shape == (64, 614)
    assert (np.diff(masked.places, axis=1) > 0).all()
    was = np.take_along_axis(ids, masked.places, 1)
    assert np.array_equal(masked.labels, was)
    assert not np.isin(was, list(SPECIAL)).any()
    now = np.take_along_axis(masked.input_ids, masked.places, 1)
    places = now.size
    assert (now == 99).sum() / places == pytest.approx(0.8, abs=0.01)
    # 1 in 95 of the random tokens is by chance the original.
    assert (now == was).sum() / places == pytest.approx(0.1 + 0.1 / 95, abs=0.006)
    assert not np.isin(now[now != 99], list(SPECIAL)).any()
    untouched = np.ones_like(ids, dtype=bool)
    np.put_along_axis(untouched, masked.places, False, 1)
    assert np.array_equal(masked.input_ids[untouched], ids[untouched])
    # Every eligible place is as likely as any other.
    counts = np.bincount(masked.places.ravel(), minlength=4096)
    assert counts[[0, 100, 4095]].sum() == 0
    assert counts.max() < 30


def test_masks_depend_on_their_key_alone() -> None:
    ids = np.random.default_rng(0).integers(4, 99, (3, 50))
    keys = hash64("test", np.arange(3))
    together = masking().apply(ids, keys)
    alone = masking().apply(ids[1:2], keys[1:2])
    assert np.array_equal(together.input_ids[1], alone.input_ids[0])
    assert np.array_equal(together.places[1], alone.places[0])
    assert not np.array_equal(together.places[0], together.places[1])


def test_padding_is_never_masked_and_spare_places_are_ignored() -> None:
    ids = np.full((2, 40), 1)
    ids[0, :4] = [0, 50, 51, 2]
    masked = masking().apply(ids, hash64("test", np.arange(2)))
    assert masked.labels.shape == (2, 6)
    assert sorted(masked.labels[0]) == [IGNORED] * 4 + [50, 51]
    assert (masked.labels[1] == IGNORED).all()
    assert np.array_equal(masked.input_ids[1], ids[1])


def test_hash_streams_are_independent_and_stable() -> None:
    # Known bits: a change here changes every run's batches.
    assert int(hash64("order", 0, 0, 1)) == int(hash64("order", 0, 0, np.array([0, 1]))[1])
    bits = np.unpackbits(hash64("order", 7, np.arange(4096)).view(np.uint8)).astype(float)
    other = np.unpackbits(hash64("masks", 7, np.arange(4096)).view(np.uint8)).astype(float)
    shifted = np.unpackbits(hash64("order", 8, np.arange(4096)).view(np.uint8)).astype(float)
    for left, right in ((bits, other), (bits, shifted), (bits, np.roll(bits, 64))):
        assert abs(np.corrcoef(left, right)[0, 1]) < 0.01
    assert bits.mean() == pytest.approx(0.5, abs=0.005)


def test_attention_seeds_differ_by_sequence_layer_and_step() -> None:
    first = attention_dropout_seeds(0, 1, np.arange(10), 4)
    later = attention_dropout_seeds(0, 2, np.arange(10), 4)
    assert len({*first.ravel().tolist(), *later.ravel().tolist()}) == 80
    assert np.array_equal(attention_dropout_seeds(0, 1, np.array([7]), 4)[0], first[7])


def test_hidden_dropout_differs_by_seed_step_and_micro_batch() -> None:
    seeds = set()
    for words in itertools.product((0, 1), repeat=3):
        reseed_torch(*words)
        seeds.add(torch.initial_seed())
    assert len(seeds) == 8
