"""Every backend against the dense reference, every feature together: outputs and all gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

import attention.chunks
from attention import windowed_attention
from tests.attention.cases import Case, cases, make, on_the_cpu, widest_dtype
from tests.attention.dense import dense_attention

NAMES = on_the_cpu()
pytestmark = pytest.mark.usefixtures("poisoned_memory")
ALL_FEATURES: dict[str, Any] = {
    "dilation": [1, 2, 2],
    "heads": 3,
    "global_rate": 0.05,
    "own_global": True,
    "documents": True,
    "padding": "holes",
    "dropout_p": 0.2,
}


def assert_equal(case: Case, backend: str) -> None:
    """Output and gradients: to 1e-10 in float64; in float32 to 1e-5 of the greatest number in each tensor."""
    dtype = widest_dtype(backend)
    rounded = [x.to(dtype).double() for x in case.projections]
    case = Case(rounded, case.window, case.options, case.grad.to(dtype).double())
    expected, expected_gradients = case.run(dense_attention)
    output, gradients = case.run(windowed_attention, dtype, backend=backend)
    for found, truth in zip((output, *gradients), (expected, *expected_gradients), strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(found, truth, atol=1e-10, rtol=1e-10)
        else:
            scale = max(1.0, float(truth.abs().max())) if truth.numel() else 1.0
            torch.testing.assert_close(found.double(), truth, atol=1e-5 * scale, rtol=0)


@pytest.mark.parametrize("backend", NAMES)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_every_feature_together(backend: str, case: Case) -> None:
    assert_equal(case, backend)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_small_blocks_tiles_and_scratch(case: Case) -> None:
    """Several blocks, several tiles a block and several parts of the batch and the heads, at every size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention.chunks, "ROWS", 5)
        patch.setattr(attention.chunks, "TILE", 7)
        patch.setattr(attention.chunks, "SCRATCH_CPU", 60)
        assert_equal(case, "chunks")


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("length", [64, 65, 1025])
def test_around_block_borders(backend: str, length: int) -> None:
    assert_equal(make(length, length=length, window=128, **ALL_FEATURES), backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("causal", [False, True], ids=["both_sides", "causal"])
def test_error_is_within_that_of_plain_pytorch(backend: str, dtype: torch.dtype, causal: bool) -> None:
    """At most twice (gradients: three times) what plain PyTorch loses in the same dtype, plus a tiny floor."""
    case = make(7, length=257, window=64, head_dim=32, causal=causal, **ALL_FEATURES)
    rounded = [x.to(dtype).double() for x in case.projections]
    case = Case(rounded, case.window, case.options, case.grad.to(dtype).double())
    exact, exact_gradients = case.run(dense_attention)
    plain, plain_gradients = case.run(dense_attention, dtype)
    ours, our_gradients = case.run(windowed_attention, dtype, backend=backend)
    assert ours.dtype == dtype

    def error(x: torch.Tensor, truth: torch.Tensor) -> float:
        return (x.double() - truth).abs().max().item()

    floor = torch.finfo(dtype).eps / 10
    assert error(ours, exact) <= 2 * error(plain, exact) + floor
    for gradient, plain_gradient, truth in zip(our_gradients, plain_gradients, exact_gradients, strict=True):
        assert gradient.dtype == dtype
        assert error(gradient, truth) <= 3 * error(plain_gradient, truth) + floor


@pytest.mark.parametrize("causal", [False, True], ids=["both_sides", "causal"])
def test_gradcheck_of_the_reference(causal: bool) -> None:
    case = make(3, batch=1, length=9, head_dim=2, window=4, causal=causal, **ALL_FEATURES)
    leaves = [x.contiguous().requires_grad_() for x in case.projections]

    def attend(*x: torch.Tensor) -> torch.Tensor:
        own = dict(zip(("query_global", "key_global", "value_global"), x[3:]))
        return windowed_attention(*x[:3], case.window, backend="loop", **case.options, **own)

    assert torch.autograd.gradcheck(attend, leaves)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("given_ones", [(0,), (1,), (2,), (0, 2)], ids=str)
def test_each_omitted_global_projection_is_the_local_one(backend: str, given_ones: tuple[int, ...]) -> None:
    """Also its gradient, which flows into the local projection."""
    case = make(5, global_rate=0.1, own_global=True)
    names = ("query_global", "key_global", "value_global")

    def run(attend: Any, **more: Any) -> list[torch.Tensor]:
        leaves = [x.detach().to(dtype).requires_grad_() for x in case.projections]
        own = {names[i]: leaves[3 + i] for i in given_ones}
        output = attend(*leaves[:3], case.window, **case.options, **own, **more)
        used = leaves[:3] + [leaves[3 + i] for i in given_ones]
        return [output, *torch.autograd.grad(output, used, case.grad.to(dtype))]

    dtype = widest_dtype(backend)
    expected = run(dense_attention)
    torch.testing.assert_close(run(windowed_attention, backend=backend), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", NAMES)
def test_edges_of_the_domain(backend: str) -> None:
    for shape in ((1, 2, 0, 4), (0, 2, 5, 4), (2, 1, 1, 4)):
        x = torch.randn(shape, requires_grad=True)
        mask = torch.ones(shape[0], shape[2])
        output = windowed_attention(
            x, x, x, 4, attention_mask=mask, global_attention_mask=mask, backend=backend
        )
        assert output.shape == shape
        output.sum().backward()
        assert x.grad is not None
    value = torch.randn(2, 2, 9, 4)
    torch.testing.assert_close(windowed_attention(value, value, value, 0, backend=backend), value)


@pytest.mark.parametrize("backend", NAMES)
def test_padding_is_exactly_zero_and_all_padding_finite(backend: str) -> None:
    case = make(11, length=70, padding="all", global_rate=0.2, own_global=True, poison=True)
    output, gradients = case.run(windowed_attention, widest_dtype(backend), backend=backend)
    padded = case.options["attention_mask"] == 0
    assert padded[-1].all()
    for x in (output, *gradients):
        assert x.isfinite().all()
        assert (x.transpose(1, 2)[padded] == 0).all()


@pytest.mark.parametrize("backend", NAMES)
def test_an_example_depends_on_neither_its_neighbours_nor_extra_padding(backend: str) -> None:
    case = make(
        13, batch=3, length=90, window=20, padding="ends", global_rate=0.1, own_global=True, documents=True
    )
    dtype = widest_dtype(backend)
    together, gradients = case.run(windowed_attention, dtype, backend=backend)
    masks = {name: x for name, x in case.options.items() if isinstance(x, torch.Tensor)}
    for example in range(3):
        one = slice(example, example + 1)
        longer = {name: torch.nn.functional.pad(x[one], (0, 40)) for name, x in masks.items()}
        wide = [torch.nn.functional.pad(x[one], (0, 0, 0, 40)) for x in (*case.projections, case.grad)]
        alone = Case(wide[:-1], case.window, case.options | longer, wide[-1])
        output, own_gradients = alone.run(windowed_attention, dtype, backend=backend)
        torch.testing.assert_close(output[:, :, :90], together[one], atol=1e-5, rtol=1e-5)
        for gradient, expected in zip(own_gradients, gradients):
            torch.testing.assert_close(gradient[:, :, :90], expected[one], atol=1e-5, rtol=1e-5)


def test_backward_gives_the_same_bits_every_run() -> None:
    case = make(17, length=300, window=64, **ALL_FEATURES)
    first, *others = (case.run(windowed_attention, torch.float32, backend="chunks") for _ in range(4))
    for other in others:
        assert torch.equal(first[0], other[0])
        assert all(torch.equal(a, b) for a, b in zip(first[1], other[1]))
