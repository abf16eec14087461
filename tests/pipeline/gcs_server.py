"""A small server of Google Cloud Storage's XML interface, as far as storage uses it.

No emulator on the package index speaks that interface with its preconditions. This one follows Google's description
of it: generations, x-goog-if-generation-match, ranges, lists of version 2, multipart uploads. It shows that our side
of the conversation is right, and nothing about Google's.

    python -m tests.pipeline.gcs_server PORT [unconditional] [failing] [hanging] [deaf] [silent]

An `unconditional` one ignores preconditions, a `failing` one answers every third request with 503. A `hanging` one
does not answer the first request that writes or removes an object, nor does a `deaf` one, which does not do it either;
the second is answered. A `silent` one answers none of them.
"""

import hashlib
import io
import itertools
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

BUCKET = "longspan-test"
PAGE = 50
"""Objects of one page of a list: few, so that tests turn pages."""

objects: dict[str, tuple[int, bytes, dict[str, str]]] = {}
"""By key: generation, content, metadata headers."""
uploads: dict[str, tuple[dict[str, str], dict[int, bytes]]] = {}
generations = itertools.count(1_700_000_000_000_000)
requests = itertools.count()
hung: set[tuple[str, str]] = set()
"""Method and path of the requests that were left without an answer."""
lock = threading.Lock()
options = frozenset(sys.argv[2:])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body in one packet: two of them, on a connection that is kept, wait for each other.
    wbufsize = 1 << 16

    def log_message(self, *_: object) -> None:
        pass

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if "failing" in options and next(requests) % 3 == 0:
            self._body()
            self._answer(503, b"<Error><Code>ServiceUnavailable</Code></Error>")
            self.wfile.flush()
            return False
        if options & {"hanging", "deaf", "silent"} and self.command in ("PUT", "DELETE", "POST"):
            self._hang()
        return True

    def _hang(self) -> None:
        """The first time, for as long as anybody waits."""
        request = self.command, re.sub("uploadId=[^&]*", "", self.path)
        with lock:
            if request in hung and "silent" not in options:
                return
            hung.add(request)
        if "hanging" in options:
            self.wfile = io.BytesIO()
            getattr(self, f"do_{self.command}")()
        time.sleep(3600)

    def _parse(self) -> tuple[str, str, dict[str, str]]:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path.lstrip("/"), errors="strict").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        return bucket, key, query

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, length: int = -1
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _metadata(self) -> dict[str, str]:
        return {k.lower(): v for k, v in self.headers.items() if k.lower().startswith("x-goog-meta-")}

    def _store(self, key: str, content: bytes, metadata: dict[str, str]) -> None:
        condition = self.headers.get("x-goog-if-generation-match")
        with lock:
            there = objects[key][0] if key in objects else 0
            if condition is not None and int(condition) != there and "unconditional" not in options:
                return self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            objects[key] = (next(generations), content, metadata)
            headers = _describe(key)
        return self._answer(200, headers=headers)

    def do_PUT(self) -> None:
        bucket, key, query = self._parse()
        content = self._body()
        if not self.headers.get("Authorization", "").startswith("Bearer "):
            return self._answer(401, b"<Error><Code>AuthenticationRequired</Code></Error>")
        if bucket != BUCKET:
            return self._answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        if "uploadId" not in query:
            return self._store(key, content, self._metadata())
        with lock:
            uploads[query["uploadId"]][1][int(query["partNumber"])] = content
        return self._answer(200, headers={"ETag": f'"{hashlib.md5(content).hexdigest()}"'})  # noqa: S324

    def do_POST(self) -> None:
        _, key, query = self._parse()
        body = self._body()
        if "uploads" in query:
            name = f"upload-{next(generations)}"
            uploads[name] = (self._metadata(), {})
            text = (
                f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
            )
            return self._answer(200, text.encode())
        if query["uploadId"] not in uploads:
            return self._answer(404, b"<Error><Code>NoSuchUpload</Code></Error>")
        metadata, parts = uploads.pop(query["uploadId"])
        numbers = [
            int(node.text or 0)
            for node in ElementTree.fromstring(body).iter()  # noqa: S314 - from our own tests
            if node.tag.endswith("PartNumber")
        ]
        with lock:
            objects[key] = (next(generations), b"".join(parts[number] for number in numbers), metadata)
            headers = _describe(key)
        text = f"<CompleteMultipartUploadResult><ETag>{escape(headers['ETag'])}</ETag></CompleteMultipartUploadResult>"
        return self._answer(200, text.encode(), headers)

    def do_HEAD(self) -> None:
        self._get(with_body=False)

    def do_GET(self) -> None:
        self._get(with_body=True)

    def _get(self, with_body: bool) -> None:
        bucket, key, query = self._parse()
        if not key and bucket == BUCKET:
            return self._list(query)
        with lock:
            if bucket != BUCKET or key not in objects:
                return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>" if with_body else b"")
            content, headers = objects[key][1], _describe(key)
        if self.headers.get("If-Match") not in (None, headers["ETag"]):
            return self._answer(412)
        status = 200
        if wanted := self.headers.get("Range"):
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            last = min(int(end or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
            content, status = content[int(start) : last + 1], 206
        return self._answer(status, content if with_body else b"", headers, length=len(content))

    def do_DELETE(self) -> None:
        _, key, query = self._parse()
        with lock:
            there = uploads.pop(query["uploadId"], None) if "uploadId" in query else objects.pop(key, None)
        self._answer(204 if there else 404)

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter, after = (
            query.get(name, "") for name in ("prefix", "delimiter", "continuation-token")
        )
        with lock:
            keys = sorted(key for key in objects if key.startswith(prefix) and key > after)
            page, rest = keys[:PAGE], keys[PAGE:]
            folders, entries = set(), []
            for key in page:
                tail = key[len(prefix) :]
                if delimiter and delimiter in tail:
                    folders.add(prefix + tail.split(delimiter)[0] + delimiter)
                    continue
                tag = escape(_describe(key)["ETag"])
                entries.append(
                    f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                    f"<ETag>{tag}</ETag><Size>{len(objects[key][1])}</Size></Contents>"
                )
        entries += [
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)
        ]
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if rest else ""
        self._answer(200, f"<ListBucketResult>{''.join(entries)}{token}</ListBucketResult>".encode())


def _describe(key: str) -> dict[str, str]:
    generation, content, metadata = objects[key]
    return {
        "ETag": f'"{hashlib.md5(content).hexdigest()}-{generation}"',  # noqa: S324
        "x-goog-generation": str(generation),
        "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
        **metadata,
    }


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
