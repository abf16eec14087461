"""Inputs that are not local: a web server and a stand-in for the hub, both on this machine."""

import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

import pytest

from pipeline.documents import Document
from pipeline.errors import InputError
from pipeline.fetch import find_inputs, with_version
from pipeline.sources import SOURCES
from pipeline.sources.formats import accepts
from pipeline.sources.reading import read_documents
from tests.pipeline.conftest import ROOT, environment, write_config, write_jsonl


class Server(BaseHTTPRequestHandler):
    """Files with Range; the two calls of the hub's API that listing and reading need; and broken connections."""

    root: ClassVar[Path]
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._send_json([])

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        tree = re.fullmatch(r"/api/datasets/o/n/tree/(\w+)(?:/(.*))?", path)
        if tree:
            self._send_json(self._tree(tree[2] or ""))
        elif re.fullmatch(r"/api/datasets/o/n(/revision/\w+)?", path):
            self._send_json({"id": "o/n", "sha": "a" * 40})
        elif match := re.fullmatch(r"(?:/datasets/o/n/resolve/\w+|/files)/(.+)", path):
            self._send_file(self.root / match[1])
        else:
            self.send_error(404)

    def _tree(self, folder: str) -> list[dict[str, object]]:
        entries: list[dict[str, object]] = []
        for path in sorted((self.root / folder).rglob("*")):
            name = path.relative_to(self.root).as_posix()
            content = path.read_bytes() if path.is_file() else b""
            size = len(content)
            oid = hashlib.sha1(b"blob %d\0" % size + content, usedforsecurity=False).hexdigest()
            entries.append(
                {"type": "file" if path.is_file() else "directory", "path": name, "oid": oid, "size": size}
            )
        return entries

    def _send_json(self, content: object) -> None:
        self._send(json.dumps(content).encode(), "application/json")

    def _send_file(self, path: Path) -> None:
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and int(wanted[1]) < len(content):
            self._send(
                content, "application/octet-stream", int(wanted[1]), int(wanted[2] or len(content) - 1)
            )
        else:
            self._send(content, "application/octet-stream")

    def _send(self, content: bytes, kind: str, first: int | None = None, last: int | None = None) -> None:
        part = content if first is None else content[first : (last or 0) + 1]
        self.send_response(200 if first is None else 206)
        if first is not None:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(part[: len(part) // 2] if "broken" in self.path else part)
            if "broken" in self.path:
                self.close_connection = True


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    Server.root = tmp_path / "served"
    Server.root.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def read(path: str) -> list[object]:
    source = SOURCES["text"]()
    inputs = [with_version(item) for item in find_inputs([path], lambda name: accepts(SOURCES["text"], name))]
    assert all(item.version and item.bytes for item in inputs)
    return [document for item in inputs for document, _ in read_documents(source, item)]


def test_a_file_on_a_web_server(server: str) -> None:
    write_jsonl(Server.root / "a.jsonl.gz", [{"text": str(i)} for i in range(1000)])
    assert read(f"{server}/files/a.jsonl.gz") == [
        Document(f"a.jsonl.gz#{i + 1}", str(i)) for i in range(1000)
    ]
    with pytest.raises(InputError, match=r"absent\.jsonl: the server says 404"):
        read(f"{server}/files/absent.jsonl")


def test_a_connection_that_breaks_is_not_the_end_of_the_file(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSPAN_RETRIES", "0")
    write_jsonl(Server.root / "broken.jsonl", [{"text": str(i)} for i in range(1000)])
    with pytest.raises(InputError, match=r"broken\.jsonl"):
        read(f"{server}/files/broken.jsonl")


def test_a_dataset_on_the_hub(server: str, small_tokenizer: Path, tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads its endpoint from the environment when it is imported."""
    for number in range(2):
        rows = [{"id": f"{number}-{i}", "text": f"text {number} {i} " * 20} for i in range(30)]
        write_jsonl(Server.root / f"data/{number}.jsonl", rows)
    write_jsonl(Server.root / "other/2.jsonl", [{"id": "other", "text": "not asked for " * 20}])
    config = write_config(
        tmp_path / "hub.yaml",
        {
            "tokenizer": str(small_tokenizer),
            "sequence_length": 64,
            "sources": [{"kind": "text", "path": "hf://datasets/o/n/data/*.jsonl"}],
        },
    )
    arguments = [
        "-m",
        "pipeline.build_corpus",
        "--config",
        str(config),
        "--output",
        str(tmp_path / "out"),
        "--local",
    ]
    hub = {"HF_ENDPOINT": server, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(**hub),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["sources"][0]["read"] == 60
    assert [item["name"] for item in manifest["inputs"]] == ["data/0.jsonl", "data/1.jsonl"]
