"""The range of transformers that pyproject.toml allows is kept at both ends.

All tests run with the version that is installed, the newest that there was; here those that transformers matters most
to run once more, in the environment of tests/oldest_transformers.py.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import transformers

import attention.huggingface
from tests.oldest_transformers import PYTHON, allowed, installed, oldest

ROOT = Path(__file__).parents[2]
FILES = {
    "tests/attention/test_huggingface.py",
    "tests/attention/test_longspan.py",
    "tests/attention/test_transformers.py",
    "tests/trainer/test_families.py",
    "tests/trainer/test_led.py",
    "tests/trainer/test_summarization.py",
}
RUN = """
import sys, pytest, transformers
expected, *arguments = sys.argv[1:]
assert transformers.__version__ == expected, transformers.__version__
sys.exit(pytest.main(arguments))
"""


def test_what_is_installed_is_in_the_range() -> None:
    assert allowed().contains(transformers.__version__)


@pytest.mark.timeout(300)
def test_the_oldest_passes_the_same_tests(tmp_path: Path) -> None:
    version = installed()
    if version is None:
        pytest.skip(f"no transformers {oldest()}: `python -m tests.oldest_transformers` installs it")
    assert version == oldest()
    options = ["-v", "--maxfail=3", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'base'}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(
        [PYTHON, "-c", RUN, str(version), *options, *sorted(FILES)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout.partition(" FAILURES ")[2] or run.stdout + run.stderr
    passed = re.findall(r"^(\S+?)::.* PASSED", run.stdout, re.MULTILINE)
    assert set(passed) == FILES
    assert len(passed) > 100


def test_one_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    older = ModuleType("transformers")
    monkeypatch.setattr(older, "__version__", "4.57.6", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", older)
    with pytest.raises(ImportError, match=r"found transformers 4.57.6; .* expects (\S+) or later") as error:
        importlib.reload(attention.huggingface)
    assert str(oldest()) in str(error.value)
