"""Trying again: how often, after how long, and what is said when it was in vain."""

import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 60.0
LONGEST_RETRY_AFTER = 300.0
"""Seconds a server may ask to be left alone for; more counts as this."""


class Passing(Exception):
    """A failure that may be gone the next time: a broken connection, an overloaded server."""

    def __init__(self, reason: object, retry_after: float | None = None) -> None:
        super().__init__(str(reason))
        self.retry_after = retry_after


class Patience:
    """Counts the failures in a row, and waits after each, longer and longer: exponential backoff with full jitter,
    so that a thousand workers do not come back at the same moment."""

    def __init__(self) -> None:
        self._failures = 0

    def succeeded(self) -> None:
        self._failures = 0

    def wait(self, failure: Passing) -> None:
        """Waits, or raises `failure` once more where it has come too often."""
        self._failures += 1
        if self._failures > attempts():
            raise failure
        pause = random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._failures))  # noqa: S311
        if failure.retry_after is not None:
            pause += min(failure.retry_after, LONGEST_RETRY_AFTER)
        time.sleep(pause)


def patiently(action: Callable[[], _Result]) -> _Result:
    """`action`'s result, tried again as long as it raises Passing. Raises the last one."""
    patience = Patience()
    while True:
        try:
            return action()
        except Passing as failure:
            patience.wait(failure)


def attempts() -> int:
    """How many failures in a row are waited out: 8, about two minutes, unless $LONGSPAN_RETRIES says otherwise."""
    return int(os.environ.get("LONGSPAN_RETRIES", "8"))


def without_secrets(text: str) -> str:
    """A message or an address without names and passwords in it, and without what follows a `?`, where the keys
    of signed addresses stand."""
    return re.sub(r"\?[^\s'\")>]+", "?…", re.sub(r"//[^/@\s]*@", "//", text))


def reason_of(error: BaseException) -> str:
    """The line of an error that people read, without secrets."""
    return without_secrets((str(error).strip() or type(error).__name__).splitlines()[0])[:300]
