"""A run's steps as phases: consecutive steps that share sequence length, batch and schedule. Most runs have one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from trainer.engine.schedule import Decay, learning_rate


@dataclass(frozen=True)
class Phase:
    """Steps of one shape."""

    steps: int
    batch_size: int
    """Sequences an update, over all processes."""
    micro_batch_size: int
    tokens: int
    """Of a sequence."""
    sequences: int
    """In an epoch."""
    flops: int
    """Model FLOPs of a step (engine.flops)."""
    learning_rate: float
    warmup_steps: int = 0
    decay: Decay = "constant"
    power: float = 1.0

    @property
    def micro_batches(self) -> int:
        return self.batch_size // self.micro_batch_size


@dataclass(frozen=True)
class Place:
    """Where in a run a step lies."""

    number: int
    """Of the phase, from 0."""
    phase: Phase
    within: int
    """The step's number in its phase, from 1."""
    taken: int
    """Sequences of the endless stream of epochs that were taken before this step."""

    @property
    def rate(self) -> float:
        phase = self.phase
        return learning_rate(
            self.within,
            peak=phase.learning_rate,
            warmup_steps=phase.warmup_steps,
            steps=phase.steps,
            decay=phase.decay,
            power=phase.power,
        )


class Phases:
    """All phases of a run, in their order.

    A phase takes sequences from the beginning of an endless stream of epochs; one whose sequences are those of the
    phase before goes on where that stopped, so that a phase cut in two is the same run.
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        if not phases:
            raise ValueError("phases: found none, expected at least one")
        self.phases = tuple(phases)
        self._before = [0]  # steps before each phase, and in all
        self._taken = [0]  # of the stream, before each phase
        for phase in self.phases:
            self._before.append(self._before[-1] + phase.steps)
        for one, following in pairwise(self.phases):
            continues = (one.tokens, one.sequences) == (following.tokens, following.sequences)
            self._taken.append(self._taken[-1] + one.steps * one.batch_size if continues else 0)

    def __len__(self) -> int:
        return len(self.phases)

    @property
    def steps(self) -> int:
        """Of all phases."""
        return self._before[-1]

    def at(self, step: int) -> Place:
        """Where a step lies, counted from 1."""
        if not 1 <= step <= self.steps:
            raise ValueError(f"step: found {step}, expected 1 to {self.steps}")
        number = next(number for number, last in enumerate(self._before[1:]) if step <= last)
        phase, within = self.phases[number], step - self._before[number]
        return Place(number, phase, within, self._taken[number] + (within - 1) * phase.batch_size)

    def is_last_of_phase(self, step: int) -> bool:
        return step in self._before[1:]

    def _sum(self, step: int, of_a_step: Sequence[float]) -> float:
        """Of something that a step of each phase has so much of, over the first `step` steps."""
        return sum(
            each * min(phase.steps, max(0, step - before))
            for each, phase, before in zip(of_a_step, self.phases, self._before, strict=False)
        )

    def tokens(self, step: int) -> int:
        """Tokens of the first `step` steps."""
        return int(self._sum(step, [phase.batch_size * phase.tokens for phase in self.phases]))

    def flops(self, step: int) -> int:
        """Model FLOPs of the first `step` steps."""
        return int(self._sum(step, [phase.flops for phase in self.phases]))

    def epochs(self, step: int) -> float:
        """Epochs of the first `step` steps."""
        return self._sum(step, [phase.batch_size / phase.sequences for phase in self.phases])
