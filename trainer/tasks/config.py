"""The configuration of a finetuning run: what all tasks have, beside the section of the task's own."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from trainer.engine.config import MOST_STEPS, AdamW, Evaluating, Training, expand_home
from trainer.engine.schedule import Decay
from trainer.tasks.registry import AnyTask
from trainer.tasks.task import Lengths


class FinetuningOptimizer(AdamW):
    """AdamW with linear warm-up and decay (appendix D); no weight decay on biases and LayerNorms."""

    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    learning_rate: float = Field(3e-5, gt=0, description="the peak, reached after the warm-up")
    task_learning_rate: float | None = Field(
        None, gt=0, description="of what stands on the encoder; null: learning_rate"
    )
    warmup_steps: int | None = Field(
        None, ge=0, description="updates of linear warm-up; null: warmup_share of all"
    )
    warmup_share: float = Field(0.1, ge=0, le=1, description="of all updates, where warmup_steps is null")
    decay: Decay = Field("linear", description="after the warm-up, to 0 at the last step")
    power: float = Field(1.0, gt=0, description="of a polynomial decay")


class FinetuningEvaluation(Evaluating):
    """The task's metric on the validation split while training."""

    every: int = Field(0, ge=0, description="steps between evaluations, and after the last; 0: by epochs")
    epochs: float = Field(1.0, ge=0, description="epochs between evaluations, and after the last; 0: none")
    examples: int | None = Field(None, ge=1, description="the first so many; null: all")


class Finetuning(Training):
    """A run of trainer/finetune.py."""

    task: AnyTask = Field(description="the task's section", discriminator="name")
    model: str = Field(description="model folder or hub id (owner/name@revision) to start from")
    sequence_length: int = Field(4096, ge=8, description="tokens of a row; at most the model's positions")
    longer: Literal["truncate", "chunk"] = Field(
        "truncate",
        description="a context that does not fit is cut off, or read in several rows whose states the head sees joined",
    )
    global_attention: bool = Field(
        True, description="false: none of the task's tokens are global (table 10's ablation)"
    )
    global_projections: Literal["auto", "copied", "stored", "shared"] = Field(
        "auto",
        description="query, key, value of global tokens: copies of the local ones, those stored with the model, or the "
        "local ones themselves (table 10's ablation); auto: stored where the model has this task's head, else copied",
    )
    head: Literal["auto", "new", "stored"] = Field(
        "auto", description="stored: the model's own; new: drawn; auto: stored where it is there and fits"
    )
    epochs: float = Field(5.0, gt=0, description="passes over the training examples")
    steps: int | None = Field(
        None, ge=1, le=MOST_STEPS, description="updates in all; null: as many as the epochs take"
    )
    batch_size: int = Field(32, ge=1, description="examples an update, over all processes")
    micro_batch_size: int = Field(
        1,
        ge=1,
        description="examples a forward pass; batch_size is a multiple of it, whatever the process count",
    )
    cache_dir: Path | None = Field(
        None, description="where examples are kept as the model takes them (default: the user's cache)"
    )
    optimizer: FinetuningOptimizer = Field(default_factory=FinetuningOptimizer)  # type: ignore[arg-type]
    evaluation: FinetuningEvaluation = Field(default_factory=FinetuningEvaluation)  # type: ignore[arg-type]

    @field_validator("cache_dir")
    @classmethod
    def _expand_cache(cls, path: Path | None) -> Path | None:
        return None if path is None else expand_home(path)

    @field_validator("model")
    @classmethod
    def _expand_model(cls, location: str) -> str:
        return str(expand_home(Path(location))) if location.startswith("~") else location

    @property
    def lengths(self) -> Lengths:
        return Lengths(self.sequence_length, self.longer)

    def misfits(self) -> list[str]:
        found = super().misfits()
        if self.batch_size % self.micro_batch_size:
            found.append(
                f"batch_size: found {self.batch_size}, expected a multiple of micro_batch_size {self.micro_batch_size}"
            )
        warmup, steps = self.optimizer.warmup_steps, self.steps
        if warmup is not None and steps is not None and warmup > steps:
            found.append(f"optimizer.warmup_steps: found {warmup}, expected at most steps {steps}")
        return found
