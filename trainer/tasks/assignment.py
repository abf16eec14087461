"""The one-to-one assignment of the greatest total weight, which CEAF needs.

scipy.optimize.linear_sum_assignment does the same. Nothing else here needs scipy, and it is a large package to install
on every machine for one call on matrices of some hundred rows.
"""

from __future__ import annotations

import numpy as np


def best_assignment(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (k,) of the pairs, k = min(R, C), that sum to the most in `weights` (R, C); rows ascend.

    Rows are added one at a time, each by the shortest augmenting path in the reduced costs, whose potentials keep
    them ≥ 0 (Kuhn 1955; Jonker and Volgenant 1987): O(k² · max(R, C)), the last factor in numpy.
    """
    assert weights.ndim == 2, weights.shape
    assert np.isfinite(weights).all()
    rows, columns = weights.shape
    if rows > columns:
        there, here = best_assignment(weights.T)
        order = np.argsort(here)
        return here[order], there[order]
    cost = -weights.astype(np.float64)
    row_potential, column_potential = np.zeros(rows), np.zeros(columns)
    row_of = np.full(columns, -1)
    for row in range(rows):
        distance, before = np.full(columns, np.inf), np.full(columns, -1)
        done = np.zeros(columns, bool)
        reached, at, last = 0.0, row, -1
        while True:
            through = reached + cost[at] - row_potential[at] - column_potential
            nearer = ~done & (through < distance)
            distance[nearer], before[nearer] = through[nearer], last
            last = int(np.argmin(np.where(done, np.inf, distance)))
            reached, at = float(distance[last]), int(row_of[last])
            if at < 0:
                break
            done[last] = True
        # What the path passed gets new potentials, so that its own edges cost nothing and none costs less.
        row_potential[row] += reached
        row_potential[row_of[done]] += reached - distance[done]
        column_potential[done] -= reached - distance[done]
        while last >= 0:
            previous = int(before[last])
            row_of[last] = row if previous < 0 else row_of[previous]
            last = previous
    taken = np.flatnonzero(row_of >= 0)
    order = np.argsort(row_of[taken])
    return row_of[taken][order], taken[order]
