"""The native CPU backend: builds `cpu.cpp` for this machine's instruction set, and calls it.

The library is compiled at first use, in seconds, with the C++ compiler that CXX names, or c++, g++ or clang++, into
LONGSPAN_CACHE or ~/.cache/longspan: one file for each source, compiler, instruction set and torch version. Processes
that want it at the same time wait for the one that builds it. Where it cannot be built one warning says why, and the
backend is not among `attention.backends()`.

float32, bfloat16 and float16; sums and softmax in float32. With AVX-512 BF16 the products of bfloat16 are exact
products of bfloat16 numbers, weights and score gradients rounded to bfloat16 in between; else, and for float16,
everything is computed from float32 copies.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

from attention import cache, dropout
from attention.problem import Gradients, Problem

FOLDER = Path(__file__).parent
BUILD_SECONDS = 300
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

# Compiler flags for what torch finds in the CPU; ATEN_CPU_CAPABILITY=avx2 or default lowers it, as it does torch's own.
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
_INSTRUCTION_SETS = {
    "AVX512 BF16": (*_AVX512, "-mavx512bf16"),
    "AVX512": _AVX512,
    "AVX2": _AVX2,
    "portable": (),
}


def usable() -> bool:
    """See `problem.Backend`. Builds the library the first time."""
    return _library() is not None


def rejects(query: Tensor) -> str | None:
    """See `problem.Backend`."""
    if query.device.type == "cpu" and query.dtype in _DTYPES:
        return None
    return f"one of {', '.join(map(str, _DTYPES))} on cpu"


def trusted(query: Tensor) -> bool:
    """See `problem.Backend`."""
    return True


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """See `problem.Backend`."""
    query = problem.query
    output = query.new_empty(query.shape)
    logsumexp = query.new_empty(query.shape[:3], dtype=torch.float32)
    _call("longspan_forward", problem, output=output, logsumexp=logsumexp[..., None])
    return output, logsumexp


def backward(problem: Problem, output: Tensor, logsumexp: Tensor, grad: Tensor) -> Gradients:
    """See `problem.Backend`. Gradients of queries are in their dtype; those of keys and values in float32."""
    query = problem.query
    own = (problem.query_global, problem.key_global, problem.value_global)
    local = [
        torch.empty_like(query, memory_format=torch.contiguous_format),
        *(
            torch.zeros_like(query, dtype=torch.float32, memory_format=torch.contiguous_format)
            for _ in range(2)
        ),
    ]
    global_ = [
        x if given is None else torch.zeros_like(x, memory_format=torch.contiguous_format)
        for x, given in zip(local, own)
    ]
    names = ("grad_query", "grad_key", "grad_value")
    gradients = dict(zip(names, local)) | {f"{name}_global": x for name, x in zip(names, global_)}
    tensors = {"output": output, "logsumexp": logsumexp[..., None], "grad": grad, **gradients}
    _call("longspan_backward", problem, **tensors)
    return Gradients(*local, *global_)


def scratch_bytes() -> int:
    """The most bytes of its own that the kernel has held since the last call of this."""
    library = _library()
    return 0 if library is None else int(library.longspan_scratch_bytes())


# What cpu.cpp is passed: call.h.


class _Tensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("strides", ctypes.c_int64 * 4))

    @classmethod
    def of(cls, tensor: Tensor) -> _Tensor:
        return cls(tensor.data_ptr(), (ctypes.c_int64 * 4)(*tensor.stride()))


_PROJECTIONS = ("query", "key", "value", "query_global", "key_global", "value_global")


class _Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "length", "width", "dtype")),
        *((name, _Tensor) for name in _PROJECTIONS),
        *((name, _Tensor) for name in ("output", "logsumexp", "grad")),
        *((f"grad_{name}", _Tensor) for name in _PROJECTIONS),
        *((name, ctypes.c_void_p) for name in ("dilation", "variant", "band_first", "band_last")),
        ("band_batch", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("hidden", ctypes.c_void_p),
        ("holes", ctypes.c_void_p),
        ("globals", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("global_index", "column_first", "column_last")),
        *((name, ctypes.c_void_p) for name in ("row_first", "row_last")),
        ("scale", ctypes.c_double),
        ("keep", ctypes.c_double),
        ("drop_below", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("local_low", "local_high", "global_low", "global_high")),
    )


def _call(function: str, problem: Problem, **tensors: Tensor) -> None:
    """Call the library with the problem, and with tensors under the names of the structure's fields."""
    library = _library()
    assert library is not None
    batch, heads, length, width = problem.query.shape
    pattern = problem.pattern
    steps = sorted(set(pattern.dilation))
    bands = [pattern.band_by_position(step) for step in steps]
    arrays: dict[str, Tensor | None] = {
        "dilation": torch.tensor(pattern.dilation),
        "variant": torch.tensor([steps.index(step) for step in pattern.dilation]),
        "band_first": _int32(torch.stack([band.first for band in bands])),
        "band_last": _int32(torch.stack([band.last for band in bands])),
        "hidden": pattern.hidden,
        "holes": pattern.holes,
    }
    if pattern.is_global is not None:
        index, _ = pattern.global_index
        columns, rows = pattern.global_columns(), pattern.global_rows()
        arrays |= {"global_index": _int32(index)}
        arrays |= {"column_first": _int32(columns.first), "column_last": _int32(columns.last)}
        arrays |= {"row_first": _int32(rows.first), "row_last": _int32(rows.last)}
        state = problem.row_state(index, dropout.GLOBAL_STREAM)
        if state is not None:
            arrays |= {"global_low": _int32(state.low), "global_high": _int32(state.high)}
    position = torch.arange(length, dtype=torch.int32)[None]
    state = problem.row_state(position, dropout.LOCAL_STREAM)
    if state is not None:
        arrays |= {"local_low": _int32(state.low), "local_high": _int32(state.high)}
    projections = (problem.query, problem.key, problem.value, *problem.global_projections)
    given = dict(zip(_PROJECTIONS, projections)) | tensors
    call = _Call(
        batch=batch,
        heads=heads,
        length=length,
        width=width,
        dtype=_DTYPES[problem.query.dtype],
        band_batch=length if bands[0].first.shape[0] > 1 else 0,
        window=min(pattern.window, length),
        globals=0 if pattern.is_global is None else index.shape[1],
        scale=problem.scale,
        keep=1 - problem.dropout_p,
        drop_below=0 if state is None else dropout.threshold(problem.dropout_p),
        **{name: _Tensor.of(tensor) for name, tensor in given.items()},
        **{name: None if array is None else array.data_ptr() for name, array in arrays.items()},
    )
    if getattr(library, function)(ctypes.byref(call)) != 0:
        raise MemoryError(
            f"no memory for the scratch of windowed attention over {tuple(problem.query.shape)}"
        )


def _int32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.int32).contiguous()


# The library.


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library for this machine, built if need be; None, after a warning, where that fails."""
    try:
        library = ctypes.CDLL(str(_build()))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"attention: the native CPU kernel could not be built, so the slower backend 'chunks' computes in its "
            f"place: {reason.strip()[-2000:]}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    library.longspan_scratch_bytes.restype = library.longspan_call_bytes.restype = ctypes.c_int64
    assert library.longspan_call_bytes() == ctypes.sizeof(_Call), "call.h and _Call differ"
    return library


def instruction_set() -> str:
    """The name of the instruction set that the kernel uses."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512" and torch.cpu.get_capabilities().get("avx512_bf16"):
        return "AVX512 BF16"
    return capability if capability in _INSTRUCTION_SETS else "portable"


def _build() -> Path:
    """The path of the compiled library, from the cache where it is there and whole."""
    compiler = _compiler()
    flags = [
        "-std=c++17",
        "-O3",
        "-fno-math-errno",
        "-fPIC",
        "-shared",
        *_INSTRUCTION_SETS[instruction_set()],
    ]
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True, timeout=60)
    sources = [path.read_text("utf-8") for path in sorted([*FOLDER.glob("*.h"), *FOLDER.glob("*.cpp")])]
    identity = (*sources, *compiler, *flags, version.stdout, torch.__version__, platform.machine())
    name = "attention-" + hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]
    folder = cache.folder()
    path, seal = folder / f"{name}.so", folder / f"{name}.sha256"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it when a process is killed
        if not _is_sealed(path, seal):
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                built, written = Path(scratch, "built.so"), Path(scratch, "seal")
                libraries = Path(torch.__file__).parent / "lib"
                files = [str(FOLDER / "cpu.cpp"), "-o", str(built), f"-L{libraries}", "-ltorch_cpu"]
                command = [*compiler, *flags, *files]
                subprocess.run(command, capture_output=True, text=True, check=True, timeout=BUILD_SECONDS)
                written.write_text(_sha256(built), encoding="ascii")
                built.replace(path)
                written.replace(seal)
    return path


def _is_sealed(path: Path, seal: Path) -> bool:
    """Whether a library is what was built: a truncated one would kill the process that loads it."""
    try:
        return seal.read_bytes() == _sha256(path).encode()
    except OSError:
        return False


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compiler() -> list[str]:
    """The command of a C++ compiler."""
    given = os.environ.get("CXX")
    if given:
        return shlex.split(given)
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise OSError("no C++ compiler: c++, g++ and clang++ are not on PATH, and CXX is not set")
