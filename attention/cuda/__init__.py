"""Triton kernels for NVIDIA GPUs of compute capability 8.0 and newer: float32, float16 and bfloat16.

Here are the launches; what a program computes is in `kernels`. Rows that each see one interval of a list of keys
meet three times, as in `chunks`: local rows and the keys of their strip together with the global keys, in one softmax,
and global rows and the whole sequence. Where there are few programs for long lists (global rows over all keys, global
keys over all rows), the list is split; partial results are summed in order of the splits. For the keys' gradients the
intervals are turned round: which rows see a key is an interval as well.

The kernels were checked in Triton's interpreter (tests/attention/test_cuda.py) and compiled ahead of time
(`attention.cuda.compiled`). They have not run on a GPU, so on a user's GPU they are compared with the reference before
they are chosen by themselves (`attention.check`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attention import dropout
from attention.cuda.configurations import INTERPRETER, Configuration, configuration, padded
from attention.pattern import Intervals, interleave
from attention.problem import Gradients, Problem

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_TOKENS = 1 << 24  # positions times block sizes stay below 2^31
SPLIT = 512  # the fewest keys or rows of a split
SPLITS = 32  # the most programs of one head that share a list, where each takes one block


@dataclass(frozen=True)
class Launch:
    """One kernel's launch: arguments by name, and the compiler's options."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]


Launcher = Callable[[Launch], None]


def launch(one: Launch) -> None:
    """Compile, if this is the first such launch, and run."""
    one.kernel[one.grid](**one.arguments, **one.options)


@functools.cache
def usable() -> bool:
    """See `problem.Backend`. In Triton's interpreter too, which runs the kernels on the CPU, slowly, for tests."""
    if not _interpreted() and (torch.version.hip is not None or not torch.cuda.is_available()):
        return False
    try:
        importlib.import_module("attention.cuda.kernels")
    except ImportError:  # of triton, which not every build of torch brings
        return False
    return True


def rejects(query: Tensor) -> str | None:
    """See `problem.Backend`."""
    if _interpreted():
        if query.device.type != "cpu":
            return "tensors on the CPU, as TRITON_INTERPRET is set"
    elif query.device.type != "cuda":
        return "tensors on a CUDA device"
    elif torch.cuda.get_device_capability(query.device) < (8, 0):
        return "a GPU of compute capability 8.0 or newer"
    if query.dtype not in DTYPES:
        return f"one of {', '.join(map(str, DTYPES))}"
    if query.shape[3] > 128:
        return "head_dim of at most 128"
    if query.shape[2] > MOST_TOKENS:
        return f"at most {MOST_TOKENS} tokens"
    return None


def trusted(query: Tensor) -> bool:
    """See `problem.Backend`: whether it agreed with the reference on this device; see `check.trusted`."""
    from attention import check

    return check.trusted(query)


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """See `problem.Backend`."""
    with _on(problem.query.device):
        return Attention(problem, capability(problem.query.device), launch).forward()


def backward(problem: Problem, output: Tensor, logsumexp: Tensor, grad: Tensor) -> Gradients:
    """See `problem.Backend`."""
    with _on(problem.query.device):
        return Attention(problem, capability(problem.query.device), launch).backward(output, logsumexp, grad)


def capability(device: torch.device) -> tuple[int, int]:
    """The device's compute capability, such as (9, 0)."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else INTERPRETER


class Strips(NamedTuple):
    """A run of heads of one dilation."""

    first_head: int
    group: int  # how many heads
    dilation: int


class Attention:
    """The launches of one forward or backward pass, in order, with what torch does between them."""

    def __init__(self, problem: Problem, capability: tuple[int, int], launch: Launcher) -> None:
        from attention.cuda import kernels

        self.kernels, self.capability, self.launch = kernels, capability, launch
        self.problem, self.pattern = problem, problem.pattern
        self.query = problem.query
        self.batch, self.heads, self.length, self.head_dim = problem.query.shape
        self.local = _operands(problem.query, problem.key, problem.value)
        self.whole = Strips(0, self.heads, 1)  # the sequence as one strip, or a list
        self.global_index: Tensor | None = None  # int32 (B, G), positions of the global tokens
        if self.pattern.is_global is not None:
            self.global_index = self.pattern.global_index[0].to(torch.int32).contiguous()
        seed = problem.dropout_seed
        self.common = {
            "SEED": None if seed is None else seed.contiguous(),
            "border": dropout.threshold(problem.dropout_p) - (1 << 31),
            "keep_scale": 1 / (1 - problem.dropout_p),
            "scale": float(problem.scale),
            "length": self.length,
            "heads": self.heads,
        }

    def forward(self) -> tuple[Tensor, Tensor]:
        """Output and logsumexp."""
        output = self.query.new_empty(self.query.shape)
        logsumexp = self.query.new_empty(self.query.shape[:3], dtype=torch.float32)
        columns = self._columns()
        for strips in self._strips():
            rows = self._local_rows(strips)
            self._run("attend", strips, 1, self.local, rows, columns, O=output, LSE=logsumexp)
        if self.global_index is not None:
            splits, rows = self._global_rows("attend")
            outputs = self._partial(splits, self.head_dim)
            sums = self._partial(splits, 1)[..., 0]
            own = _operands(*self.problem.global_projections)
            self._run("attend", self.whole, splits, own, rows, self._columns(False), O=outputs, LSE=sums)
            sums = sums.masked_fill(sums == torch.inf, -torch.inf)  # splits without a key that is seen
            total = sums.logsumexp(0)
            self._put(output, (outputs * (sums - total).exp()[..., None]).sum(0))
            self._put(logsumexp, total)
        return output, logsumexp

    def backward(self, output: Tensor, logsumexp: Tensor, grad: Tensor) -> Gradients:
        """The gradients; in the query's dtype, but in float32 where two kernels add to one buffer."""
        grad, logsumexp = _aligned(grad), logsumexp.contiguous()
        delta = torch.empty_like(logsumexp)
        given = {"DO": grad, **_strides(do=grad), "DELTA": delta, "LSE": logsumexp}
        self._run("sum_products", self.whole, 1, given, O=output.contiguous())
        gradients = self._gradients()
        local = given
        if self.pattern.is_global is not None:  # global tokens are no local rows
            local = given | {"LSE": logsumexp.masked_fill(self.pattern.is_global[:, None], torch.inf)}
        self._differentiate_local_rows(local, gradients)
        if self.global_index is not None:
            self._differentiate_global_rows(given, gradients)
        return gradients

    def _gradients(self) -> Gradients:
        """Room for the gradients: of local rows to be written, of global rows to be added to."""
        given = self.problem.query_global, self.problem.key_global, self.problem.value_global
        shared = self.global_index is not None and (given[1] is None or given[2] is None)
        dtype = torch.float32 if shared else self.query.dtype
        local = [self.query.new_empty(self.query.shape, dtype=x) for x in (self.query.dtype, dtype, dtype)]
        own = [mine if x is None else torch.zeros_like(mine) for x, mine in zip(given, local)]
        return Gradients(local[0], local[1], local[2], own[0], own[1], own[2])

    def _differentiate_local_rows(self, given: dict[str, Any], gradients: Gradients) -> None:
        """Write the gradients of query, key and value."""
        columns = self._columns()
        results = {"DK": gradients.key, "DV": gradients.value}
        for strips in self._strips():
            rows, keys = self._local_rows(strips), self._local_keys(strips)
            self._run(
                "differentiate_queries", strips, 1, self.local, rows, columns, given, DQ=gradients.query
            )
            self._run("differentiate_keys", strips, 1, self.local, keys, given, **results)
        if self.global_index is not None:
            splits, keys = self._global_keys()
            partial = {name: self._partial(splits, self.head_dim) for name in results}
            self._run("differentiate_keys", self.whole, splits, self.local, keys, given, **partial)
            for name, result in results.items():
                self._put(result, partial[name].sum(0))

    def _differentiate_global_rows(self, given: dict[str, Any], gradients: Gradients) -> None:
        """Add to the gradients of query_global, key_global and value_global."""
        projections = _operands(*self.problem.global_projections)
        splits, rows = self._global_rows("differentiate_queries")
        partial, columns = self._partial(splits, self.head_dim), self._columns(False)
        self._run("differentiate_queries", self.whole, splits, projections, rows, columns, given, DQ=partial)
        self._put(gradients.query_global, partial.sum(0))
        keys = self._keys_of_global_rows()
        results = {"DK": gradients.key_global, "DV": gradients.value_global}
        self._run("differentiate_keys", self.whole, 1, projections, keys, given, **results)

    # Who meets whom: arguments of the kernels.

    def _strips(self) -> list[Strips]:
        strips, first_head = [], 0
        # A dilation beyond the length is as good as the length, and its multiples stay small.
        for dilation, run in groupby(min(dilation, self.length) for dilation in self.pattern.dilation):
            strips.append(Strips(first_head, len(list(run)), dilation))
            first_head += strips[-1].group
        return strips

    def _local_rows(self, strips: Strips) -> dict[str, Any]:
        return {
            **_table(self.pattern.band_by_position(strips.dilation)),
            "HIDDEN": _flags(self.pattern.hidden),
            "INDEX": None,
            "tokens": self.length,
            "split": 0,
        }

    def _columns(self, present: bool = True) -> dict[str, Any]:
        """The global keys, beside the band of local rows."""
        if self.global_index is None or not present:
            return {"COLUMN_INDEX": None, "COLUMN_FIRST": None, "COLUMN_LAST": None, "columns": 0}
        table = _table(self.pattern.global_columns())
        return {
            "COLUMN_INDEX": self.global_index,
            "COLUMN_FIRST": table["FIRST"],
            "COLUMN_LAST": table["LAST"],
            "columns": self.global_index.shape[1],
        }

    def _global_rows(self, kernel: str) -> tuple[int, dict[str, Any]]:
        assert self.global_index is not None
        tokens = self.global_index.shape[1]
        splits, split = self._split(kernel, tokens)
        rows = {"HIDDEN": _flags(self.pattern.holes), "INDEX": self.global_index, "tokens": tokens}
        return splits, {**_table(self.pattern.global_rows()), **rows, "split": split}

    def _local_keys(self, strips: Strips) -> dict[str, Any]:
        bands = [self.pattern.band(residue, strips.dilation) for residue in range(strips.dilation)]
        seen_by = [transposed(band, band.first.shape[1]) for band in bands]
        return {
            **_table(interleave(seen_by, self.length)),
            "HIDDEN": _flags(self.pattern.hidden),
            "INDEX": None,
            "KEY_INDEX": None,
            "rows": self.length,
            "keys": self.length,
            "split": 0,
            "ACCUMULATE": False,
        }

    def _global_keys(self) -> tuple[int, dict[str, Any]]:
        assert self.global_index is not None
        tokens = self.global_index.shape[1]
        splits, split = self._split("differentiate_keys", tokens)
        return splits, {
            **_table(transposed(self.pattern.global_columns(), tokens)),
            "HIDDEN": None,
            "INDEX": None,
            "KEY_INDEX": self.global_index,
            "rows": self.length,
            "keys": tokens,
            "split": split,
            "ACCUMULATE": False,
        }

    def _keys_of_global_rows(self) -> dict[str, Any]:
        assert self.global_index is not None
        return {
            **_table(transposed(self.pattern.global_rows(), self.length)),
            "HIDDEN": _flags(self.pattern.holes),
            "INDEX": self.global_index,
            "KEY_INDEX": None,
            "rows": self.global_index.shape[1],
            "keys": self.length,
            "split": 0,
            "ACCUMULATE": True,
        }

    # Launching, and what comes back.

    def _run(
        self, name: str, strips: Strips, splits: int, *arguments: dict[str, Any], **results: Tensor
    ) -> None:
        """Launch a kernel for all blocks of the rows (of the keys, where it is the keys' kernel)."""
        merged = {**self.common, **strips._asdict()}
        for some in (*arguments, results):
            merged.update(some)
        kernel, config = getattr(self.kernels, name), self._configuration(name)
        tokens = merged.get("keys", merged.get("tokens", self.length))
        blocks = strips.dilation * _ceil(_ceil(tokens, strips.dilation), _block(name, config))
        merged |= {"HEAD_DIM": self.head_dim, "BLOCK_D": padded(self.head_dim)}
        merged |= {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
        self.launch(
            Launch(
                kernel,
                (self.batch * strips.group * blocks, splits),
                {name: merged[name] for name in kernel.arg_names},
                {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True},
            )
        )

    def _configuration(self, kernel: str) -> Configuration:
        return configuration(kernel, self.capability, self.head_dim, self.query.dtype)

    def _split(self, kernel: str, tokens: int) -> tuple[int, int]:
        """How many splits the sequence is seen in by a list of tokens, and the length of each.

        From sizes alone, never from the device's, so that sums have one order everywhere.
        """
        blocks = _ceil(tokens, _block(kernel, self._configuration(kernel)))
        splits = max(1, min(_ceil(self.length, SPLIT), SPLITS // blocks))
        return splits, _ceil(self.length, splits)

    def _partial(self, splits: int, width: int) -> Tensor:
        """Room for the results of each split, float32 (S, B, H, G, width)."""
        assert self.global_index is not None
        shape = (splits, self.batch, self.heads, self.global_index.shape[1], width)
        return self.query.new_empty(shape, dtype=torch.float32)

    def _put(self, target: Tensor, rows: Tensor) -> None:
        """Write rows (B, H, G, …) to the places of the global tokens in target (B, H, N, …), where nothing was summed.

        Unused entries of the list are positions of other tokens, each once, and keep what stands there.
        """
        index, used = (x[:, None].expand(rows.shape[:3]) for x in self.pattern.global_index)
        if rows.dim() == 4:
            index, used = index[..., None].expand(rows.shape), used[..., None]
        target.scatter_(2, index, torch.where(used, rows.to(target.dtype), target.gather(2, index)))


def transposed(intervals: Intervals, keys: int) -> Intervals:
    """Which rows see each of `keys` keys: an interval too, as first and last ascend with the rows.

    Empty rows, whose bounds mean nothing, may lie in the midst of it.
    """
    empty = intervals.last <= intervals.first
    last = intervals.last.masked_fill(empty, 0).cummax(1).values
    first = intervals.first.masked_fill(empty, MOST_TOKENS).flip(1).cummin(1).values.flip(1)
    key = torch.arange(keys, device=first.device).expand(first.shape[0], keys).contiguous()
    return Intervals(
        torch.searchsorted(last.contiguous(), key, right=True),
        torch.searchsorted(first.contiguous(), key, right=True),
    )


def _table(intervals: Intervals) -> dict[str, Any]:
    """Intervals as the kernels take them, int32, one row for all examples or one for each."""
    first, last = (x.to(torch.int32).contiguous() for x in (intervals.first, intervals.last))
    return {"FIRST": first, "LAST": last, "interval_batch": first.shape[1] if first.shape[0] > 1 else 0}


def _operands(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Any]:
    query, key, value = _aligned(query), _aligned(key), _aligned(value)
    return {"Q": query, "K": key, "V": value, **_strides(q=query, k=key, v=value)}


def _aligned(x: Tensor) -> Tensor:
    """x (B, H, N, D) as kernels load it: 16 bytes at a time where D allows it, an example's head within 2^31 elements.

    It is copied where it lies otherwise. So a head size that is shipped has the one variant of each kernel that was
    compiled ahead of time.
    """
    *strides, last = x.stride()
    fits = (last == 1 or x.shape[3] == 1) and x.shape[2] * strides[2] < 1 << 31
    if fits and x.shape[3] % 16 == 0:
        fits = all(stride % 16 == 0 for stride in strides) and x.data_ptr() % 16 == 0
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def _strides(**tensors: Tensor) -> dict[str, int]:
    """The strides of (B, H, N, D) tensors by the kernels' names for them."""
    axes = ("batch", "head", "row")
    return {f"{name}_{axis}": x.stride(i) for name, x in tensors.items() for i, axis in enumerate(axes)}


def _flags(mask: Tensor | None) -> Tensor | None:
    """A mask as bytes, which kernels load."""
    return None if mask is None else mask.to(torch.int8)


def _block(kernel: str, config: Configuration) -> int:
    """How many tokens a program of this kernel has: keys or rows."""
    return config.block_n if kernel == "differentiate_keys" else config.block_m


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Kernels are launched on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
