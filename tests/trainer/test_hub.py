"""Conversion of a model named by its hub id, from a stand-in for the hub on this machine."""

import hashlib
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

from tests.trainer.models import roberta_folder

REVISION = "b" * 40


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """Serves one model, `owner/tiny`, by the calls that huggingface_hub's snapshot_download makes."""
    folder = roberta_folder(tmp_path / "served")
    (folder / "flax_model.msgpack").write_bytes(b"not asked for")

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
            names = sorted(file.name for file in folder.iterdir())
            file = re.fullmatch(r"/owner/tiny/resolve/\w+/(.+)", path)
            if re.fullmatch(r"/api/models/owner/tiny(/revision/\w+)?", path):
                facts = {"id": "owner/tiny", "sha": REVISION, "siblings": [{"rfilename": n} for n in names]}
                self.answer(200, json.dumps(facts).encode(), Content_Type="application/json")
            elif re.fullmatch(r"/api/models/owner/tiny/tree/\w+", path):
                tree = [
                    {"type": "file", "path": n, "oid": "c" * 40, "size": (folder / n).stat().st_size}
                    for n in names
                ]
                self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
            elif file and file[1] in names:
                content = (folder / file[1]).read_bytes()
                tag = f'"{hashlib.sha256(content).hexdigest()}"'
                self.answer(200, content, ETag=tag, X_Repo_Commit=REVISION)
            else:
                self.answer(404, b"{}", X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def convert(hub: str, name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_DISABLE_XET": "1",
    }
    flags = ["--from", name, "--to", str(folder / "out"), "--max-positions", "64", "--window", "8"]
    return subprocess.run(
        [sys.executable, "-m", "trainer.convert", *flags],
        env={key: value for key, value in environment.items() if key != "HF_HUB_OFFLINE"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_hub_id_is_fetched_and_converted(hub: str, tmp_path: Path) -> None:
    done = convert(hub, "owner/tiny", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
    fetched = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_symlink() or path.is_file()}
    assert "model.safetensors" in fetched
    assert "flax_model.msgpack" not in fetched


def test_an_id_that_the_hub_does_not_know(hub: str, tmp_path: Path) -> None:
    done = convert(hub, "owner/other", tmp_path)
    assert done.returncode == 2
    assert "owner/other: no such folder, and the hub did not give it" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
