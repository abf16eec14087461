"""A disk that is full or forbids writing when a run saves: said once, exit code 2, and nothing before it is lost."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer import launcher
from tests.trainer.disk import needs_mounting, remount, small_disk
from tests.trainer.launcher import PRETRAIN, run_config
from tests.trainer.runs import state_bytes, step_folder, step_rows
from trainer.engine.checkpoint import newest_checkpoint


def refused(config: Path) -> str:
    """What a launch said that ended with exit code 2."""
    process = launcher.start(PRETRAIN, "--config", str(config))
    output = launcher.finish(process)
    assert process.returncode == 2, output
    assert "Traceback" not in output
    return output


@needs_mounting
def test_a_full_disk_and_a_read_only_folder(launched: Path, corpus: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "100m") as disk:
        run = disk / "run"
        config = run_config(
            tmp_path, corpus, "small", run=str(run), steps=12, checkpoint={"every": 4, "keep_last": 5}
        )
        takes = sum(file.stat().st_size for file in step_folder(launched / "fp32-0", 4).iterdir())
        remount(disk, f"size={int(1.7 * takes)}")  # one checkpoint fits, two do not
        output = refused(config)
        assert output.count("step-00000008: not saved: ") == 1, output
        assert "No space left on device" in output
        assert "Step 4 is the last checkpoint" in output
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]
        before = state_bytes(run, 4)

        # With room the same command goes on, to a folder that cannot be written to.
        remount(disk, "size=100m")
        checkpoints = str(run / "checkpoints")
        subprocess.run(["mount", "--bind", checkpoints, checkpoints], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", checkpoints], check=True)
        try:
            output = refused(config)
        finally:
            subprocess.run(["umount", "-l", checkpoints], check=True)
        assert output.count("step-00000008: not saved: Read-only file system") == 1, output
        assert state_bytes(run, 4) == before
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]

        process = launcher.start(PRETRAIN, "--config", str(config))
        output = launcher.finish(process)
        assert process.returncode == 0, output
        found = newest_checkpoint(run / "checkpoints", report=pytest.fail)
        assert found is not None
        assert found.step == 12
        assert [row["step"] for row in step_rows(run)] == list(range(1, 13))


@needs_mounting
@pytest.mark.parametrize("size", ["4k", "12k"])
def test_a_disk_without_room_for_a_line(corpus: Path, tmp_path: Path, size: str) -> None:
    """For the figures, or for the first checkpoint; here without the launcher."""
    with small_disk(tmp_path / "disk", size) as disk:
        config = run_config(tmp_path, corpus, "small", run=str(disk / "run"))
        command = [sys.executable, str(PRETRAIN), "--config", str(config)]
        done = subprocess.run(
            command, env=launcher.environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 2, done.stdout + done.stderr
        # TensorBoard's writer has a thread of its own, which tells its troubles in its own way, and in between.
        assert done.stderr.count("pretrain: ") == 1, done.stderr
        assert "No space left on device" in done.stderr.partition("pretrain: ")[2]
        assert newest_checkpoint(disk / "run" / "checkpoints", report=pytest.fail) is None
