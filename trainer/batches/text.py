"""Plain text as one long array of character ids in memory maps, split in three: for the character language model.

    FILE or a zip of one, local or at http(s)://, s3://, gs:// or hf://  →  ids (T,), uint8 or uint16

Bytes of a plain local file are mapped where they lie. What is in an archive, remote, or of characters that are no
bytes is written once a machine to CACHE/texts, named by the content it comes from: a file there is whole, and a
download that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import lzma
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from tqdm import tqdm

from pipeline.errors import BuildError
from pipeline.fetch import Input, find_inputs, open_input, sequential
from pipeline.shards import file_sha256, write_atomically
from trainer.batches.cache import alone, default_cache, gigabytes, is_uri
from trainer.engine.config import InputError

Kind = Literal["bytes", "characters"]
SPLITS = ("train", "validation", "test")
DEFAULT_SHARE = 0.05  # of validation, and of test
PIECE = 4 << 20  # bytes read at one time
MOST_CHARACTERS = 1 << 16
_ZIP = b"PK\x03\x04"
# Trained on as bytes a compressed file is noise.
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"PK\x05\x06": "an empty zip",
}
# What reading a zip raises: damaged in its directory or its content, cut; encrypted, or of a kind that is not known.
_BAD_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


@dataclass(frozen=True)
class Alphabet:
    """What an id stands for: a byte, or one of `characters` (sorted, each once)."""

    kind: Kind
    characters: str = ""

    @property
    def size(self) -> int:
        return 256 if self.kind == "bytes" else len(self.characters)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of ids at rest."""
        return np.dtype(np.uint8 if self.size <= 256 else np.uint16)

    @cached_property
    def _points(self) -> np.ndarray:
        return code_points(self.characters)

    def encode(self, text: bytes) -> np.ndarray:
        """Ids (n,) of UTF-8 text; InputError names the first character that has none, and its place."""
        if self.kind == "bytes":
            return np.frombuffer(text, np.uint8)
        try:
            return self.of_characters(text.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"byte {error.start + 1:,}: no UTF-8, expected text of characters") from error

    def of_characters(self, text: str) -> np.ndarray:
        """As `encode`, of decoded text and an alphabet of characters."""
        points = code_points(text)
        ids = np.searchsorted(self._points, points)
        known = self._points[np.minimum(ids, self.size - 1)] == points
        if not known.all():
            place = int(np.argmin(known))
            raise InputError(
                f"character {place + 1:,}: found {text[place]!r}, expected one of the {self.size} that the model knows"
            )
        return ids.astype(self.dtype)

    def decode(self, ids: np.ndarray) -> bytes:
        """The text of ids, as UTF-8."""
        if self.kind == "bytes":
            return ids.astype(np.uint8).tobytes()
        return "".join(map(chr, self._points[ids].tolist())).encode("utf-8")


@dataclass(frozen=True)
class Text:
    """A text's ids and where its splits begin."""

    ids: np.ndarray
    """(T,), mapped."""
    alphabet: Alphabet
    sha256: str
    """Of the content that the ids are of."""
    sizes: tuple[int, int, int]
    """Characters of train, validation and test, which follow each other."""

    def split(self, name: str) -> np.ndarray:
        """The ids of a split, mapped."""
        number = SPLITS.index(name)
        start = sum(self.sizes[:number])
        return self.ids[start : start + self.sizes[number]]


def open_text(
    path: str | Path,
    vocabulary: Kind = "bytes",
    cache_dir: Path | None = None,
    validation: float = DEFAULT_SHARE,
    test: float = DEFAULT_SHARE,
) -> Text:
    """A text by its path or URI. `validation` and `test` take that many characters from its end, or that share of
    them where they are less than 1. InputError names what cannot be read, and where."""
    cache = (default_cache() if cache_dir is None else cache_dir.expanduser().absolute()) / "texts"
    try:
        ids, alphabet, sha256 = _ids(str(path), vocabulary, cache)
    except BuildError as error:
        raise InputError(f"text: {error}") from error
    except OSError as error:
        raise InputError(f"text: {path}: {error.strerror or error}") from error
    return Text(ids, alphabet, sha256, split_sizes(len(ids), validation, test))


def split_sizes(characters: int, validation: float, test: float) -> tuple[int, int, int]:
    """Characters of train, validation and test; of text8's and enwik8's 100M the usual 90M, 5M, 5M by default."""
    held = [round(part * characters) if part < 1 else int(part) for part in (validation, test)]
    train = characters - sum(held)
    if train < 1:
        raise InputError(
            f"text: found {characters:,} characters, expected more than the {held[0]:,} of text.validation and "
            f"{held[1]:,} of text.test"
        )
    return train, held[0], held[1]


def code_points(text: str) -> np.ndarray:
    """uint32 (n,)."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)


def _ids(path: str, vocabulary: Kind, cache: Path) -> tuple[np.ndarray, Alphabet, str]:
    stored = _fetched(path, cache) if is_uri(path) else Path(path).expanduser()
    with stored.open("rb") as file:
        head = file.read(8)
    if not head:
        raise InputError(f"text: {path}: empty, expected text")
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise InputError(f"text: {path}: compressed ({name}), expected plain text or a zip of one file")
    is_zip = head.startswith(_ZIP)
    if vocabulary == "bytes" and not is_zip:
        return np.memmap(stored, np.uint8, "r"), Alphabet("bytes"), file_sha256(stored)
    folder = cache / f"{file_sha256(stored)}-{vocabulary}"
    with alone(folder, path):
        if not (folder / "facts.json").is_file():
            for left in folder.iterdir():  # of a process that was killed
                left.unlink()
            try:
                _write(stored, path, is_zip, vocabulary, folder)
            except BaseException:
                (folder / "ids").unlink(missing_ok=True)  # a full disk would stay full
                raise
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    alphabet = Alphabet(vocabulary, facts["characters"])
    return np.memmap(folder / "ids", alphabet.dtype, "r"), alphabet, facts["sha256"]


def _write(stored: Path, path: str, is_zip: bool, vocabulary: Kind, folder: Path) -> None:
    """folder/ids, and facts.json when those are whole."""
    if is_zip:
        _check_room(stored, path, folder)
    alphabet = Alphabet(vocabulary)
    if vocabulary == "characters":
        found: set[str] = set()
        for text in _decoded(stored, path, is_zip):
            found.update(text)
            if len(found) > MOST_CHARACTERS:
                raise InputError(
                    f"text: {path}: more than {MOST_CHARACTERS:,} different characters; expected vocabulary: bytes"
                )
        alphabet = Alphabet(vocabulary, "".join(sorted(found)))
    digest = hashlib.sha256()
    with (folder / "ids").open("wb") as out:
        if vocabulary == "bytes":
            for piece in _pieces(stored, path, is_zip):
                digest.update(piece)
                out.write(piece)
        else:
            for text in _decoded(stored, path, is_zip):
                digest.update(text.encode("utf-8"))
                out.write(alphabet.of_characters(text).tobytes())
        out.flush()
        os.fsync(out.fileno())
    if not is_zip and not folder.name.startswith(digest.hexdigest()):
        raise InputError(f"text: {path}: was changed while it was read; the same command reads it anew")
    facts = {"characters": alphabet.characters, "sha256": digest.hexdigest()}
    write_atomically(folder / "facts.json", json.dumps(facts).encode())


def _decoded(stored: Path, path: str, is_zip: bool) -> Iterator[str]:
    decoder, before, left = codecs.getincrementaldecoder("utf-8")(), 0, 0
    for piece in chain(_pieces(stored, path, is_zip), [b""]):
        try:
            yield decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            raise InputError(
                f"text: {path}: byte {before + error.start + 1:,}: no UTF-8; expected text, or vocabulary: bytes"
            ) from error
        # What the piece ended in the middle of comes again before the next one.
        before, left = before + left + len(piece), len(decoder.getstate()[0])
        before -= left


def _pieces(stored: Path, path: str, is_zip: bool) -> Iterator[bytes]:
    """The text's bytes; of a zip those of its only file, which must be as many as its directory says."""
    if not is_zip:
        with stored.open("rb") as file:
            yield from iter(lambda: file.read(PIECE), b"")
        return
    with _only_file(stored, path) as (archive, info), archive.open(info) as member:
        left = info.file_size  # more is not read: zipfile stops there
        while piece := member.read(PIECE):
            left -= len(piece)
            yield piece
        if left:
            raise InputError(f"text: {path}: its file in the zip is shorter than the zip says")


@contextmanager
def _only_file(stored: Path, path: str) -> Iterator[tuple[zipfile.ZipFile, zipfile.ZipInfo]]:
    """A zip, open, and the one file in it; InputError also for what reading it in the block finds."""
    try:
        with zipfile.ZipFile(stored) as archive:
            files = [info for info in archive.infolist() if not info.is_dir()]
            if len(files) != 1:
                names = ", ".join(repr(info.filename[:80]) for info in files[:5])
                raise InputError(f"text: {path}: found {len(files)} files in the zip ({names}), expected one")
            if not files[0].file_size:
                raise InputError(f"text: {path}: its file in the zip is empty, expected text")
            yield archive, files[0]
    except _BAD_ZIP as error:
        raise InputError(f"text: {path}: {str(error) or 'the zip ends too soon'}") from error


def _check_room(stored: Path, path: str, folder: Path) -> None:
    """Before a zip is unpacked into `folder`."""
    with _only_file(stored, path) as (_, info):
        needed, free = info.file_size, shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"text.cache_dir: {folder} has no room for {path}: expected {gigabytes(needed)}, found {gigabytes(free)}"
        )


def _fetched(uri: str, cache: Path) -> Path:
    """The local copy of a remote file."""
    items = find_inputs([uri], lambda _: True)
    if len(items) != 1:
        raise InputError(f"text: {uri}: found {len(items)} files, expected one")
    item = items[0]
    name = hashlib.sha256(f"{item.uri}\n{item.version}\n{item.bytes}".encode()).hexdigest()
    target = cache / name / "fetched"
    with alone(target.parent, item.name):
        if not target.is_file():
            _download(item, target)
    return target


def _download(item: Input, target: Path) -> None:
    partial = target.with_suffix(".partial")
    have = min(partial.stat().st_size, item.bytes) if partial.exists() else 0
    stream: BinaryIO
    with partial.open("ab") as out, sequential(open_input(item), item, have) as stream:
        out.truncate(have)
        bar = tqdm(
            desc=f"fetching {item.name}",
            total=item.bytes,
            initial=have,
            unit="B",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
        )
        with bar:
            while piece := stream.read(1 << 20):
                out.write(piece)
                bar.update(len(piece))
        out.flush()
        os.fsync(out.fileno())
    if item.sha256 and (found := file_sha256(partial)) != item.sha256:
        partial.unlink()
        raise InputError(f"text: {item.name}: its sha256 is {found}, expected {item.sha256}")
    partial.replace(target)
