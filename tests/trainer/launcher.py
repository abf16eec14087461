"""Starting the real DeepSpeed launcher on this machine's CPU, in a session of its own so that it can be killed."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import yaml

PRETRAIN = Path(__file__).parents[2] / "trainer" / "pretrain.py"

# A model small enough that a step takes milliseconds, with dropout so that randomness shows.
NEW_MODEL = {
    "architecture": "longformer",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "attention_window": 16,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}


def run_config(folder: Path, corpus: Path, name: str, /, **changes: object) -> Path:
    """Write a run's YAML: a new tiny Longformer, 4 steps of 4 sequences in micro-batches of 1."""
    config = {
        "run": str(folder / name),
        "model": NEW_MODEL,
        "corpus": str(corpus),
        "seed": 3,
        "steps": 4,
        "sequence_length": 128,
        "batch_size": 4,
        "micro_batch_size": 1,
        "log_every": 1,
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "checkpoint": {"every": 2, "keep_last": 3},
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    script: Path, *arguments: str, processes: int = 2, cwd: Path | None = None
) -> subprocess.Popen[str]:
    """Start `deepspeed` in its own session; its output is one pipe."""
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        # These sources, wherever the environment's own installation of them lies.
        "PYTHONPATH": str(PRETRAIN.parents[1]),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = ["deepspeed", "--num_gpus", str(processes), "--master_port", str(free_port()), str(script)]
    return subprocess.Popen(
        [*command, *arguments],
        env=environment,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 300) -> str:
    """Wait for a launch and return what it printed; the whole session is killed where it does not end."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        output, _ = process.communicate()
        raise AssertionError(f"the launch did not end in {timeout} s:\n{output}") from None
    return output


def kill(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Send a signal to everything the launch started."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return
