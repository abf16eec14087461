"""What finetuning LED is said to take, against what a step keeps, takes at its peak, and multiplies."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import LEDConfig, LEDForConditionalGeneration

from tests.trainer.estimated import kept_bytes
from trainer.batches.examples import ExampleBatch, as_batch
from trainer.engine.config import Training
from trainer.engine.flops import rows_flops
from trainer.engine.led_cost import decoder_layer_bytes, led_flops, led_memory
from trainer.model.led_model import LedModel, LedSizes, encoder_sizes
from trainer.tasks.example import Example

DOCUMENT, SUMMARY = 1100, 90


def sizes(encoder: int = 2, decoder: int = 2, dropout: float = 0.1, **changes: Any) -> LedSizes:
    values: dict[str, Any] = {
        "vocab_size": 1999,
        "d_model": 64,
        "max_encoder_position_embeddings": 2048,
        "max_decoder_position_embeddings": 600,
        "attention_window": 64,
        "encoder_layers": encoder,
        "decoder_layers": decoder,
        "encoder_ffn_dim": 256,
        "decoder_ffn_dim": 192,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 2,
        **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), dropout),
    }
    return LedSizes(**values | changes)


def made(chosen: LedSizes) -> LedModel:
    config = LEDConfig(**chosen.model_dump() | {"attention_window": chosen.windows})
    return LedModel(chosen, LEDForConditionalGeneration(config), None).train()  # type: ignore[arg-type]


def inputs(document: int = DOCUMENT, summary: int = SUMMARY) -> tuple[ExampleBatch, list[torch.Tensor]]:
    """Two examples, one of which is a little shorter, so that there is padding."""
    rows = [np.arange(length, dtype=np.int32) % 900 + 5 for length in (document, document - 1)]
    examples = [Example("x", (row,), np.zeros(1, np.int32)) for row in rows]
    return as_batch(examples, 1), [torch.arange(summary) + 5, torch.arange(summary - 1) + 5]


def kept(chosen: LedSizes, precision: str, *lengths: int) -> float:
    model, (batch, targets) = made(chosen), inputs(*lengths)
    return kept_bytes(model, precision, lambda: model.loss_sum(model.states(batch), targets)) / 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("lengths", [(1100, 90), (330, 170)])
def test_a_layer_of_the_decoder_keeps_what_is_counted(
    precision: str, dropout: float, lengths: tuple[int, int]
) -> None:
    found = kept(sizes(1, 2, dropout), precision, *lengths) - kept(sizes(1, 1, dropout), precision, *lengths)
    training = Training(run=Path("run"), precision=precision)  # type: ignore[arg-type]
    written, read, pair = decoder_layer_bytes(sizes(1, 1, dropout), training, on_gpu=False)
    document, summary = lengths
    counted = summary * written + document * read + summary * (summary + document) * pair
    assert found == pytest.approx(counted, rel=0.005)


class Peak(TorchDispatchMode):
    """The most bytes of tensors that are alive at one time, of those that are made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if _is_tensor(each)}
        found = func(*args, **kwargs or {})
        for each in tree_leaves(found):
            if _is_tensor(each):
                storage = each.untyped_storage()
                if storage._cdata not in self.known | given:
                    self.known.add(storage._cdata)
                    self.alive += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.alive)
        return found

    def _gone(self, which: int, size: int) -> None:
        self.known.discard(which)
        self.alive -= size


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("vocabulary", [1999, 60_000])
def test_the_peak_of_a_step_is_what_is_counted(precision: str, again: bool, vocabulary: int) -> None:
    chosen = sizes(3, 3, vocab_size=vocabulary)
    model = made(chosen)
    if again:
        model.recompute_layers()
    batch, targets = inputs()
    for parameter in model.parameters():  # which stay between passes
        parameter.grad = torch.zeros_like(parameter)
    with Peak() as peak, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        model.loss_sum(model.states(batch), targets).backward()
    training = Training(run=Path("run"), precision=precision, activation_checkpointing=again)  # type: ignore[arg-type]
    counted = led_memory(chosen, training, 0, 2, DOCUMENT, SUMMARY, 1, on_gpu=False)
    # Of a model of so many parameters these would be counted as weights.
    casts = 2 * sum(parameter.numel() for parameter in model.parameters()) if precision == "bf16" else 0
    assert counted.total + casts == pytest.approx(peak.most, rel=0.08)


def test_flops_of_the_decoder_are_its_products() -> None:
    chosen = sizes(1, 2, 0.0)
    model, summary = made(chosen), 33
    hidden = torch.randn(DOCUMENT, chosen.d_model, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model.loss_sum([hidden], [torch.arange(summary) + 5]).backward()
    unseen = summary * (summary - 1) // 2  # by causality, and multiplied all the same
    encoder = rows_flops(encoder_sizes(chosen), [DOCUMENT])
    found = led_flops(chosen, [(DOCUMENT, summary)]) - encoder
    assert found + 2 * 6 * chosen.d_model * chosen.decoder_layers * unseen == counter.get_total_flops()
    assert led_flops(chosen, [(DOCUMENT, summary), (9, 4)]) == found + encoder + led_flops(chosen, [(9, 4)])
