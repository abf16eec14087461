"""Measures a finetuning step beside transformers' Longformer models for classification and question answering.

    python -m trainer.benchmark.finetuning                    # both, in fp32: a quarter of an hour
    python -m trainer.benchmark.finetuning --quick            # everything, at sizes that say nothing about speed
    python -m trainer.benchmark.finetuning --sections classification --tokens 4096 --precision fp32 bf16

classification  `<s>` is global and read by the head: against LongformerForSequenceClassification.
answering       `<s>` and a question of 16 tokens with it are global, every token is read, the answer occurs once:
                against LongformerForQuestionAnswering, which is given the global tokens and not left to find them by
                separators, of which random tokens have none.

A step is forward, loss, backward and AdamW on one example of random tokens, at the base model's width, from the same
weights. First the logits without dropout must agree. Then every round takes one step by each, each in a process of its
own, and without dropout (the default) their losses must agree. One length is no multiple of the window, which
transformers' model pads its input to. fp32, or bf16 by autocast on both sides. The bound is the time of our step's
matrix products at the rate that torch.mm reaches on large matrices in the same rounds: what transformers' time is of
it, turned over, is the most that a step of these products could win.

The default allocator gives large allocations back to the system at once, which ours prevents as every training on CPU
does; tuned (MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=34359738368) both keep them.
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
from trainer.benchmark.finetuning_step import (
    KINDS,
    PEER,
    QUESTION,
    SAME_LOGITS,
    logits_apart,
    measure_finetuning_steps,
)
from trainer.benchmark.step import Setting
from trainer.benchmark.targets import Target, tell

FASTER = 3.0  # than transformers


def measure_section(
    name: str, tokens: int, options: argparse.Namespace
) -> tuple[dict[str, Any], list[Target]]:
    setting = Setting(options.layers, tokens, options.window, options.vocabulary, options.dropout)
    config = setting.config()
    about = (
        f"{name}, {setting.layers} layers of the base model's 12, width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, window {setting.window}, vocabulary {setting.vocabulary:,}, "
        f"1 example of {tokens:,} tokens, dropout {setting.dropout} in both"
    )
    apart = logits_apart(name, setting)
    verdict = "agree" if apart <= SAME_LOGITS else "DO NOT agree"
    print(f"\n== {about} ==\nlogits: {apart:.0e} of the greatest apart, they {verdict}")
    found: dict[str, Any] = {"about": about, "logits": apart, "agree": apart <= SAME_LOGITS, "steps": []}
    targets = []
    for precision in options.precision:
        for allocator in options.allocator:
            measured = measure_finetuning_steps(
                name, setting, precision, options.rounds, options.threads, ALLOCATORS[allocator]
            )
            found["steps"].append({"precision": precision, "allocator": allocator} | measured)
            print_steps(f"{precision}, {allocator} allocator", measured, bool(options.dropout))
            found["agree"] &= measured["agree"] or bool(options.dropout)
            [ratio] = [row["ratio"] for row in measured["rows"] if row["method"] == PEER]
            case = f"{name}, {tokens:,} tokens, {precision}, {allocator} allocator"
            targets.append(Target(f"{case}: transformers over ours", ratio, FASTER))
    return found, targets


def print_steps(case: str, measured: dict[str, Any], dropout: bool) -> None:
    print(
        f"\n{case}: {measured['flops'] / 1e9:,.0f} GFLOP a step of ours, torch.mm "
        f"{measured['rate'] / 1e9:,.0f} GFLOP/s: {measured['bound']:.2f} s at least"
    )
    cells = [
        [
            row["method"],
            f"{row['median']:,.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['of_bound']:.0%}",
            megabytes(row["peak_bytes"]),
            f"{row['losses'][0]:.5f}",
            f"{row['losses'][-1]:.5f}",
        ]
        for row in measured["rows"]
    ]
    print_table(
        ["method", "s a step", "tokens/s", "ratio", "of bound", "peak MB", "first loss", "last loss"], cells
    )
    if not dropout:
        print(f"the losses {'agree' if measured['agree'] else 'DO NOT agree'}")


def make_parser() -> argparse.ArgumentParser:
    parser = benchmark_parser("trainer.benchmark.finetuning", __doc__ or "")
    add = parser.add_argument
    add("--sections", nargs="+", choices=KINDS, default=list(KINDS), help="(default both)")
    add("--quick", action="store_true", help="tiny sizes and 2 rounds, to see it run")
    add("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"], help="(default fp32)")
    add("--allocator", nargs="+", choices=ALLOCATORS, default=list(ALLOCATORS), help="(default both)")
    add("--layers", type=positive, default=2, help="of the base model's 12 (default 2)")
    add("--tokens", type=positive, nargs="+", default=[4096, 3000], help="of an example (default 4096 3000)")
    add("--vocabulary", type=positive, default=50265, help="entries (default 50265, RoBERTa's)")
    add("--dropout", type=float, default=0.0, help="everywhere (default 0; RoBERTa's is 0.1)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.quick:
        options.layers, options.tokens, options.window, options.vocabulary = 2, [100], 16, 600
        options.rounds = min(options.rounds, 2)
    if options.window % 2:
        parser.error("expected an even --window: transformers' Longformer needs that")
    if min(options.tokens) <= 2 * QUESTION:
        parser.error(f"expected --tokens above {2 * QUESTION}: a question and its answer")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a section takes minutes, in a log as well
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"conditions": conditions(options.rounds, options.threads), "sections": []}
    print(f"{found['conditions']}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    targets: list[Target] = []
    for name in options.sections:
        for tokens in options.tokens:
            section, more = measure_section(name, tokens, options)
            found["sections"].append(section)
            targets.extend(more)
    tell(targets, found, options.json)
    return 0 if all(section["agree"] for section in found["sections"]) else 1


if __name__ == "__main__":
    sys.exit(main())
