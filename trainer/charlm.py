"""Training of a character language model in phases, under the DeepSpeed launcher.

    deepspeed trainer/charlm.py --config trainer/configs/charlm_small.yaml [--any.key value …] [--dry-run]

The model of the Longformer paper's section 4: causal windows that grow to the top, dilation on some heads, and phases
that double sequence length and windows and halve the learning rate (appendix B). The same command again resumes from
the newest complete checkpoint by itself, in the middle of any phase, on any number of processes and any ZeRO stage.
On CPU: DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 deepspeed --num_gpus PROCESSES trainer/charlm.py …

RUN/config.yaml, RUN/metrics.jsonl, RUN/tensorboard/, RUN/checkpoints/step-00000100/ and RUN/export/ are written;
trainer.evaluate measures an export as the paper does, trainer.generate writes with it.

Keys (of the YAML, or as --key value; a phase's as --phases.0.steps value):
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.batches.character_evaluation import character_loss
from trainer.batches.evaluation import bits
from trainer.batches.text import Text, open_text
from trainer.engine import deepspeed as processes
from trainer.engine.character_config import CharacterTraining
from trainer.engine.character_estimate import describe_character_phase, describe_character_plan
from trainer.engine.command import train_by_command
from trainer.engine.config import InputError
from trainer.engine.flops import character_step_flops
from trainer.engine.phases import Phase, Phases
from trainer.engine.randomness import as_seed, hash64
from trainer.export import export_checkpoint
from trainer.model.charlm import CharacterConfig, CharacterModel
from trainer.model.charlm_folder import CharacterDescription, TrainedText
from trainer.model.provenance import ABOUT, run_facts


@dataclass(frozen=True)
class CharacterBatch:
    """characters (B, N + 1): each but the last is read, each but the first predicted."""

    characters: Tensor
    lookback: tuple[int, ...]

    @property
    def scored(self) -> int:
        return self.characters[:, 1:].numel()

    def to(self, device: torch.device) -> CharacterBatch:
        return CharacterBatch(self.characters.to(device), self.lookback)


@dataclass
class CharacterModelling:
    """What the training loop trains: a character model on a text (engine.training.Task)."""

    config: CharacterTraining
    text: Text
    model: CharacterModel

    @cached_property
    def train(self) -> np.ndarray:
        return self.text.split("train")

    @cached_property
    def validation(self) -> np.ndarray:
        return self.text.split("validation")[: self.config.evaluation.characters]

    @cached_property
    def phases(self) -> Phases:
        return Phases(
            [
                Phase(
                    steps=phase.steps,
                    batch_size=phase.batch_size,
                    micro_batch_size=phase.micro_batch_size,
                    tokens=phase.sequence_length,
                    sequences=sequences_of(len(self.train), phase.sequence_length),
                    flops=character_step_flops(
                        self.model.config, phase.lookback, phase.sequence_length, phase.batch_size
                    ),
                    learning_rate=phase.learning_rate,
                    warmup_steps=phase.warmup,
                    decay=phase.decay,
                )
                for phase in self.config.phases
            ]
        )

    @property
    def layers(self) -> int:
        return self.model.config.num_hidden_layers

    def facts(self) -> dict[str, Any]:
        text = self.text
        return {
            "config": self.config.exact(),
            "text": {"sha256": text.sha256, "characters": list(text.sizes), "alphabet": text.alphabet.size},
        }

    def describe(self) -> str:
        return "\n".join(
            describe_character_plan(self.model.config, self.config, self.text.sizes, self.phases, *_machine())
        )

    def describe_phase(self, number: int) -> str:
        return "\n".join(
            describe_character_phase(self.model.config, self.config, self.phases, number, *_machine())
        )

    def blocks(self) -> Iterable[nn.Module]:
        return self.model.layers

    def arranged(self, chosen: np.ndarray) -> np.ndarray:
        return chosen

    def micro_batch(self, step: int, chosen: np.ndarray, places: np.ndarray) -> CharacterBatch:
        """Pieces of the text; where an epoch begins to cut it is drawn, so that borders fall elsewhere each time."""
        place = self.phases.at(step)
        tokens = place.phase.tokens
        epochs = (place.taken + places) // place.phase.sequences
        cuts = hash64("cuts", self.config.seed, tokens, epochs) % np.uint64(tokens)
        starts = chosen * tokens + cuts.astype(np.int64)
        rows = np.stack([self.train[start : start + tokens + 1] for start in starts.tolist()])
        characters = torch.from_numpy(rows.astype(np.int64))
        return CharacterBatch(characters, self.config.phases[place.number].lookback)

    def loss(self, model: nn.Module, batch: CharacterBatch, dropout_seeds: Tensor) -> Tensor:
        logits = model(batch.characters[:, :-1], batch.lookback, dropout_seeds)
        labels = batch.characters[:, 1:].flatten()
        return F.cross_entropy(logits.flatten(0, 1).float(), labels, reduction="sum")

    def figures(self, mean_loss: float) -> dict[str, float]:
        return {"bpc": bits(mean_loss, 1)}

    def evaluate(self, step: int, share: slice, beat: Callable[[], None]) -> list[float] | None:
        phase = self.config.phases[self.phases.at(step).number]
        length = phase.sequence_length
        half = max(1, length // 2)
        return list(character_loss(self.model, phase.lookback, self.validation, length, half, share, beat))

    def evaluated(self, sums: list[float]) -> dict[str, float]:
        loss, scored = sums
        return {"validation_bpc": bits(loss, max(1.0, scored))}

    def files(self, step: int) -> dict[str, str]:
        lookback = self.config.phases[self.phases.at(step).number].lookback
        text = TrainedText(self.text.sha256, self.text.sizes)
        described = CharacterDescription(self.model.config, lookback, self.text.alphabet, text)
        about = run_facts(self.config.run / "metrics.jsonl", self.facts()["text"])
        return {
            "config.json": json.dumps(described.as_json(), indent=2) + "\n",
            ABOUT: json.dumps(about, indent=2) + "\n",
        }

    def export(self, checkpoint: Path, to: Path) -> None:
        export_checkpoint(checkpoint, to)


def _machine() -> tuple[int, str | None]:
    """(processes, the GPU's name, None on CPUs)."""
    name = processes.device_name()
    return int(os.environ.get("WORLD_SIZE", "1")), None if name == "cpu" else name


def sequences_of(characters: int, tokens: int) -> int:
    """Pieces of `tokens` and the character behind each, wherever in the first `tokens` the cutting begins."""
    return (characters - tokens) // tokens


def prepare(config: CharacterTraining) -> CharacterModelling:
    """Open the text and draw the model; InputError names every misfit."""
    settings = config.text
    text = open_text(
        settings.path, settings.vocabulary, settings.cache_dir, settings.validation, settings.test
    )
    problems = [
        f"phases.{number}.sequence_length: found {phase.sequence_length:,}, expected at most half of the text's "
        f"{text.sizes[0]:,} characters of training"
        for number, phase in enumerate(config.phases)
        if sequences_of(text.sizes[0], phase.sequence_length) < 1
    ]
    if config.evaluation.every and text.sizes[1] < 2:
        problems.append(
            f"text.validation: found {text.sizes[1]} characters, expected at least 2 to evaluate on"
        )
    if problems:
        raise InputError("\n".join(problems))
    torch.manual_seed(as_seed("initial weights", config.seed))
    model = CharacterModel(CharacterConfig(vocab_size=text.alphabet.size, **config.model.model_dump()))
    model.activation_checkpointing = config.activation_checkpointing
    return CharacterModelling(config, text, model)


def main(arguments: Sequence[str] | None = None) -> int:
    return train_by_command("charlm", __doc__ or "", CharacterTraining, prepare, arguments)


if __name__ == "__main__":
    processes.leave(main())
