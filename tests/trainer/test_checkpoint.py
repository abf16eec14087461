"""Checkpoints: whole or not there; a broken one is seen and passed over."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.disk import needs_mounting, small_disk
from trainer.engine import checkpoint
from trainer.engine.checkpoint import newest_checkpoint, open_checkpoint, prune_checkpoints, save_checkpoint
from trainer.engine.config import InputError

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


def relist(folder: Path, name: str, content: bytes | None) -> None:
    """Put a file, or with None only its line, into a checkpoint as its manifest would have it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if content is None:
        content = (folder / name).read_bytes()
    else:
        (folder / name).write_bytes(content)
    manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def unlist(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest[name]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def as_link(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)


def from_outside(folder: Path, name: str) -> None:
    shutil.copy(folder / name, folder.parent / name)
    relist(folder, f"../{name}", None)


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (lambda folder: as_link(folder, "weights.safetensors"), "expected a plain file beside it"),
        (lambda folder: from_outside(folder, "weights.safetensors"), "expected a plain file beside it"),
        (lambda folder: unlist(folder, "exp_avg.safetensors"), "does not list exp_avg.safetensors"),
        (lambda folder: unlist(folder, "state.json"), "does not list state.json"),
        (lambda folder: relist(folder, "state.json", b"[]"), "found step [], expected 2"),
        (lambda folder: relist(folder, "state.json", b'{"step": 1}'), "found step 1, expected 2"),
        (lambda folder: relist(folder, "state.json", b"{"), "not a checkpoint's manifest"),
        (lambda folder: (folder / "manifest.json").write_text('{"a": 1}'), "does not list"),
    ],
)
def test_a_checkpoint_that_we_did_not_write_so_is_passed_over(
    tmp_path: Path, forge: Callable[[Path], object], message: str
) -> None:
    save(tmp_path, 1, 2)
    forge(tmp_path / "step-00000002")
    reports: list[str] = []
    found = newest_checkpoint(tmp_path, reports.append, keys=("corpus",))
    assert found is not None
    assert found.step == 1
    (report,) = reports
    assert message in report


def test_a_whole_checkpoint_of_another_kind_is_not_passed_over(tmp_path: Path) -> None:
    """The next save would remove it."""
    save(tmp_path, 1, 2)
    relist(tmp_path / "step-00000002", "state.json", b'{"step": 2}')
    with pytest.raises(InputError, match=r"state\.json: has no corpus, expected .* give another --run"):
        newest_checkpoint(tmp_path, pytest.fail, keys=("corpus",))


def test_a_checkpoint_that_may_not_be_read_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, 2)

    def refused(path: Path) -> str:  # the superuser, whom tests may be run by, may read everything
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint, "file_sha256", refused)
    with pytest.raises(InputError, match=r"step-00000002/.*: Permission denied, expected a checkpoint"):
        newest_checkpoint(tmp_path, pytest.fail)


def test_a_file_that_the_manifest_does_not_list_is_not_read(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000001" / "more.safetensors").write_bytes(b"anything")
    assert open_checkpoint(tmp_path / "step-00000001").state().keys() == STATE.keys()


def test_a_checkpoint_reaches_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, then the manifest that vouches for them, then the folder, the name, and the folder that holds the name."""
    synced: list[tuple[str, bool]] = []
    plain = checkpoint.sync

    def sync(path: Path) -> None:
        plain(path)
        synced.append((path.name, (tmp_path / "run" / "step-00000001").exists()))

    monkeypatch.setattr(checkpoint, "sync", sync)
    save(tmp_path / "run", 1)
    names = [name for name, _ in synced]
    files = {
        "weights.safetensors",
        "exp_avg.safetensors",
        "exp_avg_sq.safetensors",
        "config.json",
        "state.json",
    }
    assert names[0] == tmp_path.name
    assert set(names[1:6]) == files
    assert names[6:] == ["manifest.json", ".step-00000001.partial", "run"]
    assert [there for _, there in synced] == [False] * 8 + [True]


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


@given(
    steps=st.sets(st.integers(1, 60), min_size=1),
    keep_last=st.integers(1, 4),
    keep_every=st.integers(0, 12),
)
@settings(deadline=None)
def test_the_last_and_every_nth_are_kept(steps: set[int], keep_last: int, keep_every: int) -> None:
    """After any number of saves, each followed by its pruning."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for step in sorted(steps):
            (folder / f"step-{step:08d}").mkdir()
            (folder / f"step-{step:08d}" / "manifest.json").touch()
            prune_checkpoints(folder, keep_last, newest=step, keep_every=keep_every)
        left = {int(path.name[5:]) for path in folder.iterdir()}
    for step in steps:
        later = sum(other > step for other in steps)
        assert (step in left) == (later < keep_last or (keep_every > 0 and step % keep_every == 0))


def test_a_link_to_a_checkpoint_elsewhere_is_left_alone(tmp_path: Path) -> None:
    save(tmp_path / "large_disk", 1)
    save(tmp_path / "run", 2)
    (tmp_path / "run" / "step-00000001").symlink_to(tmp_path / "large_disk" / "step-00000001")
    prune_checkpoints(tmp_path / "run", keep_last=1, newest=2)
    assert open_checkpoint(tmp_path / "run" / "step-00000001").step == 1


def test_what_a_killed_save_left_makes_room_for_the_next(tmp_path: Path) -> None:
    stale = tmp_path / ".step-00000007.partial"
    stale.mkdir()
    save(tmp_path, 8)
    assert not stale.exists()


@needs_mounting
def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    state = {name: {"a.weight": torch.zeros(1 << 18)} for name in STATE}  # 3 MiB in all
    with small_disk(tmp_path / "disk", "5m") as disk:
        save_checkpoint(disk / "run", 1, state, {}, {})
        before = {path.name: path.read_bytes() for path in (disk / "run" / "step-00000001").iterdir()}
        with pytest.raises(InputError) as caught:
            save_checkpoint(disk / "run", 2, state, {}, {})
        assert "step-00000002: not saved: " in str(caught.value)
        assert "No space left on device" in str(caught.value)
        assert "It takes 3 MiB" in str(caught.value)
        assert "Step 1 is the last checkpoint" in str(caught.value)
        assert [path.name for path in (disk / "run").iterdir()] == ["step-00000001"]
        assert before == {path.name: path.read_bytes() for path in (disk / "run" / "step-00000001").iterdir()}
        shutil.rmtree(disk / "run" / "step-00000001")
        assert save_checkpoint(disk / "run", 2, state, {}, {}).is_dir()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"not saved: Not a directory.*There is no checkpoint yet"):
        save(tmp_path / "file" / "checkpoints", 1)


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


def test_a_link_to_a_broken_checkpoint_of_the_same_step_makes_room(tmp_path: Path) -> None:
    save(tmp_path / "large_disk", 5)
    (tmp_path / "large_disk" / "step-00000005" / "weights.safetensors").write_bytes(b"")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step-00000005").symlink_to(tmp_path / "large_disk" / "step-00000005")
    save(tmp_path / "run", 5)
    assert open_checkpoint(tmp_path / "run" / "step-00000005").step == 5
    assert (tmp_path / "large_disk" / "step-00000005").is_dir()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none", pytest.fail) is None
