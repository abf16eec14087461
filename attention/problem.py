"""What a backend is given, and what its backward pass gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from attention import dropout
from attention.pattern import Pattern


@dataclass(frozen=True)
class Problem:
    """One attention over (B, H, N, D) tensors. An omitted `*_global` is its local counterpart, gradient included."""

    query: Tensor
    key: Tensor
    value: Tensor
    query_global: Tensor | None
    key_global: Tensor | None
    value_global: Tensor | None
    pattern: Pattern
    scale: float
    dropout_p: float
    dropout_seed: Tensor | None  # int64 (B,), None where nothing is dropped

    @property
    def global_projections(self) -> tuple[Tensor, Tensor, Tensor]:
        """What global rows are computed from."""
        return (
            self.query if self.query_global is None else self.query_global,
            self.key if self.key_global is None else self.key_global,
            self.value if self.value_global is None else self.value_global,
        )

    @property
    def dtype(self) -> torch.dtype:
        """What sums and softmax are computed in: float64 for float64, else float32."""
        return softmax_dtype(self.query.dtype)

    def row_state(self, position: Tensor, stream: int) -> dropout.RowState | None:
        """The dropout state of rows at `position` (B or 1, M), or None where nothing is dropped."""
        if self.dropout_seed is None:
            return None
        return dropout.row_state(self.dropout_seed, self.query.shape[1], position, stream)


@dataclass(frozen=True)
class Gradients:
    """Six buffers to add to, zero at first, in the dtype of the sums; those of omitted tensors are one with their
    local counterparts."""

    query: Tensor
    key: Tensor
    value: Tensor
    query_global: Tensor
    key_global: Tensor
    value_global: Tensor

    @classmethod
    def zeros(cls, problem: Problem) -> Gradients:
        """Contiguous zeros for each tensor of the problem."""

        def zeros() -> Tensor:
            return problem.query.new_zeros(problem.query.shape, dtype=problem.dtype)

        query, key, value = zeros(), zeros(), zeros()
        return cls(
            query,
            key,
            value,
            query if problem.query_global is None else zeros(),
            key if problem.key_global is None else zeros(),
            value if problem.value_global is None else zeros(),
        )


class Backend(Protocol):
    """A module with these functions is a backend."""

    def usable(self) -> bool:
        """Whether this machine can run it at all. The answer stands for the life of the process."""

    def rejects(self, query: Tensor) -> str | None:
        """What it expects of device, dtype or head_dim where it cannot take tensors like query; else None."""

    def trusted(self, query: Tensor) -> bool:
        """Whether it is chosen by itself for tensors like query, which it does not reject."""

    def forward(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Output (B, H, N, D) in the query's dtype, and each row's logsumexp (B, H, N), +inf where it sees nothing."""

    def backward(self, problem: Problem, output: Tensor, logsumexp: Tensor, grad: Tensor) -> Gradients:
        """The gradients, from the forward pass's results and the output's gradient."""


def softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of softmax and sums for inputs of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32
