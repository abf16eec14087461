"""Through Ray: the same bytes as without it, a lost worker made good, and jobs submitted in both spellings."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.runner import TASK_MEMORY, task_memory
from tests.pipeline.conftest import ROOT, command, contents, environment, write_config
from tests.ray_head import Cluster, ray_head


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Shared by all tests here."""
    with ray_head(environment()) as head:
        yield head


def submit(cluster: Cluster, *entrypoint: str) -> subprocess.CompletedProcess[str]:
    ray = str(Path(sys.executable).parent / "ray")
    arguments = [ray, "job", "submit", "--address", cluster.dashboard, "--working-dir", "."]
    arguments += ["--runtime-env", "cluster/runtime_env.yaml"]
    return subprocess.run(
        [*arguments, "--", *entrypoint],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("entrypoint", "cpus"),
    [(["python", "-m", "pipeline.build_corpus"], "1"), (["pipeline.build_corpus"], "2")],
)
def test_a_submitted_job_gives_the_bytes_of_local(
    entrypoint: list[str], cpus: str, cluster: Cluster, built: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    config, reference = built
    file = write_config(tmp_path / "config.yaml", config)
    arguments = ["--config", str(file), "--output", str(tmp_path / "corpus"), "--max-cpus", cpus]
    done = submit(cluster, *entrypoint, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sealed" in done.stdout, "the job's log has the build's progress"
    assert contents(tmp_path / "corpus") == contents(reference)
    # The tasks ran on the cluster, not on a Ray of the driver's own.
    with urllib.request.urlopen(f"{cluster.dashboard}/api/jobs/", timeout=30) as answer:  # noqa: S310
        assert any(job["driver_info"] for job in json.load(answer) if job["status"] == "SUCCEEDED")


def test_a_job_with_bad_input_fails_with_its_message(
    cluster: Cluster, built: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    config, _ = built
    sources = [{"kind": "text", "path": "documents-here-but-not-there"}]
    file = write_config(tmp_path / "config.yaml", {**config, "sources": sources, "sead": 1})
    arguments = ["--config", str(file), "--output", str(tmp_path / "corpus")]
    done = submit(cluster, "python", "-m", "pipeline.build_corpus", *arguments)
    assert done.returncode == 1, "ray job submit knows one code for failure"
    assert "uploads no data" in done.stdout
    assert "perhaps 'seed' was meant" in done.stdout
    assert not os.path.lexists(tmp_path / "corpus")


def test_a_job_with_a_relative_output_is_refused(
    cluster: Cluster, built: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """It once succeeded, into Ray's copy of the working directory."""
    file = write_config(tmp_path / "config.yaml", built[0])
    done = submit(
        cluster, "python", "-m", "pipeline.build_corpus", "--config", str(file), "--output", "corpora/mine"
    )
    assert done.returncode == 1
    assert "--output corpora/mine: a relative path" in done.stdout


def test_an_input_s_error_comes_back_from_a_worker(
    cluster: Cluster, built: tuple[dict[str, Any], Path], small_sources: Path, tmp_path: Path
) -> None:
    config, _ = built
    torn = tmp_path / "torn.tar.gz"
    torn.write_bytes((small_sources / "realnews.tar.gz").read_bytes()[:5000])
    sources = [*config["sources"], {"kind": "realnews", "name": "torn", "path": str(torn)}]
    file = write_config(tmp_path / "config.yaml", {**config, "sources": sources})
    done = command(file, tmp_path / "corpus", RAY_ADDRESS=cluster.address)
    assert done.returncode == 2
    assert "torn.tar.gz: truncated or damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "corpus/manifest.json").exists()


def test_a_trouble_of_ray_s_own_is_said_in_a_line(built: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """Here a worker that dies of every unit it starts on."""
    file = write_config(tmp_path / "config.yaml", built[0])
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "import pipeline.runner\n"
        "pipeline.runner.RETRIES = 0\n"
        "pipeline.runner.execute = lambda unit, stores: os._exit(1)\n"
    )
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = command(file, tmp_path / "corpus", "--max-cpus", "1", PYTHONPATH=path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "build_corpus: Ray could not go on: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fault_of_this_program_is_told_with_its_place(
    built: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    file = write_config(tmp_path / "config.yaml", built[0])
    (tmp_path / "sitecustomize.py").write_text(
        "import pipeline.runner\n"
        "def stumble(unit, stores):\n"
        "    raise KeyError(unit.stage)\n"
        "pipeline.runner.execute = stumble\n"
    )
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = command(file, tmp_path / "corpus", "--max-cpus", "1", PYTHONPATH=path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "build_corpus: split " in done.stderr
    assert "not foreseen" in done.stderr
    assert "KeyError: 'split'" in done.stderr
    assert 'sitecustomize.py", line 3, in stumble' in done.stderr
    assert "the same command" not in done.stderr


def test_memory_is_declared_that_some_machine_with_cpus_has() -> None:
    def node(alive: bool = True, **resources: float) -> dict[str, Any]:
        return {"Alive": alive, "Resources": resources}

    head, small, large = node(memory=64e9), node(CPU=4.0, memory=2e8), node(CPU=16.0, memory=8e9)
    assert task_memory([head, small, large]) == TASK_MEMORY
    assert task_memory([head, small, node(False, CPU=16.0, memory=8e9)]) == 200_000_000
    assert task_memory([node(CPU=1.0)]) == 0


def test_a_private_ray_gives_the_bytes_of_local(built: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    config, reference = built
    file = write_config(tmp_path / "config.yaml", config)
    done = command(file, tmp_path / "corpus", "--max-cpus", "4")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "corpus") == contents(reference)
