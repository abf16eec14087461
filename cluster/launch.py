"""Trains on every GPU machine of a Ray cluster, and goes on when one is lost.

    ray job submit --working-dir . --runtime-env cluster/runtime_env.yaml -- \\
        python -m cluster.launch --config /shared/longformer.yaml --gpus 8 --min-nodes 1 --max-nodes 8

One actor a machine runs the real `deepspeed` launcher on its GPUs. Where a machine is lost or a rank fails, all others
are stopped, and the training resumes from its last complete checkpoint on as many machines as there are, between
--min-nodes and --max-nodes: the batches, masks and dropout are the same on any number. It ends for good when it fails
twice at the same step, or starts again more than --restarts times within an hour. `ray job stop` saves first.

The run's folder, the model and the corpus are absolute paths on a file system that every machine mounts (a corpus may
be at s3:// or gs:// as well). What is no option below goes to the training: --optimizer.learning_rate 1e-5.

On machines without GPUs: --gpus 0 --processes 2. Where an autoscaler starts the machines: --wait-minutes 30.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TextIO

from cluster.machines import Crew, Demand, Taken, await_machines, connect, let_machines_go
from cluster.node import Report
from cluster.progress import Progress
from cluster.restarts import Failure, RestartPolicy
from trainer.engine.config import InputError, Pretraining, load_config
from trainer.engine.one_writer import lock_folder

SAVED = 143  # a training's exit status after SIGTERM and its checkpoint
LOST = -1000  # in place of a launcher's exit status: its machine is gone
LOOK_EVERY = 1.0  # seconds
REPLACED = 600.0  # seconds for a lost machine to be replaced, where the others are too few
GRACE = 60.0  # seconds that ranks have to save when they are stopped


@dataclass
class Launch:
    """A training over all its attempts."""

    script: Path
    arguments: list[str]
    demand: Demand
    least: int
    most: int
    patience: float
    run: Path
    progress: Progress
    policy: RestartPolicy
    lock: TextIO | None = None  # against the same run in another job
    stop_requested: bool = False
    attempts: list[str] = field(default_factory=list)  # how each ended

    def train(self) -> int:
        """Start and restart until the training has ended; returns its exit status."""
        if self.run.exists():
            self.claim()
        while True:
            # What could be met once will be met again: a lost machine may be replaced.
            patience = max(self.patience, REPLACED) if self.attempts else self.patience
            count = await_machines(self.demand, self.least, self.most, patience, tell)
            self.claim()  # now that its folder is wanted
            try:
                crew = Crew(self.demand, count)
            except Taken:
                continue
            outcome = self.attempt(crew)
            if isinstance(outcome, int):
                self.attempts.append(f"{count} machines: ended with {outcome}")
                return outcome
            self.attempts.append(f"{count} machines: {outcome.what}")
            tell(outcome.what)
            reason = self.policy.why_not(outcome, time.monotonic())
            if self.stop_requested:
                return SAVED
            if reason:
                tell(f"not started again: {reason}")
                return outcome.status or 1
            tell("starting again from the last complete checkpoint")
            self.progress.restarted()

    def claim(self) -> None:
        """Refuse to wait for machines, and to take them, for a run that another job trains."""
        self.lock = self.lock or lock_folder(self.run, "cluster.launch", ".launch")

    def attempt(self, crew: Crew) -> int | Failure:
        """Train on these machines until the end, or until something fails."""
        count = len(crew)
        try:
            places = crew.places()
            if lost := _first_error(places):
                return Failure(f"a machine was lost before the start ({lost})", lost_machine=True)
            slots = [len(place.slots) for place in places]
            tell(f"training on {count} machines: " + ", ".join(f"{p.host} ({len(p.slots)})" for p in places))
            self.progress.started(count, sum(slots))
            started = crew.call(
                "start",
                [
                    (places, number, self.script, self.arguments, not self.demand.gpus)
                    for number in range(count)
                ],
            )
            if lost := _first_error(started):
                return Failure(f"a machine was lost at the start ({lost})", lost_machine=True)
            return self._follow(crew, [place.host for place in places])
        finally:
            crew.dismiss()

    def _follow(self, crew: Crew, hosts: list[str]) -> int | Failure:
        """Hand on what the launchers say until all have ended, or one has failed and the others are stopped."""
        statuses: list[int | None] = [None] * len(crew)
        failure: Failure | None = None
        stopped_at: float | None = None
        while True:
            reports = crew.each("poll")
            for number, (host, report) in enumerate(zip(hosts, reports, strict=True)):
                if isinstance(report, Report):
                    for line in report.lines:
                        print(f"[{host}] {line}", flush=True)
                    statuses[number] = report.status
                elif statuses[number] is None:
                    statuses[number] = LOST
            failure = failure or self._failure(hosts, statuses)
            if all(status is not None for status in statuses):
                # Where a machine was lost, its peers' launchers may have been the first to say that something is wrong.
                lost = self._failure(hosts, statuses) if LOST in statuses else None
                return lost or failure or 0
            if stopped_at is None and (failure or self.stop_requested):
                crew.each("stop")
                stopped_at = time.monotonic()
            if stopped_at is not None and time.monotonic() - stopped_at > GRACE:
                crew.each("stop", signal.SIGKILL)
            self.progress.look()
            time.sleep(LOOK_EVERY)

    def _failure(self, hosts: list[str], statuses: list[int | None]) -> Failure | None:
        """The first failure among the launchers that have ended, None where there is none."""
        ended = [(host, status) for host, status in zip(hosts, statuses, strict=True) if status]
        if not ended:
            return None
        step = self.progress.step()
        # A lost machine makes the others fail: it is the reason, also where they are heard of first.
        for host, status in sorted(ended, key=lambda each: each[1] != LOST):
            if status == LOST:
                return Failure(f"{host} was lost after step {step}", True, None, step)
            if status == SAVED:
                return Failure(f"{host} was told to stop, and saved, after step {step}", True, None, step)
            return Failure(f"{host} ended with exit status {status} after step {step}", False, status, step)
        return None


def _first_error(results: Sequence[object]) -> str | None:
    for result in results:
        if isinstance(result, Exception):
            return str(result).strip().splitlines()[0]
    return None


def tell(text: str) -> None:
    print(f"launch: {text}", flush=True)


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected at least 1")
    return number


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the training's YAML")
    parser.add_argument(
        "--gpus", type=int, default=8, help="GPUs of each machine; 0: train on CPUs (default 8)"
    )
    parser.add_argument(
        "--processes", type=positive, default=1, help="of each machine without GPUs (default 1)"
    )
    parser.add_argument("--min-nodes", type=positive, default=1, help="machines to wait for (default 1)")
    parser.add_argument(
        "--max-nodes", type=positive, default=1000, help="machines to use (default: all there are)"
    )
    parser.add_argument(
        "--wait-minutes",
        type=float,
        default=0.0,
        help="for machines that an autoscaler starts, or that are on their way (default 0: fewer than --min-nodes are "
        "refused at once)",
    )
    parser.add_argument("--restarts", type=int, default=5, help="within an hour (default 5)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        if options.min_nodes > options.max_nodes:
            raise InputError(f"--min-nodes: found {options.min_nodes}, over --max-nodes {options.max_nodes}")
        if not options.config.is_absolute():
            raise InputError(
                f"--config: found {options.config}, expected an absolute path that every machine has"
            )
        config = load_config(options.config, _pairs(rest), Pretraining)
        if not config.run.is_absolute():
            raise InputError(f"run: found {config.run}, expected an absolute path that every machine mounts")
        connect()
        demand = Demand(options.gpus, options.gpus or options.processes)
        launch = Launch(
            script=training_script("pretrain"),
            arguments=["--config", str(options.config), *rest],
            demand=demand,
            least=options.min_nodes,
            most=options.max_nodes,
            patience=options.wait_minutes * 60,
            run=config.run,
            progress=Progress(config.run),
            policy=RestartPolicy(options.restarts),
        )

        def request_stop(number: int, frame: FrameType | None) -> None:
            launch.stop_requested = True

        signal.signal(signal.SIGTERM, request_stop)
        began = time.monotonic()
        try:
            status = launch.train()
        finally:
            let_machines_go()
        launch.progress.look()
        summarise(launch, status, time.monotonic() - began)
        return status
    except InputError as error:
        print(f"launch: {error}", file=sys.stderr, flush=True)
        return 2


def summarise(launch: Launch, status: int, seconds: float) -> None:
    how = {0: "done", SAVED: "stopped and saved; the same job resumes"}.get(status, f"failed with {status}")
    tell(f"{how} after {seconds / 60:.1f} minutes, {len(launch.attempts)} attempts; {launch.progress}")
    for number, attempt in enumerate(launch.attempts, start=1):
        tell(f"  {number}. {attempt}")


def training_script(name: str) -> Path:
    """The file that the launcher starts, of the package that this job imports."""
    found = importlib.util.find_spec(f"trainer.{name}")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin)


def _pairs(rest: Sequence[str]) -> list[tuple[str, str]]:
    """`--key value` and `--key=value` as the training reads them."""
    from trainer.engine.config import parse_arguments

    return parse_arguments(["--config", "-", *rest], "", Pretraining)[1]


if __name__ == "__main__":
    sys.exit(main())
