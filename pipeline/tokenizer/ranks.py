"""When a byte-level BPE's list of merges is the same thing as a table of ranks, and that table.

A tokenizer.json lists *pairs*: of all neighbours that are a pair of the list, the earliest in the list merge first,
the leftmost among equals. Fast engines keep *entries* with a rank instead: they merge any two neighbours whose joined
bytes are an entry, the lowest rank first, the leftmost among equals, and take a piece that is an entry whole. Both
give the same ids for every text if

1. each of the 256 bytes is an entry, so that no text holds anything unknown;
2. each merge joins bytes or entries of earlier merges, and no two merges make the same entry, so that a place in the
   list is a rank;
3. the list, applied to the bytes of each entry it makes, gives that entry.

For by (2) what a merge makes is only taken by later ones, so ranks are worked off in rising order. Suppose both have
done the same so far, and an engine now joins neighbours x and y to the entry t of rank r, the lowest there is. The
borders before x and after y have stood all along, so what happened between them is what the merges before r do to t's
bytes alone: they leave x, y. By (3) and (2) the list goes on from there to t by merge r and no other, so x, y is its
pair. Each pair of the list that could merge is one that the engine could merge too, at the same rank: r is the
lowest for the list as well, and it does the same next. Taking an entry whole is (3) itself.

`obstacle` checks (1), (2) and the settings that would change what a text's pieces are; `unreachable_entry` checks (3).
Neither is a sample: where both find nothing, an engine of ranks is right up to its own bugs.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

Settings = Mapping[str, Any]
"""A parsed tokenizer.json."""


@cache
def byte_characters() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, as vocabularies spell their entries."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    characters.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return characters


def entry_bytes(entry: str) -> bytes:
    """The bytes that a vocabulary's spelling stands for; UnicodeEncodeError where it is none."""
    return entry.translate(_LATIN).encode("latin-1")


_BETWEEN = "\n"  # stands for no byte, so it is in no entry
_ENTRIES = 1000
_LATIN = {ord(character): byte for character, byte in byte_characters().items()}


def obstacle(settings: Settings) -> str | None:
    """What keeps engines of ranks from giving the ids of this tokenizer.json, if anything is known to."""
    model = settings["model"]
    if settings["normalizer"] is not None:
        return f"its normalizer is {settings['normalizer']['type']}, expected none"
    splitter = settings["pre_tokenizer"] or {}
    if splitter.get("type") != "ByteLevel":
        return f"its pre-tokenizer is {splitter.get('type')}, expected ByteLevel alone"
    if splitter.get("add_prefix_space", True) or not splitter.get("use_regex", True):
        return "its pre-tokenizer puts a space before each text, or splits by no pattern"
    for setting in (
        "dropout",
        "ignore_merges",
        "byte_fallback",
        "continuing_subword_prefix",
        "end_of_word_suffix",
    ):
        if model.get(setting):
            return f"its model sets {setting} to {model[setting]!r}"
    ordinary = [token["content"] for token in settings["added_tokens"] if not token["special"]]
    if ordinary:
        return f"its added token {ordinary[0]!r} is not special, so it is cut out of texts"
    return _order_of_merges(model)


def _order_of_merges(model: Settings) -> str | None:
    vocabulary = model["vocab"]
    absent = [byte for character, byte in byte_characters().items() if character not in vocabulary]
    if absent:
        return f"byte 0x{absent[0]:02x} is not in its vocabulary"
    made = set(byte_characters())
    for left, right in model["merges"]:
        if left not in made or right not in made:
            return f"its merge of {left!r} and {right!r} joins what no earlier merge makes"
        if left + right in made:
            return f"its merge of {left!r} and {right!r} makes what an earlier merge makes"
        made.add(left + right)
    return None


def unreachable_entry(backend: tokenizers.Tokenizer, settings: Settings) -> str | None:
    """An entry that merges make, though they never give it for its own bytes."""
    bare = tokenizers.Tokenizer(backend.model)
    bare.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(_BETWEEN)  # each entry is a piece
    entries = [left + right for left, right in settings["model"]["merges"]]
    vocabulary = settings["model"]["vocab"]
    for start in range(0, len(entries), _ENTRIES):
        some = entries[start : start + _ENTRIES]
        [encoding] = bare.encode_batch_fast([_BETWEEN.join(some)], add_special_tokens=False)
        if encoding.ids != [vocabulary[entry] for entry in some]:
            return next(
                f"its merges make {entry!r}, but not of that entry's own bytes"
                for entry in some
                if bare.encode(entry, add_special_tokens=False).ids != [vocabulary[entry]]
            )
    return None


def rank_table(settings: Settings) -> tuple[dict[bytes, int], np.ndarray]:
    """The rank of each entry that texts can give, bytes first, then merges in their order; and the id of each rank,
    (ranks,) uint32."""
    entries = [*byte_characters(), *(left + right for left, right in settings["model"]["merges"])]
    ranks = {entry_bytes(entry): rank for rank, entry in enumerate(entries)}
    vocabulary = settings["model"]["vocab"]
    return ranks, np.array([vocabulary[entry] for entry in entries], dtype=np.uint32)
