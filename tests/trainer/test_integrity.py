"""A corpus whose content is not what its manifest says is found before training, and read for that only once."""

import shutil
from pathlib import Path

import pytest

from trainer.batches import integrity
from trainer.batches.corpus import open_sequences
from trainer.engine.config import InputError


def flipped(corpus: Path, folder: Path) -> Path:
    """A copy with one bit of its first shard's last token changed, and the shard."""
    shutil.copytree(corpus, folder)
    shard = min((folder / "train").glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    return shard


def test_a_shard_with_a_flipped_bit_is_refused(corpus: Path, tmp_path: Path) -> None:
    shard = flipped(corpus, tmp_path / "flipped")
    with pytest.raises(
        InputError, match=rf"{shard.name}: found the sha256 \w+, expected \w+ as the manifest"
    ):
        open_sequences(tmp_path / "flipped", "train")


def test_a_large_corpus_is_read_once_and_again_where_it_changed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "WORTH_NOTING", 0)
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    read: list[str] = []
    plain = integrity.file_sha256

    def counted(path: Path) -> str:
        read.append(path.name)
        return plain(path)

    monkeypatch.setattr(integrity, "file_sha256", counted)
    shutil.copytree(corpus, tmp_path / "copy")
    names = sorted(path.name for path in (tmp_path / "copy" / "train").glob("*.arrow"))
    integrity.check_shards(tmp_path / "copy", "train")
    assert sorted(read) == names
    integrity.check_shards(tmp_path / "copy", "train")
    assert sorted(read) == names
    shutil.rmtree(tmp_path / "copy")
    shard = flipped(corpus, tmp_path / "copy")
    with pytest.raises(InputError, match=shard.name):
        integrity.check_shards(tmp_path / "copy", "train")


def test_a_cache_that_cannot_be_written_costs_time_alone(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "WORTH_NOTING", 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "file" / "cache"))
    integrity.check_shards(corpus, "train")
