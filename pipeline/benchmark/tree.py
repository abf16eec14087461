"""Measures a command with every process that comes of it: Ray's are neither its children nor its children's."""

import contextlib
import ctypes
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER
_POLL = 0.1
_PATIENCE = 60  # seconds that processes may take to end after the command


@dataclass
class Tree:
    """A command's wall seconds, the CPU seconds of all its processes, and the largest resident set of each kind:
    "driver" is the command itself, "worker" a process in which Ray runs units."""

    wall: float
    cpu: float
    peak_bytes: dict[str, int] = field(default_factory=dict)


def measure_tree(command: Sequence[str], environment: dict[str, str], log: Path) -> Tree:
    """Runs it to its end; AssertionError with its output where it fails. Linux only, and in a process of its own,
    whose children all count: it becomes the parent of those whose parents end first, and reaps them."""
    assert sys.platform == "linux"
    assert ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0) == 0
    before = _children_cpu()
    start = time.perf_counter()
    peaks: dict[str, int] = {}
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
        wall = None
        while True:
            with contextlib.suppress(ProcessLookupError):
                for pid, kind in _descendants(process.pid):
                    peaks[kind] = max(peaks.get(kind, 0), peak_bytes(pid))
            if wall is None and process.poll() is not None:
                wall = time.perf_counter() - start
            if wall is not None and _reap():
                break
            assert wall is None or time.perf_counter() - start - wall < _PATIENCE, "processes do not end"
            time.sleep(_POLL)
    assert process.returncode == 0, log.read_text()[-3000:]
    return Tree(wall, _children_cpu() - before, peaks)


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _reap() -> bool:
    """Whether no child is left."""
    with contextlib.suppress(ChildProcessError):
        while True:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return False
    return True


def _descendants(command: int) -> Iterator[tuple[int, str]]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    for pid in parents:
        above = pid
        while above in parents and above != os.getpid():
            above = parents[above]
        if above == os.getpid() and pid != above:
            yield pid, _kind(pid, command)


def _kind(pid: int, command: int) -> str:
    if pid == command:
        return "driver"
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
            return "worker"
    return "other"


def peak_bytes(pid: int) -> int:
    """The largest resident set of a process so far; 0 where the system does not say, or the process has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0
