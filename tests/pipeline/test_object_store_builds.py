"""Builds whose work and output lie in object stores, on real servers: the bytes of a local build, also after kills."""

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage import open_storage
from pipeline.verify.__main__ import main as verify
from tests.pipeline.conftest import ROOT, contents, environment, write_config
from tests.pipeline.object_store import ObjectStore, Servers, object_stores, use
from tests.pipeline.test_interruption import KILLS, SEED, kill_tree

__all__ = ["object_stores"]  # a fixture

# With leases that end sooner: whoever comes after a killed build waits for that.
COMMAND = """
import sys
from pipeline.storage import lease
lease.PERIOD = 5.0
from pipeline.build_corpus import main
sys.exit(main())
"""


@pytest.fixture(params=["seaweedfs", "gcs"])
def store(
    request: pytest.FixtureRequest, object_stores: Servers, monkeypatch: pytest.MonkeyPatch
) -> ObjectStore:
    found = object_stores.get(request.param)
    use(found, monkeypatch)
    return found


def stored(uri: str, reference: Path) -> dict[str, bytes]:
    """The files of the corpus at a URI, by the names that a local one has, the report left out."""
    storage = open_storage(uri)
    folders = {Path(name).parent.as_posix() for name in contents(reference)}
    names = [name for folder in folders for name in storage.list("" if folder == "." else folder)]
    return {name: storage.read(name) for name in names if name != "report.html"}


def test_a_build_in_an_object_store(
    store: ObjectStore,
    built: tuple[dict[str, Any], Path],
    tmp_path: Path,
) -> None:
    config, reference = built
    uri = f"{store.uri}/whole"
    assert run(config, f"{uri}/corpus", tmp_path, store, "--local") == 0
    assert stored(f"{uri}/corpus", reference) == contents(reference)
    assert open_storage(uri).under("corpus/.work").is_empty(), "the work is gone"
    assert verify([f"{uri}/corpus"]) == 0
    assert run(config, f"{uri}/corpus", tmp_path, store, "--local") == 0
    assert "holds this corpus already" in (tmp_path / "log").read_text()
    # On Ray, its work elsewhere in the store.
    options = ["--work", f"{uri}/work", "--max-cpus", "2"]
    assert run(config, f"{uri}/ray", tmp_path, store, *options) == 0
    assert stored(f"{uri}/ray", reference) == contents(reference)
    assert run({**config, "seed": 4}, f"{uri}/ray", tmp_path, store, "--local") == 2
    assert "holds another corpus" in (tmp_path / "log").read_text()


@pytest.mark.drill
@pytest.mark.parametrize("number", range(max(1, KILLS // 5)))
def test_killed_anywhere_with_an_object_store(
    number: int,
    object_stores: Servers,
    built: tuple[dict[str, Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever comes after a killed build waits for its lease to end."""
    store = object_stores.get(["seaweedfs", "gcs"][number % 2])
    use(store, monkeypatch)
    config, reference = built
    generator = random.Random(SEED + 2000 + number)
    uri = f"{store.uri}/killed-{number}"
    config = {**config, "chunk_bytes": 4000}
    process = start(config, uri, tmp_path, store, "--local")
    output = open_storage(uri)
    while output.size("build.json") is None:
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    time.sleep(generator.uniform(0, 2))
    assert process.poll() is None, "it ended before it was killed"
    kill_tree(process)
    for name, content in stored(uri, reference).items():
        if name in contents(reference):
            assert content == contents(reference)[name], name
    assert run(config, uri, tmp_path, store, "--local") == 0
    assert stored(uri, reference) == contents(reference)
    assert output.under(".work").is_empty()


def start(
    config: dict[str, Any], uri: str, folder: Path, store: ObjectStore, *options: str
) -> subprocess.Popen[bytes]:
    file = write_config(folder / "config.yaml", config)
    arguments = ["-c", COMMAND, "--config", str(file), "--output", uri, *options]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment(**store.environment, LONGSPAN_CACHE=str(folder / "cache")),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def run(config: dict[str, Any], uri: str, folder: Path, store: ObjectStore, *options: str) -> int:
    return start(config, uri, folder, store, *options).wait(timeout=300)
