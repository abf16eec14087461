"""The same run by any number of processes and any ZeRO stage, interrupted or not."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.trainer import launcher
from tests.trainer.conftest import LONG, STAGES
from tests.trainer.launcher import CASES, run_config
from tests.trainer.runs import losses, rewind, state_bytes, step_folder, step_rows, timeless
from trainer.batches.corpus import open_sequences
from trainer.engine.config import Pretraining, load_config
from trainer.engine.randomness import as_seed
from trainer.pretrain import prepare


@pytest.fixture(scope="module")
def resumed(launched: Path, tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """One launch on two processes: each run of four steps resumed from its step 2."""
    folder = tmp_path_factory.mktemp("resumed")
    configs = []
    for stage, precision in STAGES:
        name = f"{precision}-{stage}"
        rewind(launched / name, folder / name, 2)
        configs.append(run_config(folder, corpus, name, zero_stage=stage, precision=precision))
    shutil.copytree(launched / "fp32-0", folder / "finished")
    shutil.rmtree(folder / "finished" / "export")
    configs.append(run_config(folder, corpus, "finished"))
    process = launcher.start(CASES, *map(str, configs))
    output = launcher.finish(process)
    assert process.returncode == 0, output
    (folder / "output").write_text(output)
    return folder


def test_a_finished_run_given_again_says_so_and_exports_again(launched: Path, resumed: Path) -> None:
    before, after = launched / "fp32-0", resumed / "finished"
    assert "finished  all 4 steps are done" in (resumed / "output").read_text()
    names = {"metrics.jsonl", "starts.jsonl", "export/model.safetensors", "export/README.md"}
    assert all((after / name).read_bytes() == (before / name).read_bytes() for name in names)
    assert state_bytes(after) == state_bytes(before)


@pytest.mark.parametrize(("stage", "precision"), STAGES)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    launched: Path, resumed: Path, stage: int, precision: str
) -> None:
    name = f"{precision}-{stage}"
    assert state_bytes(resumed / name) == state_bytes(launched / name)
    assert timeless(resumed / name) == timeless(launched / name)
    assert [row["step"] for row in step_rows(resumed / name)] == [1, 2, 3, 4]


def test_zero_stages_compute_the_same_run(launched: Path) -> None:
    plain = load_file(step_folder(launched / "fp32-0", 4) / "weights.safetensors")
    for other in ("fp32-1", "fp32-2"):
        weights = load_file(step_folder(launched / other, 4) / "weights.safetensors")
        assert weights.keys() == plain.keys()
        for name, tensor in plain.items():
            torch.testing.assert_close(weights[name], tensor, atol=1e-6, rtol=1e-5, msg=f"{other}: {name}")
    norms = [
        [row["grad_norm"] for row in step_rows(launched / name)] for name in ("fp32-0", "fp32-1", "fp32-2")
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert norms[0] == pytest.approx(norms[2], rel=1e-5)


def test_weights_and_moments_are_kept_in_fp32(launched: Path) -> None:
    folder = step_folder(launched / "bf16-1", 4)
    for file in ("weights", "exp_avg", "exp_avg_sq"):
        kinds = {tensor.dtype for tensor in load_file(folder / f"{file}.safetensors").values()}
        assert kinds == {torch.float32}
    # bf16 arithmetic is another computation, but not a far one.
    assert losses(launched / "bf16-1") != losses(launched / "fp32-1")
    assert losses(launched / "bf16-1") == pytest.approx(losses(launched / "fp32-1"), rel=0.02)


COMMON = 10  # the step of the checkpoint that runs on other numbers of processes start from


def what_was_seen(config: Path, processes: int) -> dict[str, Any]:
    """All ranks' records of launched_cases, joined; two that saw the same micro-batch must agree."""
    joined: dict[str, Any] = {}
    for rank in range(processes):
        for key, value in json.loads(config.with_suffix(f".seen-{rank}.json").read_text()).items():
            assert joined.setdefault(key, value) == value
    return joined


@pytest.mark.parametrize(("processes", "stage"), [(1, 1), (3, 2), (4, 0)])
def test_any_number_of_processes_computes_the_same_run(
    launched: Path, corpus: Path, tmp_path: Path, processes: int, stage: int
) -> None:
    """50 steps from a common checkpoint that two processes made at ZeRO 0.

    3 does not divide the 4 micro-batches: two ranks run passes of weight 0.
    """
    rewind(launched / "long-0", tmp_path / "other", COMMON)
    config = run_config(tmp_path, corpus, "other", zero_stage=stage, **LONG)
    process = launcher.start(CASES, str(config), processes=processes)
    output = launcher.finish(process)
    assert process.returncode == 0, output
    assert losses(tmp_path / "other") == pytest.approx(losses(launched / "long-0"), abs=1e-5)
    assert len(losses(tmp_path / "other")) == COMMON + 50

    # Batches, masks and the seeds of both dropouts, micro-batch by micro-batch.
    reference = what_was_seen(launched / "long-0.yaml", 2)
    here = what_was_seen(config, processes)
    assert len(here) == 50 * 4
    assert {key: digest for key, (digest, _) in here.items()} == {key: reference[key][0] for key in here}
    # And what dropout made of them: from the same weights, each micro-batch's loss is the same number.
    first = [str(as_seed("hidden dropout", 3, COMMON + 1, number)) for number in range(4)]
    assert [here[key][1] for key in first] == [reference[key][1] for key in first]


def test_a_sequence_repeated_in_a_batch_gets_other_masks_and_dropout(corpus: Path, tmp_path: Path) -> None:
    prepared = prepare(load_config(run_config(tmp_path, corpus, "masks"), [], Pretraining))
    batch = prepared.micro_batch(1, np.array([5, 5]), np.array([0, 1]))
    assert not torch.equal(batch.places[0], batch.places[1])
    again = prepared.micro_batch(1, np.array([5]), np.array([1]))
    assert torch.equal(again.input_ids[0], batch.input_ids[1])
    # Masking is dynamic: the same place of the next step has another mask.
    later = prepared.micro_batch(2, np.array([5]), np.array([1]))
    assert not torch.equal(later.places[0], again.places[0])
    # And of another seed.
    other = prepare(load_config(run_config(tmp_path, corpus, "other", seed=4), [], Pretraining))
    assert not torch.equal(other.micro_batch(1, np.array([5]), np.array([1])).places[0], again.places[0])


def test_pieces_keep_the_documents_of_their_places(corpus: Path) -> None:
    whole, pieces = open_sequences(corpus, "train"), open_sequences(corpus, "train", 32)
    expected = whole.document_ids(np.arange(4)).reshape(-1, 32)
    assert expected.max() > 0
    assert np.array_equal(pieces.document_ids(np.arange(16)), expected)
    assert np.array_equal(pieces.input_ids(np.arange(16)), whole.input_ids(np.arange(4)).reshape(-1, 32))


def test_pieces_of_padding_alone_are_no_sequences(corpus: Path) -> None:
    whole, pieces = open_sequences(corpus, "validation"), open_sequences(corpus, "validation", 16)
    real = [int((whole.input_ids(np.array([i])) != 1).sum()) for i in range(len(whole))]
    assert len(pieces) == sum(-(-tokens // 16) for tokens in real)
    assert ((pieces.input_ids(np.arange(len(pieces))) != 1).sum(1) > 0).all()
