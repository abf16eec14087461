"""The lock of a storage in an object store: an object that its holder renews every few seconds.

Conditions on writes do all the work. It is created only where there is none; it is renewed only as the version that
was written last; and who finds one takes it over only as the version that they saw unchanged for a whole period of
their own clock. Clocks of two machines are never compared. A holder that was killed is replaced after one period; one
that stood still for longer finds, at the next `check`, that it lost the lease.

What it cannot do is stop a holder between its check and its next write. Units of work are pure, so that a worker of a
build that lost its lease writes nothing but what the other build writes as well; only what the driver writes at the
end is guarded by `check`.
"""

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError

from pipeline.errors import BuildError
from pipeline.progress import say
from pipeline.storage.connection import connect, repeated

PERIOD = 30.0
"""Seconds after which a lease that nobody renews may be taken over."""
_RENEWALS = 5
"""In a period."""
_PATIENCE = 10.0
"""Seconds for which one renewal is tried."""


@dataclass(frozen=True)
class _Seen:
    condition: Any
    token: str
    holder: str
    period: float


class Lease:
    """Held by this process from `acquire` to `release`. Thread-safe."""

    def __init__(self, scheme: str, bucket: str, key: str, where: str) -> None:
        self._place = (scheme, bucket, _PATIENCE)
        self._key = key
        self._where = where
        self._token = secrets.token_hex(16)
        self._count = 0
        self._condition: Any = None
        self._lost = False
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease of {where}", daemon=True)

    def acquire(self) -> None:
        """BuildError where another build holds it, or where the store does not honour conditions."""
        while True:
            try:
                self._condition = self._put("create")
                break
            except AlreadyExistsError:
                seen = self._look()
                if seen and seen.token == self._token:  # the answer to a first attempt was lost
                    self._condition = seen.condition
                    break
                if seen and self._take_over(seen):
                    break
        self._refuse_unconditional()
        self._thread.start()

    def _take_over(self, seen: _Seen) -> bool:
        """Waits for a sign of life of the holder. Whether it is ours now; False where it was released."""
        say(f"{self._where}: {seen.holder} was building here; waiting {seen.period:.0f} s for a sign of life")
        end = time.monotonic() + seen.period
        while time.monotonic() < end:
            time.sleep(min(1.0, seen.period / 10))
            now = self._look()
            if now is None:
                return False
            if now.condition != seen.condition:
                raise BuildError(
                    f"{self._where}: another build is writing here; wait for its end ({now.holder})"
                )
        try:
            self._condition = self._put(seen.condition)
        except (PreconditionError, FileNotFoundError):
            return False  # somebody was faster: looked at anew
        say(f"{self._where}: took over from {seen.holder}, which did not renew its lease")
        return True

    def _refuse_unconditional(self) -> None:
        """A store that ignores conditions would let two builds in, unsaid."""
        wrong = {key: value for key, value in self._condition.items() if key == "e_tag"}
        wrong = {"e_tag": '"00000000000000000000000000000000"'} if wrong else {}
        if "version" in self._condition and self._place[0] == "gs":
            wrong["version"] = "1"
        for mode, refusal in (("create", AlreadyExistsError), (wrong, PreconditionError)):
            try:
                self._put(mode)
            except refusal:
                continue
            self._delete()
            raise BuildError(
                f"{self._where}: this object store does not honour conditional writes (If-None-Match, If-Match), so "
                "two builds could not be kept apart; expected S3, Google Cloud Storage, or a server that has them"
            )

    def check(self) -> None:
        """Renews it now. BuildError where it was lost."""
        self._renew()
        if self._lost:
            raise BuildError(
                f"{self._where}: this build stood still for too long or lost its connection, and another one began "
                "to write here; the same command again goes on after its end"
            )

    def release(self) -> None:
        """Removes it, if it is still ours. No one can have taken it over between the two, for a whole period."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.check()
        self._delete()

    def _keep(self) -> None:
        while not self._stop.wait(PERIOD / _RENEWALS) and not self._lost:
            try:
                self._renew()
            except BuildError:
                continue  # not reached now: the next one may be, and `check` tells

    def _renew(self) -> None:
        with self._mutex:
            if self._lost:
                return
            try:
                self._condition = self._put(self._condition)
            except (PreconditionError, FileNotFoundError):
                seen = self._look()
                if seen and seen.token == self._token:  # the answer to an earlier renewal was lost
                    self._condition = seen.condition
                else:
                    self._lost = True

    def _put(self, mode: Any) -> Any:
        self._count += 1  # each version must have an ETag of its own
        content = {"holder": _holder(), "token": self._token, "renewal": self._count, "period": PERIOD}
        store = connect(*self._place)
        data = json.dumps(content).encode()
        # Made again where its answer was lost; if it was done, the condition fails, and a look tells whose it is.
        return _condition(
            repeated(self._where, lambda: obstore.put(store, self._key, data, mode=mode), _PATIENCE)
        )

    def _look(self) -> _Seen | None:
        store = connect(*self._place)

        def get() -> tuple[Any, bytes]:
            answer = obstore.get(store, self._key)
            return answer, bytes(answer.bytes())

        try:
            answer, data = repeated(self._where, get, _PATIENCE)
            content = json.loads(data)
        except FileNotFoundError:
            return None
        except ValueError:
            content = {}
        return _Seen(
            _condition(answer.meta),
            content.get("token", ""),
            content.get("holder", "somebody"),
            float(content.get("period", PERIOD)),
        )

    def _delete(self) -> None:
        store = connect(*self._place)

        def remove() -> None:
            # Looked at each time: what lies there after a removal whose answer was lost may be another build's.
            if self._token.encode() in bytes(obstore.get(store, self._key).bytes()):
                obstore.delete(store, self._key)

        with suppress(FileNotFoundError):
            repeated(self._where, remove, _PATIENCE)


@contextmanager
def leased(scheme: str, bucket: str, key: str, where: str) -> Iterator[Lease]:
    """Holds the lease `key` for the time of the block. BuildError at its clean end where it was lost meanwhile."""
    lease = Lease(scheme, bucket, key, where)
    lease.acquire()
    try:
        yield lease
    except BaseException:
        with suppress(BuildError):  # what happened in the block is the news
            lease.release()
        raise
    lease.release()


def _condition(found: Any) -> Any:
    return {key: found[key] for key in ("e_tag", "version") if found[key] is not None}


def _holder() -> str:
    return f"process {os.getpid()} on {os.uname().nodename}"
