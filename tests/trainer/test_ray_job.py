"""`ray job stop` on a job whose entrypoint is the launcher: it saves, and the same job goes on."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray_head import Cluster, ray_head
from tests.trainer import launcher
from tests.trainer.launcher import PRETRAIN, run_config, steps_logged
from tests.trainer.runs import rows
from trainer.engine.checkpoint import newest_checkpoint


def environment() -> dict[str, str]:
    """A quiet and private Ray's."""
    plain = {name: value for name, value in launcher.environment().items() if not name.startswith("RAY_")}
    quiet = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
    }
    return plain | quiet


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_head(environment()) as head:
        yield head


def job(cluster: Cluster, *arguments: str) -> str:
    """`ray job …`; returns what it printed."""
    verb, *rest = arguments
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ray"), "job", verb, "--address", cluster.dashboard, *rest],
        capture_output=True,
        text=True,
        timeout=launcher.PATIENCE,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_ray_job_stop_saves(cluster: Cluster, corpus: Path, tmp_path: Path) -> None:
    config = run_config(tmp_path, corpus, "job", steps=5000, checkpoint={"every": 5000, "keep_last": 2})
    # Ray's own patience is 3 s; a job says itself how long its checkpoint may take.
    settings = {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(launcher.ROOT),
        "RAY_JOB_STOP_WAIT_TIME_S": "120",
    }
    entrypoint = ["deepspeed", "--num_gpus", "2", "--master_port", str(launcher.free_port())]
    entrypoint += [str(PRETRAIN), "--config", str(config)]
    name = "stopped"
    job(
        cluster,
        "submit",
        "--no-wait",
        "--submission-id",
        name,
        "--runtime-env-json",
        json.dumps({"env_vars": settings}),
        "--",
        *entrypoint,
    )
    deadline = time.monotonic() + launcher.PATIENCE
    while steps_logged(tmp_path / "job") < 3:
        assert time.monotonic() < deadline, job(cluster, "logs", name)
        time.sleep(0.1)
    job(cluster, "stop", name)
    log = job(cluster, "logs", name)
    saved = newest_checkpoint(tmp_path / "job" / "checkpoints", report=pytest.fail)
    assert saved is not None, log
    assert 3 <= saved.step == rows(tmp_path / "job")[-1]["step"] < 5000, log
    assert f"stopped after step {saved.step}, checkpoint saved" in log
    assert "STOPPED" in job(cluster, "status", name).upper()
