"""The rolling window cache: the full forward's logits, however a text is cut, in memory that does not grow."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.character_models import tiny_model
from trainer.model.charlm import CharacterModel
from trainer.model.charlm_cache import WindowCache, cache_bytes

LAYERS, VOCABULARY = 3, 11
STEPS = st.tuples(*[st.integers(1, 4)] * LAYERS)


def full_logits(model: CharacterModel, characters: torch.Tensor, lookback: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return model(characters, lookback)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    dilation=STEPS,
    lookback=st.tuples(*[st.integers(0, 6)] * LAYERS),
    dilated_heads=st.integers(0, 4),
    pieces=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    chunk=st.integers(1, 50),
    batch=st.integers(1, 3),
    seed=st.integers(0, 999),
)
def test_it_gives_the_full_forward_s_logits_wherever_a_text_is_cut(
    dilation: tuple[int, ...],
    lookback: tuple[int, ...],
    dilated_heads: int,
    pieces: list[int],
    chunk: int,
    batch: int,
    seed: int,
) -> None:
    model = tiny_model(seed, dilation=dilation, dilated_heads=dilated_heads)
    characters = torch.randint(0, VOCABULARY, (batch, sum(pieces)))
    expected = full_logits(model, characters, lookback)
    cache = WindowCache(model, lookback, batch, chunk)
    for piece in characters.split(pieces, dim=1):
        found = cache.append(piece)
        assert_same(found, expected[:, cache.position - 1])
    assert cache.position == sum(pieces)


@settings(max_examples=20, deadline=None)
@given(dilation=STEPS, lookback=st.tuples(*[st.integers(1, 5)] * LAYERS), seed=st.integers(0, 999))
def test_one_character_at_a_time_gives_every_logit(
    dilation: tuple[int, ...], lookback: tuple[int, ...], seed: int
) -> None:
    model = tiny_model(seed, dilation=dilation)
    characters = torch.randint(0, VOCABULARY, (2, 100))
    cache = WindowCache(model, lookback, batch=2)
    found = torch.stack([cache.append(character) for character in characters.split(1, dim=1)], dim=1)
    assert_same(found, full_logits(model, characters, lookback))


def test_buffers_stay_where_they_are_in_the_windows_size() -> None:
    """Nothing is allocated anew, or grows, for a character: 2,000 of them, far beyond what the model can see."""
    dilation, lookback = (1, 2, 3), (3, 4, 5)
    model = tiny_model(dilation=dilation)
    cache = WindowCache(model, lookback)

    def buffers() -> list[tuple[int, int]]:
        rings = [ring for layer in cache.layers for ring in layer]
        return [(x.data_ptr(), x.nbytes) for ring in rings for x in (ring.keys, ring.values)]

    before = buffers()
    # Keys and values of 2 heads with and 2 without gaps, of 4 dimensions, 4 bytes each.
    window = sum(2 * 2 * 4 * 4 * (most + 1) * (1 + step) for most, step in zip(lookback, dilation))
    assert cache_bytes(model.config, lookback) == cache.nbytes == sum(size for _, size in before) == window
    characters = torch.randint(0, VOCABULARY, (1, 2000))
    for character in characters.split(1, dim=1):
        found = cache.append(character)
    assert buffers() == before
    assert_same(found, full_logits(model, characters, lookback)[:, -1])


def test_of_a_long_prompt_only_what_can_be_seen_is_read() -> None:
    model, lookback = tiny_model(), (3, 4, 5)
    characters = torch.randint(0, VOCABULARY, (1, 3000))
    cache, read = WindowCache(model, lookback), []
    cache.append(characters[:, :7])  # so that the rings hold what is beyond reach later
    handle = model.embeddings.register_forward_hook(lambda _module, inputs, _output: read.append(inputs[0]))
    found = [cache.append(characters[:, 7:2900])]
    assert sum(x.shape[1] for x in read) == model.config.reach(lookback) + 1
    found += [cache.append(character) for character in characters[:, 2900:].split(1, dim=1)]
    handle.remove()
    assert cache.position == 3000
    assert_same(torch.stack(found, dim=1), full_logits(model, characters, lookback)[:, 2899:])


def test_positions_of_billions_give_the_same_logits() -> None:
    """Keys are turned by angles in float64: in float32 those of neighbours would be one from 2^24 on."""
    model, lookback = tiny_model(), (3, 4, 5)
    characters = torch.randint(0, VOCABULARY, (1, 60))
    cache = WindowCache(model, lookback)
    cache.position = 6 * 10**9
    for character in characters.split(1, dim=1):
        found = cache.append(character)
    assert_same(found, full_logits(model, characters, lookback)[:, -1])


def test_forks_go_on_by_themselves() -> None:
    model, lookback = tiny_model(), (3, 4, 5)
    prompt, first, second = (torch.randint(0, VOCABULARY, (1, n)) for n in (20, 30, 30))
    cache = WindowCache(model, lookback)
    cache.append(prompt)
    one, other = cache.fork(), cache.fork()
    for a, b in zip(first.split(1, dim=1), second.split(1, dim=1)):
        found = one.append(a), other.append(b)
    for logits, text in zip(found, (first, second)):
        assert_same(logits, full_logits(model, torch.cat([prompt, text], dim=1), lookback)[:, -1])
    assert (cache.position, one.position, other.position) == (20, 50, 50)
