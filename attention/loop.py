"""The reference backend: one diagonal at a time, then one column a global token, then the global rows, dense.

Written to be read against the rule: each step lets every token look at one key and asks `pattern.sees`. Forward is
an online softmax; backward visits the same pairs again with the saved logsumexp. Any dtype, any device; the memory
of a few copies of the inputs (and of the global rows), the time of window x length small operations.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attention import dropout
from attention.pattern import Tokens, sees
from attention.problem import Gradients, Problem


def usable() -> bool:
    """See `problem.Backend`."""
    return True


def rejects(query: Tensor) -> str | None:
    """See `problem.Backend`."""
    return None


def trusted(query: Tensor) -> bool:
    """See `problem.Backend`."""
    return True


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """See `problem.Backend`."""
    query, key, value = _to(problem.dtype, problem.query, problem.key, problem.value)
    peak = query.new_full(query.shape[:3], -torch.inf)  # (B, H, N)
    total, output = torch.zeros_like(peak), torch.zeros_like(query)

    for index, seen in _local_keys(problem):
        score = _score(problem, query, key, index, seen)
        new_peak = torch.maximum(peak, score)
        shift = new_peak.masked_fill(new_peak == -torch.inf, 0)  # while nothing was seen
        shrink, weight = (peak - shift).exp(), (score - shift).exp()
        total = total * shrink + weight
        weight = weight * _keep(problem, index)
        output = output * shrink[..., None] + weight[..., None] * _take(value, index)
        peak = new_peak

    seen_any = total > 0
    total = total.masked_fill(~seen_any, 1)
    output = output / total[..., None]
    logsumexp = (peak + total.log()).masked_fill(~seen_any, torch.inf)

    for example, rows, score, kept in _global_rows(problem):
        *_, value_global = _to(problem.dtype, *problem.global_projections)
        row_logsumexp = score.logsumexp(-1)  # (H, G); a global token sees itself, so never of nothing
        weight = (score - row_logsumexp[..., None]).exp() * kept
        output[example, :, rows] = weight @ value_global[example]
        logsumexp[example, :, rows] = row_logsumexp
    return output.to(problem.query.dtype).contiguous(), logsumexp.contiguous()


def backward(problem: Problem, output: Tensor, logsumexp: Tensor, grad: Tensor) -> Gradients:
    """See `problem.Backend`."""
    query, key, value = _to(problem.dtype, problem.query, problem.key, problem.value)
    output, grad = _to(problem.dtype, output, grad)
    delta = (output * grad).sum(-1)  # (B, H, N), the sum over keys of weight times its gradient
    gradients = Gradients.zeros(problem)

    for index, seen in _local_keys(problem):
        keep = _keep(problem, index)
        weight = (_score(problem, query, key, index, seen) - logsumexp).exp()
        grad_weight = (grad * _take(value, index)).sum(-1) * keep
        grad_score = weight * (grad_weight - delta) * problem.scale
        gradients.query.add_(grad_score[..., None] * _take(key, index))
        _add_at(gradients.key, index, grad_score[..., None] * query)
        _add_at(gradients.value, index, (weight * keep)[..., None] * grad)

    for example, rows, score, kept in _global_rows(problem):
        query_global, key_global, value_global = _to(problem.dtype, *problem.global_projections)
        weight = (score - logsumexp[example, :, rows, None]).exp()  # (H, G, N)
        row_grad = grad[example, :, rows]
        grad_weight = row_grad @ value_global[example].mT * kept
        grad_score = weight * (grad_weight - delta[example, :, rows, None]) * problem.scale
        gradients.query_global[example, :, rows] += grad_score @ key_global[example]
        gradients.key_global[example] += grad_score.mT @ query_global[example, :, rows]
        gradients.value_global[example] += (weight * kept).mT @ row_grad
    return gradients


def _local_keys(problem: Problem) -> Iterator[tuple[Tensor, Tensor]]:
    """One key a token and turn: its position (B or 1, H or 1, N), and whether the token, as a local row, sees it.

    First the band, from left to right, without global keys; then the global keys, one slot after the other.
    """
    pattern = problem.pattern
    tokens = pattern.tokens
    query = Tokens(*(field[:, None] for field in tokens))  # (B, 1, N)
    position = torch.arange(pattern.length, device=pattern.device)[None, None]
    dilation = torch.tensor(pattern.dilation, device=pattern.device)[:, None]  # (H, 1)

    def seen(key: Tokens) -> Tensor:
        return sees(query, key, pattern.window, dilation, pattern.causal) & ~query.is_global

    half = min(pattern.window // 2, (pattern.length - 1) // min(pattern.dilation))
    for step in range(-half, 1 if pattern.causal else half + 1):
        index = position + step * dilation  # (1, H, N)
        inside = (index >= 0) & (index < pattern.length)
        index = index.clamp(0, pattern.length - 1)
        key = tokens.at(index)
        yield index, inside & seen(key) & ~key.is_global

    if pattern.is_global is not None:
        slots, used = pattern.global_index
        for slot in range(slots.shape[1]):
            index = slots[:, slot, None, None].expand(-1, 1, pattern.length)  # (B, 1, N)
            yield index, seen(tokens.at(index)) & used[:, slot, None, None]


def _global_rows(problem: Problem) -> Iterator[tuple[int, Tensor, Tensor, Tensor | float]]:
    """For each example with global tokens: its number, their positions (G,), scores (H, G, N), what dropout keeps."""
    pattern = problem.pattern
    if pattern.is_global is None:
        return
    query, key, _ = _to(problem.dtype, *problem.global_projections)
    for example in pattern.is_global.any(1).nonzero()[:, 0].tolist():
        rows = pattern.is_global[example].nonzero()[:, 0]
        own = Tokens(*(field[example] for field in pattern.tokens))
        seen = sees(Tokens(*(field[rows, None] for field in own)), own, pattern.window, 1, pattern.causal)
        score = query[example, :, rows] * problem.scale @ key[example].mT
        yield example, rows, score.masked_fill(~seen, -torch.inf), _keep_rows(problem, example, rows)


def _score(problem: Problem, query: Tensor, key: Tensor, index: Tensor, seen: Tensor) -> Tensor:
    """Each token's scaled product with its key at `index`, -inf where it does not see it: (B, H, N)."""
    score = (query * problem.scale * _take(key, index)).sum(-1)
    return score.masked_fill(~seen, -torch.inf)


def _keep(problem: Problem, index: Tensor) -> Tensor | float:
    """What local rows' weights at `index` are multiplied by: 0, or 1 / (1 - p)."""
    position = torch.arange(problem.pattern.length, device=index.device)[None]
    state = problem.row_state(position, dropout.LOCAL_STREAM)
    if state is None:
        return 1.0
    return dropout.keep(state, index, problem.dropout_p, problem.dtype) / (1 - problem.dropout_p)


def _keep_rows(problem: Problem, example: int, rows: Tensor) -> Tensor | float:
    """The same for an example's global rows: (H, G, N)."""
    state = problem.row_state(rows[None], dropout.GLOBAL_STREAM)
    if state is None:
        return 1.0
    own = dropout.RowState(*(word[example, :, :, None] for word in state))
    position = torch.arange(problem.pattern.length, device=rows.device)
    return dropout.keep(own, position, problem.dropout_p, problem.dtype) / (1 - problem.dropout_p)


def _take(source: Tensor, index: Tensor) -> Tensor:
    """The rows of source (B, H, N, D) at `index` (B or 1, H or 1, N)."""
    return source.gather(2, index[..., None].expand(source.shape))


def _add_at(target: Tensor, index: Tensor, rows: Tensor) -> None:
    """Add rows (B, H, N, D) to those of target at `index`."""
    target.scatter_add_(2, index[..., None].expand(target.shape), rows)


def _to(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.to(dtype) for tensor in tensors)
