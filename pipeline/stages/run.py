"""Runs the units of one stage after the other, only those that have not run before, in bounded memory."""

import heapq
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.ledger import Ledger
from pipeline.progress import Progress
from pipeline.report import StageFacts
from pipeline.runner import Runner
from pipeline.storage import Stores
from pipeline.units import Record, Unit, find_record

LOOKAHEAD = 256
"""Units taken from the plan at a time: the largest of them is started first, so that the last to finish are small."""
LOOKUPS = 16
"""Records looked up at a time; on an object store each is a round trip."""


@dataclass
class _Spent:
    """What the units of a stage took, those of earlier runs among them."""

    units: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def add(self, unit: Unit, record: Record) -> None:
        self.units += 1
        self.bytes += unit.size
        self.seconds += record.seconds


class Stages:
    """Runs units on a runner and keeps their records in a ledger."""

    def __init__(self, stores: Stores, runner: Runner) -> None:
        self.stores = stores
        self.ledger = Ledger()
        self.facts: list[StageFacts] = []
        """What each stage took, for the report."""
        self._runner = runner

    def run(self, stage: str, units: Iterable[Unit], total: int | None = None, again: bool = False) -> None:
        """Runs a stage; `ledger.records(stage)` then has the record of each unit, in the order of `units`. Of
        two equal units one runs. `total` says how many there are, where that is known; `again` runs those that have
        run before as well."""
        started = time.monotonic()
        spent = _Spent()
        progress = Progress(stage, total, 0, None)
        numbers: dict[str, list[int]] = {}  # of the units that are under way

        def missing() -> Iterator[Unit]:
            for number, (unit, record) in enumerate(self._looked_up(units, again)):
                if record is not None:
                    self._done(stage, [number], record)
                    spent.add(unit, record)
                    progress.found()
                elif unit.id in numbers:
                    numbers[unit.id].append(number)
                else:
                    numbers[unit.id] = [number]
                    yield unit

        with progress:
            for unit, record in self._runner.run(_largest_first(missing(), LOOKAHEAD), self.stores):
                self._done(stage, numbers.pop(unit.id), record)
                spent.add(unit, record)
                progress.advance(unit.id, unit.size, record.seconds, unit.about)
        wall = time.monotonic() - started
        self.facts.append(StageFacts(stage, spent.seconds, wall, spent.bytes, spent.units, progress.slowest))

    def _looked_up(self, units: Iterable[Unit], again: bool) -> Iterator[tuple[Unit, Record | None]]:
        """Each unit with its record, where it has one."""
        if again:
            yield from ((unit, None) for unit in units)
            return
        waiting: deque[tuple[Unit, Future[Record | None]]] = deque()
        with ThreadPoolExecutor(LOOKUPS) as pool:
            for unit in units:
                waiting.append((unit, pool.submit(find_record, unit, self.stores)))
                if len(waiting) > LOOKUPS:
                    unit, found = waiting.popleft()
                    yield unit, found.result()
            for unit, found in waiting:
                yield unit, found.result()

    def _done(self, stage: str, numbers: Iterable[int], record: Record) -> None:
        for number in numbers:
            self.ledger.add(stage, number, record)

    def close(self) -> None:
        self.ledger.close()


def _largest_first(units: Iterator[Unit], lookahead: int) -> Iterator[Unit]:
    """`units`, the largest of the next `lookahead` each time; those of one size in their order."""
    heap: list[tuple[int, int, Unit]] = []
    for number, unit in enumerate(units):
        heapq.heappush(heap, (-unit.size, number, unit))
        if len(heap) > lookahead:
            yield heapq.heappop(heap)[2]
    while heap:
        yield heapq.heappop(heap)[2]
