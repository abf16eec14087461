"""Encoder and a downstream task's heads: what finetuning trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from trainer.batches.examples import ExampleBatch
from trainer.model.longformer import Encoder, EncoderConfig


class TaskModel(nn.Module):
    """The encoder is named `roberta` or `longformer`, and heads as in transformers' models for the task."""

    def __init__(
        self,
        config: EncoderConfig,
        heads: Mapping[str, nn.Module],
        global_projections: bool = True,
        global_attention: bool = True,
    ) -> None:
        """`global_projections`: global tokens have their own; a RoBERTa, in which all tokens see all, never does.
        `global_attention`: whether any token is global."""
        super().__init__()
        self.config = config
        self.global_attention = global_attention and config.architecture == "longformer"
        own = self.global_attention and global_projections
        self.add_module(config.architecture, Encoder(config, own))
        for name, head in heads.items():
            self.add_module(name, head)

    @property
    def encoder(self) -> Encoder:
        encoder = self.get_submodule(self.config.architecture)
        assert isinstance(encoder, Encoder)
        return encoder

    @property
    def global_projections(self) -> bool:
        """Whether global tokens have their own."""
        return self.encoder.global_projections

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The layers that torch.compile takes one by one."""
        return self.encoder.encoder.layer

    def recompute_layers(self) -> None:
        """Less memory: each layer's forward pass once more in the backward pass."""
        self.encoder.activation_checkpointing = True

    def states(self, batch: ExampleBatch, dropout_seeds: Tensor | None = None) -> list[Tensor]:
        """The hidden states (read places, hidden_size) of each example; dropout_seeds (examples, layers) int64."""
        hidden = self.encoder(
            batch.input_ids,
            batch.attention_mask,
            None,
            None if dropout_seeds is None else batch.row_seeds(dropout_seeds),
            batch.places,
            batch.global_mask,
        ).flatten(0, 1)
        return [hidden.index_select(0, index) for index in batch.read]
