"""The character language model of the Longformer paper: a causal pre-LN transformer over windows that grow to the top.

Source: arXiv 2004.05150, section 4 and appendix B, whose code was never released. Two things are of our own making.
Positions are rotary (Su et al., 2021), where the paper takes Transformer-XL's relative sinusoids: in a windowed product
of queries and keys those take a dimension for each of the 512 sinusoids beside a head's own 64, which would make the
scores nine times as dear. Both let a score depend on the distance alone; rotary's has no weights, so that the models
have 38M and 95M parameters for the paper's 41M and 102M. And how far each layer looks back is named by a configuration,
as the paper publishes the ends of its range only.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attention import windowed_attention
from trainer.model.longformer import initialise

ROTARY_BASE = 10_000.0
WIDEST = 1 << 16
"""Characters between two that a dilated head sees, at the most."""


class CharacterSizes(BaseModel):
    """Sizes of a character model, but for its alphabet's. `dilation` has an entry a layer, from the bottom."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    hidden_size: int = Field(512, ge=2, le=1 << 16)
    num_hidden_layers: int = Field(12, ge=1, le=512)
    num_attention_heads: int = Field(8, ge=1)
    intermediate_size: int = Field(2048, ge=1, le=1 << 18)
    dilated_heads: int = Field(
        2,
        ge=0,
        description="so many heads of a layer, the last ones, look back with its dilation; the others have no gaps",
    )
    dilation: tuple[int, ...] = Field(
        (),
        description="the step between visible characters, an entry a layer; 1 is without gaps, empty 1 everywhere",
    )
    dropout: float = Field(0.2, ge=0, lt=1)
    layer_norm_eps: float = Field(1e-5, gt=0)
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of the initial weights")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size: found {self.hidden_size}, expected a multiple of twice the {self.num_attention_heads} "
                "heads, whose dimensions are turned in pairs"
            )
        if self.dilation and len(self.dilation) != self.num_hidden_layers:
            raise ValueError(
                f"dilation: found {len(self.dilation)} entries, expected one a layer, {self.num_hidden_layers}"
            )
        if not all(1 <= step <= WIDEST for step in self.dilation):
            raise ValueError(f"dilation: found {list(self.dilation)}, expected steps of 1 to {WIDEST:,}")
        if self.dilated_heads > self.num_attention_heads:
            raise ValueError(
                f"dilated_heads: found {self.dilated_heads}, expected at most {self.num_attention_heads} heads"
            )
        return self

    def steps_of_heads(self, layer: int) -> list[int]:
        """The dilation of each head of a layer."""
        step = self.dilation[layer] if self.dilation else 1
        return [1] * (self.num_attention_heads - self.dilated_heads) + [step] * self.dilated_heads

    def reach(self, lookback: tuple[int, ...]) -> int:
        """How many characters back the top layer can depend on: the sum of the layers' furthest."""
        return sum(self.reach_of_layer(layer, most) for layer, most in enumerate(lookback))

    def reach_of_layer(self, layer: int, lookback: int) -> int:
        """How many characters back the furthest key of a layer lies."""
        return lookback * max(self.steps_of_heads(layer))

    def needed_from(self, lookback: tuple[int, ...], scored_from: int) -> list[int]:
        """The first position of which each layer's input, and last the top's output, can change a logit from
        `scored_from` on."""
        first = [scored_from]
        for layer in reversed(range(self.num_hidden_layers)):
            first.append(max(0, first[-1] - self.reach_of_layer(layer, lookback[layer])))
        return first[::-1]


class CharacterConfig(CharacterSizes):
    """All sizes of a character model."""

    vocab_size: int = Field(ge=1, le=1 << 16)


def rotary_angles(positions: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, dimensions / 2) in float32, by which position turns pairs of dimensions."""
    rates = ROTARY_BASE ** (
        -torch.arange(0, dimensions, 2, device=positions.device, dtype=torch.float64) / dimensions
    )
    # In float64: at 32,256 characters the fastest angles would be off by some 0.001 in float32.
    angles = positions.double()[:, None] * rates
    return angles.cos().float(), angles.sin().float()


def turn(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Heads (B, H, N, D), each pair (2i, 2i + 1) of dimensions turned by its position's angle."""
    # As complex numbers, in one pass over memory each way: by halves it takes seven, and twice the time.
    pairs = torch.view_as_complex(heads.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.complex(cosines, sines)).flatten(-2)


class CausalSelfAttention(nn.Module):
    """Windowed attention to what came before, in float32 also inside mixed precision (appendix B)."""

    def __init__(self, config: CharacterConfig, layer: int) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.heads = config.num_attention_heads
        self.dilation = config.steps_of_heads(layer)
        self.dropout_p = config.dropout

    def projections(self, hidden: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value (B, H, N, D) in float32, the first two turned by their positions."""
        B, N, _ = hidden.shape
        projected = self.query_key_value(hidden).float().view(B, N, 3, self.heads, -1)
        query, key, value = (part.transpose(1, 2) for part in projected.unbind(2))
        return turn(query, *angles), turn(key, *angles), value

    def forward(
        self,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
        lookback: int,
        dropout_seed: Tensor | None,
        skip: int = 0,
    ) -> Tensor:
        """Of hidden (B, N, D): (B, N - skip, D), without the first `skip` positions, which are keys only."""
        projections = self.projections(hidden, angles)
        with torch.autocast(hidden.device.type, enabled=False):
            attended = self.attend(*projections, lookback, dropout_seed)
        attended = attended[:, :, skip:].transpose(1, 2).flatten(2)
        return self.output(attended.to(hidden.dtype))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, lookback: int, dropout_seed: Tensor | None
    ) -> Tensor:
        """What each query (B, H, N, D) sees of the values."""
        return windowed_attention(
            query,
            key,
            value,
            2 * lookback,
            dilation=self.dilation,
            causal=True,
            dropout_p=self.dropout_p if self.training else 0.0,
            dropout_seed=dropout_seed,
        )


class CharacterLayer(nn.Module):
    """Pre-LN: each block reads the normalised stream and adds to it."""

    def __init__(self, config: CharacterConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = CausalSelfAttention(config, layer)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
        lookback: int,
        dropout_seed: Tensor | None,
        skip: int = 0,
    ) -> Tensor:
        """Of hidden (B, N, D): (B, N - skip, D), without the first `skip` positions, which later ones may see."""
        attended = self.attention(self.attention_norm(hidden), angles, lookback, dropout_seed, skip)
        return self.feed_forward(hidden[:, skip:] + self.dropout(attended))

    def feed_forward(self, hidden: Tensor) -> Tensor:
        inner = self.dropout(F.gelu(self.intermediate(self.feed_forward_norm(hidden))))
        return hidden + self.dropout(self.output(inner))


class CharacterModel(nn.Module):
    """Characters (B, N) to the logits of the next ones."""

    def __init__(self, config: CharacterConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            [CharacterLayer(config, layer) for layer in range(config.num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.activation_checkpointing = False
        initialise(self, config.initializer_range)

    def forward(
        self,
        characters: Tensor,
        lookback: tuple[int, ...],
        dropout_seeds: Tensor | None = None,
        scored_from: int = 0,
    ) -> Tensor:
        """Logits (B, N - scored_from, vocab_size): of what follows each character from `scored_from` on.

        `lookback` says how many characters back each layer sees, from the bottom, times its dilation; it belongs to a
        phase of the training, not to the weights. dropout_seeds (B, layers) int64 fix the attention's dropout.
        """
        return self.logits(self.encode(characters, lookback, dropout_seeds, scored_from))

    def encode(
        self,
        characters: Tensor,
        lookback: tuple[int, ...],
        dropout_seeds: Tensor | None = None,
        scored_from: int = 0,
    ) -> Tensor:
        """What the logits are made from (B, N - scored_from, hidden_size); see `forward`.

        Each layer computes the positions alone that one from `scored_from` on depends on: at the paper's evaluation
        few in the top layer, whose window is the widest, and all in most of the others.
        """
        assert len(lookback) == self.config.num_hidden_layers
        dimensions = self.config.hidden_size // self.config.num_attention_heads
        angles = rotary_angles(torch.arange(characters.shape[1], device=characters.device), dimensions)
        first = self.config.needed_from(lookback, scored_from)
        hidden = self.dropout(self.embeddings(characters[:, first[0] :]))
        for index, layer in enumerate(self.layers):
            seed = None if dropout_seeds is None else dropout_seeds[:, index]
            here = tuple(part[first[index] :] for part in angles)
            inputs = (hidden, here, lookback[index], seed, first[index + 1] - first[index])
            if self.activation_checkpointing and self.training:
                hidden = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                hidden = layer(*inputs)
        return self.norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (…, vocab_size) of what follows, from `encode`'s (…, hidden_size)."""
        return F.linear(hidden, self.embeddings.weight, self.bias)
