"""The layout of rows, checked against `pipeline.shards`, a block of rows at a time.

Nearly all ids are looked at once, in a comparison with the ranges of ids that no text gives. The places where one of
those stands are few, and where they must stand follows from the pieces: so the two are compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.verify.manifest import BEST_FIT
from pipeline.verify.problems import Problems

PIECE_COLUMNS = ("document_starts", "documents", "document_offsets", "sources")
UNKNOWN = -1
"""In place of an offset that is not to be read."""
MANY_RANGES = 12
"""From so many ranges of special ids on, a table of all ids is faster."""
SHOWN_A_BLOCK = 5
"""Rows named for each kind of problem in a block."""


@dataclass(frozen=True)
class Rules:
    """What the rows of a corpus must be like."""

    sequence_length: int
    packing: str
    bos: int
    eos: int
    pad: int
    special: frozenset[int]
    """Ids that no text gives, those three among them."""
    vocabulary_size: int

    def ranges(self, largest: int) -> list[tuple[int, int]]:
        """The ids that no document holds, up to `largest`, as first and last of each run."""
        outside = [(self.vocabulary_size, largest)] if self.vocabulary_size <= largest else []
        runs: list[tuple[int, int]] = []
        for index in sorted(i for i in self.special if i < self.vocabulary_size):
            if runs and runs[-1][1] == index - 1:
                runs[-1] = (runs[-1][0], index)
            else:
                runs.append((index, index))
        return runs + outside


@dataclass(frozen=True)
class Block:
    """Some rows of a shard that lie one after the other; `first` is the number of the first of them."""

    file: str
    first: int
    batch: pa.RecordBatch

    @property
    def first_offset(self) -> int:
        """Where in its document the first piece starts."""
        offset = next(iter(self.batch.column("document_offsets").slice(0, 1).flatten()), None)
        return UNKNOWN if offset is None or not offset.is_valid else offset.as_py()


@dataclass(frozen=True)
class Pieces:
    """The pieces of a block, in their order; each array has one entry a piece."""

    row: np.ndarray
    """In the block."""
    documents: pa.Array
    sources: pa.Array
    offset: np.ndarray
    tokens: np.ndarray
    """How many tokens of the document the piece holds."""


def read_pieces(block: Block, rules: Rules, following: int | None, problems: Problems) -> Pieces | None:
    """The pieces of a block whose rows are as they must be; None, and the problems, where they are not.

    `following` is the offset of the first piece after the block, or UNKNOWN; None after the last row of a split,
    which alone may have padding where documents were concatenated.
    """
    report = _Report(block, problems)
    columns = [block.batch.column(name) for name in PIECE_COLUMNS]
    if any(column.null_count or column.flatten().null_count for column in columns):
        problems.add(block.file, "a null in a column of pieces")
        return None
    counts = [pc.list_value_length(column).to_numpy() for column in columns]
    for name, other in zip(PIECE_COLUMNS[1:], counts[1:], strict=True):
        report.rows(counts[0] != other, f"{name} has not one entry for each of document_starts")
    report.rows(counts[0] == 0, "has no piece")
    if report.found:
        return None

    last = np.cumsum(counts[0]) - 1
    first = last - counts[0] + 1
    row = np.repeat(np.arange(len(first)), counts[0])
    starts, offsets = (columns[i].flatten().to_numpy().astype(np.int64) for i in (0, 2))
    ids = _input_ids(block.batch, rules)
    special = np.flatnonzero(_is_special(ids, rules))
    special_ids = ids.reshape(-1)[special]

    # Where padding starts.
    length = rules.sequence_length
    padding = special[special_ids == rules.pad]
    padded = np.bincount(padding // length, minlength=len(ids))
    real = length - padded
    earliest = np.full(len(ids), length)
    np.minimum.at(earliest, padding // length, padding % length)
    report.rows(earliest != real, lambda r: f"<pad> at position {earliest[r]} with other tokens after it")
    if rules.packing != BEST_FIT:
        allowed = len(ids) - 1 if following is None else len(ids)
        unexpected = padded > 0
        unexpected[allowed:] = False
        report.rows(unexpected, lambda r: f"{padded[r]:,} <pad> in a row that is not the last of its split")

    # Where pieces start.
    report.rows(starts[first] != 0, lambda r: f"its first piece starts at {starts[first[r]]}, not at 0")
    wrong = np.zeros(len(ids), bool)
    wrong[row[1:][(row[1:] == row[:-1]) & (np.diff(starts) <= 0)]] = True
    wrong[row[(starts < 0) | (starts >= real[row])]] = True
    report.rows(wrong, lambda r: f"document_starts do not increase strictly from 0 to its length {real[r]:,}")
    wrong = np.zeros(len(ids), bool)
    wrong[row[offsets < 0]] = True
    report.rows(wrong, "a negative document offset")
    if report.found:
        return None

    # Which ids must stand where: <s>, the end of each piece, and a document's own end in a row's last piece.
    end = np.append(starts[1:], 0)
    end[last] = real
    closing = row * length + end - 1
    ends = np.zeros(len(ids), bool)
    if rules.packing != BEST_FIT:
        ends = np.append(offsets[first[1:]], following or 0) == 0
        if following == UNKNOWN:
            ends[-1] = ids[-1, -2] == rules.eos
    own_end = np.flatnonzero(ends) * length + real[ends] - 2
    tokens = end - starts - 1
    tokens[first] -= 1
    tokens[last] -= ends
    empty_allowed = np.zeros(len(row), bool)
    if rules.packing != BEST_FIT:
        empty_allowed[first] = offsets[first] > 0
    wrong = np.zeros(len(ids), bool)
    wrong[row[tokens < np.where(empty_allowed, 0, 1)]] = True
    report.rows(wrong, "a piece without tokens of its document")
    if report.found:
        return None
    begins = np.arange(len(ids)) * length
    ending = np.concatenate([closing, own_end])
    expected = np.sort(np.concatenate([begins, ending]))
    found = special[special_ids != rules.pad]
    if not np.array_equal(found, expected):
        _report_unexpected(report, ids, np.setdiff1d(found, expected, assume_unique=True), rules)
    flat = ids.reshape(-1)
    for positions, index in ((begins, rules.bos), (ending, rules.eos)):
        wrong_id = f"id {{}} at position {{}}, expected {index}, {'<s>' if index == rules.bos else '</s>'}"
        report.positions(positions[flat[positions] != index], partial(_format, wrong_id, flat, length))
    if report.found:
        return None
    return Pieces(row, columns[1].flatten(), columns[3].flatten(), offsets, tokens)


def _report_unexpected(report: "_Report", ids: np.ndarray, positions: np.ndarray, rules: Rules) -> None:
    """Names the special ids, and the ids outside of the vocabulary, that stand where documents have theirs."""
    flat = ids.reshape(-1)
    inside = flat[positions] < rules.vocabulary_size
    for where, said in (
        (positions[inside], "special id {} at position {}, inside a document"),
        (
            positions[~inside],
            f"id {{}} at position {{}}, outside of the vocabulary of {rules.vocabulary_size:,}",
        ),
    ):
        report.positions(where, partial(_format, said, flat, rules.sequence_length))


def _format(text: str, flat: np.ndarray, length: int, position: int) -> str:
    return text.format(flat[position], position % length)


def _input_ids(batch: pa.RecordBatch, rules: Rules) -> np.ndarray:
    """(rows, sequence_length), a view."""
    return batch.column("input_ids").flatten().to_numpy().reshape(batch.num_rows, rules.sequence_length)


def _is_special(ids: np.ndarray, rules: Rules) -> np.ndarray:
    """(all ids,) of bool: which are ids that no document holds."""
    flat = ids.reshape(-1)
    largest = int(np.iinfo(flat.dtype).max)
    ranges = rules.ranges(largest)
    if len(ranges) > MANY_RANGES and rules.vocabulary_size <= 1 << 20:
        table = np.zeros(rules.vocabulary_size + 1, bool)
        table[[i for i in rules.special if i < rules.vocabulary_size]] = True
        table[-1] = True
        return table[np.minimum(flat, rules.vocabulary_size)]
    special = np.zeros(len(flat), bool)
    for low, high in ranges:
        # One comparison a range: below `low` the difference wraps around to a large number.
        special |= (flat - flat.dtype.type(low)) <= flat.dtype.type(high - low)
    return special


class _Report:
    """Names the rows of a block that a check found."""

    def __init__(self, block: Block, problems: Problems) -> None:
        self._block, self._problems = block, problems
        self.found = False

    def rows(self, wrong: np.ndarray, message: str | Callable[[int], str]) -> None:
        for row in np.flatnonzero(wrong)[:SHOWN_A_BLOCK]:
            self._add(int(row), message if isinstance(message, str) else message(int(row)))

    def positions(self, wrong: np.ndarray, message: Callable[[int], str]) -> None:
        length = self._block.batch.schema.field("input_ids").type.list_size
        for position in wrong[:SHOWN_A_BLOCK]:
            self._add(int(position) // length, message(int(position)))

    def _add(self, row: int, message: str) -> None:
        self.found = True
        self._problems.add(self._block.file, message, self._block.first + row)
