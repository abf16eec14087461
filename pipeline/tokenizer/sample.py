"""Texts on which an engine must give the reference's ids before anything is encoded with it.

Each family is one in which implementations of GPT-2's splitting or of BPE have been seen to differ.
"""

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.tokenizer.ranks import entry_bytes

_WRITTEN = (
    "",
    " ",
    "\n",
    "a",
    "  leading and trailing blanks \t ",
    "It's we're I'll you've he'd I'm don't 'tis 'S 'LL 'Re '' ' s 't' x'sy 's's's rock'n'roll",
    "it’s ’tis “quoted” ‘single’ — dash – dash … «guillemets» 100 % §5 № 9",
    "0 1 12 123 1234567890 3.14159 1,000,000 ٣٤٥ ४५६ Ⅷ ½ ² x2y3 2nd 0x1F 1e-9 ①②",
    "a  b   c    d\t\te\n\nf\r\ng \n h\v\fi\u0085j\u00a0k\u2003l\u2028m\u2029n\u3000o\u200bp\ufeffq",
    " \n \n\n  \n   x",
    "x \n",
    "x  ",
    "\n\nx",
    "\t x",
    "\u00a0x",
    "\u2003 x\u2003",
    "x\u3000\u3000y",
    "\x00\x01\x02\x1c\x1d\x1e\x1f\x7f\x80\x9f NUL\x00inside\x00 \x00",
    "<s> </s> <pad><unk> <mask> <mask><mask> Paris is the <mask>of France.</s></s><|endoftext|>madeupword0000",
    "😀😃 👩‍👩‍👧‍👦 👍🏽 🇫🇷🇩🇪 ❤️ #️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 a😀b ☃",
    "é e\u0301 ñ n\u0303 ọ̈ Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤a̴̵̞l͈̙ģ̵̜ÃÅ Åström ﬁ ﬀ ß ẞ İi ıI ǅ ŉ",
    "日本語のテキスト。漢字とかな、ｶﾀｶﾅ 中文，标点！한국어 문장 ㄱㄴ 𠀀𪜎 ไทยไม่มีช่องว่าง ខ្មែរ မြန်မာ",
    "العربية مِن اليمين ١٢٣ עברית וְנִקּוּד फ़ारसी हिन्दी தமிழ் বাংলা ქართული Ελληνικά Русский язык Հայերեն ᏣᎳᎩ",
    "\u202eRTL override\u202c \u200fmarks\u200e \u2066isolate\u2069 soft\u00adhyphen word\u2060joiner zero\u200dwidth",
    "\ufffd\ufffe\uffff\ue000\U0001fffe\U0010ffff\U000e0001\ud7ff\u0378\U0001f8ff",
    "https://example.org/a_b?c=d&e=%20#f user@example.org C:\\path\\file.txt __init__ a->b x!=y /* c */ {{[[(())]]}}",
    "CamelCaseWord snake_case kebab-case ALLCAPS mixedCASEword I.B.M. U.S.A. e.g. Mr. don't.stop",
    "=-=-=- ***** ~~~~ ........ !!!??? ---|--- \\\\\\ \"\"\"\" ''''' ``` $$$ a.b,c;d:e",
)
_RUNS = (
    " ",
    "\n",
    "\t",
    "\r\n",
    " \n",
    "a",
    "A",
    "0",
    "=",
    "'",
    "'s",
    ".",
    "é",
    "漢",
    "😀",
    "\u0301",
    "\u3000",
    "\x00",
    "ab ",
)
_SHORT_RUNS, _LONG_RUNS = (2, 3, 7, 16, 33), (101, 257, 1001)
_BEFORE_AND_AFTER = (("", ""), ("x", "x"), (" ", "1"), ("\n", " "))
_TEXT_CHARACTERS = 4_000
_KINDS = ("L", "N", "Z")
"""Categories that GPT-2's pattern tells apart: letters, numbers and (with a few others) blanks."""


def sample_texts(vocabulary: Mapping[str, int], merges: Any, share: int = 1) -> list[str]:
    """Texts to try an engine on, about a quarter of a megabyte; `share` 8 takes an eighth of the characters, and of
    the entries that are taken."""
    texts = list(_WRITTEN)
    for unit in _RUNS:
        for length in _SHORT_RUNS:
            texts.extend(before + unit * length + after for before, after in _BEFORE_AND_AFTER)
        texts.extend(unit * length + "x" for length in _LONG_RUNS)
    texts.extend(_in_texts(f"a{c}1{c}{c} {c}" for c in _characters(share)))
    made = {left + right for left, right in merges}
    for entry in vocabulary:
        if len(entry) > 1 and entry not in made:  # what no merge makes must not come out whole
            text = _text_of(entry)
            texts.extend((text, f" {text}", f"{text} {text}"))
    entries = [_text_of(entry) for entry in list(vocabulary)[:: 3 * share]]
    texts.extend(_in_texts(_scattered(entries)))
    return texts


def _characters(share: int) -> Iterator[str]:
    """Where Python's table of categories changes, and the first of every sixteen: scripts are added in such
    columns, and engines carry tables of other Unicode versions."""
    codes = np.array([*range(0xD800), *range(0xE000, 0x20000)])
    categories = np.array(list(map(unicodedata.category, map(chr, codes.tolist()))), dtype="U2")
    kinds = categories.view("U1")[::2]  # the first letter
    kinds = np.where(np.isin(kinds, _KINDS), kinds, "")
    changes = np.flatnonzero(kinds[1:] != kinds[:-1]) + 1
    columns = np.flatnonzero(codes % (16 * share) == 0)
    for place in np.union1d(changes, columns):
        yield chr(codes[place])
    for code in (0x20000, 0x2A6DF, 0x2EBE0, 0x30000, 0x323AF, 0x3FFFD, 0xE0001, 0xE01EF, 0xF0000, 0x10FFFD):
        yield chr(code)


def _scattered(entries: list[str]) -> Iterator[str]:
    """Entries in an order in which neighbours have nothing to do with each other, some with a blank between, so
    that merges meet what they were not trained on."""
    count = len(entries)
    for place in range(count):
        yield entries[place * 7919 % count] + (" " if place % 3 == 0 else "")


def _in_texts(parts: Iterator[str]) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= _TEXT_CHARACTERS:
            yield "".join(held)
            held, size = [], 0
    yield "".join(held)


def _text_of(entry: str) -> str:
    try:
        return entry_bytes(entry).decode("utf-8", errors="replace")
    except UnicodeEncodeError:  # an added token, spelled as it is
        return entry
