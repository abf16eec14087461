"""Times windowed attention beside what one would use instead, in one run.

    python -m attention.benchmark --tokens 1024 4096 --rounds 5

Every round runs every method once, so that a busy machine is busy for all of them. Printed are medians over the
rounds, and medians of each round's ratio to our default backend, which is also among the backends named below it:
what the two differ by is noise. The inputs lie in memory as a model's projections leave them: (batch, n, heads,
head_dim), seen as (batch, heads, n, head_dim).

The bound is the time that the useful products take at the rate `torch.mm` reaches on large matrices in the same
rounds. Useful are two products a visible pair in the forward pass and four in the backward pass; neither computing
scores again nor scores that the window hides. Peak memory is the rise of the resident set above the inputs: outputs
and gradients are in it.

glibc gives large allocations back to the system at once, and pages that come back have to be cleared. Methods that
allocate much gain where it keeps them: MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=34359738368 before the command. The
second line of the output names such settings.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from attention import backends, windowed_attention

HEADS, HEAD_DIM = 12, 64  # RoBERTa-base's
LOOP_TOKENS = 256  # above, the reference backend is left out
CHECKED_TOKENS = 8192  # above, the dense reference that results are compared with does not fit
GEMM = 2048
PRODUCTS = {"forward": 2, "forward+backward": 6}  # matrix products a visible pair; 2 * HEAD_DIM FLOPs each
DENSE = "SDPA, dense (no window)"

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def methods(tokens: int, window: int) -> dict[str, Attend]:
    """What is compared, ours first: functions of query, key and value (B, H, N, D)."""
    names = [None, *(name for name in backends() if name != "loop" or tokens <= LOOP_TOKENS)]
    ours: dict[str, Attend] = {
        f"longspan {name or '(default)'}": partial(windowed_attention, window=window, backend=name)
        for name in names
    }
    band = band_mask(tokens, window)
    return ours | {
        "transformers, sliding chunks": sliding_chunks(window),
        "SDPA, band as mask": partial(F.scaled_dot_product_attention, attn_mask=band),
        DENSE: F.scaled_dot_product_attention,
    }


def band_mask(tokens: int, window: int) -> Tensor:
    position = torch.arange(tokens, dtype=torch.int32)
    return (position[:, None] - position).abs_() <= window // 2


def sliding_chunks(window: int) -> Attend:
    """What LongformerSelfAttention does between its projections, without its masks and global tokens."""
    config = transformers.LongformerConfig(
        hidden_size=HEADS * HEAD_DIM, num_attention_heads=HEADS, attention_window=[window]
    )
    module = LongformerSelfAttention(config, layer_id=0)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (B, N, H, D)
        scores = module._sliding_chunks_query_key_matmul(query / math.sqrt(HEAD_DIM), key, window // 2)
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).type_as(scores)
        return module._sliding_chunks_matmul_attn_probs_value(weights, value, window // 2).transpose(1, 2)

    return attend


def visible_pairs(tokens: int, window: int) -> int:
    """Pairs of a query and a key it sees, of one head."""
    half = min(window // 2, tokens - 1)
    return tokens * (2 * half + 1) - half * (half + 1)


@dataclass
class Measured:
    """One method's seconds in each round, and by how many bytes it raised the resident set, where known."""

    seconds: list[float]
    peak_bytes: int | None

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
    runs: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> tuple[dict[str, Measured], float]:
    """Measure each run once a round, and the FLOPs a second of torch.mm in the same rounds (the median).

    Before the rounds each runs twice: to warm up, and for its memory.
    """
    left, right = torch.randn(2, GEMM, GEMM).unbind()
    product = left @ right
    measured = {}
    for name, run in runs.items():
        run()
        measured[name] = Measured([], peak_memory(run))
    gemm = []
    for _ in range(rounds):
        gemm.append(_time(lambda: torch.mm(left, right, out=product), clock))
        for name, run in runs.items():
            measured[name].seconds.append(_time(run, clock))
    return measured, 2 * GEMM**3 / statistics.median(gemm)


def _time(run: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def peak_memory(run: Callable[[], object]) -> int | None:
    """Bytes by which the resident set rises in `run`; None where the kernel has no mark to reset (not Linux)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def compare(tokens: int, window: int, rounds: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """A row for each pass and method at one length."""
    torch.manual_seed(0)
    *inputs, grad = (torch.randn(1, tokens, HEADS, HEAD_DIM).transpose(1, 2) for _ in range(4))
    compared = methods(tokens, window)
    differences = {name: _difference(attend, inputs, grad, window) for name, attend in compared.items()}
    rows = []
    for what, products in PRODUCTS.items():
        run = _forward if what == "forward" else _forward_backward
        runs = {name: partial(run, attend, inputs, grad) for name, attend in compared.items()}
        measured, rate = interleave(runs, rounds, clock)
        bound = products * 2 * HEAD_DIM * HEADS * visible_pairs(tokens, window) / rate
        ours = next(iter(measured.values()))
        for name, found in measured.items():
            row = {"tokens": tokens, "pass": what, "method": name, "difference": differences[name]}
            rows.append(row | found.as_dict(ours, bound) | {"bound": bound, "gemm_rate": rate})
    return rows


def _forward(attend: Attend, inputs: Sequence[Tensor], grad: Tensor) -> Tensor:
    with torch.no_grad():
        return attend(*inputs)


def _forward_backward(attend: Attend, inputs: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """The output and the three gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = attend(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def _difference(attend: Attend, inputs: Sequence[Tensor], grad: Tensor, window: int) -> float | None:
    """The greatest difference of output and gradients to dense attention in float64, on the first head."""
    tokens = grad.shape[2]
    if tokens > CHECKED_TOKENS or attend is F.scaled_dot_product_attention:
        return None
    exact = partial(F.scaled_dot_product_attention, attn_mask=band_mask(tokens, window))
    *first, first_grad = (x[:, :1].double() for x in (*inputs, grad))
    expected = _forward_backward(exact, first, first_grad)
    found = _forward_backward(attend, inputs, grad)
    return max(float((a[:, :1] - b).abs().max()) for a, b in zip(found, expected, strict=True))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell: the words of the first column to the left, the rest to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())


def megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.0f}"


def conditions(rounds: int, threads: int) -> str:
    """How and on what was measured, in one line."""
    kind = "cpu time" if threads == 1 else "wall time"
    allocator = [f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith("MALLOC_")]
    return (
        f"median of {rounds} interleaved rounds, {kind}, threads {threads}; {platform.machine()} "
        f"{torch.backends.cpu.get_cpu_capability()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
        + "".join(f", {setting}" for setting in allocator)
    )


def print_comparison(rows: Sequence[dict[str, Any]]) -> None:
    """The table of one length and pass."""
    first = rows[0]
    print(
        f"\n{first['tokens']:,} tokens, {first['pass']}: bound {first['bound'] * 1e3:,.1f} ms "
        f"at the {first['gemm_rate'] / 1e9:,.0f} GFLOP/s of torch.mm"
    )
    cells = [
        [
            row["method"],
            f"{row['median'] * 1e3:,.1f}",
            f"{row['ratio']:.2f}",
            f"{row['of_bound']:.0%}",
            megabytes(row["peak_bytes"]),
            "-" if row["difference"] is None else f"{row['difference']:.0e}",
        ]
        for row in rows
    ]
    print_table(["method", "ms", "ratio", "of bound", "peak MB", "difference"], cells)


def clock_of(threads: int) -> Callable[[], float]:
    """CPU time for one thread, which a busy machine disturbs least; wall time for more."""
    return time.process_time if threads == 1 else time.perf_counter


def positive(text: str) -> int:
    """An option's value."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at least 1")
    return int(text)


def benchmark_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The options that benchmarks share."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=positive, default=5, help="how often each is measured (default 5)")
    parser.add_argument(
        "--threads", type=positive, default=1, help="of torch; 1 measures cpu time (default 1)"
    )
    parser.add_argument("--window", type=positive, default=512, help="total width (default 512)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = benchmark_parser("attention.benchmark", __doc__ or "")
    parser.add_argument("--tokens", type=positive, nargs="+", default=[1024, 4096], help="lengths")
    options = parser.parse_args(arguments)
    if options.window % 2 or any(tokens % options.window for tokens in options.tokens):
        parser.error(
            "expected an even --window and --tokens that are multiples of it: sliding chunks need that"
        )
    torch.set_num_threads(options.threads)
    print(f"windowed attention, {HEADS} heads × {HEAD_DIM}, window {options.window}, float32, batch 1")
    print(conditions(options.rounds, options.threads))
    rows = []
    for tokens in options.tokens:
        found = compare(tokens, options.window, options.rounds, clock_of(options.threads))
        for what in PRODUCTS:
            print_comparison([row for row in found if row["pass"] == what])
        rows += found
    if options.json:
        about = {"window": options.window, "conditions": conditions(options.rounds, options.threads)}
        options.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
