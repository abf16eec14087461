"""Examples at rest: what is written is what is read, whole or not at all, and named by all that decides it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.disk import needs_mounting, small_disk
from tests.trainer.finetuned import write_rows, write_small_model
from trainer.engine.config import InputError
from trainer.model.folder import read_tokenizer
from trainer.tasks.classification import ClassificationSettings
from trainer.tasks.example import Example, Skipped
from trainer.tasks.example_store import BATCH, EXAMPLES, FACTS, Examples, open_examples, write_examples
from trainer.tasks.task import Lengths
from trainer.tasks.wordpieces import Wordpieces

ints = st.lists(st.integers(-1, 2**31 - 1), max_size=6).map(lambda values: np.array(values, np.int32))
examples = st.builds(
    lambda id, rows, read, one, two, about: Example(
        id,
        tuple(rows),
        np.flatnonzero(np.concatenate(rows) % 2).astype(np.int32),
        read,
        {"one": one, "two": two},
        7,
        3,
        about,
    ),
    st.text(max_size=5),
    st.lists(ints.filter(len), min_size=1, max_size=3),
    st.none() | ints,
    ints,
    ints,
    st.text(max_size=9),
)


def same(one: Example, other: Example) -> bool:
    return (
        (one.id, one.about, one.context_tokens, one.tokens_cut, len(one.rows))
        == (other.id, other.about, other.context_tokens, other.tokens_cut, len(other.rows))
        and all(map(np.array_equal, one.rows, other.rows))
        and np.array_equal(one.global_places, other.global_places)
        and (one.read is None) == (other.read is None)
        and (one.read is None or np.array_equal(one.read, other.read))
        and one.features.keys() == other.features.keys()
        and all(np.array_equal(one.features[name], other.features[name]) for name in one.features)
    )


@settings(deadline=None, max_examples=40)
@given(given_examples=st.lists(examples, max_size=2 * BATCH + 1))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, given_examples: list[Example]
) -> None:
    folder = tmp_path_factory.mktemp("examples")
    entries: list[Example | Skipped] = [
        *given_examples,
        Skipped("too short"),
        Skipped("too short"),
        Skipped("odd"),
    ]
    write_examples(folder, iter(entries), "test")
    found = Examples(folder)
    assert len(found) == len(given_examples)
    assert all(map(same, found, given_examples))
    assert found.skipped == {"too short": 2, "odd": 1}
    assert found.row_lengths == [list(map(len, example.rows)) for example in given_examples]
    assert found.tokens.tolist() == [example.tokens for example in given_examples]
    assert [example.id for example in found[1:3]] == [example.id for example in given_examples[1:3]]
    with pytest.raises(IndexError):
        found[len(found)]


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    def fingerprint(name: str, **changes: Any) -> str:
        values: dict[str, Any] = {"features": {"label": np.array([1], np.int32)}, "about": "a"} | changes
        example = Example("x", (np.array([5, 6], np.int32),), **values)
        (tmp_path / name).mkdir()
        write_examples(tmp_path / name, iter([example]), "test")
        return Examples(tmp_path / name).fingerprint

    first = fingerprint("first")
    assert first == fingerprint("again")
    others = [
        fingerprint("label", features={"label": np.array([2], np.int32)}),
        fingerprint("about", about="b"),
        fingerprint("read", read=np.array([0], np.int32)),
        fingerprint("global", global_places=np.array([0], np.int32)),
    ]
    assert len({first, *others}) == 5


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_small_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", 12)
    return tmp_path


def opened(place: Path, tokens: int = 64, longer: Literal["truncate", "chunk"] = "truncate") -> Examples:
    task = ClassificationSettings(name="classification", train=place / "rows.jsonl").task()
    wordpieces = Wordpieces(read_tokenizer(place / "model"), task.added_tokens)
    return open_examples(task, "train", wordpieces, Lengths(tokens, longer), place / "cache")


def test_examples_are_made_once_and_anew_where_anything_differs(place: Path) -> None:
    first = opened(place)
    (made,) = (place / "cache" / "examples").glob("*/*.arrow")
    when = made.stat().st_mtime_ns
    again = opened(place)
    assert again.fingerprint == first.fingerprint
    assert made.stat().st_mtime_ns == when
    assert opened(place, 32).fingerprint != first.fingerprint
    assert opened(place, 64, "chunk").fingerprint != first.fingerprint
    write_rows(place / "rows.jsonl", 13)
    assert len(opened(place)) == 13
    assert len(list((place / "cache" / "examples").glob("*/*.arrow"))) == 4


def test_another_tokenizer_or_setting_of_the_task_is_another_name(place: Path) -> None:
    def name(labels: list[str] | None = None, added: tuple[str, ...] = ()) -> str:
        task = ClassificationSettings(name="classification", train=place / "rows.jsonl", labels=labels).task()
        wordpieces = Wordpieces(read_tokenizer(place / "model"), added)
        before = set((place / "cache" / "examples").glob("*/"))
        open_examples(task, "train", wordpieces, Lengths(64), place / "cache")
        return ", ".join(path.name for path in set((place / "cache" / "examples").glob("*/")) - before)

    assert name()
    assert not name(["dull", "fine", "great"])  # those in the rows
    assert name(["great", "fine", "dull"])
    assert name(added=("[q]",))


def test_what_a_killed_process_left_is_made_again(place: Path) -> None:
    whole = opened(place)
    (folder,) = [path for path in (place / "cache" / "examples").iterdir() if path.is_dir()]
    expected = (folder / EXAMPLES).read_bytes()
    (folder / FACTS).unlink()
    (folder / EXAMPLES).write_bytes(expected[:100])
    assert opened(place).fingerprint == whole.fingerprint
    assert (folder / EXAMPLES).read_bytes() == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (FACTS, b"{"),
        (FACTS, b"[]"),
        (FACTS, b'{"bytes": 1}'),
        (EXAMPLES, b""),
        (EXAMPLES, b"ARROW1"),
        (EXAMPLES, bytes(4000)),
    ],
)
def test_what_is_damaged_is_made_again(
    place: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    whole = opened(place)
    (folder,) = [path for path in (place / "cache" / "examples").iterdir() if path.is_dir()]
    expected = (folder / EXAMPLES).read_bytes()
    if len(content) == 4000:  # of the right size
        content = bytes(len(expected))
    (folder / name).unlink()  # not written into: `whole` reads its file still
    (folder / name).write_bytes(content)
    again = opened(place)
    assert again.fingerprint == whole.fingerprint
    assert "making the examples again" in capsys.readouterr().err
    assert (folder / EXAMPLES).read_bytes() == expected
    assert all(map(same, again, whole))


def test_examples_in_use_are_not_written_over(place: Path) -> None:
    """Another process's memory map would change under it."""
    whole = opened(place)
    expected = [example.rows[0].tolist() for example in whole]
    (folder,) = [path for path in (place / "cache" / "examples").iterdir() if path.is_dir()]
    other = Example("x", (np.zeros(3, np.int32),), features={"label": np.array([0], np.int32)})
    write_examples(folder, iter([other] * 12), "test")
    assert [example.rows[0].tolist() for example in whole] == expected
    assert Examples(folder)[0].rows[0].tolist() == [0, 0, 0]


@needs_mounting
def test_a_full_disk_is_told_and_nothing_stays_on_it(place: Path) -> None:
    with small_disk(place / "cache", "64k"):
        with (place / "rows.jsonl").open("a") as file:
            file.writelines('{"text": "%s", "label": "fine"}\n' % ("word " * 5000) for _ in range(40))
        with pytest.raises(InputError, match="No space left on device"):
            opened(place, longer="chunk")
        assert not list((place / "cache").rglob("*.arrow"))
        assert not list((place / "cache").rglob(FACTS))


def test_several_processes_make_them_together(place: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.trainer.test_example_store import opened; "
        "print(opened(Path(sys.argv[1])).fingerprint)"
    )
    root = Path(__file__).parents[2]
    there = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(place)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    found = [process.communicate(timeout=120)[0] for process in there]
    assert [process.returncode for process in there] == [0, 0, 0]
    assert set(found) == {opened(place).fingerprint + "\n"}


def test_a_bad_file_leaves_no_examples(place: Path) -> None:
    with (place / "rows.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(InputError, match=r"rows\.jsonl: line 13"):
        opened(place)
    assert not list((place / "cache").rglob(FACTS))
    assert not list((place / "cache").rglob("*.arrow"))
    (place / "rows.jsonl").unlink()
    with pytest.raises(InputError, match=r"rows\.jsonl"):
        opened(place)
