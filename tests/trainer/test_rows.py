"""Rows of downstream data, in lists of JSON."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.engine.config import InputError
from trainer.tasks import rows
from trainer.tasks.rows import read_rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}', "at its start: found '{"),
        ('[{"a": 1} {"a": 2}]', "behind row 1: found '{"),
        ('[{"a": 1}, ', "row 2: not JSON"),
        ('[{"a": 1}, {"a": "', "row 2: not JSON .*, or truncated"),
        ('[{"a": 1}] 3', "behind the list: found '3', expected the end"),
        ("[" * 100_000, "row 1: nested too deep"),
        ("[3]", "row 1: found a int, expected an object"),
        ("[]", "empty, expected rows"),
        ("", "at its start: found ''"),
        ("[\xff]", "not UTF-8"),
    ],
)
def test_a_broken_list_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "list.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        list(read_rows(tmp_path / "list.json"))


@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=40)), min_size=1, max_size=8),
    st.sampled_from([None, 1]),
    st.integers(1, 30),
    st.booleans(),
)
def test_a_list_is_read_whatever_the_pieces(
    tmp_path_factory: pytest.TempPathFactory,
    found: list[dict[str, str]],
    indent: int | None,
    piece: int,
    escaped: bool,
) -> None:
    path = tmp_path_factory.mktemp("list") / "list.json"
    text = json.dumps(found, indent=indent, ensure_ascii=escaped)
    path.write_bytes(text.encode("utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_PIECE", piece)
        assert list(read_rows(path)) == [(f"row {number}", row) for number, row in enumerate(found, 1)]


def test_a_name_that_ends_in_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(
        InputError, match=r"found a name that ends in '.csv', expected .json, .jsonl, .parquet"
    ):
        list(read_rows(tmp_path / "rows.csv"))
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(InputError, match="no parquet file, or a damaged one"):
        list(read_rows(tmp_path / "rows.parquet"))
    (tmp_path / "rows.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="truncated or no gzip"):
        list(read_rows(tmp_path / "rows.jsonl.gz"))


def test_a_row_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MOST_BYTES", 1000)
    monkeypatch.setattr(rows, "_PIECE", 100)
    for name, start in (("rows.json", "["), ("rows.jsonl", "")):
        (tmp_path / name).write_text(start + '{"a": "' + "x" * 5000)
        with pytest.raises(InputError, match=r"(row|line) 1: .*1,000 bytes"):
            list(read_rows(tmp_path / name))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**62], pa.timestamp("us")),
        pa.array([2**62], pa.duration("s")),
        pa.array([-(2**31)], pa.date32()),
        pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
    ],
    ids=["timestamp", "duration", "date", "struct"],
)
def test_a_value_that_python_does_not_have_is_refused(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"text": ["a"], "other": column}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"rows\.parquet: behind row 0: a value that Python does not have"):
        list(read_rows(tmp_path / "rows.parquet"))


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('[{"a": 1}]', encoding="utf-8-sig")
    assert list(read_rows(tmp_path / "list.json")) == [("row 1", {"a": 1})]
