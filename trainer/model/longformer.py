"""The encoder: RoBERTa's post-LN body over windowed attention, with Hugging Face's parameter names.

One class serves both architectures. `roberta` sees everything (its window covers the sequence);
`longformer` has a window a layer. Names below the prefix are the same in `transformers`' `RobertaForMaskedLM` and
`LongformerForMaskedLM`, so that a state dict moves between the two and this one by its prefix alone.

Source: arXiv 2004.05150, section 5; LayerNorm after each residual sum as in RoBERTa.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attention import windowed_attention
from attention.few_global import FewGlobal

Architecture = Literal["roberta", "longformer"]


@dataclass
class EncoderConfig:
    """Sizes of an encoder, under the keys of Hugging Face's config.json.

    `max_position_embeddings` counts the rows of the position table: the longest sequence plus the rows up to and
    including the padding index (514 for RoBERTa's 512 tokens). `attention_window` is the total width a layer, even,
    and empty for `roberta`. `original_max_position_embeddings` remembers how many rows a converted model had before
    its positions were tiled; 0 where it was not converted. `base_model` is the hub's name and commit of the model the
    weights come from, where known: it travels to the model card and decides nothing.
    """

    architecture: Architecture
    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 514
    attention_window: list[int] = field(default_factory=list)
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-5
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    bos_token_id: int | None = 0
    pad_token_id: int = 1
    eos_token_id: int | None = 2
    original_max_position_embeddings: int = 0
    base_model: str = ""

    @property
    def max_tokens(self) -> int:
        """The longest sequence the position table reaches, in tokens."""
        return self.max_position_embeddings - self.pad_token_id - 1

    def as_dict(self) -> dict[str, Any]:
        """Everything that decides what the encoder computes, by key."""
        values = asdict(self)
        del values["base_model"]
        return values


class Embeddings(nn.Module):
    """Sum of word, position and token-type embeddings, normalised. Positions count real tokens from pad + 1."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        pad = config.pad_token_id
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=pad)
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings, config.hidden_size, padding_idx=pad
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.padding_idx = pad
        # Rows of the position table below this one are constants (table 5's last row trains the others alone).
        self.frozen_positions = 0

    def forward(self, input_ids: Tensor) -> Tensor:
        real = (input_ids != self.padding_idx).long()
        positions = torch.cumsum(real, dim=1) * real + self.padding_idx
        table = self.position_embeddings.weight
        if self.frozen_positions:
            table = torch.cat([table[: self.frozen_positions].detach(), table[self.frozen_positions :]])
        summed = self.word_embeddings(input_ids) + F.embedding(positions, table, self.padding_idx)
        return self.dropout(self.LayerNorm(summed + self.token_type_embeddings.weight[0]))


class SelfAttention(nn.Module):
    """Windowed self-attention; global tokens have projections of their own, or share those of the others.

    Masked-language modelling has no global tokens, and a model for it no `*_global`.
    """

    def __init__(self, config: EncoderConfig, layer: int, global_projections: bool) -> None:
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        if global_projections:
            self.query_global = nn.Linear(config.hidden_size, config.hidden_size)
            self.key_global = nn.Linear(config.hidden_size, config.hidden_size)
            self.value_global = nn.Linear(config.hidden_size, config.hidden_size)
        self.global_projections = global_projections
        self.heads = config.num_attention_heads
        self.window = config.attention_window[layer] if config.architecture == "longformer" else None
        self.dropout_p = config.attention_probs_dropout_prob

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        document_ids: Tensor | None,
        dropout_seed: Tensor | None,
        global_mask: Tensor | None,
        few_global: FewGlobal | None = None,
        global_rows_alone: bool = False,
    ) -> Tensor:
        """(B, N, hidden_size); with `global_rows_alone` the rows of the others are 0."""
        B, N, _ = hidden.shape
        dropout_p = self.dropout_p if self.training else 0.0
        global_rows = None
        if few_global is not None:
            if dropout_p and dropout_seed is None:  # one for both, drawn as windowed_attention draws it
                dropout_seed = torch.randint(-(1 << 63), (1 << 63) - 1, (B,), dtype=torch.int64)
            projections = (self.query_global, self.key_global, self.value_global)
            global_rows = few_global.attend(
                hidden, *projections, self.heads, attention_mask, dropout_p, dropout_seed
            )
            if global_rows_alone:
                return few_global.put(self._with_gradients_of_others(global_rows), torch.zeros_like(hidden))

        def heads(projected: Tensor) -> Tensor:
            return projected.view(B, N, self.heads, -1).transpose(1, 2)  # (B, H, N, D)

        query_global = key_global = value_global = None
        if global_mask is not None and self.global_projections and global_rows is None:
            query_global = heads(self._global_queries(hidden, global_mask))
            key_global, value_global = heads(self.key_global(hidden)), heads(self.value_global(hidden))
        attended = windowed_attention(
            heads(self.query(hidden)),
            heads(self.key(hidden)),
            heads(self.value(hidden)),
            2 * N if self.window is None else self.window,
            attention_mask=attention_mask,
            document_ids=document_ids,
            dropout_p=dropout_p,
            dropout_seed=dropout_seed,
            global_attention_mask=global_mask,
            query_global=query_global,
            key_global=key_global,
            value_global=value_global,
        )
        attended = attended.transpose(1, 2).reshape(B, N, -1)
        if few_global is None or global_rows is None:
            return attended
        return few_global.put(global_rows, attended)  # theirs from the local projections fall away

    def _with_gradients_of_others(self, rows: Tensor) -> Tensor:
        """The projections that no row was computed by have a gradient all the same: 0."""
        others = (parameter for part in (self.query, self.key, self.value) for parameter in part.parameters())
        return rows + sum(0 * parameter.sum() for parameter in others)

    def _global_queries(self, hidden: Tensor, global_mask: Tensor) -> Tensor:
        """query_global (B, N, hidden_size) of the global tokens, 0 of the others: nobody reads those."""
        own = self.query_global(hidden[global_mask])
        return own.new_zeros(hidden.shape).masked_scatter(global_mask[..., None], own)


class ResidualOutput(nn.Module):
    """Projection, dropout, residual sum, LayerNorm."""

    def __init__(self, inputs: int, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class Attention(nn.Module):
    """Self-attention and its output projection, under the names `attention.self` and `attention.output`."""

    def __init__(self, config: EncoderConfig, layer: int, global_projections: bool) -> None:
        super().__init__()
        self.self = SelfAttention(config, layer, global_projections)
        self.output = ResidualOutput(config.hidden_size, config)


class Intermediate(nn.Module):
    """The feed-forward block's first half, with the exact (erf) GELU."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.gelu(self.dense(hidden))


class Layer(nn.Module):
    def __init__(self, config: EncoderConfig, layer: int, global_projections: bool) -> None:
        super().__init__()
        self.attention = Attention(config, layer, global_projections)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config.intermediate_size, config)

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None,
        document_ids: Tensor | None,
        dropout_seed: Tensor | None,
        places: Tensor | None = None,
        global_mask: Tensor | None = None,
        few_global: FewGlobal | None = None,
    ) -> Tensor:
        """Hidden states (B, N, hidden_size) to the next layer's, or, with `places` (B, M), to those of these tokens.

        Tokens meet in attention alone: of what comes after it, nothing need be computed that nobody will read.
        """
        attended = self.attention.self(
            hidden,
            attention_mask,
            document_ids,
            dropout_seed,
            global_mask,
            few_global,
            places is not None and few_global is not None and few_global.alone,
        )
        if places is not None:
            attended, hidden = at_places(attended, places), at_places(hidden, places)
        hidden = self.attention.output(attended, hidden)
        return self.output(self.intermediate(hidden), hidden)


def at_places(hidden: Tensor, places: Tensor) -> Tensor:
    """The rows (B, M, hidden_size) of hidden (B, N, hidden_size) at places (B, M)."""
    return hidden.gather(1, places.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


class LayerStack(nn.Module):
    """The layers under the name `encoder.layer`."""

    def __init__(self, config: EncoderConfig, global_projections: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            [Layer(config, index, global_projections) for index in range(config.num_hidden_layers)]
        )


class Encoder(nn.Module):
    """Token ids (B, N) to hidden states (B, N, hidden_size), or of some tokens (B, M, hidden_size)."""

    def __init__(self, config: EncoderConfig, global_projections: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = LayerStack(config, global_projections)
        self.global_projections = global_projections
        self.activation_checkpointing = False

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        dropout_seeds: Tensor | None = None,
        places: Tensor | None = None,
        global_mask: Tensor | None = None,
    ) -> Tensor:
        """Encode a batch.

        attention_mask (B, N) is 1 at real tokens, None where all are real; document_ids (B, N) keep packed documents
        apart, None lets them see each other; dropout_seeds (B, layers) int64 fix the attention dropout, None draws;
        places (B, M) are the tokens whose hidden states are wanted, None wants all; global_mask (B, N) is 1 at tokens
        that see, and are seen by, all of their row (in full attention all do, and the mask says nothing).
        """
        if self.config.architecture == "roberta":
            global_mask = None
        few_global = None
        if self.global_projections and document_ids is None:
            head_dim = self.config.hidden_size // self.config.num_attention_heads
            few_global = FewGlobal.of(global_mask, attention_mask, places, head_dim)
        hidden = self.embeddings(input_ids)
        for index, layer in enumerate(self.encoder.layer):
            seed = None if dropout_seeds is None else dropout_seeds[:, index]
            read = places if index == len(self.encoder.layer) - 1 else None
            if self.activation_checkpointing and self.training:
                hidden = checkpoint(
                    layer,
                    hidden,
                    attention_mask,
                    document_ids,
                    seed,
                    read,
                    global_mask,
                    few_global,
                    use_reentrant=False,
                )
            else:
                hidden = layer(hidden, attention_mask, document_ids, seed, read, global_mask, few_global)
        return hidden


def set_sinusoidal_positions(embeddings: Embeddings, standard_deviation: float) -> None:
    """Start the position table as sinusoids (Vaswani et al., 2017) of the given standard deviation; it still learns.

    From random positions a small model first has to invent an order among them. At 2 layers × 64 and 32 positions
    sinusoids halve the steps it spends predicting unigrams.
    """
    table = embeddings.position_embeddings.weight
    first = embeddings.padding_idx + 1
    positions = torch.arange(len(table) - first, device=table.device)[:, None]
    width = table.shape[1]
    rates = len(positions) ** (-torch.arange(0, width, 2, device=table.device) / width)
    with torch.no_grad():
        table[first:, 0::2] = torch.sin(positions * rates) * standard_deviation * math.sqrt(2)
        table[first:, 1::2] = torch.cos(positions * rates[: width // 2]) * standard_deviation * math.sqrt(2)


def initialise(module: nn.Module, standard_deviation: float) -> None:
    """RoBERTa's initialisation: normal weights, zero biases and padding rows, unit LayerNorms."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=standard_deviation)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            nn.init.zeros_(part.weight[part.padding_idx])
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
