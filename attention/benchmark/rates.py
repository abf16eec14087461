"""What a machine's matrix products reach: the bounds that attention's speed is printed beside.

Two rates, in FLOPs a second. `torch.mm` on large matrices is what a user takes for the machine's speed. It is not
always the most there is: on a CPU of AMD with AVX-512, MKL keeps to AVX2. So, on a CPU, the rate of oneDNN's brgemm
microkernel on tiles of attention's own shape is measured too: a block of 64 queries against 576 keys (a window of 512
and the block) of 64 numbers each, in float32, over and over, in cache. libtorch_cpu exports that kernel; a C++ compiler
links a loop to it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

LARGE = 2048
ROWS, COLUMNS, DEPTH = 64, 576, 64
TILES = 2000  # in one measured run: some tens of milliseconds
TILE_LOOP = f"""
#include <cstdint>
namespace at::native::cpublas {{
void brgemm(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, const float*, const float*, float*, bool);
void brgemm_release(bool);
}}
extern "C" void multiply(int64_t tiles, const float* left, const float* right, float* product) {{
  using namespace at::native::cpublas;
  for (int64_t i = 0; i < tiles; ++i)
    brgemm({ROWS}, {COLUMNS}, {DEPTH}, {DEPTH}, {COLUMNS}, {COLUMNS}, false, left, right, product, false);
  brgemm_release(false);
}}
"""


@dataclass(frozen=True)
class Product:
    """A matrix product to be timed, and its FLOPs."""

    run: Callable[[], object]
    flops: int


def large_product(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Product:
    """torch.mm on square matrices that are too large for a cache, and large enough for every thread."""
    size = LARGE if torch.device(device).type == "cpu" else 4 * LARGE
    left, right = torch.randn(2, size, size, device=device).to(dtype).unbind()
    product = left @ right
    return Product(lambda: torch.mm(left, right, out=product), 2 * size**3)


def tile_product(threads: int = 1) -> Product:
    """brgemm on float32 tiles, in `threads` threads at once. RuntimeError, with the reason, where it cannot be had."""
    multiply = _tile_loop()
    operands = [
        (torch.randn(ROWS, DEPTH), torch.randn(DEPTH, COLUMNS), torch.empty(ROWS, COLUMNS))
        for _ in range(threads)
    ]

    def work(thread: int) -> None:  # ctypes lets go of the interpreter's lock
        multiply(TILES, *(x.data_ptr() for x in operands[thread]))

    multiply(1, *(x.data_ptr() for x in operands[0]))
    left, right, product = operands[0]
    if not torch.allclose(product, left @ right, atol=1e-4):
        raise RuntimeError("brgemm's product is wrong")
    if threads == 1:
        return Product(lambda: work(0), TILES * 2 * ROWS * COLUMNS * DEPTH)
    pool = ThreadPoolExecutor(threads)
    return Product(lambda: list(pool.map(work, range(threads))), threads * TILES * 2 * ROWS * COLUMNS * DEPTH)


@functools.cache
def _tile_loop() -> Callable[..., None]:
    """The compiled loop over tiles, loaded."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError("no C++ compiler (looked for $CXX, g++, clang++)")
    libraries = Path(torch.__file__).parent / "lib"
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "tiles.cpp"), Path(folder, "tiles.so")
        source.write_text(TILE_LOOP, encoding="utf-8")
        # Undefined symbols are refused, so that a torch without brgemm is found out here.
        command = [
            compiler,
            "-std=c++17",
            "-O2",
            "-shared",
            "-fPIC",
            "-Wl,-z,defs",
            str(source),
            "-o",
            str(library),
        ]
        done = subprocess.run(
            [*command, f"-L{libraries}", "-ltorch_cpu", "-lc10"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            reason = (done.stderr.strip() or "no message").splitlines()[-1]
            raise RuntimeError(f"{compiler} could not link to brgemm in libtorch_cpu: {reason}")
        multiply = ctypes.CDLL(str(library)).multiply
    multiply.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 3]
    multiply.restype = None
    return multiply
