"""Runs the project's commands as a user would type them, each one's whole output in a log of its own."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """Launches side by side may not share the launcher's default port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class StepFailed(RuntimeError):
    """A command ended with an error; its output is in the log named."""


class Commands:
    """Runs commands from the project's root; each one's whole output goes to FOLDER/logs/NAME.log.

    `quiet` prints neither the commands nor what they say: for several at a time, whose lines would mix.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], quiet: bool = False) -> None:
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.quiet = quiet
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # The commands are found as in an activated environment.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            **environment,
        }
        self.times: list[tuple[str, float]] = []

    def run(self, name: str, *command: str) -> str:
        """Run a command, showing its own lines but not the launcher's; returns those. StepFailed where it fails."""
        if not self.quiet:
            print(f"$ {shlex.join(command)}", flush=True)
        started = time.monotonic()
        shown: list[str] = []
        with (self.logs / f"{name}.log").open("w", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                if not line.startswith("["):  # dated lines of launchers and libraries
                    if not self.quiet:
                        print(f"  {line}", end="", flush=True)
                    shown.append(line)
        self.times.append((name, time.monotonic() - started))
        if process.wait():
            raise StepFailed(f"{name} ended with exit code {process.returncode}; see {self.logs / name}.log")
        return "".join(shown)

    def python(self, name: str, module: str, *arguments: str) -> str:
        return self.run(name, "python", "-m", module, *arguments)
