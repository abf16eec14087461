"""One machine's part of a training: an actor that runs the DeepSpeed launcher there and hands on what it says."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG
LINES_KEPT = 10_000  # of the launcher's output between two looks of the driver


@dataclass(frozen=True)
class Place:
    """Where an actor runs, and on what."""

    host: str
    address: str
    port: int  # free when asked; the first machine's becomes the training's meeting point
    slots: tuple[int, ...]  # the GPUs' numbers on that machine, or one number a process


@dataclass(frozen=True)
class Report:
    """What is new on one machine."""

    lines: list[str]
    status: int | None  # the launcher's, None while it runs


class Node:
    """Runs on each machine of a placement group, as a Ray actor; holds at most one launcher."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._reader: threading.Thread | None = None

    def place(self, processes: int) -> Place:
        """This machine's place, with as many processes as Ray gave it GPUs, or else `processes`."""
        address = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            port = probe.getsockname()[1]
        gpus = tuple(sorted(int(gpu) for gpu in ray.get_gpu_ids()))
        return Place(socket.gethostname(), address, port, gpus or tuple(range(processes)))

    def start(
        self, places: Sequence[Place], number: int, script: Path, arguments: Sequence[str], cpu: bool
    ) -> None:
        """Start this machine's launcher of a training on all `places`, of which this one is `number`."""
        assert self._process is None
        # The names mean nothing outside: without ssh the launcher needs a machine's number alone.
        hosts = "".join(f"machine{n} slots={max(place.slots) + 1}\n" for n, place in enumerate(places))
        include = "@".join(f"machine{n}:" + ",".join(map(str, place.slots)) for n, place in enumerate(places))
        hostfile = os.memfd_create("hostfile")  # gone with the last process that has it open
        os.write(hostfile, hosts.encode())
        environment = dict(os.environ)
        # The code of this job, as in the driver, and its environment's commands.
        environment["PYTHONPATH"] = os.pathsep.join([str(script.parents[1]), *sys.path])
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        environment.pop("CUDA_VISIBLE_DEVICES", None)  # the launcher sets it, from the slots
        if cpu:
            environment["DS_ACCELERATOR"] = "cpu"
            environment.setdefault("OMP_NUM_THREADS", "1")
        command = ["deepspeed", "--hostfile", f"/proc/self/fd/{hostfile}", "--include", include, "--no_ssh"]
        command += ["--node_rank", str(number), "--master_addr", places[0].address]
        command += ["--master_port", str(places[0].port), str(script), *arguments]
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=(hostfile,),
            preexec_fn=_end_with_parent,
        )
        os.close(hostfile)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line.rstrip("\n"))

    def poll(self) -> Report:
        """The lines since the last call, and whether the launcher has ended."""
        assert self._process is not None
        status = self._process.poll()
        if status is not None and self._reader is not None:
            self._reader.join(timeout=10)
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        return Report(lines, status)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send everything that the launcher started a signal; SIGTERM lets the training save first."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return


def _end_with_parent() -> None:
    """In the launcher, before it starts: SIGTERM when the actor's process ends, however that happens."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
