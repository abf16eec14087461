"""One step of masked-language-model training by us and by transformers' LongformerForMaskedLM, on the same weights.

A step is forward, backward and AdamW in float32 on one masked sequence of random tokens. All take the same batch from
the same weights, so their losses must agree. Ours scores the masked places alone; transformers scores every token, and
a second row gives its model our head's way, which shows how much of the difference is the rest.

Each method lives in a process of its own, with the memory allocator that its environment sets. Ours sets its own up
beside that, as every training on CPU does (`trainer.engine.allocator`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LongformerConfig, LongformerForMaskedLM

from attention.benchmark.rates import large_product
from trainer.batches.masking import IGNORED, Masking
from trainer.benchmark.rounds import same_losses, take_rounds, with_tiles
from trainer.engine.allocator import keep_freed_memory
from trainer.engine.flops import recomputed_flops, step_flops
from trainer.model.folder import config_json, with_global_projections
from trainer.model.heads import MaskedLanguageModel, masked_loss_sum
from trainer.model.longformer import EncoderConfig

SPECIAL_IDS = frozenset(range(4))
LEARNING_RATE = 3e-5
LOSSES_AGREE = 1e-4  # of each other


@dataclass(frozen=True)
class Setting:
    """What is trained: the base model's width, so many of its 12 layers, one sequence of `tokens`."""

    layers: int
    tokens: int
    window: int
    vocabulary: int
    dropout: float

    def config(self) -> EncoderConfig:
        return EncoderConfig(
            architecture="longformer",
            vocab_size=self.vocabulary,
            num_hidden_layers=self.layers,
            max_position_embeddings=self.tokens + 2,
            attention_window=[self.window] * self.layers,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
        )


class Batch:
    """One masked sequence, with its labels at the masked places and, for transformers, at every token."""

    def __init__(self, config: EncoderConfig, tokens: int) -> None:
        mask_id = config.vocab_size - 1
        masking = Masking(config.vocab_size, SPECIAL_IDS | {mask_id}, mask_id)
        original = np.random.default_rng(0).integers(len(SPECIAL_IDS), mask_id, (1, tokens))
        masked = masking.apply(original, np.zeros(1, dtype=np.uint64))
        self.input_ids = torch.from_numpy(masked.input_ids)
        self.places, self.labels = torch.from_numpy(masked.places), torch.from_numpy(masked.labels)
        self.every_label = torch.full_like(self.input_ids, IGNORED).scatter(1, self.places, self.labels)


def ours(model: Any, batch: Batch) -> Tensor:
    return masked_loss_sum(model(batch.input_ids, batch.places), batch.labels) / batch.labels.numel()


def theirs(model: Any, batch: Batch) -> Tensor:
    return model(batch.input_ids, labels=batch.every_label).loss


def theirs_on_masked_places(model: Any, batch: Batch) -> Tensor:
    hidden = model.longformer(batch.input_ids).last_hidden_state
    hidden = hidden.gather(1, batch.places.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
    return F.cross_entropy(model.lm_head(hidden).flatten(0, 1), batch.labels.flatten())


def transformers_model(model: MaskedLanguageModel) -> LongformerForMaskedLM:
    """transformers' model with our weights."""
    theirs = LongformerForMaskedLM(LongformerConfig(**config_json(model.config)))
    result = theirs.load_state_dict(with_global_projections(model.state_dict()), strict=False)
    left = [name for name in result.missing_keys if "decoder" not in name]  # tied to what was loaded
    assert not left, left
    assert not result.unexpected_keys, result.unexpected_keys
    return theirs


@dataclass(frozen=True)
class Method:
    loss: Callable[[Any, Batch], Tensor]
    model: Callable[[MaskedLanguageModel], nn.Module]
    prepare: Callable[[], object] = lambda: None  # the process, before anything is in its memory


OURS, PEER = "longspan", "transformers"
METHODS = {
    OURS: Method(ours, lambda model: model, keep_freed_memory),
    PEER: Method(theirs, transformers_model),
    f"{PEER}, head on masked places": Method(theirs_on_masked_places, transformers_model),
}


class Step:
    """One training step at a time; remembers the last loss."""

    def __init__(self, name: str, setting: Setting) -> None:
        method = METHODS[name]
        method.prepare()
        torch.manual_seed(0)
        config = setting.config()
        self.model = method.model(MaskedLanguageModel(config)).train()
        self.method, self.batch = method, Batch(config, setting.tokens)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True)
        self.loss = 0.0

    def __call__(self) -> None:
        loss = self.method.loss(self.model, self.batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss = float(loss.detach())


def measure_steps(
    setting: Setting, rounds: int, threads: int, environment: dict[str, str], methods: Sequence[str]
) -> dict[str, Any]:
    """A row for each method, and what they share."""
    makes = {name: partial(Step, name, setting) for name in methods}
    products = with_tiles({"torch.mm": large_product()}, threads)
    taken = take_rounds(makes, products, rounds, threads, environment)
    rates, measured = taken.rates, taken.measured
    places = Batch(setting.config(), setting.tokens).places.shape[1]
    # What the hardware does: attention's scores once more in the backward pass.
    flops = step_flops(setting.config(), setting.tokens, places)
    flops += recomputed_flops(setting.config(), setting.tokens)
    rows = []
    for name, found in measured.items():
        row = {"method": name, "tokens_per_second": setting.tokens / found.median}
        row |= {"losses": taken.losses[name]} | found.as_dict(measured[methods[0]], 0)
        row["of_bound"] = {product: flops / found.median / rate for product, rate in rates.items()}
        rows.append(row)
    return {
        "rates": rates,
        "places": places,
        "flops": flops,
        "rows": rows,
        "agree": same_losses(rows, LOSSES_AGREE),
    }
