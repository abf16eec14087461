"""A web server on this machine that fails as it is told to."""

import hashlib
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Served:
    """A file and how it is served."""

    content: bytes
    faults: list[str] = field(default_factory=list)
    """One a request, from the first: "503", "429 0" (with Retry-After), "drop N" (after N bytes), "stall S"
    (seconds), "404", "shifted" (another range than asked for), "change N" (drop after N bytes, and from then on it
    is another file of the same size), "" (none)."""
    traits: frozenset[str] = frozenset()
    """How it always is: no_etag, weak_etag, no_ranges, no_head, no_length."""
    etag: str = ""
    location: str = ""
    """Where to redirect to."""
    seconds: float = 0.0
    """How long all of it takes to be sent."""


class FaultyServer:
    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str, str]] = []
        """(path with query, Range, If-Range) of each, in order."""
        self.uri = ""

    def serve(self, path: str, content: bytes, *faults: str, traits: str = "", **more: Any) -> str:
        """The address of a file that is served from now on."""
        self.files[path] = Served(content, list(faults), frozenset(traits.split()), **more)
        return self.uri + path


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faulty: FaultyServer

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        """What the hub is asked of paths beside its lists: it knows none."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._head(200, {"Content-Length": "2", "Content-Type": "application/json"})
        self.wfile.write(b"[]")

    def do_GET(self) -> None:
        wanted, condition = (self.headers.get(name) or "" for name in ("Range", "If-Range"))
        self.faulty.requests.append((self.path, wanted, condition))
        served = self.faulty.files.get(self.path.split("?")[0])
        fault = served.faults.pop(0) if served and served.faults else ""
        if served is None or fault == "404" or (self.command == "HEAD" and "no_head" in served.traits):
            self._head(404 if self.command == "GET" else 405, {"Content-Length": "0"})
            return
        if fault[:3] in ("503", "429"):
            after = {"Retry-After": fault[4:]} if fault[4:] else {}
            self._head(int(fault[:3]), {"Content-Length": "0", **after})
            return
        if served.location:
            self._head(302, {"Content-Length": "0", "Location": served.location})
            return
        if fault.startswith("stall"):
            time.sleep(float(fault[6:]))
        self._send(served, wanted, condition, fault)

    def _send(self, served: Served, wanted: str, condition: str, fault: str) -> None:
        content, traits = served.content, served.traits
        headers = {}
        etag = served.etag or f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        if "no_etag" not in traits:
            headers["ETag"] = ("W/" if "weak_etag" in traits else "") + etag
        status, first, last = 200, 0, len(content) - 1
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        if match and "no_ranges" not in traits and condition in ("", etag):
            first, last = int(match[1]), min(int(match[2] or last), last)
            if first >= len(content):
                self._head(
                    416, {**headers, "Content-Length": "0", "Content-Range": f"bytes */{len(content)}"}
                )
                return
            status = 206
            first += fault == "shifted"
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        body = content[first : last + 1]
        if "no_length" in traits:
            self.close_connection = True
        else:
            headers["Content-Length"] = str(len(body))
        self._head(status, headers)
        if self.command == "HEAD":
            return
        if fault.startswith(("drop", "change")):
            body = body[: int(fault.split()[1])]
            self.close_connection = True
        if fault.startswith("change"):
            served.content = content[::-1]
        seconds = served.seconds * len(body) / max(1, len(content))
        size = len(body) if not seconds else max(1, len(body) // 20)
        for begin in range(0, len(body), size):
            self.wfile.write(body[begin : begin + size])
            time.sleep(seconds * size / len(body))

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed, or that has read enough, is no error of the server's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def faulty_server() -> Iterator[FaultyServer]:
    faulty = FaultyServer()
    handler = type("Handler", (_Handler,), {"faulty": faulty})
    with _Server(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        faulty.uri = f"http://127.0.0.1:{running.server_port}"
        yield faulty
        running.shutdown()
        thread.join()
