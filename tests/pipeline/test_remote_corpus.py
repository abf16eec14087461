"""A corpus in an object store is the corpus in the folder it was copied from."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.shards import CorpusError, open_corpus, read_manifest
from pipeline.storage import open_storage
from pipeline.storage.objects import ObjectStorage
from tests.pipeline.object_store import Servers, object_stores, use

__all__ = ["object_stores"]  # a fixture


@pytest.fixture(params=("moto", "gcs"))
def remote(
    request: pytest.FixtureRequest,
    built: tuple[dict[str, Any], Path],
    object_stores: Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> ObjectStorage:
    """The small corpus, published again."""
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    store = object_stores.get(request.param)
    use(store, monkeypatch)
    storage = open_storage(f"{store.uri}/{tmp_path.name}/corpus")
    for path in built[1].rglob("*"):
        if path.is_file():
            storage.publish(path.relative_to(built[1]).as_posix(), path.read_bytes())
    assert isinstance(storage, ObjectStorage)
    return storage


def test_every_row_is_the_same(
    remote: ObjectStorage, built: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    assert read_manifest(remote.uri) == read_manifest(built[1]) == read_manifest(f"file://{built[1]}")
    for split in ("train", "validation"):
        here, there = open_corpus(built[1], split), open_corpus(remote.uri, split)
        assert len(here) == len(there) > 0
        assert here.fingerprint == there.fingerprint
        if split == "train":
            assert not list((tmp_path / "cache").rglob("*"))  # nothing was fetched that nobody asked for
        for index in range(len(here)):
            assert (here.input_ids(index) == there.input_ids(index)).all()
            assert here.documents(index) == there.documents(index)
            assert here.document_offsets(index).tolist() == there.document_offsets(index).tolist()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (there.folder / name).read_bytes() == (built[1] / name).read_bytes()
    assert there.folder.is_relative_to(tmp_path / "cache")
    with pytest.raises(IndexError, match=f"{remote.uri} has {len(there)}"):
        there.input_ids(len(there))
    assert len(open_corpus(remote.uri, verify=True)) == len(open_corpus(built[1]))


def test_damage_is_named_and_left(remote: ObjectStorage) -> None:
    name = read_manifest(remote.uri)["splits"]["train"]["shards"][0]["path"]
    content = remote.read(name)
    remote.publish(name, content[:100] + bytes([content[100] ^ 1]) + content[101:])
    corpus = open_corpus(remote.uri)
    with pytest.raises(CorpusError, match=f"{name}: its sha256 is"):
        corpus.input_ids(0)
    with pytest.raises(CorpusError, match=f"{name}: its sha256 is"):
        open_corpus(remote.uri, verify=True)
    assert remote.size(name) == len(content)
    remote.publish(name, content[:-1])
    with pytest.raises(CorpusError, match=f"{name}: has {len(content) - 1:,} bytes, the manifest says"):
        open_corpus(remote.uri)
    remote.remove(name)
    with pytest.raises(CorpusError, match=f"{name}: missing, though the manifest lists it"):
        open_corpus(remote.uri)


def test_what_is_no_corpus_is_refused(remote: ObjectStorage) -> None:
    with pytest.raises(CorpusError, match=f"{remote.uri}/train/manifest.json: missing; not a corpus"):
        open_corpus(f"{remote.uri}/train")
    with pytest.raises(CorpusError, match=r"no split 'test', it has train, validation"):
        open_corpus(remote.uri, "test")
    remote.publish("manifest.json", b"{")
    with pytest.raises(CorpusError, match=f"{remote.uri}/manifest.json: not readable as JSON"):
        open_corpus(remote.uri)
    remote.publish("manifest.json", json.dumps({"version": 77}).encode())
    with pytest.raises(CorpusError, match="format version 77"):
        read_manifest(remote.uri)
    with pytest.raises(CorpusError, match="unknown scheme"):
        open_corpus("ftp://host/corpus")
