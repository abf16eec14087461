"""What the stages of a running build have done: their records in the order of the plan, on disk.

A build of a hundred thousand units keeps none of them in the driver's memory: units come from generators, and
their records go here, into a temporary database that ends with the process. It is no state: what was done is told
by the sealed records in the work storage, from which a resumed build fills its ledger anew.
"""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict

from pipeline.units import Record, record_of

_PAGE = 200
"""Records read at a time, so that one stage can be read while the next one is written."""


class Ledger:
    """Records by stage and number."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")  # a private temporary file, of which 2 MB at most are in memory
        self._database.execute(
            "CREATE TABLE records (stage TEXT, number INTEGER, record TEXT, PRIMARY KEY (stage, number))"
        )

    def add(self, stage: str, number: int, record: Record) -> None:
        """The record of the stage's unit `number`."""
        row = (stage, number, json.dumps(asdict(record)))
        self._database.execute("INSERT INTO records VALUES (?, ?, ?)", row)

    def records(self, stage: str) -> Iterator[Record]:
        """The stage's records by number; others may be added meanwhile."""
        last = -1
        while True:
            query = (
                "SELECT number, record FROM records WHERE stage = ? AND number > ? ORDER BY number LIMIT ?"
            )
            page = self._database.execute(query, (stage, last, _PAGE)).fetchall()
            if not page:
                return
            for number, text in page:
                yield record_of(json.loads(text))
                last = number

    def close(self) -> None:
        self._database.close()
