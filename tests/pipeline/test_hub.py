"""The hub where it fails: through a mirror on this machine that is told to, by the real command."""

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import ROOT, command, contents, environment, write_config
from tests.pipeline.faulty_server import FaultyServer, faulty_server
from tests.pipeline.test_interruption import kill_tree

COMMIT = "c" * 40
DATASET = "/api/datasets/o/n"
FILES = {
    f"data/{number}.jsonl": "".join(
        json.dumps({"id": f"{number}-{row}", "text": f"text {number} {row} " * 30}) + "\n"
        for row in range(200)
    ).encode()
    for number in range(4)
}


@pytest.fixture
def hub() -> Iterator[FaultyServer]:
    """One dataset of FILES: the calls of the API that list it, and its files."""
    with faulty_server() as server:
        about = json.dumps({"id": "o/n", "sha": COMMIT}).encode()
        for path in (DATASET, f"{DATASET}/revision/main", f"{DATASET}/revision/{COMMIT}"):
            server.serve(path, about)
        tree = [
            {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
            for name, content in FILES.items()
        ]
        folder = {"type": "directory", "path": "data", "size": 0, "oid": "d" * 40}
        server.serve(f"{DATASET}/tree/{COMMIT}", json.dumps([folder]).encode())
        server.serve(f"{DATASET}/tree/{COMMIT}/data", json.dumps(tree).encode())
        for name, content in FILES.items():
            server.serve(address(name), content)
        yield server


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def address(name: str) -> str:
    return f"/datasets/o/n/resolve/{COMMIT}/{name}"


def of_files(hub: FaultyServer) -> list[str]:
    """The names of the files that were asked for since `requests` was cleared, once a request."""
    return [path.removeprefix(address("")) for path, _, _ in hub.requests if path.startswith(address(""))]


def variables(hub: FaultyServer, tmp_path: Path) -> dict[str, str]:
    mirror = {"HF_ENDPOINT": hub.uri, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "cache")}
    return {**mirror, "LONGSPAN_RETRIES": "4"}


@pytest.fixture
def config(small_tokenizer: Path, tmp_path: Path) -> Path:
    source = {"kind": "text", "path": "hf://datasets/o/n/data/*.jsonl"}
    settings: dict[str, Any] = {"tokenizer": str(small_tokenizer), "sequence_length": 64, "sources": [source]}
    return write_config(tmp_path / "hub.yaml", settings)


def test_what_passes_is_waited_out(hub: FaultyServer, config: Path, tmp_path: Path) -> None:
    def build(name: str) -> dict[str, bytes]:
        done = command(config, tmp_path / name, "--local", **variables(hub, tmp_path))
        assert done.returncode == 0, done.stderr
        return contents(tmp_path / name)

    undisturbed = build("undisturbed")
    assert json.loads(undisturbed["manifest.json"])["sources"][0]["read"] == 800
    for path, *faults in (
        (f"{DATASET}/tree/{COMMIT}/data", "503", "503"),
        (address("data/0.jsonl"), "503", "429 0", ""),
        (address("data/1.jsonl"), "drop 0", "drop 20000", "503", "drop 50000"),
    ):
        hub.files[path].faults = list(faults)
    assert build("disturbed") == undisturbed
    assert not any(served.faults for served in hub.files.values()), "each was met"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("change 20000", r"its hash is \w{40}; expected \w{40}, as the hub lists it"),
        ("longer", "changed while the corpus was built: it had .* bytes and has"),
        ("404", "the server says 404 Not Found: there is no such file"),
    ],
)
def test_a_file_that_is_not_what_the_hub_listed(
    fault: str, message: str, hub: FaultyServer, config: Path, tmp_path: Path
) -> None:
    """Said by its name, nothing of it in the corpus; put right, the same command goes on with it alone."""
    name = "data/2.jsonl"
    served = hub.files[address(name)]
    if fault == "longer":
        served.content += b"\n"
    else:
        served.faults = [fault]
    done = command(config, tmp_path / "out", "--local", **variables(hub, tmp_path))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith(f"build_corpus: hf://datasets/o/n@{COMMIT}/{name}: ")
    assert re.search(message, line), line
    assert not (tmp_path / "out/manifest.json").exists()
    served.content, served.faults = FILES[name], []
    hub.requests.clear()
    done = command(config, tmp_path / "out", "--local", **variables(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    assert name in of_files(hub)
    done = command(config, tmp_path / "anew", "--local", **variables(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "anew")


@pytest.mark.drill
def test_what_was_fetched_before_a_kill_is_not_asked_for_again(
    hub: FaultyServer, config: Path, tmp_path: Path
) -> None:
    for name in FILES:
        hub.files[address(name)].seconds = 0.5
    arguments = [
        "-m",
        "pipeline.build_corpus",
        "--config",
        str(config),
        "--output",
        str(tmp_path / "out"),
        "--local",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment(**variables(hub, tmp_path)),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    fetch = tmp_path / "out/.work/fetch"
    deadline = time.monotonic() + 120
    while len(list(fetch.glob("*.json"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.01)
    assert process.poll() is None, (tmp_path / "log").read_text()
    kill_tree(process)
    sealed = {json.loads(record.read_bytes())["facts"]["input"] for record in fetch.glob("*.json")}
    assert 2 <= len(sealed) < len(FILES), "it was killed while it fetched"
    hub.requests.clear()
    done = command(config, tmp_path / "out", "--local", **variables(hub, tmp_path))
    assert done.returncode == 0, done.stderr
    assert sorted(of_files(hub)) == sorted(FILES.keys() - sealed), "each of the others once"
    done = command(config, tmp_path / "anew", "--local", **variables(hub, tmp_path))
    assert contents(tmp_path / "out") == contents(tmp_path / "anew")
