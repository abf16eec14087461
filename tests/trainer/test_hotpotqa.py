"""HotpotQA: files in every layout, the input token by token, decoding by hand, and the real rows learnt by heart."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example as given_also
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from tests.trainer.overfit import figures, overfit, real_wordpieces, small_model
from tests.trainer.test_conll2012 import DATA
from trainer.batches.examples import as_batch
from trainer.engine.config import InputError, load_config
from trainer.model.longformer import EncoderConfig
from trainer.tasks.config import Finetuning
from trainer.tasks.example import Example, Skipped
from trainer.tasks.hotpotqa import HotpotQA, HotpotQASettings, supporting_sentences
from trainer.tasks.hotpotqa_files import Paragraph, Question, read_questions, read_scores, write_scores
from trainer.tasks.question_answering_metrics import HotpotQAAnswers, evaluate_hotpotqa, normalise_squad
from trainer.tasks.question_answering_submissions import read_hotpotqa
from trainer.tasks.task import Lengths
from trainer.tasks.wordpieces import Wordpieces

ROWS = DATA / "downstream" / "hotpotqa_dev_distractor_10rows.jsonl"
HANDMADE = DATA / "downstream" / "hotpot_original_format_handmade_example.json"
CONFIGS = Path(__file__).parents[2] / "trainer" / "configs"
real = pytest.mark.skipif(not ROWS.exists(), reason=f"no real data: {ROWS} is absent")
LONG = Lengths(4096)
CITIES = Question(
    "q1",
    "Where does the river of Ulm end?",
    (
        Paragraph("Ulm", ("Ulm lies on the Danube.", " It has a minster.")),
        Paragraph("Danube", ("The Danube ends in the Black Sea.", " It is long.")),
        Paragraph("Rhine", ("The Rhine ends in the North Sea.",)),
    ),
    "the Black Sea",
    (("Ulm", 0), ("Danube", 0)),
)


def task(**settings: Any) -> HotpotQA:
    return HotpotQASettings(name="hotpotqa", **{"train": ROWS, **settings}).task()


@pytest.fixture(scope="module")
def wordpieces() -> Wordpieces:
    if not (DATA / "tokenizer").is_dir():
        pytest.skip(f"no real data: {DATA / 'tokenizer'} is absent")
    return real_wordpieces(DATA, task())


def shown(ids: Sequence[int], wordpieces: Wordpieces) -> str:
    """Tokens as text, special ones by name."""
    names = {number: name for name, number in wordpieces.added.items()}
    names |= {wordpieces.bos: "<s>", wordpieces.eos: "</s>"}
    text = ""
    for special, group in itertools.groupby(ids, names.__contains__):
        run = list(group)
        text += "".join(names[number] for number in run) if special else wordpieces.tokenizer.decode(run)
    return text


def same(one: Example, two: Example) -> bool:
    return (
        [row.tolist() for row in one.rows] == [row.tolist() for row in two.rows]
        and one.global_places.tolist() == two.global_places.tolist()
        and one.features.keys() == two.features.keys()
        and all(one.features[name].tolist() == two.features[name].tolist() for name in one.features)
        and (one.id, one.about, one.context_tokens) == (two.id, two.about, two.context_tokens)
    )


# Input


@real
def test_real_rows_have_the_papers_layout(wordpieces: Wordpieces) -> None:
    raw = [json.loads(line) for line in ROWS.open()]
    questions = list(task().read("train"))
    assert len(questions) == len(raw) == 10
    for question, row in zip(questions, raw, strict=True):
        example = task().encode(question, wordpieces, LONG, True)
        expected = f"<s>[q] {row['question'].strip()}[/q]"
        for title, sentences in zip(row["context"]["title"], row["context"]["sentences"], strict=True):
            expected += f"<t> {title}</t>" + "".join(f" {sentence.strip()}[s]" for sentence in sentences)
        (ids,) = example.rows
        assert shown(ids.tolist(), wordpieces) == expected + "</s>"
        marks = [wordpieces.special("<t>"), wordpieces.special("[s]")]
        behind_question = ids.tolist().index(wordpieces.special("[/q]")) + 1
        expected_places = [*range(behind_question), *np.flatnonzero(np.isin(ids, marks))]
        assert example.global_places.tolist() == expected_places
        assert example.tokens_cut == 0
        # Behind the question are <t>, </t>, [s] and </s>; the rest is context.
        own = [wordpieces.special(token) for token in ("<t>", "</t>", "[s]")]
        assert example.context_tokens == len(ids) - behind_question - 1 - np.isin(ids, own).sum()


@real
def test_labels_of_real_rows(wordpieces: Wordpieces) -> None:
    for question in task().read("train"):
        assert question.answer is not None
        assert question.facts is not None
        example = task().encode(question, wordpieces, LONG, True)
        feature = example.features
        titles = [paragraph.title for paragraph in question.paragraphs]
        found = {
            (titles[n], int(sentence))
            for n, sentence, label in zip(
                feature["sentence_paragraphs"],
                feature["sentence_numbers"],
                feature["sentence_labels"],
                strict=True,
            )
            if label
        }
        assert found == set(question.facts)
        labelled = feature["part_paragraphs"][feature["part_labels"] == 1]
        assert {titles[n] for n in labelled} == {title for title, _ in question.facts}
        assert example.read is not None
        ids = example.rows[0][example.read]
        assert set(ids[feature["part_places"]]) == {wordpieces.special("<t>")}
        assert set(ids[feature["sentence_places"]]) == {wordpieces.special("[s]")}
        assert ids[feature["row_places"]].tolist() == [wordpieces.bos]
        if question.answer in ("yes", "no"):
            assert feature["kind"].tolist() == [("yes", "no").index(question.answer) + 1]
            assert not len(feature["span_starts"])
            continue
        assert feature["kind"].tolist() == [0]
        assert len(feature["span_starts"])
        for first, last in zip(feature["span_starts"], feature["span_ends"], strict=True):
            part = feature["piece_parts"][first]
            text = question.paragraphs[feature["part_paragraphs"][part]].text
            found_text = text[feature["piece_starts"][first] : feature["piece_ends"][last]]
            assert normalise_squad(found_text) == normalise_squad(question.answer)
            assert (
                wordpieces.tokenizer.decode(ids[feature["piece_places"][first : last + 1]]).strip()
                == found_text.strip()
            )


def test_marks_in_a_text_are_text(wordpieces: Wordpieces) -> None:
    odd = Paragraph("<t> [/q]", ("It has [s] and </s>.", "", " \n"))
    question = replace(CITIES, text="What is [q]?", paragraphs=(odd,), facts=(("<t> [/q]", 2),), answer="[s]")
    example = task().encode(question, wordpieces, LONG, False)
    (ids,) = example.rows
    assert (
        np.isin(ids, list(wordpieces.added.values())).sum() == 2 + 2 + 3
    )  # sentences without text have their [s]
    assert (
        shown(ids.tolist(), wordpieces)
        == "<s>[q] What is [q]?[/q]<t> <t> [/q]</t> It has [s] and </s>.[s][s][s]</s>"
    )
    assert example.features["sentence_labels"].tolist() == [0, 0, 1]


PARAGRAPHS = st.lists(
    st.builds(
        Paragraph,
        st.text(st.sampled_from("ab é日😀[s] "), max_size=12),
        st.lists(
            st.text(st.one_of(st.characters(), st.sampled_from(" \nab.é日😀\u0301\ud800")), max_size=30),
            max_size=4,
        ).map(tuple),
    ),
    max_size=4,
).map(tuple)


@given(PARAGRAPHS, st.data())
@settings(max_examples=60, deadline=None)
def test_pieces_know_the_paragraphs_characters(
    wordpieces: Wordpieces, paragraphs: tuple[Paragraph, ...], data: st.DataObject
) -> None:
    question = replace(CITIES, paragraphs=paragraphs)
    example = task().encode(question, wordpieces, LONG, False)
    feature = example.features
    assert example.read is not None
    ids = example.rows[0][example.read][feature["piece_places"]]
    owners = feature["part_paragraphs"][feature["piece_parts"]]
    for number, paragraph in enumerate(paragraphs):
        own = owners == number
        starts, ends = feature["piece_starts"][own], feature["piece_ends"][own]
        held = {n for start, end in zip(starts, ends, strict=True) for n in range(start, end)}
        first = 0
        for sentence in paragraph.sentences:
            stripped = sentence.strip()
            place = first + sentence.find(stripped)
            inside = set(range(first, first + len(sentence)))
            assert held & inside == set(range(place, place + len(stripped)))
            first += len(sentence)
            if not stripped:
                continue
            start = data.draw(st.integers(place, place + len(stripped) - 1))
            end = data.draw(st.integers(start + 1, place + len(stripped)))
            pieces = ids[own][(ends > start) & (starts < end)]
            text = paragraph.text[start:end].replace("\ud800", "\ufffd")
            assert text in wordpieces.tokenizer.decode(pieces)


@given(PARAGRAPHS, st.integers(22, 60), st.sampled_from(["truncate", "chunk"]))
@given_also((Paragraph("", ()), Paragraph("[" * 9, ())), 22, "truncate")  # a title that fits when cut
@settings(max_examples=80, deadline=None)
def test_rows_are_never_too_long_and_tell_what_they_lack(
    wordpieces: Wordpieces, paragraphs: tuple[Paragraph, ...], tokens: int, longer: Any
) -> None:
    question = replace(CITIES, paragraphs=paragraphs)
    whole = task().encode(question, wordpieces, LONG, False)
    example = task().encode(question, wordpieces, Lengths(tokens, longer), False)
    head = whole.rows[0][: whole.rows[0].tolist().index(wordpieces.special("[/q]")) + 1]
    for row in example.rows:
        assert len(row) <= tokens
        assert row[: len(head)].tolist() == head.tolist()
        assert row[-1] == wordpieces.eos
    assert example.context_tokens == whole.context_tokens
    marks = [wordpieces.special(token) for token in ("<t>", "</t>", "[s]")]
    bodies = [row[len(head) : -1] for row in example.rows]
    if longer == "truncate":
        (body,) = bodies
        shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(body, whole.rows[0][len(head) :]))
        if len(list(shared)) < len(
            body
        ):  # cut inside the first title or sentence, the one way to cut any of it
            assert body.tolist().count(wordpieces.special("<t>")) == 1
        assert example.tokens_cut == whole.context_tokens - (~np.isin(body, marks)).sum()
    else:
        assert example.features["sentence_numbers"].tolist() == whole.features["sentence_numbers"].tolist()
        assert set(example.features["part_paragraphs"]) == set(range(len(paragraphs)))
        if example.tokens_cut == 0:
            for name in ("piece_starts", "piece_ends"):
                assert example.features[name].tolist() == whole.features[name].tolist()
        titles = 0  # those that stand there again
        for before, after in itertools.pairwise(example.features["part_paragraphs"].tolist()):
            if before == after:
                title = wordpieces.encode(f" {paragraphs[after].title.strip()}").ids
                titles += (
                    min(len(title), (tokens - 1 - len(head)) // 2) if paragraphs[after].title.strip() else 0
                )
        read = sum((~np.isin(body, marks)).sum() for body in bodies)
        assert example.tokens_cut == whole.context_tokens - (read - titles)


def test_whole_sentences_are_dropped(wordpieces: Wordpieces) -> None:
    whole = task().encode(CITIES, wordpieces, LONG, True).rows[0]
    for tokens in range(len(whole) - 1, 30, -1):
        example = task().encode(CITIES, wordpieces, Lengths(tokens), False)
        (row,) = example.rows
        assert row[-2] == wordpieces.special("[s]")
        assert row[:-1].tolist() == whole[: len(row) - 1].tolist()
        # The next sentence, with its title if it begins a paragraph, did not fit.
        ends = [
            n + 2 for n in np.flatnonzero(whole == wordpieces.special("[s]")).tolist() if n + 2 > len(row)
        ]
        assert ends[0] > tokens
        assert example.tokens_cut > 0
        held = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)][: (row == wordpieces.special("[s]")).sum()]
        feature = example.features
        assert held == list(zip(feature["sentence_paragraphs"], feature["sentence_numbers"], strict=True))


def test_chunks_hold_whole_paragraphs(wordpieces: Wordpieces) -> None:
    example = task().encode(CITIES, wordpieces, Lengths(44, "chunk"), True)
    assert [shown(row.tolist(), wordpieces) for row in example.rows] == [
        "<s>[q] Where does the river of Ulm end?[/q]<t> Ulm</t> Ulm lies on the Danube.[s] It has a minster.[s]</s>",
        "<s>[q] Where does the river of Ulm end?[/q]<t> Danube</t> The Danube ends in the Black Sea.[s]"
        " It is long.[s]</s>",
        "<s>[q] Where does the river of Ulm end?[/q]<t> Rhine</t> The Rhine ends in the North Sea.[s]</s>",
    ]
    assert example.tokens_cut == 0
    ids = np.concatenate(example.rows)
    marks = [wordpieces.special("<t>"), wordpieces.special("[s]")]
    starts = np.flatnonzero(ids == wordpieces.bos)
    behind = np.flatnonzero(ids == wordpieces.special("[/q]")) + 1
    question = [np.arange(start, end) for start, end in zip(starts, behind, strict=True)]
    assert (
        example.global_places.tolist()
        == np.sort(np.concatenate([*question, np.flatnonzero(np.isin(ids, marks))])).tolist()
    )
    # A paragraph that no row holds goes on in the next one, under its title.
    example = task().encode(CITIES, wordpieces, Lengths(29, "chunk"), True)
    assert example.features["part_paragraphs"].tolist() == [0, 0, 1, 1, 2]
    assert example.features["part_labels"].tolist() == [1, 1, 1, 1, 0]
    assert (example.tokens_cut, len(example.rows)) == (0, 5)
    assert "".join(shown(row.tolist(), wordpieces) for row in example.rows).count("<t> Danube</t>") == 2


def test_a_question_is_never_cut(wordpieces: Wordpieces) -> None:
    for longer in ("truncate", "chunk"):
        with pytest.raises(Skipped, match=r"^question too long$"):
            task().encode(CITIES, wordpieces, Lengths(16, longer), True)
    with pytest.raises(
        InputError, match=r"^q1: found 9 wordpieces .* never cut, expected 4 at most"
    ) as error:
        task().encode(CITIES, wordpieces, Lengths(16), False)
    assert "16 tokens" in str(error.value)
    with pytest.raises(InputError, match=r"^file: row 3: found 9 wordpieces"):
        task().encode(replace(CITIES, where="file: row 3"), wordpieces, Lengths(16), False)
    short = replace(CITIES, text="Where is it?")
    assert task().encode(short, wordpieces, Lengths(16), False).tokens <= 16


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": None}, "no answer"),
        ({"facts": None}, "no supporting facts"),
        ({"facts": ()}, "no supporting facts"),
        ({"answer": "the North Sea"}, "no answer occurs"),  # elsewhere only
        ({"answer": "Black"}, None),
        ({"answer": "yes"}, None),
        ({"facts": (("Ulm", 0), ("Danube", 7), ("Elbe", 0))}, None),  # as in the real data
    ],
)
def test_what_cannot_be_trained_on_is_skipped(
    wordpieces: Wordpieces, change: dict[str, Any], reason: str | None
) -> None:
    question = replace(CITIES, **change)
    task().encode(question, wordpieces, LONG, False)
    if reason is None:
        example = task().encode(question, wordpieces, LONG, True)
        assert example.features["part_labels"].tolist() == [1, 1, 0]
        return
    with pytest.raises(Skipped, match=f"^{reason}$"):
        task().encode(question, wordpieces, LONG, True)


def test_every_occurrence_in_supporting_paragraphs_is_right(wordpieces: Wordpieces) -> None:
    again = (
        Paragraph(
            "Danube", ("The Black Sea, its end.", " BLACK SEA!", " So, Black", " Sea: see Black Seas.")
        ),
        Paragraph("Rhine", ("The Black Sea is far.",)),
    )
    question = replace(CITIES, paragraphs=again, facts=(("Danube", 0),))
    feature = task().encode(question, wordpieces, LONG, True).features
    text = again[0].text
    found = [
        text[feature["piece_starts"][first] : feature["piece_ends"][last]].strip()
        for first, last in zip(feature["span_starts"], feature["span_ends"], strict=True)
    ]
    assert found == ["Black Sea,", "BLACK SEA", "Black Sea"] or found == [
        "Black Sea",
        "BLACK SEA",
        "Black Sea",
    ]


# Files


def as_original(row: dict[str, Any]) -> dict[str, Any]:
    facts, context = row["supporting_facts"], row["context"]
    return {
        "_id": row["id"],
        "question": row["question"],
        "answer": row["answer"],
        "supporting_facts": [list(pair) for pair in zip(facts["title"], facts["sent_id"], strict=True)],
        "context": [list(pair) for pair in zip(context["title"], context["sentences"], strict=True)],
    }


@real
def test_all_layouts_give_the_same_examples(wordpieces: Wordpieces, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in ROWS.open()]
    original, parquet, own = tmp_path / "dev.json", tmp_path / "dev.parquet", tmp_path / "own.jsonl"
    original.write_text(json.dumps([as_original(row) for row in rows], ensure_ascii=False))
    pq.write_table(pyarrow.Table.from_pylist(rows), parquet)
    own.write_text(
        "".join(
            json.dumps(
                {
                    "id": row["id"],
                    "question": row["question"],
                    "paragraphs": [
                        {"title": title, "sentences": sentences}
                        for title, sentences in as_original(row)["context"]
                    ],
                }
            )
            + "\n"
            for row in rows
        )
    )
    expected = [task().encode(question, wordpieces, LONG, True) for question in read_questions(ROWS)]
    for path in (original, parquet):
        found = [task().encode(question, wordpieces, LONG, True) for question in read_questions(path)]
        assert all(map(same, expected, found))
        assert len(found) == 10
    predicted = [task().encode(question, wordpieces, LONG, False) for question in task().read_own(own)]
    for labelled, example in zip(expected, predicted, strict=True):
        assert [row.tolist() for row in labelled.rows] == [row.tolist() for row in example.rows]
        assert set(example.features["sentence_labels"]) == set(example.features["part_labels"]) == {-1}
        assert example.features["kind"].tolist() == [-1]


@real
def test_the_handmade_file_of_the_original_layout(wordpieces: Wordpieces) -> None:
    questions = list(read_questions(HANDMADE))
    assert [question.id for question in questions] == ["s1", "s2", "s3", "s4"]
    assert questions[0].facts == (("Ran (film)", 0), ("Akira Kurosawa", 0))
    assert [paragraph.title for paragraph in questions[2].paragraphs] == ["Kintai Bridge", "Iwakuni", "Tokyo"]
    for question in questions[:3]:
        task().encode(question, wordpieces, LONG, True)
    # Its answer is in a paragraph that no fact names too, and in the one that one names.
    task().encode(questions[3], wordpieces, LONG, True)


def test_a_text_of_ones_own_is_cut_into_sentences(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    text = "It grew.  Then (see below) it fell! “Why?” asked e.g. he.\nÜber 3.5 m. 12 came. no end"
    path.write_text(json.dumps({"id": "1", "question": "?", "paragraphs": [{"title": "A", "text": text}]}))
    (question,) = read_questions(path)
    assert question.paragraphs[0].text == text
    assert question.paragraphs[0].sentences == (
        "It grew.",
        "  Then (see below) it fell!",
        " “Why?” asked e.g. he.",
        "\nÜber 3.5 m.",
        " 12 came. no end",
    )
    assert (question.answer, question.facts) == (None, None)


GOOD = {
    "_id": "1",
    "question": "?",
    "answer": "a",
    "supporting_facts": [["A", 0]],
    "context": [["A", ["a."]]],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_id": 5}, "row 2: _id: found 5, expected text"),
        ({"question": None}, "row 2: question: found None, expected text"),
        ({"answer": ["a"]}, "row 2: answer: found ['a'], expected text"),
        ({"context": "A"}, "row 2: context: found 'A', expected a list"),
        ({"context": [["A"]]}, "row 2: context[0]: found ['A'], expected [title, sentences]"),
        ({"context": [["A", "a."]]}, "row 2: context[0]: sentences: found 'a.', expected a list"),
        ({"context": [["A", ["a", 1]]]}, "row 2: context[0]: sentences[1]: found 1, expected text"),
        ({"context": {"title": ["A"]}}, "row 2: context.sentences: found None, expected a list"),
        (
            {"context": {"title": ["A"], "sentences": []}},
            "row 2: context: found 1 of title and 0 of sentences, expected as many of both",
        ),
        ({"supporting_facts": [["A", True]]}, "supporting_facts[0]: sentence: found True, expected a whole"),
        (
            {"supporting_facts": [["A", -1]]},
            "supporting_facts[0]: found sentence -1, expected its number from 0",
        ),
        ({"supporting_facts": [[None, 1]]}, "row 2: supporting_facts[0]: title: found None, expected text"),
        ({"supporting_facts": "A"}, "row 2: supporting_facts: found 'A', expected a list"),
        ({"paragraphs": [1]}, "row 2: paragraphs[0]: found 1, expected an object"),
        (
            {"paragraphs": [{"title": "A"}]},
            "row 2: paragraphs[0]: text (or sentences): found None, expected text",
        ),
        ({"_id": "1"}, "row 2: found the id '1' as in row 1, expected another one"),
        ({"_id": "\ud800"}, "row 2: _id: found half a surrogate pair"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps([GOOD, {**GOOD, "_id": "2", **change}]))
    with pytest.raises(InputError) as error:
        list(read_questions(path))
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_official_test_files_have_no_answers(tmp_path: Path, wordpieces: Wordpieces) -> None:
    path = tmp_path / "test.json"
    bare = {key: GOOD[key] for key in ("_id", "question", "context")}
    path.write_text(json.dumps([bare, {**bare, "_id": "2", "answer": None, "supporting_facts": []}]))
    for question in task().read_own(path):
        assert (question.answer, question.facts) == (None, None)
        task().encode(question, wordpieces, LONG, False)


# Stage one's scores


def test_the_best_paragraphs_are_kept() -> None:
    def kept(scores: list[float | None], **settings: Any) -> list[int]:
        return task(**settings)._kept([("A", score) for score in scores])

    assert kept([-2.0, 5.0, -3.0, 1.0, -9.0]) == [0, 1, 3]  # above -3, not at it
    assert kept([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == [1, 2, 3, 4, 5]
    assert kept([1.0, 1.0, 1.0], keep=2) == [0, 1]
    assert kept([-9.0, -5.0, -7.0]) == [1, 2]  # two always
    assert kept([None, -9.0, None, 3.0]) == [1, 3]
    assert kept([None, 0.0]) == [1]
    assert kept([]) == []


def test_scores_choose_the_context(tmp_path: Path) -> None:
    data, scores = tmp_path / "dev.json", tmp_path / "scores.json"
    context = [[title, [f"{title}."]] for title in "ABCD"]
    data.write_text(json.dumps([{**GOOD, "context": context}]))
    write_scores(scores, {"1": [("A", 0.5), ("B", None), ("C", -4.0), ("D", 2)]})
    found = task(train=data, paragraphs=[scores])
    assert found.files("train") == [data, scores]
    assert [[p.title for p in question.paragraphs] for question in found.read("train")] == [["A", "D"]]
    assert read_scores([scores]) == {"1": [("A", 0.5), ("B", None), ("C", -4.0), ("D", 2.0)]}
    for content, message in [
        ({}, r"dev.json: 1: found no scores .* in .*scores.json"),
        ({"1": [["A", 1], ["B", 1], ["D", 1], ["C", 1]]}, r"dev.json: 1: found other titles"),
        ({"1": [["A", 1]]}, r"dev.json: 1: found other titles"),
        ({"1": 3}, r"scores.json: 1: found 3, expected a list"),
        ({"1": [["A", "1"]]}, r"scores.json: 1\[0\]: found '1', expected a score or null"),
        ({"1": [["A", math.nan]]}, r"scores.json: 1\[0\]: found nan, expected a score or null"),
        ({"1": [["A"]]}, r"scores.json: 1\[0\]: found \['A'\], expected \[title, score\]"),
    ]:
        scores.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            list(found.read("train"))
    with pytest.raises(ValidationError, match="expected them for stage answers"):
        task(stage="paragraphs", paragraphs=[scores])


# Decoding


@pytest.mark.parametrize(
    ("sentences", "owners", "paragraphs", "expected"),
    [
        ([1, -1, 2, 3, -4], [0, 0, 1, 1, 2], [0, 0, 0], [0, 2, 3]),
        ([1, 1, 1], [0, 1, 2], [0, 0, 0], [0, 1]),  # of equal paragraphs the first
        ([1, 1, 1], [0, 1, 2], [0, 0, 1], [0, 2]),
        (
            [-5, -3, -3, -9],
            [0, 0, 0, 1],
            [0, 0],
            [1, 3],
        ),  # none is likely: the likeliest, of equal ones the first
        (
            [9, 8, -1, -2],
            [0, 0, 1, 2],
            [0, 0, 0],
            [0, 1, 2],
        ),  # two paragraphs, although the second is unlikely
        ([9, 8, -1, -2], [0, 0, 1, 2], [0, 0, 5], [0, 1, 3]),
        ([0, -1, 2], [0, 0, 1], [0, 0], [0, 2]),  # 0 is not likely, yet the likeliest
        ([-1, 2], [1, 1], [None, 3], [1]),  # a paragraph that no row holds
        ([], [], [None], []),
    ],
)
def test_evidence_by_hand(
    sentences: list[float], owners: list[int], paragraphs: list[float | None], expected: list[int]
) -> None:
    assert supporting_sentences(sentences, owners, paragraphs) == expected


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(-4, 4)), max_size=8),
    st.lists(st.floats(-4, 4), min_size=4),
)
def test_evidence_is_the_likeliest_of_two_paragraphs(
    sentences: list[tuple[int, float]], paragraphs: list[float]
) -> None:
    owners, logits = [owner for owner, _ in sentences], [logit for _, logit in sentences]
    wanted = min(2, len(set(owners)))

    def value(subset: Sequence[int]) -> float:
        return sum(logits[n] for n in subset) + sum(paragraphs[p] for p in {owners[n] for n in subset})

    subsets = itertools.chain.from_iterable(
        itertools.combinations(range(len(owners)), size) for size in range(len(owners) + 1)
    )
    best = max(value(subset) for subset in subsets if len({owners[n] for n in subset}) == wanted)
    found = supporting_sentences(logits, owners, paragraphs)
    assert len({owners[n] for n in found}) == wanted
    assert value(found) == pytest.approx(best)


class Planted(nn.Module):
    """Heads that read their logits off the hidden states: columns 0-1 span, 2-4 kind, 5 sentence, 6 paragraph."""

    def __init__(self) -> None:
        super().__init__()
        for name, first, count in [
            ("qa_outputs", 0, 2),
            ("answer_kind", 2, 3),
            ("sentence_scorer", 5, 1),
            ("paragraph_scorer", 6, 1),
        ]:
            head = nn.Linear(8, count, bias=False)
            head.weight.data = torch.eye(8)[first : first + count]
            self.add_module(name, head)


def planted(example: Example, kind: int = 0) -> Tensor:
    """States of CITIES by which its facts are evidence and nothing is a good answer."""
    assert example.read is not None
    states = torch.full((len(example.read), 8), -5.0)
    feature = {name: torch.from_numpy(found).long() for name, found in example.features.items()}
    states[feature["part_places"], 6] = torch.tensor([2.0, 2.0, -2.0])
    states[feature["sentence_places"], 5] = torch.tensor([3.0, -3.0, 3.0, -3.0, -3.0])
    states[feature["row_places"], 2 + kind] = 5.0
    return states


def piece(example: Example, paragraph: int, word: str) -> int:
    """Where the states have the piece that begins with the first occurrence of a word."""
    text, feature = CITIES.paragraphs[paragraph].text, example.features
    owners = feature["part_paragraphs"][feature["piece_parts"]]
    (n,) = np.flatnonzero((owners == paragraph) & (feature["piece_starts"] <= text.index(word)))[-1:]
    return int(feature["piece_places"][n])


def test_answers_by_hand(wordpieces: Wordpieces) -> None:
    example = task().encode(CITIES, wordpieces, LONG, True)
    evidence = [["Ulm", 0], ["Danube", 0]]

    def answer(states: Tensor, **settings: Any) -> str:
        (prediction,) = task(**settings).predict(Planted(), [states], [example])
        assert prediction["supporting_facts"] == evidence
        return str(prediction["answer"])

    assert answer(planted(example, 1)) == "yes"
    assert answer(planted(example, 2)) == "no"
    states = planted(example)
    first = answer(states)  # all spans are equal: the first piece of the evidence
    assert len(first) in (1, 2, 3)
    assert "Ulm".startswith(first)
    states[piece(example, 1, "Black"), 0] = states[piece(example, 1, "Sea"), 1] = 5
    assert answer(states) == "Black Sea"
    # Better, and in a paragraph that is no evidence.
    states[piece(example, 2, "North"), 0] = states[piece(example, 2, "Sea"), 1] = 9
    assert answer(states) == "Black Sea"
    # Over the end of a sentence, as the text has it; not over that of a paragraph.
    states[piece(example, 1, "It"), 1] = 6
    assert answer(states) == "Black Sea. It"
    assert answer(states, longest_answer=2) == "Black Sea"
    states[piece(example, 0, "minster"), 0] = 7
    assert answer(states) == "Black Sea. It"


def test_without_text_the_answer_is_empty(wordpieces: Wordpieces) -> None:
    for paragraphs in [(), (Paragraph("A", ()),), (Paragraph("", ("", " ")),)]:
        example = task().encode(replace(CITIES, paragraphs=paragraphs), wordpieces, LONG, False)
        assert example.read is not None
        states = torch.zeros(len(example.read), 8, requires_grad=True)
        (prediction,) = task().predict(Planted(), [states], [example])
        assert prediction["answer"] == ""
        loss = task().loss(Planted(), [states], [example])
        loss.backward()
        assert states.grad is not None
        assert states.grad.isfinite().all()


def test_the_loss_is_the_weighted_sum_of_its_parts(wordpieces: Wordpieces) -> None:
    torch.manual_seed(0)
    example = task().encode(CITIES, wordpieces, Lengths(29, "chunk"), True)
    feature = example.features
    assert example.read is not None
    states = torch.randn(len(example.read), 8, dtype=torch.float64).float()
    numbers = states.double()

    def binary(logits: Tensor, labels: np.ndarray) -> float:
        chances = [1 / (1 + math.exp(-logit)) for logit in logits.tolist()]
        losses = [-math.log(p if label else 1 - p) for p, label in zip(chances, labels, strict=True)]
        return sum(losses) / len(losses)

    kinds = numbers[feature["row_places"], 2:5].mean(0).softmax(0)
    spans = numbers[feature["piece_places"], :2].softmax(0)  # over all rows
    right = [
        float(spans[feature[name], side].sum()) for side, name in enumerate(("span_starts", "span_ends"))
    ]
    parts = {
        "paragraph_weight": binary(numbers[feature["part_places"], 6], feature["part_labels"]),
        "sentence_weight": binary(numbers[feature["sentence_places"], 5], feature["sentence_labels"]),
        "kind_weight": -math.log(kinds[0]),
        "span_weight": -sum(map(math.log, right)) / 2,
    }
    assert task().loss(Planted(), [states], [example]).item() == pytest.approx(sum(parts.values()), rel=1e-5)
    for name, value in parts.items():
        alone = task(**{**dict.fromkeys(parts, 0.0), name: 2.0})
        found = alone.loss(Planted(), [states, states], [example, example])
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(4 * value, rel=1e-5)
    stage = task(stage="paragraphs")
    first = stage.encode(CITIES, wordpieces, LONG, True)
    assert first.read is not None
    states = torch.randn(len(first.read), 8)
    expected = binary(states[first.features["part_places"], 6], first.features["part_labels"])
    expected += binary(states[first.features["sentence_places"], 5], first.features["sentence_labels"])
    assert stage.loss(Planted(), [states], [first]).item() == pytest.approx(expected, rel=1e-5)


def test_unlabelled_examples_have_no_loss_and_every_head_takes_part(wordpieces: Wordpieces) -> None:
    bare = replace(CITIES, answer=None, facts=None)
    config = EncoderConfig("roberta", 100, hidden_size=8)
    for stage in ("paragraphs", "answers"):
        found = task(stage=stage)
        example = found.encode(bare, wordpieces, LONG, False)
        model = nn.ModuleDict(found.heads(config))
        assert example.read is not None
        loss = found.loss(model, [torch.randn(len(example.read), 8)], [example])
        assert loss.item() == 0
        loss.backward()
        assert all(
            parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters()
        )


# Figures and submissions


def test_figures_are_the_official_scripts(wordpieces: Wordpieces, tmp_path: Path) -> None:
    phantom = (("Ulm", 0), ("Danube", 0), ("Danube", 9))
    questions = [
        CITIES,
        replace(CITIES, id="q2", facts=phantom),
        replace(CITIES, id="q3", answer="no"),
        replace(CITIES, id="q4", answer=None, facts=None),
    ]
    examples = [task().encode(question, wordpieces, LONG, False) for question in questions]
    predictions = [
        {"answer": "black sea", "supporting_facts": [["Ulm", 0], ["Danube", 1]]},
        {"answer": "Black", "supporting_facts": [["Ulm", 0], ["Danube", 0]]},
        {"answer": "no", "supporting_facts": [["Ulm", 0], ["Danube", 0]]},
        {"answer": "日本", "supporting_facts": []},
    ]
    path = tmp_path / "predictions.json"
    task().write(path, zip(examples, predictions, strict=True))
    gold = HotpotQAAnswers(
        {question.id: question.answer for question in questions if question.answer},
        {question.id: question.facts for question in questions if question.facts},
    )
    found = task().figures(task().sums(examples, predictions))
    assert found == pytest.approx(evaluate_hotpotqa(gold, read_hotpotqa(path)).by_official_name())
    assert next(iter(found)) == "joint_f1"
    assert found["em"] == pytest.approx(200 / 3)
    assert found["sp_em"] == pytest.approx(100 / 3)
    halves = [task().sums(examples[part], predictions[part]) for part in (slice(2), slice(2, None))]
    assert task().sums(examples, predictions) == pytest.approx(
        [sum(pair) for pair in zip(*halves, strict=True)]
    )
    assert task().figures(task().sums(examples[3:], predictions[3:])) == {}


def test_figures_of_the_paragraphs(wordpieces: Wordpieces) -> None:
    stage = task(stage="paragraphs")
    questions = [
        CITIES,
        replace(CITIES, id="q2"),
        replace(CITIES, id="q3"),
        replace(CITIES, id="q4", facts=None),
    ]
    examples = [stage.encode(question, wordpieces, LONG, False) for question in questions]
    scores: list[list[float | None]] = [[3, 2, -9], [3, 1, 2], [1, None, 2], [1, 1, 1]]
    predictions = [
        {"paragraphs": [list(pair) for pair in zip(("Ulm", "Danube", "Rhine"), found, strict=True)]}
        for found in scores
    ]
    figures = stage.figures(stage.sums(examples, predictions))
    assert figures == pytest.approx(
        {"supporting_kept": 200 / 3, "pair_em": 100 / 3, "paragraphs_kept": (2 + 3 + 2) / 3}
    )


@real
def test_both_stages_learn_the_real_rows_by_heart(wordpieces: Wordpieces, tmp_path: Path) -> None:
    stage = task(stage="paragraphs")
    examples = [stage.encode(question, wordpieces, LONG, True) for question in stage.read("train")]
    model = small_model(stage, wordpieces.size, 4096, hidden_size=32)
    losses = overfit(model, stage, examples, 16, 1e-2)
    assert losses[-1] < losses[0] / 3
    found = figures(model, stage, examples)
    assert (found["supporting_kept"], found["pair_em"]) == (100, 100)
    with torch.no_grad():
        predictions = stage.predict(model, model.states(as_batch(examples, 1)), examples)
    scores = tmp_path / "scores.json"
    stage.write(scores, zip(examples, predictions, strict=True))
    # All of the best three are read, so that there is a paragraph to go wrong in.
    answers = task(paragraphs=[scores], keep=3, least_score=-1e9)
    examples = [answers.encode(question, wordpieces, LONG, True) for question in answers.read("train")]
    assert all(example.features["part_labels"].tolist().count(0) == 1 for example in examples)
    model = small_model(answers, wordpieces.size, 4096, hidden_size=32)
    losses = overfit(model, answers, examples, 55, 5e-3)
    assert losses[-1] < losses[0] / 50
    assert figures(model, answers, examples) == pytest.approx(
        dict.fromkeys(figures(model, answers, examples), 100)
    )


@pytest.mark.parametrize(("name", "tokens"), [("hotpotqa.yaml", 4096), ("hotpotqa_roberta.yaml", 512)])
def test_the_configurations(name: str, tokens: int) -> None:
    config = load_config(CONFIGS / name, [], Finetuning)
    assert isinstance(config.task, HotpotQASettings)
    assert (config.sequence_length, config.epochs, config.batch_size) == (tokens, 5, 32)
    assert (config.optimizer.learning_rate, config.optimizer.warmup_steps) == (3e-5, 1000)
    assert config.optimizer.decay == "linear"
    found = config.task.task()
    assert found.splits() == ("train", "validation")
    assert not {"train", "validation", "paragraphs"} & found.describe().keys()
    json.dumps(found.describe())
    first = load_config(CONFIGS / name, [("task.stage", "paragraphs")], Finetuning)
    assert not first.task.task().heads(EncoderConfig("roberta", 9, hidden_size=8)).keys() & {"qa_outputs"}
