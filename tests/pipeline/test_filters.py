"""Filters: the reason each gives, exactly at its limits, and that none fails on any text."""

import gzip
import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.documents import Document
from pipeline.filters import EMPTY, FILTERS, REASONS, Filter, first_reason
from pipeline.filters.filter import BaseFilter
from pipeline.filters.repetition import duplicated_words, most_frequent
from pipeline.words import hash_words

PROSE = (
    "It was the best of times, it was the worst of times, and we have to be content with that. "
    "Nobody on the long road to the coast had ever seen a winter like this one: the harbours froze, the mills "
    "stood still, and in the kitchens of the old town people told each other stories until the candles were gone."
)


def make(name: str, **parameters: Any) -> BaseFilter:
    """As a configuration would."""
    return TypeAdapter(Filter).validate_python({"name": name, **parameters})


def reason(text: str, name: str, **parameters: Any) -> str | None:
    return make(name, **parameters).reason(Document("d", text))


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_has_defaults_that_keep_prose(name: str) -> None:
    item = FILTERS[name]()
    assert item == make(name)
    assert item.reason(Document("d", PROSE)) is None
    assert item.identity() == {**item.identity(), "name": name, "version": item.version}
    assert "sources" not in item.identity()


def test_reasons_are_distinct_and_stable() -> None:
    everything = [reason for kind in FILTERS.values() for reason in kind.reasons]
    assert max(Counter([EMPTY, *everything]).values()) == 1
    assert set(REASONS) == {EMPTY, *everything}
    assert all(r.isidentifier() and r == r.lower() for r in REASONS)
    assert set(REASONS) == {
        *("empty", "too_few_bytes", "too_many_bytes", "symbols", "repeated_lines", "bullet_lines", "ellipsis_lines"),
        *("duplicate_paragraphs", "duplicate_lines", "top_ngram", "duplicate_ngrams", "too_few_words"),
        *("too_many_words", "short_words", "long_words", "words_without_letters", "hashes", "ellipses"),
        *("no_stop_words", "boilerplate", "language", "unknown_language"),
    }  # fmt: skip


PARTS = ["the ", "a\n", "\n\n", "# ", "…", "- x\n", "é", "漢", "\x00", "\x85", "use cookies\n"]


@settings(deadline=None, max_examples=200)
@given(
    st.one_of(
        st.text(st.characters(), max_size=300),  # half surrogate pairs, control characters, whatever
        st.lists(st.sampled_from(PARTS)).map("".join),
    )
)  # fmt: skip
def test_no_filter_fails_on_any_text(text: str) -> None:
    for kind in FILTERS.values():
        item = kind()
        found = item.reason(Document("d", text))
        assert found is None or found in item.reasons
        assert item.reason(Document("d", text)) == found


def test_the_first_reason_counts_and_sources_limit() -> None:
    filters = [make("symbols", maximum=0, sources=["web"]), make("length", minimum_bytes=3)]
    assert first_reason(filters, "web", Document("d", "!")) == "symbols"
    assert first_reason(filters, "books", Document("d", "!")) == "too_few_bytes"
    assert first_reason(filters, "books", Document("d", "!!!")) is None
    assert first_reason(filters, "books", Document("d", " \n\u3000")) == EMPTY
    assert first_reason([], "books", Document("d", "")) == EMPTY


@pytest.mark.parametrize(
    ("text", "parameters", "expected"),
    [
        ("ab", {"minimum_bytes": 3}, "too_few_bytes"),
        ("abc", {"minimum_bytes": 3}, None),
        ("aé", {"minimum_bytes": 3}, None),
        ("abc", {"maximum_bytes": 3}, None),
        ("abcd", {"maximum_bytes": 3}, "too_many_bytes"),
        ("éé", {"maximum_bytes": 3}, "too_many_bytes"),
    ],
)
def test_length(text: str, parameters: dict[str, Any], expected: str | None) -> None:
    assert reason(text, "length", **parameters) == expected


@pytest.mark.parametrize(
    ("text", "maximum", "expected"),
    [
        ("ab1 .\n", "1/4", None),
        ("ab1 .\n", "0.249", "symbols"),
        ("ab .,", 0.5, None),
        ("ab .,;", 0.5, "symbols"),
        ("हिन्दी की किताबें", 0, None),  # vowel signs are no symbols
        ("漢字", 0, None),
        ("漢字。", "1/3", None),
        ("漢字。", "0.333", "symbols"),
        ("", 0, None),
    ],
)
def test_symbols(text: str, maximum: object, expected: str | None) -> None:
    assert reason(text, "symbols", maximum=maximum) == expected


def test_a_share_is_exact_where_a_float_is_not() -> None:
    """0.07 · 100 is 7.000000000000001 in floats, 0.29 · 100 is 28.999999999999996."""
    assert reason("." * 29 + "a" * 71, "symbols", maximum=0.29) is None
    assert reason("." * 30 + "a" * 70, "symbols", maximum=0.29) == "symbols"
    assert make("symbols", maximum=0.29).identity()["maximum"] == "29/100"


@pytest.mark.parametrize(
    ("text", "maximum", "expected"),
    [
        ("a\nb\na\nc", "1/4", None),
        ("a\nb\n a \n\n", "0.33", "repeated_lines"),
        ("a\r\nb\r\na", "1/3", None),
        ("", 0, None),
    ],
)
def test_repeated_lines(text: str, maximum: object, expected: str | None) -> None:
    assert reason(text, "repeated_lines", maximum=maximum) == expected


@pytest.mark.parametrize(
    ("text", "parameters", "expected"),
    [
        ("• a\n- b\n\nc", {"maximum_bullets": "2/3"}, None),
        ("• a\n  * b\n\nc", {"maximum_bullets": "0.66"}, "bullet_lines"),
        ("a...\nb…\nc", {"maximum_ellipses": "2/3"}, None),
        ("a... \nb…\nc", {"maximum_ellipses": "0.66"}, "ellipsis_lines"),
        ("", {"maximum_bullets": 0, "maximum_ellipses": 0}, None),
    ],
)
def test_line_ends(text: str, parameters: dict[str, Any], expected: str | None) -> None:
    assert reason(text, "line_ends", **parameters) == expected


NOTHING = {"maximum_paragraphs": 1, "maximum_lines": 1, "maximum_top": {}, "maximum_duplicate": {}}


@pytest.mark.parametrize(
    ("text", "parameters", "expected"),
    [
        ("ab\n\ncd\n\n\n ab\n\nef", {"maximum_paragraphs": "1/4"}, None),
        ("ab\n\ncd\n\n\n ab\n\nef", {"maximum_paragraphs": 0.24}, "duplicate_paragraphs"),
        ("ab\nab\ncd", {"maximum_paragraphs": 0}, None),
        ("ab\ncd\nab\nef", {"maximum_lines": "1/4"}, None),
        ("ab\ncd\nab\nef", {"maximum_lines": 0.24}, "duplicate_lines"),
        ("a b x A, b! y a\nb z w", {"maximum_top": {2: "6/10"}}, None),
        ("a b x A, b! y a\nb z w", {"maximum_top": {2: 0.59}}, "top_ngram"),
        ("a b c d e f", {"maximum_top": {2: "1/3"}}, None),
        ("a b c d e f", {"maximum_top": {2: 0.33}}, "top_ngram"),
        ("a b c a b c x y", {"maximum_duplicate": {2: "3/8"}}, None),  # the second a b c
        ("a b c a b c x y", {"maximum_duplicate": {2: 0.37}}, "duplicate_ngrams"),
        ("a b c a b c x y", {"maximum_duplicate": {4: 0}}, None),
        ("a b", {"maximum_top": {3: 0}, "maximum_duplicate": {3: 0}}, None),
        ("", {"maximum_paragraphs": 0, "maximum_lines": 0, "maximum_top": {1: 0}}, None),
    ],
)
def test_repetition(text: str, parameters: dict[str, Any], expected: str | None) -> None:
    assert reason(text, "repetition", **NOTHING | parameters) == expected


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcd"), max_size=40), st.integers(1, 6))
def test_counts_of_ngrams_are_the_references(words: list[str], ngram: int) -> None:
    ngrams = [tuple(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]
    hashed = hash_words(" ".join(words))
    assert most_frequent(hashed, ngram) == max(Counter(ngrams).values(), default=0)
    covered = {i + place for i, phrase in enumerate(ngrams) if phrase in ngrams[:i] for place in range(ngram)}
    assert duplicated_words(hashed, ngram) == len(covered)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from("abcde"), max_size=60),
    st.dictionaries(st.integers(1, 6), st.fractions(0, 1)),
    st.booleans(),
)
def test_repetition_asks_every_length(words: list[str], limits: dict[int, Fraction], top: bool) -> None:
    """It leaves counts out that the shorter phrases bound: with the same answer as if it counted all."""
    hashed = hash_words(" ".join(words))
    key = "maximum_top" if top else "maximum_duplicate"
    over = any(
        (n * most_frequent(hashed, n) if top else duplicated_words(hashed, n)) > share * len(words)
        for n, share in limits.items()
    )
    found = reason(" ".join(words), "repetition", **NOTHING | {key: limits})
    assert found == (("top_ngram" if top else "duplicate_ngrams") if over else None)


ALL = {
    "minimum_words": 0,
    "minimum_word_length": 0,
    "maximum_word_length": 100,
    "maximum_without_letters": 1,
    "maximum_hashes": 1,
    "maximum_ellipses": 1,
    "minimum_stop_words": 0,
}


@pytest.mark.parametrize(
    ("text", "parameters", "expected"),
    [
        ("a b\nc", {"minimum_words": 3}, None),
        ("a b\n", {"minimum_words": 3}, "too_few_words"),
        ("a b c", {"maximum_words": 3}, None),
        ("a b c d", {"maximum_words": 3}, "too_many_words"),
        ("ab abc", {"minimum_word_length": 2.5}, None),
        ("ab abc ab", {"minimum_word_length": 2.5}, "short_words"),
        ("ab abc", {"maximum_word_length": 2.5}, None),
        ("ab abc abc", {"maximum_word_length": 2.5}, "long_words"),
        ("a1 12 . b", {"maximum_without_letters": 0.5}, None),
        ("a1 12 . 3", {"maximum_without_letters": 0.5}, "words_without_letters"),
        ("# a # b", {"maximum_hashes": 0.5}, None),
        ("## a # b", {"maximum_hashes": 0.5}, "hashes"),
        ("a... b… c d", {"maximum_ellipses": 0.5}, None),
        ("a... b… c...", {"maximum_ellipses": 0.5}, "ellipses"),
        ("The cat, of course", {"minimum_stop_words": 2}, None),
        ("The cat, the dog", {"minimum_stop_words": 2}, "no_stop_words"),
        ("der Hund und die Katze", {"minimum_stop_words": 2, "stop_words": ["DIE", "und"]}, None),
        ("word " * 30_000 + "of the", {"minimum_stop_words": 2}, None),  # looks as far as it must
        ("", {"minimum_words": 1}, "too_few_words"),
        ("", {}, None),
    ],
)
def test_prose(text: str, parameters: dict[str, Any], expected: str | None) -> None:
    assert reason(text, "prose", **ALL | parameters) == expected


@settings(deadline=None)
@given(st.text(st.sampled_from("aé1. \n\u00a0"), max_size=80))
def test_prose_measures_what_split_does(text: str) -> None:
    words = text.split()
    without = sum(not any(c.isalpha() for c in word) for word in words)
    for key, count in (("minimum_words", len(words)), ("maximum_words", len(words))):
        if count or key == "minimum_words":
            assert reason(text, "prose", **ALL | {key: count}) is None
    assert reason(text, "prose", **ALL | {"minimum_words": len(words) + 1}) == "too_few_words"
    if words:
        mean = Fraction(sum(map(len, words)), len(words))
        bounds = {"minimum_word_length": str(mean), "maximum_word_length": str(mean)}
        share = {"maximum_without_letters": str(Fraction(without, len(words)))}
        assert reason(text, "prose", **ALL | bounds | share) is None


@pytest.mark.parametrize(
    ("text", "parameters", "expected"),
    [
        ("We USE Cookies\n12345678901234", {"maximum": 0.5}, None),
        ("We USE Cookies.\n12345678901234", {"maximum": 0.5}, "boilerplate"),
        ("We use cookies" + "." * 500, {"maximum": 0}, None),  # a paragraph that speaks of them
        ("See the Project Gutenberg™ licence", {"maximum": 0.9}, "boilerplate"),
        ("Ça va\nSiguiente página", {"maximum": 0.5, "phrases": ["siguiente"]}, "boilerplate"),
        ("", {"maximum": 0}, None),
    ],
)
def test_boilerplate(text: str, parameters: dict[str, Any], expected: str | None) -> None:
    assert reason(text, "boilerplate", **parameters) == expected


GERMAN = (
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren und mit Vernunft und Gewissen begabt. "
)
ENGLISH = (
    "All human beings are born free and equal in dignity and rights, endowed with reason and conscience. "
)


@pytest.mark.parametrize(
    ("text", "parameters", "expected"),
    [
        (ENGLISH, {}, None),
        (GERMAN, {}, "language"),
        (GERMAN, {"languages": ["de"]}, None),
        (GERMAN, {"languages": ["de", "en"]}, None),
        ("Все люди рождаются свободными и равными в своем достоинстве и правах.", {}, "language"),
        ("人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。", {"languages": ["zh"]}, None),
        (ENGLISH * 3 + GERMAN, {}, None),
        (ENGLISH * 3 + GERMAN, {"minimum": 0.95}, "language"),
        (ENGLISH * 100 + GERMAN * 200 + ENGLISH * 100, {"minimum": 0.5}, None),  # looks at three places
        (ENGLISH * 100 + GERMAN * 200 + ENGLISH * 100, {"minimum": 0.8}, "language"),
        ("A\nJohn Adair\nGiulio Angioni\nTalal Asad\nTim Asch\nLee Berger\nAnton Blok", {}, None),
        ("12345 678 90", {"keep_unknown": False}, "unknown_language"),
        ("12345 678 90", {}, None),
        (ENGLISH + "\x00\x07\x85\ufffe\ud800", {}, None),
        ("", {}, None),
    ],
)
def test_language(text: str, parameters: dict[str, Any], expected: str | None) -> None:
    assert reason(text, "language", **parameters) == expected


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"name": "length", "minimum_bytes": 9, "maximum_bytes": 8}, "maximum_bytes: .* minimum_bytes = 9, found 8"),
        ({"name": "symbols", "maximum": 1.5}, "less than or equal to 1"),
        ({"name": "symbols", "maximum": "most"}, "a number or a fraction"),
        ({"name": "prose", "minimum_words": 9, "maximum_words": 8}, "maximum_words: .* = 9, found 8"),
        ({"name": "prose", "minimum_word_length": 11}, "maximum_word_length: .* = 11, found 10"),
        ({"name": "prose", "minimum_stop_words": 9}, "minimum_stop_words: expected at most 8"),
        ({"name": "repetition", "maximum_top": {0: 0.5}}, "greater than or equal to 1"),
        ({"name": "repetition", "maximum_top": {2: 5}}, "less than or equal to 1"),
        ({"name": "boilerplate", "phrases": ["a"]}, "at least 3 characters"),
        ({"name": "language", "languages": ["english"]}, "no language that CLD2 knows"),
        ({"name": "language", "languages": []}, "at least 1 item"),
        ({"name": "length", "minimum": 1}, "Extra inputs"),
    ],
)  # fmt: skip
def test_parameters_are_checked(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Filter).validate_python(parameters)


def test_language_names_the_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycld2", None)
    with pytest.raises(ValidationError, match=r"pip install 'longspan\[language\]'"):
        make("language")


def test_the_defaults_keep_real_texts(shared_data: Path) -> None:
    """Articles, stories and whole books: dropped is only what one would not call text."""
    texts = {
        path.stem: path.read_text(encoding="utf-8-sig") for path in (shared_data / "books").glob("*.txt")
    }
    for file in ("wikipedia/enwiki_106_articles_plain", "stories/short_fiction"):
        with gzip.open(shared_data / f"{file}.jsonl.gz", "rt", encoding="utf-8") as rows:
            texts |= {row["title"]: row["text"] for row in map(json.loads, rows)}
    filters = [kind() for kind in FILTERS.values()]
    dropped = {title: first_reason(filters, "s", Document(title, text)) for title, text in texts.items()}
    assert len(texts) > 300
    # "Aa River may refer to: Aa (Meuse), a river in …"
    assert {title: reason for title, reason in dropped.items() if reason} == {"Aa River": "top_ngram"}
