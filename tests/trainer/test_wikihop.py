"""WikiHop: its files, the layout of its rows, candidates' logits over several rows, accuracy and submission."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.overfit import figures, overfit, real_wordpieces, small_model
from trainer.batches.examples import as_batch
from trainer.engine.config import InputError, load_config
from trainer.tasks.config import Finetuning
from trainer.tasks.example import Example, Skipped
from trainer.tasks.task import Lengths
from trainer.tasks.wikihop import WikiHop, WikiHopSettings, _contexts
from trainer.tasks.wikihop_files import Question
from trainer.tasks.wordpieces import Wordpieces

DATA = Path(os.environ.get("LONGSPAN_DATA", Path(__file__).parents[3] / "shared" / "data"))
TASK = WikiHopSettings(name="wikihop", train=Path("train.json")).task()
CONFIGS = Path(__file__).parents[2] / "trainer" / "configs"
Q, Q_END, ENT, ENT_END = 50265, 50266, 50267, 50268


@pytest.fixture(scope="module")
def wordpieces() -> Wordpieces:
    if not (DATA / "tokenizer").exists():
        pytest.skip("shared/data is absent")
    return real_wordpieces(DATA, TASK)


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    found = {
        "id": f"WH_train_{number}",
        "query": "country_of_origin some_æther",
        "answer": "東京",
        "candidates": ["paris", "東京", "paris"],
        "supports": ["Paris is a city .", "東京 ( Tokyo ) is another ."],
        "annotations": [["follows", "not_follow"]],
    } | changes
    return {key: value for key, value in found.items() if value is not ...}


def question(
    question: str = "a",
    candidates: tuple[str, ...] = ("b", "c"),
    documents: tuple[str, ...] = (),
    answer: Any = "b",
) -> Question:
    return Question("q", question, candidates, documents, answer, "file: row 1")


def read(path: Path) -> list[Question]:
    return list(WikiHopSettings(name="wikihop", train=path).task().read("train"))


# ---- files -----------------------------------------------------------------------------------------------------------


def test_the_official_list_and_the_hubs_rows_are_the_same(tmp_path: Path) -> None:
    rows = [row(number) for number in range(3)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    official, lines, parquet = (read(tmp_path / f"train.{kind}") for kind in ("json", "jsonl", "parquet"))
    first = official[0]
    assert (first.id, first.question, first.candidates) == (
        "WH_train_0",
        "country of origin some æther",
        ("paris", "東京"),
    )
    assert (first.documents, first.answer) == (tuple(row()["supports"]), "東京")
    assert first.where == f"{tmp_path / 'train.json'}: row 1 (WH_train_0)"
    for other in (lines, parquet):
        assert [(q.id, q.question, q.candidates, q.documents, q.answer) for q in other] == [
            (q.id, q.question, q.candidates, q.documents, q.answer) for q in official
        ]


def test_ones_own_rows_and_test_files_have_no_answers(tmp_path: Path) -> None:
    own = {"question": "who_am I?", "candidates": ["me", "you"], "documents": ["I am me."]}
    (tmp_path / "own.jsonl").write_text(json.dumps(own) + "\n" + json.dumps(own | {"id": "second"}))
    first, second = TASK.read_own(tmp_path / "own.jsonl")
    assert (first.id, first.question, first.answer) == ("0", "who_am I?", None)
    assert second.id == "second"
    (tmp_path / "test.json").write_text(json.dumps([row(answer=...)]))
    (official,) = TASK.read_own(tmp_path / "test.json")
    assert official.answer is None
    path = tmp_path / "test.json"
    task = WikiHopSettings(name="wikihop", train=path, validation=path, test=path).task()
    assert len(list(task.read("test"))) == 1
    with pytest.raises(InputError, match=r"row 1 \(WH_train_0\): answer: found none, expected one of"):
        list(task.read("validation"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ...}, r"row 2: id: found none, expected text"),
        ({"id": "WH_train_0"}, r"row 2: id: found a second 'WH_train_0'"),
        ({"id": "\ud800"}, r"row 2: id: found half a surrogate pair in '\\ud800'"),
        ({"id": 0.5}, r"row 2: id: found a float, expected text or a whole number"),
        ({"query": 3}, r"row 2 \(WH_train_1\): query: found a int, expected text"),
        ({"candidates": "paris"}, r"row 2 \(WH_train_1\): candidates: found a str, expected a list of texts"),
        ({"candidates": ["paris", None]}, r"candidates\[1\]: found a NoneType, expected text"),
        ({"supports": ...}, r"row 2 \(WH_train_1\): supports: found none, expected a list of texts"),
        ({"answer": ["paris"]}, r"row 2 \(WH_train_1\): answer: found a list, expected text"),
        (
            {"candidates": [str(n) for n in range(10_001)]},
            r"candidates: found 10,001, expected 10,000 at most",
        ),
    ],
)
def test_broken_rows_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "train.json").write_text(json.dumps([row(0), row(1, **changes)]))
    with pytest.raises(InputError, match=message):
        read(tmp_path / "train.json")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"candidates": ()}, "no candidates"),
        ({"answer": None}, "no answer"),
        ({"answer": "d"}, "answer is no candidate"),
        ({"candidates": ("b", "c " * 100)}, "question and candidates leave no room for documents"),
    ],
)
def test_what_cannot_be_trained_on_is_skipped_and_predicted(
    wordpieces: Wordpieces, changes: dict[str, Any], reason: str
) -> None:
    entry = question(documents=("text",), **changes)
    with pytest.raises(Skipped, match=f"^{reason}$"):
        TASK.encode(entry, wordpieces, Lengths(64), training=True)
    example = TASK.encode(entry, wordpieces, Lengths(64), training=False)
    model = small_model(TASK, wordpieces.size, 64)
    states = model.states(as_batch([example], 1))
    loss = TASK.loss(model, states, [example])
    loss.backward()
    assert model.get_submodule("answer_score").weight.grad is not None
    with torch.no_grad():
        (prediction,) = TASK.predict(model, states, [example])
    assert prediction["answer"] in (entry.candidates or ("",))
    assert torch.isfinite(loss)
    known = entry.answer is not None
    assert TASK.sums([example], [prediction])[1] == known
    assert TASK.figures([0, 0, 0]) == {}


# ---- input -----------------------------------------------------------------------------------------------------------


def ids(wordpieces: Wordpieces, text: str) -> list[int]:
    found: list[int] = wordpieces.encode(text).ids.tolist()
    return found


def test_the_layout_of_a_row(wordpieces: Wordpieces) -> None:
    assert wordpieces.added == {"[q]": Q, "[/q]": Q_END, "[ent]": ENT, "[/ent]": ENT_END}
    entry = question("record label", ("Sony  BMG", "[ent]"), ("It ( 1999 ) , is 's .", "", "Two"), "[ent]")
    example = TASK.encode(entry, wordpieces, Lengths(64), training=True)
    beginning = [0, Q, *ids(wordpieces, " record label"), Q_END]
    beginning += [ENT, *ids(wordpieces, " Sony BMG"), ENT_END, ENT, *ids(wordpieces, " [ent]"), ENT_END]
    documents = [*ids(wordpieces, " It (1999), is's."), 2, *ids(wordpieces, " Two"), 2]
    (only,) = example.rows
    assert only.tolist() == [*beginning, 2, *documents]
    assert example.global_places.tolist() == list(range(len(beginning)))
    assert example.read is not None
    assert only[example.read].tolist() == [ENT, ENT]
    assert example.features["label"].tolist() == [1]
    assert (example.context_tokens, example.tokens_cut) == (len(documents) - 2, 0)
    plain = WikiHopSettings(name="wikihop", train=Path("x"), join_punctuation=False).task()
    assert plain._text(" It ( 1999 ) ") == " It ( 1999 )"


words = st.text(st.sampled_from("ab é東😀.,('s)\u0301\u2028<>[]"), max_size=12)


@settings(max_examples=60)
@given(
    words,
    st.lists(words, max_size=4, unique=True),
    st.lists(words, max_size=5),
    st.integers(100, 160),
    st.booleans(),
)
def test_rows_hold_question_candidates_and_every_document(
    wordpieces: Wordpieces, asked: str, candidates: list[str], documents: list[str], tokens: int, chunk: bool
) -> None:
    entry = question(asked, tuple(candidates), tuple(text * 8 for text in documents), None)
    try:
        example = TASK.encode(
            entry, wordpieces, Lengths(tokens, "chunk" if chunk else "truncate"), training=False
        )
    except InputError as error:
        assert "wordpieces and" in str(error)  # noqa: PT017
        return
    if example.features["shortened"][0]:
        return
    beginning = [0, Q, *ids(wordpieces, TASK._text(asked)), Q_END]
    for candidate in candidates:
        beginning += [ENT, *ids(wordpieces, TASK._text(candidate)), ENT_END]
    texts = [ids(wordpieces, TASK._text(text)) for text in entry.documents]
    assert all(len(row) <= tokens for row in example.rows)
    assert all(row[: len(beginning) + 1].tolist() == [*beginning, 2] for row in example.rows)
    held = [token for row in example.rows for token in row[len(beginning) + 1 :].tolist() if token != 2]
    everything = [token for text in texts for token in text]
    assert example.context_tokens == len(everything)
    assert held == everything[: len(everything) - example.tokens_cut]
    assert (example.tokens_cut == 0) if chunk else (len(example.rows) == 1)
    # A row ends with a document or a part of one, and is full where it is not the last.
    assert all(row[-1] == 2 for row in example.rows)
    assert all(len(row) >= tokens - 1 for row in example.rows[:-1])
    starts = np.cumsum([0, *map(len, example.rows)])[:-1]
    joined = np.concatenate(example.rows)
    expected = [start + place for start in starts for place in range(len(beginning))]
    assert example.global_places.tolist() == expected
    assert example.read is not None
    assert example.read.tolist() == np.flatnonzero(joined == ENT).tolist()


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(2, 12))
def test_runs_of_documents_are_as_full_as_can_be(lengths: list[int], room: int) -> None:
    numbers = iter(range(100, 200))
    documents = [np.array([next(numbers) for _ in range(length)], np.int32) for length in lengths]
    runs = _contexts(documents, room, 2)
    assert [token for run in runs for token in run if token != 2] == list(range(100, 100 + sum(lengths)))
    # Only where a single token is left does no part of a document fit with its </s>.
    assert all(room - 1 <= len(run) <= room for run in runs[:-1])
    assert all(run[-1] == 2 and 2 not in (run[0], *run[:-1][run[1:] == 2]) for run in runs if len(run))
    assert len(runs[-1]) <= room


def test_shortened_candidates_are_cut_alike_and_told(wordpieces: Wordpieces) -> None:
    entry = question("a", ("x", "b " * 40, "c " * 40), ("d " * 100,), "x")
    example = TASK.encode(entry, wordpieces, Lengths(64, "chunk"), training=False)
    begin = example.rows[0].tolist()
    begin = begin[: begin.index(2)]
    assert 54 <= len(begin) + 1 <= 56  # of 64, less an eighth
    spans = [end - start - 1 for start, end in zip(places(begin, ENT), places(begin, ENT_END), strict=True)]
    assert spans[0] == 1
    assert spans[1] == spans[2] > 15
    prediction = [{"answer": "x", "probability": 1.0}]
    assert TASK.figures(TASK.sums([example], prediction)) == {"accuracy": 1.0, "shortened": 1.0}
    with pytest.raises(
        InputError, match=r"file: row 1: found a question of 1 wordpieces and 30 candidates, .* 56 tok"
    ):
        TASK.encode(question("a", tuple(map(str, range(30)))), wordpieces, Lengths(64), training=False)


def places(tokens: list[int], token: int) -> list[int]:
    return [place for place, found in enumerate(tokens) if found == token]


# ---- logits, loss, metric, submission --------------------------------------------------------------------------------


class Scores(torch.nn.Module):
    """States are the logits themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.answer_score = torch.nn.Identity()


def scored(label: int, rows: int, candidates: list[str], answer: str | None) -> Example:
    features = {
        name: np.array([value], np.int32)
        for name, value in (("label", label), ("rows", rows), ("shortened", 0))
    }
    return Example(
        answer or "x", (), features=features, about=json.dumps({"candidates": candidates, "answer": answer})
    )


def test_logits_are_averaged_over_rows() -> None:
    """Two rows of three candidates, and one of two: by hand."""
    examples = [
        scored(2, 2, ["a", "b", "c"], "c"),
        scored(0, 1, ["d", "e"], "d"),
        scored(-1, 1, ["f"], "none"),
    ]
    states = [
        torch.tensor([[1.0], [2.0], [0.0], [3.0], [0.0], [6.0]]),
        torch.tensor([[0.5], [0.5]]),
        torch.tensor([[7.0]]),
    ]
    means = [2.0, 1.0, 3.0]
    first = np.log(np.exp(means).sum()) - 3.0
    assert float(TASK.loss(Scores(), states, examples)) == pytest.approx(first + np.log(2))
    assert [
        float(TASK.loss(Scores(), [s], [e])) for s, e in zip(states, examples, strict=True)
    ] == pytest.approx([first, np.log(2), 0.0])
    predictions = TASK.predict(Scores(), states, examples)
    assert [prediction["answer"] for prediction in predictions] == ["c", "d", "f"]  # of equal ones the first
    assert predictions[0]["probability"] == pytest.approx(np.exp(-first))
    sums = TASK.sums(examples, predictions)
    assert sums == [2, 3, 0]
    parts = [TASK.sums([e], [p]) for e, p in zip(examples, predictions, strict=True)]
    assert [sum(part) for part in zip(*parts, strict=True)] == sums
    assert TASK.figures(sums) == {"accuracy": pytest.approx(2 / 3), "shortened": 0.0}


def test_table_10_s_rows_differ_as_the_paper_s_do() -> None:
    base = finetuning("longformer_4096")
    others = {path.stem for path in (CONFIGS / "wikihop_table10").glob("*.yaml")} - {"longformer_4096"}
    found = {}
    for name in others:
        row = finetuning(name)
        text = (CONFIGS / "wikihop_table10" / f"{name}.yaml").read_text()
        assert f"--config trainer/configs/wikihop_table10/{name}.yaml\n" in text
        found[name] = {
            key: row[key] for key in row if row[key] != base[key] and key not in ("run", "model")
        } | ({"model": row["model"]} if row["model"] != base["model"] else {})
    assert found == {
        "longformer_4096_15_epochs": {"epochs": 15},
        "roberta_512": {"sequence_length": 512, "model": "roberta-base"},
        "longformer_512_full_attention": {"sequence_length": 512, "model": "models/longformer-base-full"},
        "longformer_2048": {"sequence_length": 2048},
        "no_mlm_pretraining": {"model": "models/longformer-base-start"},
        "no_global_projections": {"global_projections": "shared"},
        "no_global_projections_no_global_attention": {
            "global_projections": "shared",
            "global_attention": False,
        },
        "extra_positions_only": {"model": "runs/longformer-base-positions/export"},
    }
    whole = load_config(CONFIGS / "wikihop.yaml", (), Finetuning)
    assert whole.model_dump(exclude={"run"}) == {
        key: value for key, value in finetuning("longformer_4096_15_epochs").items() if key != "run"
    }


def finetuning(name: str) -> dict[str, Any]:
    return load_config(CONFIGS / "wikihop_table10" / f"{name}.yaml", (), Finetuning).model_dump()


def test_the_submission_is_an_object_by_id(tmp_path: Path) -> None:
    found = [
        (scored(0, 1, ["東京"], "one"), {"answer": "東京", "probability": 1.0}),
        (scored(0, 1, [], "two"), {"answer": "", "probability": 0.0}),
    ]
    TASK.write(tmp_path / "predictions.json", found)
    assert json.loads((tmp_path / "predictions.json").read_text()) == {"one": "東京", "two": ""}


def generated(folder: Path, count: int, seed: int = 0) -> WikiHop:
    """Rows in the official schema: a document says which candidate the subject goes with."""
    names = ["oslo", "paris", "東京", "rome", "lima", "cairo"]
    drawn = random.Random(seed)
    rows = []
    for number in range(count):
        candidates = drawn.sample(names, 2 + number % 4)
        answer = drawn.choice(candidates)
        supports = [f"{name} is a city ." for name in candidates] + [
            f"the tower {number} stands in {answer} ."
        ]
        drawn.shuffle(supports)
        rows.append(
            row(
                number,
                query=f"located_in tower {number}",
                candidates=candidates,
                answer=answer,
                supports=supports,
            )
        )
    (folder / "train.json").write_text(json.dumps(rows))
    return WikiHopSettings(name="wikihop", train=folder / "train.json").task()


def test_learns_generated_questions_by_heart(tmp_path: Path, wordpieces: Wordpieces) -> None:
    task = generated(tmp_path, 8)
    examples = [
        task.encode(entry, wordpieces, Lengths(48, "chunk"), training=True) for entry in task.read("train")
    ]
    assert {len(example.rows) for example in examples} >= {1, 2}
    model = small_model(task, wordpieces.size, 48, hidden_size=32)
    losses = overfit(model, task, examples, 50, 4e-3)
    assert losses[-1] < 0.2 < 0.8 < losses[0]
    assert figures(model, task, examples) == {"accuracy": 1.0, "shortened": 0.0}
