"""TriviaQA: the files in their three forms, the input, and a model that learns the real sample by heart."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import LongformerConfig, LongformerForQuestionAnswering

from pipeline.tokenizer import load_tokenizer
from tests.trainer.overfit import figures, overfit, small_model
from tests.trainer.test_conll2012 import DATA
from trainer.batches.examples import as_batch
from trainer.engine.config import InputError
from trainer.tasks.example import Example, Skipped
from trainer.tasks.example_store import open_examples
from trainer.tasks.question_answering_metrics import (
    TRIVIAQA_PUNCTUATION,
    evaluate_triviaqa,
    normalise_triviaqa,
    token_scores,
)
from trainer.tasks.question_answering_submissions import read_triviaqa
from trainer.tasks.spans import occurrences
from trainer.tasks.task import Lengths
from trainer.tasks.triviaqa import TriviaQA, TriviaQASettings
from trainer.tasks.triviaqa_files import Page, Question
from trainer.tasks.wordpieces import Wordpieces

real = pytest.mark.skipif(
    not (DATA / "downstream").is_dir(), reason=f"no real data in {DATA}, or $LONGSPAN_DATA"
)


def task(path: Path = Path("-"), **others: Any) -> TriviaQA:
    return TriviaQASettings(name="triviaqa", train=path, **others).task()


@pytest.fixture(scope="module")
def wordpieces() -> Wordpieces:
    if not (DATA / "tokenizer").is_dir():
        pytest.skip(f"no tokenizer in {DATA}, or $LONGSPAN_DATA")
    return Wordpieces(load_tokenizer(DATA / "tokenizer"))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triviaqa")
    with tarfile.open(DATA / "downstream" / "triviaqa-sample.tgz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "qa"


def entry(**changed: Any) -> dict[str, Any]:
    """A question of the official files."""
    return {
        "QuestionId": "q1",
        "Question": "Which city?",
        "Answer": {"NormalizedAliases": ["york"]},
        "EntityPages": [{"Filename": "York.txt"}],
        "SearchResults": [{"Filename": "1/1_2.txt"}],
        **changed,
    }


def official(folder: Path, *entries: Any, **changed: Any) -> Path:
    """The official layout, in which each page says its name."""
    for file in ("wikipedia/York.txt", "wikipedia/Leeds.txt", "web/1/1_2.txt"):
        path = folder / "evidence" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.stem} it is.")
    path = folder / "qa" / "some.json"
    path.parent.mkdir(exist_ok=True)
    content = {"Domain": "Wikipedia", "VerifiedEval": False, "Data": list(entries), **changed}
    path.write_text(json.dumps(content))
    return path


def rows(folder: Path, *rows: Any) -> Path:
    path = folder / "some.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


# Files.


def test_reads_the_official_wikipedia_domain(tmp_path: Path) -> None:
    pages = [
        {"Filename": "York.txt"},
        {"Filename": "None.txt"},
        {"Filename": "Leeds.txt"},
        {"Filename": "York.txt"},
    ]
    (found,) = task(official(tmp_path, entry(EntityPages=pages))).read("train")
    assert found.context == "York it is.\n\nLeeds it is."
    assert (found.missing, found.answers, found.scored_as) == (1, ("york",), [("q1", False)])


def test_the_web_domain_is_scored_by_page(tmp_path: Path) -> None:
    path = official(tmp_path, entry(), Domain="Web")
    (found,) = task(path, domain="web").read("train")
    assert found.context == "York it is.\n\n1_2 it is."
    assert found.scored_as == [("q1--York.txt", False), ("q1--1/1_2.txt", False)]
    each = list(task(path, domain="web", documents="each").read("train"))
    assert [(question.context, question.scored_as) for question in each] == [
        ("York it is.", [("q1--York.txt", False)]),
        ("1_2 it is.", [("q1--1/1_2.txt", False)]),
    ]
    with pytest.raises(ValidationError, match="scores one answer a question"):
        task(path, documents="each")
    assert list(task().read_own(path)) == [found]  # whatever the model was trained on


def test_of_a_verified_evaluation_its_part_is_read(tmp_path: Path) -> None:
    pages = [{"Filename": "York.txt", "DocPartOfVerifiedEval": True}, {"Filename": "Leeds.txt"}]
    entries = (
        entry(QuestionPartOfVerifiedEval=False),
        entry(QuestionId="q2", QuestionPartOfVerifiedEval=True, EntityPages=pages),
    )
    for domain, texts in (("web", ["York it is."]), ("wikipedia", ["York it is.", "Leeds it is."])):
        path = official(tmp_path, *entries, Domain=domain.title(), VerifiedEval=True)
        (found,) = task(path, domain=domain).read("train")
        assert (found.id, [page.text for page in found.pages]) == ("q2", texts)
        assert found.scored_as[0][1]
    path = official(tmp_path, *entries)
    assert [question.scored_as for question in task(path).read("train")] == [[("q1", False)], [("q2", True)]]


HUB = {
    "question_id": "q1",
    "question": "Which city?",
    "answer": {"normalized_aliases": ["york"], "value": "York"},
    "entity_pages": {"filename": ["York.txt"], "wiki_context": ["York it is."]},
    "search_results": {"filename": ["1/1_2.txt"], "search_context": ["1_2 it is."]},
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_reads_the_hubs_rows_as_the_official_files(tmp_path: Path, suffix: str) -> None:
    if suffix == "jsonl":
        rows(tmp_path, HUB).rename(tmp_path / "train-0.jsonl")
    else:
        table = pyarrow.Table.from_pylist([HUB])
        pyarrow.parquet.write_table(table, tmp_path / "train-0.parquet")
    for domain in ("wikipedia", "web"):
        path = official(tmp_path, entry(), Domain=domain.title())
        assert list(task(tmp_path, domain=domain).read("train")) == list(
            task(path, domain=domain).read("train")
        )
    with pytest.raises(InputError, match=r"found no test\*\.jsonl"):
        list(task(test=tmp_path).read("test"))


def test_reads_ones_own_rows(tmp_path: Path) -> None:
    path = rows(
        tmp_path,
        {"id": "a", "question": "Who?", "context": "Ann."},
        {"id": "b", "question": "Who?", "documents": ["Ann.", "Bob."], "answers": ["Bob"]},
    )
    for domain, documents in (("wikipedia", "joined"), ("web", "each")):
        first, second = task(domain=domain, documents=documents).read_own(path)
        assert (first.context, first.answers, first.scored_as) == ("Ann.", None, [("a", False)])
        assert (second.context, second.answers, second.id) == ("Ann.\n\nBob.", ("Bob",), "b")


@pytest.mark.parametrize("answer", [None, {}, {"NormalizedAliases": []}])
def test_answers_may_be_missing_to_predict_and_not_to_train(tmp_path: Path, answer: Any) -> None:
    path = official(tmp_path, entry(Answer=answer))
    assert [question.answers for question in task(path).read_own(path)] == [None]
    assert [question.answers for question in task(path, test=path).read("test")] == [None]
    with pytest.raises(InputError, match=r"some\.json: Data\[0\]: q1: .*found [nN]o"):
        list(task(path).read("train"))


@pytest.mark.parametrize(
    "name",
    [
        "../../secret.txt",
        "/etc/passwd",
        "a/../../web/1/1_2.txt",
        "../wikipedia-too/secret.txt",
        "link.txt",
        "York\0.txt",
        "\ud800",
        "",
        "sub",
    ],
)
def test_a_filename_does_not_lead_out_of_the_evidence(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    path = official(tmp_path, entry(EntityPages=[{"Filename": name}]))
    (tmp_path / "evidence/wikipedia/link.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "evidence/wikipedia/sub").mkdir()
    (tmp_path / "evidence/wikipedia-too").mkdir()
    (tmp_path / "evidence/wikipedia-too/secret.txt").write_text("secret")
    with pytest.raises(InputError, match=r"some\.json: Data\[0\]: EntityPages\[0\]: Filename: found"):
        list(task(path).read("train"))


def broken(key: str, value: Any) -> Callable[[Path], Path]:
    return lambda folder: official(folder, entry(**{key: value}))


def own(**changed: Any) -> Callable[[Path], Path]:
    return lambda folder: rows(
        folder, {"id": "a", "question": "?", "context": "c", "answers": ["c"]} | changed
    )


def written(content: bytes, name: str = "some.json") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        official(folder)
        path = folder / "qa" / name
        path.write_bytes(content)
        return path

    return write


def without(key: str) -> Callable[[Path], Path]:
    return lambda folder: official(folder, {name: value for name, value in entry().items() if name != key})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (written(b"{"), r"some\.json: not JSON"),
        (written(b"[" * 100_000), r"some\.json: not JSON"),
        (written(b"[]"), r"some\.json: found a list, expected a dict"),
        (written(b'{"Domain": "Wikipedia"}'), r"some\.json: Data: found none, expected a list"),
        (written(b"", "some.txt"), r"some\.txt: found a name that ends in '\.txt'"),
        (written(b"", "none.parquet"), r"none\.parquet: no parquet file, or a damaged one"),
        (written(b'\n{"id": 1', "a.jsonl"), r"a\.jsonl: line 2: not JSON"),
        (written(b"7", "a.jsonl"), r"a\.jsonl: line 1: found a int, expected an object"),
        (written(b"", "a.jsonl"), r"a\.jsonl: empty, expected rows"),
        (lambda folder: folder / "none.json", r"none\.json: No such file"),
        (own(question_id="q"), r"line 1: entity_pages: found none, expected a dict"),
        (lambda folder: official(folder, entry(), Domain="Web"), r"Domain: found 'web', expected wikipedia"),
        (
            lambda folder: official(folder, entry(), VerifiedEval=1),
            r"VerifiedEval: found a int, expected a bool",
        ),
        (lambda folder: official(folder, 7), r"Data\[0\]: found a int"),
        (lambda folder: official(folder, entry(), entry()), r"Data\[1\]: found q1 as in Data\[0\]"),
        (broken("QuestionId", 7), r"Data\[0\]: QuestionId: found a int, expected text"),
        (broken("QuestionId", "\ud800"), r"Data\[0\]: QuestionId: found .*, expected Unicode text"),
        (broken("Answer", {"NormalizedAliases": [7]}), r"Data\[0\]: q1: NormalizedAliases: found \[7\]"),
        (broken("Answer", "york"), r"Data\[0\]: q1: Answer: found a str"),
        (broken("EntityPages", [7]), r"Data\[0\]: EntityPages\[0\]: found a int"),
        (broken("EntityPages", [{}]), r"Data\[0\]: EntityPages\[0\]: Filename: found none, expected text"),
        (broken("EntityPages", [{"Filename": "No.txt"}]), r"evidence: found no evidence for any question"),
        (without("Question"), r"Data\[0\]: Question: found none"),
        (without("EntityPages"), r"Data\[0\]: EntityPages: found none"),
        (own(id=7), r"some\.jsonl: line 1: id: found a int"),
        (own(answers=[]), r"line 1: answers: found none, expected at least one"),
        (own(documents=["d"]), r"line 1: found the keys .* expected id, question, and context or documents"),
        (own(question=None), r"line 1: question: found a NoneType"),
        (lambda folder: rows(folder, HUB | {"entity_pages": []}), r"line 1: entity_pages: found a list"),
        (
            lambda folder: rows(folder, HUB | {"entity_pages": {"filename": ["a"], "wiki_context": []}}),
            r"line 1: entity_pages: found 1 filename and 0 wiki_context",
        ),
        (
            lambda folder: rows(folder, HUB | {"entity_pages": {"filename": ["a"], "wiki_context": [None]}}),
            r"line 1: entity_pages: wiki_context\[0\]: found a NoneType, expected text",
        ),
    ],
)
def test_says_what_is_wrong_and_where(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        list(task(make(tmp_path)).read("train"))


def test_a_question_is_in_one_file_of_a_folder(tmp_path: Path) -> None:
    row = json.dumps({"id": "a", "question": "?", "context": "c", "answers": ["c"]})
    for name in ("train-0.jsonl", "train-1.jsonl"):
        (tmp_path / name).write_text(row)
    with pytest.raises(InputError, match=r"train-1\.jsonl: found a as in .*train-0\.jsonl, expected each"):
        list(task(tmp_path).read("train"))


def test_another_folder_of_evidence_makes_other_examples(tmp_path: Path, wordpieces: Wordpieces) -> None:
    """So does a folder that has got more files: what earlier runs have made is not read again."""
    path = official(tmp_path, entry(EntityPages=[{"Filename": "York.txt"}, {"Filename": "Late.txt"}]))
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "evidence", other)
    os.utime(other / "wikipedia", ns=(1, 1))
    lengths = Lengths(64)

    def read(**settings: Any) -> int:
        examples = open_examples(
            task(path, validation=path, **settings), "validation", wordpieces, lengths, tmp_path / "cache"
        )
        return int(examples.context_tokens.sum())

    first = read(evidence=other)
    assert first == read()
    (other / "wikipedia" / "Late.txt").write_text("It was late.")
    assert read(evidence=other) > first == read()


def test_without_a_submission_there_are_no_spans(tmp_path: Path) -> None:
    (tmp_path / "answers.json").mkdir()
    with pytest.raises(InputError, match=r"answers\.json: cannot be written"):
        task(tmp_path).write(tmp_path / "answers.json", [])
    assert [file.name for file in tmp_path.iterdir()] == ["answers.json"]


def test_evidence_is_utf8_of_a_bounded_size_in_a_folder_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = official(tmp_path, entry())
    page = tmp_path / "evidence/wikipedia/York.txt"
    page.write_bytes(b"\xff")
    with pytest.raises(
        InputError, match=r"Data\[0\]: EntityPages\[0\]: Filename: found 'York.txt', which is not UTF-8"
    ):
        list(task(path).read("train"))
    monkeypatch.setattr("trainer.tasks.triviaqa_files.MOST_BYTES", 3)
    page.write_text("York")
    with pytest.raises(InputError, match=r"found 'York\.txt', longer than 3 bytes"):
        list(task(path).read("train"))
    with pytest.raises(InputError, match=r"found no folder .*elsewhere, expected the evidence there"):
        list(task(path, evidence=tmp_path / "elsewhere").read("train"))


# The input.


def question(context: str, *answers: str, asked: str = "Which city?") -> Question:
    return Question("q1", asked, (Page("p", context),), answers or None)


def gold(example: Example) -> list[str]:
    """The texts of the spans that an example's features name, where each start has its own end."""
    context = json.loads(example.about)["context"]
    begin, end = example.features["characters_from"], example.features["characters_to"]
    places = zip(example.features["starts"], example.features["ends"], strict=True)
    return [context[begin[first] : end[last]].strip() for first, last in places]


def test_a_row_is_question_and_context_with_the_question_global(wordpieces: Wordpieces) -> None:
    text = "York. In Yorkshire, york, the New York."
    example = task().encode(question(text, "york", "new york"), wordpieces, Lengths(64), True)
    asked, context = (wordpieces.encode(part).ids.tolist() for part in ("Which city?", text))
    (row,) = example.rows
    assert row.tolist() == [wordpieces.bos, *asked, wordpieces.eos, *context, wordpieces.eos]
    assert example.global_places.tolist() == list(range(1 + len(asked)))
    assert example.read is not None
    assert row[example.read].tolist() == context
    assert (example.context_tokens, example.tokens_cut) == (len(context), 0)
    starts, ends = (example.features[name].tolist() for name in ("starts", "ends"))
    # "New York" and the "York" in it start at two places, and end at one.
    assert (len(starts), len(ends)) == (4, 3)
    assert [wordpieces.tokenizer.decode([context[place]]) for place in starts] == [
        "York",
        " y",
        " New",
        " York",
    ]


def test_rows_without_an_answer_are_left_out_of_training_alone(wordpieces: Wordpieces) -> None:
    def encode(entry: Question, training: bool, tokens: int = 64) -> Example:
        return task().encode(entry, wordpieces, Lengths(tokens), training)

    long = "So it is said. " * 20 + "York."
    for found, reason in (
        (question("Yorkshire.", "york"), "no answer in the evidence"),
        (question(long, "york"), "no answer in what is read of the evidence"),
        (question("York.", "york", asked="Which? " * 40), "question longer than half a row"),
        (question("", "york"), "evidence is missing"),
        (replace(question("York."), pages=(Page("p", "York."), Page("q", None))), "evidence is missing"),
    ):
        with pytest.raises(Skipped, match=f"^{reason}$"):
            encode(found, True)
        if reason.startswith("question"):
            continue
        assert not len(encode(found, False).features["starts"]) or reason.startswith("evidence")
    cut = encode(question(long, "york"), False)
    assert cut.tokens == 64
    assert cut.tokens_cut == cut.context_tokens - (64 - 3 - len(wordpieces.encode("Which city?"))) > 0
    with pytest.raises(InputError, match="sequence_length: found 6, expected 7 tokens or more"):
        encode(question("York."), False, tokens=6)


def test_a_question_is_never_cut_and_named_by_its_place(tmp_path: Path, wordpieces: Wordpieces) -> None:
    path = rows(tmp_path, {"id": "a", "question": "Which? " * 40, "context": "York."})
    (found,) = task().read_own(path)
    with pytest.raises(
        InputError, match=r"some\.jsonl: line 1 \(a\): found \d+ wordpieces in the question, .* 32 at"
    ):
        task().encode(found, wordpieces, Lengths(64), False)


def test_an_answer_that_two_rows_share_is_in_neither(wordpieces: Wordpieces) -> None:
    room = 64 - 3 - len(wordpieces.encode("Which city?"))
    before = "a" + " a" * (room - 2)
    assert len(wordpieces.encode(before)) == room - 1
    parted = question(f"{before} New York. New York.", "new york")
    example = task().encode(parted, wordpieces, Lengths(64, "chunk"), True)
    assert (len(example.rows), example.features["starts"].tolist()) == (2, [room + 2])
    with pytest.raises(Skipped, match=r"^no answer in what is read of the evidence$"):
        task().encode(question(f"{before} New York.", "new york"), wordpieces, Lengths(64, "chunk"), True)


def test_the_loss_is_a_sum_over_questions(wordpieces: Wordpieces) -> None:
    own = task()
    texts = ["In York.", "York it is, and York again, not Leeds.", "Leeds. " * 9 + "York."]
    examples = [own.encode(question(text, "york"), wordpieces, Lengths(24, "chunk"), True) for text in texts]
    model = small_model(own, wordpieces.size, 24, hidden_size=16, window=8).eval()

    def loss(some: list[Example]) -> float:
        with torch.no_grad():
            return own.loss(model, model.states(as_batch(some, wordpieces.pad)), some).item()

    assert loss(examples) == pytest.approx(sum(loss([example]) for example in examples), rel=1e-5)


def test_answers_are_thirty_pieces_at_most(wordpieces: Wordpieces) -> None:
    long = "York " * 30
    encode = task(longest_answer=29).encode
    with pytest.raises(Skipped, match="no answer in the evidence"):
        encode(question(f"So: {long}.", long), wordpieces, Lengths(64), True)
    assert gold(task().encode(question(f"So: {long}.", long), wordpieces, Lengths(64), True)) == [
        long.strip()
    ]


@settings(deadline=None, max_examples=60)
@given(
    st.text(st.characters(codec="utf-8"), max_size=60),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=12),
    st.integers(7, 40),
    st.sampled_from(["truncate", "chunk"]),
    st.booleans(),
)
def test_rows_hold_the_question_and_the_context_in_order(
    wordpieces: Wordpieces, asked: str, words: list[str], tokens: int, longer: Any, training: bool
) -> None:
    """The question is whole wherever there is an example to train on; what is cut off is counted."""
    context = " York ".join(words)
    limits = Lengths(tokens, longer)
    whole, pieces = wordpieces.encode(asked), wordpieces.encode(context)
    entry = question(context, "york", asked=asked)
    encode = task(longest_context=50).encode
    if 2 * len(whole) > tokens:
        with pytest.raises(Skipped if training else InputError, match=r"longer than half|never cut|missing"):
            encode(entry, wordpieces, limits, training)
        return
    try:
        example = encode(entry, wordpieces, limits, training)
    except Skipped:
        assert training
        return
    kept = whole.ids.tolist()
    read = []
    for row in example.rows:
        assert len(row) <= tokens
        assert row[: len(kept) + 2].tolist() == [wordpieces.bos, *kept, wordpieces.eos]
        assert row[-1] == wordpieces.eos
        read += row[len(kept) + 2 : -1].tolist()
    assert read == pieces.ids[: len(read)].tolist()
    joined = np.concatenate(example.rows)
    assert example.read is not None
    assert joined[example.read].tolist() == read
    assert joined[example.global_places].tolist() == [wordpieces.bos, *kept] * len(example.rows)
    assert example.tokens_cut == len(pieces) - len(read)
    assert example.context_tokens == len(pieces)
    if longer == "chunk":
        assert len(read) == min(50, len(pieces))
    else:
        assert len(example.rows) == 1
    room = tokens - len(kept) - 3
    spans = [pieces.covering(*span) for span in occurrences(pieces.text, ["york"], TRIVIAQA_PUNCTUATION)]
    held = [(a, b) for a, b in spans if b < len(read) and a // room == b // room and b - a < 30]
    assert example.features["starts"].tolist() == sorted({first for first, _ in held})
    assert example.features["ends"].tolist() == sorted({last for _, last in held})
    assert len(held) or not training


# The model.


def test_head_and_places_are_those_of_transformers(wordpieces: Wordpieces) -> None:
    """The same weights by the same names give the same logits where the context is."""
    own = task()
    model = small_model(own, wordpieces.size, 32, hidden_size=16, window=8).eval()
    torch.manual_seed(1)
    torch.nn.init.normal_(model.get_submodule("qa_outputs").weight)  # type: ignore[arg-type]
    theirs = LongformerForQuestionAnswering(
        LongformerConfig(
            vocab_size=wordpieces.size,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            max_position_embeddings=34,
            attention_window=[8, 8],
            type_vocab_size=1,
            layer_norm_eps=1e-5,
        )
    ).eval()
    theirs.load_state_dict(model.state_dict())
    example = own.encode(question("York it is, in the north."), wordpieces, Lengths(32), False)
    batch = as_batch([example], wordpieces.pad)
    with torch.no_grad():
        (states,) = model.states(batch)
        logits = model.get_submodule("qa_outputs")(states)
        found = theirs(input_ids=batch.input_ids, global_attention_mask=batch.global_mask.long())  # type: ignore[union-attr]
    expected = torch.stack([found.start_logits[0], found.end_logits[0]], 1)[example.read]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_predictions_are_characters_of_the_context_within_a_row(wordpieces: Wordpieces) -> None:
    own = task(candidates=500, longest_answer=4)
    text = "Ōsaka – “東京都” 😀 in Zürich " * 3
    example = own.encode(question(text, "zürich"), wordpieces, Lengths(24, "chunk"), False)
    assert len(example.rows) > 2
    model = small_model(own, wordpieces.size, 24, hidden_size=16, window=8).eval()
    with torch.no_grad():
        (found,) = own.predict(model, model.states(as_batch([example], wordpieces.pad)), [example])
    assert found["answer"] == found["spans"][0]["answer"]
    assert [span["score"] for span in found["spans"]] == sorted(
        (s["score"] for s in found["spans"]), reverse=True
    )
    room = len(example.rows[0]) - len(wordpieces.encode("Which city?")) - 3
    lengths = [min(room, example.context_tokens - start) for start in range(0, example.context_tokens, room)]
    assert len(found["spans"]) == sum(min(4, length - place) for length in lengths for place in range(length))
    for span in found["spans"]:
        assert text[span["start"] : span["end"]] == span["answer"]
        assert span["score"] < 0
    assert json.loads(json.dumps(found)) == found


def test_without_evidence_the_answer_is_empty(wordpieces: Wordpieces) -> None:
    own = task()
    bare = replace(question("", "york", asked="Which?"), pages=(Page("p", None),))
    example = own.encode(bare, wordpieces, Lengths(16), False)
    model = small_model(own, wordpieces.size, 16, hidden_size=16, window=8)
    batch = as_batch([example], wordpieces.pad)
    assert own.loss(model, model.states(batch), [example]).item() == 0
    (found,) = own.predict(model, model.states(batch), [example])
    assert found == {
        "answer": "",
        "spans": [],
        "documents_missing": 1,
    }
    assert own.figures(own.sums([example], [found])) == {"f1": 0, "exact_match": 0}


def test_figures_are_the_official_ones(wordpieces: Wordpieces, tmp_path: Path) -> None:
    """Two of three are right or nearly so; sums of parts add up; a joined answer counts for each page of the web."""
    own = task(domain="web")
    pages = (Page("a.txt", "York", True), Page("b.txt", "York"))
    entries = [
        Question("q1", "?", pages, ("york", "city of york"), True, "web"),
        Question("q2", "?", pages[:1], ("york minster",), False, "web"),
        Question("q3", "?", pages[:1], ("ÉCOLE",), False, "web"),
        Question("q4", "?", pages[:1], None, False, "web"),
    ]
    examples = [own.encode(entry, wordpieces, Lengths(16), False) for entry in entries]
    predictions = [{"answer": text} for text in ("The York!", "York", "", "any")]
    sums = [own.sums([example], [found]) for example, found in zip(examples, predictions)]
    assert own.sums(examples, predictions) == np.sum(sums, 0).tolist()
    found = own.figures(own.sums(examples, predictions))
    assert found == {
        "f1": pytest.approx(100 * (1 + 1 + 2 / 3) / 4),
        "exact_match": 50,
        "verified_f1": 100,
        "verified_exact_match": 100,
    }
    assert next(iter(found)) == "f1"
    path = tmp_path / "predictions.json"
    own.write(path, zip(examples, predictions))
    written = read_triviaqa(path)
    assert written == {
        "q1--a.txt": "The York!",
        "q1--b.txt": "The York!",
        "q2--a.txt": "York",
        "q3--a.txt": "",
        "q4--a.txt": "any",
    }
    answers = {id: list(entry.answers) for entry in entries if entry.answers for id, _ in entry.scored_as}
    official = evaluate_triviaqa(answers, written)
    assert (official.f1, official.exact_match) == (pytest.approx(found["f1"]), found["exact_match"])
    with pytest.raises(InputError, match="found no answers to score by"):
        own.figures(own.sums(examples[3:], predictions[3:]))
    lines = (tmp_path / "predictions.spans.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {"id": "q2", "question": "?", "answer": "York"}
    with pytest.raises(InputError, match=r"none/p\.spans\.jsonl: cannot be written"):
        own.write(tmp_path / "none" / "p.json", [])


# The real sample.


@real
def test_real_questions_have_their_answers_where_the_metric_finds_them(
    sample: Path, wordpieces: Wordpieces
) -> None:
    names = {"wikipedia": ["wikipedia-train", "wikipedia-dev"], "web": ["web-train", "web-dev"]}
    counts = {}
    for domain, files in names.items():
        own = task(sample / f"{files[0]}.json", validation=sample / f"{files[1]}.json", domain=domain)
        entries = [*own.read("train"), *own.read("validation")]
        for entry in entries:
            example = own.encode(entry, wordpieces, Lengths(4096, "chunk"), True)
            pieces = wordpieces.encode(entry.context)
            for span in occurrences(pieces.text, entry.answers or (), TRIVIAQA_PUNCTUATION):
                start, end = pieces.characters(*pieces.covering(*span))
                answer = pieces.text[start:end]
                assert any(
                    token_scores(answer, right, normalise_triviaqa).exact_match
                    for right in entry.answers or ()
                )
            counts[domain, entry.id] = len(example.features["starts"])
    assert len(counts) == 11
    assert all(counts.values())


def around_the_answer(entry: Question, characters: int) -> Question:
    """The question with of each page so much as lies before and behind the answer's first occurrence, up to the next.

    What begins with one occurrence and ends with another costs the loss nothing, so that a model may well prefer it:
    here no two are within an answer's length.
    """
    pages = []
    for page in entry.pages:
        text = page.text or ""
        spans = occurrences(text, entry.answers or (), TRIVIAQA_PUNCTUATION) or [(0, 0)]
        start, end = spans[0][0], max(end for start, end in spans if start == spans[0][0])
        following = min((start for start, _ in spans if start >= end), default=len(text))
        pages.append(replace(page, text=text[max(0, start - characters) : min(end + characters, following)]))
    return replace(entry, pages=tuple(pages))


@real
@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
@pytest.mark.parametrize(("tokens", "longer", "characters"), [(384, "truncate", 250), (96, "chunk", 200)])
def test_learns_the_real_questions_by_heart(
    sample: Path, wordpieces: Wordpieces, tokens: int, longer: Any, characters: int
) -> None:
    own = task(sample / "wikipedia-train.json", validation=sample / "wikipedia-dev.json")
    entries = [
        around_the_answer(entry, characters) for entry in [*own.read("train"), *own.read("validation")]
    ]
    examples = [own.encode(entry, wordpieces, Lengths(tokens, longer), True) for entry in entries]
    assert len(examples) == 6
    assert (max(len(example.rows) for example in examples) > 1) == (longer == "chunk")
    for example in examples:  # as they are when kept in a file
        for array in example.features.values():
            array.setflags(write=False)
    model = small_model(own, wordpieces.size, tokens)
    assert figures(model, own, examples)["exact_match"] < 50
    losses = overfit(model, own, examples, 25, 3e-3)
    assert losses[-1] < losses[0] / 10
    assert figures(model, own, examples) == {"f1": 100, "exact_match": 100}
