"""What a downstream task is to the command that trains it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import field_validator
from torch import Tensor, nn

from trainer.engine.config import Section, expand_home
from trainer.model.longformer import EncoderConfig
from trainer.tasks.example import Example
from trainer.tasks.wordpieces import Wordpieces

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Lengths:
    """How much the model reads at one time, and what becomes of the rest."""

    tokens: int
    """Of a row, special tokens included."""
    longer: Literal["truncate", "chunk"] = "truncate"
    """A context that does not fit is cut off, or read in several rows of an example."""


class TaskSettings(Section):
    """A task's section of a finetuning's configuration: where its files lie, and what the paper decides of its input.

    A task's own class has `name: Literal["…"]`; descriptions of its fields are what `--help` prints.
    """

    @field_validator("*")
    @classmethod
    def _expand_homes(cls, value: Any) -> Any:
        """`~` in paths, and in lists of them."""
        if isinstance(value, list | tuple):
            return type(value)(map(cls._expand_homes, value))
        return expand_home(value) if isinstance(value, Path) else value

    def task(self) -> DownstreamTask:
        """The task under these settings. It opens no file and asks for no path until `files` or `read`: the task of a
        finetuned model, which only encodes and predicts, has none. What does not fit together a validator says."""
        raise NotImplementedError


class DownstreamTask(Protocol):
    """A task of the paper's section 6: its files, its input, its head, its loss, its metric.

    Whatever is random is so by the run's seed (initial weights, dropout); a task has no state that training changes.
    """

    name: str
    added_tokens: tuple[str, ...]
    """Special tokens that the vocabulary grows by."""
    architecture: str
    """What transformers calls a model with this head ("ForQuestionAnswering"); "" where it has none."""
    has_global_tokens: bool
    """Coreference has none (appendix D): its model then has no projections for them."""

    def splits(self) -> tuple[Split, ...]:
        """Those that the configuration names; "train" is always there."""

    def files(self, split: Split) -> list[Path]:
        """What a split is read from; their content decides its examples."""

    def read(self, split: Split) -> Iterator[Any]:
        """The official file's entries, checked: InputError names the file, where in it, what was found and expected."""

    def read_own(self, path: Path) -> Iterator[Any]:
        """Entries of one's own file, or of an official one, to predict: labels may be missing."""

    def encode(self, entry: Any, wordpieces: Wordpieces, lengths: Lengths, training: bool) -> Example:
        """An entry as the model takes it. Where `training` an entry without a label that occurs raises Skipped;
        otherwise it is predicted, and counts in the metric."""

    def heads(self, config: EncoderConfig) -> dict[str, nn.Module]:
        """The modules on the encoder, by the names that transformers gives them; drawn from torch's generator."""

    def loss(self, model: nn.Module, states: list[Tensor], examples: Sequence[Example]) -> Tensor:
        """The summed loss, one summand an example. states: (read places, hidden_size) of each example; model has the
        heads by their names. Every head's parameters take part, by 0 where an example has nothing for them."""

    def predict(self, model: nn.Module, states: list[Tensor], examples: Sequence[Example]) -> list[Any]:
        """What the model says of each example, as JSON holds it."""

    def sums(self, examples: Sequence[Example], predictions: Sequence[Any]) -> list[float]:
        """What `figures` is made of, summed over examples: sums of parts add up to those of the whole."""

    def figures(self, sums: Sequence[float]) -> dict[str, float]:
        """The official metric by name, the paper's first; fractions of 1 or percent as the official script prints."""

    def write(self, path: Path, predictions: Iterable[tuple[Example, Any]]) -> None:
        """The official submission file."""

    def describe(self) -> Mapping[str, Any]:
        """What decides examples and loss besides files and lengths: a run continues under the same."""
