"""Checkpoints: whole or not there; a broken one is seen and passed over."""

import shutil
from pathlib import Path

import pytest
import torch

from trainer.engine.checkpoint import newest_checkpoint, open_checkpoint, prune_checkpoints, save_checkpoint

STATE = {name: {"a.weight": torch.randn(3, 4)} for name in ("weights", "exp_avg", "exp_avg_sq")}


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder, step, STATE, {"corpus": "c"}, {"config.json": "{}\n"})


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 100)
    found = open_checkpoint(tmp_path / "step-00000100")
    assert found.step == 100
    assert found.facts["corpus"] == "c"
    state = found.state()
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name]["a.weight"], STATE[name]["a.weight"]) for name in STATE)


@pytest.mark.parametrize("damage", ["manifest", "missing", "short", "flipped", "garbled"])
def test_a_broken_checkpoint_is_reported_and_the_one_before_taken(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1, 2)
    newest = tmp_path / "step-00000002"
    file = newest / "exp_avg.safetensors"
    if damage == "manifest":
        (newest / "manifest.json").unlink()
    elif damage == "missing":
        file.unlink()
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "flipped":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        (newest / "manifest.json").write_text("[1]")
    reports: list[str] = []
    found = newest_checkpoint(tmp_path, reports.append)
    assert found is not None
    assert found.step == 1
    assert len(reports) == 1
    assert "step-00000002" in reports[0]


def test_a_save_that_was_cut_short_is_not_there_and_is_cleared(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / ".step-00000002.partial")
    found = newest_checkpoint(tmp_path, pytest.fail)
    assert found is not None
    assert found.step == 1
    save(tmp_path, 2)
    prune_checkpoints(tmp_path, keep_last=1, newest=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_a_broken_later_checkpoint_does_not_push_out_the_good_one_just_saved(tmp_path: Path) -> None:
    save(tmp_path, 100, 300)
    (tmp_path / "step-00000300" / "weights.safetensors").write_bytes(b"")
    save(tmp_path, 150)
    prune_checkpoints(tmp_path, keep_last=1, newest=150)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000150"]


def test_its_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    save(tmp_path, 1)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "step-00000001").iterdir()}
    (tmp_path / "other").touch()
    assert modes == {(tmp_path / "other").stat().st_mode & 0o777}


def test_a_broken_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / "step-00000005" / "weights.safetensors").write_bytes(b"")
    save(tmp_path, 5)
    assert open_checkpoint(tmp_path / "step-00000005").step == 5


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none", pytest.fail) is None
