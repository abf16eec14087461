"""A watch over a run's steps: where none ends for too long, it shows where every thread stands and ends the process.

A rank that waits for ever (a dead file system, a collective that one rank never joins) looks busy to the launcher and
to the cluster. Ending it with a status of its own ends the job, which can be started again.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

HUNG = 75  # the exit status: sysexits.h's EX_TEMPFAIL, a failure that trying again may mend
STEPS = 20  # so many median steps without one that ends are a hang
FIRST = 3  # so many times the floor for the first step, which compiles and checks kernels
LOOK_EVERY = 1.0  # seconds
TIME_TO_SHOW = (
    10.0  # seconds that all ranks have to write their stacks, before the first one's end ends the others
)


class HangWatch:
    """Ends this process with status HUNG where no `beat()` comes for max(`floor`, 20 x the median step); in a `with`.

    floor: seconds. stacks: the file that the stacks of all threads are written to, beside standard error; its folder
    is made when needed.

    Time is counted in looks, so that a process that was suspended (Ctrl-Z, a batch system, a paused machine) is not
    taken for a hung one. A thread that waits outside Python without giving the interpreter back cannot be seen from
    here; the other ranks, who wait for it, are.
    """

    def __init__(self, floor: float, stacks: Path) -> None:
        self.floor = floor
        self.stacks = stacks
        self._first = True
        self._steps: deque[float] = deque(maxlen=101)
        self._idle = 0.0
        self._counted = time.monotonic()
        self._paused = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hang watch", daemon=True)

    @property
    def limit(self) -> float:
        """Seconds that the step under way may take."""
        if self._first:
            return FIRST * self.floor
        return max(self.floor, STEPS * statistics.median(self._steps or [0.0]))

    def _count(self) -> None:
        """Count the time since the last look; it is short, or the process was suspended."""
        now = time.monotonic()
        if not self._paused:
            self._idle += min(now - self._counted, 2 * LOOK_EVERY)
        self._counted = now

    def beat(self) -> None:
        """A step has ended."""
        with self._lock:
            self._count()
            if not self._first:  # which had the start-up before it
                self._steps.append(self._idle)
            self._first = False
            self._idle = 0.0

    def other_steps(self) -> None:
        """The steps that follow are of another shape: the first may compile, and those before it say nothing of it."""
        with self._lock:
            self._first = True
            self._steps.clear()

    def alive(self) -> None:
        """Something that is no step went on, such as a batch of an evaluation."""
        with self._lock:
            self._count()
            self._idle = 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what may take its time and gives no sign of life: a checkpoint, an export."""
        with self._lock:
            self._count()
            self._paused += 1
        try:
            yield
        finally:
            with self._lock:
                self._count()
                self._paused -= 1

    def __enter__(self) -> HangWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_EVERY):
            with self._lock:
                self._count()
                hung = self._idle > self.limit
            if hung:
                # In a thread, because the disk or the terminal may be what hangs.
                threading.Thread(target=self._show, daemon=True).start()
                self._ended.wait(TIME_TO_SHOW)
                os._exit(HUNG)  # also where another rank's end has woken the run up: one status for one cause

    def _show(self) -> None:
        what = (
            f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()}: no step ended for {self._idle:.0f} s "
            f"(the limit is {self.limit:.0f} s); the stacks of its threads:\n"
        )
        print(what, file=sys.stderr, end="", flush=True)
        faulthandler.dump_traceback(sys.__stderr__ or 2)
        self.stacks.parent.mkdir(parents=True, exist_ok=True)
        with self.stacks.open("w", encoding="utf-8") as file:
            file.write(what)
            file.flush()
            faulthandler.dump_traceback(file)
