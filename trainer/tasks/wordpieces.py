"""Text as wordpieces that know which characters they stand for.

Byte-level BPE cuts a text's UTF-8 into pieces that, joined, are that text again. So a piece's place in the text follows
from its length in bytes, whichever library has cut it, and spans of pieces and of characters map to each other exactly;
a piece may begin or end inside a character (`characters` takes such a character whole).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from pipeline.tokenizer import Tokenizer
from trainer.engine.config import InputError

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class Pieces:
    """A text in n wordpieces."""

    text: str
    ids: np.ndarray
    """int32 (n,)."""
    starts: np.ndarray
    """int32 (n,): the first character that a piece has a byte of."""
    ends: np.ndarray
    """int32 (n,): behind the last one."""

    def __len__(self) -> int:
        return len(self.ids)

    def covering(self, start: int, end: int) -> tuple[int, int]:
        """The fewest pieces (first, last), the last inclusive, that hold all of the characters text[start:end]."""
        if not 0 <= start < end <= len(self.text):
            raise ValueError(f"characters: found {start} to {end}, expected a span of {len(self.text)}")
        first = int(np.searchsorted(self.ends, start, side="right"))
        last = int(np.searchsorted(self.starts, end, side="left")) - 1
        return first, last

    def characters(self, first: int, last: int) -> tuple[int, int]:
        """The characters (start, end), the end exclusive, of the pieces `first` to `last`, the last inclusive, without
        the white space at their ends: a piece holds the space before its word."""
        start, end = int(self.starts[first]), int(self.ends[last])
        found = self.text[start:end]
        stripped = found.strip()
        if not stripped:
            return start, end
        start += len(found) - len(found.lstrip())
        return start, start + len(stripped)

    def __getitem__(self, part: slice) -> Pieces:
        """Some of the pieces; their characters still count through the whole text."""
        return Pieces(self.text, self.ids[part], self.starts[part], self.ends[part])


class Wordpieces:
    """A model's tokenizer, and the special tokens that a task adds behind its entries."""

    def __init__(self, tokenizer: Tokenizer, added: Sequence[str] = ()) -> None:
        """`added` tokens that the tokenizer knows already, as one that was finetuned before does, keep their ids.

        InputError where the tokenizer is no byte-level BPE over the plain text.
        """
        if not tokenizer.covers_bytes:
            raise InputError(
                "model: its tokenizer changes the text before it cuts it (a normaliser, or a space put before), "
                "expected byte-level BPE over the text as it is, which spans of characters are found by"
            )
        self.tokenizer = tokenizer
        self.bos, self.eos, self.pad = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
        known = tokenizer.added_ids()
        self._added: dict[str, int] = {}
        self.size = tokenizer.vocabulary_size
        """Entries, with those added: rows that an embedding table needs."""
        for token in added:
            if token in known:
                self._added[token] = known[token]
            else:
                self._added[token] = self.size
                self.size += 1
        self._bytes = tokenizer.byte_lengths()

    def files(self) -> dict[str, bytes]:
        """The tokenizer's files for `transformers.AutoTokenizer`, by name, with the tokens that the task has added."""
        files = self.tokenizer.files()
        stored = orjson.loads(files["tokenizer.json"])
        known = {token["content"] for token in stored["added_tokens"]}
        stored["added_tokens"] += [
            {"id": index, "content": token, "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for token, index in self._added.items()
            if token not in known
        ]
        return files | {"tokenizer.json": orjson.dumps(stored) + b"\n"}

    @property
    def added(self) -> dict[str, int]:
        """The ids of the task's special tokens."""
        return dict(self._added)

    def special(self, token: str) -> int:
        """The id of a token that the task has added."""
        return self._added[token]

    def encode(self, text: str) -> Pieces:
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[Pieces]:
        """Each text in wordpieces, without special tokens; a `<mask>` or `[ent]` in a text is text. A lone surrogate,
        which no UTF-8 holds, becomes U+FFFD."""
        clean = [_SURROGATE.sub("\ufffd", text) for text in texts]
        ids, offsets = self.tokenizer.encode(clean)
        found = []
        for text, start, end in zip(clean, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            own = ids[start:end].astype(np.int32)
            found.append(Pieces(text, own, *self._characters(text, own)))
        return found

    def _characters(self, text: str, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(starts, ends) of pieces in characters."""
        ends = np.cumsum(self._bytes[ids])
        encoded = np.frombuffer(text.encode(), np.uint8)
        assert len(ids) == 0 or ends[-1] == len(encoded), "the pieces of a byte-level BPE are its text"
        starts = ends - self._bytes[ids]
        if len(encoded) == len(text):  # ASCII: bytes are characters
            return starts.astype(np.int32), ends.astype(np.int32)
        # The character that each byte belongs to: bytes 10xxxxxx continue one.
        character = np.cumsum((encoded & 0xC0) != 0x80) - 1
        return character[starts].astype(np.int32), (character[ends - 1] + 1).astype(np.int32)
