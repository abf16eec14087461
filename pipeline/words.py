"""Text as arrays: kinds of characters and hashed words, a hundred MB and more of text a second.

Characters are those of Unicode. A *word* is a run of letters and digits with whatever marks are written over them;
everything else parts words. In scripts that put no space between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer)
each character is a word. Words are compared as 64-bit hashes of their lower-case letters.
"""

import string
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

SYMBOL, LETTER, DIGIT, SPACE = range(4)

_PIECE = 1 << 15
"""Characters at a time: what stays in the processor's caches, whatever the length of a document."""
_UNICODE = 0x110000
_LISTED = 0x20000
"""Characters from here on are looked at one by one in no table: ideographs, a few marks, nothing else of use."""
_SPACELESS = (
    (0x0E00, 0x0F00),  # Thai, Lao
    (0x1000, 0x10A0),  # Burmese
    (0x1780, 0x1800),  # Khmer
    (0x3040, 0x3100),  # kana
    (0x31F0, 0x3200),
    (0x3400, 0x4DC0),  # ideographs
    (0x4E00, 0xA000),
    (0xF900, 0xFB00),
    (0x20000, 0x323B0),
)
_ASCII = {
    LETTER: string.ascii_letters.encode(),
    SPACE: bytes(code for code in range(128) if chr(code).isspace()),
    DIGIT: string.digits.encode(),
}
_BASE = 0x9E3779B97F4A7C15
_NGRAM_BASE = np.uint64(0xD1342543DE82EF95)


def pieces(text: str, size: int = _PIECE) -> Iterator[str]:
    """The text in parts of at most `size` characters that end at white space, where there is any."""
    start = 0
    while len(text) - start > size:
        end = max(text.rfind(" ", start, start + size), text.rfind("\n", start, start + size)) + 1
        end = end or start + size
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def code_points(text: str) -> np.ndarray:
    """(characters,) uint8 where all are ASCII, else uint32."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def kinds(text: str) -> np.ndarray:
    """(characters,) uint8: LETTER (with marks, which belong to the letter before them), DIGIT, SPACE or SYMBOL."""
    codes = code_points(text)
    space = (codes - 9 < 5) | (codes - 28 < 5)  # of unsigned integers: 9 to 13, 28 to 32
    digit = codes - 48 < 10
    letter = (codes | 32) - 97 < 26
    found = letter * np.uint8(LETTER) + digit * np.uint8(DIGIT) + space * np.uint8(SPACE)
    if codes.dtype != np.uint8:
        rare = np.flatnonzero(codes > 127)
        found[rare] = _kinds()[codes[rare]]
    return found


def count_kinds(text: str) -> list[int]:
    """How many characters of each kind, SYMBOL first."""
    counts = [0, 0, 0, 0]
    rest = text.encode("utf-8", "surrogatepass")
    for kind, members in _ASCII.items():  # the most of a text first: what is left to look at is little
        left = rest.translate(None, members)
        counts[kind] = len(rest) - len(left)
        rest = left
    if rest.isascii():
        counts[SYMBOL] += len(rest)
    else:
        for character, count in Counter(rest.decode("utf-8", "surrogatepass")).items():
            counts[_kinds()[ord(character)]] += count
    return counts


def hash_words(text: str) -> np.ndarray:
    """(words,) uint64: equal where the words are, but for case."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    parts = [_hash_piece(piece) for piece in pieces(text)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def hash_ngrams(words: np.ndarray, ngram: int) -> np.ndarray:
    """(words - ngram + 1,) uint64, or none: a hash of the n-gram of hashed words that starts at each."""
    return next(hash_several_ngrams(words, (ngram,)))


def hash_several_ngrams(words: np.ndarray, ngrams: Sequence[int]) -> Iterator[np.ndarray]:
    """`hash_ngrams` of each of the lengths `ngrams`, which ascend. Different lengths have different hashes."""
    hashes = words.copy()
    length = 1
    for ngram in ngrams:
        for place in range(length, ngram):
            hashes = hashes[: max(0, len(words) - place)]
            hashes *= _NGRAM_BASE
            hashes += words[place:]
        length = ngram
        yield _mix(hashes + np.uint64(ngram * _BASE & 0xFFFFFFFFFFFFFFFF))


def _hash_piece(piece: str) -> np.ndarray:
    letters, alone = _fold(code_points(piece))
    inside = np.zeros(len(letters) + 2, dtype=bool)
    inside[1:-1] = letters != 0
    borders = inside[1:] != inside[:-1]
    if alone is None:
        edges = np.flatnonzero(borders)
        starts, ends = edges[::2], edges[1::2]
    else:  # a border on both sides of each character that is a word
        single = np.zeros(len(inside), dtype=bool)
        single[1:-1][alone] = True
        borders |= single[1:] | single[:-1]
        starts, ends = np.flatnonzero(borders & inside[1:]), np.flatnonzero(borders & inside[:-1])
    # A polynomial over the letters of each word, from the sums over the letters before its start and its end.
    powers, inverses = _powers()
    sums = np.zeros(len(letters) + 1, dtype=np.uint64)
    terms = letters.astype(np.uint64)
    terms *= powers[: len(letters)]
    np.cumsum(terms, out=sums[1:])
    return _mix((sums[ends] - sums[starts]) * inverses[starts])


def _fold(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(characters,) of the type of `codes`: the lower-case letter, or digit, for each, 0 for what is no part of a
    word; and the places of the characters that are words, None where there are none."""
    lower = codes | 32
    letters = np.where(lower - 97 < 26, lower, codes * (codes - 48 < 10))
    if codes.dtype == np.uint8:
        return letters, None
    rare = np.flatnonzero(codes > 127)
    found = codes[rare]
    letters[rare] = _letters()[found]
    alone = rare[_spaceless()[found]]
    return letters, alone if len(alone) else None


def _mix(hashes: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, in place: a permutation of the 64-bit integers."""
    hashes ^= hashes >> np.uint64(30)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)
    return hashes


@cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """(piece,) uint64 each: the powers of an odd base and of its inverse, modulo 2**64."""
    found = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        factors = np.full(_PIECE, base, dtype=np.uint64)
        factors[0] = 1
        found.append(np.multiply.accumulate(factors))
    return found[0], found[1]


@cache
def _kinds() -> np.ndarray:
    found = np.zeros(_UNICODE, dtype=np.uint8)
    found[:_LISTED] = [_kind(chr(code)) for code in range(_LISTED)]
    found[0x20000:0x323B0] = LETTER  # ideographs
    found[0xE0100:0xE01F0] = LETTER  # marks
    return found


def _kind(character: str) -> int:
    if character.isalpha() or unicodedata.category(character)[0] == "M":
        return LETTER
    if character.isalnum():
        return DIGIT
    return SPACE if character.isspace() else SYMBOL


@cache
def _letters() -> np.ndarray:
    found = np.arange(_UNICODE, dtype=np.uint32)
    lower = [chr(code).lower() for code in range(_LISTED)]
    found[:_LISTED] = [ord(c) if len(c) == 1 else code for code, c in enumerate(lower)]
    found[(_kinds() == SYMBOL) | (_kinds() == SPACE)] = 0
    return found


@cache
def _spaceless() -> np.ndarray:
    found = np.zeros(_UNICODE, dtype=bool)
    for first, end in _SPACELESS:
        found[first:end] = True
    return found & (_letters() != 0)
