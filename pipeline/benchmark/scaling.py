"""Ray against --local, two workers against one, and what the machine itself gives for a second process."""

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from pipeline.benchmark.methods import write_config
from pipeline.benchmark.text import read_texts
from pipeline.benchmark.tree import Tree, measure_tree
from pipeline.tokenizer import load_tokenizer
from pipeline.tokenizer.engines import ENGINE_VARIABLE

WAYS: dict[str, list[str]] = {
    "--local": ["--local"],
    "Ray, one worker": ["--max-cpus", "1"],
    "Ray, two workers": ["--max-cpus", "2"],
}
_barrier: Barrier


def measure_ways(folder: Path, texts: Sequence[Path], engine: str, rounds: int) -> dict[str, Any]:
    """The builder's command on all texts and on next to none, each way, in interleaved rounds.

    What a small build costs is what starting and stopping costs; what the text adds to it is the work. So there are
    two overheads: of whole builds, and of the work alone.
    """
    spawn = multiprocessing.get_context("spawn")
    found: dict[str, list[tuple[Tree, Tree]]] = {name: [] for name in WAYS}
    machine = []
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as alone:
        for _ in range(rounds):
            for name, options in WAYS.items():
                sizes = ([folder / "first.jsonl"], list(texts))
                start, whole = (alone.submit(_build, folder, s, engine, options).result() for s in sizes)
                found[name].append((start, whole))
            machine.append(_two_processes(folder, texts, engine))
    size = sum(len(text.encode()) for file in texts for text in read_texts(file))
    report = {name: _median_row(runs, size) for name, runs in found.items()}
    local, one, two = found.values()
    return {
        "rows": report,
        "bytes": size,
        "engine": engine,
        "overhead": _median(b[1].cpu / a[1].cpu - 1 for a, b in zip(local, one, strict=True)),
        "overhead_seconds": _median(b[1].cpu - a[1].cpu for a, b in zip(local, one, strict=True)),
        "overhead_of_work": _median(_work(b) / _work(a) - 1 for a, b in zip(local, one, strict=True)),
        "rays_own_seconds": _median(b[1].rays_own_cpu - b[0].rays_own_cpu for b in one),
        "two_against_one": _median(_wall(a) / _wall(b) for a, b in zip(one, two, strict=True)),
        "machine": _median(machine),
    }


def _median(values: Any) -> float:
    return statistics.median(values)


def _work(run: tuple[Tree, Tree]) -> float:
    return max(run[1].cpu - run[0].cpu, 1e-3)  # of a test's sizes the difference may be nothing


def _wall(run: tuple[Tree, Tree]) -> float:
    return max(run[1].wall - run[0].wall, 1e-3)


def _median_row(runs: Sequence[tuple[Tree, Tree]], size: int) -> dict[str, Any]:
    peaks: dict[str, int] = {}
    for _, whole in runs:
        for kind, peak in whole.peak_bytes.items():
            peaks[kind] = max(peaks.get(kind, 0), peak)
    return {
        "cpu": _median(whole.cpu for _, whole in runs),
        "start_cpu": _median(start.cpu for start, _ in runs),
        "wall": _median(whole.wall for _, whole in runs),
        "start_wall": _median(start.wall for start, _ in runs),
        "rate": size / 1e6 / _median(_work(run) for run in runs),
        "peak_bytes": peaks,
    }


def _build(folder: Path, texts: Sequence[Path], engine: str, options: list[str]) -> Tree:
    config = write_config(folder, texts)
    # A Ray of the build's own, whatever cluster this shell belongs to.
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment[ENGINE_VARIABLE] = engine
    with tempfile.TemporaryDirectory(dir=folder) as output:
        command = [sys.executable, "-m", "pipeline.build_corpus", "--config", str(config)]
        return measure_tree(
            [*command, "--output", f"{output}/corpus", *options], environment, folder / "way.log"
        )


def _two_processes(folder: Path, texts: Sequence[Path], engine: str) -> float:
    """How many times as fast two processes tokenise two halves of the texts as one does both."""
    spawn = multiprocessing.get_context("spawn")
    walls = []
    for count in (1, 2):
        barrier = spawn.Barrier(count)
        parts = [texts[first::count] for first in range(count)]
        with ProcessPoolExecutor(count, mp_context=spawn, initializer=_meet, initargs=(barrier,)) as pool:
            times = list(pool.map(_tokenise, [folder] * count, parts, [engine] * count))
        walls.append(max(end for _, end in times) - min(start for start, _ in times))
    return walls[0] / walls[1]


def _meet(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _tokenise(folder: Path, texts: Sequence[Path], engine: str) -> tuple[float, float]:
    tokenizer = load_tokenizer(folder / "tokenizer", engine)
    documents = [text for file in texts for text in read_texts(file)]
    _barrier.wait()
    start = time.perf_counter()
    for first in range(0, len(documents), 100):
        tokenizer.encode(documents[first : first + 100])
    return start, time.perf_counter()  # of a clock that all processes share
