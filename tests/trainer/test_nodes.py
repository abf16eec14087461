"""Several nodes by a hostfile: two launchers on this machine, each a node of one job."""

import subprocess
from pathlib import Path

import pytest

from tests.trainer import launcher
from tests.trainer.launcher import PRETRAIN, run_config
from tests.trainer.runs import losses, step_rows


def start_nodes(folder: Path, config: Path, working: list[Path]) -> list[subprocess.Popen[str]]:
    """Start one process on each of two nodes, from the folders `working`."""
    hostfile = folder / "hostfile"
    hostfile.write_text("first slots=1\nsecond slots=1\n")
    port = launcher.free_port()
    started = []
    for number, cwd in enumerate(working):
        nodes = ("--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(number))
        nodes += ("--master_addr", "127.0.0.1", "--master_port", str(port))
        started.append(launcher.start(PRETRAIN, "--config", str(config), cwd=cwd, nodes=nodes))
    return started


@pytest.mark.parametrize("shared", [True, False])
def test_nodes_train_in_one_folder_and_refuse_two(
    launched: Path, corpus: Path, tmp_path: Path, shared: bool
) -> None:
    working = [tmp_path / "a", tmp_path / ("a" if shared else "b")]
    for folder in working:
        folder.mkdir(exist_ok=True)
    config = run_config(
        tmp_path, corpus, "run", run="runs/one"
    )  # relative: each node has its own, or the same
    processes = start_nodes(tmp_path, config, working)
    outputs = [launcher.finish(process) for process in processes]
    statuses = [process.returncode for process in processes]
    if shared:
        assert statuses == [0, 0], outputs
        assert losses(tmp_path / "a" / "runs" / "one") == losses(launched / "fp32-0")
        assert len(step_rows(tmp_path / "a" / "runs" / "one")) == 4
        assert not list((tmp_path / "a" / "runs" / "one").glob(".node-*"))
        return
    assert statuses == [2, 2], outputs
    for number, output in enumerate(outputs):
        assert "Traceback" not in output
        assert "expected a folder on a file system that every node mounts" in output, output
        for node, folder in enumerate(working):
            assert f"run: {folder}/runs/one on " in output
            assert f"(node {node}) does not show what" in output
        assert not list(working[number].iterdir())  # not even the folder that a token was written in
