"""However a run is asked to stop, it saves, leaves no process behind, and the same command goes on.

One run of 60 steps meets every end after the other, each in a launch of its own, and is at last the run that met none.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.trainer import launcher
from tests.trainer.conftest import LONG
from tests.trainer.launcher import CASES, run_config
from tests.trainer.runs import losses, rows, state_bytes, timeless
from trainer.engine.checkpoint import newest_checkpoint

Launch = subprocess.Popen[str]
# Saves take seconds then, so that a run lasts until it is stopped, and signals find saves under way.
SLOW = {"SLOW_SYNC": "0.3"}


def terminate_group_twice(process: Launch, run: Path) -> None:
    """As a batch system does it, and once more during the save."""
    launcher.kill(process, signal.SIGTERM)
    launcher.wait_until(lambda: any(run.glob("checkpoints/.step-*.partial")), process, every=0.001)
    launcher.kill(process, signal.SIGTERM)


ENDS: dict[str, Callable[[Launch, Path], None]] = {
    "SIGTERM twice to the group": terminate_group_twice,
    "SIGTERM to launch.py": lambda process, _: os.kill(launcher.launch_py(process), signal.SIGTERM),
    "SIGTERM to the runner": lambda process, _: os.kill(process.pid, signal.SIGTERM),
    "SIGKILL to launch.py": lambda process, _: os.kill(launcher.launch_py(process), signal.SIGKILL),
    "SIGTERM to a rank": lambda process, _: os.kill(launcher.ranks(process)[1], signal.SIGTERM),
    "SIGKILL to a rank": lambda process, _: os.kill(launcher.ranks(process)[1], signal.SIGKILL),
}
SAVING = list(ENDS)[:-1]


@dataclass
class Ended:
    """What an end left."""

    status: int
    output: str
    alive: list[str]
    logged: int
    saved: int


@dataclass
class Stopped:
    ended: dict[str, Ended]
    folder: Path
    """Where the run `stopped` lies, ended by itself at last, and `elsewhere`, its copy after the last kill."""


@pytest.fixture(scope="module")
def stopped(launched: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    folder = tmp_path_factory.mktemp("stopped")
    run, config = folder / "stopped", run_config(folder, corpus, "stopped", **LONG)
    ended: dict[str, Ended] = {}
    for name, end in ENDS.items():
        process = launcher.start(CASES, str(config), extra=SLOW)
        launcher.wait_for_steps(run, process)
        end(process, run)
        output = launcher.finish(process)
        alive = launcher.left_running(process)
        launcher.kill(process)
        checkpoint = newest_checkpoint(run / "checkpoints", report=pytest.fail)
        saved = checkpoint.step if checkpoint else 0
        ended[name] = Ended(process.returncode, output, alive, rows(run)[-1]["step"], saved)
    shutil.copytree(run, folder / "elsewhere")
    process = launcher.start(CASES, str(config))
    output = launcher.finish(process)
    assert process.returncode == 0, output
    return Stopped(ended, folder)


@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_left_running_and_nothing_ends_well(stopped: Stopped, end: str) -> None:
    ended = stopped.ended[end]
    assert not ended.alive, ended.output
    # The runner of DeepSpeed 0.19 returns 0 where launch.py was killed by a signal.
    assert ended.status != 0 or end == "SIGKILL to launch.py", ended.output


@pytest.mark.parametrize("end", SAVING)
def test_it_saves_the_step_it_was_in(stopped: Stopped, end: str) -> None:
    ended = stopped.ended[end]
    assert 0 < ended.saved < LONG["steps"], ended.output
    assert ended.saved == ended.logged, ended.output
    assert ended.output.count(f"stopped after step {ended.saved}, checkpoint saved (") == 1
    assert "Traceback" not in ended.output


def test_the_status_of_a_stopped_run(stopped: Stopped) -> None:
    assert stopped.ended["SIGTERM to a rank"].status == 143


def test_a_run_stopped_in_all_these_ways_is_the_uninterrupted_one(stopped: Stopped, launched: Path) -> None:
    run = stopped.folder / "stopped"
    steps = [ended.saved for ended in stopped.ended.values()]
    assert steps == sorted(steps)
    assert state_bytes(run, 60) == state_bytes(launched / "long-0", 60)
    assert timeless(run) == timeless(launched / "long-0")


def test_after_a_kill_it_goes_on_with_other_processes_and_another_zero_stage(
    stopped: Stopped, launched: Path, corpus: Path
) -> None:
    config = run_config(stopped.folder, corpus, "elsewhere", zero_stage=2, **LONG)
    process = launcher.start(CASES, str(config), processes=1)
    output = launcher.finish(process)
    assert process.returncode == 0, output
    assert losses(stopped.folder / "elsewhere") == pytest.approx(losses(launched / "long-0"), abs=1e-5)
