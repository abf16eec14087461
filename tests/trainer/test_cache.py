"""A corpus in an object store is copied once, whole or not at all, whatever happens on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.storage import Storage, open_storage
from tests.pipeline.object_store import Servers, object_stores, use
from trainer.batches import cache
from trainer.batches.cache import local_corpus
from trainer.batches.corpus import open_sequences
from trainer.engine.config import InputError
from trainer.evaluate import main as evaluate_main

__all__ = ["object_stores"]  # a fixture


@pytest.fixture(params=("moto", "gcs"))
def remote(
    request: pytest.FixtureRequest,
    corpus: Path,
    object_stores: Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Storage:
    """The small corpus in a bucket."""
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "default"))
    store = object_stores.get(request.param)
    use(store, monkeypatch)
    storage = open_storage(f"{store.uri}/{tmp_path.name}/corpus")
    for path in corpus.rglob("*"):
        if path.is_file():
            storage.publish(path.relative_to(corpus).as_posix(), path.read_bytes())
    return storage


def shards(storage: Storage, split: str = "train") -> list[str]:
    return [entry["path"] for entry in json.loads(storage.read("manifest.json"))["splits"][split]["shards"]]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_copy_is_the_corpus(remote: Storage, corpus: Path, tmp_path: Path) -> None:
    here = open_sequences(corpus, "train", 64)
    there = open_sequences(remote.uri, "train", 64, tmp_path / "cache")
    indices = np.arange(len(here))
    assert len(here) == len(there)
    assert np.array_equal(here.input_ids(indices), there.input_ids(indices))
    assert there.corpus.fingerprint == here.corpus.fingerprint
    folder = there.corpus.folder
    assert folder.parent == tmp_path / "cache" / "corpora"
    # Only the split that was asked for; the other one on demand, beside it.
    small = {"manifest.json", "tokenizer.json", "tokenizer_config.json"}
    assert files(folder) == small | set(shards(remote))
    before = {name: (folder / name).stat().st_mtime_ns for name in shards(remote)}
    assert local_corpus(remote.uri, ["train", "validation"], tmp_path / "cache") == folder
    assert files(folder) == small | set(shards(remote)) | set(shards(remote, "validation"))
    assert before == {name: (folder / name).stat().st_mtime_ns for name in before}


def test_folders_stay_where_they_are(corpus: Path, tmp_path: Path) -> None:
    assert local_corpus(corpus, ["train"]) == corpus
    assert local_corpus(f"file://{corpus}", ["train"], tmp_path) == corpus
    assert not list(tmp_path.iterdir())


def test_the_default_cache_is_the_pipeline_s(remote: Storage, tmp_path: Path) -> None:
    assert local_corpus(remote.uri, ["train"]).parent == tmp_path / "default" / "corpora"


def test_a_killed_copy_leaves_no_file_under_its_final_name_and_goes_on(
    remote: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "cache"
    script = (
        "import sys, time; from pathlib import Path; from trainer.batches import cache\n"
        "advance = cache._Progress.advance\n"
        # After the bytes of one file are there, and before it has its name.
        "cache._Progress.advance = lambda *a: (advance(*a), print('half', flush=True), time.sleep(60))\n"
        f"cache.local_corpus({remote.uri!r}, ['train'], Path({str(target)!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ.copy())
    assert process.stdout is not None
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = [path for path in (target / "corpora").iterdir() if path.is_dir()]
    assert files(folder)
    assert all(name.endswith(cache.PARTIAL) for name in files(folder))
    assert len(open_sequences(remote.uri, "train", None, target)) > 0
    assert not any(name.endswith(cache.PARTIAL) for name in files(folder))


def test_finished_files_are_kept(remote: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = local_corpus(remote.uri, ["train", "validation"], tmp_path)
    missing = folder / shards(remote)[0]
    missing.unlink()
    fetched = []
    copy_one = cache._copy_one
    monkeypatch.setattr(cache, "_copy_one", lambda *a: (fetched.append(a[1].path), copy_one(*a)))
    local_corpus(remote.uri, ["train", "validation"], tmp_path)
    assert fetched == [shards(remote)[0]]
    assert missing.is_file()


def test_one_copies_and_the_others_wait(
    remote: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Locks of flock belong to open files, so threads stand for the processes of a node here."""
    fetched: list[str] = []
    copy_one = cache._copy_one

    def slowly(*arguments: object) -> None:
        fetched.append(arguments[1].path)  # type: ignore[attr-defined]
        time.sleep(0.3)
        copy_one(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "_copy_one", slowly)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(local_corpus(remote.uri, ["train"], tmp_path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert sorted(fetched) == sorted(shards(remote))
    assert "waiting for another process that prepares" in capsys.readouterr().err


def test_damage_is_named_and_never_gets_a_name(remote: Storage, tmp_path: Path) -> None:
    name = shards(remote)[0]
    content = remote.read(name)
    remote.publish(name, content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(InputError, match=rf"{name}: found the sha256 \w+, expected \w+ as the manifest says"):
        local_corpus(remote.uri, ["train"], tmp_path)
    for wrong in (content[:-1], content + b"x"):
        remote.publish(name, wrong)
        with pytest.raises(InputError, match=rf"{name}: found [\d,]+ bytes, expected {len(content):,}"):
            local_corpus(remote.uri, ["train"], tmp_path)
    remote.remove(name)
    with pytest.raises(InputError, match=rf"corpus: .*{name}"):
        local_corpus(remote.uri, ["train"], tmp_path)
    assert not any(path.suffix in (".arrow", cache.PARTIAL) for path in tmp_path.rglob("*"))
    assert not list(tmp_path.rglob("manifest.json"))
    remote.publish(name, content)
    assert (local_corpus(remote.uri, ["train"], tmp_path) / name).read_bytes() == content


def test_another_tokenizer_is_refused(remote: Storage, tmp_path: Path) -> None:
    tokenizer = json.loads(remote.read("tokenizer.json"))
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary, key=vocabulary.get)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    remote.publish("tokenizer.json", json.dumps(tokenizer).encode())
    with pytest.raises(InputError, match=r"tokenizer\.json: found the tokenizer .*, expected "):
        local_corpus(remote.uri, ["train"], tmp_path)


def test_a_corpus_built_anew_is_another_folder(remote: Storage, tmp_path: Path) -> None:
    first = local_corpus(remote.uri, ["train"], tmp_path)
    manifest = json.loads(remote.read("manifest.json"))
    remote.publish("manifest.json", json.dumps(manifest | {"fingerprint": "other"}).encode())
    second = local_corpus(remote.uri, ["train"], tmp_path)
    assert first != second
    assert open_sequences(remote.uri, "train", None, tmp_path).corpus.fingerprint == "other"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB, where this machine lets us mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_no_room_is_said_before_and_while_copying(
    remote: Storage, full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = r"data\.cache_dir: .* has no room for .*: expected [\d,.]+ (bytes|GB) for .*, found"
    with pytest.raises(InputError, match=expected):
        local_corpus(remote.uri, ["train"], full_disk)
    # Somebody else fills the disk after it was looked at.
    free = type("Usage", (), {"free": 10**12})
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: free)
    with pytest.raises(InputError, match=expected):
        local_corpus(remote.uri, ["train"], full_disk)
    assert not any(path.suffix in (".arrow", cache.PARTIAL) for path in full_disk.rglob("*"))


def test_what_is_no_corpus_is_one_message(
    remote: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for uri, message in (
        (f"{remote.uri}/nothing", "missing; not a corpus"),
        ("ftp://host/corpus", "unknown scheme"),
    ):
        with pytest.raises(InputError, match=message):
            local_corpus(uri, ["train"], tmp_path)
        assert evaluate_main(["--model", str(tmp_path), "--corpus", uri]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
