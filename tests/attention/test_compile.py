"""The operator under torch.compile and torch.export: one graph, no graph a length, the results of eager mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch.export import Dim
from torch.utils.checkpoint import checkpoint

from attention import windowed_attention
from tests.attention.cases import make, on_the_cpu

# Traced as by any backend of torch.compile, but run as traced: seconds faster than generating code.
TRACED: dict[str, Any] = {"fullgraph": True, "backend": "aot_eager"}
WINDOW = 6


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.fixture
def counted(nothing_compiled_before: None) -> None:
    torch._dynamo.utils.counters.clear()


def options_of(features: str, batch: int, length: int) -> dict[str, Any]:
    """Options whose tensors have the length's shape."""
    position = torch.arange(length).expand(batch, length)
    every: dict[str, dict[str, Any]] = {
        "plain": {},
        "causal and dilated": {"causal": True, "dilation": [1, 2]},
        "masked": {"attention_mask": (position < length * 4 // 5).long()},
        "global": {"global_attention_mask": (position % 9 == 0).long()},
        "documents": {"document_ids": position // 7},
        "dropout": {"dropout_p": 0.3, "dropout_seed": torch.arange(batch) + length},
        "dropout of an int": {"dropout_p": 0.3, "dropout_seed": length},
    }
    if features == "all":
        return {key: value for name in every for key, value in every[name].items()}
    return every[features]


def run(
    attend: Any, length: int, options: dict[str, Any], batch: int = 2, mark: tuple[int, ...] = ()
) -> list[Tensor]:
    """Output and gradients, of inputs that depend on the shape alone."""
    generator = torch.Generator().manual_seed(length)
    leaves = [torch.randn(batch, 2, length, 8, generator=generator).requires_grad_() for _ in range(3)]
    for tensor in (*leaves, *(x for x in options.values() if isinstance(x, Tensor))):
        for dim in mark:
            torch._dynamo.mark_dynamic(tensor, dim if tensor.dim() == 4 or dim == 0 else 1)
    output = attend(*leaves, WINDOW, **options)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaves)]


@pytest.mark.parametrize(
    "features",
    ["plain", "causal and dilated", "masked", "global", "documents", "dropout", "dropout of an int", "all"],
)
@pytest.mark.usefixtures("counted")
def test_one_graph_serves_every_length(features: str) -> None:
    compiled = torch.compile(windowed_attention, dynamic=True, **TRACED)
    for length in (16, 23, 40, 101):
        options = options_of(features, 2, length)
        torch.testing.assert_close(
            run(compiled, length, options), run(windowed_attention, length, options), atol=0, rtol=0
        )
    assert graphs() == 1


def test_marked_batch_and_length_compile_once() -> None:
    compiled = torch.compile(windowed_attention, **TRACED)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, length in ((2, 16), (3, 23), (5, 40)):
            options = options_of("global", batch, length)
            expected = run(windowed_attention, length, options, batch)
            torch.testing.assert_close(run(compiled, length, options, batch, mark=(0, 2)), expected)


@pytest.mark.usefixtures("counted")
def test_lengths_unmarked_compile_twice() -> None:
    """The first time for that length, the second for any."""
    compiled = torch.compile(windowed_attention, **TRACED)
    for length in (16, 23, 40, 101):
        run(compiled, length, options_of("global", 2, length))
    assert graphs() == 2


@pytest.mark.parametrize("backend", on_the_cpu())
def test_a_named_backend_compiles(backend: str) -> None:
    compiled = torch.compile(windowed_attention, **TRACED)
    options = options_of("all", 2, 30) | {"backend": backend}
    torch.testing.assert_close(run(compiled, 30, options), run(windowed_attention, 30, options))


def test_numbers_may_change() -> None:
    """Window, dilation and scale. torch compiles anew for each scale, and for each other float."""
    compiled = torch.compile(windowed_attention, dynamic=True, **TRACED)
    for length, window, dilation in ((16, 4, 1), (24, 6, 2), (40, 8, 3)):
        x, options = torch.randn(1, 2, length, 4), {"dilation": dilation, "scale": 0.1 * window}
        expected = windowed_attention(x, x, x, window, **options)
        torch.testing.assert_close(compiled(x, x, x, window, **options), expected)


@pytest.mark.usefixtures("counted")
def test_one_graph_serves_every_window_dilation_and_seed() -> None:
    compiled = torch.compile(windowed_attention, dynamic=True, **TRACED)
    x = torch.randn(1, 2, 30, 4)
    for window, dilation, seed in ((4, 2, 1), (6, 3, 2), (8, 5, 3)):
        options = {"dilation": dilation, "dropout_p": 0.1, "dropout_seed": seed}
        expected = windowed_attention(x, x, x, window, **options)
        torch.testing.assert_close(compiled(x, x, x, window, **options), expected)
    assert graphs() == 1


def test_generated_code_gives_what_eager_mode_gives() -> None:
    """Every feature with own global projections, and none, through torch.compile's own code generator."""
    compiled = torch.compile(windowed_attention, fullgraph=True)
    every = make(
        2, dilation=[1, 2], global_rate=0.1, own_global=True, documents=True, padding="ends", dropout_p=0.2
    )
    for case in (every, make(3, length=31, window=8)):
        expected = case.run(windowed_attention, torch.float32)
        torch.testing.assert_close(case.run(compiled, torch.float32), expected)


def test_autocast() -> None:
    compiled = torch.compile(windowed_attention, dynamic=True, **TRACED)
    for length in (16, 30):
        options = options_of("global", 2, length)
        with torch.autocast("cpu", torch.bfloat16):
            expected, found = run(windowed_attention, length, options), run(compiled, length, options)
        assert found[0].dtype == torch.bfloat16
        assert found[1].dtype == torch.float32
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("seed", [3, torch.tensor([3, 4])], ids=["int", "tensor"])
def test_activation_checkpointing(seed: Any) -> None:
    def attend(*inputs: Any) -> Tensor:
        return windowed_attention(*inputs, dropout_p=0.5, dropout_seed=seed)

    def checkpointed(*inputs: Any) -> Tensor:
        return checkpoint(attend, *inputs, use_reentrant=False)  # type: ignore[no-any-return]

    compiled = torch.compile(checkpointed, **TRACED)
    torch.testing.assert_close(run(compiled, 30, {}), run(attend, 30, {}), atol=0, rtol=0)


@pytest.mark.parametrize("generator", ["aot_eager", "inductor"])
@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_drawn_seed_is_the_same_in_forward_and_backward(generator: str, checkpoints: bool) -> None:
    """And new in every call. The output is linear in value, so <output, grad> = <value, its gradient>, or else the
    backward pass dropped other weights."""

    def attend(*inputs: Any) -> Tensor:
        return windowed_attention(*inputs, WINDOW, dropout_p=0.5)

    def checkpointed(*inputs: Any) -> Tensor:
        return checkpoint(attend, *inputs, use_reentrant=False)  # type: ignore[no-any-return]

    compiled = torch.compile(checkpointed if checkpoints else attend, fullgraph=True, backend=generator)
    query, key, value, grad = torch.randn(4, 2, 2, 30, 8)
    value.requires_grad_()
    outputs = []
    for _ in range(2):
        outputs.append(compiled(query, key, value))
        (gradient,) = torch.autograd.grad(outputs[-1], value, grad)
        torch.testing.assert_close((outputs[-1] * grad).sum(), (value * gradient).sum())
    assert not torch.equal(*outputs)


def test_inference_mode() -> None:
    compiled = torch.compile(windowed_attention, **TRACED)
    x = torch.randn(2, 2, 30, 8)
    with torch.inference_mode():
        assert torch.equal(compiled(x, x, x, WINDOW), windowed_attention(x, x, x, WINDOW))


def test_export_for_any_length() -> None:
    class Attention(torch.nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return windowed_attention(x, x, x, WINDOW, attention_mask=mask, global_attention_mask=mask)

    def inputs(length: int) -> tuple[Tensor, Tensor]:
        return torch.randn(2, 2, length, 8), (torch.arange(length) % 5 > 0).expand(2, length).long()

    n = Dim("n", min=2)
    exported = torch.export.export(Attention(), inputs(16), dynamic_shapes=({2: n}, {1: n}))
    for length in (2, 23, 70):
        given = inputs(length)
        assert torch.equal(exported.module()(*given), Attention()(*given))
