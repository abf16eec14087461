"""The shard format: what was written is read, mapped and not copied; damage is named."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.shards import (
    CorpusError,
    file_sha256,
    open_corpus,
    shard_schema,
    token_dtype,
    write_atomically,
    write_shard,
)

LENGTH = 8


def make_corpus(folder: Path, shards: int = 2, vocabulary_size: int = 500) -> Path:
    """Shards of three sequences each, whose ids count up."""
    entries = []
    for number in range(shards):
        ids = np.arange(3 * LENGTH).reshape(3, LENGTH) + 100 * number
        written = write_shard(
            folder / f"train/{number:05d}.arrow",
            shard_schema(LENGTH, vocabulary_size, "abc"),
            ids.astype(token_dtype(vocabulary_size)),
            [[0, 4], [0], [0, 2, 5]],
            [["a/1", "b/2"], ["b/2"], ["b/2", "a/3", "b/4"]],
            [[0, 0], [3], [9, 0, 0]],
            [["a", "b"], ["b"], ["b", "a", "b"]],
        )
        path = f"train/{number:05d}.arrow"
        entries.append({"path": path, "sha256": written.sha256, "bytes": written.bytes, "sequences": 3})
        assert file_sha256(folder / path) == written.sha256
    manifest = {
        "version": 1,
        "fingerprint": "f",
        "sequence_length": LENGTH,
        "tokenizer": {"fingerprint": "abc", "vocabulary_size": vocabulary_size, "special_ids": {"pad": 1}},
        "splits": {"train": {"shards": entries}, "validation": {"shards": []}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(("vocabulary_size", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_round_trip(tmp_path: Path, vocabulary_size: int, dtype: type) -> None:
    corpus = open_corpus(make_corpus(tmp_path, vocabulary_size=vocabulary_size), verify=True)
    assert len(corpus) == 6
    assert corpus.pad_id == 1
    for index in range(6):
        ids = corpus.input_ids(index)
        assert ids.dtype == dtype
        assert ids.tolist() == list(
            range(100 * (index // 3) + 8 * (index % 3), 100 * (index // 3) + 8 * (index % 3) + 8)
        )
    assert corpus.document_starts(5).tolist() == [0, 2, 5]
    assert corpus.document_starts(5).dtype == np.int32
    assert corpus.document_offsets(2).tolist() == [9, 0, 0]
    assert corpus.documents(3) == ["a/1", "b/2"]
    assert corpus.sources(1) == ["b"]
    with pytest.raises(IndexError, match="no number 6"):
        corpus.input_ids(6)
    assert len(open_corpus(tmp_path, "validation")) == 0


def test_rows_are_views_of_the_map(tmp_path: Path) -> None:
    corpus = open_corpus(make_corpus(tmp_path))
    ids = corpus.input_ids(1)
    assert not ids.flags.owndata
    assert not ids.flags.writeable
    assert corpus.input_ids(1).ctypes.data == ids.ctypes.data


def test_damage_is_named(tmp_path: Path) -> None:
    shard = make_corpus(tmp_path) / "train/00001.arrow"
    content = shard.read_bytes()
    with pytest.raises(CorpusError, match="no split 'test'"):
        open_corpus(tmp_path, "test")
    shard.write_bytes(content[:-100])
    with pytest.raises(CorpusError, match=r"00001\.arrow: has [\d,]+ bytes, the manifest says"):
        open_corpus(tmp_path)
    shard.write_bytes(bytes(len(content)))
    with pytest.raises(CorpusError, match=r"00001\.arrow: not a readable Arrow file"):
        open_corpus(tmp_path)
    changed = bytearray(content)
    changed[content.index(np.arange(100, 108, dtype=np.uint16).tobytes())] ^= 1
    shard.write_bytes(changed)
    assert len(open_corpus(tmp_path)) == 6  # nothing to see without reading it all
    with pytest.raises(CorpusError, match=r"00001\.arrow: its sha256"):
        open_corpus(tmp_path, verify=True)
    shard.unlink()
    with pytest.raises(CorpusError, match=r"00001\.arrow: missing"):
        open_corpus(tmp_path)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    make_corpus(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    for key, value, message in (
        ("sequence_length", 16, "not a shard of this corpus"),
        ("version", 2, "format version 2, expected 1"),
        ("splits", {"train": {}}, "damaged"),
    ):
        path.write_text(json.dumps({**manifest, key: value}))
        with pytest.raises(CorpusError, match=message):
            open_corpus(tmp_path)
    path.write_text("{")
    with pytest.raises(CorpusError, match=r"manifest\.json: not readable as JSON"):
        open_corpus(tmp_path)
    path.unlink()
    with pytest.raises(CorpusError, match=r"manifest\.json: missing"):
        open_corpus(tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    written = write_atomically(tmp_path / "a", b"old")
    assert written.sha256 == hashlib.sha256(b"old").hexdigest()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "folder", b"a folder is in the way")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "folder"]
