"""A step of transformers' own encoder, as it is and after `attention.huggingface.accelerate`.

Inference is a forward pass, training forward, loss, backward and AdamW; both on one text of random tokens whose first
is global, without dropout. The loss is the mean squared distance of the hidden states from random numbers: every token
counts, and both must give the same. bf16 is autocast on both sides, weights in float32.

Each method lives in a process of its own, under the allocator that is asked for.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LEDConfig, LEDModel, LongformerConfig, LongformerModel

from attention.benchmark.rates import large_product
from attention.huggingface import accelerate
from trainer.benchmark.rounds import same_losses, take_rounds, with_tiles
from trainer.benchmark.step import LOSSES_AGREE, OURS, PEER, Setting
from trainer.engine.flops import recomputed_flops, rows_flops
from trainer.model.folder import config_json

METHODS = (OURS, PEER)
FAMILIES = ("longformer", "led")
MODES = ("inference", "training")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SAME_STATES = 1e-4  # greatest difference, of the greatest hidden state, in fp32
SAME_LOSSES = {"fp32": LOSSES_AGREE, "bf16": 1e-2}  # of each other
DEVIATION = 0.05  # of the weights: see trainer.benchmark.finetuning_step
LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Encoder(Setting):
    """Whose encoder it is, and one text. LED's is as large as Longformer's."""

    family: str

    def make(self) -> nn.Module:
        """transformers' model, with weights that the sizes alone decide."""
        torch.manual_seed(0)
        config = replace(self.config(), initializer_range=DEVIATION)
        if self.family == "longformer":
            return LongformerModel(LongformerConfig(**config_json(config)), add_pooling_layer=False)
        sizes: dict[str, Any] = {
            "vocab_size": config.vocab_size,
            "d_model": config.hidden_size,
            "encoder_layers": config.num_hidden_layers,
            "encoder_attention_heads": config.num_attention_heads,
            "encoder_ffn_dim": config.intermediate_size,
            "max_encoder_position_embeddings": -(-self.tokens // self.window)
            * self.window,  # with its padding
            "attention_window": config.attention_window,
            "dropout": self.dropout,
            "attention_dropout": self.dropout,
            "init_std": DEVIATION,
        }
        decoder: dict[str, Any] = {"decoder_layers": 1, "decoder_attention_heads": 12, "decoder_ffn_dim": 64}
        encoder: nn.Module = LEDModel(LEDConfig(**sizes, **decoder)).encoder
        return encoder

    def text(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(4, self.vocabulary, (1, self.tokens), generator=generator)
        is_global = torch.zeros_like(ids)
        is_global[:, 0] = 1
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "global_attention_mask": is_global,
        }

    def flops(self, mode: str) -> int:
        """What a step's products take: attention's scores twice where there is a backward pass."""
        config = self.config()
        whole = rows_flops(config, [self.tokens])  # a third of it forward
        return whole // 3 if mode == "inference" else whole + recomputed_flops(config, self.tokens)


def states(model: nn.Module, text: dict[str, Tensor]) -> Tensor:
    found: Tensor = model(**text).last_hidden_state
    return found


@torch.no_grad()
def states_apart(encoder: Encoder) -> float:
    """The greatest difference between the hidden states before `accelerate` and after it, of the greatest."""
    model, text = encoder.make().eval(), encoder.text()
    expected = states(model, text)
    found = states(accelerate(model), text)
    return float((found - expected).abs().max() / expected.abs().max())


class EncoderStep:
    """See alone.Step."""

    def __init__(self, method: str, encoder: Encoder, mode: str, precision: str = "fp32") -> None:
        self.training, self.bf16 = mode == "training", precision == "bf16"
        model = encoder.make().train(self.training)
        self.model: nn.Module = accelerate(model) if method == OURS else model
        self.text = encoder.text()
        width = encoder.config().hidden_size
        self.aim = torch.randn(1, encoder.tokens, width, generator=torch.Generator().manual_seed(1))
        self.optimizer = (
            torch.optim.AdamW(model.parameters(), LEARNING_RATE, fused=True) if self.training else None
        )
        self.loss = 0.0

    def __call__(self) -> None:
        with nullcontext() if self.training else torch.inference_mode():
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                found = states(self.model, self.text)
            loss = F.mse_loss(found.float(), self.aim)
        if self.optimizer is not None:
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.loss = float(loss.detach())


def measure_encoder(
    encoder: Encoder, mode: str, precision: str, rounds: int, threads: int, environment: dict[str, str]
) -> dict[str, Any]:
    """A row for each method, and what they share. The bound is in seconds: the products of ours at the fastest rate
    that this machine reached in the same rounds."""
    makes = {method: partial(EncoderStep, method, encoder, mode, precision) for method in METHODS}
    products = {"torch.mm": large_product(dtype=DTYPES[precision])}
    if precision == "fp32":
        products = with_tiles(products, threads)
    taken = take_rounds(makes, products, rounds, threads, environment)
    flops = encoder.flops(mode)
    bound = flops / max(taken.rates.values())
    rows = [
        {"method": method, "losses": taken.losses[method]} | found.as_dict(taken.measured[OURS], bound)
        for method, found in taken.measured.items()
    ]
    return {
        "rates": taken.rates,
        "flops": flops,
        "bound": bound,
        "rows": rows,
        "agree": same_losses(rows, SAME_LOSSES[precision]),
    }
