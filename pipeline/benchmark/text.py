"""The text that is measured on: real where it is at hand, else made up."""

import gzip
import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

MINIMUM_BYTES = 200
"""The length filter's limit. Every document here is longer: what is measured is its cost, and every method has the
same ids."""

LEXICON = 60_000
LETTERS = np.array(list("etaoinshrdlucmfwypvbgkqjxzéß"))
LETTER_SHARES = 1 / np.arange(2, 2 + len(LETTERS))

REPLACED = 0.1
"""The share of words that another takes the place of where a text is used again, one in five of them of letters never
seen: engines keep the words they met, and so a text's second pass says nothing about a large corpus."""


def write_text(file: Path, megabytes: float, folder: Path | None = None, seed: int = 0) -> int:
    """Writes about so many MB of documents, a JSON row each; returns the bytes of text.

    Args:
        folder: real text, as ../shared/data holds it; made-up words where it is None.
        seed: another gives other texts; 0 the real ones first.
    """
    texts = _varied(real_texts(folder), seed) if folder else made_up_texts(seed)
    written = 0
    with file.open("w", encoding="utf-8") as rows:
        for number, text in enumerate(texts):
            rows.write(json.dumps({"id": f"{number}", "text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode())
            if written >= megabytes * 1e6:
                return written
    raise AssertionError("texts do not end")


def read_texts(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as rows:
        return [json.loads(row)["text"] for row in rows]


def real_texts(folder: Path) -> list[str]:
    """Stories, articles, speeches and chapters of books. What has special tokens written out in it is left out:
    the peers would read them as such."""
    texts = []
    for packed in ("stories/short_fiction.jsonl.gz", "wikipedia/enwiki_106_articles_plain.jsonl.gz"):
        texts += [
            json.loads(row)["text"] for row in gzip.decompress((folder / packed).read_bytes()).splitlines()
        ]
    with zipfile.ZipFile(io.BytesIO((folder / "realnews/nltk_state_union.zip").read_bytes())) as archive:
        names = [name for name in archive.namelist() if name.endswith(".txt")]
        texts += [archive.read(name).decode("utf-8", errors="replace") for name in sorted(names)]
    for book in sorted((folder / "books").glob("*.txt")):
        texts += re.split(r"(?<=\n)(?=CHAPTER|Chapter|Letter)", book.read_text(encoding="utf-8-sig"))
    kept = [text for text in texts if len(text.encode()) > MINIMUM_BYTES and not re.search(r"</?\w+>", text)]
    order = np.random.default_rng(0).permutation(len(kept))  # any part of it holds some of each
    return [kept[index] for index in order]


def _varied(texts: Sequence[str], seed: int) -> Iterator[str]:
    """The texts as they are, where the seed is 0, then again and again with words exchanged."""
    if seed == 0:
        yield from texts
    random = np.random.default_rng(seed)
    split = [re.split(r"(?<=\s)(?=\S)", text) for text in texts]
    known = np.unique(np.array([word for words in split for word in words[::7]], dtype=object))
    while True:
        for words in split:
            changed = list(words)
            for place in np.flatnonzero(random.random(len(words)) < REPLACED):
                changed[place] = str(known[random.integers(len(known))])
                if random.random() < 0.2:
                    changed[place] = "".join(LETTERS[random.integers(0, len(LETTERS), 7)]) + " "
            yield "".join(changed)


def made_up_texts(seed: int) -> Iterator[str]:
    """Words of random letters, some frequent and most rare, in sentences."""
    random = np.random.default_rng(seed)
    letters = random.choice(LETTERS, (LEXICON, 14), p=LETTER_SHARES / LETTER_SHARES.sum())
    lengths = 1 + random.binomial(13, np.linspace(0.1, 0.6, LEXICON))  # rare words are longer
    words = np.array(["".join(row[:length]) for row, length in zip(letters, lengths, strict=True)])
    shares = 1 / np.arange(10, 10 + LEXICON)
    while True:
        drawn = random.choice(words, int(random.integers(100, 2000)), p=shares / shares.sum())
        ends = random.random(len(drawn)) < 0.08
        parts = [f"{word}. " if end else f"{word} " for word, end in zip(drawn, ends, strict=True)]
        yield ". ".join(sentence.capitalize() for sentence in "".join(parts).split(". "))
