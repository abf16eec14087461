"""The core inside transformers' models: their outputs and gradients, and what they refuse."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertConfig,
    BertModel,
    LEDConfig,
    LEDForConditionalGeneration,
    LongformerConfig,
    LongformerForMaskedLM,
    Trainer,
    TrainingArguments,
)
from transformers.models.longformer import modeling_longformer

from attention.huggingface import accelerate, restore

VOCABULARY, PAD, LONGEST = 40, 1, 50
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
WIDE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
"""Weights far from 0, or else every token would see all others alike."""


def a_longformer(**changes: Any) -> LongformerForMaskedLM:
    torch.manual_seed(0)
    return LongformerForMaskedLM(
        LongformerConfig(**{**WIDE, "attention_window": [4, 8], **NO_DROPOUT, **changes})
    ).eval()


def an_led(**changes: Any) -> LEDForConditionalGeneration:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": 24,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 3,
        "decoder_attention_heads": 3,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 16,
        "attention_window": [4, 8],
        "init_std": 0.3,
        "pad_token_id": PAD,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
    }
    return LEDForConditionalGeneration(LEDConfig(**{**sizes, **changes})).eval()


Batch = dict[str, Tensor]


@st.composite
def batches(draw: st.DrawFn, global_tokens: bool = True) -> Batch:
    """Of any length, each text padded at its end, with global tokens anywhere, in padding too."""
    lengths = draw(st.lists(st.integers(1, LONGEST), min_size=1, max_size=3))
    places = st.sets(st.integers(0, max(lengths) - 1), max_size=4) if global_tokens else st.just(set())
    return a_batch(lengths, [draw(places) for _ in lengths], draw(st.integers(0, 1000)))


def a_batch(lengths: list[int], global_places: list[Any], seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(3, VOCABULARY, real.shape, generator=generator).masked_fill(~real, PAD)
    is_global = torch.zeros_like(real)
    for example, places in enumerate(global_places):
        is_global[example, list(places)] = True
    batch = {"input_ids": ids, "attention_mask": real.long(), "global_attention_mask": is_global.long()}
    return batch if is_global.any() else {k: v for k, v in batch.items() if k != "global_attention_mask"}


def outcome(model: nn.Module, batch: Batch, **more: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The hidden states and logits of real tokens, and the gradient of a loss over them by each parameter."""
    model.zero_grad()
    found = model(**batch, **more, output_hidden_states=True)
    states = found.encoder_hidden_states if "decoder_input_ids" in more else found.hidden_states
    real = batch["attention_mask"] != 0
    outputs = [state[real] for state in states]
    outputs.append(found.logits if "decoder_input_ids" in more else found.logits[real])
    sum((output * torch.linspace(-1, 1, output.shape[-1])).sum() for output in outputs).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return [output.detach() for output in outputs], gradients


def assert_same(found: tuple[list[Tensor], dict[str, Tensor]], expected: Any) -> None:
    """Outputs to 1e-5 of each one's size; gradients to 1e-5 of the greatest of all."""
    assert len(found[0]) == len(expected[0])
    for ours, theirs in zip(found[0], expected[0]):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * max(1.0, float(theirs.abs().max())), rtol=0)
    assert found[1].keys() == expected[1].keys()
    most = max(float(gradient.abs().max()) for gradient in expected[1].values())
    for name, theirs in expected[1].items():
        torch.testing.assert_close(found[1][name], theirs, atol=1e-5 * most, rtol=0)


FAMILIES = {
    "longformer": (a_longformer, {}),
    "led": (an_led, {"decoder_input_ids": torch.tensor([[2, 5, 6]])}),
}


def more_of(family: str, batch: Batch) -> tuple[Callable[..., Any], dict[str, Tensor]]:
    make, more = FAMILIES[family]
    return make, {name: ids.expand(len(batch["input_ids"]), -1) for name, ids in more.items()}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12, deadline=None)
@given(batch=batches())
def test_an_accelerated_model_is_the_same_function(family: str, training: bool, batch: Batch) -> None:
    make, more = more_of(family, batch)
    model = make().train(training)
    expected = outcome(model, batch, **more)
    accelerate(model)
    assert_same(outcome(model, batch, **more), expected)
    restore(model)
    assert_same(outcome(model, batch, **more), expected)


BATCH = a_batch([13, 9], [[0, 5], [2, 11]])


class Adapted(nn.Linear):
    """More than its weight, as the layers are that adapters put in a projection's place."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).sin()


def adapt(projection: nn.Linear) -> None:
    projection.__class__ = Adapted


def replace_forward(projection: nn.Linear) -> None:
    """As those do that bring weights from another device."""
    forward = projection.forward
    projection.forward = lambda input: forward(input).sin()  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[nn.Linear], Any]] = {
    "adapted": adapt,
    "forward replaced": replace_forward,
    "forward hook": lambda linear: linear.register_forward_hook(lambda module, args, output: output.sin()),
    "before forward": lambda linear: linear.register_forward_pre_hook(lambda module, args: args[0].sin()),
    "backward hook": lambda linear: linear.register_full_backward_hook(
        lambda module, given, _: (2 * given[0],)
    ),
    "before backward": lambda linear: linear.register_full_backward_pre_hook(
        lambda module, given: (2 * given[0],)
    ),
    "without bias": lambda linear: linear.register_parameter("bias", None),
    "reparametrised": nn.utils.parametrizations.weight_norm,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["query_global", "key_global", "value_global"])
@pytest.mark.parametrize("change", CHANGES)
def test_global_projections_that_are_called(family: str, part: str, change: str) -> None:
    if part == "query_global" and "backward" in change:
        return  # transformers divides its output in place, which such a hook does not bear
    make, more = more_of(family, BATCH)
    model = make()
    for module in model.modules():
        if hasattr(module, part):
            CHANGES[change](getattr(module, part))
    expected = outcome(model, BATCH, **more)
    assert_same(outcome(accelerate(model), BATCH, **more), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_global_projections_under_a_hook_of_all_modules(family: str) -> None:
    make, more = more_of(family, BATCH)
    model = make()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: output.sin() if isinstance(module, nn.Linear) else None
    )
    try:
        expected = outcome(model, BATCH, **more)
        assert_same(outcome(accelerate(model), BATCH, **more), expected)
    finally:
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_many_global_tokens(family: str) -> None:
    batch = a_batch([13, 9], [range(6), []])
    make, more = more_of(family, batch)
    model = make()
    expected = outcome(model, batch, **more)
    assert_same(outcome(accelerate(model), batch, **more), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_input_is_not_padded(family: str) -> None:
    make, more = more_of(family, BATCH)
    model = make()
    lengths = []
    layers = model.longformer.encoder.layer if family == "longformer" else model.led.encoder.layers
    layers[0].register_forward_hook(lambda module, args, output: lengths.append(output[0].shape[1]))
    for change in (accelerate, restore):
        change(model)(**BATCH, **more)
    assert lengths == [13, 16]


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_but_the_classes_changes(family: str, tmp_path: Path) -> None:
    make, more = more_of(family, BATCH)
    model, untouched = make(), make()
    before = copy.deepcopy(model)
    expected = outcome(model, BATCH, **more)
    assert accelerate(accelerate(model)) is model
    names = [type(module).__name__ for module in model.modules()]
    assert names == [type(module).__name__ for module in before.modules()]
    assert list(model.state_dict()) == list(before.state_dict())
    pickled = pickle.loads(pickle.dumps(model))  # noqa: S301
    for copied in (copy.deepcopy(model), pickled):
        assert [type(x) for x in copied.modules()] == [type(x) for x in model.modules()]
        assert_same(outcome(copied, BATCH, **more), expected)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert [type(x) for x in loaded.modules()] == [type(x) for x in untouched.modules()]
    assert_same(outcome(loaded, BATCH, **more), expected)
    assert [type(x) for x in restore(restore(model)).modules()] == [type(x) for x in before.modules()]


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that an operator returns."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, Tensor):
                self.found = max(self.found, tensor.untyped_storage().size() // tensor.element_size())
        return output


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_no_matrix_of_all_pairs_of_tokens(family: str) -> None:
    """transformers makes one of its padding mask, of which it reads a row."""
    n = 600
    longer = {"longformer": "max_position_embeddings", "led": "max_encoder_position_embeddings"}[family]
    make, more = more_of(family, BATCH)
    model = type(make())(type(make().config)(**make().config.to_dict() | {longer: n + 8})).eval()
    batch = a_batch([n - 3, n - 50], [[0], [7]])
    largest = {}
    for change in (restore, accelerate):
        with Largest() as mode:
            change(model)(**batch, **more)
        largest[change] = mode.found
    assert largest[accelerate] < n * n / 2
    if family == "led" or hasattr(modeling_longformer, "create_bidirectional_mask"):  # not in older versions
        assert largest[restore] > n * n / 2


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_attention_are_refused(family: str) -> None:
    make, more = more_of(family, BATCH)
    model = accelerate(make())
    with pytest.raises(ValueError, match=r"output_attentions is True; expected False.*restore\(model\)"):
        model(**BATCH, **more, output_attentions=True)
    assert restore(model)(**BATCH, **more, output_attentions=True) is not None


def test_what_cannot_be_accelerated_is_refused() -> None:
    with pytest.raises(ValueError, match="BertModel, in which there is no self-attention of Longformer or"):
        accelerate(BertModel(BertConfig(**WIDE)))
    model = a_longformer()
    attention = model.longformer.encoder.layer[1].attention.self
    attention.forward = attention.forward
    with pytest.raises(ValueError, match="forward of a LongformerSelfAttention has been replaced"):
        accelerate(model)
    del attention.forward
    accelerate(model)
    attention.forward = attention.forward
    assert accelerate(model) is model
    with pytest.raises(ValueError, match="forward of a LongformerSelfAttention has been replaced"):
        restore(model)
    del attention.forward
    restore(model)

    class Other(type(attention)):  # type: ignore[misc]
        pass

    attention.__class__ = Other
    with pytest.raises(ValueError, match=r"a .*Other; expected transformers' own"):
        accelerate(model)
    assert "_pad_to_window_size" not in vars(model.longformer)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_repeats_dropout(family: str) -> None:
    """The seed is drawn from torch's generator, so that the second forward drops what the first did."""
    make, more = more_of(family, BATCH)
    name = "attention_probs_dropout_prob" if family == "longformer" else "attention_dropout"
    model = accelerate(make(**{name: 0.3})).train()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(outcome(model, BATCH, **more))
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(results[1], results[0])
    assert not torch.equal(results[2][0][-1], results[0][0][-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_of_training_alone_and_one_for_all_rows(family: str) -> None:
    """Rows of global tokens drop the same weights, whether by few tokens' projections or by those of all."""
    make, more = more_of(family, BATCH)
    model = make(attention_probs_dropout_prob=0.3, attention_dropout=0.3)
    expected = outcome(model, BATCH, **more)
    assert_same(outcome(accelerate(model), BATCH, **more), expected)
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        results.append(outcome(model.train(), BATCH, **more))
        for module in model.modules():
            if hasattr(module, "key_global"):
                module.key_global.register_forward_hook(lambda *_: None)
    assert_same(results[1], results[0])
    assert not torch.allclose(results[0][0][-1], expected[0][-1])


def test_compiled_without_more_graph_breaks() -> None:
    """With global tokens no more than without; there the model as it was fails."""
    model = a_longformer()
    counts = []
    for change, batch in (
        (restore, a_batch([13, 9], [])),
        (accelerate, a_batch([13, 9], [])),
        (accelerate, BATCH),
    ):
        torch._dynamo.reset()
        counts.append(torch._dynamo.explain(change(model))(**batch).graph_break_count)
    torch._dynamo.reset()
    assert counts[2] <= counts[1] <= counts[0]


@torch.no_grad()
def test_compiled_with_global_tokens() -> None:
    """Which the model as it was does not bear: dynamo fails on its assertions."""
    model = a_longformer()
    expected = model(**BATCH).logits
    torch._dynamo.reset()
    found = torch.compile(accelerate(model), backend="aot_eager")(**BATCH).logits
    torch._dynamo.reset()
    real = BATCH["attention_mask"] != 0
    torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=0)


def test_trained_by_the_trainer(tmp_path: Path) -> None:
    """The same losses as of the model as it was, step for step."""
    pytest.importorskip("accelerate")  # which the Trainer wants
    rows = [{**{k: v[0] for k, v in a_batch([n], []).items()}} for n in (13, 13, 13, 13)]
    data = [{**row, "labels": row["input_ids"]} for row in rows]
    losses = []
    for change in (restore, accelerate):
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=4,
            per_device_train_batch_size=2,
            logging_steps=1,
            learning_rate=1e-2,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(change(a_longformer()), arguments, train_dataset=data)
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert len(losses[0]) == 4
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


def test_led_generates_the_same_tokens() -> None:
    model = an_led()
    batch = a_batch([13, 9], [[0], [0]])
    options: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 8}
    expected = model.generate(**batch, **options)
    assert torch.equal(accelerate(model).generate(**batch, **options), expected)
