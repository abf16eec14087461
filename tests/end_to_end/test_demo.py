"""`make demo`'s program, whole, with a handful of updates in each training: that it runs, not what it learns."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LongformerForMaskedLM

ROOT = Path(__file__).parents[2]


def run_demo(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_memory_monitor_refresh_ms": "0", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "demo.run", "--to", str(folder), "--updates", "4"]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=590, check=False
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo") / "output"
    done = run_demo(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_it_prints_the_corpus_and_table_5(demo: tuple[Path, str]) -> None:
    folder, output = demo
    for source in ("books", "wikipedia", "realnews", "stories"):
        assert re.search(rf"^{source} +\d", output, re.MULTILINE)
    rows = re.findall(r"^(.{44}) +(\d+\.\d{3}) +(\d+\.\d{3})$", output, re.MULTILINE)
    assert [float(paper) for _, _, paper in rows] == [1.846, 10.299, 1.957, 1.753, 1.850]
    # The same text and the same masked places for every model.
    counts = {
        line["tokens"] for line in map(json.loads, re.findall(r"^  (\{.*bpc.*\})$", output, re.MULTILINE))
    }
    assert len(counts) == 1
    assert (folder / "corpus" / "report.html").exists()


def test_the_exported_model_is_the_one_it_names(demo: tuple[Path, str]) -> None:
    _, output = demo
    match = re.search(r"LongformerForMaskedLM.from_pretrained\('(.+)'\)", output)
    assert match is not None
    model, info = LongformerForMaskedLM.from_pretrained(match[1], output_loading_info=True)
    assert not any(info.values())
    tokenizer = AutoTokenizer.from_pretrained(match[1])
    assert tokenizer.model_max_length == 4096
    batch = tokenizer("Returns the <mask> of the sequence.", return_tensors="pt")
    assert int((batch["input_ids"] == tokenizer.mask_token_id).sum()) == 1
    with torch.no_grad():
        assert model.eval()(**batch).logits.isfinite().all()


def test_positions_alone_changed_in_the_last_row(demo: tuple[Path, str]) -> None:
    from safetensors.torch import load_file

    folder, _ = demo
    before = load_file(folder / "models" / "longformer-start" / "model.safetensors")
    after = load_file(folder / "runs" / "positions" / "export" / "model.safetensors")
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    assert changed == ["longformer.embeddings.position_embeddings.weight"]
    rows = (before[changed[0]] != after[changed[0]]).any(1)
    assert not rows[:34].any()
    assert rows[34:].all()


def test_a_second_run_finds_everything_done(demo: tuple[Path, str]) -> None:
    folder, output = demo
    kept = {path: path.stat().st_mtime_ns for path in (folder / "corpus").rglob("*.arrow")}
    again = run_demo(folder)
    assert again.returncode == 0, again.stdout + again.stderr
    assert kept == {path: path.stat().st_mtime_ns for path in (folder / "corpus").rglob("*.arrow")}
    table = re.compile(r"^== table 5.*?^== ", re.MULTILINE | re.DOTALL)
    assert table.findall(again.stdout) == table.findall(output)
    assert "step 1/4" not in again.stdout
