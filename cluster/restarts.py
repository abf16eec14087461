"""When a training that failed is started again, and when that would only burn GPU hours."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

HOUR = 3600.0


@dataclass(frozen=True)
class Failure:
    """How an attempt ended: what happened, whether a machine was lost with it, the exit status of the launcher that
    failed (None where a machine was lost), and the last step that was told of (None before the first)."""

    what: str
    lost_machine: bool
    status: int | None = None
    step: int | None = None


@dataclass
class RestartPolicy:
    """Ends a training that fails at the same step twice, or restarts too often.

    A lost machine is nobody's fault and proves nothing about a step; but an hour of them is a cluster that does not
    hold. Exit status 2 is a configuration that no restart will mend.
    """

    per_hour: int = 5
    _restarts: deque[float] = field(default_factory=deque)
    _failed_at: list[int | None] = field(default_factory=list)

    def why_not(self, failure: Failure, now: float) -> str | None:
        """Why the training is not to be started again after this failure at `now` seconds; None to restart it."""
        if failure.status == 2:
            return "the input or the configuration is at fault, which a restart does not change"
        if not failure.lost_machine:
            if failure.step in self._failed_at:
                after = "before its first step" if failure.step is None else f"after step {failure.step}"
                return f"it failed twice {after}"
            self._failed_at.append(failure.step)
        while self._restarts and now - self._restarts[0] >= HOUR:
            self._restarts.popleft()
        if len(self._restarts) >= self.per_hour:
            return f"{len(self._restarts)} restarts within an hour"
        self._restarts.append(now)
        return None
