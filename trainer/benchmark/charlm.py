"""Measures the character model: its step beside other attention in its place, memory, evaluation, generation.

    python -m trainer.benchmark.charlm                        # everything: half an hour
    python -m trainer.benchmark.charlm --quick                # everything, at sizes that say nothing about speed
    python -m trainer.benchmark.charlm --sections step --precision bf16 --layers 12

step        Forward and backward on one sequence of random characters, at the small model's width, from the same
            weights, without dropout. First the logits of dense attention under the window's mask and of local-attention
            must be ours; then every round takes one step by each method, each in a process of its own. The layers
            are the bottom one, the top one and some between, with the lookback that charlm_small.yaml has in the
            paper's third phase, which has this length: 64 to 1,024. fp32, and bf16 as in training: bf16 in the products
            with weights, float32 in attention. The bound is the time of our step's products at the rates reached in the
            same rounds by torch.mm on large matrices in that precision and, for attention, by oneDNN's brgemm on tiles
            in cache. Peak memory is the rise of the resident set above the weights.
memory      Our step's peak at this length and at twice as many characters, looking as far back.
evaluation  Windows of the paper's evaluation: 32,256 characters, the last 512 scored, all 12 layers with the lookback
            (256 to 4,096) and the dilation of the last phase. The whole text's time is extrapolated.
generation  A character after 1,000, 4,000 and 16,000 others, by the cache of the windows and by the whole forward pass:
            all 12 layers with the lookback (16 to 256) and dilation of the first phase.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attention.benchmark.measure import benchmark_parser, conditions, megabytes, positive, print_table
from trainer.batches.character_evaluation import SEQUENCE_LENGTH, STEP
from trainer.benchmark.alone import Alone
from trainer.benchmark.charlm_evaluation import TEXT, Evaluation, measure_evaluation
from trainer.benchmark.charlm_generation import measure_generation
from trainer.benchmark.charlm_step import (
    DENSE,
    LOCAL,
    OURS,
    SAME_LOGITS,
    CharacterStep,
    Setting,
    logits_apart,
    measure_character_steps,
)
from trainer.benchmark.targets import Target, tell
from trainer.engine.character_config import CharacterTraining
from trainer.engine.config import load_config

SECTIONS = ("step", "memory", "evaluation", "generation")
LAYERS = 12  # of the small model
CONFIG = Path(__file__).parents[1] / "configs" / "charlm_small.yaml"
FASTER = {DENSE: 3.0, LOCAL: 1.5}


def small_model(phase: int, layers: int = LAYERS) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lookback in a phase, counted from 1, and dilation, of so many of the small model's layers from bottom to top."""
    config = load_config(CONFIG, [], CharacterTraining)
    chosen = [index * (LAYERS - 1) // max(1, layers - 1) for index in range(layers)]
    lookback, dilation = config.phases[phase - 1].lookback, config.model.dilation
    return tuple(lookback[index] for index in chosen), tuple(dilation[index] for index in chosen)


def step_setting(options: argparse.Namespace) -> Setting:
    if options.quick:
        return Setting(options.tokens, (8, 32), (1, 2), width=32, heads=4)
    return Setting(options.tokens, *small_model(3, options.layers))


def about(setting: Setting, what: str) -> str:
    return (
        f"{what}: {len(setting.lookback)} of {LAYERS} layers, width {setting.width}, {setting.heads} heads, "
        f"no dropout; lookback {' '.join(map(str, setting.lookback))}, "
        f"where dilated {' '.join(map(str, setting.dilation))} on two heads"
    )


# step


def measure_step_section(options: argparse.Namespace) -> tuple[dict[str, Any], list[Target]]:
    setting = step_setting(options)
    what = f"step, forward and backward on a sequence of {setting.tokens:,} characters"
    print(about(setting, what))
    found: dict[str, Any] = {"about": about(setting, what), "logits": logits_apart(setting)}
    for name, apart in found["logits"].items():
        verdict = "the same function" if apart <= SAME_LOGITS else "another function"
        print(f"{name}: logits {apart:.0e} of their deviation from ours, {verdict}")
    targets = []
    for precision in options.precision:
        measured = measure_character_steps(
            replace(setting, precision=precision), options.rounds, options.threads
        )
        found[precision] = measured
        print_steps(precision, measured)
        rows = {row["method"]: row for row in measured["rows"]}
        targets += [
            Target(f"step, {precision}: {name} over ours", rows[name]["ratio"], faster)
            for name, faster in FASTER.items()
        ]
    return found, targets


def print_steps(precision: str, measured: dict[str, Any]) -> None:
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in measured["rates"].items())
    flops = ", ".join(f"{name} {count / 1e9:,.0f}" for name, count in measured["flops"].items())
    print(f"\n{precision}: GFLOP a step of ours: {flops}; {rates}\nbound: {measured['bound']}")
    cells = [
        [
            row["method"],
            f"{row['median']:,.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['of_bound']:.0%}",
            megabytes(row["peak_bytes"]),
            f"{row['losses'][-1]:.5f}",
        ]
        for row in measured["rows"]
    ]
    print_table(["method", "s a step", "characters/s", "ratio", "of bound", "peak MB", "loss"], cells)
    print(f"the losses of one function {'agree' if measured['agree'] else 'DO NOT agree'}")


# memory


def measure_memory_section(options: argparse.Namespace) -> tuple[dict[str, Any], list[Target]]:
    setting = step_setting(options)
    rows = []
    for tokens in (setting.tokens, 2 * setting.tokens):
        step = partial(CharacterStep, OURS, replace(setting, tokens=tokens))
        with Alone(step, options.threads) as alone:
            rows.append({"tokens": tokens, "peak_bytes": alone.peak_bytes})
    print("\n== memory: a step of ours, fp32 ==")
    print_table(["characters", "peak MB"], [[f"{x['tokens']:,}", megabytes(x["peak_bytes"])] for x in rows])
    one, two = (row["peak_bytes"] for row in rows)
    if not one or not two:
        return {"rows": rows}, []
    name = f"peak memory: {rows[1]['tokens']:,} over {rows[0]['tokens']:,} characters"
    return {"rows": rows}, [Target(name, two / one, 2.1, at_least=False)]


# evaluation


def measure_evaluation_section(options: argparse.Namespace) -> tuple[dict[str, Any], list[Target]]:
    setting = Setting(SEQUENCE_LENGTH, *small_model(5))
    evaluation = Evaluation(setting, STEP, options.windows)
    if options.quick:
        evaluation = Evaluation(replace(step_setting(options), tokens=options.tokens), 16, 2)
    print(
        f"\n== {about(evaluation.setting, f'evaluation at {evaluation.setting.tokens:,}, dilated, fp32')} =="
    )
    found = measure_evaluation(evaluation, options.threads)
    print(
        f"{evaluation.windows} windows, the last {evaluation.step} characters scored: {found['median']:.2f} s each, "
        f"peak of the process {megabytes(found['peak_bytes'])} MB\n"
        f"extrapolated, not run: {found['windows_of_text']:,} windows of {TEXT / 1e6:g} MB of text take "
        f"{found['extrapolated'] / 3600:,.1f} hours"
    )
    if not found["peak_bytes"]:
        return found, []
    return found, [Target("evaluation: peak", found["peak_bytes"] / 1e9, 3, at_least=False, unit=" GB")]


# generation


def measure_generation_section(options: argparse.Namespace) -> tuple[dict[str, Any], list[Target]]:
    setting, before = Setting(1, *small_model(1)), [1000, 4000, 16_000]
    if options.quick:
        setting, before = step_setting(options), [100, 200]
    print(f"\n== {about(setting, 'generation, dilated, fp32')} ==")
    rows = measure_generation(setting, before, options.rounds, options.threads)
    cells = [
        [
            f"{row['before']:,}",
            f"{row['median'] * 1e3:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['whole_forward'] * 1e3:,.0f}",
            megabytes(row["cache_bytes"]),
        ]
        for row in rows
    ]
    print_table(["characters before", "ms each", "ratio", "whole forward ms", "cache MB"], cells)
    name = f"a character after {before[-1]:,} over one after {before[0]:,} others"
    return {"rows": rows}, [Target(name, rows[-1]["ratio"], 1.1, at_least=False)]


# The command.


def make_parser() -> argparse.ArgumentParser:
    parser = benchmark_parser("trainer.benchmark.charlm", __doc__ or "", window=False)
    has_bf16 = torch.cpu.get_capabilities().get("avx512_bf16", False)
    precisions = ["fp32", "bf16"] if has_bf16 else ["fp32"]
    add = parser.add_argument
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="(default all)")
    add("--quick", action="store_true", help="tiny sizes and 2 rounds, to see it run")
    add("--precision", nargs="+", choices=["fp32", "bf16"], default=precisions, help="of step (default both)")
    add("--layers", type=positive, default=3, help=f"of the small model's {LAYERS} in step (default 3)")
    add("--tokens", type=positive, default=8192, help="of a sequence (default 8192)")
    add("--windows", type=positive, default=10, help="of evaluation (default 10)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    if options.quick:
        options.tokens, options.layers = 128, 2
        options.rounds = min(options.rounds, 2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a section takes minutes, in a log as well
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {"conditions": conditions(options.rounds, options.threads)}
    print(f"{found['conditions']}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}\n")
    sections = {
        "step": measure_step_section,
        "memory": measure_memory_section,
        "evaluation": measure_evaluation_section,
        "generation": measure_generation_section,
    }
    targets: list[Target] = []
    for name in options.sections:
        found[name], more = sections[name](options)
        targets.extend(more)
    tell(targets, found, options.json)
    steps = found.get("step", {})
    return 0 if all(steps[precision]["agree"] for precision in ("fp32", "bf16") if precision in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
