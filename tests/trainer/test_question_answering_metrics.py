"""Exact match and F1 against figures worked out by hand, properties of them, and the files of predictions."""

import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.engine.config import InputError
from trainer.tasks.question_answering_metrics import (
    AnswerFigures,
    HotpotQAAnswers,
    Normalise,
    Scores,
    best_scores,
    evaluate_hotpotqa,
    evaluate_squad,
    evaluate_triviaqa,
    hotpotqa_answer_scores,
    joint_scores,
    normalise_squad,
    normalise_triviaqa,
    supporting_fact_scores,
    token_scores,
    triviaqa_answers,
    triviaqa_web_id,
)
from trainer.tasks.question_answering_submissions import (
    read_hotpotqa,
    read_triviaqa,
    write_hotpotqa,
    write_triviaqa,
)

ROOT = Path(__file__).parents[2]
NOTHING = Scores(0, 0, 0, 0)
# Words that the rules treat specially, beside any text at all.
WORDS = ["a", "an", "the", "The", "yes", "no", "noanswer", "York", "york's", "e\u0301", "日本"]
JOINED = st.lists(st.sampled_from([*WORDS, *"_-.’´`“ÉΣİ \n"]))
TEXTS = st.one_of(st.text(), JOINED.map("".join), JOINED.map(" ".join))
NORMALISATIONS = st.sampled_from([normalise_squad, normalise_triviaqa])
FACTS = st.lists(st.tuples(st.sampled_from(["York", "Ran (film)", "日本"]), st.integers(0, 3)), max_size=6)
IDS = st.text(max_size=3)


@pytest.fixture(scope="session")
def downstream() -> Path:
    folder = Path(os.environ.get("LONGSPAN_DATA", ROOT.parent / "shared" / "data")) / "downstream"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent; LONGSPAN_DATA can name another folder for its parent")
    return folder


@pytest.mark.parametrize(
    ("text", "squad", "triviaqa"),
    [
        ("The Beatles", "beatles", "beatles"),
        ("  An  apple,\ta day\n", "apple day", "apple day"),
        ("Another theme", "another theme", "another theme"),  # articles within words stay
        ("Campbell-Bannerman", "campbellbannerman", "campbell bannerman"),
        ("A.N. Other's", "others", "n other s"),
        ("Bo_the_Cat", "bothecat", "bo cat"),
        ("30’s", "30’s", "30 s"),
        ("rock ´n` roll", "rock ´n roll", "rock n roll"),
        ("‘The’ Who", "‘ ’ who", "who"),
        ("“York”", "“york”", "“york”"),
        ("1990–95", "1990–95", "1990–95"),  # an en dash is no ASCII punctuation
        ("ÉCLAIR à la", "éclair à la", "éclair à la"),  # à is a letter, not the article
        ("a\u00a0b", "b", "b"),
        ("Straße", "straße", "straße"),  # lowered, not case-folded
        ("The, a — An!", "—", "—"),
        ("The... A!", "", ""),
        ("", "", ""),
    ],
)
def test_normalisations(text: str, squad: str, triviaqa: str) -> None:
    assert normalise_squad(text) == squad
    assert normalise_triviaqa(text) == triviaqa


@pytest.mark.parametrize("normalise", [normalise_squad, normalise_triviaqa])
@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("the York!", "York", Scores(1, 1, 1, 1)),
        ("City of York", "York", Scores(0, 1 / 2, 1 / 3, 1)),
        ("York", "City of York", Scores(0, 1 / 2, 1, 1 / 3)),
        ("York of City", "City of York", Scores(0, 1, 1, 1)),  # words in another order are all shared
        ("New York New York", "New York", Scores(0, 2 / 3, 1 / 2, 1)),  # a repeated word is shared once
        ("New York New York", "York New York", Scores(0, 6 / 7, 3 / 4, 1)),
        ("Leeds", "York", NOTHING),
        ("", "York", NOTHING),
        ("York", "", NOTHING),
        ("", "The", Scores(1, 0, 0, 0)),  # equal, with no word to share
        ("cafe\u0301", "caf\u00e9", NOTHING),  # é as two characters and as one
    ],
)
def test_one_answer(normalise: Normalise, prediction: str, answer: str, expected: Scores) -> None:
    assert token_scores(prediction, answer, normalise) == pytest.approx(expected)


def test_the_best_of_many_answers() -> None:
    """Each measure is the best over the answers, whichever has it; equally good ones tie."""
    answers = ["The", "lord mayor of York", "mayor of York"]
    assert best_scores("mayor York", answers, normalise_squad) == (0, pytest.approx(4 / 5))
    assert best_scores("a", answers, normalise_squad) == (1, 0)
    assert best_scores("York Leeds", ["Leeds Hull", "York Bath"], normalise_squad) == (0, 1 / 2)


def test_triviaqa_counts_every_question_unless_told() -> None:
    gold = {
        "hit": ["sunset boulevard", "sunset blvd"],
        "half": ["campbell bannerman"],
        "empty": ["york"],
        "missing": ["chicago"],
    }
    predictions = {"hit": "Sunset_Blvd.", "half": "Bannerman", "empty": "", "elsewhere": "x"}
    # exact: 1 of 4; F1: (1 + 2/3 + 0 + 0) / 4
    assert evaluate_triviaqa(gold, predictions) == AnswerFigures(
        exact_match=25, f1=pytest.approx(100 * (5 / 3) / 4), questions=4, answered=3, unknown=1
    )
    found = evaluate_triviaqa(gold, predictions, questions=gold.keys() & predictions.keys())
    assert (found.exact_match, found.f1) == pytest.approx((100 / 3, 100 * (5 / 3) / 3))
    found = evaluate_triviaqa(gold, predictions, questions=["hit"])
    assert found == AnswerFigures(100, 100, questions=1, answered=1, unknown=1)
    # An id that the data do not have counts as wrong, and so does one that is not predicted.
    found = evaluate_triviaqa(gold, predictions, questions=["hit", "elsewhere", "missing", "nowhere"])
    assert (found.exact_match, found.f1, found.questions, found.answered) == (25, 25, 4, 1)


def test_squad_differs_from_triviaqa_by_its_punctuation() -> None:
    gold = {"a": ["Campbell Bannerman"], "b": ["others"]}
    predictions = {"a": "Campbell-Bannerman", "b": "A.N. Other's"}
    assert evaluate_squad(gold, predictions) == AnswerFigures(50, 50, 2, 2, 0)
    assert evaluate_triviaqa(gold, predictions) == AnswerFigures(50, 50, 2, 2, 0)
    assert evaluate_squad(gold, {"a": "Campbell-Bannerman"}).f1 == 0
    assert evaluate_triviaqa(gold, {"a": "Campbell-Bannerman"}).f1 == 50


def test_answers_in_the_official_files_and_in_the_hub_s() -> None:
    official = {"Value": "York", "Aliases": ["York!"], "NormalizedAliases": ["york", "city of york"]}
    assert triviaqa_answers("tc_3", official) == ["york", "city of york"]
    assert triviaqa_answers("tc_3", official | {"HumanAnswers": ["The York"]})[-1] == "The York"
    assert triviaqa_answers("tc_3", {"value": "York", "normalized_aliases": ["york"]}) == ["york"]
    assert triviaqa_web_id("tc_33", "35/35_995.txt") == "tc_33--35/35_995.txt"
    # What people answered is normalised too.
    answers = triviaqa_answers("tc_3", official | {"HumanAnswers": ["The Minster-City"]})
    assert evaluate_triviaqa({"tc_3": answers}, {"tc_3": "minster city"}).exact_match == 100


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "tc_3: NormalizedAliases: found None, expected a list of answers"),
        ({"NormalizedAliases": []}, "tc_3: NormalizedAliases: found no answers, expected at least one"),
        ({"normalized_aliases": []}, "tc_3: NormalizedAliases: found no answers, expected at least one"),
        ({"NormalizedAliases": "york"}, "tc_3: NormalizedAliases: found 'york', expected a list of answers"),
        (
            {"NormalizedAliases": ["york", 3]},
            r"tc_3: NormalizedAliases: found \['york', 3\], expected a list",
        ),
        ({"NormalizedAliases": ["york"], "HumanAnswers": None}, "tc_3: HumanAnswers: found None"),
    ],
)
def test_questions_without_answers_are_named(answer: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        triviaqa_answers("tc_3", answer)


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(InputError, match="found no questions"):
        evaluate_squad({}, {"a": "York"})
    with pytest.raises(InputError, match="found no questions"):
        evaluate_triviaqa({"a": ["york"]}, {"a": "York"}, questions=[])
    with pytest.raises(InputError, match="b: found no answers"):
        evaluate_triviaqa({"a": ["york"], "b": []}, {"a": "York"})
    assert evaluate_triviaqa({"a": ["york"], "b": []}, {"a": "York"}, questions=["a"]).f1 == 100
    with pytest.raises(InputError, match="found no questions"):
        evaluate_hotpotqa(HotpotQAAnswers({}, {}), HotpotQAAnswers({"a": "yes"}, {}))
    with pytest.raises(InputError, match="a: found no supporting facts"):
        evaluate_hotpotqa(HotpotQAAnswers({"a": "yes"}, {}), HotpotQAAnswers({}, {}))
    with pytest.raises(InputError, match="a: found no answer "):
        evaluate_hotpotqa(HotpotQAAnswers({}, {"a": []}), HotpotQAAnswers({}, {}))


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("Yes.", "yes", Scores(1, 1, 1, 1)),
        ("yes", "no", NOTHING),
        ("yes it is", "yes", NOTHING),  # by SQuAD's rule 1/2
        ("no", "no man's land", NOTHING),
        ("noanswer", "no answer", NOTHING),
        ("noanswer found", "NoAnswer", NOTHING),
        ("the no", "No", Scores(1, 1, 1, 1)),
        ("yes and no", "no way", Scores(0, 2 / 5, 1 / 3, 1 / 2)),  # neither is the word alone
        ("Greenwich Village", "Greenwich Village, New York City", Scores(0, 4 / 7, 1, 2 / 5)),
        ("", "no", NOTHING),
        ("", "", Scores(1, 0, 0, 0)),
    ],
)
def test_hotpotqa_answers(prediction: str, answer: str, expected: Scores) -> None:
    assert hotpotqa_answer_scores(prediction, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "facts", "expected"),
    [
        ([("A", 0), ("B", 2)], [("B", 2), ("A", 0)], Scores(1, 1, 1, 1)),
        ([("A", 0), ("A", 0)], [("A", 0)], Scores(1, 1, 1, 1)),
        ([("A", 0), ("A", 1), ("B", 2)], [("A", 0), ("B", 3)], Scores(0, 2 / 5, 1 / 3, 1 / 2)),
        ([("A", 0)], [("a", 0)], NOTHING),  # titles are compared as they are
        ([("A", 1)], [("A", 0)], NOTHING),
        ([], [("A", 0)], NOTHING),
        ([("A", 0)], [], NOTHING),
        ([], [], Scores(1, 0, 0, 0)),
    ],
)
def test_supporting_facts(
    prediction: list[tuple[str, int]], facts: list[tuple[str, int]], expected: Scores
) -> None:
    assert supporting_fact_scores(prediction, facts) == pytest.approx(expected)


def test_joint_scores_are_products() -> None:
    answer, facts = Scores(0, 1 / 2, 1 / 3, 1), Scores(1, 1, 1, 1)
    assert joint_scores(answer, facts) == pytest.approx(answer)
    # Precision 1/3 · 1/2 = 1/6, recall 1 · 1/4 = 1/4, F1 = 2 · 1/24 / (5/12) = 1/5.
    joint = joint_scores(answer, Scores(0, 1 / 3, 1 / 2, 1 / 4))
    assert joint == pytest.approx(Scores(0, 1 / 5, 1 / 6, 1 / 4))
    assert joint_scores(Scores(1, 1, 1, 1), NOTHING) == NOTHING


def test_hotpotqa_counts_every_question() -> None:
    """Four questions: all right; half right twice; an answer without facts; facts without an answer."""
    gold = HotpotQAAnswers(
        {"right": "yes", "half": "City of York", "no facts": "Ran", "no answer": "Ozu"},
        {question: [("A", 0), ("B", 1)] for question in ("right", "half", "no facts", "no answer")},
    )
    predictions = HotpotQAAnswers(
        {"right": "Yes", "half": "York", "no facts": "Ran", "elsewhere": "x"},
        {"right": [("B", 1), ("A", 0)], "half": [("A", 0)], "no answer": [("A", 0), ("B", 1)], "nowhere": []},
    )
    found = evaluate_hotpotqa(gold, predictions)
    assert (found.questions, found.answered, found.supported, found.unknown) == (4, 3, 3, 2)
    # Of "half": the answer has precision 1 and recall 1/3, its facts 1 and 1/2, jointly 1 and 1/6, so F1 2/7.
    expected = {
        "em": 2 / 4,
        "f1": (1 + 1 / 2 + 1) / 4,
        "prec": 3 / 4,
        "recall": (1 + 1 / 3 + 1) / 4,
        "sp_em": 2 / 4,
        "sp_f1": (1 + 2 / 3 + 1) / 4,
        "sp_prec": 3 / 4,
        "sp_recall": (1 + 1 / 2 + 1) / 4,
        "joint_em": 1 / 4,
        "joint_f1": (1 + 2 / 7) / 4,
        "joint_prec": 2 / 4,
        "joint_recall": (1 + 1 / 6) / 4,
    }
    assert found.by_official_name() == pytest.approx({name: 100 * value for name, value in expected.items()})
    nothing = evaluate_hotpotqa(gold, HotpotQAAnswers({}, {}))
    assert set(nothing.by_official_name().values()) == {0}
    assert (nothing.answered, nothing.supported) == (0, 0)


@given(TEXTS, NORMALISATIONS)
def test_a_normalised_text_stays_as_it_is(text: str, normalise: Normalise) -> None:
    """So aliases may come normalised or not."""
    assert normalise(normalise(text)) == normalise(text)


@given(TEXTS, TEXTS, NORMALISATIONS)
def test_scores_of_any_two_texts(one: str, other: str, normalise: Normalise) -> None:
    scores, turned = token_scores(one, other, normalise), token_scores(other, one, normalise)
    assert all(0 <= score <= 1 for score in scores)
    assert turned == Scores(scores.exact_match, scores.f1, scores.recall, scores.precision)
    words, others = normalise(one).split(), normalise(other).split()
    assert scores.exact_match == (words == others)
    if scores.exact_match:
        assert scores.f1 == (1 if words else 0)
    if words or others:  # F1 is the share of both texts' words that the other has, too
        shared = (Counter(words) & Counter(others)).total()
        assert scores.f1 == pytest.approx(2 * shared / (len(words) + len(others)))


@given(TEXTS, TEXTS)
def test_hotpotqa_only_ever_takes_away(prediction: str, answer: str) -> None:
    scores, squad = (
        hotpotqa_answer_scores(prediction, answer),
        token_scores(prediction, answer, normalise_squad),
    )
    assert scores in (squad, NOTHING)
    assert scores.exact_match == squad.exact_match


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=5), st.randoms(), NORMALISATIONS)
def test_the_order_of_answers_does_not_count(
    prediction: str, answers: list[str], generator: Any, normalise: Normalise
) -> None:
    best = best_scores(prediction, answers, normalise)
    generator.shuffle(answers)
    assert best_scores(prediction, answers, normalise) == best
    more = best_scores(prediction, [*answers, prediction], normalise)
    assert more[0] == 1
    assert more[1] >= best[1]


@given(FACTS, FACTS, st.randoms())
def test_supporting_facts_are_sets(one: list[Any], other: list[Any], generator: Any) -> None:
    scores = supporting_fact_scores(one, other)
    assert all(0 <= score <= 1 for score in scores)
    assert scores.exact_match == (set(one) == set(other))
    assert not scores.exact_match or scores.f1 == bool(one)
    doubled = one + one
    generator.shuffle(doubled)
    assert supporting_fact_scores(doubled, other) == scores
    turned = supporting_fact_scores(other, one)
    assert turned == Scores(scores.exact_match, scores.f1, scores.recall, scores.precision)


@given(TEXTS, TEXTS, FACTS, FACTS)
def test_joint_scores_are_no_better_than_either(
    one: str, other: str, facts: list[Any], found: list[Any]
) -> None:
    answer, supporting_facts = hotpotqa_answer_scores(one, other), supporting_fact_scores(facts, found)
    joint = joint_scores(answer, supporting_facts)
    assert all(
        0 <= score <= min(pair) + 1e-12
        for score, pair in zip(joint, zip(answer, supporting_facts), strict=True)
    )


@given(st.dictionaries(IDS, TEXTS))
def test_triviaqa_files_return_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, answers: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("submission") / "predictions.json"
    write_triviaqa(path, answers)
    assert read_triviaqa(path) == answers == json.loads(path.read_text(encoding="ascii"))
    first = path.read_bytes()
    write_triviaqa(path, dict(reversed(answers.items())))
    assert path.read_bytes() == first
    assert list(path.parent.iterdir()) == [path]


@given(st.dictionaries(IDS, TEXTS), st.dictionaries(IDS, FACTS))
def test_hotpotqa_files_return_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, answers: dict[str, str], facts: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("submission") / "predictions.json"
    write_hotpotqa(path, HotpotQAAnswers(answers, facts))
    assert read_hotpotqa(path) == HotpotQAAnswers(answers, facts)
    content = json.loads(path.read_text(encoding="ascii"))
    assert content == {
        "answer": answers,
        "sp": {question: [list(fact) for fact in found] for question, found in facts.items()},
    }


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent/predictions.json: cannot be written \(No such file"):
        write_triviaqa(tmp_path / "absent" / "predictions.json", {"a": "York"})
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: cannot be written"):
        write_hotpotqa(tmp_path / "folder", HotpotQAAnswers({}, {}))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_triviaqa(tmp_path / "file" / "predictions.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"tc_3": 30}', "predictions.json: tc_3: found 30, expected the answer as a string"),
        ('{"tc_3": null}', "predictions.json: tc_3: found None, expected the answer as a string"),
        ('{"tc_3": ["York"]}', r"predictions.json: tc_3: found \['York'\], expected the answer as a string"),
        ('["York"]', "predictions.json: found a list, expected an object"),
        ('{"tc_3": "York"', "predictions.json: not JSON"),
    ],
)
def test_triviaqa_files_of_another_form(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "predictions.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_triviaqa(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"5a8": "York"}, r"json: answer: found only the keys \['5a8'\], expected an object by question id"),
        ({"answer": {}}, r"json: sp: found only the keys \['answer'\], expected an object by question id"),
        ({"answer": [], "sp": {}}, "json: answer: found a list, expected an object by question id"),
        (
            {"answer": {"5a8": True}, "sp": {}},
            "json: answer: 5a8: found True, expected the answer as a string",
        ),
        ({"answer": {}, "sp": {"5a8": "Ran"}}, "json: sp: 5a8: found 'Ran', expected a list of"),
        ({"answer": {}, "sp": {"5a8": ["Ran", 0]}}, "json: sp: 5a8: found 'Ran' in it, expected a list of"),
        ({"answer": {}, "sp": {"5a8": [["Ran"]]}}, r"json: sp: 5a8: found \['Ran'\] in it"),
        ({"answer": {}, "sp": {"5a8": [["Ran", "0"]]}}, r"json: sp: 5a8: found \['Ran', '0'\] in it"),
        (
            {"answer": {}, "sp": {"5a8": [["Ran", 0], ["Ran", -1]]}},
            r"json: sp: 5a8: found \['Ran', -1\] in it",
        ),
        ({"answer": {}, "sp": {"5a8": [["Ran", True]]}}, r"json: sp: 5a8: found \['Ran', True\] in it"),
        ({"answer": {}, "sp": {"5a8": [["Ran", 1.0]]}}, r"json: sp: 5a8: found \['Ran', 1.0\] in it"),
        (
            {"answer": {}, "sp": {"5a8": [[0, "Ran"]]}},
            r"expected a list of \[title, sentence number from 0\]",
        ),
    ],
)
def test_hotpotqa_files_of_another_form(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_hotpotqa(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for read in (read_triviaqa, read_hotpotqa):
        with pytest.raises(InputError, match=r"predictions\.json: no such file"):
            read(tmp_path / "predictions.json")


def test_real_triviaqa(downstream: Path, tmp_path: Path) -> None:
    rows: dict[str, Any] = {}
    with tarfile.open(downstream / "triviaqa-sample.tgz") as archive:
        for name in ("web-dev", "web-train", "wikipedia-dev", "wikipedia-train"):
            file = archive.extractfile(f"qa/{name}.json")
            assert file is not None
            rows |= {row["QuestionId"]: row for row in json.load(file)["Data"]}
    assert len(rows) >= 8
    gold = {question: triviaqa_answers(question, row["Answer"]) for question, row in rows.items()}
    write_triviaqa(tmp_path / "p.json", {question: row["Answer"]["Value"] for question, row in rows.items()})
    everything = AnswerFigures(100, 100, len(rows), len(rows), 0)
    assert evaluate_triviaqa(gold, read_triviaqa(tmp_path / "p.json")) == everything
    for question, row in rows.items():
        for alias in row["Answer"]["Aliases"]:
            # What the data call normalised is what the rule makes of each alias, if it is not left empty.
            assert normalise_triviaqa(alias) in (*gold[question], ""), alias
    # The same, each for one document, as the web domain is scored; the last answer is wrong, and one is missing.
    pages = [
        (question, page["Filename"])
        for question, row in rows.items()
        for page in row.get("SearchResults", [])
    ]
    by_page = {triviaqa_web_id(*page): gold[page[0]] for page in pages}
    predictions = {triviaqa_web_id(*page): rows[page[0]]["Answer"]["Value"] for page in pages[1:]}
    predictions[triviaqa_web_id(*pages[-1])] = "xyzzy"
    share = 100 * (len(by_page) - 2) / len(by_page)
    assert len(by_page) > 5
    assert evaluate_triviaqa(by_page, predictions) == AnswerFigures(
        share, share, len(by_page), len(by_page) - 1, 0
    )


def test_real_hotpotqa(downstream: Path, tmp_path: Path) -> None:
    text = (downstream / "hotpotqa_dev_distractor_10rows.jsonl").read_text(encoding="utf-8")
    hub = [json.loads(line) for line in text.splitlines()]
    original = json.loads(
        (downstream / "hotpot_original_format_handmade_example.json").read_text(encoding="utf-8")
    )
    answers = {row["id"]: row["answer"] for row in hub} | {row["_id"]: row["answer"] for row in original}
    facts = {
        row["id"]: list(
            zip(row["supporting_facts"]["title"], row["supporting_facts"]["sent_id"], strict=True)
        )
        for row in hub
    } | {row["_id"]: [(title, sentence) for title, sentence in row["supporting_facts"]] for row in original}
    gold = HotpotQAAnswers(answers, facts)
    write_hotpotqa(tmp_path / "p.json", gold)
    found = evaluate_hotpotqa(gold, read_hotpotqa(tmp_path / "p.json"))
    assert set(found.by_official_name().values()) == {100}
    assert found.questions == found.answered == found.supported == len(hub) + len(original)
    # One fact too few for each, and "no" to everything: exact only where that is the answer, and jointly never.
    fewer = HotpotQAAnswers(
        dict.fromkeys(answers, "no"), {question: rows[1:] for question, rows in facts.items()}
    )
    found = evaluate_hotpotqa(gold, fewer)
    share = 100 * sum(answer == "no" for answer in answers.values()) / len(answers)
    assert 0 < share < 100
    assert found.answer == pytest.approx(Scores(share, share, share, share))
    assert found.supporting_facts.exact_match == found.joint.exact_match == 0
    assert 0 < found.joint.f1 < found.supporting_facts.f1 < 100
