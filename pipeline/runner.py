"""Runs units of work: on Ray, or one after the other in this process. The only file that imports ray.

Both give the same records, whatever the order they come in. Units travel to the workers and records back;
nothing larger goes through Ray's object store.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

from pipeline.errors import BuildError
from pipeline.storage import Stores
from pipeline.units import Record, Unit, execute

TASK_MEMORY = 600 << 20
"""Bytes declared for a task, so that Ray puts no more of them on a machine than fit."""
RETRIES = 5
"""How often a unit is started again when its worker dies."""


class Runner(Protocol):
    """Where units run."""

    def run(self, units: Iterator[Unit], stores: Stores) -> Iterator[tuple[Unit, Record]]:
        """Each unit with its record, as they finish; no more units are taken than can run. BuildError where an
        input is at fault."""
        ...

    def close(self) -> None: ...


class LocalRunner:
    """One unit after the other, in this process."""

    def run(self, units: Iterator[Unit], stores: Stores) -> Iterator[tuple[Unit, Record]]:
        for unit in units:
            yield unit, execute(unit, stores)

    def close(self) -> None:
        pass


class RayRunner:
    """Core tasks of one CPU each, on the cluster that RAY_ADDRESS names (a job's does), else on a Ray of this
    machine's own, which ends with the build."""

    def __init__(self, max_cpus: int | None) -> None:
        import ray

        self._ray = ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
        try:
            if os.environ.get("RAY_ADDRESS"):
                ray.init(**options)
            else:
                os.environ.setdefault("RAY_AUTH_MODE", "disabled")
                options |= {"address": "local", "include_dashboard": False, "object_store_memory": 100 << 20}
                ray.init(num_cpus=max_cpus, **options)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            address = os.environ.get("RAY_ADDRESS", "local")
            raise BuildError(
                f"Ray at {address!r} cannot be reached: {error}; --local needs no Ray"
            ) from error
        resources = ray.cluster_resources()
        cpus_there = int(resources.get("CPU", 0))
        if cpus_there < 1:
            ray.shutdown()
            raise BuildError(f"the Ray cluster has {cpus_there} CPUs; a unit of work needs one")
        self._max_cpus = max_cpus
        memory = task_memory(ray.nodes())
        # For the task, not in ray.init: that refuses a variable which the job's own runtime_env has too.
        environment = {"env_vars": {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}}
        remote = ray.remote(num_cpus=1, memory=memory, max_retries=RETRIES, runtime_env=environment)
        self._task = remote(_execute)

    def run(self, units: Iterator[Unit], stores: Stores) -> Iterator[tuple[Unit, Record]]:
        try:
            yield from self._run(units, {}, stores)
        except self._ray.exceptions.RayError as error:
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise BuildError(f"Ray could not go on: {line}; the same command goes on from here") from error

    def _run(
        self, waiting: Iterator[Unit], running: dict[Any, Unit], stores: Stores
    ) -> Iterator[tuple[Unit, Record]]:
        while True:
            for unit in islice(waiting, max(0, self._in_flight() - len(running))):
                running[self._task.remote(unit, stores)] = unit
            if not running:
                return
            ready, _ = self._ray.wait(list(running), num_returns=1)
            for reference in ready:
                unit = running.pop(reference)
                try:
                    result = self._ray.get(reference)
                except (
                    self._ray.exceptions.RayTaskError
                ) as error:  # no input's fault: then there is an answer
                    raise BuildError(
                        f"{unit.stage} {unit.id} ({unit.about}) failed in a way that was not foreseen; please report "
                        f"it with these lines:\n{str(error).strip()}"
                    ) from error
                if isinstance(result, BuildError):
                    for other in running:
                        self._ray.cancel(other, force=True)
                    raise result
                yield unit, result

    def _in_flight(self) -> int:
        """Units to have on the way. Two a CPU, so that none waits for work; but no more than were asked for where Ray
        has more. Counted anew each time: an autoscaler starts machines for what waits, and machines are lost."""
        cpus = max(1, int(self._ray.cluster_resources().get("CPU", 0)))
        return self._max_cpus if self._max_cpus and self._max_cpus < cpus else 2 * cpus

    def close(self) -> None:
        self._ray.shutdown()


def task_memory(nodes: Sequence[Mapping[str, Any]]) -> int:
    """Bytes to declare for a task, of machines as Ray lists them: it must fit on one with CPUs, or it would wait for
    ever; that it does not fit on a small one keeps it off there."""
    able = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    return min(TASK_MEMORY, max((int(resources.get("memory", 0)) for resources in able), default=0))


def _execute(unit: Unit, stores: Stores) -> Record | BuildError:
    # An input that is at fault is an answer, not a failure to retry.
    try:
        return execute(unit, stores)
    except BuildError as error:
        return error
