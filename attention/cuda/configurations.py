"""Sizes of blocks, warps and pipeline stages of the kernels: a table, so that nothing is tuned on a user's machine.

Chosen by what compiles without spilled registers within a compute capability's shared memory (`attention.cuda.compiled`
shows it); speed on a GPU has not been measured.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Configuration(NamedTuple):
    """BLOCK_M rows and BLOCK_N keys at a time, by a program of `num_warps`, loading `num_stages` - 1 tiles ahead."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


INTERPRETER = (0, 0)  # stands for a compute capability; small blocks, so that short sequences have several

# By compute capability from which on it holds, then kernel, head size and bytes of an element: 2 have tensor cores,
# 4 are multiplied and added one by one. What is missing is as in the capability below.
_TABLE: dict[tuple[int, int], dict[tuple[str, int, int], Configuration]] = {
    INTERPRETER: {
        (kernel, head_dim, size): Configuration(32, 32, 4, 1)
        for kernel in ("attend", "sum_products", "differentiate_queries", "differentiate_keys")
        for head_dim in (32, 64, 128)
        for size in (2, 4)
    },
    (8, 0): {
        **{
            ("sum_products", head_dim, size): Configuration(64, 64, 4, 1)
            for head_dim in (32, 64, 128)
            for size in (2, 4)
        },
        ("attend", 32, 2): Configuration(64, 64, 4, 2),
        ("attend", 64, 2): Configuration(64, 32, 4, 2),
        ("attend", 128, 2): Configuration(128, 32, 8, 2),
        ("differentiate_queries", 32, 2): Configuration(64, 32, 4, 2),
        ("differentiate_queries", 64, 2): Configuration(64, 32, 4, 2),
        ("differentiate_queries", 128, 2): Configuration(128, 32, 8, 2),
        ("differentiate_keys", 32, 2): Configuration(32, 64, 4, 2),
        ("differentiate_keys", 64, 2): Configuration(32, 64, 4, 2),
        ("differentiate_keys", 128, 2): Configuration(16, 128, 8, 2),
        ("attend", 32, 4): Configuration(32, 32, 4, 2),
        ("attend", 64, 4): Configuration(16, 32, 4, 2),
        ("attend", 128, 4): Configuration(32, 32, 8, 2),
        ("differentiate_queries", 32, 4): Configuration(32, 32, 4, 2),
        ("differentiate_queries", 64, 4): Configuration(32, 32, 8, 2),
        ("differentiate_queries", 128, 4): Configuration(32, 32, 8, 2),
        ("differentiate_keys", 32, 4): Configuration(32, 32, 4, 2),
        ("differentiate_keys", 64, 4): Configuration(32, 32, 4, 2),
        ("differentiate_keys", 128, 4): Configuration(32, 32, 8, 2),
    },
    # Warpgroups want 64 rows each (keys, for the gradients of keys) and read their operands from shared memory.
    (9, 0): {
        ("attend", 64, 2): Configuration(64, 64, 4, 2),
        ("attend", 128, 2): Configuration(128, 64, 8, 2),
        ("differentiate_queries", 32, 2): Configuration(64, 64, 4, 2),
        ("differentiate_queries", 64, 2): Configuration(64, 64, 4, 2),
        ("differentiate_queries", 128, 2): Configuration(128, 64, 8, 2),
    },
    # Products want 128 rows, and their sums lie in tensor memory.
    (10, 0): {
        ("attend", 32, 2): Configuration(128, 64, 8, 2),
        ("attend", 64, 2): Configuration(128, 64, 8, 2),
        ("attend", 128, 2): Configuration(128, 32, 8, 2),
        ("differentiate_queries", 32, 2): Configuration(128, 64, 8, 2),
        ("differentiate_queries", 64, 2): Configuration(128, 64, 8, 2),
        ("differentiate_keys", 32, 2): Configuration(64, 128, 8, 2),
        ("differentiate_keys", 64, 2): Configuration(64, 128, 8, 2),
        ("differentiate_keys", 128, 2): Configuration(64, 128, 8, 2),
    },
}
# Chips for desktops have warp-level products again, and 99 KiB of shared memory a block.
_TABLE[12, 0] = _TABLE[8, 0]


def padded(head_dim: int) -> int:
    """The head size that kernels compute with: 16, 32, 64 or 128."""
    return next(size for size in (16, 32, 64, 128) if head_dim <= size)


def configuration(
    kernel: str, capability: tuple[int, int], head_dim: int, dtype: torch.dtype
) -> Configuration:
    """What the kernel of this name runs with on a GPU of this compute capability."""
    key = (kernel, max(32, padded(head_dim)), dtype.itemsize)
    return next(
        _TABLE[known][key]
        for known in sorted(_TABLE, reverse=True)
        if known <= capability and key in _TABLE[known]
    )
