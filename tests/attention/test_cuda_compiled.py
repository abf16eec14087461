"""What Triton's compiler makes of the CUDA kernels, for GPUs that are not here: machine code, not results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attention import cuda
from attention.cuda import configurations
from attention.cuda.configurations import Configuration
from attention.pattern import Pattern
from attention.problem import Problem

pytest.importorskip("triton")

from attention.cuda import compiled


def breaches(dtype: torch.dtype, head_dim: int, features: str, capability: tuple[int, int]) -> list[str]:
    """One line for each breach of a kernel."""
    found = []
    for row in compiled.table([dtype], [head_dim], [features], [capability]):
        assert row.registers > 0 or row.breaches
        found += [f"{row.kernel} of {row.variant}: {breach}" for breach in row.breaches]
    return found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("capability", compiled.CAPABILITIES, ids=str)
def test_16_bit_kernels_spill_no_registers_and_use_tensor_cores(
    capability: tuple[int, int], dtype: torch.dtype
) -> None:
    """With documents, holes, global tokens and dropout. `python -m attention.cuda.compiled` has the other variants."""
    assert breaches(dtype, 64, "all", capability) == []


def test_float32_kernels_use_no_tensor_core() -> None:
    """TF32 is Triton's default for float32 and would lose 13 bits; in the interpreter it cannot be seen."""
    assert breaches(torch.float32, 32, "plain", (9, 0)) == []


def test_a_breach_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the exit code, in the table and in the JSON: here blocks too large for the registers."""
    table = configurations._TABLE[8, 0] | {("differentiate_keys", 64, 2): Configuration(64, 64, 4, 2)}
    monkeypatch.setitem(configurations._TABLE, (8, 0), table)
    some = ["--dtype", "float16", "--head-dim", "64", "--features", "plain", "--capability", "8.0"]
    assert compiled.main([*some, "--json", str(tmp_path / "table.json")]) == 1
    assert "BREACH" in capsys.readouterr().out
    rows = json.loads((tmp_path / "table.json").read_text())
    breached = [row["kernel"] for row in rows if row["breaches"]]
    assert breached == ["differentiate_keys"]


@pytest.mark.parametrize(
    "bad", [["--capability", "7.5"], ["--head-dim", "256"], ["--dtype", "float64"]], ids=str
)
def test_options_it_does_not_take(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        compiled.main(bad)
    assert stopped.value.code == 2
    assert bad[1] in capsys.readouterr().err


def test_it_does_not_compile_in_the_interpreter(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert compiled.main([]) == 2
    assert "expected triton" in capsys.readouterr().out


def specialised(one: Problem, capability: tuple[int, int]) -> dict[tuple[str, str], set[str]]:
    """What Triton compiles each kind of launch for: types, divisibility and constants of its arguments."""
    found: dict[tuple[str, str], set[str]] = {}
    for launch in compiled.launches(one, capability):
        with compiled.absent_gpu(capability) as gpu:
            *_, binder = launch.kernel.device_caches[gpu.get_current_device()]
        _, specialisation, options = binder(**launch.arguments, **launch.options)
        key = (launch.kernel.__name__, compiled.variant(launch))
        found.setdefault(key, set()).add(f"{specialisation} {sorted(options.items())}")
    return found


def some_problem(length: int, heads: int, batch: int, **options: Any) -> Problem:
    """With all features, tensors as a model's, and numbers that invite Triton to specialise: 1, 16, odd ones."""
    generator = torch.Generator().manual_seed(length)
    projections = [
        torch.zeros(batch, length, heads, 64, dtype=torch.float16).transpose(1, 2) for _ in range(6)
    ]
    real = torch.rand(batch, length, generator=generator) < 0.8
    real[:, 0] = real[:, -1] = True
    real[:, 1 : length - 1 : 5] = False
    is_global = torch.zeros(batch, length, dtype=torch.bool)
    is_global[:, :: options.get("global_every", 7)] = True
    document = torch.arange(length).expand(batch, length) // 40
    dilation = tuple(options.get("dilation", [1] * heads))
    pattern = Pattern.of(
        projections[0], options.get("window", 16), dilation, False, real, is_global, document
    )
    seed = torch.arange(batch + 1)[1:]  # not at a multiple of 16 bytes
    return Problem(*projections, pattern, options.get("scale", 0.125), options.get("dropout_p", 0.1), seed)


@pytest.mark.parametrize("capability", compiled.CAPABILITIES, ids=str)
def test_every_size_runs_the_kernels_that_are_compiled_ahead_of_time(capability: tuple[int, int]) -> None:
    """Whatever the lengths, heads, batch, dilations, windows and global tokens: one variant of each kernel."""
    expected = specialised(compiled.problem(torch.float16, 64, compiled.FEATURES["all"]), capability)
    assert len(expected) == 8
    assert all(len(variants) == 1 for variants in expected.values())
    problems = [
        some_problem(5, 1, 1, global_every=2),
        some_problem(63, 1, 3, dropout_p=0.5, scale=1.0),
        some_problem(128, 4, 1, dilation=[1, 2, 2, 16], window=2),
        some_problem(700, 3, 2, dilation=[1000, 1, 3], global_every=300, dropout_p=0.9),
    ]
    for one in problems:
        assert specialised(one, capability) == expected


def test_operands_that_kernels_cannot_load_as_they_are_get_copied() -> None:
    """Else a launch would need a variant that was not compiled ahead of time, or 32-bit offsets would not do."""
    whole = torch.zeros(2, 3, 10, 64)
    assert cuda._aligned(whole) is whole
    shifted = torch.zeros(2 * 3 * 10 * 64 + 1)[1:].view(2, 3, 10, 64)
    for x in (shifted, torch.zeros(2, 3, 10, 72)[..., 4:68], torch.zeros(2, 3, 64, 10).mT):
        copy = cuda._aligned(x)
        assert copy.is_contiguous()
        assert torch.equal(copy, x)
    far = torch.empty_strided((1, 1, 1 << 23, 8), (1, 1, 1024, 1), device="meta")
    assert cuda._aligned(far).is_contiguous()


def test_occupancy() -> None:
    """As NVIDIA's occupancy calculator has it, for an A100."""
    limits = compiled.LIMITS[8, 0]
    assert compiled.occupancy(32, 0, 0, 4, limits) == 1.0
    assert compiled.occupancy(255, 0, 0, 4, limits) == 2 * 4 / 64
    assert compiled.occupancy(128, 0, 0, 8, limits) == 2 * 8 / 64
    assert compiled.occupancy(64, 80 << 10, 0, 8, limits) == 2 * 8 / 64
    assert compiled.occupancy(32, 0, 256, 4, compiled.LIMITS[10, 0]) == 2 * 4 / 64
