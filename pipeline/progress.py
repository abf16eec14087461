"""Progress of a build: one live line a stage in a terminal, plain lines in the log of a job.

The line is rewritten with a carriage return and spaces: no colours (NO_COLOR asks for nothing more), no escape codes.
tqdm draws when something was counted, so that its line would stand still while a long unit runs, and writes the
rewritten line into logs as well; what would be left of it is the bar.
"""

import heapq
import math
import os
import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TextIO

REFRESH = 0.5
"""Seconds between two drawings of the line in a terminal."""
INTERVAL = 5.0
"""Seconds between two lines of one stage in a log, at first; a twentieth of the stage's time later on ..."""
LONGEST_INTERVAL = 60.0
"""... up to this, which is also how often a stage says that it is alive while no unit ends."""
SLOWEST_KEPT = 10
"""How many of a stage's slowest units are remembered, for the report."""
SLOWEST_SAID = 3
"""How many are named at the end of a stage of more units than that, if the slowest took SLOW seconds."""
SLOW = 1.0
SHORTEST_BAR, LONGEST_BAR = 6, 40
"""Columns."""


@dataclass(frozen=True, order=True)
class SlowUnit:
    """A unit among a stage's slowest: `seconds` of processor time over `size` bytes read; `note` says of what."""

    seconds: float
    unit_id: str
    size: int
    note: str = ""


class Progress:
    """Counts the units of one stage and says so: use it in a `with`, so that the line ends whatever happens.

    with Progress("encode", units=1200, finished=300, size=64_000_000_000) as progress:
        for unit, record in ...:
            progress.advance(unit.id, unit.size, record.seconds, "wikipedia.jsonl.gz, chunk 3")
    """

    def __init__(
        self, stage: str, units: int | None, finished: int, size: int | None, stream: TextIO | None = None
    ) -> None:
        """`finished` of the `units` were done by an earlier run; the others will read `size` bytes. None where
        the plan is not known to its end yet: see `expect`."""
        self._stage = stage
        self._units = units
        self._finished = finished
        self._earlier = finished
        self._size = size
        self._read = 0
        self._stream = stream or sys.stdout
        self._started = self._said = time.monotonic()
        self._slowest: list[SlowUnit] = []
        self._live = _is_live(self._stream)
        self._drawn = 0  # columns that the live line takes at present
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._ended = threading.Event()
        if self._live:
            self._draw()
        self._ticker = threading.Thread(target=self._tick, name=f"progress of {stage}", daemon=True)
        self._ticker.start()

    def expect(self, units: int | None, size: int | None) -> None:
        """The plan has grown, or is known now: so many units in all, `size` bytes to read in this run."""
        with self._lock:
            self._units, self._size = units, size

    def found(self) -> None:
        """One more unit was done by an earlier run."""
        with self._lock:
            self._finished += 1
            self._earlier += 1

    def advance(self, unit_id: str, size: int, seconds: float, note: str = "") -> None:
        """One more unit is done: it read `size` bytes in `seconds` of processor time. `note` is for people: what
        it read."""
        unit = SlowUnit(seconds, unit_id, size, note)
        with self._lock:
            self._finished += 1
            self._read += size
            if len(self._slowest) < SLOWEST_KEPT:
                heapq.heappush(self._slowest, unit)
            else:
                heapq.heappushpop(self._slowest, unit)

    @property
    def slowest(self) -> list[SlowUnit]:
        """The slowest units so far, the slowest first; SLOWEST_KEPT at most."""
        with self._lock:
            return sorted(self._slowest, reverse=True)

    def say(self, line: str) -> None:
        """Prints a line of its own, above the live one."""
        with self._writing:
            if self._live:
                self._stream.write("\r" + " " * self._drawn + "\r")
                self._drawn = 0
            say(line, self._stream)

    def end(self, stopped: bool = False) -> None:
        """Says how far it came, and which units were the slowest. Does nothing the second time."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._ticker.join()
        lines = [self._plain() + (", stopped" if stopped else "")]
        slowest = self.slowest[:SLOWEST_SAID]
        if self._finished - self._earlier > SLOWEST_SAID and slowest[0].seconds >= SLOW:
            lines += [self._about(unit) for unit in slowest]
        if self._live:
            lines[0] = lines[0].ljust(self._drawn)
            self._stream.write("\r")
        for line in lines:
            say(line, self._stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(stopped=kind is not None)

    def _tick(self) -> None:
        while not self._ended.wait(REFRESH):
            try:
                if self._live:
                    self._draw()
                elif time.monotonic() - self._said >= self._interval():
                    self._said = time.monotonic()
                    self.say(self._plain())
            except (OSError, ValueError):  # nobody reads any more; the build goes on
                return

    def _interval(self) -> float:
        return min(max(INTERVAL, (time.monotonic() - self._started) / 20), LONGEST_INTERVAL)

    def _draw(self) -> None:
        with self._writing:
            columns = _columns(self._stream)
            line = self._line(columns)
            self._stream.write("\r" + line.ljust(min(self._drawn, columns - 1)))
            self._stream.flush()
            self._drawn = len(line)

    def _line(self, columns: int) -> str:
        """The live line: what counts most first, the bar in the room that is left; one column stays free, since
        a terminal may go to the next line after the last."""
        room = columns - 1
        fraction = self._fraction()
        line = f"{self._stage:<7}" if fraction is None else f"{self._stage:<7} {fraction:4.0%}"
        parts = [part for part in (self._units_said(), self._rate(), self._left(), self._read_said()) if part]
        parts += [_clock(self._elapsed())]
        said = ""
        for number, part in enumerate(parts):
            longer = f"{said}, {part}" if said else f" {part}"
            # The bar comes before what is only interesting to know.
            if len(line) + len(longer) > room - (SHORTEST_BAR + 3 if number > 2 else 0):
                break
            said = longer
        bar = min(room - len(line) - len(said) - 3, LONGEST_BAR)
        if fraction is not None and bar >= SHORTEST_BAR:
            line = f"{line} |{_bar(fraction, bar, self._stream)}|"
        return (line + said)[:room]

    def _plain(self) -> str:
        """The line of a log."""
        parts = [self._units_said(" of ")]
        if self._earlier:
            parts.append(f"{self._earlier:,} of them from an earlier run")
        parts += [part for part in (self._read_said(" of "), self._rate()) if part]
        if not self._ended.is_set() and self._left():
            parts.append(self._left())
        parts.append(f"{self._elapsed():.1f} s")
        return f"{self._stage:<7} {', '.join(parts)}"

    def _about(self, unit: SlowUnit) -> str:
        about = f"{unit.seconds:,.1f} s for {unit.size / 1e6:,.1f} MB"
        return f"{self._stage:<7} slow: {about}, {unit.unit_id}{', ' if unit.note else ''}{unit.note}"

    def _units_said(self, of: str = "/") -> str:
        if self._units is None:
            return "1 unit" if self._finished == 1 else f"{self._finished:,} units"
        return f"{self._finished:,}{of}{self._units:,} units"

    def _read_said(self, of: str = "/") -> str:
        if self._size is None:
            return f"{self._read / 1e6:,.1f} MB" if self._read else ""
        return f"{self._read / 1e6:,.1f}{of}{self._size / 1e6:,.1f} MB" if self._size else ""

    def _rate(self) -> str:
        return f"{self._read / 1e6 / max(self._elapsed(), 1e-3):,.1f} MB/s" if self._read else ""

    def _left(self) -> str:
        """How long the rest will take at this run's mean rate: units differ too much for the last few to tell."""
        if self._size and self._read:
            share = (self._size - self._read) / self._read
        elif self._units and self._finished > self._earlier:
            share = (self._units - self._finished) / (self._finished - self._earlier)
        else:
            return ""
        return f"{_clock(math.ceil(max(share, 0) * self._elapsed()))} left"

    def _fraction(self) -> float | None:
        if self._size:
            return min(self._read / self._size, 1.0)
        return min(self._finished / self._units, 1.0) if self._units else None

    def _elapsed(self) -> float:
        return time.monotonic() - self._started


def say(line: str, stream: TextIO | None = None) -> None:
    """Prints a line at once, also where the output is a pipe."""
    print(line, file=stream or sys.stdout, flush=True)


def _is_live(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _bar(fraction: float, columns: int, stream: TextIO) -> str:
    if (stream.encoding or "").lower().replace("-", "") != "utf8":
        return ("#" * int(fraction * columns)).ljust(columns)
    full, eighths = divmod(int(fraction * columns * 8), 8)
    return ("█" * full + " ▏▎▍▌▋▊▉"[eighths] * (full < columns)).ljust(columns)


def _clock(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
