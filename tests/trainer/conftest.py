import os
from pathlib import Path

import pytest

from tests.corpora import build_small_corpus
from tests.trainer import launcher
from tests.trainer.launcher import CASES, run_config

STAGES = [(stage, precision) for precision in ("fp32", "bf16") for stage in (0, 1, 2)]
LONG = {"steps": 60, "checkpoint": {"every": 5, "keep_last": 2, "keep_every": 10}}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed corpus of 128-token sequences, shared by the session: read it, do not write to it."""
    return build_small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def kills() -> int:
    """How often a drill kills: 3 in `make test`, more in `make drills`."""
    return int(os.environ.get("LONGSPAN_KILLS", "3"))


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """One launch on two processes, uninterrupted: read its runs, do not write to them.

    PRECISION-STAGE are four steps each; long-0, long-1 and long-2 are 60 in fp32, by ZeRO stage.
    """
    folder = tmp_path_factory.mktemp("runs")
    configs = [
        run_config(folder, corpus, f"{precision}-{stage}", zero_stage=stage, precision=precision)
        for stage, precision in STAGES
    ]
    configs += [run_config(folder, corpus, f"long-{stage}", zero_stage=stage, **LONG) for stage in (0, 1, 2)]
    process = launcher.start(CASES, *map(str, configs))
    output = launcher.finish(process)
    assert process.returncode == 0, output
    return folder
