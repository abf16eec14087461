"""Which attention weights dropout removes: a counter-based hash, so that every backend removes the same ones.

An entry's fate depends on (seed of the sequence, head, query position, key position, stream) alone, never on blocks
or threads, and the backward pass computes it anew instead of storing it. Only 32-bit xors, shifts and products
are used; a kernel mixes a row's two words once and then pays one short finaliser a key:

    x = (low ^ key) * 0x21f0aaad;  x ^= high;  x ^= x >> 15;  x *= 0xd35a2d97        (all modulo 2^32)

The entry is kept where x >= floor(p * 2^32). The constants are those of the "lowbias32" family (Wellons,
hash-prospector, bias 0.11); its last shift is left out, as it only changes bits too low to matter in a comparison.
Two words a row, because rows of one word would too often share their entries up to a permutation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LOCAL_STREAM, GLOBAL_STREAM = 0, 1  # rows of local tokens, rows of global tokens

_FIRST, _SECOND = 0x21F0AAAD, 0xD35A2D97 - (1 << 32)  # as signed 32-bit numbers
_GOLDEN = 0x9E3779B9 - (1 << 32)
_SIGN = -(1 << 31)


class RowState(NamedTuple):
    """The two mixed words of each row, int32 (B, H, M)."""

    low: Tensor
    high: Tensor


def threshold(dropout_p: float) -> int:
    """An entry is kept where its hash, as an unsigned number, reaches this: floor(p * 2^32)."""
    return int(dropout_p * (1 << 32))


def row_state(seed: Tensor, heads: int, position: Tensor, stream: int) -> RowState:
    """Mix everything but the key. seed int64 (B,), position (B or 1, M): two int32 words (B, heads, M)."""
    low, high = _words(seed)  # (B, 1, 1)
    head = torch.arange(heads, dtype=torch.int32, device=seed.device)[:, None] * _GOLDEN
    row = position.to(torch.int32)[:, None, :]

    def chain(one: Tensor, other: Tensor) -> Tensor:
        mixed = _mix(_mix(one + _GOLDEN * stream) ^ other)
        return _mix(_mix(mixed ^ head) ^ row)

    # The second chain starts elsewhere: a seed of two equal words would give one word twice.
    return RowState(chain(low, high), chain(high ^ _FIRST, low))


def entry_hash(row: RowState, key: Tensor) -> Tensor:
    """Hash of entries, int32 with the bits of an unsigned number; row and key positions (int32) broadcast."""
    x = (row.low ^ key).mul_(_FIRST)  # products wrap modulo 2^32
    x ^= row.high
    x ^= _shift(x, 15)
    return x.mul_(_SECOND)


def keep(row: RowState, key: Tensor, dropout_p: float, dtype: torch.dtype) -> Tensor:
    """1 for kept entries and 0 for dropped ones, as `dtype`; row and key positions broadcast."""
    limit = threshold(dropout_p)
    x = entry_hash(row, key.to(torch.int32))
    if limit == 0:
        return torch.ones_like(x, dtype=dtype)
    # Unsigned x >= limit is signed (x ^ sign) >= limit + sign. Clamping between the two numbers beside the border
    # gives 0 or 1 several times faster than a comparison and a conversion of booleans.
    border = limit + _SIGN
    return x.bitwise_xor_(_SIGN).clamp_(border - 1, border).sub_(border - 1).to(dtype)


def spread_seed(seed: int, batch: int, device: torch.device) -> Tensor:
    """An int64 seed an example from one number: seed + b * 0x9e3779b97f4a7c15 modulo 2^64 for example b.

    Not seed + b, so that the runs of seeds s and s + 1 share no example's dropout.
    """
    example = torch.arange(batch, dtype=torch.int64, device=device)
    return example * (0x9E3779B97F4A7C15 - (1 << 64)) + seed


def _words(seed: Tensor) -> tuple[Tensor, Tensor]:
    """The lower and upper 32 bits of int64 seeds, int32 (B, 1, 1)."""
    words = seed.contiguous()[:, None, None]
    low = (words & 0xFFFFFFFF) - ((words & 0x80000000) << 1)  # to the signed number of the same bits
    return low.to(torch.int32), (words >> 32).to(torch.int32)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift right of int32; torch's own copies the sign into the upper bits."""
    return (x >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words in which every input bit affects every output bit."""
    x = (x ^ _shift(x, 16)) * _FIRST
    x = (x ^ _shift(x, 15)) * _SECOND
    return x ^ _shift(x, 15)
