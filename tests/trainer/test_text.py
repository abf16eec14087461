"""A text as ids: alphabets, splits, zips, remote files, and what is wrong with them."""

from __future__ import annotations

import gzip
import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pipeline.faulty_server import faulty_server
from trainer.batches.text import Alphabet, open_text, split_sizes
from trainer.engine.config import InputError

TEXT = "Stately, plump Buck Mulligan — naïve 🙂 — came from the stairhead.\n" * 50


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def zipped(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


@pytest.mark.parametrize("kind", ["bytes", "characters"])
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_read_is_what_was_there(kind: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "text"
    if packed:
        zipped(path, a=TEXT)
    else:
        path.write_text(TEXT, encoding="utf-8")
    for _ in range(2):  # written, and found
        text = open_text(path, kind)
        assert isinstance(text.ids, np.memmap)
        assert text.alphabet.decode(text.ids).decode() == TEXT
        assert len(text.ids) == (len(TEXT.encode()) if kind == "bytes" else len(TEXT))
        assert text.alphabet.size == (256 if kind == "bytes" else len(set(TEXT)))
        parts = [text.split(name) for name in ("train", "validation", "test")]
        assert np.array_equal(np.concatenate(parts), text.ids)
        assert np.array_equal(text.alphabet.encode(TEXT.encode()), text.ids)


def test_more_characters_than_a_byte_counts(tmp_path: Path) -> None:
    content = "".join(map(chr, range(0x4E00, 0x4E00 + 1000))) * 3
    (tmp_path / "t").write_text(content, encoding="utf-8")
    text = open_text(tmp_path / "t", "characters")
    assert text.ids.dtype == np.uint16
    assert text.alphabet.decode(text.ids).decode() == content


@given(st.text(min_size=1))
def test_an_alphabet_takes_its_own_characters_back(content: str) -> None:
    content = content.encode("utf-8", errors="ignore").decode() or "a"
    alphabet = Alphabet("characters", "".join(sorted(set(content))))
    assert alphabet.decode(alphabet.encode(content.encode())).decode() == content


def test_the_usual_split() -> None:
    assert split_sizes(100_000_000, 0.05, 0.05) == (90_000_000, 5_000_000, 5_000_000)
    assert split_sizes(1000, 100, 0) == (900, 100, 0)
    with pytest.raises(InputError, match="found 100 characters, expected more than the 60"):
        split_sizes(100, 60, 40)


def test_a_remote_file_is_fetched_once_and_an_interrupted_fetch_goes_on(cache: Path) -> None:
    content = np.random.default_rng(0).integers(97, 123, 3_000_000, dtype=np.uint8).tobytes()
    with faulty_server() as server:
        uri = server.serve("/text8", content, "", "drop 1000000")
        assert open_text(uri).ids.tobytes() == content
        asked = len(server.requests)
        assert open_text(uri).ids.tobytes() == content
        assert all(range_ in ("", "bytes=0-0") for _, range_, _ in server.requests[asked:]), (
            "it was fetched again"
        )
        # As a kill leaves it: a part, which is not asked for again.
        fetched = next((cache / "texts").glob("*/fetched"))
        fetched.with_suffix(".partial").write_bytes(content[:2_000_000])
        fetched.unlink()
        asked = len(server.requests)
        assert open_text(uri).ids.tobytes() == content
        assert [range_ for _, range_, _ in server.requests[asked:] if range_ not in ("", "bytes=0-0")] == [
            "bytes=2000000-2999999"
        ]


def test_zips_with_another_number_of_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found 2 files in the zip"):
        open_text(zipped(tmp_path / "z", a="a", b="b"))


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_damaged_zip_is_named_or_gives_its_text(method: int, tmp_path: Path) -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", method) as archive:
        archive.writestr("a", TEXT)
    chance = random.Random(0)
    path = tmp_path / "z"
    for _ in range(60):
        damaged = bytearray(whole.getvalue())
        for _ in range(chance.choice((1, 3))):
            damaged[chance.randrange(4, len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice((None, chance.randrange(8, len(damaged))))])
        try:
            found = open_text(path).ids.tobytes()
        except InputError as error:
            named = str(error).startswith(f"text: {path}: ")
        else:
            named = found == TEXT.encode()
        assert named


@pytest.mark.parametrize(
    ("said", "message"),
    [(0, "its file in the zip is empty"), (9999, "its file in the zip is shorter than"), (500, "Bad CRC-32")],
)
def test_a_zip_that_does_not_hold_what_it_says_is_named(said: int, message: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "z", a=TEXT)
    there = len(TEXT.encode()).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(there, said.to_bytes(4, "little")))
    with pytest.raises(InputError, match=f"text: {path}: {message}"):
        open_text(path)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"", "bytes", "empty"),
        (gzip.compress(b"text"), "bytes", "compressed \\(gzip\\)"),
        (b"fine \xff", "characters", "byte 6: no UTF-8; expected text, or vocabulary: bytes"),
        (b"x" * ((4 << 20) - 1) + "é".encode() + b"\xc3", "characters", f"byte {(4 << 20) + 2:,}: no UTF-8"),
        (b"PK\x03\x04 and nothing", "bytes", "not a zip"),
    ],
    ids=["empty", "gzip", "utf-8", "utf-8 across pieces", "zip"],
)
def test_what_is_no_text_is_named(content: bytes, kind: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(InputError, match=f"text: {tmp_path}/t: .*{message}"):
        open_text(tmp_path / "t", kind)


def test_a_character_that_the_model_does_not_know_is_named() -> None:
    with pytest.raises(InputError, match="character 3: found 'z', expected one of the 2"):
        Alphabet("characters", "ab").encode(b"abz")


def test_a_write_that_was_killed_is_made_again(tmp_path: Path, cache: Path) -> None:
    path = zipped(tmp_path / "z", a=TEXT)
    open_text(path, "characters")
    folder = next((cache / "texts").glob("*-characters"))
    (folder / "facts.json").unlink()
    (folder / "ids").write_bytes(b"half")
    text = open_text(path, "characters")
    assert text.alphabet.decode(text.ids).decode() == TEXT


def test_a_write_that_failed_leaves_nothing_in_the_cache(tmp_path: Path, cache: Path) -> None:
    path = zipped(tmp_path / "z", a="".join(map(str, range(100_000))))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"text: {path}: "):
        open_text(path)
    assert not list((cache / "texts").glob("*/*"))
