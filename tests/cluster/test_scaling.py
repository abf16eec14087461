"""The tables of SCALING.md are those that its script computes, and the script's arithmetic holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.scaling import (
    TABLES,
    UPDATES,
    Stage,
    corpus_stages,
    gradient_seconds,
    makespan,
    rounds,
    tokens_bytes,
    touched,
    update_seconds,
)
from pipeline.benchmark.cost import PAPER

PAGE = (Path(__file__).parents[2] / "cluster" / "SCALING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("make", TABLES, ids=lambda make: make.__name__)
def test_the_page_has_the_computed_tables(make: Callable[[], str]) -> None:
    assert make() in PAGE, "python -m cluster.scaling says otherwise"


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=60), st.integers(1, 70))
def test_a_schedule_is_no_better_than_possible_and_no_worse_than_greedy(
    units: list[float], workers: int
) -> None:
    span = makespan(Stage("any", units), workers)
    least = max(max(units), sum(units) / workers)
    assert least - 1e-6 <= span <= sum(units) / workers + max(units) + 1e-6
    assert makespan(Stage("any", units), len(units)) == pytest.approx(max(units))


def test_what_each_worker_pays_first_is_paid_once_by_each_that_works() -> None:
    assert makespan(Stage("any", [1.0] * 4, first=10), 2) == 12
    assert makespan(Stage("any", [1.0] * 4, first=10), 100) == 11
    assert makespan(Stage("any", []), 3) == 0


def test_one_worker_takes_what_the_rates_say() -> None:
    """Reading and tokenising alone are in the cost table of the builder's page as well."""
    stages = {stage.name: stage for stage in corpus_stages("tiktoken")}
    assert sum(stages["split"].units) == pytest.approx(sum(source.raw for source in PAPER) * 1e3 / 120)
    tokenising = sum(stages["encode"].units) - sum(source.text for source in PAPER) * 1e3 / 45
    assert tokenising == pytest.approx(sum(source.tokenised for source in PAPER) * 1e3 / 6.5)
    assert len(stages["pack"].units) == 194
    assert 20e9 < tokens_bytes() < 40e9


def test_no_more_gpus_than_micro_batches_are_of_use() -> None:
    assert [rounds(gpus, 4) for gpus in (1, 8, 16, 64)] == [16, 2, 1, 1]
    assert [rounds(gpus, 1) for gpus in (1, 8, 64, 128)] == [64, 8, 1, 1]


def test_gradients_cross_the_slowest_link_twice() -> None:
    assert gradient_seconds(10**9, 1, 1e9) == 0
    two_machines = gradient_seconds(10**9, 16, 1e9) - gradient_seconds(10**9, 8, 1e9)
    assert two_machines == pytest.approx(4.0)  # of 4 GB each half leaves twice, at 1 GB/s
    assert gradient_seconds(10**9, 512, 1e9) < 8.1


def test_computing_divides_among_gpus() -> None:
    one, _ = update_seconds("base", "A100", 1, 4, 1e9)
    eight, _ = update_seconds("base", "A100", 8, 4, 1e9)
    assert one == pytest.approx(8 * eight)
    assert 10 < one * UPDATES / 3600 < 100


def test_files_that_are_touched_are_all_of_few_and_a_document_each_of_many() -> None:
    assert touched(10, 1000) == pytest.approx(10)
    assert touched(1e9, 1000) == pytest.approx(1000, rel=1e-3)
