"""What glibc does with the memory that a training step on CPU frees.

By default it gives every large tensor back to the system at once, which clears its pages again for the next one: some
3 % of a step on one sequence of 4,096 tokens (`python -m trainer.benchmark`).
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt's M_TRIM_THRESHOLD and M_MMAP_MAX
OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have this process keep what it frees for its next allocations; whether that could be done.

    Its resident set then stays at its peak, which grows by about a fifth. Nothing is changed where the environment has
    settings of its own (MALLOC_TRIM_THRESHOLD_, …), or another C library.
    """
    if any(name in os.environ for name in OWN):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
