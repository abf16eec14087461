"""Training under the real launcher: exactness over interruptions, ZeRO stages and process counts; signals; errors."""

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LongformerForMaskedLM

from demo.sources import train_tokenizer
from tests.corpora import made_up_documents
from tests.trainer import launcher
from tests.trainer.launcher import PRETRAIN, run_config
from tests.trainer.models import roberta_folder
from trainer.batches.corpus import open_sequences
from trainer.engine.checkpoint import newest_checkpoint
from trainer.engine.config import Pretraining, load_config
from trainer.model.folder import load_model
from trainer.pretrain import main as pretrain
from trainer.pretrain import prepare

CASES = Path(__file__).with_name("launched_cases.py")
STAGES = [(stage, precision) for precision in ("fp32", "bf16") for stage in (0, 1, 2)]


def rows(run: Path) -> list[dict[str, Any]]:
    """Of the steps; evaluations have rows of their own."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if "loss" in row]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run)]


def final_state(run: Path, step: int = 4) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


def only_step_2(source: Path, target: Path) -> None:
    """What a run that was interrupted between steps 2 and 4 leaves: its metrics run ahead of its checkpoint."""
    target.mkdir()
    shutil.copytree(source / "checkpoints" / "step-00000002", target / "checkpoints" / "step-00000002")
    lines = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
    (target / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:20])


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """One launch on two processes: every stage and precision uninterrupted, then each resumed from its step 2."""
    folder = tmp_path_factory.mktemp("runs")
    names = [f"{precision}-{stage}" for stage, precision in STAGES]
    configs = []
    for name, (stage, precision) in zip(names, STAGES, strict=True):
        configs.append(run_config(folder, corpus, name, zero_stage=stage, precision=precision))
    straight = launcher.start(CASES, *map(str, configs))
    output = launcher.finish(straight)
    assert straight.returncode == 0, output

    resumed = []
    for name, (stage, precision) in zip(names, STAGES, strict=True):
        only_step_2(folder / name, folder / f"{name}-resumed")
        resumed.append(run_config(folder, corpus, f"{name}-resumed", zero_stage=stage, precision=precision))
    only_step_2(folder / "fp32-0", folder / "0-to-2")
    resumed.append(run_config(folder, corpus, "0-to-2", zero_stage=2))
    again = launcher.start(CASES, *map(str, resumed))
    output = launcher.finish(again)
    assert again.returncode == 0, output
    return folder


@pytest.mark.parametrize(("stage", "precision"), STAGES)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    launched: Path, stage: int, precision: str
) -> None:
    name = f"{precision}-{stage}"
    assert final_state(launched / name) == final_state(launched / f"{name}-resumed")
    assert losses(launched / name) == losses(launched / f"{name}-resumed")
    assert [row["step"] for row in rows(launched / f"{name}-resumed")] == [1, 2, 3, 4]


def test_zero_stages_compute_the_same_run(launched: Path) -> None:
    plain = load_file(launched / "fp32-0" / "checkpoints" / "step-00000004" / "weights.safetensors")
    for other in ("fp32-1", "fp32-2", "0-to-2"):
        weights = load_file(launched / other / "checkpoints" / "step-00000004" / "weights.safetensors")
        assert weights.keys() == plain.keys()
        for name, tensor in plain.items():
            torch.testing.assert_close(weights[name], tensor, atol=1e-6, rtol=1e-5, msg=f"{other}: {name}")
    norms = [[row["grad_norm"] for row in rows(launched / name)] for name in ("fp32-0", "fp32-1", "fp32-2")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert norms[0] == pytest.approx(norms[2], rel=1e-5)


def test_weights_and_moments_are_kept_in_fp32(launched: Path) -> None:
    folder = launched / "bf16-1" / "checkpoints" / "step-00000004"
    for file in ("weights", "exp_avg", "exp_avg_sq"):
        assert {tensor.dtype for tensor in load_file(folder / f"{file}.safetensors").values()} == {
            torch.float32
        }
    # bf16 arithmetic is another computation, but not a far one.
    assert losses(launched / "bf16-1") != losses(launched / "fp32-1")
    assert losses(launched / "bf16-1") == pytest.approx(losses(launched / "fp32-1"), rel=0.02)


@pytest.mark.parametrize("processes", [1, 3])
def test_any_number_of_processes_computes_the_same_run(
    launched: Path, corpus: Path, tmp_path: Path, processes: int
) -> None:
    """3 does not divide the 4 micro-batches: two ranks run passes of weight 0."""
    config = run_config(tmp_path, corpus, "other")
    process = launcher.start(PRETRAIN, "--config", str(config), processes=processes)
    output = launcher.finish(process)
    assert process.returncode == 0, output
    assert f"{processes} processes on cpu" in output
    assert losses(tmp_path / "other") == pytest.approx(losses(launched / "fp32-0"), abs=1e-5)


def test_a_sequence_repeated_in_a_batch_gets_other_masks_and_dropout(corpus: Path, tmp_path: Path) -> None:
    prepared = prepare(load_config(run_config(tmp_path, corpus, "masks"), [], Pretraining))
    batch = prepared.micro_batch(1, np.array([5, 5]), np.array([0, 1]))
    assert not torch.equal(batch.places[0], batch.places[1])
    again = prepared.micro_batch(1, np.array([5]), np.array([1]))
    assert torch.equal(again.input_ids[0], batch.input_ids[1])
    # Masking is dynamic: the same place of the next step has another mask.
    later = prepared.micro_batch(2, np.array([5]), np.array([1]))
    assert not torch.equal(later.places[0], again.places[0])


def test_pieces_of_padding_alone_are_no_sequences(corpus: Path, tmp_path: Path) -> None:
    whole, pieces = open_sequences(corpus, "validation"), open_sequences(corpus, "validation", 16)
    real = [int((whole.input_ids(np.array([i])) != 1).sum()) for i in range(len(whole))]
    assert len(pieces) == sum(-(-tokens // 16) for tokens in real)
    assert ((pieces.input_ids(np.arange(len(pieces))) != 1).sum(1) > 0).all()


def test_what_a_run_writes(launched: Path) -> None:
    run = launched / "fp32-0"
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "metrics.jsonl", "tensorboard", "export"}
    assert any((run / "tensorboard").iterdir())
    row = rows(run)[0]
    assert row.keys() >= {"step", "loss", "bpc", "learning_rate", "grad_norm", "tokens_per_second"}
    assert [r["learning_rate"] for r in rows(run)] == [5e-4, 1e-3, 1e-3 / 8, 0]


def test_transformers_loads_the_export_and_gives_our_logits(launched: Path) -> None:
    export = launched / "fp32-0" / "export"
    theirs, info = LongformerForMaskedLM.from_pretrained(export, output_loading_info=True)
    assert not any(info.values())
    ids = torch.randint(4, 299, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.eval()(ids, attention_mask=torch.ones_like(ids)).logits
        found = load_model(export).eval()(ids)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    weights = load_file(launched / "fp32-0" / "checkpoints" / "step-00000004" / "weights.safetensors")
    exported = load_file(export / "model.safetensors")
    assert all(torch.equal(exported[name], tensor) for name, tensor in weights.items())


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
    launched: Path, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(launched / "fp32-0", tmp_path / "run")
    before = sorted((path, path.stat().st_size) for path in (tmp_path / "run").rglob("*"))
    config = run_config(tmp_path, corpus, "run", batch_size=8, seed=4)
    process = launcher.start(PRETRAIN, "--config", str(config), processes=1)
    output = launcher.finish(process)
    assert process.returncode == 2, output
    assert "batch_size: found 8, expected 4" in output
    assert "seed: found 4, expected 3" in output
    after = sorted((path, path.stat().st_size) for path in (tmp_path / "run").rglob("*"))
    assert [entry for entry in after if entry[0].name != ".lock"] == [
        entry for entry in before if entry[0].name != ".lock"
    ]


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


def test_sigterm_to_the_group_saves_and_the_same_command_resumes(corpus: Path, tmp_path: Path) -> None:
    config = run_config(tmp_path, corpus, "stopped", steps=400, checkpoint={"every": 1000, "keep_last": 2})
    process = launcher.start(PRETRAIN, "--config", str(config))
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        assert time.monotonic() < deadline, launcher.finish(process, 1)
        time.sleep(0.05)
    launcher.kill(process, signal.SIGTERM)
    output = launcher.finish(process)
    assert process.returncode != 0
    saved = newest_checkpoint(tmp_path / "stopped" / "checkpoints", report=pytest.fail)
    assert saved is not None, output
    assert 3 <= saved.step < 400


@pytest.mark.drill
def test_killed_anywhere_and_started_again_it_is_the_same_run(
    corpus: Path, tmp_path: Path, kills: int
) -> None:
    """kill -9 of every process at random moments; the same command each time, until it ends by itself."""
    settings = {"steps": 120, "checkpoint": {"every": 7, "keep_last": 2}}
    undisturbed = launcher.start(PRETRAIN, "--config", str(run_config(tmp_path, corpus, "whole", **settings)))
    output = launcher.finish(undisturbed)
    assert undisturbed.returncode == 0, output

    moments = random.Random(11)
    config = run_config(tmp_path, corpus, "killed", **settings)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    progress = []
    for number in range(kills):
        process = launcher.start(PRETRAIN, "--config", str(config))
        # Half of the kills wait for training to be under way, and so fall into steps and saves.
        if number % 2 == 0:
            was = metrics.read_text() if metrics.exists() else ""
            deadline = time.monotonic() + 120
            while process.poll() is None and (not metrics.exists() or metrics.read_text() == was):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(moments.uniform(0, 2))
        else:
            time.sleep(moments.uniform(0, 12))
        launcher.kill(process, signal.SIGKILL)
        launcher.finish(process)
        progress.append(len(metrics.read_text().splitlines()) if metrics.exists() else 0)
    process = launcher.start(PRETRAIN, "--config", str(config))
    output = launcher.finish(process)
    assert process.returncode == 0, output
    assert final_state(tmp_path / "killed", 120) == final_state(tmp_path / "whole", 120), progress
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    left = [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()]
    assert sorted(left) == ["step-00000119", "step-00000120"]
    exports = [
        sorted(file.name for file in (tmp_path / name / "export").iterdir()) for name in ("killed", "whole")
    ]
    assert exports[0] == exports[1]
