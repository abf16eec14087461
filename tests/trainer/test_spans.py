"""Answers as spans: each fast function against an obvious one, and worked examples."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokenizer import load_tokenizer
from tests.trainer.test_conll2012 import DATA
from trainer.tasks.question_answering_metrics import (
    SQUAD_PUNCTUATION,
    TRIVIAQA_PUNCTUATION,
    normalise_squad,
    normalise_triviaqa,
)
from trainer.tasks.spans import Span, answer_pieces, best_spans, occurrences, or_loss
from trainer.tasks.wordpieces import Wordpieces

RULES = {
    "triviaqa": (TRIVIAQA_PUNCTUATION, normalise_triviaqa),
    "squad": (SQUAD_PUNCTUATION, normalise_squad),
}
rules = pytest.mark.parametrize("rule", RULES)
# Few characters, so that answers occur; among them all that normalisation treats in a way of its own.
texts = st.text(st.sampled_from("aab the.-'’n\nİΣσé😀\u0307_“"), max_size=14)


def slow_occurrences(text: str, answer: str, rule: str) -> list[tuple[int, int]]:
    """The shortest spans that are the answer and leave the words around them as they are."""
    _, normalise = RULES[rule]
    whole, wanted = normalise(text).split(), normalise(answer)
    spans = [
        (start, end)
        for start in range(len(text))
        for end in range(start + 1, len(text) + 1)
        if wanted
        and normalise(text[start:end]) == wanted
        and [*normalise(text[:start]).split(), *wanted.split(), *normalise(text[end:]).split()] == whole
    ]
    return [
        span
        for span in spans
        if not any(other != span and span[0] <= other[0] and other[1] <= span[1] for other in spans)
    ]


@rules
@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("York, in Yorkshire; new york.", "York", ["York", "york"]),
        ("He saw (The Tower, of London)!", "the tower of London", ["Tower, of London"]),
        ("king of the hill, King of Hill", "King of Hill", ["king of the hill", "King of Hill"]),
        ("yes yes yes", "yes yes", ["yes yes", "yes yes"]),
        ("İstanbul İ istanbul", "İstanbul", ["İstanbul"]),
        ("😀 in “York” 😀", "😀", ["😀", "😀"]),
        ("an apple", "The", []),
        ("", "York", []),
    ],
)
def test_answers_occur_as_whole_words_of_the_metric(
    rule: str, text: str, answer: str, expected: list[str]
) -> None:
    assert [text[start:end] for start, end in occurrences(text, [answer], RULES[rule][0])] == expected


def test_the_metrics_part_words_at_marks_each_in_its_way() -> None:
    assert occurrences("Jack-Ass, o'Neil", ["jack ass", "o neil"], TRIVIAQA_PUNCTUATION) == [(0, 8), (10, 16)]
    assert occurrences("Jack-Ass, o'Neil", ["jackass", "ONeil"], SQUAD_PUNCTUATION) == [(0, 8), (10, 16)]


def test_words_are_parted_by_all_white_space() -> None:
    white = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
    assert len(white) > 20
    text = "b".join(white)
    assert occurrences(text, ["b"], TRIVIAQA_PUNCTUATION) == [(n, n + 1) for n in range(1, len(text), 2)]


@rules
@given(texts, st.data())
def test_occurrences_are_those_of_the_definition(rule: str, text: str, data: st.DataObject) -> None:
    punctuation, normalise = RULES[rule]
    answer = data.draw(st.one_of(texts, st.sampled_from(text.split() or ["b"])))
    found = occurrences(text, [answer], punctuation)
    assert all(normalise(text[start:end]) == normalise(answer) for start, end in found)
    if "Σ" not in text + answer:  # which is lowered by what surrounds it, and so where a text is cut
        assert found == slow_occurrences(text, answer, rule)
    both = occurrences(text, [answer, "b"], punctuation)
    assert both == sorted({*found, *occurrences(text, ["b"], punctuation)})


real = pytest.mark.skipif(
    not (DATA / "tokenizer").is_dir(), reason=f"no tokenizer in {DATA}, or $LONGSPAN_DATA"
)


@pytest.fixture(scope="module")
def wordpieces() -> Wordpieces:
    return Wordpieces(load_tokenizer(DATA / "tokenizer"))


@real
@settings(deadline=None)  # the tokenizer's first call takes its time
@given(
    st.text(st.characters(codec="utf-8"), max_size=40),
    st.text(st.characters(categories=["L", "N", "S"]), min_size=1, max_size=12),
    st.text(st.characters(codec="utf-8"), max_size=40),
)
def test_gold_spans_map_back_to_their_characters(
    wordpieces: Wordpieces, before: str, answer: str, after: str
) -> None:
    pieces = wordpieces.encode(f"{before} {answer} {after}")
    found = occurrences(pieces.text, [answer], TRIVIAQA_PUNCTUATION)
    spans = answer_pieces(pieces, [answer], TRIVIAQA_PUNCTUATION, 1000)
    assert found or not normalise_triviaqa(answer) or "Σ" in answer
    assert spans == sorted({pieces.covering(*span) for span in found})
    for start, end in found:
        first, last = pieces.covering(start, end)
        assert int(pieces.starts[first]) <= start < end <= int(pieces.ends[last])
        if first < last:  # none could be left out
            assert int(pieces.ends[first]) > start
            assert int(pieces.starts[last]) < end


@real
def test_an_answer_that_is_parted_by_spaces_is_found_to_the_character(wordpieces: Wordpieces) -> None:
    pieces = wordpieces.encode("Die Stadt 東京都 liegt\u00a0in Ōsaka – nein, in Zürich.")
    spans = answer_pieces(pieces, ["東京都", "ōsaka", "zürich"], TRIVIAQA_PUNCTUATION, 30)
    cut = [slice(*pieces.characters(*span)) for span in spans]
    assert [pieces.text[part] for part in cut] == ["東京都", "Ōsaka", "Zürich"]
    assert answer_pieces(pieces, ["東京都"], TRIVIAQA_PUNCTUATION, spans[0][1] - spans[0][0]) == []


def test_loss_of_a_worked_example() -> None:
    """Starts: e^0, e^1, e^2 are in the context, the last two right; ends: all equal, one of three right."""
    logits = torch.tensor([[9.0, 9.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    parts = torch.tensor([-1, 0, 0, 1])
    loss = or_loss(logits, torch.tensor([2, 3, 3]), torch.tensor([3, 3, 3]), parts)
    start = (math.e + math.e**2) / (1 + math.e + math.e**2)
    assert loss.item() == pytest.approx(-(math.log(start) + math.log(1 / 3)) / 2)
    assert or_loss(logits[1:], torch.tensor([1, 2]), torch.tensor([2])).item() == pytest.approx(loss.item())


@pytest.mark.parametrize("places", [0, 3])
def test_loss_without_answers_is_nothing_and_takes_part(places: int) -> None:
    logits = torch.ones(places, 2, requires_grad=True)
    none = torch.empty(0, dtype=torch.long)
    loss = or_loss(logits, none, none)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_loss_is_computed_in_float32() -> None:
    logits = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    starts = torch.tensor([7, 80])
    assert or_loss(logits, starts, starts).item() == or_loss(logits.float(), starts, starts).item()


def slow_spans(logits: np.ndarray, parts: list[int], longest: int, count: int) -> list[tuple[int, int]]:
    spans = [
        (first, last)
        for first in range(len(logits))
        for last in range(first, min(first + longest, len(logits)))
        if parts[first] >= 0 and all(parts[place] == parts[first] for place in range(first, last + 1))
    ]
    return sorted(spans, key=lambda span: (-(logits[span[0], 0] + logits[span[1], 1]), span))[:count]


@given(st.data())
def test_best_spans_are_those_of_the_definition(data: st.DataObject) -> None:
    """Logits are few whole numbers: there are ties."""
    runs = data.draw(st.lists(st.tuples(st.booleans(), st.integers(1, 5)), max_size=4))
    parts = [
        number if context else -1 for number, (context, length) in enumerate(runs) for _ in range(length)
    ]
    logits = np.array(
        data.draw(st.lists(st.tuples(*[st.integers(-2, 2)] * 2), min_size=len(parts), max_size=len(parts))),
        np.float32,
    ).reshape(-1, 2)
    longest, count = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 20))
    tensor = torch.from_numpy(logits)
    found = best_spans(tensor, longest, count, torch.tensor(parts, dtype=torch.long))
    assert [(span.first, span.last) for span in found] == slow_spans(logits, parts, longest, count)
    everywhere = np.exp(logits[np.array(parts, int) >= 0].astype(np.float64)).sum(0)
    for span in found:
        expected = logits[span.first, 0] + logits[span.last, 1] - np.log(everywhere).sum()
        assert span.score == pytest.approx(expected, abs=1e-5)


def test_of_equal_spans_the_first_and_shortest_is_best() -> None:
    assert [span[:2] for span in best_spans(torch.zeros(3, 2), 2, 4)] == [(0, 0), (0, 1), (1, 1), (1, 2)]
    (span,) = best_spans(torch.zeros(1, 2), 30, 20)
    assert span == Span(0, 0, 0.0)


def test_a_sigma_that_the_cut_would_change_is_no_answer() -> None:
    """In the text it is lowered as inside a word, alone as a word's last letter, which is another one."""
    assert normalise_triviaqa("ΑΣ'Β") == "ασ β"
    assert normalise_triviaqa("ΑΣ") == "ας"
    assert occurrences("ΑΣ'Β ΑΣ", ["ασ"], TRIVIAQA_PUNCTUATION) == []
    assert occurrences("ΑΣ'Β ΑΣ", ["ας"], TRIVIAQA_PUNCTUATION) == [(5, 7)]
