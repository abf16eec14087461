import os
from pathlib import Path

import pytest

from tests.corpora import build_small_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed corpus of 128-token sequences, shared by the session: read it, do not write to it."""
    return build_small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def kills() -> int:
    """How often a drill kills: 3 in `make test`, more in `make drills`."""
    return int(os.environ.get("LONGSPAN_KILLS", "3"))
