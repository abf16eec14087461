"""Times one step of masked-language-model training beside transformers' LongformerForMaskedLM, in one run.

    python -m trainer.benchmark --layers 2 --tokens 4096 --rounds 5

A step is forward, backward and AdamW in float32 on one masked sequence of random tokens, at the width of the base
model. All take the same batch from the same weights, and their losses are printed: they must agree. Ours scores
the masked places alone; transformers scores every token, and a second row gives its model our head's way, which
shows how much of the difference is attention. Dropout is off, so that the losses can be compared, unless --dropout
turns it on.

The bound is the time that the matrix products of a step take at the rate torch.mm reaches in the same rounds, with
the head on masked places. Peak memory is the rise of the resident set above weights and moments.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LongformerConfig, LongformerForMaskedLM

from attention.benchmark.measure import (
    Clock,
    benchmark_parser,
    clock_of,
    conditions,
    interleave,
    megabytes,
    positive,
    print_table,
)
from attention.benchmark.workload import visible_pairs
from trainer.batches.masking import IGNORED, Masking
from trainer.model.folder import config_json, with_global_projections
from trainer.model.heads import MaskedLanguageModel, masked_loss_sum
from trainer.model.longformer import EncoderConfig

SPECIAL_IDS = frozenset(range(4))
LEARNING_RATE = 3e-5


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

    def ours(self, model: Any) -> Tensor:
        return masked_loss_sum(model(self.input_ids, self.places), self.labels) / self.labels.numel()

    def theirs(self, model: Any) -> Tensor:
        return model(self.input_ids, labels=self.every_label).loss

    def theirs_on_masked_places(self, model: Any) -> Tensor:
        hidden = model.longformer(self.input_ids).last_hidden_state
        hidden = hidden.gather(1, self.places.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        return F.cross_entropy(model.lm_head(hidden).flatten(0, 1), self.labels.flatten())


class Step:
    """One training step at a time; remembers the losses."""

    def __init__(self, model: nn.Module, loss: Callable[[Any], Tensor]) -> None:
        self.model, self.loss = model.train(), loss
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        self.losses: list[float] = []

    def __call__(self) -> None:
        loss = self.loss(self.model)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(float(loss.detach()))


def transformers_model(model: MaskedLanguageModel) -> LongformerForMaskedLM:
    """transformers' model with our weights."""
    theirs = LongformerForMaskedLM(LongformerConfig(**config_json(model.config)))
    result = theirs.load_state_dict(with_global_projections(model.state_dict()), strict=False)
    left = [name for name in result.missing_keys if "decoder" not in name]  # tied to what was loaded
    assert not left, left
    assert not result.unexpected_keys, result.unexpected_keys
    return theirs


def step_flops(config: EncoderConfig, tokens: int, places: int) -> int:
    """FLOPs of the matrix products of a step: two a weight and token forward, twice that backward.

    Attention is counted as in `attention.benchmark`, with the scores once more in the backward pass.
    """
    width, window = config.hidden_size, config.attention_window[0]
    weights = 4 * width**2 + 2 * width * config.intermediate_size
    attention = 2 * 7 * visible_pairs(tokens, window) * width
    head = 2 * places * (width**2 + width * config.vocab_size)
    return config.num_hidden_layers * (3 * 2 * tokens * weights + attention) + 3 * head


def compare(config: EncoderConfig, tokens: int, rounds: int, clock: Clock) -> dict[str, Any]:
    """A row for each method, and what they share."""
    torch.manual_seed(0)
    ours, batch = MaskedLanguageModel(config), Batch(config, tokens)
    steps = {
        "transformers": Step(transformers_model(ours), batch.theirs),
        "transformers, head on masked places": Step(transformers_model(ours), batch.theirs_on_masked_places),
    }
    steps = {"longspan": Step(ours, batch.ours)} | steps
    measured, rates = interleave(steps, rounds, clock)
    rate = rates["torch.mm"]
    bound = step_flops(config, tokens, batch.places.shape[1]) / rate
    rows = [
        {"method": name, "tokens_per_second": tokens / found.median, "losses": steps[name].losses}
        | found.as_dict(measured["longspan"], bound)
        for name, found in measured.items()
    ]
    return {"bound": bound, "gemm_rate": rate, "places": batch.places.shape[1], "rows": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = benchmark_parser("trainer.benchmark", __doc__ or "")
    parser.add_argument("--layers", type=positive, default=2, help="of the base model's 12 (default 2)")
    parser.add_argument("--tokens", type=positive, default=4096, help="of the sequence (default 4096)")
    parser.add_argument(
        "--vocabulary", type=positive, default=50265, help="entries (default 50265, RoBERTa's)"
    )
    parser.add_argument("--dropout", type=float, default=0.0, help="everywhere (default 0; RoBERTa's is 0.1)")
    options = parser.parse_args(arguments)
    if options.window % 2:
        parser.error("expected an even --window: transformers' Longformer needs that")
    torch.set_num_threads(options.threads)
    config = EncoderConfig(
        architecture="longformer",
        vocab_size=options.vocabulary,
        num_hidden_layers=options.layers,
        max_position_embeddings=options.tokens + 2,
        attention_window=[options.window] * options.layers,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
    )
    about = (
        f"masked-language-model step, {options.layers} layers of the base model's 12, width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, window {options.window}, vocabulary {config.vocab_size:,}, "
        f"1 sequence of {options.tokens:,} tokens, float32, dropout {options.dropout}"
    )
    print(about + "\n" + conditions(options.rounds, options.threads))
    found = compare(config, options.tokens, options.rounds, clock_of(options.threads))
    print(
        f"\nbound {found['bound']:,.2f} s at the {found['gemm_rate'] / 1e9:,.0f} GFLOP/s of torch.mm, "
        f"{found['places']:,} masked places"
    )
    cells = [
        [
            row["method"],
            f"{row['median']:,.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['of_bound']:.0%}",
            megabytes(row["peak_bytes"]),
            f"{row['losses'][0]:.5f}",
            f"{row['losses'][-1]:.5f}",
        ]
        for row in found["rows"]
    ]
    head = ["method", "s a step", "tokens/s", "ratio", "of bound", "peak MB", "first loss", "last loss"]
    print_table(head, cells)
    if options.json:
        whole = {"about": about, "conditions": conditions(options.rounds, options.threads)} | found
        options.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
