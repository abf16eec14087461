"""How long a run takes from the end of its imports to the end of its first step, under the real launcher."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import yaml

LAUNCHED = Path(__file__).parent / "launched.py"
PROCESSES = 2
PATIENCE = 600  # seconds that a launch has to end after its first step
TINY = {
    "architecture": "longformer",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "attention_window": 64,
}


def write_config(folder: Path, corpus: Path, sequence_length: int) -> Path:
    """FOLDER/run.yaml: one step of a tiny model, a sequence for each process, in FOLDER/run."""
    config = {
        "run": str(folder / "run"),
        "model": TINY,
        "corpus": str(corpus),
        "steps": 1,
        "sequence_length": sequence_length,
        "batch_size": PROCESSES,
        "micro_batch_size": 1,
        "optimizer": {"warmup_steps": 0},
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


def measure_start(config: Path) -> dict[str, float]:
    """Seconds of imports, from the launcher's start on, and from there to the first step's row in metrics.jsonl."""
    folder = config.parent
    log_file, metrics = folder / "log", folder / "run" / "metrics.jsonl"
    started = time.monotonic()
    with log_file.open("w") as log:
        process = subprocess.Popen(
            _command(config), stdout=log, stderr=log, env=_environment(), start_new_session=True
        )
        try:
            while not (metrics.is_file() and metrics.stat().st_size) and process.poll() is None:
                time.sleep(0.005)
            stepped = time.monotonic()
            if process.wait(PATIENCE):
                raise RuntimeError(f"the run failed:\n{log_file.read_text()}")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    imported = max(float((folder / f"imported-{rank}").read_text()) for rank in range(PROCESSES))
    return {"imports": imported - started, "first_step": stepped - imported}


def _command(config: Path) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["deepspeed", "--num_gpus", str(PROCESSES), "--master_port", str(port), str(LAUNCHED)]
    return [*command, str(config.parent), "--config", str(config)]


def _environment() -> dict[str, str]:
    """With the launcher of this Python first on PATH, on the CPU, a thread a process."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": path}
