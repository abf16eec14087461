"""What a run writes about itself: rows that are JSON whatever happens, cut where a run resumes."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.engine.monitor import Monitor, duration, prepare_wandb

TRAINING = {"loss": 3.5, "bpc": 5.05, "learning_rate": 1e-4, "grad_norm": 0.5, "tokens_per_second": 12_345.6}


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (run / name).read_text().splitlines()]


def monitor(run: Path, resumed_at: int = 0, events: list[Any] | None = None) -> Monitor:
    def write(figures: dict[str, float], step: int) -> None:
        if events is not None:
            events.append((step, figures))

    return Monitor(run, resumed_at, 100, write, {"processes": 2})


def test_rows_of_training_and_of_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Any] = []
    made = monitor(tmp_path, events=events)
    made.log({"step": 10, **TRAINING, "mfu": 0.314})
    made.log({"step": 10, "validation_bpc": 4.75, "validation_tokens": 900})
    made.close()
    assert rows(tmp_path) == [
        {"step": 10, **TRAINING, "mfu": 0.314},
        {"step": 10, "validation_bpc": 4.75, "validation_tokens": 900},
    ]
    assert events == [
        (10, {**TRAINING, "mfu": 0.314}),
        (10, {"validation_bpc": 4.75, "validation_tokens": 900.0}),
    ]
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step 10/100  bpc 5.0500  lr 1.000e-04  tokens/s 12,346  mfu 31.4%  ")
    assert first.endswith(" left")
    assert second.startswith("step 10/100  validation bpc 4.7500  ")


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    events: list[Any] = []
    made = monitor(tmp_path, events=events)
    made.log({"step": 1, "loss": math.nan, "bpc": math.inf, "grad_norm": None, "note": "text"})
    assert rows(tmp_path) == [{"step": 1, "loss": None, "bpc": None, "grad_norm": None, "note": "text"}]
    assert events == [(1, {})]


def test_a_resumed_run_cuts_what_will_be_done_again(tmp_path: Path) -> None:
    made = monitor(tmp_path)
    for step in (10, 20, 30):
        made.log({"step": step, **TRAINING})
        made.log({"step": step, "validation_bpc": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')  # a kill cut it short
    monitor(tmp_path, resumed_at=20)
    assert [row["step"] for row in rows(tmp_path)] == [10, 10, 20, 20]
    starts = rows(tmp_path, "starts.jsonl")
    assert [(row["step"], row["processes"]) for row in starts] == [(0, 2), (20, 2)]
    assert starts[0]["time"].endswith("+00:00")


def test_a_line_without_its_end_is_done_again(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 11}')
    monitor(tmp_path, resumed_at=20).log({"step": 21})
    assert [row["step"] for row in rows(tmp_path)] == [10, 21]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99, "99 s"), (150, "2.5 min"), (5999, "100 min"), (9000, "2.5 h"), (864000, "10 days")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_wandb_writes_below_the_run_and_goes_on_with_it(tmp_path: Path) -> None:
    """The real package, offline, opened by DeepSpeed's monitor as in training."""
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed")
    script = (
        "from pathlib import Path; from trainer.engine import deepspeed as engine\n"
        "from trainer.engine.config import WeightsAndBiases\n"
        "engine.start_processes()\n"
        f"write = engine.monitors(Path({str(tmp_path)!r}), WeightsAndBiases(project='p'))\n"
        "write({'bpc': 1.5}, 1)\n"
        "import wandb; print(wandb.run.id, wandb.run.project, wandb.run.dir); wandb.finish()\n"
        "engine.end_processes(); engine.leave(0)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"WANDB_MODE": "offline", "DS_ACCELERATOR": "cpu"}
    found = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found.append(next(line.split() for line in done.stdout.splitlines() if " p /" in line))
    assert found[0][0] == found[1][0] == (tmp_path / "wandb" / "run-id").read_text()
    for _, project, folder in found:
        assert project == "p"
        assert Path(folder).is_relative_to(tmp_path / "wandb")


def test_preparing_wandb_respects_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_DIR", "/mine")
    try:
        prepare_wandb(tmp_path)
        assert os.environ["WANDB_DIR"] == "/mine"
        assert os.environ["WANDB_RUN_ID"] == (tmp_path / "wandb" / "run-id").read_text()
    finally:
        for name in ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_NAME"):
            os.environ.pop(name, None)
