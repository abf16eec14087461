"""HotpotQA's input (Longformer paper, appendix D): the question, and the paragraphs' titles and sentences behind it.

    <s> [q] question [/q] <t> title </t> sentence [s] sentence [s] … <t> title </t> sentence [s] … </s>

A row repeats everything up to [/q], which has global attention, as every <t> and [s] has. Texts are encoded as they
stand in running text, with one space before them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.engine.config import InputError
from trainer.tasks.example import Skipped
from trainer.tasks.hotpotqa_files import Question
from trainer.tasks.task import Lengths
from trainer.tasks.wordpieces import Pieces, Wordpieces

# [p] is in the paper's list of new tokens; its layout has no place for it.
ADDED_TOKENS = ("[q]", "[/q]", "<t>", "</t>", "[s]", "[p]")
LEAST_ROOM = 8  # tokens behind the question: title and sentence, cut, and their marks


class Layout:
    """A question's rows, and where in the rows joined everything stands. Lists of one name's beginning are parallel.

    A *part* is a paragraph's tokens in one row: one that continues in the next row has its title there again.
    """

    def __init__(self, question: Question, wordpieces: Wordpieces, lengths: Lengths, training: bool) -> None:
        """A question that leaves no room for a sentence is never cut: it is Skipped in training, else an InputError."""
        self._special = {token: wordpieces.special(token) for token in ADDED_TOKENS}
        self._eos = wordpieces.eos
        pieces = _encoded(wordpieces, [question.text])[0]
        self._question = [wordpieces.bos, self._special["[q]"], *pieces.ids.tolist(), self._special["[/q]"]]
        self._tokens = lengths.tokens - 1  # of a row, without its </s>
        self._room = self._tokens - len(self._question)
        if self._room < LEAST_ROOM:
            if training:
                raise Skipped("question too long")
            most = len(pieces) + self._room - LEAST_ROOM
            raise InputError(
                f"{question.where or question.id}: found {len(pieces)} wordpieces in the question, which is never cut, "
                f"expected {most} at most where rows have {lengths.tokens} tokens"
            )
        self.rows: list[np.ndarray] = []
        self.global_places: list[int] = []
        self.row_places: list[int] = []  # of each row's <s>
        self.part_places: list[int] = []  # of each part's <t>
        self.part_paragraphs: list[int] = []
        self.sentence_places: list[int] = []  # of each [s]
        self.sentence_paragraphs: list[int] = []
        self.sentence_numbers: list[int] = []  # in the paragraph
        self.piece_places: list[int] = []  # of each wordpiece of a sentence
        self.piece_parts: list[int] = []
        self.piece_starts: list[int] = []  # the first of its characters in the paragraph's text
        self.piece_ends: list[int] = []  # behind the last one
        self.context_tokens = 0
        self.tokens_cut = 0
        self._closed = 0  # tokens of the rows that are complete
        self._open_row()
        chunk, full = lengths.longer == "chunk", False
        for number, paragraph in enumerate(question.paragraphs):
            title, *sentences = _encoded(wordpieces, [paragraph.title, *paragraph.sentences])
            own = len(title) + sum(map(len, sentences))
            self.context_tokens += own
            held = 0 if full else self._add_paragraph(number, title, sentences, paragraph.sentences, chunk)
            self.tokens_cut += own - held
            full = not chunk and held < own
        self._close_row()

    def _add_paragraph(
        self, number: int, title: Pieces, sentences: list[Pieces], texts: Sequence[str], chunk: bool
    ) -> int:
        """Returns how many wordpieces the rows hold now of a paragraph: all, unless they were cut."""
        name = title.ids[: self._room // 2].tolist()  # all of it, unless a row has hardly room for the title
        head = [self._special["<t>"], *name, self._special["</t>"]]
        if chunk and len(head) + sum(len(pieces) + 1 for pieces in sentences) > self._free:
            self._next_row()
        too_long = len(head) + (len(sentences[0]) + 1 if sentences else 0) > self._free
        if not self._is_new and (too_long or (len(name) < len(title) and not chunk)):
            return 0
        self._add_head(number, head)
        held, offset = len(name), 0
        for n, (pieces, text) in enumerate(zip(sentences, texts, strict=True)):
            if len(pieces) + 1 > self._free:
                if chunk and n and self._free + len(head) < self._room:
                    self._next_row()
                    self._add_head(number, head)
                if len(pieces) + 1 > self._free:
                    if self._free + len(head) < self._room:
                        return held
                    pieces = pieces[: self._free - 1]  # a row of its own is not enough
            self._add_sentence(number, n, pieces, offset + len(text) - len(text.lstrip()))
            held += len(pieces)
            offset += len(text)
        return held

    def _add_head(self, number: int, head: list[int]) -> None:
        self.part_places.append(self._mark())
        self.part_paragraphs.append(number)
        self._row += head

    def _add_sentence(self, number: int, sentence: int, pieces: Pieces, offset: int) -> None:
        """offset: the characters of the paragraph before the sentence's first that is no white space."""
        first = self._closed + len(self._row)
        self.piece_places += range(first, first + len(pieces))
        self.piece_parts += [len(self.part_places) - 1] * len(pieces)
        # The space before the text is not the paragraph's.
        self.piece_starts += (offset + np.maximum(pieces.starts - 1, 0)).tolist()
        self.piece_ends += (offset + np.maximum(pieces.ends - 1, 0)).tolist()
        self._row += pieces.ids.tolist()
        self.sentence_places.append(self._mark())
        self.sentence_paragraphs.append(number)
        self.sentence_numbers.append(sentence)
        self._row.append(self._special["[s]"])

    def _mark(self) -> int:
        """The next token is global; its place."""
        place = self._closed + len(self._row)
        self.global_places.append(place)
        return place

    @property
    def _free(self) -> int:
        return self._tokens - len(self._row)

    @property
    def _is_new(self) -> bool:
        return len(self._row) == len(self._question)

    def _next_row(self) -> None:
        if not self._is_new:
            self._close_row()
            self._open_row()

    def _open_row(self) -> None:
        self._row = list(self._question)
        self.row_places.append(self._closed)
        self.global_places += range(self._closed, self._closed + len(self._row))

    def _close_row(self) -> None:
        self.rows.append(np.array([*self._row, self._eos], np.int32))
        self._closed += len(self._row) + 1


def _encoded(wordpieces: Wordpieces, texts: Sequence[str]) -> list[Pieces]:
    """Without the white space around them, behind one space: words have the pieces that they have in running text."""
    stripped = [text.strip() for text in texts]
    return wordpieces.encode_all([f" {text}" if text else "" for text in stripped])
