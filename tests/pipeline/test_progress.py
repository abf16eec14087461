"""What a build says while it runs: in a real terminal, and in the log of a job."""

import fcntl
import io
import os
import pty
import random
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import progress
from pipeline.progress import SLOWEST_KEPT, Progress, SlowUnit

ROOT = Path(__file__).parents[2]


class Terminal:
    """A real terminal of so many columns; what was written to it."""

    def __init__(self, columns: int) -> None:
        self._reading, writing = pty.openpty()
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.writing = writing
        self.stream = os.fdopen(writing, "w", encoding="utf-8", newline="")
        self._content = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self._content += os.read(self._reading, 65536)
            except OSError:  # the last writer is gone
                return

    def text(self) -> str:
        """Everything written until now."""
        return self._content.decode()

    def close(self) -> str:
        self.stream.close()
        self._reader.join()
        os.close(self._reading)
        return self.text()


def screen(written: str) -> list[str]:
    """The lines that someone sees at the end: each rewriting overwrites what was there before."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        shown: list[str] = []
        for text in line.split("\r"):
            shown[: len(text)] = text
        lines.append("".join(shown).rstrip())
    return lines


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH", 0.01)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_a_terminal_has_one_line_rewritten_within_its_width(columns: int) -> None:
    terminal = Terminal(columns)
    with Progress("encode", 4, 1, 300_000_000, terminal.stream) as line:
        line.advance("a", 150_000_000, 2.0)
        wait_for(lambda: "50%" in terminal.text())
        assert "\n" not in terminal.text()
    written = terminal.close()
    drawings = written[: written.index("\n")].split("\r")
    live = [drawing for drawing in drawings if "50%" in drawing]
    assert live
    assert all(len(drawing) < columns for drawing in live)
    assert "\x1b" not in written
    assert screen(written)[0].startswith(
        "encode  2 of 4 units, 1 of them from an earlier run, 150.0 of 300.0 MB"
    )
    if columns == 80:
        assert "█" in live[-1]
        assert "2/4 units" in live[-1]
        assert " left" in live[-1]
        assert " MB/s" in live[-1]
    if columns == 200:
        assert "150.0/300.0 MB" in live[-1]


def test_the_line_moves_while_nothing_ends() -> None:
    terminal = Terminal(100)
    with Progress("split", 2, 0, 100, terminal.stream):
        before = terminal.text().count("\r")
        wait_for(lambda: terminal.text().count("\r") > before + 3)
    terminal.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_line_ends_after_an_exception(error: type[BaseException]) -> None:
    terminal = Terminal(80)

    def stage() -> None:
        with Progress("split", 9, 0, 900, terminal.stream) as line:
            line.advance("a", 100, 1.0)
            raise error

    with pytest.raises(error):
        stage()
    written = terminal.close()
    assert written.endswith("\n")
    assert screen(written)[0].startswith("split   1 of 9 units")
    assert screen(written)[0].endswith(", stopped")


def test_lines_said_in_between_stand_above_the_live_one() -> None:
    terminal = Terminal(80)
    with Progress("split", 9, 0, 900, terminal.stream) as line:
        line.say("a worker was lost")
        line.advance("a", 100, 1.0)
    lines = screen(terminal.close())
    assert lines[0] == "a worker was lost"
    assert lines[1].startswith("split   1 of 9 units")


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal(80)
    with Progress("split", 2, 0, 100, terminal.stream) as line:
        line.advance("a", 100, 1.0)
    written = terminal.close()
    assert "\r" not in written.replace("\r\n", "")
    assert "\x1b" not in written


def test_a_log_gets_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.02)
    log = io.StringIO()
    with Progress("pack", 3, 0, 3_000_000, log) as line:
        line.advance("a", 1_000_000, 1.0)
        wait_for(lambda: log.getvalue().count("pack    1 of 3 units, 1.0 of 3.0 MB, ") > 2)
    assert "\r" not in log.getvalue()
    assert " left, " in log.getvalue().splitlines()[0]
    assert " left" not in log.getvalue().splitlines()[-1]


def test_a_plan_may_be_unknown_at_first() -> None:
    log = io.StringIO()
    with Progress("encode", None, 0, None, log) as line:
        line.advance("a", 2_000_000, 1.0)
        line.end()
    assert log.getvalue().startswith("encode  1 unit, 2.0 MB, ")
    terminal = Terminal(80)
    with Progress("encode", None, 0, None, terminal.stream) as line:
        line.advance("a", 2_000_000, 1.0)
        wait_for(lambda: "1 unit," in terminal.text())
        line.expect(4, 8_000_000)
        wait_for(lambda: " 25%" in terminal.text())
        line.expect(4, 0)  # everything else was there already
        line.advance("b", 0, 1.0)
        wait_for(lambda: " 50%" in terminal.text())
    terminal.close()


def test_the_slowest_units_are_named() -> None:
    log = io.StringIO()
    times = [i / 8 for i in range(100)]
    random.Random(0).shuffle(times)
    with Progress("encode", 100, 0, 100_000_000, log) as line:
        for seconds in times:
            line.advance(
                f"unit{seconds * 8:.0f}", 1_000_000, seconds, "news.tar.gz" if seconds > 12.3 else ""
            )
        slowest = line.slowest
    assert len(slowest) == SLOWEST_KEPT
    assert slowest[0] == SlowUnit(99 / 8, "unit99", 1_000_000, "news.tar.gz")
    assert [unit.unit_id for unit in slowest] == [f"unit{i}" for i in range(99, 89, -1)]
    assert log.getvalue().splitlines()[1:] == [
        "encode  slow: 12.4 s for 1.0 MB, unit99, news.tar.gz",
        "encode  slow: 12.2 s for 1.0 MB, unit98",
        "encode  slow: 12.1 s for 1.0 MB, unit97",
    ]


def test_a_pipe_of_a_job_gets_whole_lines() -> None:
    program = (
        "from pipeline.progress import Progress\n"
        "with Progress('split', 2, 0, 2_000_000) as line:\n"
        "    line.advance('a', 1_000_000, 1.0)\n"
        "    raise KeyboardInterrupt\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert done.stdout.startswith("split   1 of 2 units, 1.0 of 2.0 MB")
    assert done.stdout.endswith(", stopped\n")
    assert "\r" not in done.stdout


@pytest.mark.parametrize(("encoding", "half"), [("utf-8", "███▌   "), ("ascii", "###    ")])
def test_the_bar_is_in_the_terminals_characters(encoding: str, half: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    assert progress._bar(0.5, 7, stream) == half
    assert len(progress._bar(0.0, 7, stream)) == len(progress._bar(1.0, 7, stream)) == 7


def test_nothing_of_a_longer_line_is_left() -> None:
    terminal = Terminal(200)
    with Progress("encode", 1_000_000, 0, 10**15, terminal.stream) as line:
        line.advance("a", 10**9, 1.0)
        wait_for(lambda: "1/1,000,000 units" in terminal.text())
        line.expect(None, None)
        wait_for(lambda: screen(terminal.text())[0].startswith("encode  1 unit, "))
        assert "%" not in screen(terminal.text())[0]
        assert "|" not in screen(terminal.text())[0]
    terminal.close()
