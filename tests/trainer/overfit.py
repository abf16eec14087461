"""A small new model that learns a task's examples by heart: input, head, loss, decoding and metric in one."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.optim import AdamW

from pipeline.tokenizer import load_tokenizer
from trainer.batches.examples import as_batch
from trainer.model.longformer import EncoderConfig, initialise
from trainer.model.task_model import TaskModel
from trainer.tasks.example import Example
from trainer.tasks.task import DownstreamTask
from trainer.tasks.wordpieces import Wordpieces


def real_wordpieces(shared_data: Path, task: DownstreamTask) -> Wordpieces:
    """RoBERTa's own tokenizer with the task's special tokens."""
    return Wordpieces(load_tokenizer(shared_data / "tokenizer"), task.added_tokens)


def small_model(
    task: DownstreamTask, vocabulary: int, tokens: int, hidden_size: int = 64, window: int = 32
) -> TaskModel:
    torch.manual_seed(0)
    config = EncoderConfig(
        "longformer",
        vocabulary,
        hidden_size,
        2,
        4,
        2 * hidden_size,
        tokens + 2,
        attention_window=[window, window],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = TaskModel(config, task.heads(config), task.has_global_tokens)
    initialise(model.encoder, 0.05)
    return model


def figures(model: TaskModel, task: DownstreamTask, examples: Sequence[Example]) -> dict[str, float]:
    """The task's metric of a model's predictions."""
    model.eval()
    with torch.no_grad():
        batch = as_batch(examples, 1, task.has_global_tokens)
        predictions = task.predict(model, model.states(batch), examples)
    return task.figures(task.sums(examples, predictions))


def overfit(
    model: TaskModel,
    task: DownstreamTask,
    examples: Sequence[Example],
    steps: int,
    learning_rate: float = 2e-3,
) -> list[float]:
    """Train on all examples together; returns the mean loss of each step. Every parameter has a gradient."""
    optimizer = AdamW(model.parameters(), learning_rate)
    batch = as_batch(examples, 1, task.has_global_tokens)
    losses = []
    model.train()
    for _ in range(steps):
        loss = task.loss(model, model.states(batch), examples) / len(examples)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    return losses
