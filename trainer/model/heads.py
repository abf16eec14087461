"""What stands on the encoder: the masked-language-model head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer.batches.masking import IGNORED
from trainer.model.longformer import Encoder, EncoderConfig, initialise

CPU_BLOCK, GPU_BLOCK = 1 << 19, 1 << 25
"""Logits that the loss looks at together: what a CPU's cache holds, what keeps a GPU busy."""


class MaskedLanguageModelHead(nn.Module):
    """Dense, GELU, LayerNorm and the decoder tied to the word embeddings (RoBERTa's head)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        return F.linear(self.layer_norm(F.gelu(self.dense(hidden))), word_embeddings, self.bias)


class MaskedLanguageModel(nn.Module):
    """Encoder and head; the encoder is named `roberta` or `longformer`, as in Hugging Face's state dicts."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.add_module(config.architecture, Encoder(config))
        self.lm_head = MaskedLanguageModelHead(config)
        initialise(self, config.initializer_range)

    @property
    def encoder(self) -> Encoder:
        encoder = self.get_submodule(self.config.architecture)
        assert isinstance(encoder, Encoder)
        return encoder

    def forward(
        self,
        input_ids: Tensor,
        places: Tensor | None = None,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        dropout_seeds: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, M, vocabulary) at `places` (B, M), or at every token where `places` is None.

        The vocabulary is the widest thing in the model: at 4,096 tokens and RoBERTa's 50,265 entries, scoring only
        the masked 15 % saves 85 % of its memory and time, and as much of the last layer's feed-forward block.
        """
        hidden = self.encoder(input_ids, attention_mask, document_ids, dropout_seeds, places)
        return self.lm_head(hidden, self.encoder.embeddings.word_embeddings.weight)


def masked_loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross-entropies in nats over the scored places: never a mean, which would weigh batches unevenly.

    logits (B, M, vocabulary), labels (B, M), IGNORED where a place is not scored. The sum and its exponentials are
    float32 whatever the logits are.
    """
    loss: Tensor = _CrossEntropySum.apply(logits.flatten(0, 1), labels.flatten())
    return loss


class _CrossEntropySum(torch.autograd.Function):
    """F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum"), some rows at a time.

    The logits are the largest tensor of a step. F.cross_entropy makes three more of their size in float32; here
    the gradient is the only other one, and it has their dtype.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        scored = labels != IGNORED
        labels = torch.where(scored, labels, 0)
        logsumexp = logits.new_empty(len(logits), dtype=torch.float32)
        for rows in _row_blocks(logits):
            logsumexp[rows] = torch.logsumexp(logits[rows].float(), dim=1)
        ctx.save_for_backward(logits, logsumexp, labels, scored)
        losses = logsumexp - logits.gather(1, labels[:, None]).squeeze(1)
        return torch.where(scored, losses, 0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, logsumexp, labels, scored = ctx.saved_tensors
        found = torch.empty_like(logits)
        weight = (scored * grad)[:, None]
        for rows in _row_blocks(logits):
            block = torch.sub(logits[rows], logsumexp[rows, None]).exp_()  # float32
            block.scatter_add_(1, labels[rows, None], block.new_full((len(block), 1), -1))
            torch.mul(block, weight[rows], out=found[rows])
        return found, None


def _row_blocks(logits: Tensor) -> Iterator[slice]:
    """Slices of rows, each of about a block of numbers."""
    block = CPU_BLOCK if logits.device.type == "cpu" else GPU_BLOCK
    size = max(1, block // max(1, logits.shape[1]))
    return (slice(start, start + size) for start in range(0, len(logits), size))
