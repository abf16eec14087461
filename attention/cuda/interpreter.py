"""Repairs bfloat16 in Triton's interpreter, in which the kernels run on the CPU for tests.

The interpreter keeps bfloat16 as the uint16 of its bits, and (Triton 3.9) gets two operations on them silently wrong:

- `tl.dot` multiplies the bit patterns as if they were integers;
- a cast from float32 cuts the low bits off, where every GPU rounds to the nearest even number.

`repair` replaces the two by what a GPU computes. A product of two bfloat16 numbers is exact in float32, so a dot of
operands converted to float32 is what tensor cores compute, up to the order and rounding of float32 sums. The kernels
themselves are not changed for the interpreter. Arithmetic on bfloat16 other than dots and casts stays wrong: kernels
convert to float32 first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def repair() -> None:
    """Replace the interpreter's dot and cast for bfloat16; everything else is left to them."""
    if getattr(InterpreterBuilder, "_bfloat16_repaired", False):
        return
    plain_dot, plain_cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, d: Any, *options: Any) -> Any:
        return plain_dot(self, _as_float32(a), _as_float32(b), d, *options)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        kinds = (source.dtype.scalar, target.scalar)
        if kinds == (tl.bfloat16, tl.float32):
            return _as_float32(source)
        if kinds == (tl.float32, tl.bfloat16):
            return TensorHandle(round_to_bfloat16(source.data), tl.bfloat16)
        return plain_cast(self, source, target)

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = create_dot, cast_impl
    InterpreterBuilder._bfloat16_repaired = True


def round_to_bfloat16(x: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16 numbers, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def _as_float32(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << np.uint32(16)
    return TensorHandle(bits.view(np.float32), tl.float32)
