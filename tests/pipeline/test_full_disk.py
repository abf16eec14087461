"""A disk that is full: said with the name of the file, nothing half-written, and the same command goes on with room."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import command, contents, write_config


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small file system takes rights that this user does not have")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


@pytest.mark.parametrize(
    ("size", "options"),
    [("40k", ["--local"]), ("400k", ["--local"]), ("900k", ["--local"]), ("700k", ["--max-cpus", "2"])],
)
def test_a_full_disk(
    size: str, options: list[str], disk: Path, built: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    config, reference = built
    file = write_config(tmp_path / "config.yaml", config)
    output = disk / "corpus"
    resize(disk, size)
    done = command(file, output, *options)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"build_corpus: {disk}" in done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    expected = contents(reference)
    for name, content in contents(output).items():
        if name in expected:
            assert content == expected[name], name
    assert not (output / "manifest.json").exists()
    resize(disk, "100m")
    done = command(file, output, "--local")
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(output) == expected
