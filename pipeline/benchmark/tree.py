"""Measures a command with every process that comes of it: Ray's are neither its children nor its children's, and Ray
reaps its workers itself, so that nobody is told what they took."""

import contextlib
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER
_POLL = 0.1
"""Seconds between looks: what a process takes after the last look at it is missed."""
_PATIENCE = 60
"""Seconds that processes may take to end after the command."""


@dataclass
class Tree:
    """A command's wall seconds, the CPU seconds of all its processes and of those that are Ray's own, and the largest
    resident set of each kind: "driver" is the command itself, "worker" a process in which Ray runs units, and "other"
    one of Ray's own."""

    wall: float
    cpu: float
    rays_own_cpu: float
    peak_bytes: dict[str, int] = field(default_factory=dict)


def measure_tree(command: Sequence[str], environment: dict[str, str], log: Path) -> Tree:
    """Runs it to its end; AssertionError with its output where it fails. Linux only, and in a process of its own,
    whose descendants all count: it becomes the parent of those whose parents end first."""
    assert sys.platform == "linux"
    assert ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0) == 0
    start = time.perf_counter()
    peaks: dict[str, int] = {}
    cpu: dict[int, float] = {}
    kinds: dict[int, str] = {}
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
        wall = None
        while True:
            for pid, seconds in _descendants():
                kind = kinds[pid] = _kind(pid, process.pid, kinds.get(pid))
                peaks[kind] = max(peaks.get(kind, 0), peak_bytes(pid))
                cpu[pid] = seconds
            if wall is None and process.poll() is not None:
                wall = time.perf_counter() - start
            if wall is not None and _reap():
                break
            assert wall is None or time.perf_counter() - start - wall < _PATIENCE, "processes do not end"
            time.sleep(_POLL)
    assert process.returncode == 0, log.read_text()[-3000:]
    rays_own = sum(seconds for pid, seconds in cpu.items() if kinds[pid] == "other")
    return Tree(wall, sum(cpu.values()), rays_own, peaks)


def _reap() -> bool:
    """Whether no child is left."""
    with contextlib.suppress(ChildProcessError):
        while True:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return False
    return True


def _descendants() -> Iterator[tuple[int, float]]:
    """Each, and the CPU seconds it took so far."""
    parents, seconds = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                parents[int(entry.name)] = int(fields[1])
                seconds[int(entry.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    for pid in parents:
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid() and pid != above:
            yield pid, seconds[pid]


def _kind(pid: int, command: int, known: str | None) -> str:
    """Ray names a process anew as it takes a task or ends; an agent is named like a worker but is Ray's own."""
    if pid == command:
        return "driver"
    with contextlib.suppress(OSError):
        name = Path(f"/proc/{pid}/cmdline").read_bytes()
        if name.startswith(b"ray::"):
            return "other" if b"Agent" in name else "worker"
    return known or "other"


def peak_bytes(pid: int) -> int:
    """The largest resident set of a process so far; 0 where the system does not say, or the process has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0
