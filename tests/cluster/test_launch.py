"""cluster.launch on a Ray cluster of several nodes on this machine, with nodes added, killed and jobs stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from safetensors.torch import load_file, save_file

from cluster.launch import main as launch
from tests.cluster.drills import in_drills
from tests.corpora import build_small_corpus
from tests.trainer.launcher import run_config
from trainer.engine.one_writer import lock_folder

ROOT = Path(__file__).parents[2]
LONG = {"steps": 200, "checkpoint": {"every": 20, "keep_last": 2}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, so that only the nodes that a test adds can train."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20})
    yield found
    found.shutdown()


def add(cluster: Cluster) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=80 << 20)


def start(cluster: Cluster, config: Path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cluster.launch", "--config", str(config), "--gpus", "0", *options]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[str], timeout: float = 500) -> str:
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(process.communicate()[0]) from None


def rows(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:  # being written
            continue
    return [row for row in found if "loss" in row]


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    deadline = time.monotonic() + 450
    while not any(row["step"] >= step for row in rows(run)):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.drill
@in_drills
def test_a_lost_node_is_gone_on_without_and_a_stopped_job_resumed_and_the_run_is_the_same(
    cluster: Cluster, corpus: Path, tmp_path: Path
) -> None:
    nodes = [add(cluster) for _ in range(2)]
    run, config = tmp_path / "run", run_config(tmp_path, corpus, "run", **LONG)
    with lock_folder(run, "", ".launch"):  # as the same run's launch in another job
        second = start(cluster, config)
        assert "run: another cluster.launch is writing here" in finish(second)
        assert second.returncode == 2
    process = start(cluster, config, "--min-nodes", "1")
    wait_for_step(process, run, 45)
    cluster.remove_node(nodes[1], allow_graceful=False)
    wait_for_step(process, run, 90)
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    assert process.returncode == 143, output
    assert "was lost after step" in output
    assert "training on 2 machines" in output
    assert "training on 1 machines" in output
    assert "launch: stopped and saved; the same job resumes" in output
    saved = max(path.name for path in (run / "checkpoints").iterdir() if path.name.startswith("step"))

    process = start(cluster, config)
    other = start(cluster, run_config(tmp_path, corpus, "alone", **LONG))  # waits for the machine
    output = finish(process)
    assert process.returncode == 0, output
    assert f"start     step {int(saved.removeprefix('step-'))} of 200" in output
    assert "launch: done" in output
    output = finish(other)
    assert other.returncode == 0, output
    losses, expected = ([row["loss"] for row in rows(tmp_path / name)] for name in ("run", "alone"))
    assert losses == pytest.approx(expected, abs=1e-4)


@pytest.mark.drill
@in_drills
def test_what_fails_twice_before_its_first_step_is_not_tried_a_third_time(
    cluster: Cluster, corpus: Path, tmp_path: Path
) -> None:
    if not cluster.worker_nodes:
        add(cluster)
    model = tmp_path / "model"
    process = start(
        cluster,
        run_config(
            tmp_path, corpus, "whole", steps=1, checkpoint={"every": 1}, optimizer={"warmup_steps": 0}
        ),
    )
    output = finish(process)
    assert process.returncode == 0, output
    shutil.copytree(tmp_path / "whole" / "export", model)
    weights = load_file(model / "model.safetensors")
    weights["lm_head.bias"][7] = float("nan")
    save_file(weights, model / "model.safetensors")
    process = start(cluster, run_config(tmp_path, corpus, "nan", model=str(model)))
    output = finish(process)
    assert process.returncode == 1, output
    assert output.count("step 1: the loss is not finite") == 2
    assert "not started again: it failed twice before its first step" in output
    # A configuration at fault is tried once.
    process = start(cluster, run_config(tmp_path, corpus, "none", model=str(tmp_path / "nothing")))
    output = finish(process)
    assert process.returncode == 2, output
    assert output.count("no such folder") == 1
    assert "the input or the configuration is at fault" in output


@pytest.mark.drill
@in_drills
def test_what_can_never_fit_is_refused_at_once(cluster: Cluster, corpus: Path, tmp_path: Path) -> None:
    config = run_config(tmp_path, corpus, "run")
    process = start(cluster, config, "--processes", "64")
    output = finish(process)
    assert process.returncode == 2, output
    assert "1 machines with 64 CPUs each are needed; 0 of these have them" in output
    assert "None came in 0 minutes (--wait-minutes)" in output
    process = start(cluster, config, "--gpus", "8")
    output = finish(process)
    assert process.returncode == 2, output
    assert "1 machines with 8 CPUs and 8 GPUs each are needed; 0 of these have them" in output
    assert "no GPU" in output
    assert not (tmp_path / "run").exists()


def test_bad_arguments_are_one_message(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(run_config(tmp_path, corpus, "run"))
    for arguments, message in (
        (["--config", "run.yaml"], "--config: found run.yaml, expected an absolute path"),
        (
            ["--config", config, "--min-nodes", "3", "--max-nodes", "2"],
            "--min-nodes: found 3, over --max-nodes 2",
        ),
        (["--config", config, "--batch_size", "7", "--micro_batch_size", "2"], "batch_size: found 7"),
        (["--config", config, "--run", "runs/x"], "run: found runs/x, expected an absolute path"),
        (["--config", config, "--typo", "1"], "typo: unknown key"),
    ):
        assert launch(arguments) == 2
        assert message in capsys.readouterr().err
