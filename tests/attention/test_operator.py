"""The operator under torch's own machinery, and what it says about bad arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import attention.windowed
from attention import backends, windowed_attention
from tests.attention.cases import Case, make


def full_case(**more: Any) -> Case:
    options = {
        "dilation": [1, 2],
        "global_rate": 0.1,
        "own_global": True,
        "documents": True,
        "padding": "ends",
    }
    return make(2, length=23, window=6, **(options | {"dropout_p": 0.2} | more))


@pytest.mark.parametrize("backend", backends())
@pytest.mark.parametrize("features", ["plain", "all"])
def test_opcheck(backend: str, features: str) -> None:
    case = full_case() if features == "all" else make(2, length=23, window=6)
    tensors = [x.float().contiguous().requires_grad_() for x in case.projections]
    masks = [case.options.get(name) for name in ("attention_mask", "global_attention_mask")]
    inputs = (
        *tensors,
        *[None] * (6 - len(tensors)),
        *[None if mask is None else mask.bool() for mask in masks],
        case.options.get("document_ids"),
        case.options.get("dropout_seed"),
        case.window,
        [1, 2],
        False,
        case.options.get("dropout_p", 0.0),
        0.5,
        backend,
    )
    torch.library.opcheck(attention.windowed._forward, inputs)


def test_compiles_into_one_graph() -> None:
    """With and without global tokens, forward and backward, equal to eager."""
    compiled = torch.compile(windowed_attention, fullgraph=True)
    for case in (full_case(), make(3, length=31, window=8)):
        output, gradients = case.run(windowed_attention, torch.float32)
        compiled_output, compiled_gradients = case.run(compiled, torch.float32)
        torch.testing.assert_close(compiled_output, output)
        torch.testing.assert_close(compiled_gradients, gradients)


def test_compiles_with_numbers_that_change() -> None:
    """Length, window, dilation and scale, which the compiler then holds as symbols."""
    compiled = torch.compile(windowed_attention, fullgraph=True, dynamic=True)
    for length, window, dilation in ((16, 4, 1), (24, 6, 2), (40, 8, 3)):
        x, options = torch.randn(1, 2, length, 4), {"dilation": dilation, "scale": 0.1 * window}
        expected = windowed_attention(x, x, x, window, **options)
        torch.testing.assert_close(compiled(x, x, x, window, **options), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_replays_the_dropout(use_reentrant: bool) -> None:
    """With the seed drawn from torch's generator inside the checkpointed region."""
    case = make(4, length=50, window=10, global_rate=0.1)

    def attend(*x: Tensor) -> Tensor:
        return windowed_attention(*x, case.window, dropout_p=0.5, **case.options)

    results = []
    for wrapped in (attend, lambda *x: checkpoint(attend, *x, use_reentrant=use_reentrant)):
        torch.manual_seed(0)
        leaves = [x.detach().requires_grad_() for x in case.projections]
        output = wrapped(*leaves)
        output.backward(case.grad)
        results.append([output, *(x.grad for x in leaves)])
    for plain, replayed in zip(*results):
        assert torch.equal(plain, replayed)


@pytest.mark.parametrize("backend", backends())
def test_autocast_casts_at_the_door_only(backend: str) -> None:
    """As if the inputs had been bfloat16: inside, sums stay in float32; gradients come back in float32."""
    case = full_case(dropout_p=0.0)
    expected, _ = case.run(windowed_attention, torch.bfloat16, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        output, gradients = case.run(windowed_attention, torch.float32, backend=backend)
        assert case.run(windowed_attention, torch.float64, backend=backend)[0].dtype == torch.float64
    assert torch.equal(output, expected)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


def test_saves_only_inputs_output_and_logsumexp() -> None:
    sizes: list[torch.Size] = []
    x = torch.randn(1, 2, 256, 8, requires_grad=True)

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        windowed_attention(x, x * 1.0, x + 1.0, 32)
    attention_saves = [size for size in sizes if size in (x.shape, x.shape[:3])]
    assert len(attention_saves) == len(sizes)
    assert sizes.count(x.shape) == 4


def test_without_a_global_mask_global_projections_are_left_alone() -> None:
    case = make(5, global_rate=0.1, own_global=True)
    leaves = [x.detach().requires_grad_() for x in case.projections]
    own = dict(zip(("query_global", "key_global", "value_global"), leaves[3:]))
    windowed_attention(*leaves[:3], 4, **own).sum().backward()
    assert all(x.grad is None for x in leaves[3:])


def test_masks_of_any_dtype_mean_the_same() -> None:
    case = make(6, padding="holes", global_rate=0.1)
    expected, _ = case.run(windowed_attention)
    for dtype in (torch.bool, torch.float32, torch.int32):
        masks = {name: case.options[name].to(dtype) for name in ("attention_mask", "global_attention_mask")}
        output, _ = Case(case.projections, case.window, case.options | masks, case.grad).run(
            windowed_attention
        )
        assert torch.equal(output, expected)


def test_documents_of_any_integer_dtype_mean_the_same() -> None:
    """torch has no comparisons of uint16 and wider, which a corpus's ids may well be."""
    case = make(7, documents=True)
    expected, _ = case.run(windowed_attention)
    ids = case.options["document_ids"] - case.options["document_ids"].min()
    for dtype in (
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.uint16,
        torch.int32,
        torch.uint32,
        torch.uint64,
    ):
        options = case.options | {"document_ids": ids.to(dtype)}
        assert torch.equal(
            Case(case.projections, 16, options, case.grad).run(windowed_attention)[0], expected
        )


def test_integers_of_numpy_are_integers() -> None:
    expected = windowed_attention(X, X, X, 4, dilation=2)
    assert torch.equal(windowed_attention(X, X, X, np.int64(4), dilation=np.int32(2)), expected)
    assert torch.equal(windowed_attention(X, X, X, 4, dilation=np.full(3, 2)), expected)


def test_meta_tensors_give_shapes() -> None:
    """torch knows no autocast for meta, and raised when asked whether it was on."""
    x = X.to("meta").requires_grad_()
    output = windowed_attention(x, x, x, 4, dropout_p=0.1, attention_mask=torch.ones(2, 8, device="meta"))
    assert (output.shape, output.device.type) == (X.shape, "meta")
    output.sum().backward()
    assert x.grad is not None


X = torch.zeros(2, 3, 8, 4)
ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "query without heads": (
        {"query": X[0]},
        r"query has shape \(3, 8, 4\); expected \(batch, heads, n, head_dim\)",
    ),
    "integers": ({"query": X.long()}, "query is torch.int64; expected one of torch.float64"),
    "key of another length": ({"key": X[:, :, :7]}, r"key has shape \(2, 3, 7, 4\); expected \(2, 3, 8, 4\)"),
    "value of another dtype": (
        {"value": X.double()},
        "value has dtype torch.float64; expected torch.float32",
    ),
    "value elsewhere": ({"value": X.to("meta")}, "value has device meta; expected cpu"),
    "heads of no width": (
        {"query": X[..., :0], "key": X[..., :0], "value": X[..., :0]},
        "head_dim of at least 1",
    ),
    "a window that is false": ({"window": False}, "window is False; expected an even integer >= 0"),
    "scale nan": ({"scale": float("nan")}, "scale is nan; expected a finite number"),
    "scale infinite": ({"scale": float("inf")}, "scale is inf; expected a finite number"),
    "a list as mask": (
        {"attention_mask": [[1] * 8] * 2},
        r"attention_mask is a list; expected a tensor of shape \(batch, n\)",
    ),
    "a list of documents": ({"document_ids": [[0] * 8] * 2}, "document_ids is a list; expected a tensor"),
    "dilation true": ({"dilation": True}, "dilation is True; expected integers >= 1"),
    "odd window": ({"window": 7}, "window is 7; expected an even integer >= 0"),
    "negative window": ({"window": -2}, "window is -2; expected an even integer >= 0"),
    "fractional window": ({"window": 2.0}, "window is 2.0; expected an even integer >= 0"),
    "dilation of two heads": ({"dilation": [1, 2]}, "dilation has 2 entries; expected .* 3 heads"),
    "dilation 0": ({"dilation": 0}, "dilation is 0; expected integers >= 1"),
    "a negative dilation": ({"dilation": [1, -1, 1]}, r"dilation is \[1, -1, 1\]; expected integers >= 1"),
    "mask of another shape": (
        {"attention_mask": torch.ones(2, 7)},
        r"attention_mask has shape \(2, 7\); expected \(batch, n\) = \(2, 8\)",
    ),
    "global mask of four dimensions": (
        {"global_attention_mask": torch.ones(2, 1, 1, 8)},
        r"global_attention_mask has shape \(2, 1, 1, 8\)",
    ),
    "mask elsewhere": (
        {"attention_mask": torch.ones(2, 8, device="meta")},
        "attention_mask is on meta; expected cpu",
    ),
    "fractional documents": (
        {"document_ids": torch.zeros(2, 8)},
        "document_ids is torch.float32; expected integers",
    ),
    "a document that returns": (
        {"document_ids": torch.tensor([[0] * 8, [0, 0, 1, 1, 0, 0, 2, 2]])},
        "document_ids: in example 1 an id returns",
    ),
    "global projection of another shape": (
        {"global_attention_mask": torch.ones(2, 8), "key_global": X[:1]},
        r"key_global has shape \(1, 3, 8, 4\); expected \(2, 3, 8, 4\)",
    ),
    "dropout 1": ({"dropout_p": 1.0}, r"dropout_p is 1.0; expected a probability in \[0, 1\)"),
    "negative dropout": ({"dropout_p": -0.1}, r"dropout_p is -0.1; expected"),
    "a seed too few": (
        {"dropout_p": 0.1, "dropout_seed": torch.zeros(1, dtype=torch.int64)},
        r"dropout_seed is torch.int64 of shape \(1,\); expected int64 of shape \(2,\)",
    ),
    "unknown backend": ({"backend": "cudnn"}, "backend is 'cudnn'; expected None or one of loop, chunks"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_was_given_and_expected(name: str) -> None:
    arguments, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        windowed_attention(**({"query": X, "key": X, "value": X, "window": 4} | arguments))
