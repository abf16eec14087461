"""The self-check: what it compares and how it remembers, with no kernel at all. See `interpreted_cuda` for kernels."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from attention import check, chunks, loop
from attention.problem import Gradients, Problem

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_right_backend_passes_every_case(dtype: torch.dtype) -> None:
    results = [check.check(chunks, case) for case in check.cases(CPU, dtype, 16, reduced=True)]
    assert all(result.passed for result in results), [result.message for result in results]
    names = {"output", "logsumexp", *(f"grad of {name}" for name in check.PROJECTIONS)}
    assert set(results[0].errors) == set(results[0].bounds) == names


def test_the_whole_matrix_has_every_feature() -> None:
    patterns = [case.problem for case in check.cases(CPU, torch.float32, 4)]
    assert any(p.pattern.holes is not None for p in patterns)
    assert any(p.pattern.document is not None for p in patterns)
    assert any(p.pattern.causal and p.pattern.is_global is not None for p in patterns)
    assert any(p.key_global is not None for p in patterns)
    assert any(p.key_global is None and p.pattern.is_global is not None for p in patterns)
    assert any(
        p.pattern.is_global is not None and int(p.pattern.is_global.sum(1).min()) > 300 for p in patterns
    )
    assert {p.query.shape[2] % 64 for p in patterns} >= {0, 1, 63}


def one_key_too_few(problem: Problem) -> Problem:
    return replace(problem, pattern=replace(problem.pattern, window=problem.pattern.window - 2))


def other_dropout(problem: Problem) -> Problem:
    return replace(problem, dropout_seed=None if problem.dropout_seed is None else problem.dropout_seed + 1)


def unscaled(problem: Problem) -> Problem:
    return replace(problem, scale=problem.scale * 1.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fault", [one_key_too_few, other_dropout, unscaled])
def test_a_wrong_backend_does_not_pass(fault: Any, dtype: torch.dtype) -> None:
    """Of a window of hundreds of keys one at each end; the logsumexp shows it even where bfloat16 hides it."""
    wrong = SimpleNamespace(
        forward=lambda problem: loop.forward(fault(problem)),
        backward=lambda problem, *rest: loop.backward(fault(problem), *rest),
    )
    features = {
        "padding": "holes",
        "global_every": 37,
        "own_global": True,
        "documents": True,
        "dropout_p": 0.2,
    }
    result = check.check(wrong, check.make("large", CPU, dtype, 16, 400, 256, **features))  # type: ignore[arg-type]
    assert not result.passed
    assert "at most" in result.message


def not_a_number(problem: Problem, *rest: Tensor) -> Gradients:
    gradients = loop.backward(problem, *rest)
    gradients.key[0, 0, 0, 0] = torch.nan
    return gradients


def test_not_a_number_does_not_pass() -> None:
    wrong = SimpleNamespace(forward=loop.forward, backward=not_a_number)
    case = check.make("small", CPU, torch.float32, 4, 9, 4)
    result = check.check(wrong, case)  # type: ignore[arg-type]
    assert not result.passed
    assert result.message.startswith("grad of key off by inf")


# What is remembered.

QUERY = torch.zeros(1, 1, 4, 60, dtype=torch.float16)


class Checks:
    """Stands for the check of the kernels: counts how often it is done, and answers as told."""

    def __init__(self, answer: check.Result | Exception) -> None:
        self.answer, self.asked = answer, 0

    def __call__(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> check.Result:
        self.asked += 1
        assert (dtype, head_dim) == (torch.float16, 64)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


RIGHT = check.Result("all", "float16", 64, True)
WRONG = check.Result("all", "float16", 64, False, message="output off by 1.0e+00, at most 4.0e-03")


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path))
    monkeypatch.setattr(check, "_verdicts", {})


def ask(monkeypatch: pytest.MonkeyPatch, checks: Checks) -> tuple[bool, list[str]]:
    monkeypatch.setattr(check, "small", checks)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return check.trusted(QUERY), [str(warning.message) for warning in caught]


@pytest.mark.parametrize("answer", [RIGHT, WRONG], ids=["right", "wrong"])
def test_is_checked_once_a_process_and_once_a_machine(
    answer: check.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = Checks(answer)
    for process in range(2):
        monkeypatch.setattr(check, "_verdicts", {})
        verdict, said = ask(monkeypatch, checks)
        assert verdict == answer.passed
        assert len(said) == (0 if answer.passed else 1), process
        assert all(answer.message in text and "'chunks' takes over" in text for text in said)
        assert ask(monkeypatch, checks) == (answer.passed, [])
    assert checks.asked == 1


def test_what_raises_is_tried_again_by_the_next_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Memory may have been short. This process does without, after one warning."""
    verdict, said = ask(monkeypatch, Checks(RuntimeError("out of resource")))
    assert not verdict
    assert "RuntimeError: out of resource" in said[0]
    assert ask(monkeypatch, Checks(RIGHT)) == (False, [])
    assert list(tmp_path.rglob("*.json")) == []
    monkeypatch.setattr(check, "_verdicts", {})
    assert ask(monkeypatch, Checks(RIGHT)) == (True, [])


@pytest.mark.parametrize(
    "damage", ["", "[]", "{", '{"passed": true}', "\0" * 100, '{"subject": "x", "passed": true}']
)
def test_a_damaged_note_is_made_again(damage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ask(monkeypatch, Checks(RIGHT))
    (note,) = tmp_path.rglob("*.json")
    whole = note.read_text()
    note.write_text(damage)
    monkeypatch.setattr(check, "_verdicts", {})
    checks = Checks(RIGHT)
    assert ask(monkeypatch, checks) == (True, [])
    assert checks.asked == 1
    assert json.loads(note.read_text()) == json.loads(whole)


def test_other_sources_and_versions_are_checked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = Checks(RIGHT)
    for source in ("one", "other", "one"):
        monkeypatch.setattr(check, "_verdicts", {})
        monkeypatch.setattr(check, "_source", lambda source=source: source)
        assert ask(monkeypatch, checks) == (True, [])
    assert checks.asked == 2


def test_works_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "checked").write_text("a file in the folder's place")
    assert ask(monkeypatch, Checks(RIGHT)) == (True, [])


def test_no_check_during_the_capture_of_a_cuda_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a verdict of before counts, and without one the answer is no, but for this time only."""
    monkeypatch.setattr(check, "_subject", lambda *_: ["a GPU"])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    query = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float16, shape=(1, 1, 4, 64))
    checks = Checks(RIGHT)
    monkeypatch.setattr(check, "small", checks)
    assert not check.trusted(query)  # type: ignore[arg-type]
    assert checks.asked == 0
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert check.trusted(query)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert check.trusted(query)  # type: ignore[arg-type]


def test_the_check_leaves_the_random_state_and_autograd_alone() -> None:
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    case = next(check.cases(CPU, torch.float32, 8, reduced=True))
    with torch.autocast("cpu", torch.bfloat16):
        assert check.check(chunks, case).passed
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == dtype
    assert not case.problem.query.requires_grad
