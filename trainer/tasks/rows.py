"""Rows of downstream data: one's own files and the hub's (.jsonl, .parquet), and official lists in JSON (.json).

Rows are objects by key, given with where they are ("line 3", "row 3", counted from 1). What is held is a row, or some
of a parquet file's; a list in JSON is read piece by piece, for WikiHop's is some hundred MB.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson
import pyarrow
import pyarrow.parquet as pq

from trainer.engine.config import InputError

Row = tuple[str, dict[str, Any]]
"""(where in the file, the row)."""

MOST_BYTES = 64 << 20  # of a row
_SUFFIXES = (".json", ".jsonl", ".parquet")
_PIECE = 1 << 20
_ROWS_AT_A_TIME = 64


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file by its name's end; `.json` and `.jsonl` may be packed (.gz).

    InputError names the file, the row, what was found and what was expected; also where there is none.
    """
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _SUFFIXES or (path.suffix == ".gz" and suffix == ".parquet"):
        raise InputError(
            f"{path}: found a name that ends in {path.suffix!r}, expected {', '.join(_SUFFIXES)}"
        )
    number = 0
    try:
        if suffix == ".parquet":
            rows = _parquet(path)
        else:
            rows = _lines(path) if suffix == ".jsonl" else _list(path)
        for where, row in rows:
            number += 1
            if not isinstance(row, dict):
                raise InputError(f"{path}: {where}: found a {type(row).__name__}, expected an object")
            yield where, row
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: found bytes that are not UTF-8, behind row {number}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: truncated or no gzip ({error}), behind row {number}") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    if not number:
        raise InputError(f"{path}: empty, expected rows")


def open_binary(path: Path) -> BinaryIO:
    """A file, unpacked if its name ends in .gz."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def text_of(row: dict[str, Any], key: str, place: str) -> str:
    """Text under a key, `place` naming file and row; InputError where it is none."""
    value = row.get(key)
    if not isinstance(value, str):
        found = f"a {type(value).__name__}" if key in row else "none"
        raise InputError(f"{place}: {key}: found {found}, expected text")
    return value


def id_of(row: dict[str, Any], number: int, place: str) -> str:
    """The text or whole number under `id`, the row's number (from 0) where there is none."""
    value = number if row.get("id") is None else row["id"]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{place}: id: found a {type(value).__name__}, expected text or a whole number")
    name = str(value)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place}: id: found half a surrogate pair in {name!a:.80}, expected text"
        ) from error
    return name


def texts_of(row: dict[str, Any], key: str, place: str) -> list[str]:
    """A list of texts under a key."""
    value = row.get(key)
    if not isinstance(value, list):
        found = f"a {type(value).__name__}" if key in row else "none"
        raise InputError(f"{place}: {key}: found {found}, expected a list of texts")
    for number, text in enumerate(value):
        if not isinstance(text, str):
            raise InputError(f"{place}: {key}[{number}]: found a {type(text).__name__}, expected text")
    return value


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    with open_binary(path) as file:
        while line := file.readline(MOST_BYTES + 1):
            number += 1
            where = f"line {number}"
            if len(line) > MOST_BYTES:
                raise InputError(f"{path}: {where}: longer than {MOST_BYTES:,} bytes, expected a row")
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise InputError(f"{path}: {where}: not JSON ({error})") from error
            yield where, row


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_AT_A_TIME):
                for row in _objects(path, number, batch):
                    number += 1
                    yield f"row {number}", row
    except pyarrow.ArrowException as error:
        raise InputError(
            f"{path}: no parquet file, or a damaged one ({error}), behind row {number}"
        ) from error


def _objects(path: Path, before: int, batch: pyarrow.RecordBatch) -> list[dict[str, Any]]:
    try:
        return cast(list[dict[str, Any]], batch.to_pylist())
    except (UnicodeDecodeError, pyarrow.ArrowException):
        raise
    except (ValueError, OverflowError) as error:  # a date beyond Python's, a struct with a name twice
        raise InputError(
            f"{path}: behind row {before}: a value that Python does not have ({error})"
        ) from error


def _list(path: Path) -> Iterator[tuple[str, Any]]:
    """The elements of the list that a JSON file is."""
    number = 0
    with open_binary(path) as file:
        text = _Text(path, file)
        text.expect("[", "at its start")
        more = text.mark() != "]"
        while more:
            number += 1
            yield f"row {number}", text.element(f"row {number}")
            more = text.mark() == ","
            if more:
                text.expect(",", f"behind row {number}")
        text.expect("]", f"behind row {number}")
        text.expect("", "behind the list")


class _Text:
    """A JSON file's characters from where one reads."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self._held, self._at, self._ended = "", 0, False
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()

    def mark(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self._at < len(self._held):
                if self._held[self._at] not in " \t\r\n":
                    return self._held[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._more()

    def expect(self, mark: str, where: str) -> None:
        """Passes over this mark, "" being the end."""
        if self.mark() != mark:
            found = self._held[self._at : self._at + 40]
            raise InputError(f"{self.path}: {where}: found {found!r}, expected {mark or 'the end'}")
        self._at += len(mark)

    def element(self, where: str) -> Any:
        """The next value. One that is not yet whole is tried again with twice as much: the work stays linear."""
        self.mark()
        while True:
            try:
                value, self._at = self._json.raw_decode(self._held, self._at)
                return value
            except RecursionError as error:
                raise InputError(f"{self.path}: {where}: nested too deep, expected an object") from error
            except ValueError as error:
                problem = f"not JSON ({error})"
                if self._ended:
                    raise InputError(f"{self.path}: {where}: {problem}, or truncated") from error
                if len(self._held) - self._at > MOST_BYTES:
                    raise InputError(
                        f"{self.path}: {where}: {problem}, or over {MOST_BYTES:,} bytes"
                    ) from error
            self._more()

    def _more(self) -> None:
        left = self._held[self._at :]
        piece = self.file.read(max(_PIECE, len(left)))
        self._ended = not piece
        self._held, self._at = left + self._utf8.decode(piece, final=self._ended), 0
