"""The wish to stop, however it arrives: a signal, or the launcher's death.

A run that is to stop saves after the step it is in and ends with status 143; the same command resumes. What asks:

- SIGTERM to this process: from the launcher (which forwards its own), from `ray job stop`, from a batch system.
- SIGINT (Ctrl-C) and SIGHUP (the terminal or the ssh connection is gone), unless the process was started to ignore
  them, as nohup does.
- The death of the launcher. `deepspeed` is a runner that starts launch.py, which starts the ranks. SIGTERM to the
  runner alone ends the runner alone, and kill -9 to either tells nobody: the ranks would train on with nobody to
  end them, and hold the run's lock against the command given again.

How long a stop may take is the sender's matter: launch.py gives its ranks 30 s before SIGKILL, `ray job stop` gives
RAY_JOB_STOP_WAIT_TIME_S (3 s unless the job's environment says more). A step and a checkpoint that take longer are
lost, back to the checkpoint before; nothing else is.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
INTERRUPTED = (
    143  # the exit status of a run that was stopped, after its checkpoint: 128 + SIGTERM, as shells say it
)
LAUNCHERS = {"deepspeed", "deepspeed.launcher.runner", "deepspeed.launcher.launch"}
LOOK_EVERY = 0.5  # seconds


class StopRequest:
    """`requested` turns True when something asks this process to stop, and `reason` says what; use it in a `with`.

    A handler only notes the wish, so a second signal while the checkpoint is being written changes nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self.reason = ""
        self._previous: dict[signal.Signals, Any] = {}
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._watch_launcher, name="launcher watch", daemon=True)

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._watch.join()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._ask(signal.Signals(number).name)

    def _ask(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.requested = True

    def _watch_launcher(self) -> None:
        line = launcher_line()
        # launch.py sets CROSS_RANK: with no launcher above, it died before this process came here.
        orphan = not line and "CROSS_RANK" in os.environ
        while not orphan:
            if self._ended.wait(LOOK_EVERY):
                return
            spare_broken_streams()
            orphan = bool(line) and launcher_line() != line
        self._ask("the launcher is gone")


def launcher_line() -> list[int]:
    """The ancestors of this process up to the topmost that belongs to the DeepSpeed launcher, nearest first.

    A dead one drops out, because its children are handed to another parent. Empty without a launcher: a run started
    from a shell must outlive the shell, if it was told to.
    """
    line: list[int] = []
    known = 0
    pid = os.getppid()
    while pid > 1 and pid not in line:
        line.append(pid)
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            # The name in brackets may hold anything, spaces and brackets too; the parent is the second field after it.
            pid_of_parent = (
                Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1]
            )
        except OSError:  # it ended in this moment
            break
        if Path(words[0]).name.startswith("python") and any(
            Path(word).name in LAUNCHERS for word in words[1:4]
        ):
            known = len(line)
        pid = int(pid_of_parent)
    return line[:known]


def spare_broken_streams() -> None:
    """Point standard output and error at nothing where nobody reads them any more.

    A closed terminal or a dead reader makes every print an error, and that must not keep a run from its checkpoint.
    """
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, descriptor)
            os.close(nothing)
