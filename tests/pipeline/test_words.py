"""Words as arrays, against words found one character at a time."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import words
from pipeline.words import DIGIT, LETTER, SPACE, SYMBOL, count_kinds, hash_ngrams, hash_words, kinds, pieces

texts = st.text(st.one_of(st.sampled_from("aB9 .,\n\té’中ไÉ\u0301\u00a0"), st.characters())).filter(
    # Beyond the plane of ideographs nothing is looked up but their ranges.
    lambda text: all(ord(c) < 0x20000 for c in text)
)


def slow_kind(character: str) -> int:
    if unicodedata.category(character)[0] in "LM":
        return LETTER
    if character.isalnum():
        return DIGIT
    return SPACE if character.isspace() else SYMBOL


def slow_words(text: str) -> list[str]:
    found = [""]
    for character in unicodedata.normalize("NFC", text):
        alone = any(first <= ord(character) < end for first, end in words._SPACELESS)
        if slow_kind(character) not in (LETTER, DIGIT) or alone:
            found.append("")
        if slow_kind(character) in (LETTER, DIGIT):
            lower = character.lower()
            found[-1] += lower if len(lower) == 1 else character
            if alone:
                found.append("")
    return [word for word in found if word]


@settings(deadline=None)
@given(texts)
def test_kinds_and_words_are_the_references(text: str) -> None:
    assert kinds(text).tolist() == [slow_kind(c) for c in text]
    assert count_kinds(text) == [sum(slow_kind(c) == k for c in text) for k in range(4)]
    slow = slow_words(text)
    fast = hash_words(text)
    assert fast.dtype == np.uint64
    assert len(fast) == len(slow)
    assert [hash_words(word).tolist() for word in slow] == [[h] for h in fast.tolist()]
    assert len(set(slow)) == len(set(fast.tolist()))


@settings(deadline=None)
@given(st.text(st.sampled_from("ab \né"), max_size=40), st.integers(1, 9))
def test_pieces_are_the_text_and_end_at_white_space(text: str, size: int) -> None:
    parts = list(pieces(text, size))
    assert "".join(parts) == text
    assert all(len(part) <= size for part in parts)
    for part in parts[:-1]:
        assert part[-1] in " \n" or (len(part) == size and not set(part) & set(" \n"))


def test_a_text_of_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"word{i} Ünïcode {i}\n" for i in range(200))
    whole, counts = hash_words(text), count_kinds(text)
    monkeypatch.setattr(pieces, "__defaults__", (23,))
    np.testing.assert_array_equal(hash_words(text), whole)
    assert count_kinds(text) == counts


def test_words_are_equal_but_for_case_marks_and_form() -> None:
    np.testing.assert_array_equal(hash_words("The Café, don’t!"), hash_words("the CAFE\u0301 -- don't?"))
    assert len(hash_words("नमस्ते दुनिया")) == 2  # vowel signs belong to the letters before them
    assert len(hash_words("東京タワー is")) == 6
    assert len(hash_words("")) == 0
    assert len(hash_words("... — \u3000")) == 0
    assert hash_words("x1") != hash_words("1x")


def test_half_a_surrogate_pair_is_a_symbol() -> None:
    assert kinds("a\ud800b").tolist() == [LETTER, SYMBOL, LETTER]
    assert len(hash_words("a\ud800b")) == 2


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=12), st.integers(1, 5))
def test_ngrams_are_equal_where_their_words_are(tokens: list[str], ngram: int) -> None:
    found = hash_ngrams(hash_words(" ".join(tokens)), ngram).tolist()
    slow = [tuple(tokens[i : i + ngram]) for i in range(len(tokens) - ngram + 1)]
    assert len(found) == len(slow)
    for a, left in zip(found, slow, strict=True):
        assert [a == b for b in found] == [left == right for right in slow]
    longer = set(hash_ngrams(hash_words(" ".join(tokens)), ngram + 1).tolist())
    assert not longer & set(found)
