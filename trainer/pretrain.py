"""Masked-language-model pretraining under the DeepSpeed launcher.

    deepspeed trainer/pretrain.py --config trainer/configs/longformer_base.yaml [--any.key value …] [--dry-run]

Continues a RoBERTa or a Longformer folder (or trains a new model) on a corpus of pipeline.build_corpus. The same
command again resumes from the newest complete checkpoint by itself, on any number of processes and any ZeRO stage.
On CPU: DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 deepspeed --num_gpus PROCESSES trainer/pretrain.py …

RUN/config.yaml, RUN/metrics.jsonl, RUN/tensorboard/, RUN/checkpoints/step-00000100/ and RUN/export/ are written.

Keys (of the YAML, or as --key value):
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.shards import read_manifest
from trainer.batches.corpus import MaskedBatch, Sequences, as_batch, corpus_masking, open_sequences
from trainer.batches.evaluation import bits, loss_of_batches, masked_batches
from trainer.batches.masking import Masking
from trainer.engine import deepspeed as processes
from trainer.engine.command import train_by_command
from trainer.engine.config import InputError, NewModel, Pretraining
from trainer.engine.estimate import describe_plan
from trainer.engine.flops import step_flops
from trainer.engine.monitor import METRICS
from trainer.engine.phases import Phase, Phases
from trainer.engine.randomness import as_seed, hash64
from trainer.export import export_checkpoint
from trainer.model.folder import (
    config_json,
    load_model,
    locate_model,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from trainer.model.heads import MaskedLanguageModel, masked_loss_sum
from trainer.model.longformer import EncoderConfig, set_sinusoidal_positions
from trainer.model.provenance import ABOUT, corpus_facts, run_facts


@dataclass
class MaskedLanguageModelling:
    """What the training loop trains: model and corpus, checked against each other (engine.training.Task)."""

    config: Pretraining
    data: Sequences
    validation: Sequences | None
    masking: Masking
    model: MaskedLanguageModel
    about_corpus: dict[str, Any]
    tokenizer: str  # the corpus's tokenizer.json
    start: str  # what the weights are at step 0

    @property
    def phases(self) -> Phases:
        config, schedule = self.config, self.config.optimizer
        flops = step_flops(
            self.model.config,
            config.sequence_length,
            self.masking.places_per_sequence(config.sequence_length),
            config.batch_size,
            weights_trained=not config.extra_positions_only,
        )
        phase = Phase(
            steps=config.steps,
            batch_size=config.batch_size,
            micro_batch_size=config.micro_batch_size,
            tokens=config.sequence_length,
            sequences=len(self.data),
            flops=flops,
            learning_rate=schedule.learning_rate,
            warmup_steps=schedule.warmup_steps,
            decay=schedule.decay,
            power=schedule.power,
        )
        return Phases([phase])

    @property
    def layers(self) -> int:
        return self.model.config.num_hidden_layers

    def facts(self) -> dict[str, Any]:
        exact = self.config.exact()
        if not isinstance(self.config.model, NewModel):
            del exact["model"]  # by what it is, not by where it lies
        return {
            "config": exact,
            "model": self.model.config.as_dict(),
            "model's weights": self.start,
            "corpus": self.data.corpus.fingerprint,
        }

    def describe(self) -> str:
        name, processes_there = processes.device_name(), int(os.environ.get("WORLD_SIZE", "1"))
        gpu = None if name == "cpu" else name
        return "\n".join(describe_plan(self.model.config, self.config, len(self.data), processes_there, gpu))

    def describe_phase(self, number: int) -> str:
        return ""

    def blocks(self) -> Iterable[nn.Module]:
        return self.model.encoder.encoder.layer

    def arranged(self, chosen: np.ndarray) -> np.ndarray:
        return chosen

    def micro_batch(self, step: int, chosen: np.ndarray, places: np.ndarray) -> MaskedBatch:
        """Masks are a function of (seed, step, place): a sequence that a small corpus repeats in a batch gets other
        ones."""
        config = self.config
        keys = hash64("masks", config.seed, step, places)
        masked = self.masking.apply(self.data.input_ids(chosen), keys)
        documents = self.data.document_ids(chosen) if config.mask_documents else None
        return as_batch(masked, self.data.corpus.pad_id, documents)

    def loss(self, model: nn.Module, batch: MaskedBatch, dropout_seeds: Tensor) -> Tensor:
        logits = model(batch.input_ids, batch.places, batch.attention_mask, batch.document_ids, dropout_seeds)
        return masked_loss_sum(logits, batch.labels)

    def figures(self, mean_loss: float) -> dict[str, float]:
        return {"bpc": bits(mean_loss, 1)}

    def evaluate(self, step: int, share: slice, beat: Callable[[], None]) -> list[float] | None:
        if self.validation is None:
            return None
        chosen = np.arange(min(self.config.evaluation.sequences, len(self.validation)))[share]
        tokens = min(self.model.config.max_tokens, self.validation.sequence_length)
        documents = self.config.mask_documents
        batches = masked_batches(self.validation, self.masking, chosen, tokens, seed=0, documents=documents)
        return list(loss_of_batches(self.model, batches, beat))

    def evaluated(self, sums: list[float]) -> dict[str, float]:
        loss, scored = sums
        return {"validation_bpc": bits(loss, max(1.0, scored))}

    def files(self, step: int) -> dict[str, str]:
        return {
            "config.json": json.dumps(config_json(self.model.config), indent=2) + "\n",
            "tokenizer.json": self.tokenizer,
            ABOUT: json.dumps(run_facts(self.config.run / METRICS, self.about_corpus), indent=2) + "\n",
        }

    def export(self, checkpoint: Path, to: Path) -> None:
        export_checkpoint(checkpoint, to)


def prepare(config: Pretraining) -> MaskedLanguageModelling:
    """Open corpus and model, and check that they fit; InputError names every misfit."""
    sequences = open_sequences(config.corpus, "train", config.sequence_length, config.data.cache_dir)
    corpus = sequences.corpus
    # The whole stored sequences, whatever the model's length: masks are drawn over those.
    validation = open_sequences(
        config.corpus, "validation", cache_dir=config.data.cache_dir, may_be_empty=True
    )
    torch.manual_seed(as_seed("initial weights", config.seed))
    problems = []
    if isinstance(config.model, NewModel):
        model = MaskedLanguageModel(new_encoder_config(config.model, config.sequence_length, sequences))
        if config.model.sinusoidal_positions:
            set_sinusoidal_positions(model.encoder.embeddings, config.model.initializer_range)
    else:
        folder = locate_model(config.model)
        model = load_model(folder)
        found = tokenizer_fingerprint(folder)
        if model.config.vocab_size < corpus.vocabulary_size:
            problems.append(
                f"model: {folder} has a vocabulary of {model.config.vocab_size}, "
                f"expected at least {corpus.vocabulary_size} as {config.corpus} has"
            )
        elif found is not None and found != corpus.tokenizer_fingerprint:
            problems.append(
                f"model: the tokenizer in {folder} is {found}, expected {corpus.tokenizer_fingerprint}, "
                f"the one that made {config.corpus}"
            )
        if model.config.max_tokens < config.sequence_length:
            problems.append(
                f"model: {folder} has positions for {model.config.max_tokens} tokens, expected at least "
                f"sequence_length {config.sequence_length} (python -m trainer.convert lengthens a model)"
            )
        if model.config.pad_token_id != corpus.pad_id:
            problems.append(
                f"model: {folder} has pad_token_id {model.config.pad_token_id}, expected the corpus's {corpus.pad_id}"
            )
        if config.extra_positions_only and not model.config.original_max_position_embeddings:
            problems.append(
                f"extra_positions_only: {folder} does not say how many positions it had before conversion; "
                f"expected a folder made by trainer.convert"
            )
    if problems:
        raise InputError("\n".join(problems))
    drawn = isinstance(config.model, NewModel)  # of which the seed says all
    start = "drawn" if drawn else weights_fingerprint(dict(model.named_parameters()))
    encoder = model.encoder
    encoder.activation_checkpointing = config.activation_checkpointing
    if config.extra_positions_only:
        train_extra_positions_only(model)
    masking = corpus_masking(corpus, config.masked_fraction)
    about = corpus_facts(read_manifest(corpus.uri))
    # Now, and not at the first checkpoint: until then the corpus may have gone, or another may lie there.
    tokenizer = (corpus.folder / "tokenizer.json").read_text(encoding="utf-8")
    return MaskedLanguageModelling(
        config, sequences, validation if len(validation) else None, masking, model, about, tokenizer, start
    )


def train_extra_positions_only(model: MaskedLanguageModel) -> None:
    """Make constants of everything but the rows of the position table that conversion added (table 5's last row)."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    embeddings = model.encoder.embeddings
    embeddings.frozen_positions = model.config.original_max_position_embeddings
    table = embeddings.position_embeddings.weight
    table.requires_grad_(True)
    table.decays = False  # type: ignore[attr-defined]  # decay would move the rows that are to stay


def new_encoder_config(new: NewModel, tokens: int, sequences: Sequences) -> EncoderConfig:
    """A new model's sizes, with the vocabulary and special ids of the corpus and positions for `tokens`."""
    values = new.model_dump(exclude={"attention_window", "sinusoidal_positions"})
    ids = sequences.corpus.special_ids
    return EncoderConfig(
        **values,
        vocab_size=sequences.corpus.vocabulary_size,
        max_position_embeddings=tokens + ids["pad"] + 1,
        attention_window=[new.attention_window] * new.num_hidden_layers
        if new.architecture == "longformer"
        else [],
        bos_token_id=ids["bos"],
        pad_token_id=ids["pad"],
        eos_token_id=ids["eos"],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    return train_by_command("pretrain", __doc__ or "", Pretraining, prepare, arguments)


if __name__ == "__main__":
    processes.leave(main())
