"""The configuration of a character model's training: a text, sizes, and phases of growing length and window."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from trainer.engine.config import MOST_STEPS, Evaluating, Section, Training, expand_home
from trainer.engine.schedule import Decay
from trainer.model.charlm import CharacterSizes

MOST_WARMUP = 10_000
"""Updates of warm-up that a phase has at the most where it names none; 10 % of its steps otherwise (appendix B)."""


FURTHEST = 1 << 24
"""Characters that a layer may look back; each of them takes room where text is generated."""


class TextSection(Section):
    """What is read: a text as bytes or characters, of which the end is kept to evaluate on."""

    path: str = Field(
        description="the text, or a zip of it: a file, or http(s)://, s3://, gs://, hf:// (fetched to text.cache_dir)"
    )
    vocabulary: Literal["bytes", "characters"] = Field(
        "bytes", description="a symbol a byte, 256 of them, or one for each different character of the text"
    )
    validation: float = Field(
        0.05, ge=0, description="characters from the end, before those of test; less than 1: the share of all"
    )
    test: float = Field(0.05, ge=0, description="characters at the very end; less than 1: the share of all")
    cache_dir: Path | None = Field(
        None, description="local folder for what is fetched, unpacked or numbered; null: ~/.cache/longspan"
    )

    @field_validator("path")
    @classmethod
    def _expand_home(cls, path: str) -> str:
        return str(expand_home(Path(path))) if path.startswith("~") else path


class CharacterPhase(Section):
    """The run's updates, phase by phase, each of one shape; the paper's five double length and window and halve
    the learning rate (appendix B)."""

    steps: int = Field(ge=1, le=MOST_STEPS, description="updates")
    sequence_length: int = Field(ge=1, description="characters")
    batch_size: int = Field(32, ge=1, description="sequences an update, over all processes")
    micro_batch_size: int = Field(
        1,
        ge=1,
        description="sequences a forward pass; batch_size is a multiple of it, whatever the process count",
    )
    learning_rate: float = Field(gt=0, description="the peak, reached after the warm-up")
    warmup_steps: int | None = Field(
        None, ge=0, description=f"updates of linear warm-up; null: 10 % of the steps, at most {MOST_WARMUP:,}"
    )
    decay: Decay = Field("constant", description="after the warm-up, to 0 at the phase's end, or constant")
    lookback: tuple[int, ...] = Field(
        description="an entry a layer, from the bottom: how many characters it sees before its own, times its "
        "dilation; half of what the paper calls the window"
    )

    @property
    def warmup(self) -> int:
        return min(MOST_WARMUP, self.steps // 10) if self.warmup_steps is None else self.warmup_steps


class CharacterEvaluation(Evaluating):
    """Bits per character of the validation split while training, in the phase's length moved by half of it;
    trainer.evaluate measures as the paper does."""

    characters: int = Field(100_000, ge=2, description="of the validation split: the first so many")


class CharacterTraining(Training):
    """A character language model, trained in phases."""

    text: TextSection = Field(description="what is read")
    model: CharacterSizes = Field(default_factory=CharacterSizes, description="sizes")  # type: ignore[arg-type]
    phases: tuple[CharacterPhase, ...] = Field(min_length=1, description="the run's updates, phase by phase")
    evaluation: CharacterEvaluation = Field(default_factory=CharacterEvaluation)  # type: ignore[arg-type]

    def misfits(self) -> list[str]:
        found = super().misfits()
        layers = self.model.num_hidden_layers
        for number, phase in enumerate(self.phases):
            key = f"phases.{number}"
            if phase.batch_size % phase.micro_batch_size:
                found.append(
                    f"{key}.batch_size: found {phase.batch_size}, expected a multiple of micro_batch_size "
                    f"{phase.micro_batch_size}"
                )
            if phase.warmup > phase.steps:
                found.append(
                    f"{key}.warmup_steps: found {phase.warmup}, expected at most steps {phase.steps}"
                )
            if len(phase.lookback) != layers:
                found.append(
                    f"{key}.lookback: found {len(phase.lookback)} entries, expected one a layer, {layers}"
                )
            if not all(0 <= back <= FURTHEST for back in phase.lookback):
                found.append(
                    f"{key}.lookback: found {list(phase.lookback)}, expected counts of characters, at most {FURTHEST:,}"
                )
        if (steps := sum(phase.steps for phase in self.phases)) > MOST_STEPS:
            found.append(f"phases: found {steps:,} steps in all, expected at most {MOST_STEPS:,}")
        return found
