"""The machines of a Ray cluster, as a training sees them. With `cluster.launch`, all that talks to Ray."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.autoscaler.sdk import request_resources
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.node import Node, Place
from trainer.engine.config import InputError

Told = Callable[[str], None]
FOR_A_PLACE = 300.0  # seconds that machines which are there may be taken
SETTLED = (
    20.0  # seconds, after which the cluster knows what machines it has lost and what an ended job has freed
)


@dataclass(frozen=True)
class Demand:
    """What a training takes of each machine."""

    gpus: int
    cpus: int

    @property
    def bundle(self) -> dict[str, float]:
        return {"CPU": float(self.cpus)} | ({"GPU": float(self.gpus)} if self.gpus else {})

    def __str__(self) -> str:
        return " and ".join(f"{amount:g} {kind}s" for kind, amount in self.bundle.items())

    def fits(self, resources: dict[str, float]) -> bool:
        return all(resources.get(kind, 0) >= amount for kind, amount in self.bundle.items())


def connect() -> None:
    """Join the cluster that this job belongs to, or that RAY_ADDRESS names."""
    address = os.environ.get("RAY_ADDRESS", "auto")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(
            f"Ray at {address!r} cannot be reached ({error}); start this with `ray job submit`, or set RAY_ADDRESS"
        ) from error


def machines() -> list[dict[str, Any]]:
    """The machines that live, with all that they have, used or not."""
    return [node for node in ray.nodes() if node["Alive"]]


def describe(found: list[dict[str, Any]]) -> str:
    """What there is, for a message."""
    shown = []
    for node in found:
        resources = node["Resources"]
        gpus = f", {resources['GPU']:g} GPUs" if resources.get("GPU") else ", no GPU"
        shown.append(f"{node['NodeManagerHostname']} ({resources.get('CPU', 0):g} CPUs{gpus})")
    return "; ".join(shown) or "no machine"


def await_machines(demand: Demand, least: int, most: int, patience: float, tell: Told) -> int:
    """How many machines are free to serve, at most `most`; waits up to `patience` seconds for at least `least`.

    Machines that could serve but are taken, or lost and not yet known to be, are waited for a moment, then done
    without. InputError where too few are there, or free, in time.
    """
    began = time.monotonic()
    told = ""
    while True:
        found = machines()
        able = [node for node in found if demand.fits(node["Resources"])]
        free_now = available_resources_per_node()
        free = sum(demand.fits(free_now.get(node["NodeID"], {})) for node in able)
        waited = time.monotonic() - began
        if free >= least and (free == len(able) or waited > SETTLED):
            return min(free, most)
        missing = (
            f"{least} machines with {demand} each are needed; {len(able)} of these have them, {free} free: "
        )
        missing += describe(found)
        if waited > (patience if len(able) < least else max(patience, FOR_A_PLACE)):
            raise InputError(f"{missing}. None came in {waited / 60:.0f} minutes (--wait-minutes)")
        if missing != told:
            tell(f"waiting: {missing}")
            told = missing
        if len(able) < least:
            request_resources(bundles=[demand.bundle] * least)
        time.sleep(1)


def let_machines_go() -> None:
    """Take back what was asked of an autoscaler, or it would keep the machines for ever."""
    request_resources(bundles=[])


class Taken(Exception):
    """Another job was faster, or a machine was lost in between."""


class Crew:
    """One actor a machine, all placed together."""

    def __init__(self, demand: Demand, count: int) -> None:
        self._group: PlacementGroup = placement_group([demand.bundle] * count, strategy="STRICT_SPREAD")
        self._actors: list[Any] = []
        try:
            ray.get(self._group.ready(), timeout=SETTLED)
        except ray.exceptions.RayError as error:
            self.dismiss()
            raise Taken from error
        remote = ray.remote(num_cpus=demand.cpus, num_gpus=demand.gpus, max_restarts=0)(Node)
        for index in range(count):
            strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
            self._actors.append(remote.options(scheduling_strategy=strategy).remote())
        self.demand = demand

    def call(self, method: str, arguments: list[tuple[Any, ...]], timeout: float = 60) -> list[Any]:
        """A method of every actor, each with its own arguments, in order; an exception in place of a result where
        the machine is lost, or does not answer."""
        calls = [
            getattr(actor, method).remote(*own) for actor, own in zip(self._actors, arguments, strict=True)
        ]
        deadline = time.monotonic() + timeout
        found = []
        for call in calls:
            try:
                found.append(ray.get(call, timeout=max(0.1, deadline - time.monotonic())))
            except ray.exceptions.RayError as error:
                found.append(error)
        return found

    def each(self, method: str, *arguments: Any, timeout: float = 60) -> list[Any]:
        return self.call(method, [arguments] * len(self._actors), timeout)

    def places(self) -> list[Place]:
        """Where the actors are; an exception in place of one that is lost."""
        return self.each("place", self.demand.cpus)

    def __len__(self) -> int:
        return len(self._actors)

    def dismiss(self) -> None:
        """End the actors, and with them whatever they started, and give the machines back."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        remove_placement_group(self._group)
