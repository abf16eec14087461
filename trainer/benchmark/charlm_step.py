"""A training step of the character model, and of the same model with other attention in the place of ours.

A step is forward and backward, on one sequence of random characters, without dropout, so that all that compute the same
function have the same loss. The others attend between the same projections, positions and weights:

- dense causal SDPA, torch's own: every character before, with no window, so another function;
- lucidrains' local-attention: it cuts the sequence into windows, here as wide as `Setting.lookback`, and
  looks at the window before as well, so that a character sees between one and two windows. exact_windowsize hides what
  lies beyond `lookback`, and then it computes what ours does;
- the same with four windows of a quarter's width before, which hides less: about the fastest that it can be had;
- none: what a character sees is its own value. No attention can make the step faster than that.

Each lives in a process of its own, which keeps what it frees, as every training on CPU does.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.benchmark.rates import large_product
from trainer.benchmark.rounds import same_losses, take_rounds, with_tiles
from trainer.engine.allocator import keep_freed_memory
from trainer.engine.flops import character_step_flops
from trainer.model.charlm import CausalSelfAttention, CharacterConfig, CharacterLayer, CharacterModel

VOCABULARY = 256
QUARTERS = 4  # of 1 to 16: the fastest at a lookback of 512, within an eighth of it at 128 and 2,048
SAME_LOGITS = 1e-3  # greatest difference, of the logits' standard deviation
SAME_LOSS = {"fp32": 1e-5, "bf16": 1e-3}  # of each other
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """One sequence of so many characters, and how far back each layer sees, from the bottom."""

    tokens: int
    lookback: tuple[int, ...]
    dilation: tuple[int, ...]
    """A layer, of two heads, where a method has dilation."""
    precision: str = "fp32"
    """Or bf16: as in training, attention stays in float32."""
    width: int = 512
    heads: int = 8

    def config(self, dilated: bool = False) -> CharacterConfig:
        return CharacterConfig(  # type: ignore[call-arg]  # mypy does not see Field's defaults
            vocab_size=VOCABULARY,
            hidden_size=self.width,
            num_hidden_layers=len(self.lookback),
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            dilation=self.dilation if dilated else (),
            dropout=0.0,
        )

    def characters(self) -> Tensor:
        """(1, N + 1): each but the last is read, each but the first predicted."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, VOCABULARY, (1, self.tokens + 1), generator=generator)


class Dense(CausalSelfAttention):
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, lookback: int, dropout_seed: Tensor | None
    ) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)


class DenseInWindow(CausalSelfAttention):
    """Ours by definition, with n² entries of mask: what the others are checked against."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, lookback: int, dropout_seed: Tensor | None
    ) -> Tensor:
        assert set(self.dilation) == {1}
        position = torch.arange(query.shape[2], dtype=torch.int32)
        distance = position[:, None] - position
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=(distance >= 0) & (distance <= lookback)
        )


class Local(CausalSelfAttention):
    look_backward = 1

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, lookback: int, dropout_seed: Tensor | None
    ) -> Tensor:
        return local_attention(lookback, self.look_backward)(query, key, value)


class LocalQuarters(Local):
    look_backward = QUARTERS


class LeftOut(CausalSelfAttention):
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, lookback: int, dropout_seed: Tensor | None
    ) -> Tensor:
        return value


@functools.cache
def local_attention(lookback: int, look_backward: int) -> nn.Module:
    """The PyPI package's, which looks exactly `lookback` back."""
    from local_attention import LocalAttention  # of the extra `dev`

    assert lookback % look_backward == 0
    return LocalAttention(
        lookback // look_backward,
        causal=True,
        look_backward=look_backward,
        exact_windowsize=True,
        autopad=True,
        use_rotary_pos_emb=False,  # query and key have their positions already
    )


@dataclass(frozen=True)
class Method:
    attention: type[CausalSelfAttention] = CausalSelfAttention
    dilated: bool = False
    same: bool = True
    """Whether it computes what ours does."""

    def model(self, setting: Setting) -> CharacterModel:
        """With the same weights as every other's."""
        config = setting.config(self.dilated)
        torch.manual_seed(0)
        model = CharacterModel(config)
        for index, layer in enumerate(model.layers):
            assert isinstance(layer, CharacterLayer)
            weights = layer.attention.state_dict()
            layer.attention = self.attention(config, index)
            layer.attention.load_state_dict(weights)
        return model


OURS, DENSE, LOCAL = "longspan", "dense causal SDPA", "local-attention"
LOCAL_QUARTERS = f"{LOCAL}, four windows back"
METHODS = {
    OURS: Method(),
    DENSE: Method(Dense, same=False),
    LOCAL: Method(Local),
    LOCAL_QUARTERS: Method(LocalQuarters),
    f"{OURS}, dilated on two heads": Method(dilated=True, same=False),
    "attention left out": Method(LeftOut, same=False),
}
IN_WINDOW = f"{DENSE} under the window's mask"


@torch.no_grad()
def logits_apart(setting: Setting) -> dict[str, float]:
    """How far each method's logits in float32 are from ours, of their standard deviation; more than SAME_LOGITS for
    another function. RuntimeError where one that is to compute the same does not, or dense attention without a window
    does, so that nothing was told apart.
    """
    single = replace(setting, precision="fp32")
    characters = single.characters()[:, :-1]
    expected = METHODS[OURS].model(single)(characters, single.lookback)
    compared = {name: METHODS[name] for name in (DENSE, LOCAL, LOCAL_QUARTERS)}
    found = {}
    for name, method in {IN_WINDOW: Method(DenseInWindow), **compared}.items():
        logits = method.model(single)(characters, single.lookback)
        found[name] = float((logits - expected).abs().max() / expected.std())
        if (found[name] <= SAME_LOGITS) != method.same:
            raise RuntimeError(
                f"{name}: logits are {found[name]:.0e} of their deviation from ours, expected "
                f"{'at most' if method.same else 'more than'} {SAME_LOGITS:.0e}"
            )
    return found


class CharacterStep:
    """See alone.Step."""

    def __init__(self, name: str, setting: Setting) -> None:
        keep_freed_memory()
        self.model = METHODS[name].model(setting).train()
        self.setting, self.characters = setting, setting.characters()
        self.loss = 0.0

    def __call__(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.setting.precision == "bf16"):
            logits = self.model(self.characters[:, :-1], self.setting.lookback)
        loss = F.cross_entropy(logits.float().flatten(0, 1), self.characters[0, 1:])
        loss.backward()
        self.model.zero_grad()
        self.loss = float(loss.detach())


def measure_character_steps(setting: Setting, rounds: int, threads: int) -> dict[str, Any]:
    """A row for each method, and what they share."""
    products = {"torch.mm": large_product()}
    if setting.precision == "bf16":
        products["torch.mm in bfloat16"] = large_product(dtype=torch.bfloat16)
    weights_rate = list(products)[-1]
    products = with_tiles(products, threads)
    attention_rate = "brgemm tiles" if "brgemm tiles" in products else "torch.mm"
    makes = {name: partial(CharacterStep, name, setting) for name in METHODS}
    taken = take_rounds(makes, products, rounds, threads)
    rates, measured = taken.rates, taken.measured
    weights, attention = step_flops(setting)
    bound = weights / rates[weights_rate] + attention / rates[attention_rate]
    rows = []
    for name, found in measured.items():
        row: dict[str, Any] = {"method": name, "tokens_per_second": setting.tokens / found.median}
        rows.append(row | {"losses": taken.losses[name]} | found.as_dict(measured[OURS], bound))
    same = [row for row in rows if METHODS[row["method"]].same]
    return {
        "rates": rates,
        "bound": f"weights at the rate of {weights_rate}, attention at that of {attention_rate}",
        "flops": {"weights": weights, "attention": attention},
        "rows": rows,
        "agree": same_losses(same, SAME_LOSS[setting.precision]),
    }


def step_flops(setting: Setting) -> tuple[int, int]:
    """What the hardware does in a step of ours: with weights, and in attention, scores once more in the backward."""
    config = setting.config()
    weights = character_step_flops(config, [0] * len(setting.lookback), setting.tokens)
    pairs = character_step_flops(config, setting.lookback, setting.tokens) - weights
    return weights, pairs * 7 // 6
