"""Whether a backend computes what the reference does: seeded cases with every feature, errors, bounds, a verdict.

Three uses: `trusted` decides at first use on a GPU whether its kernels are chosen by themselves; `run` is the whole
matrix for `python -m attention.benchmark --check`; `check` compares any backend on any case.

The measure is that of rows: of each row (example, head, token) the norm of the error, relative to the row's own norm,
the root mean square of all rows' norms or 1 (that of operands, for gradients in which all cancels), whichever is
largest; and of these the worst. A wrong mask hits single
rows hard: one key too many or too few among k changes a row by about 1 / sqrt(k) of its norm, several times more
where that key weighs much, as somewhere it does. Rounding hits all rows alike. The bounds lie between the two. In
float16 and bfloat16 weights and score gradients are rounded by eps / 2 at most before products in which these errors
add up at random, and the result once more: the worst row was found within 1 eps, and 4 are allowed. In float32 nothing
is rounded but sums, exponents and results: the worst row was found within 15 eps, and 100 are allowed. (TF32, which a
GPU would use by default, loses some 8,000.)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache as cached
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attention import cache, cuda, files, loop
from attention.cuda.configurations import padded
from attention.pattern import Pattern
from attention.problem import Backend, Gradients, Problem

HALF_BOUND, FLOAT_BOUND = 4, 100  # times the dtype's eps
HEAD_DIMS = (64, 32, 128, 48)
PROJECTIONS = ("query", "key", "value", "query_global", "key_global", "value_global")


@dataclass(frozen=True)
class Case:
    """A named problem and the gradient of its output."""

    name: str
    problem: Problem
    grad: Tensor


@dataclass(frozen=True)
class Result:
    """What was found in one case: the errors of output, logsumexp and gradients, and what was allowed."""

    name: str
    dtype: str
    head_dim: int
    passed: bool
    errors: dict[str, float] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    message: str = ""  # what is wrong, where it did not pass


def make(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    length: int,
    window: int,
    *,
    dilation: tuple[int, ...] = (1, 1),
    causal: bool = False,
    padding: str = "",
    global_every: int = 0,
    own_global: bool = False,
    documents: bool = False,
    dropout_p: float = 0.0,
    batch: int = 2,
) -> Case:
    """A seeded case. padding: "", "ends" or "holes"; global_every: every how many tokens one is global, 0 for none."""
    generator = torch.Generator().manual_seed(length)
    heads = len(dilation)

    def normal() -> Tensor:
        x = torch.randn(
            batch, length, heads, head_dim, generator=generator, dtype=torch.float32, device="cpu"
        )
        return x.to(device, dtype).transpose(1, 2)  # strides as a model's

    position = torch.arange(length, device=device).expand(batch, length)
    example = torch.arange(batch, device=device)[:, None]
    real = is_global = document = seed = None
    if padding == "ends":
        real = (position >= example) & (position < length - 3 - 2 * example)
    elif padding == "holes":
        real = (position + example) % 11 != 7
    if global_every:
        is_global = (position + example) % global_every == 0
    if documents:
        document = (position * 3 + 5 * example) // (length + 4)  # three, at unequal borders
    if dropout_p:
        seed = torch.arange(1, batch + 1, device=device) * 0x0123456789ABCDE
    query, key, value, grad = (normal() for _ in range(4))
    own = [normal() for _ in range(3)] if own_global else [None] * 3
    pattern = Pattern.of(query, window, dilation, causal, real, is_global, document)
    local, scale = (query, key, value), head_dim**-0.5
    return Case(name, Problem(*local, own[0], own[1], own[2], pattern, scale, dropout_p, seed), grad)


def everything(device: torch.device, dtype: torch.dtype, head_dim: int) -> Case:
    """All features in one case, large enough on a GPU for several blocks with an interior in every kernel."""
    length, window = (600, 384) if device.type == "cuda" else (100, 80)
    return make(
        "everything", device, dtype, head_dim, length, window, dilation=(1, 1, 2), padding="holes",
        global_every=37, own_global=True, documents=True, dropout_p=0.2,
    )  # fmt: skip


def cases(device: torch.device, dtype: torch.dtype, head_dim: int, reduced: bool = False) -> Iterator[Case]:
    """Each feature by itself and together, odd lengths, and the ends of the domain; reduced: a few small ones."""

    def case(name: str, length: int, window: int, **features: Any) -> Case:
        return make(f"{name}, n={length}, w={window}", device, dtype, head_dim, length, window, **features)

    yield everything(device, dtype, head_dim)
    yield case("plain", 63, 16)
    yield case("a single token", 1, 8, global_every=1)
    yield case("causal with dilation", 111, 32, dilation=(1, 3), causal=True)
    yield case("shared global projections", 65, 8, global_every=9, documents=True, padding="ends")
    if reduced:
        return
    for length, window in ((64, 64), (129, 0), (257, 512), (1025, 256)):
        yield case("plain", length, window)
    yield case("documents", 700, 512, documents=True)
    yield case("padded ends", 401, 128, padding="ends")
    yield case("holes", 401, 128, padding="holes")
    yield case("dropout", 401, 128, dropout_p=0.3)
    yield case("causal, everything", 513, 256, dilation=(2, 1), causal=True, padding="holes", global_every=29,
               own_global=True, documents=True, dropout_p=0.1)  # fmt: skip
    yield case("one global token", 2049, 128, global_every=4096)
    yield case("hundreds of global tokens", 1025, 64, global_every=3, own_global=True, dropout_p=0.1)
    yield case("all tokens global", 257, 64, global_every=1, causal=True)


def check(backend: Backend, case: Case) -> Result:
    """Compare output, logsumexp and gradients with those of `loop` in float64, on the same rounded inputs."""
    problem = case.problem
    exact = _double(problem)
    with torch.no_grad(), _without_autocast(problem.query.device):
        truth, truth_sums = loop.forward(exact)
        true_gradients = loop.backward(exact, truth, truth_sums, case.grad.double())
        output, sums = backend.forward(problem)
        gradients = backend.backward(problem, output, sums, case.grad)
        errors = {"output": _error(output, truth), "logsumexp": _error_of_sums(sums, truth_sums)}
        for name in PROJECTIONS:
            if getattr(problem, name) is not None:
                errors[f"grad of {name}"] = _error(_of(gradients, name), _of(true_gradients, name))
    dtype = problem.query.dtype
    bound = (FLOAT_BOUND if dtype == torch.float32 else HALF_BOUND) * torch.finfo(dtype).eps
    bounds = dict.fromkeys(errors, bound) | {"logsumexp": FLOAT_BOUND * torch.finfo(torch.float32).eps}
    wrong = [f"{name} off by {errors[name]:.1e}, at most {bounds[name]:.1e}" for name in errors
             if not errors[name] <= bounds[name]]  # fmt: skip
    return Result(
        case.name, _name(dtype), problem.query.shape[3], not wrong, errors, bounds, "; ".join(wrong)
    )


def small(device: torch.device, dtype: torch.dtype, head_dim: int) -> Result:
    """The check at first use: forward and backward of one case with all features, about a second once compiled."""
    return check(cuda, everything(device, dtype, head_dim))


def run(device: torch.device, progress: Callable[[str], None], reduced: bool = False) -> list[Result]:
    """The whole matrix of dtypes, head sizes, features and odd lengths, for the kernels on this device.

    A case that raises has not passed. reduced: a few small cases of one head size, for Triton's interpreter.
    """
    results = []
    for dtype in cuda.DTYPES:
        for head_dim in HEAD_DIMS[-1:] if reduced else HEAD_DIMS:
            for case in cases(device, dtype, head_dim, reduced):
                result = _checked(cuda, case)
                results.append(result)
                verdict = "ok" if result.passed else f"WRONG: {result.message}"
                progress(f"{result.dtype}, head_dim {head_dim}, {result.name}: {verdict}")
    return results


# At first use.

_verdicts: dict[str, bool] = {}
_lock = threading.Lock()


def trusted(query: Tensor) -> bool:
    """Whether the kernels agree with the reference for tensors like query, on its device and with these versions.

    Checked once and noted on disk; another verdict than yes means one warning a process. While a CUDA graph is being
    captured nothing can be compared: then no, unless it was found before.
    """
    device, dtype, head_dim = query.device, query.dtype, padded(query.shape[3])
    subject = json.dumps(_subject(device, dtype, head_dim))
    verdict = _verdicts.get(subject)
    if verdict is not None:
        return verdict
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return False
    with _lock:
        if subject not in _verdicts:
            found = _read(subject) or _find(subject, device, dtype, head_dim)
            _verdicts[subject] = found["passed"]
            if not found["passed"]:
                warnings.warn(
                    f"the CUDA kernels of windowed_attention are not used on {_device_name(device)} for "
                    f"{_name(dtype)} with head_dim {head_dim}: {found['message']}. The backend 'chunks' takes over.",
                    stacklevel=2,
                )
    return _verdicts[subject]


def _find(subject: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> dict[str, Any]:
    """Compare, and note the verdict on disk, but not where the comparison failed for what may be passing reasons."""
    try:
        result = small(device, dtype, head_dim)
    except Exception as error:  # whatever a compiler, a driver or a lack of memory raises
        return {"passed": False, "message": f"{type(error).__name__}: {str(error)[:500]}"}
    found = {"subject": subject, "passed": result.passed, "message": result.message}
    with contextlib.suppress(OSError):
        path = _note(subject)
        path.parent.mkdir(exist_ok=True)
        with files.whole(path) as partial:
            partial.write_text(json.dumps(found))
    return found


def _read(subject: str) -> dict[str, Any] | None:
    """What was noted on disk; None where nothing was, or nothing that can be read."""
    try:
        found = json.loads(_note(subject).read_text())
        if (
            found["subject"] == subject
            and isinstance(found["passed"], bool)
            and isinstance(found["message"], str)
        ):
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def _note(subject: str) -> Path:
    return cache.folder() / "checked" / f"{hashlib.sha256(subject.encode()).hexdigest()[:32]}.json"


def _subject(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[Any]:
    """What a verdict holds for."""
    import triton

    versions = [torch.__version__, torch.version.cuda, triton.__version__, _source()]
    return [_device_name(device), cuda.capability(device), _name(dtype), head_dim, *versions]


@cached
def _source() -> str:
    """A hash of the sources that a verdict depends on."""
    names = (
        "cuda/kernels",
        "cuda/__init__",
        "cuda/configurations",
        "check",
        "pattern",
        "problem",
        "dropout",
        "loop",
    )
    text = b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in names)
    return hashlib.sha256(text).hexdigest()


def _device_name(device: torch.device) -> str:
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"Triton's interpreter ({device.type})"
    )


# Errors.


def _checked(backend: Backend, case: Case) -> Result:
    """As `check`, with what it raises as the message."""
    try:
        return check(backend, case)
    except Exception as error:
        query = case.problem.query
        message = f"{type(error).__name__}: {str(error)[:500]}"
        return Result(case.name, _name(query.dtype), query.shape[3], False, message=message)


def _error(x: Tensor, truth: Tensor) -> float:
    """The worst row's error, relative to the largest of its norm, the root mean square of norms and 1; inf for NaN."""
    norm, error = truth.norm(dim=-1), (x.double() - truth).norm(dim=-1)
    typical = norm.square().mean().sqrt().clamp_min(1)
    worst = (error / torch.maximum(norm, typical)).max().item()
    return worst if worst == worst else float("inf")


def _error_of_sums(x: Tensor, truth: Tensor) -> float:
    """The worst error of a logsumexp, relative to 1 plus its size; inf where one sees nothing and the other not."""
    nothing = truth == torch.inf
    if not torch.equal(nothing, x == torch.inf):
        return float("inf")
    error = (x.double() - truth).abs() / (1 + truth.abs())
    worst = torch.where(nothing, 0, error).max().item()
    return worst if worst == worst else float("inf")


def _double(problem: Problem) -> Problem:
    """The same problem in float64."""
    doubled: dict[str, Any] = {}
    for name in PROJECTIONS:
        given = getattr(problem, name)
        doubled[name] = None if given is None else given.double()
    return replace(problem, **doubled)


def _of(gradients: Gradients, name: str) -> Tensor:
    gradient: Tensor = getattr(gradients, name)
    return gradient


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
