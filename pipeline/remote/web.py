"""Files on web servers: which version there is, and reading it by ranges that are all of that version.

A connection that breaks, an overloaded server, a time-out: the stream goes on where it was, with `Range` and
`If-Range`, after a pause. A server that ignores `Range` is read again from the start. A file that is another one
than it was is an error, at once: a corpus is never a mixture of two versions.
"""

import email.utils
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import requests
import urllib3

from pipeline.errors import InputError
from pipeline.remote.patience import Passing, Patience, patiently, reason_of, without_secrets
from pipeline.remote.ranged import RangedFile

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONNECT_SECONDS = 20.0
_BLOCK = 1 << 20
_REFUSED = {
    401: "the server wants credentials",
    403: "the server refuses access",
    404: "there is no such file",
    410: "there is no such file any more",
}


@dataclass(frozen=True)
class WebVersion:
    """What a server says of a file."""

    size: int
    version: str
    """A strong ETag in its quotes; or the time of the last change, or a weak ETag, with the size."""
    ranges: bool
    """Whether it can be read from the middle."""


def look(uri: str, headers: Mapping[str, str] | None = None) -> WebVersion:
    """Size and version as the server states them now. One GET for the first byte tells everything, and works where
    HEAD does not. Raises InputError."""

    def ask() -> WebVersion:
        with (
            requests.Session() as session,
            _get(session, uri, {**(headers or {}), "Range": "bytes=0-0"}) as answer,
        ):
            if answer.status_code == 416 and _total(answer) == 0:
                return WebVersion(0, _version(answer.headers, 0), True)
            _refuse(uri, answer)
            size = _total(answer) if answer.status_code == 206 else _length(answer)
            if size is None:
                raise InputError(f"{without_secrets(uri)}: the server does not say how long it is")
            return WebVersion(size, _version(answer.headers, size), answer.status_code == 206)

    try:
        return patiently(ask)
    except Passing as failure:
        raise InputError(f"{without_secrets(uri)}: cannot be reached: {failure}") from failure


class WebFile(RangedFile):
    """A stream of one version of a file on a web server. Reading raises InputError: where it has changed, where the
    server refuses, where patience is at its end."""

    def __init__(
        self,
        uri: str,
        size: int,
        version: str,
        headers: Mapping[str, str] | None = None,
        name: str = "",
        end: int | None = None,
    ) -> None:
        """`name` is for messages; `end` is where to stop asking, the end of the file unless given. An empty
        `version` means that the address itself names the version."""
        super().__init__(size)
        self._uri = uri
        self._version = version
        self._headers = dict(headers or {})
        self._name = name or without_secrets(uri)
        self._end = size if end is None else end
        self._session = requests.Session()
        self._answer: requests.Response | None = None
        self._at = -1
        """Which byte of the file the answer gives next."""

    def read_at(self, position: int, count: int) -> bytes:
        patience = Patience()
        while True:
            try:
                if self._answer is None or self._at != position:
                    self._open(position)
                return self._receive(count)
            except Passing as failure:
                self._hang_up()
                try:
                    patience.wait(failure)
                except Passing:
                    where = f"{self._name}: cannot be read at byte {position:,} of {self._size:,}"
                    raise InputError(f"{where}: {failure}") from failure

    def close(self) -> None:
        self._hang_up()
        self._session.close()
        super().close()

    def _hang_up(self) -> None:
        if self._answer is not None:
            self._answer.close()
        self._answer, self._at = None, -1

    def _open(self, position: int) -> None:
        """Asks for the file from `position` on."""
        self._hang_up()
        wanted = {}
        if position or self._end != self._size:
            wanted["Range"] = f"bytes={position}-{max(position, self._end - 1)}"
            if self._version.startswith(
                '"'
            ):  # a strong ETag: with another the server sends all of the other file
                wanted["If-Range"] = self._version
        answer = _get(self._session, self._uri, {**self._headers, **wanted})
        try:
            self._check(answer, position)
        except BaseException:
            answer.close()
            raise
        self._answer = answer
        self._at = position if answer.status_code == 206 else 0
        while self._at < position:
            self._receive(position - self._at)

    def _receive(self, count: int) -> bytes:
        """The answer's next bytes."""
        assert self._answer is not None
        try:
            content = self._answer.raw.read(min(count, _BLOCK), decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Passing(_network_reason(error)) from error
        if not content:
            raise Passing("the connection ended early")
        self._at += len(content)
        return content

    def _check(self, answer: requests.Response, position: int) -> None:
        if answer.status_code == 416:
            raise self._changed(f"it has no byte {position:,} any more")
        if answer.status_code == 412:
            raise self._changed("the server has another version")
        _refuse(self._name, answer)
        size = _total(answer) if answer.status_code == 206 else _length(answer)
        if size is not None and size != self._size:
            raise self._changed(f"it had {self._size:,} bytes and has {size:,}")
        found = _version(answer.headers, self._size)
        if self._version and found != self._version:
            raise self._changed(f"its version was {self._version} and is {found}")
        if answer.status_code == 206 and _first(answer) != position:
            stated = answer.headers.get("Content-Range", "")
            raise InputError(
                f"{self._name}: the server was asked for bytes from {position:,} on and sends {stated!r}"
            )

    def _changed(self, how: str) -> InputError:
        return InputError(
            f"{self._name}: changed while the corpus was built: {how}; the same command reads it anew"
        )


def _get(session: requests.Session, uri: str, headers: Mapping[str, str]) -> requests.Response:
    """The answer's head, with its body still to come. Redirects lead to http and https alone: `requests` knows no
    other schemes."""
    seconds = float(os.environ.get("LONGSPAN_TIMEOUT", "60"))
    wanted = {"Accept-Encoding": "identity", **headers}
    try:
        answer = session.get(uri, headers=wanted, stream=True, timeout=(_CONNECT_SECONDS, seconds))
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise Passing(_network_reason(error)) from error
    except requests.RequestException as error:  # too many redirects, a scheme or an address that is none
        raise InputError(f"{without_secrets(uri)}: cannot be reached: {reason_of(error)}") from error
    if answer.status_code in _PASSING:
        answer.close()
        failure = f"the server says {answer.status_code} {answer.reason}"
        raise Passing(without_secrets(failure), _retry_after(answer.headers.get("Retry-After", "")))
    return answer


def _network_reason(error: BaseException) -> str:
    """The end of the message, without the address, of which those of urllib3 are full."""
    inner = getattr(error.args[0], "reason", None) if error.args else None
    message = reason_of(inner if isinstance(inner, BaseException) else error)
    return message.rsplit(": ", 1)[-1].strip("'\") ") or type(error).__name__


def _refuse(name: str, answer: requests.Response) -> None:
    if answer.status_code not in (200, 206):
        why = _REFUSED.get(answer.status_code, "expected 200 or 206")
        raise InputError(
            f"{without_secrets(name)}: the server says {answer.status_code} {answer.reason}: {why}"
        )


def _version(headers: Mapping[str, str], size: int) -> str:
    etag = headers.get("ETag", "")
    if etag.startswith('"'):
        return etag
    return f"{headers.get('Last-Modified') or etag or 'unversioned'}, {size} bytes"


def _length(answer: requests.Response) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _total(answer: requests.Response) -> int | None:
    """Of a Content-Range: the size of the whole file."""
    match = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", answer.headers.get("Content-Range", "").strip())
    return int(match[1]) if match else None


def _first(answer: requests.Response) -> int | None:
    match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", "").strip())
    return int(match[1]) if match else None


def _retry_after(value: str) -> float | None:
    """Seconds of a Retry-After header, which may be a number or a date."""
    if value.strip().isdecimal():
        return float(value)
    with suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None
