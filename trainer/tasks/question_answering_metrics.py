"""Exact match and F1 of question answering, by the rules of the data sets' official scripts.

SQuAD 1.1 (Rajpurkar et al. 2016, `evaluate-v1.1.py`), TriviaQA 1.0 (Joshi et al. 2017, `triviaqa_evaluation.py`) and
HotpotQA (Yang et al. 2018, `hotpot_evaluate_v1.py`). One question's scores lie in [0, 1]; figures over questions are
percentages, as papers give them (HotpotQA's script prints fractions).

All questions count, as in all three scripts: one without a prediction scores 0, an empty prediction is compared like
any other. Also theirs, and kept so that figures can be compared:
- An answer of articles and punctuation alone normalises to nothing. It is matched exactly by every other such text,
  at an F1 of 0, for no token is shared (SQuAD 2.0 gives 1 there).
- Characters are lowered, not otherwise unified: é as one character and as two are different answers. Only ASCII
  punctuation goes (TriviaQA: also ‘ ’ ´), so that “York”, in such quotes, is not York.
"""

from __future__ import annotations

import re
import reprlib
import string
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trainer.engine.config import InputError

Normalise = Callable[[str], str]
Fact = tuple[str, int]  # a paragraph's title, and the number of a sentence in it, from 0

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
SQUAD_PUNCTUATION = str.maketrans("", "", string.punctuation)
TRIVIAQA_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’´", " "))
# Answers of HotpotQA that share their only token with no other answer, whatever words stand around it.
ALL_OR_NOTHING = frozenset({"yes", "no", "noanswer"})


def normalise_squad(text: str) -> str:
    """`text` in lower case without ASCII punctuation, articles and repeated whitespace; HotpotQA's rule also.

    Punctuation goes first and leaves no gap: "A.N. Other's" is "an others", and then "others".
    """
    return _without_articles(text.lower().translate(SQUAD_PUNCTUATION))


def normalise_triviaqa(text: str) -> str:
    """As SQuAD's, with a space in the place of each mark and of ‘ ’ ´: "A.N. Other's" is "n other s"."""
    return _without_articles(text.lower().translate(TRIVIAQA_PUNCTUATION))


def _without_articles(text: str) -> str:
    return " ".join(ARTICLES.sub(" ", text).split())


class Scores(NamedTuple):
    """Of one question in [0, 1], or means over questions in percent."""

    exact_match: float
    f1: float
    precision: float
    recall: float


def token_scores(prediction: str, answer: str, normalise: Normalise) -> Scores:
    """`prediction` against one answer: equality when normalised, and the overlap of their words as multisets."""
    predicted, expected = normalise(prediction), normalise(answer)
    exact_match = float(predicted == expected)
    words, expected_words = Counter(predicted.split()), Counter(expected.split())
    shared = (words & expected_words).total()
    if not shared:
        return Scores(exact_match, 0.0, 0.0, 0.0)
    precision, recall = shared / words.total(), shared / expected_words.total()
    return Scores(exact_match, _f1(precision, recall), precision, recall)


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def best_scores(prediction: str, answers: Iterable[str], normalise: Normalise) -> tuple[float, float]:
    """The largest exact match and the largest F1 over `answers`, of which there is one at least."""
    scores = [token_scores(prediction, answer, normalise) for answer in answers]
    assert scores, "a question without answers has no score"
    return max(score.exact_match for score in scores), max(score.f1 for score in scores)


@dataclass(frozen=True)
class AnswerFigures:
    """SQuAD's or TriviaQA's figures of a file of predictions."""

    exact_match: float  # percent, over all `questions`
    f1: float  # likewise
    questions: int
    answered: int  # questions that have both answers and a prediction; the others score 0
    unknown: int  # predictions for ids that the data do not have, which nothing counts


def evaluate_squad(gold: Mapping[str, Sequence[str]], predictions: Mapping[str, str]) -> AnswerFigures:
    """Figures of `predictions` by question id; `gold` has each question's answers.

    InputError where there is no question, or one has no answers.
    """
    return _evaluate(gold, predictions, normalise_squad, gold)


def evaluate_triviaqa(
    gold: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    questions: Collection[str] | None = None,
) -> AnswerFigures:
    """Figures of `predictions` over `questions`, all of `gold` unless given; `gold` as `triviaqa_answers` gives it.

    Ids are the questions' own in TriviaQA's Wikipedia domain, and `triviaqa_web_id`'s in its web domain. As in the
    script, an id among `questions` that `gold` or `predictions` lack counts, with 0. For what a model scores where it
    predicts anything: `questions=gold.keys() & predictions.keys()`; not what is published.
    InputError where there is no question, or one of `gold` has no answers.
    """
    return _evaluate(gold, predictions, normalise_triviaqa, gold if questions is None else questions)


def _evaluate(
    gold: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    normalise: Normalise,
    questions: Collection[str],
) -> AnswerFigures:
    if not questions:
        raise InputError("found no questions to evaluate, expected at least one")
    for question in questions:
        if question in gold and not gold[question]:
            raise InputError(f"{question}: found no answers, expected at least one to compare with")
    answered = [question for question in questions if question in gold and question in predictions]
    scores = [best_scores(predictions[question], gold[question], normalise) for question in answered]
    return AnswerFigures(
        exact_match=100 * sum(exact_match for exact_match, _ in scores) / len(questions),
        f1=100 * sum(f1 for _, f1 in scores) / len(questions),
        questions=len(questions),
        answered=len(answered),
        unknown=len(predictions.keys() - gold.keys()),
    )


def triviaqa_answers(question: str, answer: Mapping[str, Any]) -> list[str]:
    """What counts as right for a question: all normalised aliases, and all answers that people gave.

    `answer` is the question's `Answer` in the official files (`NormalizedAliases`, `HumanAnswers` in some) or its
    `answer` in the hub's rows (`normalized_aliases`). InputError, with the id `question`, where it has none, as in the
    test split.
    """
    aliases = answer.get("NormalizedAliases", answer.get("normalized_aliases"))
    by_people = answer.get("HumanAnswers", [])
    for name, found in (("NormalizedAliases", aliases), ("HumanAnswers", by_people)):
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise InputError(
                f"{question}: {name}: found {reprlib.repr(found)}, expected a list of answers as strings"
            )
    if not aliases and not by_people:
        raise InputError(
            f"{question}: NormalizedAliases: found no answers, expected at least one (the test split has none)"
        )
    return [*(aliases or []), *by_people]


def triviaqa_web_id(question: str, filename: str) -> str:
    """The id by which the web domain is scored, one for each question and document: its evidence's `Filename`."""
    return f"{question}--{filename}"


def hotpotqa_answer_scores(prediction: str, answer: str) -> Scores:
    """As SQuAD's, except that yes, no and noanswer share nothing with an answer that is more than that word."""
    pair = {normalise_squad(prediction), normalise_squad(answer)}
    if len(pair) == 2 and pair & ALL_OR_NOTHING:
        return Scores(0.0, 0.0, 0.0, 0.0)
    return token_scores(prediction, answer, normalise_squad)


def supporting_fact_scores(prediction: Iterable[Fact], facts: Iterable[Fact]) -> Scores:
    """Scores of a set of sentences: order and repetition do not count, and two empty sets match, at an F1 of 0."""
    predicted, expected = set(prediction), set(facts)
    shared = len(predicted & expected)
    precision = shared / len(predicted) if predicted else 0.0
    recall = shared / len(expected) if expected else 0.0
    return Scores(float(predicted == expected), _f1(precision, recall), precision, recall)


def joint_scores(answer: Scores, supporting_facts: Scores) -> Scores:
    """Products of a question's exact matches, precisions and recalls; F1 is that of the products."""
    precision = answer.precision * supporting_facts.precision
    recall = answer.recall * supporting_facts.recall
    exact_match = answer.exact_match * supporting_facts.exact_match
    return Scores(exact_match, _f1(precision, recall), precision, recall)


@dataclass(frozen=True)
class HotpotQAAnswers:
    """Answers and supporting sentences by question id, of the data or of a model."""

    answer: Mapping[str, str]
    supporting_facts: Mapping[str, Collection[Fact]]


@dataclass(frozen=True)
class HotpotQAFigures:
    """HotpotQA's figures of a file of predictions, in percent over all `questions`."""

    answer: Scores
    supporting_facts: Scores
    joint: Scores
    questions: int
    answered: int  # questions with a predicted answer; the others score 0 there and jointly
    supported: int  # questions with predicted supporting facts; likewise
    unknown: int  # predicted ids that the data do not have, which nothing counts

    def by_official_name(self) -> dict[str, float]:
        """The twelve figures as the script calls them, in percent: em, f1, prec, recall, sp_em, …, joint_recall."""
        parts = (("", self.answer), ("sp_", self.supporting_facts), ("joint_", self.joint))
        names = ("em", "f1", "prec", "recall")
        return {f"{part}{name}": value for part, scores in parts for name, value in zip(names, scores)}


def evaluate_hotpotqa(gold: HotpotQAAnswers, predictions: HotpotQAAnswers) -> HotpotQAFigures:
    """Figures of `predictions` over all questions of `gold`.

    InputError where there is no question, or `gold` lacks the answer or the supporting facts of one, as the test split
    does.
    """
    if not gold.answer and not gold.supporting_facts:
        raise InputError("found no questions to evaluate, expected at least one")
    for question in gold.answer.keys() ^ gold.supporting_facts.keys():
        missing = "supporting facts" if question in gold.answer else "answer"
        raise InputError(
            f"{question}: found no {missing} to compare with, expected both (the test split has none)"
        )
    answers = {
        question: hotpotqa_answer_scores(predictions.answer[question], gold.answer[question])
        for question in gold.answer
        if question in predictions.answer
    }
    facts = {
        question: supporting_fact_scores(
            predictions.supporting_facts[question], gold.supporting_facts[question]
        )
        for question in gold.answer
        if question in predictions.supporting_facts
    }
    joint = [
        joint_scores(scores, facts[question]) for question, scores in answers.items() if question in facts
    ]
    count = len(gold.answer)
    return HotpotQAFigures(
        answer=_mean(answers.values(), count),
        supporting_facts=_mean(facts.values(), count),
        joint=_mean(joint, count),
        questions=count,
        answered=len(answers),
        supported=len(facts),
        unknown=len((predictions.answer.keys() | predictions.supporting_facts.keys()) - gold.answer.keys()),
    )


def _mean(scores: Iterable[Scores], count: int) -> Scores:
    """In percent over `count` questions, of which those without scores count as 0."""
    columns = list(zip(*scores)) or [()] * len(Scores._fields)
    return Scores(*(100 * sum(column) / count for column in columns))
