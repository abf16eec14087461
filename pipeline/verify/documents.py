"""Whether every document is there once, whole: over all rows of all shards, in bounded memory.

Three numbers a piece go to temporary files, partitioned by a hash of the document's id, and each partition is checked
by itself. The hash has 64 bits, drawn anew in each process: in a corpus of 100 million documents two ids share one
in about one run of 4,000, which would be reported as a document that is there twice.
"""

import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Self

import numpy as np
import pyarrow.compute as pc

from pipeline.verify.problems import Problems
from pipeline.verify.rows import SHOWN_A_BLOCK, Block, Pieces

PARTITIONS = 32
"""A hundred million pieces are then 125 MB a partition."""

_PIECE = np.dtype(
    [
        ("document", np.int64),
        ("split", np.int64),
        ("row", np.int64),
        ("offset", np.int64),
        ("tokens", np.int64),
    ]
)


class Chain:
    """Follows the stream of a split that was concatenated: a row goes on where the row before it ended."""

    def __init__(self) -> None:
        self._before: tuple[str, int] | None = None
        self._lost = False

    def lose(self) -> None:
        """What comes before the next rows is not known."""
        self._lost = True

    def follow(self, block: Block, pieces: Pieces, problems: Problems) -> None:
        """The pieces of the next rows."""
        place = np.append(0, (pieces.offset + pieces.tokens)[:-1])
        row_before = np.append(-1, pieces.row[:-1])
        same = np.zeros(len(place), bool)
        same[1:] = pc.equal(pieces.documents.slice(1), pieces.documents.slice(0, len(place) - 1)).to_numpy(
            False
        )
        if self._before is not None:
            same[0] = self._before[0] == pieces.documents[0].as_py()
            place[0] = self._before[1]
        goes_on = same & (pieces.offset == place) & (pieces.row != row_before)
        goes_on[0] |= self._lost
        self._lost = False
        wrong = np.flatnonzero((pieces.offset != 0) & ~goes_on)
        for piece in wrong[:SHOWN_A_BLOCK]:
            document, offset = pieces.documents[int(piece)].as_py(), int(pieces.offset[piece])
            problems.add(
                block.file,
                f"a piece of {document} from its token {offset:,} on, but what comes before it is not the piece that "
                "ends there",
                block.first + int(pieces.row[piece]),
            )
        self._before = (pieces.documents[-1].as_py(), int(pieces.offset[-1] + pieces.tokens[-1]))


@dataclass(frozen=True)
class Place:
    """The rows of a block, numbered over the whole corpus."""

    start: int
    block: Block


class Coverage:
    """Gathers all pieces, then says which documents are not covered by theirs exactly once. Use it in a `with`."""

    def __init__(self) -> None:
        self.documents: Counter[tuple[str, str]] = Counter()
        """By split and source."""
        self.tokens: Counter[tuple[str, str]] = Counter()
        self._splits: list[str] = []
        self._files: list[tuple[int, str, int]] = []  # number of the first row, file, the row's number in it
        self._rows = 0
        self._stack = ExitStack()
        self._parts: list[IO[bytes]] = []

    def __enter__(self) -> Self:
        enter = self._stack.enter_context
        self._parts = [enter(tempfile.TemporaryFile()) for _ in range(PARTITIONS)]  # noqa: SIM115
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, split: str, block: Block, pieces: Pieces, problems: Problems) -> None:
        """The pieces of a block of a split."""
        if split not in self._splits:
            self._splits.append(split)
        self._files.append((self._rows, block.file, block.first))
        table = np.empty(len(pieces.row), _PIECE)
        # Python's own hash of a string: the fastest there is here, and nothing outlives this process.
        table["document"] = np.fromiter(map(hash, pieces.documents.to_pylist()), np.int64, len(table))
        table["split"] = self._splits.index(split)
        table["row"] = pieces.row + self._rows
        table["offset"], table["tokens"] = pieces.offset, pieces.tokens
        part = table["document"] & (PARTITIONS - 1)
        for number, file in enumerate(self._parts):
            file.write(table[part == number].tobytes())
        self._rows += block.batch.num_rows
        self._count(split, block, pieces, problems)

    def _count(self, split: str, block: Block, pieces: Pieces, problems: Problems) -> None:
        encoded = pieces.sources.dictionary_encode()
        number = encoded.indices.to_numpy()
        for index, source in enumerate(encoded.dictionary.to_pylist()):
            own = number == index
            self.tokens[split, source] += int(pieces.tokens[own].sum())
            self.documents[split, source] += int((pieces.offset[own] == 0).sum())
            named = pc.starts_with(pieces.documents, f"{source}/").to_numpy(False)
            for piece in np.flatnonzero(own & ~named)[:SHOWN_A_BLOCK]:
                document = pieces.documents[int(piece)].as_py()
                message = f"document {document} is said to be of source {source}"
                problems.add(block.file, message, block.first + int(pieces.row[piece]))

    def check(self, problems: Problems) -> None:
        """To be called when all pieces were added."""
        for file in self._parts:
            file.seek(0)
            table = np.frombuffer(file.read(), _PIECE)
            table = table[np.lexsort((table["row"], table["offset"], table["document"]))]
            first = np.append(True, table["document"][1:] != table["document"][:-1])[: len(table)]
            end = np.append(0, (table["offset"] + table["tokens"])[:-1])[: len(table)]
            place = np.where(first, 0, end)
            elsewhere = ~first & (table["split"] != np.append(0, table["split"][:-1])[: len(table)])
            for index in np.flatnonzero((table["offset"] != place) | elsewhere)[:SHOWN_A_BLOCK]:
                self._name(table, int(index), bool(first[index]), int(place[index]), problems)

    def _name(self, table: np.ndarray, index: int, first: bool, place: int, problems: Problems) -> None:
        file, row = self._locate(int(table["row"][index]))
        offset = int(table["offset"][index])
        if first:
            message = f"a document's first piece starts at its token {offset:,}: what comes before is missing"
        elif table["split"][index] != table["split"][index - 1]:
            other, at = self._locate(int(table["row"][index - 1]))
            message = f"a document that is in another split too: {other}, row {at:,}"
        elif offset < place:
            other, at = self._locate(int(table["row"][index - 1]))
            message = f"tokens of a document that are also in {other}, row {at:,}"
        else:
            message = (
                f"a piece of a document starts at its token {offset:,}, the one before it ends at {place:,}"
            )
        problems.add(file, message, row)

    def _locate(self, row: int) -> tuple[str, int]:
        """The file of a row of the whole corpus, and its number there."""
        number = int(np.searchsorted([start for start, _, _ in self._files], row, side="right")) - 1
        start, file, first = self._files[number]
        return file, first + row - start
