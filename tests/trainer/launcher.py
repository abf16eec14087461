"""Starting the real DeepSpeed launcher on this machine's CPU, in a session of its own so that it can be killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parents[2]
PRETRAIN = ROOT / "trainer" / "pretrain.py"
CASES = Path(__file__).with_name("launched_cases.py")
PATIENCE = 300  # seconds for what takes ten on an idle machine

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


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """One thread a process, on the CPU, with this interpreter's programs first."""
    return {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        # These sources, wherever the environment's own installation of them lies.
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **(extra or {}),
    }


def start(
    script: Path,
    *arguments: str,
    processes: int = 2,
    cwd: Path | None = None,
    extra: Mapping[str, str] | None = None,
    nodes: tuple[str, ...] | None = None,
) -> subprocess.Popen[str]:
    """Start `deepspeed` in its own session; its output is one pipe. `nodes` are its arguments for a part of several."""
    command = ["deepspeed", *(nodes or ("--num_gpus", str(processes), "--master_port", str(free_port())))]
    return subprocess.Popen(
        [*command, str(script), *arguments],
        env=environment(extra),
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = PATIENCE) -> str:
    """Wait for a launch and all it started, and return what it printed; what does not end in time is killed."""
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


def members(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The living processes of a launch, orphans too: those of its session."""
    found = []
    for each in psutil.process_iter():
        try:
            if os.getsid(each.pid) == process.pid and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return found


def left_running(process: subprocess.Popen[str]) -> list[str]:
    """The command lines of what a launch that has ended left behind; what is on its way out gets the time for it."""
    deadline = time.monotonic() + 10
    while members(process) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [" ".join(each.cmdline()) for each in members(process)]


def launch_py(process: subprocess.Popen[str]) -> int:
    """The process id of DeepSpeed's launch.py, between the runner and the ranks."""
    (found,) = [each.pid for each in members(process) if "deepspeed.launcher.launch" in each.cmdline()]
    return found


def ranks(process: subprocess.Popen[str]) -> dict[int, int]:
    """{rank: process id}."""
    parent = launch_py(process)
    return {int(each.environ()["RANK"]): each.pid for each in members(process) if each.ppid() == parent}


def wait_while(condition: Callable[[], object], process: subprocess.Popen[str], every: float = 0.005) -> None:
    """Wait as long as something is true and any process of the launch lives."""
    deadline = time.monotonic() + PATIENCE
    while condition() and (process.poll() is None or members(process)):
        if time.monotonic() > deadline:
            kill(process)
            raise AssertionError(f"still waiting after {PATIENCE} s:\n{finish(process)}")
        time.sleep(every)


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str], every: float = 0.005) -> None:
    """Wait for something to come true; AssertionError with the launch's output where it ends before that."""
    wait_while(lambda: not condition(), process, every)
    if not condition():
        raise AssertionError(f"it ended before that:\n{finish(process)}")


def steps_logged(run: Path) -> int:
    """How many rows metrics.jsonl has."""
    metrics = run / "metrics.jsonl"
    return len(metrics.read_bytes().splitlines()) if metrics.exists() else 0


def wait_for_steps(run: Path, process: subprocess.Popen[str], more: int = 3) -> None:
    """Wait until the launch has logged `more` steps.

    A resumed run first cuts the rows that ran ahead of its checkpoint, so it is the last row that has to change.
    """
    metrics = run / "metrics.jsonl"
    was = metrics.read_bytes() if metrics.exists() else b""
    lines = set(was.splitlines())

    def grown() -> bool:
        now = metrics.read_bytes().splitlines() if metrics.exists() else []
        return sum(line not in lines for line in now) >= more

    wait_until(grown, process)
