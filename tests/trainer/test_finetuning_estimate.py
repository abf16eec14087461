"""What a finetuning is said to take, against what a step keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from tests.trainer.estimated import TOKENS, encoder_config, kept_bytes
from trainer.batches.examples import as_batch
from trainer.engine.config import Training
from trainer.engine.estimate import global_bytes, layer_bytes, rows_memory
from trainer.engine.flops import rows_flops, step_flops
from trainer.model.longformer import initialise
from trainer.model.task_model import TaskModel
from trainer.tasks.example import Example


def kept(layers: int, precision: str, projections: bool) -> int:
    """Two rows, of so many global tokens that the plain path takes them."""
    config = encoder_config(layers)
    model = TaskModel(config, {}, projections)
    initialise(model, 0.02)
    rows = tuple(np.random.default_rng(0).integers(4, 8000, TOKENS, dtype=np.int32) for _ in range(2))
    batch = as_batch([Example("x", rows, np.arange(200, dtype=np.int32))], config.pad_token_id)
    seeds = torch.zeros(1, layers, dtype=torch.int64)
    return kept_bytes(model.train(), precision, lambda: model.states(batch, seeds))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("projections", [True, False])
def test_layers_keep_what_is_counted(precision: Literal["fp32", "bf16"], projections: bool) -> None:
    found = kept(2, precision, projections) - kept(1, precision, projections)
    training = Training(run=Path("run"), precision=precision)
    config = encoder_config(1)
    counted = sum(layer_bytes(config, training, on_gpu=False)) + projections * global_bytes(config, training)
    assert found / (2 * TOKENS) == pytest.approx(counted, rel=0.03)


def test_memory_grows_with_the_tokens_and_shrinks_by_recomputing() -> None:
    training = Training(run=Path("run"))
    again = Training(run=Path("run"), activation_checkpointing=True)
    config = encoder_config(6)

    def total(settings: Training, tokens: int) -> int:
        return rows_memory(config, settings, 1000, tokens, 1, False, True).activations

    assert total(training, 2 * TOKENS) == 2 * total(training, TOKENS)
    assert total(again, TOKENS) < total(training, TOKENS) / 2


def test_flops_are_those_of_rows_of_that_length() -> None:
    """Without the head, pretraining's over all places: what it has beside is the head's."""
    config = encoder_config(3)
    head = 6 * TOKENS * (config.hidden_size**2 + config.hidden_size * config.vocab_size)
    assert rows_flops(config, [TOKENS]) == step_flops(config, TOKENS, TOKENS) - head
    assert rows_flops(config, [TOKENS, 7]) == rows_flops(config, [TOKENS]) + rows_flops(config, [7])
