"""A corpus built in object stores, work and output, is the one built in folders, byte for byte."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.build_corpus import main
from pipeline.storage import open_storage
from pipeline.storage.objects import ObjectStorage
from tests.pipeline.conftest import contents, write_config
from tests.pipeline.object_store import Servers, object_stores, use

__all__ = ["object_stores"]  # a fixture


@pytest.mark.parametrize("kind", ["seaweedfs", "gcs"])
def test_built_in_an_object_store(
    kind: str,
    built: tuple[dict[str, Any], Path],
    object_stores: Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    store = object_stores.get(kind)
    use(store, monkeypatch)
    config, folder = built
    output = open_storage(f"{store.uri}/{tmp_path.name}/corpus")
    command = ["--config", str(write_config(tmp_path / "c.yaml", config)), "--output", output.uri, "--local"]
    assert main(command) == 0
    assert isinstance(output, ObjectStorage)
    start = len(output.prefix) + 1
    names = sorted(key[start:] for page in output._below(1000) for key in page)
    expected = contents(folder)
    assert names == sorted([*expected, "report.html"])
    assert {name: output.read(name) for name in expected} == expected
    assert main(command) == 0
    assert "holds this corpus already" in capsys.readouterr().out
