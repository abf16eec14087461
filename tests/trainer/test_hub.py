"""Conversion of models named by their hub ids, from a stand-in for the hub on this machine."""

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tests.trainer.models import roberta_folder
from trainer.engine.config import InputError
from trainer.model.folder import locate_model, read_config

REVISION = "b" * 40


# What nobody asks for, in names that a careless pattern fits.
UNASKED = ("flax_model.msgpack", "model.fp16.safetensors", "model_card.html", "pytorch_model.fp16.bin")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """Serves `owner/tiny` and `owner/old` (pickled, without safetensors) by the calls of snapshot_download.

    A branch and a tag exist, `main` and `v1`, of one commit.
    """
    tiny = roberta_folder(tmp_path / "served" / "tiny")
    old = tmp_path / "served" / "old"
    old.mkdir()
    (old / "config.json").write_text((tiny / "config.json").read_text())
    torch.save(load_file(tiny / "model.safetensors"), old / "pytorch_model.bin")
    (tiny / "pytorch_model.bin").write_bytes(b"the same again, which is not needed")
    for folder, name in itertools.product((tiny, old), UNASKED):
        (folder / name).write_bytes(b"not asked for")
    revision = rf"(?:main|v1|{REVISION})"

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def answer(self, code: int, body: bytes, **headers: str) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            asked = re.fullmatch(rf"/api/models/owner/(tiny|old)(?:/revision/{revision})?", path)
            tree = re.fullmatch(rf"/api/models/owner/(tiny|old)/tree/{revision}", path)
            file = re.fullmatch(rf"/owner/(tiny|old)/resolve/{revision}/(.+)", path)
            found = asked or tree or file
            names = sorted(p.name for p in (tmp_path / "served" / found[1]).iterdir()) if found else []
            if asked:
                siblings = [{"rfilename": name} for name in names]
                facts = {"id": f"owner/{asked[1]}", "sha": REVISION, "siblings": siblings}
                self.answer(200, json.dumps(facts).encode(), Content_Type="application/json")
            elif tree:
                folder = tmp_path / "served" / tree[1]
                entries = [
                    {"type": "file", "path": n, "oid": "c" * 40, "size": (folder / n).stat().st_size}
                    for n in names
                ]
                self.answer(200, json.dumps(entries).encode(), Content_Type="application/json")
            elif file and file[2] in names:
                content = (tmp_path / "served" / file[1] / file[2]).read_bytes()
                tag = f'"{hashlib.sha256(content).hexdigest()}"'
                self.answer(200, content, ETag=tag, X_Repo_Commit=REVISION)
            else:
                missing = "RevisionNotFound" if "/revision/" in path else "RepoNotFound"
                self.answer(404, b"{}", X_Error_Code=missing)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


# One process converts all the names it is given: importing is most of what a conversion costs.
CONVERT = """
import sys
from trainer.convert import main
statuses = [
    main(["--from", name, "--to", f"out{number}", "--max-positions", "64", "--window", "8"])
    for number, name in enumerate(sys.argv[1:])
]
sys.exit(max(statuses) if len(set(statuses)) == 1 else 9)
"""


def convert(hub: str, folder: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """Convert models to folder/out0, out1, …; the exit status is that of all, or 9 where they differ."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return subprocess.run(
        [sys.executable, "-c", CONVERT, *names],
        env={key: value for key, value in environment.items() if key != "HF_HUB_OFFLINE"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def fetched(folder: Path) -> set[str]:
    """Names of the files that lie in the cache under a name."""
    return {path.name for path in (folder / "cache").rglob("snapshots/*/*")}


def test_hub_ids_are_fetched_and_converted(hub: str, tmp_path: Path) -> None:
    done = convert(hub, tmp_path, "owner/tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out0" / "model.safetensors").exists()
    assert fetched(tmp_path) == {"config.json", "model.safetensors"}
    # Which commit it was is written down, and travels on.
    assert read_config(tmp_path / "out0").base_model == f"owner/tiny@{REVISION}"
    card = ModelCard.load(tmp_path / "out0" / "README.md")
    assert card.data.base_model == "owner/tiny"
    assert f"owner/tiny@{REVISION}" in card.text
    assert str(tmp_path) not in card.content

    # What was fetched serves without the hub.
    done = convert("http://127.0.0.1:9", tmp_path, "owner/tiny@main")
    assert done.returncode == 0, done.stdout + done.stderr


def test_pickled_weights_are_fetched_where_there_are_no_others(hub: str, tmp_path: Path) -> None:
    done = convert(hub, tmp_path, "owner/old@v1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert fetched(tmp_path) == {"config.json", "pytorch_model.bin"}
    assert read_config(tmp_path / "out0").base_model == f"owner/old@{REVISION}"


def test_names_that_the_hub_does_not_know(hub: str, tmp_path: Path) -> None:
    names = ("owner/other", "owner/tiny@v2")
    done = convert(hub, tmp_path, *names)
    assert done.returncode == 2
    for name in names:
        assert f"convert: {name}: no such folder, and the hub did not give it" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out0").exists()


@pytest.mark.parametrize("name", ["owner/tiny@", "owner/tiny@../v1", "owner/../tiny", "@v1", "a b"])
def test_names_that_no_hub_can_know(name: str) -> None:
    with pytest.raises(InputError, match=r"no such folder, and not a hub id \(expected `owner/name`"):
        locate_model(name)
