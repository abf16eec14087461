"""Overlapping blocks in plain PyTorch, on any device: each block of rows against the range of keys its rows see.

Everything is one case, rows that each see one interval of a list of keys (`pattern`), met three times:

- the band: a strip of a head's local tokens against the keys of the same strip;
- the global columns: the same rows against the list of global keys, in the same softmax;
- the global rows: the list of global tokens against the whole sequence.

A block's keys are taken in tiles of bounded width, whose sums are merged, so that no row of scores is ever as
long as the sequence; for a band of ordinary width there is one tile. Masks are built for the edges of a block's
range alone; where every row sees every key there is none. Scratch is a few times `SCRATCH_CPU` or `SCRATCH_GPU`
numbers, whatever the batch, length or number of global tokens. The backward pass recomputes the weights tile by tile
and adds to the keys' gradients in the order of the blocks: the same bits every run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, takewhile

import torch
from torch import Tensor

from attention import dropout
from attention.dropout import RowState
from attention.pattern import Block, Intervals, Pattern
from attention.problem import Gradients, Problem

# Numbers at a time, scores and operands of a tile. On a CPU: six heads of the usual 64 numbers with the usual window of
# 512, as starting operations on less takes longer than what comes from the third-level cache instead of the second.
SCRATCH_CPU = 3 << 18
SCRATCH_GPU = 1 << 24
ROWS = 64  # of a block
TILE = 2048  # the most keys of a tile

# Added to the score of a key that is not seen. Finite, so that a row whose tile holds nothing stays finite; so far
# below any score that its weight beside a seen key is exactly 0.
HIDDEN = -1e30

# Scores and their sums are kept as powers of two: on a CPU torch's exp2 takes a quarter of exp's time, and where the
# result is next to nothing, as for hidden keys, a tenth and less.
LOG2_E = 1 / math.log(2)


@dataclass(frozen=True)
class Keys:
    """A list of keys of which row i sees the interval intervals[i], but for hidden ones."""

    key: Tensor  # (B, H, K, D)
    value: Tensor
    position: Tensor  # int32 (B or 1, K), in the sequence
    intervals: Intervals  # (B or 1, M)
    hidden: Tensor | None  # (B, K)
    grad_key: Tensor | None = None  # like key, to be added to
    grad_value: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """Rows that share a softmax over several lists of keys."""

    query: Tensor  # (B, H, M, D)
    output: Tensor  # to be written in the forward pass, read in the backward pass
    logsumexp: Tensor  # (B, H, M), likewise
    state: RowState | None  # what dropout needs, (B, H, M)
    keys: list[Keys]
    grad: Tensor | None = None  # of the output
    grad_query: Tensor | None = None  # to be added to


def usable() -> bool:
    """See `problem.Backend`."""
    return True


def rejects(query: Tensor) -> str | None:
    """See `problem.Backend`."""
    return None


def trusted(query: Tensor) -> bool:
    """See `problem.Backend`."""
    return True


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """See `problem.Backend`."""
    query = problem.query
    output = query.new_zeros(query.shape)
    logsumexp = query.new_full(query.shape[:3], torch.inf, dtype=problem.dtype)
    for rows in _strips(problem, output, logsumexp):
        _attend(problem, rows)
    for rows in _global_rows(problem, output, logsumexp):
        _attend(problem, rows)
        _put_rows(problem.pattern, output, rows.output)
        _put_rows(problem.pattern, logsumexp, rows.logsumexp)
    return output, logsumexp


def backward(problem: Problem, output: Tensor, logsumexp: Tensor, grad: Tensor) -> Gradients:
    """See `problem.Backend`."""
    gradients = Gradients.zeros(problem)
    for rows in _strips(problem, output, logsumexp, grad, gradients):
        _differentiate(problem, rows)
    for rows in _global_rows(problem, output, logsumexp, grad, gradients):
        _differentiate(problem, rows)
        assert rows.grad_query is not None
        _put_rows(problem.pattern, gradients.query_global, rows.grad_query)
    return gradients


# The three meetings of rows and keys.


def _strips(
    problem: Problem,
    output: Tensor,
    logsumexp: Tensor,
    grad: Tensor | None = None,
    gradients: Gradients | None = None,
) -> Iterator[Rows]:
    """The local tokens: each run of heads of one dilation, each residue modulo the dilation."""
    pattern = problem.pattern
    position = torch.arange(pattern.length, dtype=torch.int32, device=pattern.device)[None]
    state = problem.row_state(position, dropout.LOCAL_STREAM)
    hidden = pattern.hidden
    for dilation, heads in _heads_by_dilation(pattern.dilation):
        columns = _global_columns(problem, heads, gradients)
        for residue in range(min(dilation, pattern.length)):
            strip = slice(residue, None, dilation)
            at = (slice(None), heads, strip)
            band = Keys(
                problem.key[at],
                problem.value[at],
                position[:, strip],
                pattern.band(residue, dilation),
                None if hidden is None else hidden[:, strip],
                None if gradients is None else gradients.key[at],
                None if gradients is None else gradients.value[at],
            )
            keys = [band]
            if columns is not None:
                keys.append(replace(columns, intervals=columns.intervals.rows(strip)))
            yield Rows(
                problem.query[at],
                output[at],
                logsumexp[at],
                None if state is None else RowState(state.low[at], state.high[at]),
                keys,
                None if grad is None else grad[at],
                None if gradients is None else gradients.query[at],
            )
        if columns is not None and gradients is not None:
            _add_columns(pattern, gradients.key[:, heads], columns.grad_key)
            _add_columns(pattern, gradients.value[:, heads], columns.grad_value)


def _heads_by_dilation(dilation: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    """The heads of each dilation together, as slices, which take views; in several where their steps differ."""
    for one in dict.fromkeys(dilation):
        heads = [head for head, of_head in enumerate(dilation) if of_head == one]
        while heads:
            step = heads[1] - heads[0] if len(heads) > 1 else 1
            run = list(takewhile(lambda pair: pair[0] == pair[1], zip(heads, count(heads[0], step))))
            yield one, slice(heads[0], run[-1][0] + 1, step)
            heads = heads[len(run) :]


def _global_columns(problem: Problem, heads: slice, gradients: Gradients | None) -> Keys | None:
    """The list of global keys for some heads, gathered, with gradient buffers of their own."""
    pattern = problem.pattern
    if pattern.is_global is None:
        return None
    index, _ = pattern.global_index
    key, value = _take_rows(problem.key[:, heads], index), _take_rows(problem.value[:, heads], index)
    intervals = pattern.global_columns()
    if gradients is None:
        return Keys(key, value, index.to(torch.int32), intervals, None)
    grad_key, grad_value = (torch.zeros_like(x, dtype=problem.dtype) for x in (key, value))
    return Keys(key, value, index.to(torch.int32), intervals, None, grad_key, grad_value)


def _global_rows(
    problem: Problem,
    output: Tensor,
    logsumexp: Tensor,
    grad: Tensor | None = None,
    gradients: Gradients | None = None,
) -> Iterator[Rows]:
    """The global tokens, gathered, against the whole sequence; nothing where there are none."""
    pattern = problem.pattern
    if pattern.is_global is None:
        return
    index, _ = pattern.global_index
    query, key, value = problem.global_projections
    query = _take_rows(query, index)
    keys = Keys(
        key,
        value,
        torch.arange(pattern.length, dtype=torch.int32, device=pattern.device)[None],
        pattern.global_rows(),
        pattern.holes,
        None if gradients is None else gradients.key_global,
        None if gradients is None else gradients.value_global,
    )
    yield Rows(
        query,
        _take_rows(output, index),
        _take_rows(logsumexp[..., None], index)[..., 0],
        problem.row_state(index, dropout.GLOBAL_STREAM),
        [keys],
        None if grad is None else _take_rows(grad, index),
        None if gradients is None else torch.zeros_like(query, dtype=problem.dtype),
    )


def _take_rows(source: Tensor, index: Tensor) -> Tensor:
    """The rows of source (B, H, N, D) at index (B, G): (B, H, G, D)."""
    batch, heads, _, head_dim = source.shape
    return source.gather(2, index[:, None, :, None].expand(batch, heads, -1, head_dim))


def _put_rows(pattern: Pattern, target: Tensor, rows: Tensor) -> None:
    """Write rows (B, H, G, …) to the places of the global tokens in target (B, H, N, …)."""
    index, used = pattern.global_index
    example, slot = used.nonzero(as_tuple=True)
    target[example, :, index[example, slot]] = rows[example, :, slot].to(target.dtype)


def _add_columns(pattern: Pattern, target: Tensor, columns: Tensor | None) -> None:
    """Add (B, H, G, D) to the places of the global tokens in target. Each place occurs once: no order to depend on."""
    assert columns is not None
    index, used = pattern.global_index
    example, slot = used.nonzero(as_tuple=True)
    place = index[example, slot]
    target[example, :, place] = target[example, :, place] + columns[example, :, slot]


# Blocks and tiles. P stands for the pairs of example and head that are computed at once.


def _attend(problem: Problem, rows: Rows) -> None:
    """Write output and logsumexp of the rows."""
    dtype, scratch = problem.dtype, _Scratch(rows.query, problem.dtype)
    for part, blocks in _parts(rows):
        for block, tiles in blocks:
            query = part.take(rows.query, block, dtype)  # (P, M, D)
            merged = None
            for tile in tiles:
                weight = part.score(query, tile, problem.scale, scratch)  # (P, M, K)
                peak = weight.amax(-1, keepdim=True)
                total = weight.sub_(peak).exp2_().sum(-1, keepdim=True)
                keep = part.keep(block, tile, problem.dropout_p, dtype)
                if keep is not None:
                    weight.mul_(keep)
                output = torch.bmm(weight, part.take(tile.keys.value, tile.columns, dtype))
                merged = _merge(merged, (peak, total, output))
            if merged is None:
                continue
            peak, total, output = merged
            nothing = peak < HIDDEN / 2
            output.div_(total * (1 - problem.dropout_p)).masked_fill_(nothing, 0)
            part.put(rows.output, block, output)
            logsumexp = total.log2_().add_(peak).div_(LOG2_E).masked_fill_(nothing, torch.inf)
            part.put(rows.logsumexp, block, logsumexp[..., 0])


def _merge(one: tuple[Tensor, ...] | None, other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The greatest score, the sum of the weights relative to it and that of weighted values, of two tiles together."""
    if one is None:
        return other
    peak = torch.maximum(one[0], other[0])
    shrink, other_shrink = (one[0] - peak).exp2_(), (other[0] - peak).exp2_()
    return peak, *(a.mul_(shrink).addcmul_(b, other_shrink) for a, b in zip(one[1:], other[1:]))


def _differentiate(problem: Problem, rows: Rows) -> None:
    """Add to the gradients of the rows' queries and of their keys."""
    dtype, scratch = problem.dtype, _Scratch(rows.query, problem.dtype)
    assert rows.grad is not None
    assert rows.grad_query is not None
    for part, blocks in _parts(rows):
        for block, tiles in blocks:
            query = part.take(rows.query, block, dtype)  # (P, M, D)
            grad = part.take(rows.grad, block, dtype)
            logsumexp = part.take(rows.logsumexp, block, dtype)[..., None] * LOG2_E
            # The sum over the keys of weight times its gradient, (P, M, 1).
            delta = (grad * part.take(rows.output, block, dtype)).sum(-1, keepdim=True)
            if problem.dropout_p > 0:
                grad = grad / (1 - problem.dropout_p)
            for tile in tiles:
                key = part.take(tile.keys.key, tile.columns, dtype)  # (P, K, D)
                weight = part.score(query, tile, problem.scale, scratch).sub_(logsumexp).exp2_()  # (P, M, K)
                grad_score = scratch.take(1, weight.shape)
                torch.bmm(grad, part.take(tile.keys.value, tile.columns, dtype).mT, out=grad_score)
                keep = part.keep(block, tile, problem.dropout_p, dtype)
                if keep is not None:
                    grad_score.mul_(keep)
                grad_score.sub_(delta).mul_(weight)
                if keep is not None:
                    weight.mul_(keep)
                part.add_product(tile.keys.grad_value, tile.columns, weight.mT, grad)
                part.add_product(tile.keys.grad_key, tile.columns, grad_score.mT, query, problem.scale)
                part.add_product(rows.grad_query, block, grad_score, key, problem.scale)


@dataclass(frozen=True)
class Tile:
    """Some columns of a list of keys, against a block of rows."""

    keys: Keys
    block: Block
    columns: slice

    def edges(self) -> list[slice]:
        """The columns that not every row of the block sees."""
        low, high = self.columns.start, self.columns.stop
        inner_low, inner_high = max(low, self.block.inner_low), min(high, self.block.inner_high)
        if inner_low >= inner_high:
            return [self.columns]
        return [edge for edge in (slice(low, inner_low), slice(inner_high, high)) if edge.start < edge.stop]


@dataclass(frozen=True)
class Part:
    """Some examples and heads of some rows. What is taken from it has P, the pairs of the two, in front."""

    rows: Rows
    examples: slice
    heads: slice

    def take(self, tensor: Tensor, places: slice, dtype: torch.dtype) -> Tensor:
        """(P, …) of tensor (B, H, M or K, …): a view where strides and dtype allow it."""
        return tensor[self.examples, self.heads, places].flatten(0, 1).to(dtype)

    def put(self, tensor: Tensor, places: slice, values: Tensor) -> None:
        """Write values (P, …) to tensor (B, H, M, …)."""
        part = tensor[self.examples, self.heads, places]
        part.copy_(values.view(part.shape))

    def add_product(
        self, tensor: Tensor | None, places: slice, left: Tensor, right: Tensor, scale: float = 1.0
    ) -> None:
        """Add scale * left @ right (P, …, D) to tensor (B, H, M or K, D), in place where its strides allow it."""
        assert tensor is not None
        part = tensor[self.examples, self.heads, places]
        if part.shape[0] == 1 or part.stride(0) == part.shape[1] * part.stride(1):
            part.flatten(0, 1).baddbmm_(left, right, alpha=scale)
        else:
            part.add_(torch.bmm(left, right).view(part.shape), alpha=scale)

    def score(self, query: Tensor, tile: Tile, scale: float, scratch: _Scratch) -> Tensor:
        """Scores (P, M, K) of a tile in powers of two, with HIDDEN added where a key is not seen."""
        key = self.take(tile.keys.key, tile.columns, query.dtype)
        score = scratch.take(0, (*query.shape[:2], key.shape[1]))
        score.baddbmm_(query, key.mT, beta=0, alpha=scale * LOG2_E)
        per_example = score.view(-1, self.heads.stop - self.heads.start, *score.shape[1:])  # (E, H, M, K)
        for edge in tile.edges():
            columns = slice(edge.start - tile.columns.start, edge.stop - tile.columns.start)
            seen = tile.keys.intervals.of(self.examples).seen(tile.block.rows, edge)  # (E or 1, M, K)
            per_example[..., columns] += torch.where(seen, 0.0, HIDDEN)[:, None]
        if tile.keys.hidden is not None:
            hidden = tile.keys.hidden[self.examples, tile.columns]  # (E, K)
            if hidden.any():
                per_example += hidden[:, None, None] * HIDDEN
        return score

    def keep(self, rows: slice, tile: Tile, dropout_p: float, dtype: torch.dtype) -> Tensor | None:
        """What dropout leaves of a tile, 0 or 1: (P, M, K)."""
        if self.rows.state is None:
            return None
        low, high = (self.take(word, rows, torch.int32)[..., None] for word in self.rows.state)
        position = tile.keys.position[:, tile.columns]
        if position.shape[0] > 1:
            position = position[self.examples].repeat_interleave(self.heads.stop - self.heads.start, dim=0)
        return dropout.keep(RowState(low, high), position[:, None], dropout_p, dtype)


def _parts(rows: Rows) -> Iterator[tuple[Part, list[tuple[slice, list[Tile]]]]]:
    """Parts whose tiles of scores fit the scratch, each with its blocks of rows and the tiles these see."""
    batch, heads, length, head_dim = rows.query.shape
    widths = [keys.intervals.widest() for keys in rows.keys]
    size = min(length, ROWS)
    scratch = SCRATCH_CPU if rows.query.device.type == "cpu" else SCRATCH_GPU
    tile = min(TILE, max(min(width + size, keys.key.shape[2]) for width, keys in zip(widths, rows.keys)))
    pairs = max(1, scratch // (size * tile + 2 * (size + tile) * head_dim))
    head_step, example_step = min(heads, pairs), max(1, pairs // heads)
    for start in range(0, batch, example_step):
        examples = slice(start, min(start + example_step, batch))
        lists = [(keys, keys.intervals.of(examples).blocks(size)) for keys in rows.keys]
        blocks = [
            (
                slice(i * size, min((i + 1) * size, length)),
                [t for keys, cut in lists for t in _tiles(keys, cut[i])],
            )
            for i in range(-(-length // size))
        ]
        for head in range(0, heads, head_step):
            yield Part(rows, examples, slice(head, min(head + head_step, heads))), blocks


def _tiles(keys: Keys, block: Block) -> list[Tile]:
    """The columns that a block of rows sees, TILE at a time."""
    starts = range(block.low, block.high, TILE)
    return [Tile(keys, block, slice(start, min(start + TILE, block.high))) for start in starts]


class _Scratch:
    """Two buffers for scores, grown once and used again for every tile: large allocations are slow on a CPU."""

    def __init__(self, like: Tensor, dtype: torch.dtype) -> None:
        self._buffers = [like.new_empty(0, dtype=dtype) for _ in range(2)]

    def take(self, which: int, shape: tuple[int, ...]) -> Tensor:
        """An uninitialised tensor of `shape`, valid until the same buffer is taken again."""
        size = math.prod(shape)
        if self._buffers[which].numel() < size:
            self._buffers[which] = self._buffers[which].new_empty(size)
        return self._buffers[which][:size].view(shape)
