"""Measures a training step beside transformers' LongformerForMaskedLM, and what else a run's time goes to.

    python -m trainer.benchmark                                # everything: a quarter of an hour
    python -m trainer.benchmark --quick                        # everything, at sizes that say nothing about speed
    python -m trainer.benchmark --sections step --layers 12

step        Forward, backward and AdamW in float32 on one masked sequence of random tokens, at the base model's width,
            from the same weights: the losses must agree. Dropout is off, so that they can, unless --dropout turns it
            on. Every round takes one step by each method, each in a process of its own; the bounds are the time that
            our step's matrix products take at the rates that torch.mm on large matrices, and oneDNN's brgemm on tiles
            in cache, reach in the same rounds. Peak memory is the rise of the resident set above weights and moments.
            glibc gives large allocations back to the system at once, and pages that come back have to be cleared:
            once under the default allocator, of which ours keeps what it frees, as every training on CPU does, and once
            all tuned by MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=34359738368.
data        What one thread of a rank makes of the shards: tokens a second in masked micro-batches, against what the
            step takes of them, and against what a GPU could take by arithmetic.
start       From the end of a run's imports to the end of its first step: a tiny model, launched on two processes.
checkpoint  Saving the base model's weights and moments, against writing as many bytes to the same file system.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attention.benchmark.__main__ import ALLOCATORS
from attention.benchmark.measure import benchmark_parser, conditions, megabytes, positive, print_table
from trainer.benchmark.checkpoint import measure_checkpoint
from trainer.benchmark.corpus import build_corpus
from trainer.benchmark.data import APART, measure_data
from trainer.benchmark.start import measure_start, write_config
from trainer.benchmark.step import METHODS, OURS, PEER, Setting, measure_steps
from trainer.benchmark.targets import Target, tell
from trainer.engine.flops import step_flops

SECTIONS = ("step", "data", "start", "checkpoint")
FASTER = {"default": 4.5, "tuned": 3.0}  # than transformers, by allocator
GPU_FLOPS, GPU_SHARE = 989e12, 0.5
"""What an H100 multiplies at most in bf16, and the share of it that a very good run reaches."""


# step


def measure_step_section(options: argparse.Namespace) -> tuple[dict[str, Any], list[Target]]:
    setting = Setting(options.layers, options.tokens, options.window, options.vocabulary, options.dropout)
    config = setting.config()
    about = (
        f"masked-language-model step, {setting.layers} layers of the base model's 12, width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, window {setting.window}, vocabulary {setting.vocabulary:,}, "
        f"1 sequence of {setting.tokens:,} tokens, float32, dropout {setting.dropout}"
    )
    print(about)
    found: dict[str, Any] = {"about": about, "allocators": {}}
    targets = []
    for allocator in options.allocator:
        measured = measure_steps(
            setting, options.rounds, options.threads, ALLOCATORS[allocator], list(METHODS)
        )
        found["allocators"][allocator] = measured
        print_steps(allocator, measured)
        rows = {row["method"]: row for row in measured["rows"]}
        targets.append(
            Target(
                f"step, {allocator} allocator: transformers over ours", rows[PEER]["ratio"], FASTER[allocator]
            )
        )
        if allocator == "default" and rows[OURS]["peak_bytes"]:
            peaks = rows[PEER]["peak_bytes"] / rows[OURS]["peak_bytes"]
            targets.append(Target("peak memory: transformers over ours", peaks, 3.5))
    return found, targets


def print_steps(allocator: str, measured: dict[str, Any]) -> None:
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in measured["rates"].items())
    settings = " ".join(f"{name}={value}" for name, value in ALLOCATORS[allocator].items())
    print(f"\n{allocator} allocator {settings}".rstrip())
    print(
        f"{measured['flops'] / 1e9:,.0f} GFLOP a step of ours, {measured['places']:,} masked places; {rates}"
    )
    cells = [
        [
            row["method"],
            f"{row['median']:,.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['ratio']:.2f}",
            *(f"{share:.0%}" for share in row["of_bound"].values()),
            megabytes(row["peak_bytes"]),
            f"{row['losses'][0]:.5f}",
            f"{row['losses'][-1]:.5f}",
        ]
        for row in measured["rows"]
    ]
    bounds = [f"of {name}" for name in measured["rates"]]
    print_table(
        ["method", "s a step", "tokens/s", "ratio", *bounds, "peak MB", "first loss", "last loss"], cells
    )
    print(f"the losses {'agree' if measured['agree'] else 'DO NOT agree'}")


# data


def measure_data_section(
    options: argparse.Namespace, folder: Path, corpus: Path, step: dict[str, Any] | None
) -> tuple[dict[str, Any], list[Target]]:
    rows = measure_data(
        write_config(folder, corpus, options.tokens), 8 if options.quick else 200, options.rounds
    )
    print(f"\n== data: sequences of {options.tokens:,} tokens, one thread ==")
    cells = [[row["part"], f"{row['tokens_per_second'] / 1e6:,.1f}"] for row in rows]
    print_table(["part", "million tokens/s"], cells)
    base = Setting(12, 4096, 512, 50265, 0.0).config()
    places = round(0.15 * (4096 - 2))
    gpu = GPU_FLOPS * GPU_SHARE / step_flops(base, 4096, places) * 4096
    [feeds] = [row["tokens_per_second"] for row in rows if row["part"] == APART]
    print(
        f"by arithmetic, not measured: a GPU that multiplies {GPU_FLOPS / 1e12:,.0f} TFLOP/s in bf16 at most, and in "
        f"training {GPU_SHARE:.0%} of that,\ntakes {gpu / 1e6:.2f} million tokens/s of the whole base model: a rank's "
        f"one thread makes {feeds / gpu:.0f} times as many"
    )
    targets = []
    if step:
        fastest = max(found["rows"][0]["tokens_per_second"] for found in step["allocators"].values())
        targets.append(Target("data path over what the step takes, documents apart", feeds / fastest, 20))
    return {"rows": rows, "gpu_tokens_per_second": gpu}, targets


# start, checkpoint


def measure_start_section(
    options: argparse.Namespace, folder: Path, corpus: Path
) -> tuple[dict[str, Any], list[Target]]:
    print("\n== start: two processes under the launcher, a tiny model ==")
    found = []
    for number in range(1 if options.quick else min(options.rounds, 3)):
        own = folder / f"start{number}"
        own.mkdir()
        found.append(measure_start(write_config(own, corpus, min(options.tokens, 512))))
        print(
            f"imports {found[-1]['imports']:.1f} s, then {found[-1]['first_step']:.2f} s to the first step's end"
        )
        shutil.rmtree(own)
    median = statistics.median(row["first_step"] for row in found)
    return {"rows": found}, [
        Target("start: imports to the first step's end", median, 3, at_least=False, unit=" s")
    ]


def measure_checkpoint_section(
    options: argparse.Namespace, folder: Path
) -> tuple[dict[str, Any], list[Target]]:
    # The whole base model whatever --layers says.
    config = Setting(
        options.layers if options.quick else 12, options.tokens, options.window, options.vocabulary, 0
    )
    found = measure_checkpoint(folder, config.config(), options.rounds)
    size = found["bytes"]
    print(f"\n== checkpoint: {size / 1e6:,.0f} MB of weights and moments ==")
    cells = [
        [row["method"], f"{row['wall']:.2f}", f"{row['cpu']:.2f}", f"{size / 1e6 / row['wall']:,.0f}"]
        for row in found["rows"]
    ]
    print_table(["", "wall s", "cpu s", "MB/s"], cells)
    return found, [Target("a save over a write of its bytes", found["ratio"], 3, at_least=False)]


# The command.


def make_parser() -> argparse.ArgumentParser:
    parser = benchmark_parser("trainer.benchmark", __doc__ or "")
    add = parser.add_argument
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="(default all)")
    add("--quick", action="store_true", help="tiny sizes and 2 rounds, to see it run")
    add("--allocator", nargs="+", choices=ALLOCATORS, default=list(ALLOCATORS), help="of step (default both)")
    add("--layers", type=positive, default=2, help="of the base model's 12 in step (default 2)")
    add("--tokens", type=positive, default=4096, help="of a sequence (default 4096)")
    add("--vocabulary", type=positive, default=50265, help="entries (default 50265, RoBERTa's)")
    add("--dropout", type=float, default=0.0, help="everywhere (default 0; RoBERTa's is 0.1)")
    add("--folder", type=Path, help="where files are written (default the system's temporary one)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.window % 2:
        parser.error("expected an even --window: transformers' Longformer needs that")
    if options.quick:
        options.layers, options.tokens, options.window, options.vocabulary = 2, 128, 16, 600
        options.rounds = min(options.rounds, 2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a section takes minutes, in a log as well
    found: dict[str, Any] = {"conditions": conditions(options.rounds, options.threads)}
    print(f"{found['conditions']}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}\n")
    targets: list[Target] = []

    def keep(name: str, section: tuple[dict[str, Any], list[Target]]) -> None:
        found[name], more = section
        targets.extend(more)

    with tempfile.TemporaryDirectory(prefix="longspan-benchmark-", dir=options.folder) as temporary:
        folder = Path(temporary)
        if "step" in options.sections:
            keep("step", measure_step_section(options))
        if {"data", "start"} & set(options.sections):
            corpus = build_corpus(folder, 20 if options.quick else 200, options.tokens)
        if "data" in options.sections:
            keep("data", measure_data_section(options, folder, corpus, found.get("step")))
        if "start" in options.sections:
            keep("start", measure_start_section(options, folder, corpus))
        if "checkpoint" in options.sections:
            keep("checkpoint", measure_checkpoint_section(options, folder))
    tell(targets, found, options.json)
    agree = [section["agree"] for section in found.get("step", {}).get("allocators", {}).values()]
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main())
