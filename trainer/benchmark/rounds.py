"""Rounds in which each method of a benchmark takes one step, and the products that bound them are timed beside."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from attention.benchmark.measure import Measured, clock_of
from attention.benchmark.rates import Product, tile_product
from trainer.benchmark.alone import Alone, Step


@dataclass(frozen=True)
class Rounds:
    """What was found, by the names of products and methods."""

    rates: dict[str, float]
    """FLOP/s."""
    measured: dict[str, Measured]
    losses: dict[str, list[float]]


def with_tiles(products: Mapping[str, Product], threads: int) -> dict[str, Product]:
    """The products, and that of brgemm on tiles where this machine has it."""
    try:
        return {**products, "brgemm tiles": tile_product(threads)}
    except RuntimeError as error:
        print(f"no bound by brgemm tiles: {error}")
        return dict(products)


def take_rounds(
    methods: Mapping[str, Callable[[], Step]],
    products: Mapping[str, Product],
    rounds: int,
    threads: int,
    environment: dict[str, str] | None = None,
) -> Rounds:
    """Make each method in a process of its own (under the `environment`'s allocator), and time all in turn."""
    clock = clock_of(threads)
    seconds: dict[str, list[float]] = {name: [] for name in products}
    with ExitStack() as stack:
        alone = {
            name: stack.enter_context(Alone(make, threads, environment)) for name, make in methods.items()
        }
        measured = {name: Measured([], process.peak_bytes) for name, process in alone.items()}
        for _ in range(rounds):
            for name, product in products.items():
                seconds[name].append(clock(product.run))
            for name, process in alone.items():
                measured[name].seconds.append(process.step())
    rates = {name: products[name].flops / statistics.median(found) for name, found in seconds.items()}
    return Rounds(rates, measured, {name: process.losses for name, process in alone.items()})


def same_losses(rows: Sequence[Mapping[str, Any]], tolerance: float) -> bool:
    """Whether all rows had the first one's `losses`, to this share of them."""
    return all(_near(row["losses"], rows[0]["losses"], tolerance) for row in rows)


def _near(found: Iterable[float], expected: Iterable[float], tolerance: float) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(abs(loss - other) <= tolerance * abs(other) for loss, other in pairs)
