"""Drills: the build is killed with -9 at random moments, the same command is run again, the bytes are compared.

`LONGSPAN_KILLS` says how often; the moments come from a seed. The processes are the real command's.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.shards import is_temporary
from tests.pipeline.conftest import ROOT, contents, environment, write_config

KILLS = int(os.environ.get("LONGSPAN_KILLS", "3"))
SEED = 20040515

pytestmark = pytest.mark.drill


def start(config: Path, output: Path, *options: str) -> subprocess.Popen[bytes]:
    """The command in a session of its own, so that its process group is its alone."""
    arguments = ["-m", "pipeline.build_corpus", "--config", str(config), "--output", str(output), *options]
    with (output.parent / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    assert process.wait(timeout=300) == 0, log.read_text()


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """kill -9 for the group and for what left it: Ray's processes have sessions of their own."""
    try:
        descendants = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        descendants = []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for descendant in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()
    process.wait()
    psutil.wait_procs(descendants, timeout=30)


@pytest.fixture(scope="module")
def many_units(built: tuple[dict[str, Any], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`built`'s configuration with chunks of a few documents: some hundred units, so that a kill hits one."""
    config, _ = built
    return write_config(tmp_path_factory.mktemp("many") / "config.yaml", {**config, "chunk_bytes": 1500})


@pytest.fixture(scope="module")
def duration(many_units: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds of an undisturbed build on this machine as it is now; only where to aim the kills."""
    folder = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    finish(start(many_units, folder / "corpus", "--local"), folder / "log")
    return time.monotonic() - started


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_anywhere_and_run_again(
    number: int, many_units: Path, duration: float, built: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    reference = contents(built[1])
    generator = random.Random(SEED + number)
    output = tmp_path / "corpus"
    for _ in range(generator.choice([1, 1, 2])):
        process = start(many_units, output, "--local")
        time.sleep(generator.uniform(0.2, 1.0) * duration)
        kill_tree(process)
        # Whatever has its final name by now has its final bytes.
        for name, content in (contents(output) if output.exists() else {}).items():
            if name in reference and not is_temporary(name):
                assert content == reference[name], name
    finish(start(many_units, output, "--local"), tmp_path / "log")
    assert contents(output) == reference


@pytest.mark.parametrize("number", range(max(1, KILLS // 3)))
def test_killed_on_ray(
    number: int, many_units: Path, built: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """A worker is killed, which Ray must make good; then everything; then the build is run to its end."""
    generator = random.Random(SEED + 1000 + number)
    units = generator.randint(1, 40)
    for attempt in range(5):  # a build may end before the kill: then another one is started
        output = tmp_path / f"corpus-{attempt}"
        process = start(many_units, output, "--max-cpus", "2")
        encoded = output / ".work/encode"
        deadline = time.monotonic() + 120
        while process.poll() is None and not (
            encoded.exists() and len(list(encoded.rglob("*.json"))) >= units
        ):
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.02)
        killed = False
        while process.poll() is None and not killed:
            killed = kill_worker(process)
        time.sleep(generator.uniform(0, 1))
        everything = process.poll() is None
        kill_tree(process)
        finish(start(many_units, output, "--local"), tmp_path / "log")
        assert contents(output) == contents(built[1])
        if killed and everything:
            return
    pytest.fail("every build ended before it was killed")


def kill_worker(process: subprocess.Popen[bytes]) -> bool:
    """kill -9 for a worker that is at a unit; whether one was."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for worker in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if worker.cmdline()[:1] == ["ray::_execute"]:
                    worker.kill()
                    return True
    return False
