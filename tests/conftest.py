"""What tests of several packages share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real texts and the real tokenizer."""
    folder = Path(os.environ.get("LONGSPAN_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent; LONGSPAN_DATA can name another folder")
    return folder
