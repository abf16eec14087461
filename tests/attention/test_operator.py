"""The operator under torch's own machinery, and what it says about bad arguments."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import attention.chunks
import attention.windowed
from attention import windowed_attention
from tests.attention.cases import Case, make, on_the_cpu, widest_dtype
from tests.attention.dense import dense_attention


def full_case(**more: Any) -> Case:
    options = {
        "length": 23,
        "window": 6,
        "dilation": [1, 2],
        "global_rate": 0.1,
        "own_global": True,
        "documents": True,
        "padding": "ends",
    }
    return make(2, **(options | {"dropout_p": 0.2} | more))


CHECKED: dict[str, tuple[Case, torch.dtype]] = {
    "plain": (make(2, length=23, window=6), torch.float32),
    "every feature": (full_case(causal=True), torch.float32),
    "half precision": (full_case(), torch.bfloat16),
    "no tokens": (make(2, length=0, window=6), torch.float32),
}


@pytest.mark.parametrize("backend", on_the_cpu())
@pytest.mark.parametrize("name", CHECKED)
def test_opcheck(backend: str, name: str) -> None:
    """torch's own check of both operators: schema, fake tensors, autograd, symbolic shapes."""
    case, dtype = CHECKED[name]
    projections = [x.to(dtype) for x in case.projections]
    masks = [case.options.get(name) for name in ("attention_mask", "global_attention_mask")]
    rest = (
        *[None] * (6 - len(projections)),
        *[None if mask is None else mask.bool() for mask in masks],
        case.options.get("document_ids"),
        case.options.get("dropout_seed"),
        case.window,
        [1, 2],
        case.options["causal"],
        case.options.get("dropout_p", 0.0),
        0.5,
        backend,
    )
    torch.library.opcheck(attention.windowed._forward, (*(x.requires_grad_() for x in projections), *rest))
    projections = [x.detach() for x in projections]
    saved = attention.windowed._forward(*projections, *rest)
    grad = case.grad.to(dtype)
    torch.library.opcheck(attention.windowed._backward, (grad, *saved, *projections, *rest))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("seed", [None, 3, torch.tensor([3, 4])], ids=["drawn", "int", "tensor"])
@pytest.mark.parametrize("backend", [name for name in on_the_cpu() if name != "loop"])
def test_activation_checkpointing_replays_the_dropout(backend: str, seed: Any, use_reentrant: bool) -> None:
    """Also where the seed is drawn from torch's generator inside the checkpointed region."""
    case = make(4, length=50, window=10, global_rate=0.1)

    def attend(*x: Tensor) -> Tensor:
        return windowed_attention(
            *x, case.window, dropout_p=0.5, dropout_seed=seed, backend=backend, **case.options
        )

    results = []
    for wrapped in (attend, lambda *x: checkpoint(attend, *x, use_reentrant=use_reentrant)):
        torch.manual_seed(0)
        leaves = [x.detach().to(widest_dtype(backend)).requires_grad_() for x in case.projections]
        output = wrapped(*leaves)
        output.backward(case.grad.to(output.dtype))
        results.append([output, *(x.grad for x in leaves)])
    for plain, replayed in zip(*results):
        assert torch.equal(plain, replayed)


@pytest.mark.parametrize("backend", on_the_cpu())
def test_autocast_casts_at_the_door_only(backend: str) -> None:
    """As if the inputs had been bfloat16: inside, sums stay in float32; gradients come back in float32."""
    case = full_case(dropout_p=0.0)
    expected, _ = case.run(windowed_attention, torch.bfloat16, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        output, gradients = case.run(windowed_attention, torch.float32, backend=backend)
        if widest_dtype(backend) == torch.float64:
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


@pytest.mark.parametrize("backend", on_the_cpu())
def test_masks_of_any_strides_mean_the_same(backend: str) -> None:
    """A mask (n, batch) turned round, as other libraries keep it, and one row for all examples."""
    case = make(8, batch=3, padding="holes", global_rate=0.1, documents=True)
    masks = {name: x for name, x in case.options.items() if isinstance(x, Tensor)}
    turned = {name: x.t().contiguous().t() for name, x in masks.items()}
    shared = {name: x[:1].expand(3, -1) for name, x in masks.items()}
    for given in (turned, shared):
        assert not all(x.is_contiguous() for x in given.values())
        expected = {name: x.contiguous() for name, x in given.items()}
        dtype = widest_dtype(backend)
        one, other = (
            Case(case.projections, case.window, case.options | options, case.grad).run(
                windowed_attention, dtype, backend=backend
            )
            for options in (given, expected)
        )
        assert torch.equal(one[0], other[0])
        assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


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


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", [name for name in on_the_cpu() if name != "loop"])
def test_gives_the_same_bits_every_run(backend: str, threads: int) -> None:
    case = full_case(length=300, window=64, head_dim=16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, *others = (case.run(windowed_attention, torch.float32, backend=backend) for _ in range(4))
    finally:
        torch.set_num_threads(before)
    for other in others:
        assert torch.equal(first[0], other[0])
        assert all(torch.equal(a, b) for a, b in zip(first[1], other[1], strict=True))


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {  # of (B, H, N, D), all with the same elements
    "model's layout": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "heads last": lambda x: x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1),
    "every second column": lambda x: torch.stack([x, x * torch.nan], -1).flatten(-2)[..., ::2],
    "part of a fused projection": lambda x: torch.cat([x * torch.nan, x, x * torch.nan], -1).chunk(3, -1)[1],
    "every second token": lambda x: torch.stack([x, x * torch.nan], 3).flatten(2, 3)[:, :, ::2],
    "an offset that no vector is aligned to": lambda x: torch.cat([x.new_ones(1), x.flatten()])[1:].view(
        x.shape
    ),
    "one example for all": lambda x: x[:1].expand(x.shape),
    "one head for all": lambda x: x[:, :1].expand(x.shape),
    "one token for all": lambda x: x[:, :, :1].expand(x.shape),
    "one number for all": lambda x: x[:1, :1, :1, :1].expand(x.shape),
}


@pytest.mark.parametrize("backend", on_the_cpu())
@pytest.mark.parametrize("name", VIEWS)
def test_strides_change_nothing(backend: str, name: str) -> None:
    """Of inputs and of the output's gradient, which are views; their gradients are as of contiguous tensors."""
    case = full_case(length=40, head_dim=8)
    dtype = widest_dtype(backend)
    views = [VIEWS[name](x.to(dtype)) for x in (*case.projections, case.grad)]
    copies = [x.contiguous() for x in views]
    results = []
    for *projections, grad in (views, copies):
        viewed = Case(projections, case.window, case.options, grad)
        results.append(viewed.run(windowed_attention, backend=backend))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("backend", on_the_cpu())
def test_the_output_is_contiguous(backend: str) -> None:
    """Whatever the query is: torch.compile is told so before it runs."""
    case = full_case(transposed=True)
    tensors = [x.to(widest_dtype(backend)) for x in case.projections]
    assert not tensors[0].is_contiguous()
    own = dict(zip(("query_global", "key_global", "value_global"), tensors[3:]))
    assert windowed_attention(
        *tensors[:3], case.window, backend=backend, **case.options, **own
    ).is_contiguous()


def allocated(run: Callable[[], object]) -> int:
    """The most bytes that torch holds at a time of those it allocates in `run`."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as found:
        kept = run()
    assert found.profiler is not None
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(
        event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())
    )
    del kept
    return max(held, default=0)


@pytest.mark.parametrize("backend", [name for name in on_the_cpu() if name != "loop"])
@pytest.mark.parametrize("view", ["model's layout", "part of a fused projection", "one example for all"])
def test_memory_beside_the_results_is_a_few_numbers_a_token(
    backend: str, view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of n x n, no copy of an input. A token and head may cost 64 bytes more than output and gradients."""
    monkeypatch.setattr(attention.chunks, "SCRATCH_CPU", 1 << 15)
    batch, heads, head_dim, dtype = 2, 2, 64, torch.float32
    most = []
    for length in (256, 512):
        is_global = (torch.arange(length) < 3).expand(batch, length)
        views = [VIEWS[view](torch.randn(batch, heads, length, head_dim, dtype=dtype)) for _ in range(3)]
        leaves = [x.detach().requires_grad_() for x in views]
        attend = partial(
            windowed_attention, window=16, backend=backend, global_attention_mask=is_global, dropout_p=0.1
        )
        output = attend(*leaves)
        backward = partial(torch.autograd.grad, output, leaves, torch.ones(()).expand(output.shape))
        most.append((allocated(partial(attend, *views)), allocated(backward)))
    (forward, backward), (twice_forward, twice_backward) = most
    tokens = batch * heads * 256
    result = tokens * head_dim * dtype.itemsize
    assert twice_forward - forward <= result + 64 * tokens
    assert twice_backward - backward <= 3 * result + 64 * tokens


@pytest.mark.parametrize("backend", on_the_cpu())
@pytest.mark.parametrize("wanted", itertools.product([False, True], repeat=3), ids=str)
def test_gradients_of_some_inputs_only(backend: str, wanted: tuple[bool, ...]) -> None:
    case = make(8, global_rate=0.1)
    case.projections = [x.to(widest_dtype(backend)) for x in case.projections]
    _, expected = case.run(windowed_attention, backend=backend)
    leaves = [x.clone().requires_grad_(want) for x, want in zip(case.projections, wanted)]
    output = windowed_attention(*leaves, case.window, backend=backend, **case.options)
    assert output.requires_grad == any(wanted)
    if any(wanted):
        output.backward(case.grad.to(output.dtype))
    for leaf, want, gradient in zip(leaves, wanted, expected):
        assert torch.equal(leaf.grad, gradient) if want else leaf.grad is None


@pytest.mark.parametrize("backend", on_the_cpu())
def test_gradient_of_a_sum(backend: str) -> None:
    """Whose gradient is one number, expanded to the output's shape."""
    case = full_case()
    case.projections = [x.to(widest_dtype(backend)) for x in case.projections]
    case.grad = torch.ones_like(case.projections[0])
    _, expected = case.run(windowed_attention, backend=backend)
    case.grad = torch.ones((), dtype=case.grad.dtype).expand(case.grad.shape)
    _, gradients = case.run(windowed_attention, backend=backend)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("backend", on_the_cpu())
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(backend: str, mode: Any) -> None:
    case = full_case()
    expected, _ = case.run(windowed_attention, torch.float32, backend=backend)
    with mode():
        leaves = [x.float().requires_grad_() for x in case.projections]
        own = dict(zip(("query_global", "key_global", "value_global"), leaves[3:]))
        output = windowed_attention(*leaves[:3], case.window, backend=backend, **case.options, **own)
    assert not output.requires_grad
    assert torch.equal(output, expected)


EXTREMES: dict[str, tuple[Case, dict[str, Any]]] = {
    "window 0": (make(9, window=0), {}),
    "window beyond the sequence": (make(9, length=20, window=4096), {}),
    "window beyond all sequences": (make(9, length=20, window=1 << 60), {}),
    "dilation beyond the sequence": (make(9, length=20, dilation=1 << 33), {}),
    "every token global": (make(9, global_rate=1.0, own_global=True), {}),
    "more than a hundred global tokens": (make(9, batch=1, length=200, global_rate=0.6, own_global=True), {}),
    "a padded global token": (
        make(9, length=6, window=2),
        {
            "attention_mask": torch.tensor([[1, 1, 0, 1, 1, 0]] * 2),
            "global_attention_mask": torch.tensor([[0, 0, 1, 0, 1, 1]] * 2),
        },
    ),
    "one example of padding alone": (make(9, padding="all", global_rate=0.2), {}),
    "padding alone": (make(9, length=6), {"attention_mask": torch.zeros(2, 6)}),
    "every token a document": (make(9, length=30), {"document_ids": torch.arange(30).repeat(2, 1)}),
    "one token": (make(9, length=1, global_rate=1.0), {}),
}


@pytest.mark.parametrize("backend", on_the_cpu())
@pytest.mark.parametrize("name", EXTREMES)
def test_extremes(backend: str, name: str) -> None:
    """Of the values that are allowed, against the dense reference."""
    case, options = EXTREMES[name]
    case = Case(case.projections, case.window, case.options | options, case.grad)
    expected = case.run(dense_attention)
    dtype = widest_dtype(backend)
    output, gradients = case.run(windowed_attention, dtype, backend=backend)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    found = output.double(), [x.double() for x in gradients]
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("backend", on_the_cpu())
def test_no_distance_is_too_great(backend: str) -> None:
    x = torch.randn(1, 2, 9, 4)
    attend = partial(windowed_attention, x, x, x, backend=backend)
    assert torch.equal(attend(4, dilation=1 << 62), attend(0))
    assert torch.equal(attend(1 << 80), attend(16))
    assert torch.equal(attend(1 << 40, dilation=1 << 80), attend(0))


@pytest.mark.parametrize("backend", on_the_cpu())
def test_heads_of_one_dilation_need_not_be_neighbours(backend: str) -> None:
    """Nor at even steps: head by head it is the same."""
    dilation = [1, 2, 1, 1, 2, 3, 1, 2]
    case = make(10, heads=len(dilation), length=50, global_rate=0.1, dilation=dilation)
    case.projections = [x.to(widest_dtype(backend)) for x in case.projections]
    together = windowed_attention(*case.projections, case.window, backend=backend, **case.options)
    for head, step in enumerate(dilation):
        alone = [x[:, head : head + 1] for x in case.projections]
        options = case.options | {"dilation": step}
        expected = windowed_attention(*alone, case.window, backend=backend, **options)
        torch.testing.assert_close(together[:, head : head + 1], expected)


class TestDerivatives:
    """What torch can ask of an operator beyond gradients is right or an error, never silently wrong."""

    @pytest.mark.parametrize("backend", on_the_cpu())
    def test_a_second_derivative_is_an_error(self, backend: str) -> None:
        x = torch.randn(1, 2, 8, 4, requires_grad=True)
        output = windowed_attention(x, x, x, 4, backend=backend)
        (gradient,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="windowed_attention_backward"):
            gradient.square().sum().backward()

    @pytest.mark.parametrize("backend", on_the_cpu())
    def test_vmap_is_a_loop(self, backend: str) -> None:
        case = full_case(dropout_p=0.0)
        stacked = [torch.stack([x.float(), x.float() + 1, -x.float()]) for x in case.projections[:3]]
        attend = partial(windowed_attention, window=case.window, backend=backend, **case.options)
        expected = torch.stack([attend(*(x[i] for x in stacked)) for i in range(3)])
        assert torch.equal(torch.vmap(attend)(*stacked), expected)

    def test_transforms_of_torch_func_are_errors(self) -> None:
        def total(x: Tensor) -> Tensor:
            return windowed_attention(x, x, x, 4).sum()

        for transform in (torch.func.grad, torch.func.jacrev, torch.func.hessian):
            with pytest.raises((RuntimeError, NotImplementedError)):
                transform(total)(X + 1)

    def test_forward_mode_is_an_error(self) -> None:
        """torch.library's operators drop tangents: the derivative came out as 0."""

        def attend(x: Tensor) -> Tensor:
            return windowed_attention(x, x, x, 4)

        with pytest.raises(NotImplementedError, match="query carries a forward-mode tangent"):
            torch.func.jvp(attend, (X,), (X + 1,))
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
            attend(forward_ad.make_dual(X, X + 1))


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
    "words for probabilities": ({"dropout_p": "x"}, "dropout_p is 'x'; expected a probability"),
    "no probability": ({"dropout_p": None}, "dropout_p is None; expected a probability"),
    "words for a scale": ({"scale": "a"}, "scale is 'a'; expected a finite number"),
    "a number for a backend": ({"backend": 3}, "backend is 3; expected None or one of loop, chunks"),
    "unknown backend": ({"backend": "cudnn"}, "backend is 'cudnn'; expected None or one of loop, chunks"),
    "no query": ({"query": None}, "query is a NoneType; expected a tensor"),
    "no key": ({"key": None}, "key is a NoneType; expected a tensor"),
    "a list as value": ({"value": [[1.0]]}, "value is a list; expected a tensor"),
    "a list as global query": (
        {"global_attention_mask": torch.ones(2, 8), "query_global": [1.0]},
        "query_global is a list; expected a tensor",
    ),
    "a fractional seed": (
        {"dropout_p": 0.1, "dropout_seed": 1.5},
        r"dropout_seed is 1.5; expected int64 of shape \(2,\), an int or None",
    ),
    "a list as seed": (
        {"dropout_p": 0.1, "dropout_seed": [1, 2]},
        r"dropout_seed is \[1, 2\]; expected int64 of shape \(2,\), an int or None",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_was_given_and_expected(name: str) -> None:
    arguments, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        windowed_attention(**({"query": X, "key": X, "value": X, "window": 4} | arguments))
