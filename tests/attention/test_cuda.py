"""The CUDA backend on a machine without a GPU: its kernels in Triton's interpreter, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attention import backends, cuda
from attention.pattern import Intervals

HERE = Path(__file__).parent
# Of the ordinary matrix what is quick at the interpreter's pace; `interpreted_cuda` has the rest at smaller sizes.
MATRIX = "cuda and (omitted or edges_of_the_domain or padding_is or neighbours)"


@pytest.mark.parametrize(
    "selection",
    [["interpreted_cuda.py"], ["test_equality.py", "-k", MATRIX]],
    ids=["its own tests", "the backends' matrix"],
)
def test_in_the_interpreter(selection: list[str], tmp_path: Path) -> None:
    """TRITON_INTERPRET must be set before triton is imported."""
    pytest.importorskip("triton")
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "LONGSPAN_CACHE": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(HERE / selection[0]),
        *selection[1:],
    ]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parents[1])
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr


def test_is_no_backend_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "cuda" not in backends()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (torch.zeros(1, 1, 4, 8), "tensors on a CUDA device"),
        (torch.zeros(1, 1, 4, 8, device="meta"), "tensors on a"),
    ],
)
def test_says_what_it_expects(query: torch.Tensor, expected: str) -> None:
    assert expected in str(cuda.rejects(query))


@pytest.mark.parametrize("seed", range(20))
def test_which_rows_see_a_key(seed: int) -> None:
    """Against the intervals read one by one; rows that see nothing may lie in the midst."""
    generator = torch.Generator().manual_seed(seed)
    rows, keys = 30, 40
    first = torch.randint(0, keys, (2, rows), generator=generator).sort(1).values
    last = torch.maximum(torch.randint(0, keys + 1, (2, rows), generator=generator).sort(1).values, first)
    nothing = torch.rand(2, rows, generator=generator) < 0.3
    first, last = first.masked_fill(nothing, 0), last.masked_fill(nothing, 0)
    empty = last <= first
    found = cuda.transposed(Intervals(first, last), keys)
    key, row = torch.arange(keys), torch.arange(rows)
    sees = (key >= first[..., None]) & (key < last[..., None])  # (2, rows, keys)
    claimed = (row >= found.first[..., None]) & (row < found.last[..., None])  # (2, keys, rows)
    assert torch.equal(claimed & ~empty[:, None], sees.mT)
