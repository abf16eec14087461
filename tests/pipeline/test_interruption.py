"""Drills: the build is killed with -9 at random moments, is finished by the same command, the bytes are compared.

`LONGSPAN_KILLS` says how many builds of this file are killed: the driver alone, a worker alone, the whole tree, in
turn, without Ray and with 1, 2 and 4 workers. Moments are aimed at by the files that a stage has written, not by the
clock; they come from a seed. The processes are the real command's, the configuration has everything in it.
"""

import contextlib
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.pipeline.conftest import (
    ROOT,
    build,
    contents,
    environment,
    make_small_config,
    words,
    write_config,
    write_jsonl,
)
from tests.pipeline.faulty_server import FaultyServer, faulty_server

KILLS = int(os.environ.get("LONGSPAN_KILLS", "3"))
SEED = 20040515
ATTEMPTS = 5
"""A build may end before its moment: then another one is started."""
LOCAL = ("--local",)
WORKERS = (2, 4, 1)

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


def workers_of(count: int) -> tuple[str, ...]:
    return ("--max-cpus", str(count))


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Ray's processes, and those that they started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def kill_all(processes: Sequence[psutil.Process]) -> None:
    """kill -9 for them and for what they have started since."""
    found = {process.pid: process for process in processes}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {child.pid: child for child in process.children(recursive=True)}
    for process in found.values():
        with contextlib.suppress(psutil.NoSuchProcess):  # which a number that another process has now is, too
            process.kill()
    psutil.wait_procs(list(found.values()), timeout=30)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """kill -9 for the group and for what left it: Ray's processes have sessions of their own."""
    found = descendants(process)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    kill_all(found)
    process.wait()


@dataclass(frozen=True)
class Moment:
    """When a build has written more than `files` files below a folder of its output."""

    folder: str
    files: int

    def has_come(self, output: Path) -> bool:
        return sum(len(names) for _, _, names in os.walk(output / self.folder)) > self.files


@dataclass(frozen=True)
class Drill:
    """A configuration, the corpus that it is, and the moments of its builds."""

    config: Path
    reference: dict[str, bytes]
    files: dict[str, int]
    """By folder of the output: how many a build writes there."""

    def moment(self, generator: random.Random) -> Moment:
        """Each stage is as likely as the others, each of its files too."""
        folder = generator.choice(sorted(self.files))
        return Moment(folder, generator.randrange(self.files[folder]))

    def wait(self, process: subprocess.Popen[bytes], output: Path, moment: Moment) -> bool:
        """Until the moment, or the end of the build. Whether the build is still running."""
        deadline = time.monotonic() + 240
        while process.poll() is None and not moment.has_come(output):
            assert time.monotonic() < deadline, (output.parent / "log").read_text()
            time.sleep(0.002)
        return process.poll() is None

    def check_so_far(self, output: Path) -> None:
        """Whatever has its final name by now has its final bytes."""
        for name, content in self.reference.items():
            if (output / name).exists():
                assert (output / name).read_bytes() == content, name

    def check(self, process: subprocess.Popen[bytes], output: Path) -> None:
        """It ends well, and the corpus is the undisturbed one."""
        assert process.wait(timeout=300) == 0, (output.parent / "log").read_text()
        assert contents(output) == self.reference


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    with faulty_server() as running:
        yield running


@pytest.fixture(scope="module")
def everything(
    server: FaultyServer, small_sources: Path, small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The small sources, and files on a web server that takes its time, of which some documents are nearly copies,
    some evaluation data; chunks of a few documents, so that every stage has units."""
    folder = tmp_path_factory.mktemp("everything")
    generator = random.Random(SEED)
    uris = []
    for number in range(6):
        texts = [words(generator, 120) for _ in range(12)]
        texts += [text.replace(" ", " geändert ", 1) for text in texts[:4]]
        rows = [{"id": f"{number}-{place}", "text": text} for place, text in enumerate(texts)]
        content = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0)
        uris.append(server.serve(f"/{number}.jsonl.gz", content, seconds=0.2))
        if number == 3:
            write_jsonl(folder / "evaluation.jsonl", [{"question": " ".join(texts[7].split()[20:50])}])
    config = make_small_config(small_sources, small_tokenizer)
    wikipedia = {**config["sources"][1], "budget": 4000}
    web = {"kind": "text", "name": "web", "path": uris}
    return {
        **config,
        "chunk_bytes": 8000,
        "sources": [config["sources"][0], wikipedia, *config["sources"][2:], web],
        "filters": [{"name": "length", "minimum_bytes": 50}, {"name": "repeated_lines"}, {"name": "symbols"}],
        "deduplicate": {"near": {"threshold": 0.8}},
        "decontaminate": {"paths": str(folder / "evaluation.jsonl")},
    }


@pytest.fixture(scope="module")
def drills(everything: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Drill]:
    """The undisturbed build of each packing."""

    @cache
    def drill(packing: str) -> Drill:
        folder = tmp_path_factory.mktemp(packing)
        config = {**everything, "packing": packing}
        assert build(config, folder / "corpus", "--keep-work") == 0
        sources = json.loads((folder / "corpus/manifest.json").read_text())["sources"]
        lost = {reason for source in sources for reason in source["dropped"]}
        assert {"near_duplicate", "contaminated", "over_budget", "too_few_bytes"} <= lost, "all is in it"
        stages = {stage.name: len(list(stage.rglob("*.*"))) for stage in (folder / "corpus/.work").iterdir()}
        assert {"fetch", "split", "encode", "sign", "near", "join", "keep", "pack"} <= stages.keys()
        files = {f".work/{stage}": count for stage, count in stages.items() if count}
        files |= {"train": 1, "quarantine": len(sources)}  # from the first shard on; while it is sealed
        built = contents(folder / "corpus")
        reference = {name: content for name, content in built.items() if not name.startswith(".work/")}
        return Drill(write_config(folder / "config.yaml", config), reference, files)

    return drill


def suspend_all(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Stops the descendants where they are, those that they start meanwhile too."""
    suspended: dict[int, psutil.Process] = {}
    while new := [found for found in descendants(process) if found.pid not in suspended]:
        for each in new:
            suspended[each.pid] = each
            with contextlib.suppress(psutil.NoSuchProcess):
                each.suspend()
    return list(suspended.values())


def are_workers(processes: Sequence[psutil.Process], *titles: str) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline()[:1] in [[title] for title in titles]:
                found.append(process)
    return found


def kill_worker(process: subprocess.Popen[bytes]) -> bool:
    """kill -9 for one worker that is at a unit. False where the build ends before one is."""
    while process.poll() is None:
        for worker in are_workers(descendants(process), "ray::_execute"):
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
                return True
    return False


def started_until(
    drill: Drill, generator: random.Random, folder: Path, *options: str
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Builds, one after the other, each at its random moment; one that ended before is passed over."""
    for attempt in range(ATTEMPTS):
        output = folder / f"corpus-{attempt}"
        process = start(drill.config, output, *options)
        try:
            if drill.wait(process, output, drill.moment(generator)):
                yield process, output
        finally:
            kill_tree(process)
    pytest.fail("every build ended before it was killed")


def another(generator: random.Random, turn: int, options: tuple[str, ...]) -> tuple[str, ...]:
    """Another way of running than these options; in the first turn, which `make test` has time for, the fastest."""
    ways = [way for way in (LOCAL, *map(workers_of, WORKERS)) if way != options]
    return generator.choice(ways) if turn else LOCAL


def check_driver_killed(drill: Drill, generator: random.Random, turn: int, folder: Path) -> None:
    """Its workers are left to themselves. In every other turn they stand still, as on a machine that swaps, until the
    next build is somewhere in its middle, or has ended: what they write then must do no harm."""
    options = workers_of(WORKERS[turn % 3])
    for process, output in started_until(drill, generator, folder, *options):
        stand_still = turn % 2 == 0
        left = suspend_all(process) if stand_still else descendants(process)
        try:
            ended = process.poll() is not None
            process.kill()
            process.wait()
            if ended:
                continue
            next_build = start(drill.config, output, *another(generator, turn, options))
            try:
                drill.check_so_far(output)
                if stand_still:
                    if generator.random() < 0.5:
                        next_build.wait(timeout=300)
                    else:
                        drill.wait(next_build, output, drill.moment(generator))
                    workers = are_workers(left, "ray::_execute", "ray::IDLE")
                    for worker in workers:
                        worker.resume()
                    assert next_build.wait(timeout=300) == 0, (folder / "log").read_text()
                    psutil.wait_procs(workers, timeout=1)
                drill.check(next_build, output)
                return
            finally:
                kill_tree(next_build)
        finally:
            kill_all(left)


def check_worker_killed(drill: Drill, generator: random.Random, turn: int, folder: Path) -> None:
    """The build itself makes it good."""
    for process, output in started_until(drill, generator, folder, *workers_of(sorted(WORKERS)[turn % 3])):
        if kill_worker(process):
            drill.check(process, output)
            return


def check_tree_killed(drill: Drill, generator: random.Random, turn: int, folder: Path) -> None:
    """Once or twice, then it is finished another way."""
    options = [LOCAL, *map(workers_of, WORKERS)][turn % 4]
    for process, output in started_until(drill, generator, folder, *options):
        ended = process.poll() is not None
        kill_tree(process)
        if ended:
            continue
        drill.check_so_far(output)
        way = another(generator, turn, options)
        if generator.random() < 0.3:
            again = start(drill.config, output, *way)
            time.sleep(generator.uniform(0, 5))
            kill_tree(again)
            drill.check_so_far(output)
        drill.check(start(drill.config, output, *way), output)
        return


KINDS = {"driver": check_driver_killed, "worker": check_worker_killed, "tree": check_tree_killed}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turn", range(-(-KILLS // len(KINDS))))
def test_killed_and_finished(turn: int, kind: str, drills: Callable[[str], Drill], tmp_path: Path) -> None:
    number = turn * len(KINDS) + list(KINDS).index(kind)
    if number >= KILLS:
        pytest.skip(f"LONGSPAN_KILLS={KILLS}")
    packing = ("concatenate", "best_fit")[turn % 2]
    KINDS[kind](drills(packing), random.Random(SEED + number), turn, tmp_path)
