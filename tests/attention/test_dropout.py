"""The dropout hash: its definition, its rate, and that nothing neighbouring is correlated."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attention import dropout, windowed_attention
from tests.attention.cases import make

HEADS, QUERIES, KEYS = 4, 128, 512


def kept(p: float, seeds: list[int], stream: int = 0, first_query: int = 0, first_key: int = 0) -> Tensor:
    """(seeds, heads, queries, keys) of 0 and 1."""
    queries = torch.arange(first_query, first_query + QUERIES)[None]
    low, high = dropout.row_state(torch.tensor(seeds), HEADS, queries, stream)
    keys = torch.arange(first_key, first_key + KEYS)
    return dropout.keep(dropout.RowState(low[..., None], high[..., None]), keys, p, torch.float64)


def reference_hash(seed: int, head: int, query: int, key: int, stream: int) -> int:
    """The definition once more, in Python's integers."""
    mask = 0xFFFFFFFF

    def mix(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x21F0AAAD) & mask
        x = ((x ^ (x >> 15)) * 0xD35A2D97) & mask
        return x ^ (x >> 15)

    def chain(one: int, other: int) -> int:
        mixed = mix(mix((one + 0x9E3779B9 * stream) & mask) ^ other)
        return mix(mix(mixed ^ (head * 0x9E3779B9 & mask)) ^ query)

    low, high = seed & mask, (seed >> 32) & mask
    x = ((chain(low, high) ^ key) * 0x21F0AAAD) & mask
    x ^= chain(high ^ 0x21F0AAAD, low)
    x ^= x >> 15
    return (x * 0xD35A2D97) & mask


@pytest.mark.parametrize("seed", [0, -1, 1, 0x123456789ABCDEF0, -(1 << 63), (1 << 63) - 1])
@pytest.mark.parametrize("stream", [dropout.LOCAL_STREAM, dropout.GLOBAL_STREAM])
def test_the_hash_is_the_one_defined(seed: int, stream: int) -> None:
    for query, key in ((0, 0), (1, 0), (5, 70_000), (4_000_000, 3)):
        low, high = dropout.row_state(torch.tensor([seed]), HEADS, torch.tensor([[query]]), stream)
        for head in range(HEADS):
            row = dropout.RowState(low[0, head], high[0, head])
            found = int(dropout.entry_hash(row, torch.tensor(key, dtype=torch.int32)))
            expected = reference_hash(seed, head, query, key, stream)
            assert found & 0xFFFFFFFF == expected
            at_the_border = (expected / 2**32, (expected + 1) / 2**32 % 1)
            for p in (0.0, 1e-9, 0.1, 0.5, 0.9, 0.999, *at_the_border):
                keeps = bool(dropout.keep(row, torch.tensor(key), p, torch.float32))
                assert keeps == (expected >= math.floor(p * 2**32))


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_rate(p: float) -> None:
    """Overall within 4 standard deviations, and of each row and each key within 6 (a few thousand of them)."""
    drops = 1 - kept(p, [3, 4])
    for dims in ((0, 1, 2, 3), (3,), (2,)):
        rate = drops.mean(dims)
        deviation = math.sqrt(p * (1 - p) * rate.numel() / drops.numel())
        assert (rate - p).abs().max() < (4 if rate.dim() == 0 else 6) * deviation


NEIGHBOURS = {
    "seeds": ([0, 1], [1, 2]),
    "seeds far up": ([0, 1 << 32], [1 << 32, 2 << 32]),
    "seeds with words swapped": ([5, 7 << 32], [5 << 32, 7]),
    "examples of an int seed": (
        dropout.spread_seed(1, 2, torch.device("cpu")).tolist(),
        dropout.spread_seed(2, 2, torch.device("cpu")).tolist(),
    ),
}


def assert_uncorrelated(one: Tensor, other: Tensor) -> None:
    one, other = one - one.mean(), other - other.mean()
    correlation = (one * other).mean() / (one.std() * other.std())
    assert abs(correlation) < 5 / math.sqrt(one.numel())


@pytest.mark.parametrize("p", [0.1, 0.5])
class TestNoCorrelation:
    @pytest.mark.parametrize("name", NEIGHBOURS)
    def test_between_seeds(self, p: float, name: str) -> None:
        one, other = NEIGHBOURS[name]
        assert_uncorrelated(kept(p, one), kept(p, other))

    @pytest.mark.parametrize("step", [1, 2, 3, 64])
    def test_between_queries(self, p: float, step: int) -> None:
        x = kept(p, [3, 4])
        assert_uncorrelated(x[:, :, step:], x[:, :, :-step])

    @pytest.mark.parametrize("step", [1, 2, 3, 4, 16, 64, 256])
    def test_between_keys(self, p: float, step: int) -> None:
        x = kept(p, [3, 4])
        assert_uncorrelated(x[..., step:], x[..., :-step])

    def test_along_diagonals(self, p: float) -> None:
        x = kept(p, [3, 4])
        assert_uncorrelated(x[:, :, 1:, 1:], x[:, :, :-1, :-1])

    def test_between_heads(self, p: float) -> None:
        x = kept(p, [3, 4])
        assert_uncorrelated(x[:, 1:], x[:, :-1])

    def test_between_streams(self, p: float) -> None:
        assert_uncorrelated(kept(p, [3, 4], stream=0), kept(p, [3, 4], stream=1))

    def test_at_far_positions(self, p: float) -> None:
        far = kept(p, [3, 4], first_query=1 << 20, first_key=1 << 17)
        assert_uncorrelated(far, kept(p, [3, 4]))
        assert_uncorrelated(far[..., 1:], far[..., :-1])


def dropped_entries(backend: str) -> Tensor:
    """Which weights a backend drops: with value = identity, the output is the matrix of weights."""
    case = make(1, batch=2, heads=2, length=150, window=40, dilation=[1, 3], global_rate=0.05, dropout_p=0.4)
    query, key, _ = case.projections
    value = torch.eye(150, dtype=torch.float64).expand(2, 2, 150, 150)
    shape = (2, 2, 150, 150)
    wide = [torch.nn.functional.pad(x, (0, 150 - x.shape[-1])) for x in (query, key)]
    dropped = windowed_attention(*wide, value, case.window, backend=backend, **case.options)
    whole = windowed_attention(
        *wide,
        value,
        case.window,
        backend=backend,
        **(case.options | {"dropout_p": 0.0, "dropout_seed": None}),
    )
    assert dropped.shape == shape
    return (whole > 0) & (dropped == 0)


def test_both_backends_drop_the_same_entries() -> None:
    one, other = dropped_entries("loop"), dropped_entries("chunks")
    assert one.any()
    assert torch.equal(one, other)


def test_seeds_of_the_operator() -> None:
    """An int is spread as documented; None follows torch's generator; each example has its own pattern."""
    x = torch.ones(3, 1, 40, 4)

    def attend(seed: Tensor | int | None) -> Tensor:
        return windowed_attention(x, x, x, 16, dropout_p=0.5, dropout_seed=seed)

    assert torch.equal(attend(-3), attend(dropout.spread_seed(-3, 3, x.device)))
    assert torch.equal(attend((1 << 64) - 3), attend(-3))
    assert not torch.equal(attend(1)[0], attend(1)[1])
    torch.manual_seed(1)
    first = attend(None)
    assert not torch.equal(first, attend(None))
    torch.manual_seed(1)
    assert torch.equal(first, attend(None))
