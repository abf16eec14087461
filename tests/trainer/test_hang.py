"""The watch over a run's steps: silent while they end, and over what is no step; a hang shows its stacks and ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer import launcher
from tests.trainer.launcher import run_config
from trainer.engine import hang
from trainer.engine.checkpoint import newest_checkpoint
from trainer.engine.hang import HUNG, HangWatch

HANGING = Path(__file__).with_name("hanging_case.py")


def test_a_hang_shows_the_stacks_of_all_ranks_and_ends_the_job(corpus: Path, tmp_path: Path) -> None:
    config = run_config(tmp_path, corpus, "hung", hang_minutes=0.2, steps=40)
    process = launcher.start(HANGING, str(config))
    output = launcher.finish(process)
    assert process.returncode == HUNG, output
    assert not launcher.left_running(process), output
    stacks = [(tmp_path / "hung" / "stacks" / f"rank-{rank}.txt").read_text() for rank in (0, 1)]
    for rank, shown in enumerate(stacks):
        assert shown.startswith(f"rank {rank} on ")
        assert output.count(f"rank {rank} on ") == 1
    assert "in wait_for_nothing" in stacks[1]
    assert "in wait_for_nothing" in output
    assert "in wait_for_nothing" not in stacks[0]
    assert "all_reduce" in stacks[0]  # where it waits for the other
    assert newest_checkpoint(tmp_path / "hung" / "checkpoints", report=print).step == 28  # type: ignore[union-attr]


def watched(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run statements under a watch of half a second's floor, in a process of their own."""
    script = (
        "import pathlib, time, trainer.engine.hang as hang\n"
        "hang.LOOK_EVERY = hang.TIME_TO_SHOW = 0.1\n"
        f"with hang.HangWatch(0.5, pathlib.Path({str(folder / 'stacks' / 'rank-0.txt')!r})) as watch:\n"
        "    watch.beat()\n" + "".join(f"    {line}\n" for line in body.splitlines())
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


def test_a_single_process_that_hangs_ends(tmp_path: Path) -> None:
    done = watched(tmp_path, "time.sleep(30)")
    assert done.returncode == HUNG
    assert "rank 0 on" in done.stderr
    assert "Current thread" in done.stderr
    assert (tmp_path / "stacks" / "rank-0.txt").read_text().count("File") >= 2


def test_beats_and_pauses_keep_it_silent(tmp_path: Path) -> None:
    body = "for _ in range(20): time.sleep(0.1); watch.beat()\nwith watch.paused(): time.sleep(2)\ntime.sleep(0.05)"
    done = watched(tmp_path, body)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "stacks").exists()


def test_the_limit_follows_the_median_step_and_the_first_has_more(tmp_path: Path) -> None:
    watch = HangWatch(600, tmp_path / "rank-0.txt")
    assert watch.limit == 3 * 600
    for seconds in (1000.0, 100.0, 20.0, 40.0, 60.0, 3000.0):
        watch._idle = seconds
        watch.beat()
    assert watch.limit == pytest.approx(20 * 60, rel=0.01)
    for _ in range(10):
        watch._idle = 1.0
        watch.beat()
    assert watch.limit == 600
    watch.other_steps()  # the first of another shape may compile, as the run's first
    assert watch.limit == 3 * 600
    watch._idle = 1000.0
    watch.beat()
    assert watch.limit == 600


def test_a_suspended_process_is_not_taken_for_a_hung_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(hang.time, "monotonic", lambda: clock[0])
    watch = hang.HangWatch(60, tmp_path / "stacks")
    clock[0] += 36_000  # one look to the next
    watch._count()
    assert watch._idle <= 2 * hang.LOOK_EVERY
    for _ in range(100):
        clock[0] += hang.LOOK_EVERY
        watch._count()
    assert watch._idle >= 100 * hang.LOOK_EVERY
