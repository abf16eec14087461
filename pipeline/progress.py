"""Progress of a build: plain lines, for a terminal and for the log of a job alike."""

import sys
import time
from typing import TextIO

INTERVAL = 5.0
"""Seconds between two lines of one stage."""


class Progress:
    """Counts the units of one stage and says so, at its start, every few seconds and at its end."""

    def __init__(
        self, stage: str, units: int, finished: int, size: int, stream: TextIO | None = None
    ) -> None:
        """`finished` of the `units` were done by an earlier run; the others will read `size` bytes."""
        self._stage = stage
        self._units = units
        self._finished = finished
        self._earlier = finished
        self._size = size
        self._read = 0
        self._stream = stream
        self._started = self._said = time.monotonic()

    def advance(self, size: int) -> None:
        """One more unit, of `size` bytes, is done."""
        self._finished += 1
        self._read += size
        if time.monotonic() - self._said >= INTERVAL:
            self._say()

    def end(self) -> None:
        self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        seconds = self._said - self._started
        parts = [f"{self._finished:,} of {self._units:,} units"]
        if self._earlier:
            parts.append(f"{self._earlier:,} of them from an earlier run")
        if self._size:
            parts.append(f"{self._read / 1e6:,.1f} of {self._size / 1e6:,.1f} MB")
        parts.append(f"{seconds:.1f} s")
        say(f"{self._stage:<7} {', '.join(parts)}", self._stream)


def say(line: str, stream: TextIO | None = None) -> None:
    """Prints a line at once, also where the output is a pipe."""
    print(line, file=stream or sys.stdout, flush=True)
