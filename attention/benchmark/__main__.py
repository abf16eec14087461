"""Times windowed attention beside what one would use instead: the paper's figure 1 for this machine, and our targets.

    python -m attention.benchmark                                      # everything, both allocators: some minutes
    python -m attention.benchmark --tokens 1024 4096 --plot figure1.svg
    python -m attention.benchmark --targets --allocator default
    python -m attention.benchmark --device cuda --check --json report.json

Every round runs every method once, so that a busy machine is busy for all of them. Printed are medians over the
rounds, and medians of each round's ratio to our default backend, which is also among the backends named below it:
what the two differ by is noise. The inputs lie in memory as a model's projections leave them: (batch, n, heads,
head_dim), seen as (batch, heads, n, head_dim).

A bound is the time that the useful products take at a rate that the machine reached in the same rounds: torch.mm on
large matrices, and oneDNN's brgemm on tiles in cache. Useful are two products a visible pair of query and key in the
forward pass and five more in the backward pass (scores again, and four gradients), as flash-attention counts them;
not what a method computes of pairs that the window hides.

Peak memory is the rise of the resident set above the inputs: output and gradients are in it. Scratch is what torch's
allocator and our native backends gave out beyond inputs, output and gradients, and its share of these.

glibc gives large allocations back to the system at once, and pages that come back have to be cleared. Methods that
allocate much gain where it keeps them. So there are two sections: the default allocator, and one tuned by
MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=34359738368, in a process of its own.

With --device cuda the clock is CUDA's events, the peers are those that a GPU has, and --check first compares our kernel
with the reference over its whole matrix of features: a report to send in. That path has not run on a GPU here; what it
shares with the CPU's has.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from attention.benchmark.measure import benchmark_parser, conditions, positive, print_table
from attention.benchmark.scaling import Scaling, Setting, plot, print_rows
from attention.benchmark.targets import measure_targets, print_targets
from attention.benchmark.workload import HEAD_DIM, HEADS
from attention.figure import picture_path, save
from attention.files import whole

DEFAULT_TOKENS = {"default": [512, 1024, 4096, 16384], "tuned": [4096]}  # by allocator
ALLOCATORS: dict[str, dict[str, str]] = {
    "default": {},
    "tuned": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "34359738368"},
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_parser() -> argparse.ArgumentParser:
    parser = benchmark_parser("attention.benchmark", __doc__ or "")
    parser.add_argument(
        "--tokens",
        type=positive,
        nargs="+",
        metavar="N",
        help=f"lengths to compare (default {' '.join(map(str, DEFAULT_TOKENS['default']))}, under the tuned allocator "
        f"{DEFAULT_TOKENS['tuned'][0]} alone; none where --targets stands alone)",
    )
    parser.add_argument(
        "--targets", action="store_true", help="measure our targets (the default where no --tokens are given)"
    )
    parser.add_argument(
        "--allocator",
        nargs="+",
        choices=ALLOCATORS,
        default=list(ALLOCATORS),
        help="(default both, on a CPU)",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="(default float32; on a GPU bfloat16)")
    parser.add_argument(
        "--limit",
        type=positive,
        default=4,
        metavar="S",
        help="leave a method out where a run takes longer (default 4)",
    )
    parser.add_argument(
        "--plot", type=picture_path, metavar="FILE", help="draw time and memory, .png or .svg"
    )
    parser.add_argument("--check", action="store_true", help="with --device cuda: check the kernel first")
    return parser


def problem(options: argparse.Namespace) -> str | None:
    """What is wrong with the options, in a line."""
    lengths = options.tokens or []
    if options.window % 2 or any(tokens % options.window for tokens in lengths):
        return "expected an even --window and --tokens that are multiples of it: sliding chunks need that"
    if options.device == "cpu" and options.check:
        return "--check: found --device cpu, expected --device cuda: it checks the kernel for GPUs"
    if options.device == "cuda" and options.targets:
        return "--targets: found --device cuda, expected --device cpu: they are set for CPUs"
    if options.plot and options.targets and not lengths:
        return "--plot: found --targets alone, expected --tokens as well: the plot is of lengths"
    if options.device == "cuda" and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        return (
            f"--device cuda: found no GPU (torch {torch.__version__}, {built}; torch.cuda.is_available() is False), "
            "expected an NVIDIA GPU with its driver, and torch's CUDA build"
        )
    return None


# A section: everything under one allocator, in one process.


def measure_section(options: argparse.Namespace, allocator: str, lengths: Sequence[int]) -> dict[str, Any]:
    """Measure and print; what the JSON holds of it."""
    device = torch.device(options.device)
    dtype = DTYPES[options.dtype or ("float32" if device.type == "cpu" else "bfloat16")]
    torch.set_num_threads(options.threads)
    heading = f"{allocator} allocator" if device.type == "cpu" else torch.cuda.get_device_name(device)
    about = conditions(options.rounds, options.threads, device)
    what = f"windowed attention, {HEADS} heads × {HEAD_DIM}, window {options.window}, batch 1, {dtype}"
    print(f"\n== {what}: {heading} ==\n{about}")
    section: dict[str, Any] = {"heading": heading, "conditions": about, "window": options.window}
    section |= {"rows": [], "left_out": [], "targets": []}
    if lengths:
        setting = Setting(options.window, options.rounds, options.threads, device, dtype, options.limit)
        scaling = Scaling(setting)
        if scaling.missing_bound:
            print(scaling.missing_bound)
        for tokens in sorted(lengths):
            rows, left_out = scaling.at(tokens)
            print_rows(rows, left_out)
            section["rows"] += rows
            section["left_out"] += left_out
    if options.targets:
        print(f"\ntargets, {heading}")
        found = measure_targets(allocator, options.rounds)
        print_targets(found)
        section["targets"] = [target.as_dict() for target in found]
    return section


def section_of(options: argparse.Namespace, allocator: str, lengths: Sequence[int]) -> dict[str, Any]:
    """A section in this process where its allocator is set so, else in a child whose environment sets it."""
    wanted = ALLOCATORS[allocator]
    if options.device == "cuda" or {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")} == wanted:
        return measure_section(options, allocator, lengths)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | wanted
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "section.json")
        command = [
            sys.executable,
            "-m",
            "attention.benchmark",
            "--allocator",
            allocator,
            "--json",
            str(found),
        ]
        for name in ("rounds", "threads", "window", "limit", "dtype"):
            if getattr(options, name) is not None:
                command += [f"--{name}", str(getattr(options, name))]
        if lengths:
            command += ["--tokens", *map(str, lengths)]
        command += ["--targets"] * options.targets
        sys.stdout.flush()
        done = subprocess.run(command, env=environment, check=False)
        if done.returncode:
            sys.exit(done.returncode)
        return json.loads(found.read_text(encoding="utf-8"))["sections"][0]


# The report of a GPU.


def versions(device: torch.device) -> dict[str, str]:
    """What a report names: the device, its driver and the libraries."""
    found = {"device": platform.processor() or platform.machine(), "torch": torch.__version__}
    if importlib.util.find_spec("triton"):
        found["triton"] = importlib.import_module("triton").__version__
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        found |= {"device": torch.cuda.get_device_name(device), "capability": f"{major}.{minor}"}
        found |= {"CUDA": str(torch.version.cuda), "driver": _driver()}
    return found


def _driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown (no nvidia-smi)"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout.strip().splitlines() or ["unknown"])[0]


def check_kernel(device: torch.device) -> list[dict[str, Any]]:
    """The kernel's matrix of features against the reference: printed, and as the JSON holds it.

    How far it is goes to stderr, so that stdout is the report.
    """
    check = importlib.import_module("attention.check")
    results = check.run(device, lambda line: print(line, file=sys.stderr, flush=True))
    cells = []
    for result in results:
        shares = [
            error / result.bounds[name] for name, error in result.errors.items() if result.bounds.get(name)
        ]
        cells.append(
            [
                result.name,
                result.dtype,
                str(result.head_dim),
                f"{max(shares):.0%}" if shares else "-",
                "passed" if result.passed else f"FAILED: {result.message}",
            ]
        )
    print_table(["check", "dtype", "head_dim", "worst error of its bound", "result"], cells)
    passed = sum(result.passed for result in results)
    print(f"{passed} of {len(results)} checks passed")
    return [asdict(result) for result in results]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if message := problem(options):
        parser.error(message)
    everything = not options.tokens and not options.targets
    options.targets = options.targets or (everything and options.device == "cpu")
    device = torch.device(options.device)
    report: dict[str, Any] = {"versions": versions(device), "checks": [], "sections": []}
    if options.device == "cuda":
        print(", ".join(f"{name} {value}" for name, value in report["versions"].items()))
    if options.check:
        report["checks"] = check_kernel(device)
    allocators = options.allocator if options.device == "cpu" else options.allocator[:1]
    for allocator in allocators:
        lengths = DEFAULT_TOKENS[allocator] if everything else options.tokens or []
        fitting = [tokens for tokens in lengths if tokens % options.window == 0]
        report["sections"].append(section_of(options, allocator, fitting))
    if options.json:
        with whole(options.json) as beside:
            beside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        # A single length makes no line.
        several = [
            section for section in report["sections"] if len({row["tokens"] for row in section["rows"]}) > 1
        ]
        save(plot(several or report["sections"]), options.plot)
        print(f"\nwrote {options.plot}")
    return 0 if all(check["passed"] for check in report["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
