"""The benchmarks at sizes that say nothing about speed: their output, and that what they compare computes the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attention import backends


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


def measure(module: str, folder: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What a benchmark prints, and what it writes."""
    done = run(module, *arguments, "--rounds", "2", "--json", str(folder / "found.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((folder / "found.json").read_text())


def check_rows(printed: str, rows: list[dict[str, Any]]) -> None:
    """Ours is first, what the others are compared with, and every row is in the table."""
    assert rows[0]["method"].startswith("longspan")
    assert rows[0]["ratio"] == 1
    for row in rows:
        assert len(row["seconds"]) == 2
        assert all(seconds > 0 for seconds in row["seconds"])
        assert row["ratio"] > 0
        assert row["of_bound"] > 0
        assert any(line.startswith(row["method"]) for line in printed.splitlines())


def test_attention(tmp_path: Path) -> None:
    printed, found = measure("attention.benchmark", tmp_path, "--tokens", "16", "48", "--window", "16")
    names = {"longspan (default)", *(f"longspan {name}" for name in backends())}
    names |= {"transformers, sliding chunks", "SDPA, band as mask", "SDPA, dense (no window)"}
    for tokens in (16, 48):
        for what in ("forward", "forward+backward"):
            rows = [row for row in found["rows"] if (row["tokens"], row["pass"]) == (tokens, what)]
            assert {row["method"] for row in rows} == names
            check_rows(printed, rows)
            for row in rows:
                same = row["difference"]
                assert same is None if "no window" in row["method"] else same < 1e-4


def test_attention_refuses_what_sliding_chunks_cannot(tmp_path: Path) -> None:
    done = run("attention.benchmark", "--tokens", "100", "--window", "16")
    assert done.returncode == 2
    assert "multiples" in done.stderr
    assert "Traceback" not in done.stderr


def test_pipeline(tmp_path: Path) -> None:
    printed, found = measure("pipeline.benchmark", tmp_path, "--megabytes", "0.1", "--vocabulary", "500")
    rows = found["rows"]
    check_rows(printed, rows)
    assert len(rows) == 3
    assert found["bytes"] >= 100_000
    # Every method, in every round, had the same ids.
    assert len({digest for row in rows for digest in row["digests"]}) == 1
    assert len({row["ids"] for row in rows}) == 1
    assert rows[0]["ids"] > 10_000


def test_trainer(tmp_path: Path) -> None:
    sizes = ["--tokens", "72", "--window", "16", "--layers", "2", "--vocabulary", "600"]
    printed, found = measure("trainer.benchmark", tmp_path, *sizes)
    rows = found["rows"]
    check_rows(printed, rows)
    assert "2 layers of the base model's 12" in printed
    assert len(rows) == 3
    ours = rows[0]["losses"]
    assert ours[-1] < ours[0]
    for row in rows[1:]:
        assert row["losses"] == pytest.approx(ours, rel=1e-4)
