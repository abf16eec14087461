"""What asks a process to stop, seen from the process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, time
from trainer.engine.stop import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    for _ in range(600):
        if stop.requested:
            break
        time.sleep(0.1)
    else:
        sys.exit("nothing asked")
    time.sleep(0.5)  # the save
    print("saved:", stop.reason, flush=True)
os.kill(os.getpid(), {last})
print("still here", flush=True)
"""


def script(folder: Path, last: int = 0) -> Path:
    path = folder / "waits.py"
    path.write_text(SCRIPT.format(last=last))
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_asks_and_further_ones_change_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, script(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(3):
        process.send_signal(number)
        time.sleep(0.1)
    assert process.communicate(timeout=60)[0] == f"saved: {number.name}\nstill here\n"
    assert process.returncode == 0


def test_afterwards_signals_are_as_before(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, script(tmp_path, last=signal.SIGTERM)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=60)[0] == "saved: SIGTERM\n"
    assert process.returncode == -signal.SIGTERM


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    process = subprocess.Popen(["nohup", sys.executable, script(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    process.terminate()
    assert process.communicate(timeout=60)[0].startswith("saved: SIGTERM\n")


def test_a_launcher_that_died_before_anyone_looked(tmp_path: Path) -> None:
    environment = {**os.environ, "CROSS_RANK": "0"}
    done = subprocess.run(
        [sys.executable, script(tmp_path)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "ready\nsaved: the launcher is gone\nstill here\n"


def test_without_a_launcher_the_shell_may_go(tmp_path: Path) -> None:
    """`python trainer/pretrain.py &` in a shell that is closed: its parent's end is no reason to stop."""
    shell = subprocess.Popen(
        ["sh", "-c", f"{sys.executable} {script(tmp_path)} & echo $!; sleep 2"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert shell.stdout is not None
    pid = int(shell.stdout.readline())
    assert shell.stdout.readline() == "ready\n"
    shell.wait()
    time.sleep(1.2)
    os.kill(pid, signal.SIGTERM)
    assert shell.stdout.readline() == "saved: SIGTERM\n"


def test_a_reader_that_is_gone_keeps_nobody_from_saving(tmp_path: Path) -> None:
    marker = tmp_path / "saved"
    body = f"""
import time, pathlib
from trainer.engine.stop import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.1)
    print("stopping", flush=True)
    pathlib.Path({str(marker)!r}).touch()
"""
    process = subprocess.Popen([sys.executable, "-c", body], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    time.sleep(1.2)
    process.terminate()
    assert process.wait(60) == 0
    assert marker.exists()
