"""Compile the CUDA kernels ahead of time, on any machine, and read what came out of their machine code.

    python -m attention.cuda.compiled                     every variant, dtype, head size and architecture: half an hour
    python -m attention.cuda.compiled --dtype bfloat16 --head-dim 64 --features all --capability 9.0      half a minute
    python -m attention.cuda.compiled --json FILE         the same as JSON

A line is a kernel: `attend` is the forward pass, `differentiate_queries` and `differentiate_keys` are the backward,
each for the local tokens, the global rows and the global keys. Columns: its block of rows x keys and the warps that
compute it; registers of a thread; instructions that spill registers to memory; bytes of shared memory a block; the
share of a multiprocessor's warps that can be resident; and its tensor-core instructions, with how often they stand
in the code. Features: "holes" has documents and holes in the padding, "global" global tokens with the local
projections, "all" documents, holes, global tokens with projections of their own, and dropout.

Exit code 1 on a breach: a kernel that does not compile or does not fit the architecture's shared memory; float32
kernels with a tensor-core instruction (they would round to TF32); 16-bit kernels of head size 64 with spilled
registers or without tensor-core instructions.

What is compiled is what runs: the backend's own launches are recorded for a small problem on the CPU and handed to
Triton's own compilation of a launch, for a GPU that is not there. It needs the `triton` package, whose wheel brings
ptxas, cuobjdump and nvdisasm, and a process without TRITON_INTERPRET. It proves nothing about results or speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attention import cuda, files
from attention.cuda import Launch
from attention.pattern import Pattern
from attention.problem import Problem

HEAD_DIMS = (32, 64, 128)
CAPABILITIES = ((8, 0), (9, 0), (10, 0))
FEATURES: dict[str, frozenset[str]] = {
    "plain": frozenset(),
    "dropout": frozenset({"dropout"}),
    "holes": frozenset({"documents", "holes"}),
    "global": frozenset({"global"}),
    "all": frozenset({"documents", "holes", "global", "own_global", "dropout"}),
}


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor of an architecture has (CUDA C++ Programming Guide, technical specifications)."""

    shared_per_block: int  # bytes
    shared_per_sm: int
    warps: int
    blocks: int
    tensor_core: str  # the instruction that 16-bit products must show
    registers: int = 65536
    tensor_memory: int = 512  # columns


LIMITS = {
    (8, 0): Limits(163 << 10, 164 << 10, 64, 32, "HMMA"),
    (8, 6): Limits(99 << 10, 100 << 10, 48, 16, "HMMA"),
    (8, 9): Limits(99 << 10, 100 << 10, 48, 24, "HMMA"),
    (9, 0): Limits(227 << 10, 228 << 10, 64, 32, "HGMMA"),
    (10, 0): Limits(227 << 10, 228 << 10, 64, 32, "UTCHMMA"),
    (12, 0): Limits(99 << 10, 100 << 10, 48, 24, "HMMA"),
}
# Warp-level, warpgroup-level and tensor-memory products of any type, with their modifiers.
TENSOR_CORE = re.compile(r"(HMMA|HGMMA|IMMA|QMMA|OMMA|BMMA|DMMA|UTC\w*MMA)\b")
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)


@dataclass(frozen=True)
class Compiled:
    """One kernel's machine code in numbers."""

    kernel: str
    variant: str
    features: str
    dtype: str
    head_dim: int
    capability: tuple[int, int]
    block_m: int
    block_n: int
    num_warps: int
    registers: int
    spills: int  # instructions that store or load local memory
    shared: int  # bytes a block
    occupancy: float  # resident warps of the most that fit, by registers, shared and tensor memory
    tensor_core: dict[str, int]  # how often each instruction stands in the code
    breaches: list[str]


def problem(dtype: torch.dtype, head_dim: int, features: frozenset[str]) -> Problem:
    """A small problem on the CPU with these features, of which the launches are those of any size."""
    batch, heads, length = 2, 2, 64
    query = torch.zeros(batch, heads, length, head_dim, dtype=dtype)
    position = torch.arange(length).expand(batch, length)
    pattern = Pattern.of(
        query,
        window=32,
        dilation=(1,) * heads,
        causal=False,
        attention_mask=position % 16 != 5 if "holes" in features else None,
        global_attention_mask=position % 32 == 0 if "global" in features else None,
        document_ids=position // 40 if "documents" in features else None,
    )
    seed = torch.zeros(batch, dtype=torch.int64) if "dropout" in features else None
    own: list[Tensor | None] = [query] * 3 if "own_global" in features else [None] * 3
    dropout_p = 0.0 if seed is None else 0.1
    return Problem(query, query, query, own[0], own[1], own[2], pattern, 0.125, dropout_p, seed)


def launches(one: Problem, capability: tuple[int, int]) -> list[Launch]:
    """What the backend would launch on a GPU of this capability, forward and backward, in order."""
    recorded: list[Launch] = []
    attention = cuda.Attention(one, capability, recorded.append)
    output, logsumexp = attention.forward()
    attention.backward(output, logsumexp, torch.zeros_like(output))
    return recorded


class AbsentGPU:
    """Stands for Triton's driver: it says what to compile for, and launches nothing."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.number = 10 * capability[0] + capability[1]

    def get_current_target(self) -> Any:
        """The architecture, as Triton names it."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.number, 32)

    def get_current_device(self) -> int:
        """A number of its own for each architecture, by which Triton keeps compiled kernels apart."""
        return self.number

    def get_current_stream(self, device: int) -> int:
        """The default stream."""
        return 0


@contextmanager
def absent_gpu(capability: tuple[int, int]) -> Iterator[AbsentGPU]:
    """Let Triton compile for this capability, whatever GPU there is or is not."""
    from triton.runtime.driver import driver

    before = driver._active  # None where Triton has not looked for a GPU yet; `active` would look, and fail
    gpu = AbsentGPU(capability)
    driver.set_active(gpu)
    try:
        yield gpu
    finally:
        driver.set_active(before)


def compile_launch(launch: Launch, capability: tuple[int, int]) -> Any:
    """Triton's compiled kernel of a launch: the same path as that of launching, up to the launch itself."""
    with absent_gpu(capability):
        return launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)


def variant(launch: Launch) -> str:
    """Which of the meetings of rows and keys a launch is."""
    given = launch.arguments
    if given.get("KEY_INDEX") is not None:
        return "global keys"
    return "global rows" if given.get("INDEX") is not None else "local"


def examine(launch: Launch, features: str, dtype: torch.dtype, capability: tuple[int, int]) -> Compiled:
    """Compile a launch and read its machine code."""
    given, limits = launch.arguments, LIMITS[capability]
    found: dict[str, Any] = {"registers": 0, "spills": 0, "shared": 0, "occupancy": 0.0, "tensor_core": {}}
    breaches = []
    try:
        compiled = compile_launch(launch, capability)
    except Exception as error:
        breaches.append(f"does not compile: {type(error).__name__}: {str(error)[:200]}")
    else:
        found = _read(compiled, launch.options["num_warps"], limits)
        if found["shared"] > limits.shared_per_block:
            breaches.append(f"{found['shared']} bytes of shared memory; at most {limits.shared_per_block}")
        products = launch.kernel.__name__ != "sum_products"
        if dtype == torch.float32:
            if found["tensor_core"]:
                breaches.append("float32 products on tensor cores")
        elif products and given["HEAD_DIM"] == 64:
            if found["spills"]:
                breaches.append(f"{found['spills']} spills")
            if not any(name.startswith(limits.tensor_core) for name in found["tensor_core"]):
                breaches.append(f"no {limits.tensor_core}")
    return Compiled(
        launch.kernel.__name__,
        variant(launch),
        features,
        str(dtype).removeprefix("torch."),
        given["HEAD_DIM"],
        capability,
        given["BLOCK_M"],
        given.get("BLOCK_N", 0),
        launch.options["num_warps"],
        **found,
        breaches=breaches,
    )


def _read(compiled: Any, num_warps: int, limits: Limits) -> dict[str, Any]:
    """Registers, spills, shared memory, occupancy and tensor-core instructions of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    registers = max(int(count) for count in re.findall(r"REG:(\d+)", usage))
    instructions = Counter(INSTRUCTION.findall(code))
    products = {name: count for name, count in instructions.items() if TENSOR_CORE.match(name)}
    spills = sum(count for name, count in instructions.items() if name.split(".")[0] in ("STL", "LDL"))
    shared, columns = compiled.metadata.shared, getattr(compiled.metadata, "tmem_size", 0) or 0
    return {
        "registers": registers,
        "spills": spills,
        "shared": shared,
        "occupancy": occupancy(registers, shared, columns, num_warps, limits),
        "tensor_core": products,
    }


def occupancy(registers: int, shared: int, columns: int, num_warps: int, limits: Limits) -> float:
    """The share of a multiprocessor's warps that can be resident.

    Registers are given to warps in units of 256, and each block takes 1 KiB of shared memory beside its own.
    """
    per_warp = -(-registers * 32 // 256) * 256
    blocks = min(
        limits.blocks,
        limits.warps // num_warps,
        limits.registers // per_warp // num_warps if per_warp else limits.blocks,
        limits.shared_per_sm // (shared + 1024),
        limits.tensor_memory // columns if columns else limits.blocks,
    )
    return blocks * num_warps / limits.warps


def _tool(name: str, *arguments: str) -> str:
    """The output of one of the CUDA tools in Triton's wheel."""
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    run = subprocess.run([str(folder / name), *arguments], capture_output=True, text=True, check=True)
    return run.stdout


def table(
    dtypes: list[torch.dtype],
    head_dims: list[int],
    features: list[str],
    capabilities: list[tuple[int, int]],
) -> Iterator[Compiled]:
    """Every distinct kernel of these, one after the other."""
    for capability in capabilities:
        for dtype in dtypes:
            for head_dim in head_dims:
                for name in features:
                    for launch in launches(problem(dtype, head_dim, FEATURES[name]), capability):
                        yield examine(launch, name, dtype, capability)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = _options(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1" or importlib.util.find_spec("triton") is None:
        print(
            "found TRITON_INTERPRET=1 or no package triton; expected triton, to compile and not to interpret"
        )
        return 2
    header = (
        "sm     dtype     D    features  kernel                 of           blocks   warps"
        "  regs  spills  shared  occup.  tensor cores"
    )
    print(header)
    rows = []
    for row in table(options.dtype, options.head_dim, options.features, options.capability):
        rows.append(row)
        major, minor = row.capability
        products = ", ".join(f"{name} {count}" for name, count in sorted(row.tensor_core.items()))
        print(
            f"{major}.{minor:<4} {row.dtype:9} {row.head_dim:<4} {row.features:9} {row.kernel:22} {row.variant:12} "
            f"{row.block_m:>3}x{row.block_n:<4} {row.num_warps:>5}  {row.registers:>4}  {row.spills:>6}  "
            f"{row.shared:>6}  {row.occupancy:>5.0%}   {products or '-'}"
            + "".join(f"\n       BREACH: {breach}" for breach in row.breaches),
            flush=True,
        )
    if options.json:
        with files.whole(options.json) as partial:
            partial.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    breached = sum(bool(row.breaches) for row in rows)
    print(f"{len(rows)} kernels, {breached} with a breach")
    return 1 if breached else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    def capability(text: str) -> tuple[int, int]:
        try:
            major, minor = map(int, text.split("."))
            LIMITS[major, minor]
        except (ValueError, KeyError):
            known = ", ".join(f"{major}.{minor}" for major, minor in LIMITS)
            raise argparse.ArgumentTypeError(f"{text!r}; expected one of {known}") from None
        return major, minor

    parser = argparse.ArgumentParser(
        prog="python -m attention.cuda.compiled",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [str(dtype).removeprefix("torch.") for dtype in cuda.DTYPES]
    parser.add_argument("--dtype", nargs="+", choices=names, default=names)
    parser.add_argument("--head-dim", nargs="+", type=int, default=list(HEAD_DIMS), help="default: 32 64 128")
    parser.add_argument("--features", nargs="+", choices=list(FEATURES), default=list(FEATURES))
    parser.add_argument(
        "--capability", nargs="+", type=capability, default=list(CAPABILITIES), help="default: 8.0 9.0 10.0"
    )
    parser.add_argument(
        "--json", type=files.writable_path, metavar="FILE", help="write the rows to FILE as well"
    )
    options = parser.parse_args(arguments)
    options.dtype = [getattr(torch, name) for name in options.dtype]
    if any(not 1 <= size <= 128 for size in options.head_dim):
        parser.error(f"argument --head-dim: {options.head_dim}; expected sizes from 1 to 128")
    return options


if __name__ == "__main__":
    sys.exit(main())
