"""What the trainer refuses: one message, exit code 2, nothing written."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from demo.sources import train_tokenizer
from pipeline.shards import open_corpus
from tests.corpora import made_up_documents
from tests.trainer import launcher
from tests.trainer.launcher import PRETRAIN, run_config
from tests.trainer.models import roberta_folder
from trainer.batches.order import SequenceOrder
from trainer.engine.checkpoint import newest_checkpoint
from trainer.pretrain import main as pretrain


def test_it_runs_from_another_folder_and_exit_codes_pass_through(corpus: Path, tmp_path: Path) -> None:
    config = run_config(tmp_path, corpus, "bad", model={"hidden_size": -1, "typo": 1}, precision="fp8")
    process = launcher.start(PRETRAIN, "--config", str(config), cwd=tmp_path)
    output = launcher.finish(process)
    assert process.returncode == 2, output
    for problem in ("model.hidden_size: found -1", "model.typo: unknown key", "precision: found 'fp8'"):
        assert output.count(problem) == 1, output  # by one rank
    assert "Traceback" not in output
    assert not (tmp_path / "bad").exists()


def test_misfits_of_model_corpus_and_run_are_refused(
    launched: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = launched / "fp32-0" / "export"
    shard = next((corpus / "train").glob("*.arrow"))
    torn = tmp_path / "torn"
    shutil.copytree(corpus, torn)
    (torn / "train" / shard.name).write_bytes(shard.read_bytes()[:-100])
    short = roberta_folder(tmp_path / "short", tokens=32, vocab_size=300)
    foreign = tmp_path / "foreign"
    shutil.copytree(export, foreign)
    train_tokenizer(made_up_documents(50, seed=9), 300, foreign / "tokenizer.json")
    cases = [
        ({"corpus": str(tmp_path / "none")}, "manifest.json: missing"),
        ({"corpus": str(torn)}, f"{shard.name}: has "),
        ({"sequence_length": 100}, "sequence_length: found 100, expected a divisor of 128"),
        ({"model": str(tmp_path / "none")}, "no such folder"),
        ({"model": str(export), "extra_positions_only": True}, "expected a folder made by trainer.convert"),
        ({"model": str(short)}, "has positions for 32 tokens, expected at least sequence_length 128"),
        ({"model": str(foreign)}, "the one that made"),
    ]
    for changes, message in cases:
        config = run_config(tmp_path, corpus, "refused", **changes)
        assert pretrain(["--config", str(config)]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "refused").exists()


def test_a_run_of_another_configuration_is_not_continued(
    launched: Path, corpus: Path, tmp_path: Path
) -> None:
    shutil.copytree(launched / "fp32-0", tmp_path / "run")
    before = sorted((path, path.stat().st_size) for path in (tmp_path / "run").rglob("*"))
    other = str(launched / "fp32-0" / "export")
    config = run_config(tmp_path, corpus, "run", batch_size=8, seed=4, model=other)
    process = launcher.start(PRETRAIN, "--config", str(config), processes=1)
    output = launcher.finish(process)
    assert process.returncode == 2, output
    assert "batch_size: found 8, expected 4" in output
    assert "seed: found 4, expected 3" in output
    assert re.search(r"  model's weights: found '\w{32}', expected 'drawn'", output)
    after = sorted((path, path.stat().st_size) for path in (tmp_path / "run").rglob("*"))
    assert [entry for entry in after if entry[0].name != ".lock"] == [
        entry for entry in before if entry[0].name != ".lock"
    ]


def test_what_one_process_cannot_read_ends_all_with_its_message(corpus: Path, tmp_path: Path) -> None:
    """A token beyond the vocabulary in a sequence of the second process alone; the manifest vouches for it."""
    hostile = tmp_path / "hostile"
    shutil.copytree(corpus, hostile)
    opened = open_corpus(corpus)
    chosen = int(SequenceOrder(len(opened), 3).batch(1, 4)[1])
    row = opened.input_ids(chosen).tobytes()
    manifest = json.loads((hostile / "manifest.json").read_text())
    for entry in manifest["splits"]["train"]["shards"]:
        content = (hostile / entry["path"]).read_bytes()
        if row in content:
            changed = content.replace(row, row[:2] + b"\xff\xff" + row[4:])
            (hostile / entry["path"]).write_bytes(changed)
            entry["sha256"] = hashlib.sha256(changed).hexdigest()
    (hostile / "manifest.json").write_text(json.dumps(manifest))
    process = launcher.start(PRETRAIN, "--config", str(run_config(tmp_path, hostile, "run")))
    output = launcher.finish(process)
    assert process.returncode == 2, output
    told = (
        f"{hostile}: found the token 65535 in one of the train sequences [{chosen}], expected less than 300"
    )
    assert output.count(told) == 1, output
    assert "Traceback" not in output


def test_a_dry_run_says_the_plan_and_writes_nothing(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_config(tmp_path, corpus, "dry")
    assert pretrain(["--config", str(config), "--dry-run"]) == 0
    assert "4 sequences = 4 micro-batches of 1" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()


def test_a_loss_that_is_not_finite_stops_before_the_update(
    launched: Path, corpus: Path, tmp_path: Path
) -> None:
    model = tmp_path / "poisoned"
    shutil.copytree(launched / "fp32-0" / "export", model)
    weights = load_file(model / "model.safetensors")
    weights["lm_head.bias"][7] = float("nan")
    save_file(weights, model / "model.safetensors")
    process = launcher.start(PRETRAIN, "--config", str(run_config(tmp_path, corpus, "nan", model=str(model))))
    output = launcher.finish(process)
    assert process.returncode == 1, output
    assert output.count("step 1: the loss is not finite; its sequences are ") == 1
    assert "Traceback" not in output
    assert newest_checkpoint(tmp_path / "nan" / "checkpoints", report=pytest.fail) is None
