"""What a training on CPU frees stays with its process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Frees 64 MB and prints by how many MB the resident set fell.
PROGRAM = """
import psutil, torch
from trainer.engine.allocator import keep_freed_memory
did = keep_freed_memory()
tensor = torch.ones(64 << 20, dtype=torch.uint8)
before = psutil.Process().memory_info().rss
del tensor
print(did, before - psutil.Process().memory_info().rss >> 20)
"""


@pytest.mark.parametrize("own", [None, "MALLOC_TRIM_THRESHOLD_"])
def test_freed_memory_is_kept_where_the_environment_has_no_settings_of_its_own(own: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment |= {"PYTHONPATH": str(ROOT)} | ({own: "131072"} if own else {})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    did, megabytes = done.stdout.split()
    assert did == str(own is None)
    assert int(megabytes) < 8 if own is None else int(megabytes) > 56
