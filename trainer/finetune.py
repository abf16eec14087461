"""Finetuning on a downstream task under the DeepSpeed launcher.

    deepspeed trainer/finetune.py --config trainer/configs/hyperpartisan.yaml [--any.key value …] [--dry-run]

Continues a Longformer (or, to compare, a RoBERTa) on a task's official files: the inputs, global tokens, heads, losses
and metrics of the Longformer paper's section 6 and appendix D. The same command again resumes from the newest complete
checkpoint by itself, on any number of processes and any ZeRO stage. --dry-run reads the data and prints what will be
done, with the lengths of the contexts (the paper's table 6).
On CPU: DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 deepspeed --num_gpus PROCESSES trainer/finetune.py …

    python -m trainer.finetune --config RUN/config.yaml --predict FILE --output FILE [--score]

predicts one's own documents, or an official file, with the finished run's RUN/export (as trainer.predict does, without
the run).

RUN/config.yaml, RUN/metrics.jsonl, RUN/tensorboard/, RUN/checkpoints/step-00000100/ and RUN/export/ are written.

Keys (of the YAML, or as --key value):
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.batches.example_batches import summed
from trainer.batches.examples import ExampleBatch, as_batch
from trainer.engine import deepspeed as processes
from trainer.engine.command import train_by_command
from trainer.engine.config import MOST_STEPS, InputError
from trainer.engine.flops import rows_flops
from trainer.engine.led_cost import led_flops
from trainer.engine.monitor import METRICS
from trainer.engine.phases import Phase, Phases
from trainer.engine.randomness import as_seed
from trainer.export import export_checkpoint
from trainer.model.folder import locate_model, read_tokenizer, weights_fingerprint
from trainer.model.led_model import LedModel, led_files
from trainer.model.provenance import ABOUT
from trainer.model.task_card import finetuning_facts
from trainer.model.task_folder import FINETUNED, load_task_model, read_sizes, task_config_json
from trainer.model.task_model import TaskModel
from trainer.tasks.config import Finetuning
from trainer.tasks.description import TaskDescription
from trainer.tasks.example_store import Examples, open_examples
from trainer.tasks.plan import describe_finetuning
from trainer.tasks.summarization import Summarization
from trainer.tasks.task import DownstreamTask
from trainer.tasks.wordpieces import Wordpieces

TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass
class FinetunedTask:
    """What the training loop trains: a model on a task's examples (engine.training.Task)."""

    config: Finetuning
    task: DownstreamTask
    wordpieces: Wordpieces
    train: Examples
    validation: Examples | None
    model: TaskModel | LedModel
    made_of: list[str]  # where the model's parts come from
    start: str  # what the weights are at step 0

    @cached_property
    def phases(self) -> Phases:
        config, schedule = self.config, self.config.optimizer
        steps = steps_of(config, len(self.train))
        warmup = schedule.warmup_steps
        # Examples differ in length: the plan and tokens_per_second are of the mean one.
        if isinstance(self.model, LedModel):
            lengths = zip(self.train.tokens.tolist(), self.train.scored.tolist(), strict=True)
            flops = led_flops(self.model.sizes, lengths)
        else:
            flops = rows_flops(self.model.config, [row for rows in self.train.row_lengths for row in rows])
        phase = Phase(
            steps=steps,
            batch_size=config.batch_size,
            micro_batch_size=config.micro_batch_size,
            tokens=max(1, round(float(self.train.tokens.mean()))),
            sequences=len(self.train),
            flops=flops * config.batch_size // len(self.train),
            learning_rate=schedule.learning_rate,
            warmup_steps=round(schedule.warmup_share * steps) if warmup is None else warmup,
            decay=schedule.decay,
            power=schedule.power,
        )
        return Phases([phase])

    @property
    def layers(self) -> int:
        return self.model.config.num_hidden_layers

    def facts(self) -> dict[str, Any]:
        exact = self.config.exact()
        del exact["model"], exact["task"]  # by what they are, not by where they lie
        model = self.model
        sizes = model.sizes.model_dump() if isinstance(model, LedModel) else model.config.as_dict()
        return {
            "config": exact,
            "task": {"name": self.task.name, **self.task.describe()},
            "model": sizes,
            "model's weights": self.start,
            "training examples": {
                "examples": len(self.train),
                "sha256 of the examples": self.train.fingerprint,
            },
        }

    def describe(self) -> str:
        splits = {"train": self.train} | ({} if self.validation is None else {"validation": self.validation})
        name, there = processes.device_name(), int(os.environ.get("WORLD_SIZE", "1"))
        gpu = None if name == "cpu" else name
        lines = describe_finetuning(self.config, self.task.name, self.model, splits, self.phases, there, gpu)
        return "\n".join([lines[0] + f"; {', '.join(self.made_of)}", *lines[1:]])

    def describe_phase(self, number: int) -> str:
        return ""

    def blocks(self) -> Iterable[nn.Module]:
        return self.model.blocks

    def arranged(self, chosen: np.ndarray) -> np.ndarray:
        """By length: a micro-batch is filled to its longest row. What meets in an update is the same either way."""
        return chosen[np.lexsort((chosen, self.train.longest_rows[chosen]))]

    def micro_batch(self, step: int, chosen: np.ndarray, places: np.ndarray) -> ExampleBatch:
        examples = [self.train[number] for number in chosen.tolist()]
        return as_batch(examples, self.model.config.pad_token_id, self.model.global_attention)

    def loss(self, model: nn.Module, batch: ExampleBatch, dropout_seeds: Tensor) -> Tensor:
        assert isinstance(model, TaskModel | LedModel)
        return self.task.loss(model, model.states(batch, dropout_seeds), batch.examples)

    def figures(self, mean_loss: float) -> dict[str, float]:
        return {}

    def evaluate(self, step: int, share: slice, beat: Callable[[], None]) -> list[float] | None:
        if self.validation is None:
            return None
        first = self.config.evaluation.examples
        return summed(self.model, self.task, self.validation, share, beat, first=first)

    def evaluated(self, sums: list[float]) -> dict[str, float]:
        return {f"validation_{name}": value for name, value in self.task.figures(sums).items()}

    def files(self, step: int) -> dict[str, str]:
        config = self.config
        description = TaskDescription.of(config, self.task, self.model.global_attention)
        tokenizer = {name: content.decode() for name, content in self.wordpieces.files().items()}
        settings = json.loads(tokenizer[TOKENIZER_CONFIG]) | {
            "model_max_length": self.model.config.max_tokens
        }
        if isinstance(self.model, LedModel):
            assert isinstance(self.task, Summarization)
            sizes = led_files(self.model, self.task.generation(self.model))
        else:
            about_model = task_config_json(self.model.config, self.task)
            sizes = {"config.json": json.dumps(about_model, indent=2) + "\n"}
        return {
            **sizes,
            FINETUNED: description.to_json(),
            ABOUT: json.dumps(finetuning_facts(config.run / METRICS, self.task.name), indent=2) + "\n",
            **tokenizer,
            TOKENIZER_CONFIG: json.dumps(settings, indent=2) + "\n",  # or transformers truncates nowhere
        }

    def export(self, checkpoint: Path, to: Path) -> None:
        export_checkpoint(checkpoint, to)


def steps_of(config: Finetuning, examples: int) -> int:
    """Updates of a run over so many examples."""
    return config.steps or math.ceil(config.epochs * examples / config.batch_size)


def prepare(config: Finetuning) -> FinetunedTask:
    """Read model and data, and check that they fit; InputError names every misfit."""
    task = config.task.task()
    folder = locate_model(config.model)
    found = read_sizes(folder, task)
    wordpieces = Wordpieces(read_tokenizer(folder), task.added_tokens)
    problems = []
    if config.sequence_length > found.max_tokens:
        problems.append(
            f"sequence_length: found {config.sequence_length}, expected at most the {found.max_tokens} that {folder} "
            "has positions for (python -m trainer.convert lengthens a model)"
        )
    if wordpieces.pad != found.pad_token_id:
        problems.append(
            f"model: {folder} has pad_token_id {found.pad_token_id}, expected its tokenizer's {wordpieces.pad}"
        )
    if wordpieces.tokenizer.vocabulary_size > found.vocab_size:
        problems.append(
            f"model: {folder} has a vocabulary of {found.vocab_size}, expected at least its tokenizer's "
            f"{wordpieces.tokenizer.vocabulary_size}"
        )
    if problems:
        raise InputError("\n".join(problems))
    train = open_examples(task, "train", wordpieces, config.lengths, config.cache_dir)
    _refuse_none(train, "train", "to train on")
    validation = None
    if "validation" in task.splits() and (config.evaluation.every or config.evaluation.epochs):
        validation = open_examples(task, "validation", wordpieces, config.lengths, config.cache_dir)
        _refuse_none(validation, "validation", "to evaluate by")
    steps = steps_of(config, len(train))
    if steps > MOST_STEPS:
        raise InputError(f"epochs: found {config.epochs:g}, {steps} updates, expected at most {MOST_STEPS}")
    warmup = config.optimizer.warmup_steps
    if warmup is not None and warmup > steps:
        raise InputError(
            f"optimizer.warmup_steps: found {warmup}, expected at most the {steps} updates of {config.epochs:g} epochs "
            f"of {len(train):,} examples"
        )
    if not config.evaluation.every and validation is not None:
        an_epoch = math.ceil(config.evaluation.epochs * len(train) / config.batch_size)
        evaluation = config.evaluation.model_copy(update={"every": an_epoch})
        config = config.model_copy(update={"evaluation": evaluation})
    torch.manual_seed(as_seed("initial weights", config.seed))
    model, made_of = load_task_model(
        folder, task, wordpieces, config.global_projections, config.head, config.global_attention
    )
    if config.activation_checkpointing:
        model.recompute_layers()
    task_rate = config.optimizer.task_learning_rate
    if task_rate is not None:
        encoder = {id(parameter) for parameter in model.encoder.parameters()}
        for parameter in model.parameters():
            if id(parameter) not in encoder:
                setattr(parameter, processes.RATE_SCALE, task_rate / config.optimizer.learning_rate)
    start = weights_fingerprint(dict(model.named_parameters()))
    return FinetunedTask(config, task, wordpieces, train, validation, model, made_of, start)


def _refuse_none(examples: Examples, split: str, purpose: str) -> None:
    if not len(examples):
        reasons = ", ".join(f"{count} {reason}" for reason, count in examples.skipped.items())
        raise InputError(f"task.{split}: found no example {purpose} ({reasons or 'none is there'})")


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if any(argument.partition("=")[0] == "--predict" for argument in given):
        from trainer.predict import predict_by_run

        return predict_by_run(given)
    return train_by_command("finetune", __doc__ or "", Finetuning, prepare, given)


if __name__ == "__main__":
    processes.leave(main())
