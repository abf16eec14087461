"""A Ray of the tests' own on this machine, ended by its processes' ids."""

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@dataclass(frozen=True)
class Cluster:
    dashboard: str
    """Where jobs are submitted."""
    address: str
    """Where drivers connect."""


@contextlib.contextmanager
def ray_head(environment: Mapping[str, str]) -> Iterator[Cluster]:
    """A head of the tests' own: on loopback, with its own ports and folder."""
    # Not pytest's folder: the paths of Ray's sockets must stay under 108 characters.
    folder = tempfile.mkdtemp(prefix="ray-")
    names = ["port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"]
    names += ["metrics-export-port", "ray-client-server-port", "node-manager-port", "object-manager-port"]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    arguments = [f"--{name}={port}" for name, port in ports.items()]
    arguments += [
        "--head",
        "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1",
        f"--temp-dir={folder}",
    ]
    arguments += ["--num-cpus=2", f"--object-store-memory={100 << 20}", "--disable-usage-stats", "--block"]
    log = Path(folder) / "head.log"
    with log.open("wb") as stream:
        head = subprocess.Popen(
            [str(Path(sys.executable).parent / "ray"), "start", *arguments],
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    dashboard = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{dashboard}/api/version", timeout=5):  # noqa: S310
                    break
            except OSError:
                assert head.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        yield Cluster(dashboard, f"127.0.0.1:{ports['port']}")
    finally:
        processes = [head.pid, *(p.pid for p in psutil.Process(head.pid).children(recursive=True))]
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(30)
        for pid in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)
