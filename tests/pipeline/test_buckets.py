"""Inputs in object stores: real servers on this machine."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.fetch import Input, find_inputs, open_input, with_version
from pipeline.sources import SOURCES
from pipeline.sources.formats import accepts
from pipeline.sources.reading import read_documents
from pipeline.storage import open_storage
from tests.pipeline.conftest import command, write_config
from tests.pipeline.object_store import ObjectStore, Servers, object_stores, use

__all__ = ["object_stores"]


@pytest.fixture(params=["moto", "gcs"])
def store(request: Any, object_stores: Servers, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    running = object_stores.get(request.param)
    use(running, monkeypatch)
    return running


def find(path: str) -> list[Input]:
    found = find_inputs([path], lambda name: accepts(SOURCES["text"], name))
    return [with_version(item) for item in found]


def rows(first: int, count: int) -> bytes:
    return b"".join(
        b'{"text": "text number %d of them, long enough to stay"}\n' % (first + n) for n in range(count)
    )


def test_objects_folders_and_patterns(store: ObjectStore) -> None:
    folder = open_storage(f"{store.uri}/inputs")
    for name in ("a/1.jsonl", "a/2.jsonl", "a/b/3.jsonl", "a/b/cover.jpg", "a/.hidden/4.jsonl", "ab/5.jsonl"):
        folder.publish(name, rows(1, 3))
    found = {
        "a/1.jsonl": ["1.jsonl"],
        "a/": ["1.jsonl", "2.jsonl", "b/3.jsonl"],
        "a/*.jsonl": ["1.jsonl", "2.jsonl"],
        "a/**/*.jsonl": ["1.jsonl", "2.jsonl", "b/3.jsonl"],
        "a*/?.jsonl": ["a/1.jsonl", "a/2.jsonl", "ab/5.jsonl"],
        "a/[23].jsonl": ["2.jsonl"],
    }
    for path, keys in found.items():
        assert [item.key for item in find(f"{folder.uri}/{path}")] == keys
    assert all(item.version and item.bytes == len(rows(1, 3)) for item in find(f"{folder.uri}/a/"))
    for path, message in [
        ("a", "no such object; a folder's name ends with a slash"),
        ("c/", "no object of a format"),
        ("*.jsonl", "no object of a format"),
        ("a/b/cover.jpg", "not of a format this source reads"),
    ]:
        with pytest.raises(InputError, match=message):
            find(f"{folder.uri}/{path}")


def test_an_object_is_read_from_any_place_and_never_mixed(store: ObjectStore) -> None:
    folder = open_storage(f"{store.uri}/changing")
    folder.publish("a.jsonl", rows(1, 300_000))
    [item] = find(f"{folder.uri}/a.jsonl")
    documents = list(read_documents(SOURCES["text"](), item))
    assert len(documents) == 300_000
    position = documents[200_000][1]
    assert list(read_documents(SOURCES["text"](), item, start=position)) == documents[200_001:]
    stream = open_input(item)
    assert stream.read(10) == rows(1, 1)[:10]
    for content in (rows(2, 300_000), rows(1, 5)):
        folder.publish("a.jsonl", content)
        with pytest.raises(InputError, match=r"a\.jsonl: changed while the corpus was built"):
            list(read_documents(SOURCES["text"](), item))
    folder.remove("a.jsonl")
    with pytest.raises(InputError, match="changed while the corpus was built: it is gone"):
        list(read_documents(SOURCES["text"](), item))


def test_a_corpus_from_a_bucket(store: ObjectStore, small_tokenizer: Path, tmp_path: Path) -> None:
    folder = open_storage(f"{store.uri}/corpus-inputs")
    for number in range(3):
        folder.publish(f"{number}.jsonl", rows(number * 100, 100))
    source = {"kind": "text", "path": f"{folder.uri}/*.jsonl"}
    config = {"tokenizer": str(small_tokenizer), "sequence_length": 64, "sources": [source]}
    done = command(
        write_config(tmp_path / "c.yaml", config), tmp_path / "out", "--local", **store.environment
    )
    assert done.returncode == 0, done.stderr
    assert "sealed" in done.stdout + done.stderr
