"""Wordpieces and the characters that they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokenizer import load_tokenizer
from trainer.engine.config import InputError
from trainer.model.folder import read_tokenizer
from trainer.tasks.wordpieces import Wordpieces


@pytest.fixture(scope="module")
def wordpieces(shared_data: Path) -> Wordpieces:
    return Wordpieces(load_tokenizer(shared_data / "tokenizer"), ("[ent]", "[/ent]"))


TEXTS = st.text(st.characters(exclude_categories=()), max_size=60) | st.text(
    "aé 𝔘\u0301\n👩\u200d", max_size=40
)


@settings(deadline=None)
@given(text=TEXTS)
def test_pieces_are_the_text_character_by_character(wordpieces: Wordpieces, text: str) -> None:
    pieces = wordpieces.encode(text)
    clean = "".join("\ufffd" if "\ud800" <= each <= "\udfff" else each for each in text)
    assert pieces.text == clean
    assert wordpieces.tokenizer.decode(pieces.ids.tolist()) == clean or not clean
    covered: set[int] = set()
    last_end = 0
    for start, end in zip(pieces.starts.tolist(), pieces.ends.tolist(), strict=True):
        assert start < end
        assert start in (last_end, last_end - 1)  # inside a character, or where the one before ends
        covered |= set(range(start, end))
        last_end = end
    assert covered == set(range(len(text)))


@settings(deadline=None)
@given(text=TEXTS.filter(len), data=st.data())
def test_spans_cover_their_characters_and_no_piece_more(
    wordpieces: Wordpieces, text: str, data: st.DataObject
) -> None:
    pieces = wordpieces.encode(text)
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    first, last = pieces.covering(start, end)
    assert pieces.starts[first] <= start
    assert end <= pieces.ends[last]
    if last > first:  # without either end it covers less
        assert pieces.ends[first] > start
        assert pieces.starts[last] < end
    found = pieces.characters(first, last)
    assert pieces.starts[first] <= found[0] < found[1] <= pieces.ends[last]
    inner = pieces.text[start:end].strip()
    if inner:
        assert inner in pieces.text[slice(*found)]


def test_a_part_still_counts_through_the_whole_text(wordpieces: Wordpieces) -> None:
    pieces = wordpieces.encode("Zürich and Genève lie on lakes")
    first, _ = pieces.covering(11, 17)
    part = pieces[first:]
    assert part.text[slice(*part.characters(*part.covering(11, 17)))] == "Genève"


def test_added_tokens_come_behind_the_vocabulary_and_never_out_of_a_text(wordpieces: Wordpieces) -> None:
    assert wordpieces.added == {"[ent]": 50265, "[/ent]": 50266}
    assert wordpieces.size == 50267
    ids = wordpieces.encode("[ent] <mask> <s> [/ent]").ids
    assert ids.max() < 50264
    assert ids.min() > 3


def test_the_tokenizers_files_have_the_added_tokens_and_are_read_again(
    wordpieces: Wordpieces, tmp_path: Path
) -> None:
    for name, content in wordpieces.files().items():
        (tmp_path / name).write_bytes(content)
    again = Wordpieces(read_tokenizer(tmp_path), ("[/ent]", "[ent]"))
    assert again.added == {"[/ent]": 50266, "[ent]": 50265}
    assert again.size == wordpieces.size
    assert again.encode("a [ent] b").ids.tolist() == wordpieces.encode("a [ent] b").ids.tolist()
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode("[ent]", add_special_tokens=False).ids == [50265]


def test_a_tokenizer_that_changes_the_text_is_refused(shared_data: Path, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(shared_data / "tokenizer" / "tokenizer.json"))
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="its tokenizer changes the text"):
        Wordpieces(load_tokenizer(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize("span", [(0, 0), (2, 1), (-1, 2), (0, 99)])
def test_a_span_outside_the_text_is_refused(wordpieces: Wordpieces, span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected a span of 4"):
        wordpieces.encode("text").covering(*span)
