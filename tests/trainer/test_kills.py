"""kill -9 at random moments, saves included, and the same command until it ends: the uninterrupted run, bit for bit."""

import os
import random
import time
from pathlib import Path

import pytest

from tests.trainer import launcher
from tests.trainer.conftest import LONG
from tests.trainer.launcher import CASES, run_config, steps_logged
from tests.trainer.runs import state_bytes, timeless

RUNS = ("killed-0", "killed-1", "killed-2")  # by ZeRO stage, one after the other in a launch
STEPS = 60 * len(RUNS)


@pytest.mark.drill
def test_killed_anywhere_and_started_again_it_is_the_same_run(
    launched: Path, corpus: Path, tmp_path: Path, kills: int
) -> None:
    """The moments are spread over the steps of all stages; every second one lies inside a save."""
    configs = [
        str(run_config(tmp_path, corpus, name, zero_stage=stage, **LONG)) for stage, name in enumerate(RUNS)
    ]
    seed = int(os.environ.get("LONGSPAN_SEED", "11"))
    moments = random.Random(seed)

    def progress() -> int:
        return sum(steps_logged(tmp_path / name) for name in RUNS)

    def saving() -> list[str]:
        return [path.name for name in RUNS for path in (tmp_path / name).glob("checkpoints/.step-*.partial")]

    told = []
    inside = 0
    for number in range(kills):
        slow = "0.15" if number % 2 else "0.03"  # a save of half a second, or of about the time between two
        process = launcher.start(CASES, *configs, extra={"SLOW_SYNC": slow})
        if number % 5 == 4:
            time.sleep(moments.uniform(0, 20))  # in the start too, wherever that is
        else:
            # A checkpoint lies at most five steps back: each kill but the first of a stage finds work done again.
            due = (number + moments.uniform(0.6, 1.2)) * STEPS / (kills + 1)
            launcher.wait_while(lambda due=due: progress() < due, process)
            if number % 2:
                launcher.wait_while(lambda: not saving(), process)
                time.sleep(moments.uniform(0, 0.35))
            else:
                time.sleep(moments.uniform(0, 0.3))
        launcher.kill(process)
        launcher.finish(process)
        inside += bool(saving())
        told.append(f"{progress()} of {STEPS} steps{', in a save' if saving() else ''}")
    process = launcher.start(CASES, *configs)
    output = launcher.finish(process)
    print(f"seed {seed}, {kills} kills, {inside} in a save: {'; '.join(told)}")
    assert process.returncode == 0, output
    assert inside, told
    for stage, name in enumerate(RUNS):
        run, whole = tmp_path / name, launched / f"long-{stage}"
        assert state_bytes(run, 60) == state_bytes(whole, 60), told
        assert timeless(run) == timeless(whole), told
        for folder in ("checkpoints", "export"):
            assert names(run / folder) == names(whole / folder)
        assert (run / "export" / "README.md").read_text() == (whole / "export" / "README.md").read_text()
        assert not list(run.glob(".export.*"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
