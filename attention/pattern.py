"""What a token sees: the one definition that backends, tests and pictures read (Longformer, section 3.1).

Three views of the same rule:

- `sees`, an elementwise predicate on a query token and a key token. It is the truth.
- `Pattern.dense`, the predicate on all pairs: the mask of the tests' reference.
- `Pattern.band`, `.global_columns` and `.global_rows`, the interval view of the fast backends. Split the sequence
  by residue modulo the dilation into strips; in its strip a token sees one contiguous interval of keys, which
  window, causality, document borders and padding at the ends merely clip. The global tokens of a document, listed
  in order, are an interval as well, and so is what a global token sees. Holes in the padding are the one
  exception: `Pattern.holes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Tokens(NamedTuple):
    """What the rule asks about tokens. The fields broadcast against each other."""

    position: Tensor
    real: Tensor
    is_global: Tensor
    document: Tensor

    def at(self, index: Tensor) -> Tokens:
        """The tokens at `index` (B or 1, H or 1, M), of fields (B, N); the result's fields are (B, H or 1, M)."""
        batch, length = self.position.shape
        index = index.expand(batch, -1, -1)
        fields = (field[:, None].expand(-1, index.shape[1], length).gather(2, index) for field in self)
        return Tokens(*fields)


def sees(query: Tokens, key: Tokens, window: int, dilation: int | Tensor, causal: bool) -> Tensor:
    """Whether each query token attends to each key token: bool, of the broadcast shape.

    `window` is the total even width (window / 2 on each side) and `dilation` the step between visible keys. A
    global token sees, and is seen by, every real token of its document; causality holds for those pairs too.
    """
    distance = key.position - query.position
    in_band = (distance.abs() <= window // 2 * dilation) & (distance % dilation == 0)
    seen = (in_band | query.is_global | key.is_global) & (query.document == key.document)
    seen = seen & query.real & key.real
    return seen & (distance <= 0) if causal else seen


def visible_pairs(tokens: int, window: int) -> int:
    """Pairs of a query and a key that it sees, of one head of a sequence without global tokens, gaps or padding."""
    half = min(window // 2, tokens - 1)
    return tokens * (2 * half + 1) - half * (half + 1)


class Block(NamedTuple):
    """A run of rows with the keys that any of them sees, [low, high), and that all see, [inner_low, inner_high)."""

    rows: slice
    low: int
    high: int
    inner_low: int
    inner_high: int


@dataclass(frozen=True)
class Intervals:
    """Row i sees the keys [first, last) of a list; none where last <= first. Both (B or 1, M)."""

    first: Tensor
    last: Tensor

    def of(self, examples: slice) -> Intervals:
        """The intervals of some examples of the batch."""
        if self.first.shape[0] == 1:
            return self
        return Intervals(self.first[examples], self.last[examples])

    def rows(self, rows: slice) -> Intervals:
        """The intervals of some rows."""
        return Intervals(self.first[:, rows], self.last[:, rows])

    def seen(self, rows: slice, keys: slice) -> Tensor:
        """Which rows see which keys: bool (B or 1, M, K)."""
        key = torch.arange(keys.start, keys.stop, device=self.first.device)
        return (key >= self.first[:, rows, None]) & (key < self.last[:, rows, None])

    def widest(self) -> int:
        """The most keys that a row sees."""
        return max(0, int((self.last - self.first).max()))

    def blocks(self, size: int) -> list[Block]:
        """Cut the rows into blocks of `size`. One transfer to the host for all of them."""
        rows, beyond = self.first.shape[1], 1 << 31  # of any list; F.pad takes its value as a double
        empty = self.last <= self.first
        first, last = self.first.masked_fill(empty, beyond), self.last.masked_fill(empty, 0)

        def per_block(bounds: Tensor, neutral: int) -> Tensor:
            padded = F.pad(bounds, (0, -rows % size), value=neutral)
            return padded.view(bounds.shape[0], -1, size)

        table = torch.stack(
            [
                per_block(first, beyond).amin((0, 2)),
                per_block(last, 0).amax((0, 2)),
                per_block(first, 0).amax((0, 2)),
                per_block(last, beyond).amin((0, 2)),
            ],
            dim=1,
        )
        starts = range(0, rows, size)
        return [Block(slice(i, min(i + size, rows)), *bounds) for i, bounds in zip(starts, table.tolist())]


def interleave(strips: list[Intervals], length: int) -> Intervals:
    """The intervals of a dilation's strips, one after another by residue, at the positions of their tokens."""
    if len(strips) == 1:
        return strips[0]
    first, last = (strips[0].first.new_empty(strips[0].first.shape[0], length) for _ in range(2))
    for residue, strip in enumerate(strips):
        first[:, residue :: len(strips)], last[:, residue :: len(strips)] = strip.first, strip.last
    return Intervals(first, last)


@dataclass(frozen=True)
class Pattern:
    """Who sees whom in a batch of sequences of one length.

    window, causal: as in `sees`; dilation: one a head. real, is_global: bool (B, N), document: int (B, N); None
    stands for all real, none global, one document. A padded token is never global, and its document id is ignored.
    """

    batch: int
    length: int
    window: int
    dilation: tuple[int, ...]
    causal: bool
    real: Tensor | None
    is_global: Tensor | None
    document: Tensor | None
    device: torch.device

    @classmethod
    def of(
        cls,
        query: Tensor,
        window: int,
        dilation: tuple[int, ...],
        causal: bool,
        attention_mask: Tensor | None,
        global_attention_mask: Tensor | None,
        document_ids: Tensor | None,
    ) -> Pattern:
        """The pattern of a (B, H, N, D) query; masks that change nothing are dropped, which spares backends work."""
        batch, _, length, _ = query.shape
        if attention_mask is not None and attention_mask.all():
            attention_mask = None
        if attention_mask is not None and global_attention_mask is not None:
            global_attention_mask = global_attention_mask & attention_mask
        if global_attention_mask is not None and not global_attention_mask.any():
            global_attention_mask = None
        given = (attention_mask, global_attention_mask, document_ids)
        masks = (
            None if mask is None else mask.contiguous() for mask in given
        )  # kernels read rows of examples
        real, is_global, document = masks
        return cls(batch, length, window, dilation, causal, real, is_global, document, query.device)

    # The truth, on tokens and on all pairs.

    @cached_property
    def tokens(self) -> Tokens:
        """All tokens, each field (B, N)."""
        shape = (self.batch, self.length)
        true = torch.ones(shape, dtype=torch.bool, device=self.device)
        return Tokens(
            self._positions.expand(shape),
            true if self.real is None else self.real,
            ~true if self.is_global is None else self.is_global,
            self._positions.new_zeros(shape) if self.document is None else self.document,
        )

    def dense(self) -> Tensor:
        """Who sees whom: bool (B, H, N, N), queries before keys. For references and pictures; quadratic."""
        query = Tokens(*(field[:, None, :, None] for field in self.tokens))
        key = Tokens(*(field[:, None, None, :] for field in self.tokens))
        dilation = torch.tensor(self.dilation, device=self.device)[:, None, None]
        return sees(query, key, self.window, dilation, self.causal)

    # The interval view.

    def band(self, residue: int, dilation: int) -> Intervals:
        """What each local token of the strip `residue`, `residue` + `dilation`, … sees of its own strip."""
        start, end = self._local_runs
        start, end = start[:, residue::dilation], end[:, residue::dilation]
        if dilation > 1:  # from positions to places in the strip, rounded up
            start = (start - residue + dilation - 1).div(dilation, rounding_mode="floor")
            end = (end - residue + dilation - 1).div(dilation, rounding_mode="floor")
        half = min(self.window // 2, self.length)
        place = self._positions[:, : start.shape[1]]
        reach = place if self.causal else place + half
        return Intervals(torch.maximum(start, place - half), torch.minimum(end, reach + 1))

    def band_by_position(self, dilation: int) -> Intervals:
        """`band` of all strips, each interval at the position of its token: (B or 1, N)."""
        strips = range(min(dilation, self.length))
        return interleave([self.band(residue, dilation) for residue in strips], self.length)

    def global_columns(self) -> Intervals:
        """Which entries of the list of global tokens each local token sees, (B, N)."""
        assert self.is_global is not None
        start, end = self._local_runs
        if self.causal:
            end = torch.minimum(end, self._positions + 1)
        before = F.pad(
            self.is_global.cumsum(1), (1, 0)
        )  # (B, N + 1), global tokens in front of each position
        shape = (self.batch, self.length)
        return Intervals(before.gather(1, start.expand(shape)), before.gather(1, end.expand(shape)))

    def global_rows(self) -> Intervals:
        """What each entry of the list of global tokens sees of the whole sequence, (B, G)."""
        index, valid = self.global_index
        shape = (self.batch, self.length)
        start, end = (bound.expand(shape).gather(1, index) for bound in self._runs)
        if self.causal:
            end = torch.minimum(end, index + 1)
        return Intervals(start, torch.where(valid, end, 0))

    @cached_property
    def global_index(self) -> tuple[Tensor, Tensor]:
        """Positions of each example's global tokens in order, and which entries of the list are used: (B, G)."""
        assert self.is_global is not None
        count = self.is_global.sum(1)
        slots = int(count.max())
        order = self.is_global.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :slots]
        return order, torch.arange(slots, device=self.device) < count[:, None]

    @cached_property
    def holes(self) -> Tensor | None:
        """Padded tokens between real ones of a document, (B, N): inside intervals, yet seen by nobody."""
        if self.real is None:
            return None
        start, end = self._run_bounds
        holes = ~self.real & (self._positions >= start) & (self._positions < end)
        return holes if holes.any() else None

    @cached_property
    def hidden(self) -> Tensor | None:
        """Keys that no band shows, (B, N): holes, and global tokens, which are a list of their own."""
        if self.holes is None or self.is_global is None:
            return self.is_global if self.holes is None else self.holes
        return self.holes | self.is_global

    def check_documents(self) -> None:
        """ValueError unless each document id of real tokens is one contiguous run."""
        if self.document is None:
            return
        ids = self._document_of_run
        runs = (ids.diff(dim=1) != 0).sum(1)
        distinct = (ids.sort(dim=1).values.diff(dim=1) != 0).sum(1)
        if (runs != distinct).any():
            example = int((runs != distinct).nonzero()[0])
            raise ValueError(
                f"document_ids: in example {example} an id returns after another one; "
                "each id must be one contiguous run"
            )

    @cached_property
    def _positions(self) -> Tensor:
        return torch.arange(self.length, device=self.device)[None]

    @cached_property
    def _document_of_run(self) -> Tensor:
        """Document ids (B, N) in which padding carries the id of the real token in front of it (else the next)."""
        assert self.document is not None
        if self.real is None:
            return self.document
        nearest = torch.where(self.real, self._positions, -1).cummax(dim=1).values
        first_real = self.real.to(torch.int8).argmax(dim=1, keepdim=True)
        return self.document.gather(1, torch.where(nearest < 0, first_real, nearest))

    @cached_property
    def _run_bounds(self) -> tuple[Tensor, Tensor]:
        """From the first to behind the last real token of the document around each position, (B or 1, N)."""
        real = self.tokens.real
        start, end = (
            torch.where(real, self._positions, self.length),
            torch.where(real, self._positions + 1, 0),
        )
        if self.document is None:
            bounds = start.amin(1, keepdim=True), end.amax(1, keepdim=True)
            return bounds[0].expand_as(start), bounds[1].expand_as(end)
        run = F.pad((self._document_of_run.diff(dim=1) != 0).cumsum(1), (1, 0))
        start = start.scatter_reduce(1, run, start, "amin", include_self=False).gather(1, run)
        end = end.scatter_reduce(1, run, end, "amax", include_self=False).gather(1, run)
        return start, end

    @cached_property
    def _runs(self) -> tuple[Tensor, Tensor]:
        """The keys [start, end) of its document around each real token, nothing for padding; (B or 1, N)."""
        if self.real is None and self.document is None:
            nothing = torch.zeros_like(self._positions)
            return nothing, nothing + self.length
        start, end = self._run_bounds
        if self.real is None:
            return start, end
        return torch.where(self.real, start, 0), torch.where(self.real, end, 0)

    @cached_property
    def _local_runs(self) -> tuple[Tensor, Tensor]:
        """As `_runs`, with nothing for global tokens, whose rows are computed apart."""
        start, end = self._runs
        if self.is_global is None:
            return start, end
        return torch.where(self.is_global, 0, start), torch.where(self.is_global, 0, end)
