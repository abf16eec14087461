"""The CUDA kernels in Triton's interpreter, on the CPU. `test_cuda.py` runs this file with TRITON_INTERPRET=1.

bfloat16 is computed by an interpreter whose dot and cast `attention.cuda.interpreter` repaired; the first tests compare
them with torch. That the kernels are right in it says that they are right wherever a product of bfloat16 numbers is
exact and summed in float32. It does not say that a GPU's compiler made of them what was meant: no test without a
GPU can.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention import (
    backends,
    check,
    cuda,
    loop,
    windowed_attention,
)
from attention.cuda import configurations, interpreter, kernels
from attention.cuda.configurations import Configuration
from tests.attention.cases import Case, cases, make
from tests.attention.dense import dense_attention

BOUNDS = {torch.float32: check.FLOAT_BOUND, torch.float16: check.HALF_BOUND, torch.bfloat16: check.HALF_BOUND}
ALL_FEATURES: dict[str, Any] = {
    "dilation": [1, 2],
    "global_rate": 0.05,
    "own_global": True,
    "documents": True,
    "padding": "holes",
    "dropout_p": 0.2,
}
pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    # NumPy's, of products that wrap and of infinities
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def use_blocks(patch: pytest.MonkeyPatch, block_m: int, block_n: int) -> None:
    """Let every kernel compute with blocks of this size."""
    table = configurations._TABLE[configurations.INTERPRETER]
    small = dict.fromkeys(table, Configuration(block_m, block_n, 4, 1))
    patch.setitem(configurations._TABLE, configurations.INTERPRETER, small)


def assert_right(case: Case, dtype: torch.dtype) -> None:
    """Each row of output and gradients within the self-check's bounds of the dense reference in float64."""
    rounded = [x.to(dtype).double() for x in case.projections]
    case = Case(rounded, case.window, case.options, case.grad.to(dtype).double())
    expected, expected_gradients = case.run(dense_attention)
    output, gradients = case.run(windowed_attention, dtype, backend="cuda")
    for found, truth in zip((output, *gradients), (expected, *expected_gradients), strict=True):
        assert found.dtype == dtype
        assert check._error(found, truth) <= BOUNDS[dtype] * torch.finfo(dtype).eps


# bfloat16 in the interpreter.


@triton.jit
def multiply(A, B, OUT, SIZE: tl.constexpr):
    """OUT = A @ B, and its cast back to A's dtype over A."""
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    product = tl.dot(tl.load(A + at), tl.load(B + at), input_precision="ieee")
    tl.store(OUT + at, product)
    tl.store(A + at, product.to(A.dtype.element_ty))


def test_bfloat16_products_and_casts_are_those_of_torch() -> None:
    a, b = (torch.randn(16, 16).bfloat16() for _ in range(2))
    expected, out = a.float() @ b.float(), torch.empty(16, 16)
    multiply[(1,)](a, b, out, SIZE=16)
    torch.testing.assert_close(out, expected)
    assert torch.equal(a, out.bfloat16())


def test_rounding_to_bfloat16_is_that_of_torch() -> None:
    """Ties, the smallest and the largest numbers, infinities and NaN among them."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    bits[: 1 << 14] &= 0xFFFF0000  # exact ones
    bits[1 << 13 : 1 << 14] |= 0x8000  # and ties
    x = np.concatenate([bits.view(np.float32), np.float32([0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, 1e-45])])
    found = torch.from_numpy(interpreter.round_to_bfloat16(x).view(np.int16)).view(torch.bfloat16)
    torch.testing.assert_close(found, torch.from_numpy(x).bfloat16(), rtol=0, atol=0, equal_nan=True)


# Blocks and tiles.


@triton.jit
def cut(FIRST, LAST, OUT, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """OUT: what `_tiles` returns for the intervals of some rows, then where each tile of the edges starts."""
    row = tl.arange(0, ROWS)
    first = tl.load(FIRST + row)
    last = tl.load(LAST + row)
    low, high, left, interior, inner, right, edges = kernels._tiles(first, last, last > first, BLOCK)
    tl.store(OUT + 0, low)
    tl.store(OUT + 1, high)
    tl.store(OUT + 2, interior)
    tl.store(OUT + 3, inner)
    tl.store(OUT + 4, edges)
    for i in range(edges):
        tl.store(OUT + 5 + i, kernels._edge(i, low, left, right, BLOCK))


@pytest.mark.parametrize("seed", range(30))
def test_tiles_cover_each_key_once_and_the_interior_needs_no_mask(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, block = 16, 8
    first = torch.randint(0, (5, 40)[seed % 2], (rows,), generator=generator, dtype=torch.int32).sort().values
    width = torch.randint(0, (60, 12)[seed % 2], (rows,), generator=generator, dtype=torch.int32)
    last = (first + width).cummax(0).values
    nothing = torch.rand(rows, generator=generator) < (0.2 if seed < 29 else 1.0)
    first, last = first.masked_fill(nothing, 0), last.masked_fill(nothing, 0)
    out = torch.zeros(100, dtype=torch.int32)
    cut[(1,)](first, last, out, ROWS=rows, BLOCK=block)
    low, high, interior, inner, edges = out[:5].tolist()
    seen = [(a, b) for a, b in zip(first.tolist(), last.tolist()) if a < b]
    assert (low, high) == ((min(a for a, _ in seen), max(b for _, b in seen)) if seen else (0, 0))
    inside = [interior + i * block for i in range(inner)]
    tiles = inside + out[5 : 5 + edges].tolist()
    assert sorted(tiles) == list(range(low, high, block))
    assert all(a <= start and start + block <= b for start in inside for a, b in seen)
    if seen:  # where the range starts may cost the interior one tile
        common = min(b for _, b in seen) - max(a for a, _ in seen)
        assert inner >= common // block - 1


# Results.


def test_is_a_backend() -> None:
    assert "cuda" in backends()


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    case=cases(lengths=(1, 2, 7, 20, 33, 64, 70)),
    dtype=st.sampled_from((torch.float32, torch.float32, torch.float16, torch.bfloat16)),
    blocks=st.tuples(st.sampled_from((16, 32)), st.sampled_from((16, 32))),
)
def test_every_feature_together(case: Case, dtype: torch.dtype, blocks: tuple[int, int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_blocks(patch, *blocks)
        assert_right(case, dtype)


@pytest.mark.parametrize("length", [63, 64, 65])
def test_around_block_borders(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of 32 numbers, whole blocks in the interior, and lists of global tokens in several splits."""
    monkeypatch.setattr(cuda, "SPLIT", 32)
    use_blocks(monkeypatch, 16, 16)
    features = ALL_FEATURES | {"documents": False, "padding": "ends", "dilation": [1, 3]}
    assert_right(make(length, length=length, batch=1, head_dim=32, window=50, **features), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_error_is_within_that_of_plain_pytorch(dtype: torch.dtype) -> None:
    """At most twice (gradients: three times) what plain PyTorch loses in the same dtype, plus a tiny floor."""
    case = make(7, length=130, window=64, head_dim=32, batch=1, **ALL_FEATURES)
    rounded = [x.to(dtype).double() for x in case.projections]
    case = Case(rounded, case.window, case.options, case.grad.to(dtype).double())
    exact, exact_gradients = case.run(dense_attention)
    plain, plain_gradients = case.run(dense_attention, dtype)
    ours, our_gradients = case.run(windowed_attention, dtype, backend="cuda")

    def error(x: Tensor, truth: Tensor) -> float:
        return (x.double() - truth).abs().max().item()

    floor = torch.finfo(dtype).eps / 10
    assert error(ours, exact) <= 2 * error(plain, exact) + floor
    for gradient, plain_gradient, truth in zip(our_gradients, plain_gradients, exact_gradients, strict=True):
        assert error(gradient, truth) <= 3 * error(plain_gradient, truth) + floor


@pytest.mark.parametrize("rate", [0.8, 1.0], ids=["hundreds", "every token"])
def test_many_global_tokens(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    use_blocks(monkeypatch, 64, 64)
    case = make(3, length=200, batch=1, heads=1, window=6, global_rate=rate, own_global=True, causal=rate < 1)
    count = int(case.options["global_attention_mask"].sum())
    assert count > 140
    assert_right(case, torch.float32)


def test_reads_nothing_beside_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """In views whose neighbours in memory are NaN, at sizes that fill no block."""
    use_blocks(monkeypatch, 32, 16)
    case = make(4, length=45, batch=2, head_dim=20, window=20, **ALL_FEATURES)

    def surrounded(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, 0, 40, 40, 1, 1), value=torch.nan)[:, 1:-1, 40:-40]

    fenced = Case([surrounded(x) for x in case.projections], case.window, case.options, surrounded(case.grad))
    assert not fenced.projections[0].is_contiguous()
    output, gradients = fenced.run(windowed_attention, torch.float32, backend="cuda")
    expected, expected_gradients = case.run(windowed_attention, torch.float32, backend="cuda")
    assert output.isfinite().all()
    assert torch.equal(output, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected_gradients))


def test_drops_the_entries_that_loop_drops() -> None:
    """With value = identity the output is the matrix of weights."""
    length = 90
    case = make(1, batch=2, length=length, head_dim=length, window=40, dilation=[1, 3], global_rate=0.05)
    query, key, _ = (x.float() for x in case.projections)
    value = torch.eye(length).expand(2, 2, length, length)
    seed = torch.tensor([5, -(1 << 60)])

    def weights(backend: str, dropout_p: float) -> Tensor:
        more = {"dropout_p": dropout_p, "dropout_seed": seed, "backend": backend, "scale": 0.1}
        return windowed_attention(query, key, value, case.window, **case.options, **more)

    seen = weights("loop", 0.0) > 0
    dropped = [seen & (weights(backend, 0.4) == 0) for backend in ("loop", "cuda")]
    assert dropped[0].sum() > 0.3 * seen.sum()
    assert torch.equal(*dropped)


def test_the_same_bits_every_run() -> None:
    case = make(17, length=100, batch=1, window=30, **ALL_FEATURES)
    first, second = (case.run(windowed_attention, torch.float32, backend="cuda") for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1]))


def test_logsumexp_is_natural_and_infinite_where_nothing_is_seen() -> None:
    case = check.everything(torch.device("cpu"), torch.float32, 16)
    _, sums = cuda.forward(case.problem)
    _, expected = loop.forward(check._double(case.problem))
    padded = ~case.problem.pattern.real[:, None].expand_as(sums)
    assert torch.equal(sums == torch.inf, padded)
    torch.testing.assert_close(sums[~padded].double(), expected[~padded], atol=1e-5, rtol=1e-5)


def test_autocast_and_model_strides() -> None:
    """Under autocast, with tensors as a model's projections lie in memory, where nothing is copied."""
    case = make(6, length=40, head_dim=16, window=8, transposed=True)
    assert all(cuda._aligned(x) is x for x in case.projections)
    expected, _ = case.run(windowed_attention, torch.bfloat16, backend="cuda")
    with torch.autocast("cpu", torch.bfloat16):
        output, gradients = case.run(windowed_attention, torch.float32, backend="cuda")
    assert torch.equal(output, expected)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


# The check at first use.


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine where nothing was checked yet, with a small case to be quick."""
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path))
    monkeypatch.setattr(check, "_verdicts", {})
    features = {
        "padding": "holes",
        "global_every": 9,
        "own_global": True,
        "documents": True,
        "dropout_p": 0.2,
    }
    monkeypatch.setattr(
        check, "everything", lambda *x: check.make("all", *x, length=40, window=12, batch=1, **features)
    )


def run_default(case: Case) -> tuple[Tensor, list[str]]:
    """The output of the backend that is chosen by itself, with gradients on, and the warnings that were given."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output, _ = case.run(windowed_attention, torch.float32)
    return output, [str(w.message) for w in caught if "windowed_attention" in str(w.message)]


CASE = make(5, length=24, batch=1, heads=1, head_dim=16, window=6, global_rate=0.1)


@pytest.mark.usefixtures("unchecked")
def test_right_kernels_are_trusted_and_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    output, said = run_default(CASE)
    assert said == []
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(output, CASE.run(windowed_attention, torch.float32, backend="cuda")[0])
    monkeypatch.setattr(check, "_verdicts", {})  # another process

    def forbidden(*_: Any) -> None:
        raise AssertionError("checked again")

    monkeypatch.setattr(check, "small", forbidden)
    assert run_default(CASE)[1] == []


def off_by_one(table: Any) -> Any:
    def broken(intervals: Any) -> dict[str, Any]:
        right = table(intervals)
        return right | {"LAST": (right["LAST"] - 1).clamp_min(0)}

    return broken


def out_of_resources(_: Any) -> None:
    raise RuntimeError("out of resource: shared memory")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("fault", ["off by one", "raises", "float16 sums"])
def test_broken_kernels_give_way_to_another_backend_with_one_warning(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "off by one":
        monkeypatch.setattr(cuda, "_table", off_by_one(cuda._table))
    elif fault == "raises":
        monkeypatch.setattr(cuda, "launch", out_of_resources)
    else:
        monkeypatch.setattr(kernels, "LOG2E", tl.constexpr(1.4434))  # as imprecise as TF32
    output, said = run_default(CASE)
    assert len(said) == 1
    assert "'chunks' takes over" in said[0]
    assert ("out of resource" if fault == "raises" else "output off by") in said[0]
    expected, _ = CASE.run(dense_attention)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)
    assert run_default(CASE)[1] == []


def test_the_matrix_runs_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "DTYPES", (torch.float16,))
    lines: list[str] = []
    results = check.run(torch.device("cpu"), lines.append, reduced=True)
    assert len(results) == len(lines) >= 5
    assert all(result.passed for result in results), lines
