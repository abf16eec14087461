"""Measures transformers' Longformer and LED encoders before and after `attention.huggingface.accelerate`.

    python -m trainer.benchmark.huggingface                   # both, in fp32: three quarters of an hour, 11 GB
    python -m trainer.benchmark.huggingface --quick           # everything, at sizes that say nothing about speed
    python -m trainer.benchmark.huggingface --sections longformer --modes inference --tokens 4096 --precision bf16

longformer  the base model's width, window 512, at 4,096 tokens, 512 and 300; the last transformers pads to 512.
led         the encoder of LED's base model, window 1,024, at 16,384 tokens.

Inference is a forward pass, training a step with AdamW, without dropout: first the hidden states must agree, then, in
every round, the losses. Each method is a process of its own. The bound is the time that the products of the accelerated
model take at the fastest rate of the same rounds, torch.mm's on large matrices or brgemm's on tiles in cache. Most of
them are in linear layers, which are transformers' on both sides: the time of the model as it is, over the bound, is the
most that can be won.

The default allocator gives large allocations back to the system at once; tuned (MALLOC_MMAP_MAX_=0
MALLOC_TRIM_THRESHOLD_=34359738368) it keeps them. Both sides have the same one.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch

from attention.benchmark.__main__ import ALLOCATORS
from attention.benchmark.measure import benchmark_parser, conditions, megabytes, positive, print_table
from trainer.benchmark.huggingface_step import (
    FAMILIES,
    MODES,
    PEER,
    SAME_STATES,
    Encoder,
    measure_encoder,
    states_apart,
)
from trainer.benchmark.targets import Target, tell

TOKENS = {"longformer": [4096, 512, 300], "led": [16384]}
WINDOWS = {"longformer": 512, "led": 1024}
FASTER = {
    ("longformer", "training", 4096): 2.5,
    ("longformer", "inference", 4096): 3.0,
    ("led", "training", 16384): 3.0,
    ("led", "inference", 16384): 3.0,
}
"""Than the model as it is; elsewhere not slower."""
SMALLER = {("longformer", 4096): 2.0, ("led", 16384): 3.0}
"""In memory."""


def measure_length(
    family: str, tokens: int, options: argparse.Namespace
) -> tuple[dict[str, Any], list[Target]]:
    window = options.window or WINDOWS[family]
    encoder = Encoder(options.layers, tokens, window, options.vocabulary, dropout=0.0, family=family)
    config = encoder.config()
    about = (
        f"{family}, {encoder.layers} layers, width {config.hidden_size}, {config.num_attention_heads} heads, window "
        f"{encoder.window}, vocabulary {encoder.vocabulary:,}, 1 text of {tokens:,} tokens, the first of them global"
    )
    apart = states_apart(encoder)
    verdict = "agree" if apart <= SAME_STATES else "DO NOT agree"
    print(f"\n== {about} ==\nhidden states: {apart:.0e} of the greatest apart, they {verdict}")
    found: dict[str, Any] = {"about": about, "states": apart, "agree": apart <= SAME_STATES, "steps": []}
    targets = []
    for mode in options.modes:
        for precision in options.precision:
            for allocator in options.allocator:
                case = {"mode": mode, "precision": precision, "allocator": allocator}
                measured = measure_encoder(
                    encoder, mode, precision, options.rounds, options.threads, ALLOCATORS[allocator]
                )
                found["steps"].append(case | measured)
                print_steps(f"{mode}, {precision}, {allocator} allocator", measured)
                found["agree"] &= measured["agree"]
                targets += targets_of(family, tokens, case, measured)
    return found, targets


def targets_of(family: str, tokens: int, case: dict[str, str], measured: dict[str, Any]) -> list[Target]:
    ours, theirs = measured["rows"]
    assert theirs["method"] == PEER
    name = f"{family}, {tokens:,} tokens, {case['mode']}, {case['precision']}, {case['allocator']} allocator"
    faster = FASTER.get((family, case["mode"], tokens), 1.0)
    targets = [Target(f"{name}: time", theirs["ratio"], faster)]
    smaller = SMALLER.get((family, tokens))
    if smaller and ours["peak_bytes"] and theirs["peak_bytes"]:
        targets.append(Target(f"{name}: memory", theirs["peak_bytes"] / ours["peak_bytes"], smaller))
    return targets


def print_steps(case: str, measured: dict[str, Any]) -> None:
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in measured["rates"].items())
    theirs = measured["rows"][1]["median"]
    print(
        f"\n{case}: {measured['flops'] / 1e9:,.0f} GFLOP, {rates}: {measured['bound']:.3f} s at least, "
        f"{theirs / measured['bound']:.2f} × at the most"
    )
    cells = [
        [
            row["method"],
            f"{row['median']:,.3f}",
            f"{row['ratio']:.2f}",
            f"{row['of_bound']:.0%}",
            megabytes(row["peak_bytes"]),
            f"{row['losses'][0]:.5f}",
            f"{row['losses'][-1]:.5f}",
        ]
        for row in measured["rows"]
    ]
    print_table(["method", "s", "ratio", "of bound", "peak MB", "first loss", "last loss"], cells)
    print(f"the losses {'agree' if measured['agree'] else 'DO NOT agree'}")


def make_parser() -> argparse.ArgumentParser:
    parser = benchmark_parser("trainer.benchmark.huggingface", __doc__ or "")
    parser.set_defaults(window=None)
    add = parser.add_argument
    add("--sections", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="(default both)")
    add("--modes", nargs="+", choices=MODES, default=list(MODES), help="(default both)")
    add("--quick", action="store_true", help="tiny sizes and 2 rounds, to see it run")
    add("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"], help="(default fp32)")
    add("--allocator", nargs="+", choices=ALLOCATORS, default=list(ALLOCATORS), help="(default both)")
    add("--layers", type=positive, default=2, help="of the base models' 12 and 6 (default 2)")
    add("--tokens", type=positive, nargs="+", help="of a text (default 4096 512 300; LED 16384)")
    add("--vocabulary", type=positive, default=50265, help="entries (default 50265, RoBERTa's)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.quick:
        options.layers, options.tokens, options.window, options.vocabulary = 2, [100], 16, 600
        options.rounds = min(options.rounds, 2)
    if options.window is not None and options.window % 2:
        parser.error("expected an even --window: transformers' models need that")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a section takes minutes, in a log as well
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"conditions": conditions(options.rounds, options.threads), "sections": []}
    print(f"{found['conditions']}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    targets: list[Target] = []
    for family in options.sections:
        for tokens in options.tokens or TOKENS[family]:
            section, more = measure_length(family, tokens, options)
            found["sections"].append(section)
            targets.extend(more)
    tell(targets, found, options.json)
    return 0 if all(section["agree"] for section in found["sections"]) else 1


if __name__ == "__main__":
    sys.exit(main())
