"""What is wrong with a corpus, as far as it was found."""

from dataclasses import dataclass, field

SHOWN = 20
"""How many problems are named; further ones are counted."""


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it must be; `row` is the sequence's number in its file, from 0."""

    file: str
    row: int | None
    message: str

    def __str__(self) -> str:
        place = self.file if self.row is None else f"{self.file}, row {self.row:,}"
        return f"{place}: {self.message}"


@dataclass
class Problems:
    """The first SHOWN problems, and how many there are."""

    shown: list[Problem] = field(default_factory=list)
    count: int = 0

    def add(self, file: str, message: str, row: int | None = None) -> None:
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(Problem(file, row, message))

    def differ(self, file: str, what: str, found: object, expected: object) -> None:
        """A problem where the two differ."""
        if found != expected:
            self.add(file, f"{what}: found {_said(found)}, expected {_said(expected)}")


def _said(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
