"""One finetuning step by us and by transformers' model for the task, on the same weights and the same batch.

A step is forward, loss, backward and AdamW on one example of random tokens, with the paper's global tokens: `<s>` to
classify, `<s>` and the question to answer it. bf16 is autocast on both sides, weights in float32. The answer occurs
once, and our head reads every token, as transformers' does, so that both compute the same function: the logits are
compared first, the losses at every step.

Each method lives in a process of its own; ours sets its allocator up as every training on CPU does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LongformerConfig, LongformerForQuestionAnswering, LongformerForSequenceClassification

from attention.benchmark.rates import large_product
from trainer.batches.examples import ExampleBatch, as_batch
from trainer.benchmark.rounds import same_losses, take_rounds
from trainer.benchmark.step import LOSSES_AGREE, OURS, PEER, SPECIAL_IDS, Setting
from trainer.engine.allocator import keep_freed_memory
from trainer.engine.flops import recomputed_flops, rows_flops
from trainer.model.folder import config_json
from trainer.model.longformer import EncoderConfig, initialise
from trainer.model.task_model import TaskModel
from trainer.tasks.classification import ClassificationSettings
from trainer.tasks.example import Example
from trainer.tasks.spans import or_loss

METHODS = (OURS, PEER)
MM = "torch.mm"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SAME_LOGITS = 1e-4  # greatest difference, of the greatest logit, in fp32
SAME_LOSSES = {"fp32": LOSSES_AGREE, "bf16": 2e-2}  # of each other
DEVIATION = 0.05
"""Of the weights. At RoBERTa's 0.02 a token weighs all that it sees about the same, and random tokens alike: what it
sees too much or too little would move no logit by SAME_LOGITS."""
LEARNING_RATE = (
    1e-6  # at a finetuning's 3e-5 one example is known by heart in two steps, and no loss left to compare
)
QUESTION = 16  # tokens, `<s>` with them


class Kind(Protocol):
    """What is finetuned: an example, our head and loss, and transformers' model for the same."""

    peer: type[Any]

    def example(self, ids: np.ndarray) -> Example:
        """Of a row's ids (N,)."""

    def heads(self, config: EncoderConfig) -> dict[str, nn.Module]: ...

    def logits(self, model: TaskModel, states: list[Tensor]) -> Tensor: ...

    def loss(self, model: TaskModel, states: list[Tensor], examples: Sequence[Example]) -> Tensor: ...

    def gold(self, example: Example) -> dict[str, Tensor]:
        """What transformers' model takes for the example's label."""

    def peer_logits(self, output: Any) -> Tensor: ...


class Classification:
    peer = LongformerForSequenceClassification

    def __init__(self) -> None:
        settings = ClassificationSettings(name="classification", train=Path(), labels=["no", "yes"])  # type: ignore[call-arg]
        task = settings.task()
        self.heads, self.loss = task.heads, task.loss

    def example(self, ids: np.ndarray) -> Example:
        first = np.zeros(1, np.int32)
        return Example("", (ids,), global_places=first, read=first, features={"label": np.ones(1, np.int32)})

    def logits(self, model: TaskModel, states: list[Tensor]) -> Tensor:
        found: Tensor = model.get_submodule("classifier")(torch.cat(states))
        return found

    def gold(self, example: Example) -> dict[str, Tensor]:
        return {"labels": torch.from_numpy(example.features["label"]).long()}

    def peer_logits(self, output: Any) -> Tensor:
        found: Tensor = output.logits
        return found


class Answering:
    peer = LongformerForQuestionAnswering

    def heads(self, config: EncoderConfig) -> dict[str, nn.Module]:
        return {"qa_outputs": nn.Linear(config.hidden_size, 2)}

    def example(self, ids: np.ndarray) -> Example:
        places = np.arange(len(ids), dtype=np.int32)
        answer = {"start": places[[len(ids) // 2]], "end": places[[len(ids) // 2 + 3]]}
        return Example("", (ids,), global_places=places[:QUESTION], read=None, features=answer)

    def logits(self, model: TaskModel, states: list[Tensor]) -> Tensor:
        """(tokens, 2)."""
        [own] = states
        found: Tensor = model.get_submodule("qa_outputs")(own)
        return found

    def loss(self, model: TaskModel, states: list[Tensor], examples: Sequence[Example]) -> Tensor:
        gold = self.gold(examples[0])
        return or_loss(self.logits(model, states), gold["start_positions"], gold["end_positions"])

    def gold(self, example: Example) -> dict[str, Tensor]:
        return {
            f"{side}_positions": torch.from_numpy(example.features[side]).long() for side in ("start", "end")
        }

    def peer_logits(self, output: Any) -> Tensor:
        return torch.stack([output.start_logits[0], output.end_logits[0]], dim=1)


KINDS: dict[str, Kind] = {"classification": Classification(), "answering": Answering()}


def config_of(setting: Setting) -> EncoderConfig:
    return replace(setting.config(), initializer_range=DEVIATION)


def our_model(kind: Kind, config: EncoderConfig) -> TaskModel:
    """With weights that the sizes alone decide."""
    torch.manual_seed(0)
    model = TaskModel(config, kind.heads(config))
    initialise(model, config.initializer_range)
    return model


def peer_model(kind: Kind, model: TaskModel) -> nn.Module:
    """transformers' model with our weights."""
    theirs: nn.Module = kind.peer(LongformerConfig(**config_json(model.config)))
    theirs.load_state_dict(model.state_dict())  # the same names, neither more nor fewer
    return theirs


def one_batch(kind: Kind, setting: Setting) -> ExampleBatch:
    """One row of random tokens, none of them padding."""
    generator = np.random.default_rng(0)
    ids = generator.integers(len(SPECIAL_IDS), setting.vocabulary, setting.tokens).astype(np.int32)
    return as_batch([kind.example(ids)], setting.config().pad_token_id)


def peer_output(kind: Kind, model: nn.Module, batch: ExampleBatch) -> Any:
    assert batch.global_mask is not None
    return model(
        batch.input_ids,
        global_attention_mask=batch.global_mask.long(),  # never what it makes of separators
        **kind.gold(batch.examples[0]),
    )


@torch.no_grad()
def logits_apart(name: str, setting: Setting) -> float:
    """The greatest difference between transformers' logits and ours, without dropout, of our greatest."""
    kind = KINDS[name]
    model = our_model(kind, config_of(setting)).eval()
    batch = one_batch(kind, setting)
    expected = kind.logits(model, model.states(batch))
    found = kind.peer_logits(peer_output(kind, peer_model(kind, model).eval(), batch))
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float((found - expected).abs().max() / expected.abs().max())


class FinetuningStep:
    """See alone.Step."""

    def __init__(self, method: str, kind: str, setting: Setting, precision: str = "fp32") -> None:
        self.bf16 = precision == "bf16"
        if method == OURS:
            keep_freed_memory()
        self.kind = KINDS[kind]
        self.ours = our_model(self.kind, config_of(setting)) if method == OURS else None
        model = self.ours or peer_model(self.kind, our_model(self.kind, config_of(setting)))
        self.model, self.batch = model.train(), one_batch(self.kind, setting)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
        self.loss = 0.0

    def __call__(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self._loss()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss = float(loss.detach())

    def _loss(self) -> Tensor:
        if self.ours is None:
            theirs: Tensor = peer_output(self.kind, self.model, self.batch).loss
            return theirs
        return self.kind.loss(self.ours, self.ours.states(self.batch), self.batch.examples)


def measure_finetuning_steps(
    name: str, setting: Setting, precision: str, rounds: int, threads: int, environment: dict[str, str]
) -> dict[str, Any]:
    """A row for each method, and what they share. The bound is in seconds: all products of ours at the rate that
    torch.mm reaches in this precision in the same rounds."""
    makes = {method: partial(FinetuningStep, method, name, setting, precision) for method in METHODS}
    taken = take_rounds(makes, {MM: large_product(dtype=DTYPES[precision])}, rounds, threads, environment)
    flops = finetuning_flops(name, setting)
    bound = flops / taken.rates[MM]
    rows = []
    for method, found in taken.measured.items():
        row: dict[str, Any] = {"method": method, "tokens_per_second": setting.tokens / found.median}
        rows.append(row | {"losses": taken.losses[method]} | found.as_dict(taken.measured[OURS], bound))
    return {
        "rate": taken.rates[MM],
        "flops": flops,
        "bound": bound,
        "rows": rows,
        "agree": same_losses(rows, SAME_LOSSES[precision]),
    }


def finetuning_flops(name: str, setting: Setting) -> int:
    """What the hardware does in a step of ours: attention's scores once more in the backward pass; keys and values for
    the global tokens as `few_global` has them. Where the head reads global tokens alone the last layer has no more."""
    example = KINDS[name].example(np.zeros(setting.tokens, np.int32))
    config = setting.config()
    for_global = 2 * setting.tokens * config.hidden_size * config.num_attention_heads
    for_global *= config.num_hidden_layers * len(example.global_places)
    whole = setting.config() if example.read is None else replace(setting, layers=setting.layers - 1).config()
    return rows_flops(whole, [setting.tokens]) + recomputed_flops(whole, setting.tokens) + 6 * for_global
