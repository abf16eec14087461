"""The native kernel: its sizes and instruction sets, its threads, and how it is built."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import backends, cache, cpu, windowed_attention
from tests.attention.cases import Case, make
from tests.attention.dense import dense_attention

ROOT = Path(__file__).parents[2]

if "cpu" not in backends():
    pytest.skip("no C++ compiler here", allow_module_level=True)


@pytest.fixture
def threads() -> Iterator[None]:
    """Whatever a test sets is undone."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(case: Case, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    output, gradients = case.run(windowed_attention, dtype, backend="cpu")
    return [output, *gradients]


def assert_exact(case: Case, dtype: torch.dtype = torch.float32) -> None:
    """In float32 within 1e-5 of each tensor's greatest number; in half within three times plain PyTorch's error.

    And in half within two roundings of the greatest number of all, as the sum over a row of grad * output, which is
    taken off each weight's gradient, comes from an output that was rounded: 0 in exact numbers need not be 0.
    """
    rounded = [x.to(dtype).double() for x in case.projections]
    case = Case(rounded, case.window, case.options, case.grad.to(dtype).double())
    expected, expected_gradients = case.run(dense_attention)
    truths = [expected, *expected_gradients]
    bounds = [1e-5 * max(1.0, float(truth.abs().max())) for truth in truths]
    if dtype != torch.float32:
        plain, plain_gradients = case.run(dense_attention, dtype)
        errors = [float((x - y).abs().max()) for x, y in zip((plain, *plain_gradients), truths)]
        greatest = max(1.0, *(float(truth.abs().max()) for truth in truths))
        bounds = [3 * error + 2 * torch.finfo(dtype).eps * greatest for error in errors]
    for found, truth, bound in zip(run(case, dtype), truths, bounds, strict=True):
        assert found.dtype == dtype
        assert float((found.double() - truth).abs().max()) <= bound


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    length=st.sampled_from((90, 96, 97, 193, 511, 513, 700, 1100)),
    window=st.sampled_from((0, 12, 64, 190, 512, 2000)),
    head_dim=st.sampled_from((1, 3, 15, 16, 17, 32, 48, 64, 65, 128)),
    dilation=st.sampled_from(((1, 1), (1, 2), (3, 1), (5, 5))),
    dtype=st.sampled_from((torch.float32, torch.float32, torch.bfloat16, torch.float16)),
    causal=st.booleans(),
    padding=st.sampled_from(("none", "ends", "holes", "all")),
    global_rate=st.sampled_from((None, 0.01, 0.2)),
    own_global=st.booleans(),
    documents=st.booleans(),
    dropout_p=st.sampled_from((0.0, 0.2)),
    transposed=st.booleans(),
)
def test_tiles_segments_and_widths(dtype, dilation, **options) -> None:  # type: ignore[no-untyped-def]
    """Across the borders of panels, tiles, blocks and segments, and at widths that fill no vector."""
    assert_exact(make(batch=1, dilation=list(dilation), **options), dtype)


@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_any_number_of_threads(count: int, threads: None) -> None:
    """64 are more than the segments of one head: keys' gradients come from a pass of their own."""
    torch.set_num_threads(count)
    case = make(
        5, batch=1, length=1400, window=100, dilation=[1, 2], global_rate=0.02, own_global=True, dropout_p=0.1
    )
    assert_exact(case)
    assert_exact(make(6, batch=1, heads=1, length=1700, window=300, causal=True, documents=True))
    first, *others = (run(case) for _ in range(3))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_number_of_threads_changes_no_bit_where_heads_suffice(threads: None) -> None:
    case = make(7, heads=4, length=1200, window=128, global_rate=0.02, documents=True, dropout_p=0.1)
    torch.set_num_threads(1)
    expected = run(case)
    for count in (2, 5):
        torch.set_num_threads(count)
        assert all(torch.equal(a, b) for a, b in zip(run(case), expected, strict=True))


def test_nan_is_not_swallowed() -> None:
    """A mistake in a query or key must reach whatever looks for one in the output or the gradients."""
    for broken in range(3):
        leaves = [torch.randn(1, 2, 130, 64) for _ in range(3)]
        leaves[broken][0, 0, 70, 3] = torch.nan
        leaves = [x.requires_grad_() for x in leaves]
        output = windowed_attention(*leaves, 32, backend="cpu")
        assert output[0, 0, 70].isnan().all() if broken != 2 else output[0, 0, 70, 3].isnan()
        assert not output[0, 1].isnan().any()
        gradients = torch.autograd.grad(output, leaves, torch.ones_like(output))
        assert any(x[0, 0].isnan().any() for x in gradients)
        assert not any(x[0, 1].isnan().any() for x in gradients)


@pytest.mark.parametrize("window", [508, 510, 512, 640])
def test_segments_that_run_at_once_leave_each_others_keys_alone(window: int, threads: None) -> None:
    """Segments are as long as a window of 512 is wide: their keys touch, and an addition to one more would be lost.

    With two threads some in a hundred runs would show it.
    """
    torch.set_num_threads(2)
    case = make(8, batch=1, heads=1, length=2560, window=window, head_dim=8)
    first = run(case)
    for _ in range(400):
        assert all(torch.equal(a, b) for a, b in zip(run(case), first, strict=True))


@pytest.mark.parametrize("step", [1, 64, 1024])
def test_scratch_of_global_keys_is_bounded_by_the_keys(step: int, threads: None) -> None:
    """However many strips there are, each of which finds a part of their gradients."""
    torch.set_num_threads(1)
    case = make(9, batch=1, heads=2, length=2048, window=4, dilation=step, global_rate=0.25, head_dim=64)
    assert_exact(case)
    cpu.scratch_bytes()
    run(case)
    keys = 2 * 2048 * 64 * 4
    assert cpu.scratch_bytes() < 3 * keys + (2 << 20)


def test_scratch_is_small() -> None:
    """Some keys' worth a thread, whatever the length."""
    x = [torch.randn(1, 12, 4096, 64, requires_grad=True) for _ in range(3)]
    cpu.scratch_bytes()
    windowed_attention(*x, 512, backend="cpu").sum().backward()
    tensors = 8 * x[0].numel() * 4  # inputs, output and gradients
    assert 0 < cpu.scratch_bytes() <= 0.03 * tensors * torch.get_num_threads()


def python(code: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start Python with a cache of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "always", "-c", code],
        cwd=ROOT,
        env=os.environ | {"LONGSPAN_CACHE": str(folder), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def output_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output, errors


def compiler(folder: Path, script: str = "") -> str:
    """A compiler that runs `script`, and then takes what the real one made of the same source."""
    path = folder / "compiler"
    path.write_text(
        f"""#!/bin/sh
[ "$1" = --version ] && exec c++ --version
{script}
while [ "$1" != -o ]; do shift; done
exec cp {cpu._build()} "$2"
"""
    )
    path.chmod(0o755)
    return str(path)


INSTRUCTION_SETS = {"default": "portable", "avx2": "AVX2", "avx512": "AVX512"}


@pytest.mark.parametrize("capability", INSTRUCTION_SETS)
def test_every_instruction_set(capability: str) -> None:
    """What this CPU has of them: the kernel as it is compiled for lesser CPUs, over cases with every feature.

    Compiled so that scratch holds NaN until it is written.
    """
    order = list(INSTRUCTION_SETS)
    have = {"DEFAULT": 0, "AVX2": 1, "AVX512": 2}.get(torch.backends.cpu.get_cpu_capability(), 0)
    if order.index(capability) > have:
        pytest.skip(f"this CPU has no {INSTRUCTION_SETS[capability]}")
    code = """
import torch
from attention import cpu
from tests.attention import test_cpu
from tests.attention.cases import make
cpu._INSTRUCTION_SETS = {name: (*flags, "-DLONGSPAN_POISON") for name, flags in cpu._INSTRUCTION_SETS.items()}
features = dict(dilation=[1, 2, 2], heads=3, global_rate=0.05, own_global=True, documents=True, padding="holes")
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for head_dim in (8, 64, 100):
        test_cpu.assert_exact(make(1, length=300, window=60, dropout_p=0.2, head_dim=head_dim, **features), dtype)
        test_cpu.assert_exact(make(2, length=700, window=200, causal=True, head_dim=head_dim), dtype)
print(cpu.instruction_set())
"""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    if capability == "avx512":  # without bfloat16's products
        code = "from attention import cpu; cpu.instruction_set = lambda: 'AVX512'\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == INSTRUCTION_SETS[capability]


USE = """
import torch
from attention import backends, windowed_attention
x = torch.ones(1, 1, 8, 4)
for _ in range(2):
    assert torch.allclose(windowed_attention(x, x, x, 4), x)
print(",".join(backends()))
"""


def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    own = compiler(tmp_path, f"echo built >> {log}; sleep 1")
    processes = [python(USE, tmp_path / "cache", CXX=own) for _ in range(3)]
    for process in processes:
        assert output_of(process) == ("loop,chunks,cpu\n", "")
    assert log.read_text() == "built\n"
    left = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert left == [".lock", ".sha256", ".so"]
    assert output_of(python(USE, tmp_path / "cache", CXX=own))[0] == "loop,chunks,cpu\n"
    assert log.read_text() == "built\n"  # nor for a later one


def test_a_killed_build_leaves_nothing_that_hinders(tmp_path: Path) -> None:
    started = tmp_path / "started"
    slow = compiler(tmp_path, f"[ -e {started} ] || {{ touch {started}; sleep 60; }}")
    process = python(USE, tmp_path / "cache", CXX=slow)
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert output_of(python(USE, tmp_path / "cache", CXX=slow)) == ("loop,chunks,cpu\n", "")


def test_a_library_that_is_not_what_was_built_is_built_again(tmp_path: Path) -> None:
    """Loading a truncated one would kill the process."""
    own, folder = compiler(tmp_path), tmp_path / "cache"
    output_of(python(USE, folder, CXX=own))
    (library,) = folder.glob("*.so")
    whole = library.read_bytes()
    for content in (whole[:40_000], b"not a library"):
        library.write_bytes(content)
        assert output_of(python(USE, folder, CXX=own)) == ("loop,chunks,cpu\n", "")
        assert library.read_bytes() == whole


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("/nowhere/c++", "No such file or directory"),
        ("script", "out of registers"),
        ("", "no C++ compiler"),
        ('c++ "', "No closing quotation"),
    ],
)
def test_without_a_compiler_chunks_takes_over_and_says_so_once(
    tmp_path: Path, given: str, message: str
) -> None:
    environment = {"CXX": given}
    if given == "script":
        environment["CXX"] = compiler(tmp_path, "echo out of registers >&2; exit 1")
    if given == "":
        environment["PATH"] = str(tmp_path)
    output, errors = output_of(python(USE, tmp_path / "cache", **environment))
    assert output == "loop,chunks\n"
    assert errors.count("RuntimeWarning") == 1
    assert "'chunks' computes in its place" in errors
    assert message in errors


def test_a_cache_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    """What lies in it is loaded as code. A temporary folder of one's own takes its place, for later processes too."""
    shared, log = tmp_path / "shared", tmp_path / "log"
    shared.mkdir()
    shared.chmod(0o777)
    own = compiler(tmp_path, f"echo built >> {log}")
    for _ in range(2):
        assert output_of(python(USE, shared, CXX=own, TMPDIR=str(tmp_path))) == ("loop,chunks,cpu\n", "")
    assert not list(shared.iterdir())
    assert log.read_text() == "built\n"


def test_a_cache_may_be_relative(tmp_path: Path) -> None:
    code = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); os.chdir({str(tmp_path)!r})\n" + USE
    assert output_of(python(code, Path(), CXX=compiler(tmp_path))) == ("loop,chunks,cpu\n", "")
    assert list(tmp_path.glob("*.so"))


def test_without_a_home_there_is_a_temporary_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LONGSPAN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    cache._temporary_folder.cache_clear()
    try:
        assert cache.folder() == tmp_path / f"longspan-{os.getuid()}"
    finally:
        cache._temporary_folder.cache_clear()
