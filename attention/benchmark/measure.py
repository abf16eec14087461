"""How a benchmark measures: clocks, interleaved rounds, memory, and how it tells.

Every round runs every method once, so that a machine which is busy for a while is busy for all of them. Reported are
medians over the rounds, and medians of each round's ratios.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.profiler import ProfilerActivity, profile

from attention.benchmark.rates import Product, large_product
from attention.files import writable_path

Run = Callable[[], object]
Clock = Callable[[Run], float]  # the seconds that a run takes
CPU = torch.device("cpu")


# Time.


def cpu_seconds(run: Run) -> float:
    """Of all threads together, and of this process alone: what other processes do disturbs it least."""
    start = time.process_time()
    run()
    return time.process_time() - start


def wall_seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cuda_seconds(run: Run) -> float:
    """Between two events in the GPU's queue. Has not run on a GPU here."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def clock_of(threads: int, device: torch.device = CPU) -> Clock:
    """CPU time for one thread, wall time for more, events on a GPU."""
    if device.type == "cuda":
        return cuda_seconds
    return cpu_seconds if threads == 1 else wall_seconds


@dataclass
class Measured:
    """One method's seconds in each round, and by how many bytes it raised the resident set, where known."""

    seconds: list[float]
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def ratio(self, ours: Measured) -> float:
        """How many times our time, in the median round."""
        return statistics.median(a / b for a, b in zip(self.seconds, ours.seconds, strict=True))

    def as_dict(self, ours: Measured, bound: float) -> dict[str, Any]:
        """What is reported; `bound` in seconds."""
        return {
            "median": self.median,
            "ratio": self.ratio(ours),
            "of_bound": bound / self.median,
            "peak_bytes": self.peak_bytes,
            "seconds": self.seconds,
        }


def interleave(
    runs: Mapping[str, Run], rounds: int, clock: Clock, products: Mapping[str, Product] | None = None
) -> tuple[dict[str, Measured], dict[str, float]]:
    """Measure each run once a round, and each product's FLOPs a second in the same rounds (the median).

    Without `products` there is one: "torch.mm", on large matrices. Before the rounds each run goes twice: to warm
    up, and for its memory.
    """
    measured = {}
    for name, run in runs.items():
        run()
        measured[name] = Measured([], peak_memory(run))
    return take_rounds(runs, measured, rounds, clock, products)


def take_rounds(
    runs: Mapping[str, Run],
    measured: dict[str, Measured],
    rounds: int,
    clock: Clock,
    products: Mapping[str, Product] | None = None,
) -> tuple[dict[str, Measured], dict[str, float]]:
    """The rounds of `interleave`, for runs that are warm."""
    products = {"torch.mm": large_product()} if products is None else products
    seconds: dict[str, list[float]] = {name: [] for name in products}
    for _ in range(rounds):
        for name, product in products.items():
            seconds[name].append(clock(product.run))
        for name, run in runs.items():
            measured[name].seconds.append(clock(run))
    rates = {name: product.flops / statistics.median(seconds[name]) for name, product in products.items()}
    return measured, rates


# Memory.


def peak_memory(run: Run, device: torch.device = CPU) -> int | None:
    """Bytes by which the resident set rises in `run` (on a GPU: the allocator's bytes).

    None where the kernel has no mark to reset (not Linux).
    """
    if device.type == "cuda":
        return allocated(run, device)
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        run()
        return None
    before = _kilobytes("/proc/self/status", "VmRSS")
    run()
    return _kilobytes("/proc/self/status", "VmHWM") - before


def process_peak() -> int | None:
    """The most bytes of memory that this process has had at once; None where the system does not say."""
    try:
        return _kilobytes("/proc/self/status", "VmHWM")
    except OSError:
        return None


def allocated(run: Run, device: torch.device = CPU) -> int:
    """The most bytes that torch's allocator had given out at once for `run`, what the run returns included.

    Unlike the resident set this does not depend on which pages were there before. On a CPU the profiler counts; what a
    native library allocates by itself is not in it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _silent_stderr():
        profiler.start()
    result = run()
    with _silent_stderr():
        profiler.stop()
    del result  # not before: freeing it is not part of the run
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    live = most = 0
    events: Any = profiler.profiler.kineto_results.events()
    for event in events:
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Without what the profiler's library writes there when it starts and stops, of which Python knows nothing."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def free_memory(device: torch.device = CPU) -> int | None:
    """Bytes that could be allocated now; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        return _kilobytes("/proc/meminfo", "MemAvailable")
    except OSError:
        return None


def _kilobytes(file: str, key: str) -> int:
    """A line `key:  n kB` of one of the kernel's files, in bytes."""
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


# What is told.


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell: the words of the first column to the left, the rest to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())


def megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.0f}"


def conditions(rounds: int, threads: int, device: torch.device = CPU) -> str:
    """How and on what was measured, in one line."""
    kind = "cpu time" if threads == 1 else "wall time"
    machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, threads {threads}"
    if device.type == "cuda":
        kind, machine = "time between CUDA events", torch.cuda.get_device_name(device)
    allocator = [f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith("MALLOC_")]
    return (
        f"median of {rounds} interleaved rounds, {kind}; {machine}; Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
        + "".join(f", {setting}" for setting in allocator)
    )


# The options that benchmarks share.


def positive(text: str) -> int:
    """An option's value."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at least 1")
    return int(text)


def benchmark_parser(name: str, description: str, *, window: bool = True) -> argparse.ArgumentParser:
    """The options that benchmarks share; `window` where one is for all."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=positive, default=5, help="how often each is measured (default 5)")
    parser.add_argument(
        "--threads", type=positive, default=1, help="of torch; 1 measures cpu time (default 1)"
    )
    if window:
        parser.add_argument("--window", type=positive, default=512, help="total width (default 512)")
    parser.add_argument("--json", type=writable_path, metavar="FILE", help="write every figure to FILE")
    return parser
