"""Decontamination: what the index holds of each format, what a document must share with it to go, and that the real
evaluation sets find the real articles they were made from."""

import gzip
import json
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import decontaminate
from pipeline.config import load_config
from pipeline.decontaminate import Decontaminate, Index, accepts, build_index, contaminated
from pipeline.errors import ConfigError, InputError
from pipeline.fetch import Input, find_inputs
from tests.pipeline.conftest import write_config, write_jsonl

ITEM = "When the Harbour froze, the mills stood still; and nobody had seen such a winter."  # 15 words
SETTINGS = Decontaminate(paths="x")


def index_of(texts: Sequence[str], folder: Path, **values: Any) -> tuple[Index, Decontaminate]:
    chosen = Decontaminate(paths="x", **values)
    file = write_jsonl(folder / "evaluation.jsonl", [{"text": text} for text in texts])
    return build_index([Input(str(file), file.name, 0)], chosen), chosen


def words(generator: random.Random, count: int) -> list[str]:
    return [f"w{generator.randrange(10**6)}" for _ in range(count)]


def slow(text: list[str], evaluation: list[list[str]], s: Decontaminate) -> bool:
    wanted = set()
    for item in evaluation:
        length = min(len(item), s.ngram)
        if length >= s.shortest:
            wanted |= {tuple(item[i : i + length]) for i in range(len(item) - length + 1)}
    own = [
        tuple(text[i : i + length])
        for length in range(s.shortest, s.ngram + 1)
        for i in range(len(text) - length + 1)
    ]
    hits = [phrase for phrase in own if phrase in wanted]
    share = len(hits) / max(1, len(text) - s.ngram + 1)
    return len(set(hits)) > s.maximum_hits and share > s.maximum_share


@settings(deadline=None, max_examples=60)
@given(
    text=st.lists(st.sampled_from("abc"), max_size=30),
    evaluation=st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=4),
    ngram=st.integers(2, 5),
    shortest=st.integers(2, 5),
    hits=st.integers(0, 3),
    share=st.sampled_from(["0", "1/2"]),
)
def test_is_the_reference(
    tmp_path_factory: pytest.TempPathFactory,
    text: list[str],
    evaluation: list[list[str]],
    ngram: int,
    shortest: int,
    hits: int,
    share: str,
) -> None:
    values = {"ngram": ngram, "shortest": min(shortest, ngram), "maximum_hits": hits, "maximum_share": share}
    folder = tmp_path_factory.mktemp("evaluation")
    index, chosen = index_of([" ".join(item) for item in evaluation], folder, **values)
    expected = decontaminate.CONTAMINATED if slow(text, evaluation, chosen) else None
    assert contaminated(" ".join(text), index, chosen) == expected


def test_thirteen_words_in_a_row(tmp_path: Path) -> None:
    index, chosen = index_of([ITEM], tmp_path)
    assert index.ngrams == (13,)
    assert len(index.hashes) == 3
    assert np.all(index.hashes[1:] > index.hashes[:-1])
    item = ITEM.split()
    before, after = "Once upon a time. ", ", they said!"
    assert contaminated(before + " ".join(item[:13]) + after, index, chosen) == "contaminated"
    assert contaminated(before + " ".join(item[2:]).upper() + after, index, chosen) == "contaminated"
    assert contaminated(before + "\n—\n".join(item[1:14]) + after, index, chosen) == "contaminated"
    assert contaminated(before + " ".join(item[:12]) + after, index, chosen) is None
    assert contaminated(before + " ".join([*item[:6], "very", *item[6:]]), index, chosen) is None
    assert contaminated("", index, chosen) is None


def test_several_hits_and_a_share(tmp_path: Path) -> None:
    passage = words(random.Random(0), 40)
    index, _ = index_of([" ".join(passage)], tmp_path)
    filler = words(random.Random(1), 100)
    for count, own in ((20, 8), (21, 9)):  # n-grams of so many words in a row
        text = " ".join(filler + passage[:count] + filler)
        for hits in (own - 1, own):
            kept = contaminated(text, index, Decontaminate(paths="x", maximum_hits=hits)) is None
            assert kept == (own <= hits)
    twice = " ".join(passage[:13] + filler + passage[:13])
    assert contaminated(twice, index, Decontaminate(paths="x", maximum_hits=1)) is None  # one, twice
    text = " ".join(passage[:14] + filler[:10])  # 2 of its 12 n-grams
    assert contaminated(text, index, Decontaminate(paths="x", maximum_share="1/6")) is None
    assert contaminated(text, index, Decontaminate(paths="x", maximum_share="0.166")) == "contaminated"


def test_short_texts_are_looked_for_as_a_whole(tmp_path: Path) -> None:
    question, name = (
        "Who wrote the book about the frozen harbour?",
        "Mary Wollstonecraft Shelley, London, 1818",
    )
    index, chosen = index_of([question, name, ""], tmp_path)
    assert (index.ngrams, index.texts, index.left_out) == ((8,), 1, 2)
    assert contaminated(f"He asked: who wrote the book about the frozen harbour? {name}", index, chosen)
    assert contaminated(f"He asked: who wrote a book about the frozen harbour? {name}", index, chosen) is None
    index, chosen = index_of([question], tmp_path, shortest=13)
    assert (len(index.hashes), index.left_out) == (0, 1)
    assert contaminated(question, index, chosen) is None


def hashes(file: Path, columns: Any = None) -> np.ndarray:
    return build_index([Input(str(file), file.name, 0)], Decontaminate(paths="x", columns=columns)).hashes


def test_every_format_gives_the_same_index(tmp_path: Path) -> None:
    rows = [{"id": i, "text": " ".join(words(random.Random(i), 30))} for i in range(3)]
    expected = hashes(write_jsonl(tmp_path / "a.jsonl", rows))
    assert len(expected) == 3 * 18
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.json").write_text(json.dumps({"version": "1.1", "data": [{"paragraphs": rows}]}))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    for name in ("b.json", "c.json", "d.parquet"):
        np.testing.assert_array_equal(hashes(tmp_path / name), expected)
    texts = []
    for i, row in enumerate(rows):
        (tmp_path / f"{i}.txt").write_text(row["text"], encoding="utf-8-sig" if i else "utf-8")
        texts.append(hashes(tmp_path / f"{i}.txt"))
    np.testing.assert_array_equal(np.sort(np.concatenate(texts)), expected)


def test_lists_of_strings_are_one_text_and_columns_choose(tmp_path: Path) -> None:
    item = ITEM.split()
    row = {
        "question": ITEM,
        "context": {"sentences": [[" ".join(item[:7]), " ".join(item[7:])], ["A b."]]},
        "tokens": item,
        "answers": ["x", 3, {"question": " ".join(reversed(item))}],
    }
    file = write_jsonl(tmp_path / "a.jsonl", [row])
    question = hashes(tmp_path / "a.jsonl", "tokens")
    assert len(question) == 3
    assert len(hashes(file, "question")) == 6  # at any depth
    assert len(hashes(file, ["context"])) == 5
    assert set(question) < set(hashes(file, ["context"]))
    assert len(hashes(file)) == 8
    with pytest.raises(InputError, match=r"a\.jsonl: no column named answer, quest \("):
        hashes(file, ["quest", "question", "answer"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": "b"}\n\n{"a": \n', r"a\.jsonl: line 3: not JSON"),
        ("a.json", b"[" * 100_000, r"a\.json: not JSON"),
        ("a.txt", b"caf\xe9", r"a\.txt: not UTF-8: .* at byte 3"),
        ("a.parquet", b"PAR1", r"a\.parquet: not a readable parquet file"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        hashes(tmp_path / name)


def test_order_and_memory_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for i in range(4):
        rows = [{"text": " ".join(words(random.Random(10 * i + j // 2), 50))} for j in range(6)]
        files.append(write_jsonl(tmp_path / f"{i}.jsonl", rows))
    inputs = [Input(str(file), file.name, 0) for file in files]
    expected = build_index(inputs, SETTINGS)
    assert len(expected.hashes) == 12 * 38
    monkeypatch.setattr(decontaminate, "_HELD", 100)
    found = build_index(reversed(inputs), SETTINGS)
    np.testing.assert_array_equal(found.hashes, expected.hashes)
    assert (found.ngrams, found.texts) == (expected.ngrams, 24)


def test_find_in_an_index_of_any_size() -> None:
    generator = np.random.default_rng(0)
    for size in (0, 1, 2, 1000):
        inside = np.sort(generator.integers(0, 2**64, size, dtype=np.uint64))
        others = generator.integers(0, 2**64, 50, dtype=np.uint64)
        edges = np.array([0, 2**64 - 1], dtype=np.uint64)
        index = Index(inside, (13,))
        asked = np.concatenate([inside, others, edges])
        assert index.find(asked).tolist() == np.isin(asked, inside).tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "paths"),
        ({"paths": []}, "at least 1 item"),
        ({"paths": "x", "ngram": 7}, "shortest: expected at most ngram = 7, found 8"),
        ({"paths": "x", "maximum_share": 2}, "less than or equal to 1"),
        ({"paths": "x", "column": "a"}, "Extra inputs"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Decontaminate.model_validate(values)


def test_configuration(small_config: dict[str, Any], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "evaluation" / "a.jsonl", [{"text": ITEM}])
    (tmp_path / "evaluation" / "b.md").write_text("not read")
    small_config["decontaminate"] = {"paths": "evaluation", "columns": "text"}
    loaded = load_config(write_config(tmp_path / "c.yaml", small_config))
    assert [item.key for item in loaded.evaluation] == ["a.jsonl"]
    assert loaded.config.decontaminate == Decontaminate(paths=("evaluation",), columns=("text",))
    assert json.loads(json.dumps(loaded.config.plain())) == loaded.config.plain()
    small_config["decontaminate"] = {"paths": ["nowhere.json"], "colums": "text", "ngram": 7}
    small_config["deduplicate"] = {"near": {"treshold": 0.8, "rows": 99}, "exact": False}
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(tmp_path / "c.yaml", small_config))
    problems = {problem.split(": ")[0]: problem for problem in caught.value.problems}
    assert "no such file" in problems["decontaminate.paths"]
    assert "'columns' was meant" in problems["decontaminate.colums"]
    assert "'threshold' was meant" in problems["deduplicate.near.treshold"]
    assert "found 99" in problems["deduplicate.near.rows"]
    assert "found False" in problems["deduplicate.exact"]


@pytest.fixture(scope="module")
def articles(shared_data: Path) -> dict[str, str]:
    """Wikipedia's sample, by title."""
    with gzip.open(
        shared_data / "wikipedia" / "enwiki_106_articles_plain.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        return {row["title"]: row["text"] for row in map(json.loads, file)}


def test_triviaqa_finds_the_articles_it_quotes(
    articles: dict[str, str], shared_data: Path, tmp_path: Path
) -> None:
    with tarfile.open(shared_data / "downstream" / "triviaqa-sample.tgz") as archive:
        archive.extractall(tmp_path, filter="data")
    evidence = build_index(find_inputs([str(tmp_path / "evidence")], accepts), SETTINGS)
    found = {title for title, text in articles.items() if contaminated(text, evidence, SETTINGS)}
    # `evidence/wikipedia` holds a later state of the article on Angola, from which others borrow sentences.
    assert found == {"Angola", "Demographics of Angola", "Economy of Angola", "Angolan Armed Forces"}
    strict = Decontaminate(paths="x", maximum_share="1/20")
    assert {title for title, text in articles.items() if contaminated(text, evidence, strict)} < found
    questions = build_index(find_inputs([str(tmp_path / "qa")], accepts), SETTINGS)
    assert questions.texts > 0
    assert not any(contaminated(text, questions, SETTINGS) for text in articles.values())


def test_hotpotqa(articles: dict[str, str], shared_data: Path) -> None:
    inputs = find_inputs([str(shared_data / "downstream" / "hotpotqa_dev_distractor_10rows.jsonl")], accepts)
    index = build_index(inputs, SETTINGS)
    assert not any(contaminated(text, index, SETTINGS) for text in articles.values())
    rows = [json.loads(line) for line in Path(inputs[0].uri).read_text(encoding="utf-8").splitlines()]
    for row in rows:
        paragraph = " ".join(row["context"]["sentences"][0])
        text = f"{articles['Angola'][:3000]}\n{paragraph}\n{articles['Angola'][3000:6000]}"
        assert contaminated(text, index, SETTINGS) == "contaminated"
    chosen = Decontaminate(paths="x", columns="question")
    questions = build_index(inputs, chosen)
    assert questions.texts + questions.left_out == 10
    assert contaminated(f"A quiz: {max((r['question'] for r in rows), key=len)}", questions, chosen)
