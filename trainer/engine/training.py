"""The loop that every training shares: batches, one exact update a step, checkpoints, and a clean end.

What is trained is a `Task`. The loop knows nothing of texts or models: it asks for micro-batches by number, sums their
losses over all processes, takes one update, and keeps what a run needs to go on as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from pipeline.shards import CorpusError, write_atomically
from trainer.batches.order import SequenceOrder
from trainer.engine import deepspeed as processes
from trainer.engine.checkpoint import Checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint
from trainer.engine.config import InputError, LossSpike, Training
from trainer.engine.deepspeed import Engine, all_reduce_sum, gather_objects, on_first_rank, rank
from trainer.engine.flops import peak_flops
from trainer.engine.hang import HangWatch
from trainer.engine.monitor import Monitor
from trainer.engine.one_writer import lock_folder
from trainer.engine.phases import Phases
from trainer.engine.randomness import attention_dropout_seeds, reseed_torch
from trainer.engine.shared_folder import check_shared_folder
from trainer.engine.stop import INTERRUPTED, StopRequest, spare_broken_streams

SPIKES_IN_A_ROW = 10  # so many skipped updates are no spike any more


class Batch(Protocol):
    """The inputs and labels of one micro-batch."""

    @property
    def scored(self) -> int:
        """How many labels count in the loss."""

    def to(self, device: torch.device) -> Any: ...


class Task(Protocol):
    """What the loop trains."""

    @property
    def config(self) -> Training: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def phases(self) -> Phases:
        """The run's steps."""

    @property
    def layers(self) -> int:
        """That draw attention dropout."""

    def facts(self) -> dict[str, Any]:
        """What a checkpoint must agree on to be continued, by section: whatever decides batches and updates."""

    def describe(self) -> str:
        """What the run will do, in lines."""

    def describe_phase(self, number: int) -> str:
        """What one of several phases will do, in lines."""

    def blocks(self) -> Iterable[nn.Module]:
        """The model's layers, which torch.compile takes one by one."""

    def arranged(self, chosen: np.ndarray) -> np.ndarray:
        """A step's sequences in the order in which micro-batches take them: those of one length together, say."""

    def micro_batch(self, step: int, chosen: np.ndarray, places: np.ndarray) -> Batch:
        """The batch of the sequences `chosen`, at `places` of the step's batch: a function of these and the seed."""

    def loss(self, model: nn.Module, batch: Any, dropout_seeds: Tensor) -> Tensor:
        """The summed loss of one micro-batch."""

    def figures(self, mean_loss: float) -> dict[str, float]:
        """What to tell of a step besides its mean loss."""

    def evaluate(self, step: int, share: slice, beat: Callable[[], None]) -> list[float] | None:
        """Sums over this process's share of the evaluation set after a step, None where there is none; collective."""

    def evaluated(self, sums: list[float]) -> dict[str, float]:
        """Figures from the sums over all processes."""

    def files(self, step: int) -> dict[str, str]:
        """Small files, by name, that travel with the checkpoint of a step."""

    def export(self, checkpoint: Path, to: Path) -> None:
        """Write the model of a checkpoint for others to use."""


@dataclass
class Progress:
    """How far a run is, beyond the step's number; it travels in a checkpoint's state.json."""

    updates: int = 0  # steps less those that a spike made skip; Adam corrects its moments by this
    recent: deque[float] = field(default_factory=deque)  # the last losses that were no spikes
    skipped_in_a_row: int = 0
    figures: dict[str, Any] = field(default_factory=dict)  # of the last step and the last evaluation

    def as_dict(self) -> dict[str, Any]:
        return {
            "updates": self.updates,
            "recent_losses": list(self.recent),
            "skipped_in_a_row": self.skipped_in_a_row,
            "figures": self.figures,
        }

    @staticmethod
    def of(checkpoint: Checkpoint) -> Progress:
        found = checkpoint.facts["progress"]
        return Progress(
            found["updates"], deque(found["recent_losses"]), found["skipped_in_a_row"], found["figures"]
        )

    def is_spike(self, loss: float, settings: LossSpike) -> bool:
        """Whether a step's mean loss stands out of the last ones; those that do are not remembered."""
        self.recent = deque(self.recent, settings.window)  # which a resumed run may have made smaller
        full = len(self.recent) == settings.window
        spike = full and loss > settings.ratio * statistics.median(self.recent)
        if not spike:
            self.recent.append(loss)
        return spike


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass of this process."""

    number: int  # of the micro-batch, across the whole step
    weight: float  # 1, or 0 for a surplus pass
    places: np.ndarray
    batch: Batch


@dataclass(frozen=True)
class StepBatch:
    """A step's sequences, in the batch's order, and this process's passes over them."""

    chosen: np.ndarray
    passes: list[Pass]
    problem: str = ""  # why this process could not make its passes


def step_batches(task: Task, engine: Engine, first: int) -> Iterator[StepBatch]:
    """The batches of the steps from `first` to the last; the next is made by a thread while a step computes.

    A thread and no worker processes: making a batch is reading mapped memory and some array arithmetic, and there is
    nobody else whom a signal could reach.
    """
    phases = task.phases
    orders = {phase.sequences: SequenceOrder(phase.sequences, task.config.seed) for phase in phases.phases}

    def make(step: int) -> StepBatch:
        place = phases.at(step)
        size = place.phase.micro_batch_size
        chosen = task.arranged(orders[place.phase.sequences].stretch(place.taken, place.phase.batch_size))
        passes = []
        try:
            for number, weight in engine.assigned(place.phase):
                places = np.arange(number * size, (number + 1) * size)
                passes.append(Pass(number, weight, places, task.micro_batch(step, chosen[places], places)))
        except (InputError, CorpusError, OSError) as error:
            return StepBatch(chosen, [], str(error))
        return StepBatch(chosen, passes)

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        following: Future[StepBatch] = thread.submit(make, first)
        for step in range(first, phases.steps + 1):
            batch = following.result()
            if step < phases.steps:
                following = thread.submit(make, step + 1)
            yield batch


def check_same_run(checkpoint: Checkpoint, facts: dict[str, Any]) -> None:
    """Refuse to continue a checkpoint under other numbers; names each key that differs."""
    if differing := _differences(checkpoint.facts, json.loads(json.dumps(facts))):
        raise InputError(
            f"{checkpoint.folder} was trained under another configuration; give another --run, or restore:\n"
            + "\n".join(differing)
        )


def check_same_everywhere(facts: Sequence[dict[str, Any]]) -> None:
    """Refuse processes that were given other files or settings than the first, as machines with copies of their own may
    be; `facts` of each, by rank."""
    for number, own in enumerate(facts):
        if differing := _differences(facts[0], own):
            raise InputError(
                f"process {number} has other files or settings than process 0:\n" + "\n".join(differing)
            )


def _differences(expected: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """A line for each key in which facts differ from those expected, section by section."""
    lines = []
    for section in facts:
        was, is_now = (
            dict(_leaves(values, "" if isinstance(values, dict) else section))
            for values in (expected[section], facts[section])
        )
        lines += [
            f"  {key}: found {is_now.get(key, 'nothing')!r}, expected {was.get(key, 'nothing')!r}"
            for key in sorted(was.keys() | is_now.keys())
            if was.get(key) != is_now.get(key)
        ]
    return lines


def _leaves(values: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested mappings, and in lists of them, by number."""
    if isinstance(values, list) and values and isinstance(values[0], dict):
        values = dict(enumerate(values))
    if not isinstance(values, dict):
        yield key, values
        return
    for inner, value in values.items():
        yield from _leaves(value, f"{key}.{inner}" if key else inner)


def train(task: Task) -> int:
    """Run to the last step, or to the first step after a wish to stop; returns the exit status."""
    config = task.config
    processes.check_raw_keys(config)
    check_shared_folder(config.run)
    stacks = config.run / "stacks" / f"rank-{rank()}.txt"
    with StopRequest() as stop, HangWatch(config.hang_minutes * 60, stacks) as watch:
        with closing(Run(task, stop, watch)) as run:
            return run.to_the_end()


class Run:
    """A task under way on this process."""

    def __init__(self, task: Task, stop: StopRequest, watch: HangWatch) -> None:
        self.task, self.config, self.phases = task, task.config, task.phases
        self.steps = self.phases.steps
        self.stop, self.watch = stop, watch
        self.facts = task.facts()
        check_same_everywhere(gather_objects(self.facts))
        self.lock: TextIO | None = None
        checkpoint = on_first_rank(self._claim)
        self.start = checkpoint.step if checkpoint else 0
        self.monitor: Monitor | None = None
        if self.start == self.steps:
            return  # there is nothing to compute
        self.progress = Progress.of(checkpoint) if checkpoint else Progress()
        self.device = processes.device()
        task.model.to(self.device)
        if self.config.compile:
            compile_blocks(task.blocks())
        self.engine = Engine(task.model, task.loss, self.config, self.phases.at(self.start + 1).phase)
        if checkpoint:
            self.engine.load_state(checkpoint.state(), self.progress.updates)
        peak = peak_flops(processes.device_name(), self.config.precision)
        self.peak = None if peak is None else peak * processes.world_size()
        if rank() == 0:
            self.tell(task.describe())
            self.tell(f"start     step {self.start} of {self.steps}, run in {self.config.run}")
        on_first_rank(self._open_monitor)

    def _claim(self) -> Checkpoint | None:
        """Lock the run's folder and find what there is to resume; on the first rank alone."""
        run = self.config.run
        self.lock = lock_folder(run, "training")
        keys = (*self.facts, "progress")
        found = newest_checkpoint(run / "checkpoints", lambda line: self.tell(line, sys.stderr), keys)
        if found is not None:
            check_same_run(found, self.facts)
        settings = yaml.safe_dump(json.loads(self.config.model_dump_json()), sort_keys=False)
        write_atomically(run / "config.yaml", settings.encode())
        return found

    def _open_monitor(self) -> None:
        monitors = processes.monitors(self.config.run, self.config.wandb)
        started = {"processes": processes.world_size(), "device": processes.device_name()}
        self.monitor = Monitor(self.config.run, self.start, self.steps, monitors, started)

    def tell(self, text: str, stream: TextIO | None = None) -> None:
        """Print on the first rank."""
        if rank() == 0:
            spare_broken_streams()
            print(text, file=stream, flush=True)

    def close(self) -> None:
        if self.monitor:
            self.monitor.close()

    def to_the_end(self) -> int:
        config = self.config
        if self.start == self.steps:
            self.tell(
                f"finished  all {self.steps} steps are done, in {config.run}; exporting the last one again"
            )
            with self.watch.paused():
                on_first_rank(self.finish)
            return 0
        self.task.model.train()
        since, logged = time.monotonic(), self.start
        batches = step_batches(self.task, self.engine, self.start + 1)
        for step, batch in enumerate(batches, start=self.start + 1):
            self.begin_phase(step)
            row, stopping = self.step(step, batch, self.stop.requested)
            self.watch.beat()
            last, last_of_phase = step == self.steps, self.phases.is_last_of_phase(step)
            if self.monitor:
                self.monitor.advance()
            if step % config.log_every == 0 or last or step == 1 or "spike" in row:
                now = time.monotonic()
                done, before = self.phases.tokens(step), self.phases.tokens(logged)
                row["tokens_per_second"] = (done - before) / (now - since)
                if self.peak is not None:
                    flops = self.phases.flops(step) - self.phases.flops(logged)
                    row["mfu"] = flops / (now - since) / self.peak
                self.log(row)
                since, logged = now, step
            every = config.evaluation.every
            if every and (step % every == 0 or last_of_phase):
                paused = time.monotonic()
                self.evaluate(step)
                since += time.monotonic() - paused
            if step % config.checkpoint.every == 0 or last_of_phase or stopping:
                paused = time.monotonic()
                with self.watch.paused():
                    self.save(step)
                since += time.monotonic() - paused
            if stopping and not last:
                why = self.stop.reason or "asked of another process"
                self.tell(f"stopped after step {step}, checkpoint saved ({why}); the same command resumes")
                return INTERRUPTED
        with self.watch.paused():
            on_first_rank(self.finish)
        return 0

    def begin_phase(self, step: int) -> None:
        """At the first step of each but the one that the engine was made for."""
        place = self.phases.at(step)
        if place.within == 1:
            self.engine.begin(place.phase)
            self.watch.other_steps()
            if step > self.start + 1:  # else the run's description has just said it
                self.tell(self.task.describe_phase(place.number))

    def step(self, step: int, batch: StepBatch, stop_requested: bool) -> tuple[dict[str, Any], bool]:
        """One update, or none where the loss is a spike to skip; returns the step's figures and whether to stop."""
        config, engine, passes = self.config, self.engine, batch.passes
        scored = sum(turn.weight * turn.batch.scored for turn in passes)
        scored, failed = all_reduce_sum(scored, float(bool(batch.problem)))
        if failed:  # of one process; all end, and the one that speaks knows why
            raise InputError("\n".join(sorted({each for each in gather_objects(batch.problem) if each})))
        # A batch of special tokens alone has nothing to score: its loss and gradient are 0.
        denominator = max(1.0, scored)
        losses = []
        for index, turn in enumerate(passes):
            if index:
                engine.next_pass()
            reseed_torch(config.seed, step, turn.number)
            seeds = attention_dropout_seeds(config.seed, step, turn.places, self.task.layers)
            loss = engine.engine(turn.batch.to(self.device), torch.from_numpy(seeds).to(self.device))
            engine.backward(loss * turn.weight, denominator)
            losses.append(turn.weight * loss.detach().double())
        own = torch.stack(losses)
        loss_sum, stops = all_reduce_sum(float(own.sum()), float(stop_requested))
        norm = engine.gradient_norm()
        if not (math.isfinite(loss_sum) and math.isfinite(norm)):
            raise FloatingPointError(self._not_finite(step, batch, own, norm))
        mean = loss_sum / denominator
        rate = self.phases.at(step).rate
        row: dict[str, Any] = {
            "step": step,
            "loss": mean,
            **self.task.figures(mean),
            "learning_rate": rate,
            "grad_norm": norm,
            "epoch": self.phases.epochs(step),
            "tokens": self.phases.tokens(step),
        }
        if len(self.phases) > 1:
            row["phase"] = self.phases.at(step).number + 1
        spike = self.progress.is_spike(mean, config.loss_spike)
        if spike:
            row["spike"] = "skipped" if config.loss_spike.skip else "taken"
            self._spiked(step, mean, batch)
        if spike and config.loss_spike.skip:
            engine.skip()
        else:
            engine.update(rate)
            self.progress.updates += 1
            self.progress.skipped_in_a_row = 0
        self.progress.figures.update(row)
        return row, stops > 0

    def _not_finite(self, step: int, batch: StepBatch, own: Tensor, norm: float) -> str:
        """Collective: what was not finite, in which micro-batches and sequences."""
        bad = ~torch.isfinite(own)
        mine = [turn.places for turn, is_bad in zip(batch.passes, bad.tolist(), strict=True) if is_bad]
        places = [place for part in gather_objects(mine) for place in part]
        what = "the loss" if places else f"the gradient's norm ({norm})"
        chosen = batch.chosen[np.unique(np.concatenate(places))] if places else batch.chosen
        return (
            f"step {step}: {what} is not finite; its sequences are {_list(chosen)}. Nothing was updated; "
            f"the last checkpoint is intact"
        )

    def _spiked(self, step: int, mean: float, batch: StepBatch) -> None:
        settings = self.config.loss_spike
        median = statistics.median(self.progress.recent)
        what = "no update was taken" if settings.skip else "the update was taken"
        self.tell(
            f"step {step}: a loss of {mean:.4f} where the last {settings.window} had a median of {median:.4f}; {what}; "
            f"its sequences are {_list(batch.chosen)}",
            sys.stderr,
        )
        if not settings.skip:
            return
        self.progress.skipped_in_a_row += 1
        if self.progress.skipped_in_a_row == SPIKES_IN_A_ROW:
            raise FloatingPointError(
                f"step {step}: {SPIKES_IN_A_ROW} updates in a row were skipped for their loss, which is no spike any "
                f"more; the last checkpoint is intact (a lower learning_rate, or a higher loss_spike.ratio?)"
            )

    def log(self, row: dict[str, Any]) -> None:
        """Collective, so that a disk without room ends all ranks, and with its message."""

        def write() -> None:
            assert self.monitor
            spare_broken_streams()
            try:
                self.monitor.log(row)
            except OSError as error:
                reason = error.strerror or error
                raise InputError(f"{self.config.run}: {reason}; the last checkpoint is intact") from error

        on_first_rank(write)

    def evaluate(self, step: int) -> None:
        """Figures of the evaluation set, each process over its share."""
        with self.engine.evaluating():
            sums = self.task.evaluate(step, slice(rank(), None, processes.world_size()), self.watch.alive)
        if sums is None:
            return
        figures = self.task.evaluated(all_reduce_sum(*sums))
        self.progress.figures.update(figures)
        self.log({"step": step, **figures})

    def save(self, step: int) -> None:
        """Save a checkpoint; every rank takes part in gathering, the first writes."""
        state = self.engine.state()
        keep = self.config.checkpoint
        checkpoints = self.config.run / "checkpoints"
        facts = {**self.facts, "progress": self.progress.as_dict()}

        def write() -> None:
            save_checkpoint(checkpoints, step, state, facts, self.task.files(step))
            prune_checkpoints(checkpoints, keep.keep_last, newest=step, keep_every=keep.keep_every)

        on_first_rank(write)

    def finish(self) -> None:
        """Export the last step's model to RUN/export."""
        last = self.config.run / "checkpoints" / f"step-{self.steps:08d}"
        self.task.export(last, self.config.run / "export")
        self.tell(f"done: {self.config.run / 'export'}")


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """torch.compile, layer by layer, with the random numbers that it would have drawn without."""
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    inductor.fallback_random = True
    # Layers share their code: by dilation, training or not, and from the second phase on by length, it has some twenty
    # graphs. Beyond the usual limit of 8 the others would run as if they were not compiled.
    dynamo.recompile_limit = 64
    for block in blocks:
        block.compile()


def _list(chosen: np.ndarray, most: int = 64) -> str:
    """Sequence numbers for a message."""
    shown = ", ".join(map(str, chosen[:most].tolist()))
    return shown + (f" and {len(chosen) - most} more" if len(chosen) > most else "")
