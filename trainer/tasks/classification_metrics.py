"""Accuracy and F1 of classification, from counts that add up.

Hyperpartisan's official evaluator (SemEval-2019 task 4) gives accuracy, precision, recall and F1 of the class
hyperpartisan; a ratio of nothing to nothing is 0. With more than two classes F1 is the mean over those that occur, as a
label or as a prediction (scikit-learn's macro average).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def confusion(labels: Sequence[int], predicted: Sequence[int], classes: int) -> list[float]:
    """How often each class (row) was predicted as each (column): classes × classes counts, row by row. A label of -1,
    of a text whose class is not known, counts nowhere."""
    counts = np.zeros((classes, classes))
    for label, prediction in zip(labels, predicted, strict=True):
        if label >= 0:
            counts[label, prediction] += 1
    return [float(count) for count in counts.ravel()]


def accuracy_and_f1(confusion: Sequence[float], positive: int = 1) -> dict[str, float]:
    """Fractions of 1 from the counts: accuracy, and F1 with precision and recall of class `positive` of two, or
    macro_f1. Nothing where nothing was counted."""
    classes = math.isqrt(len(confusion))
    counts = np.array(confusion, np.float64).reshape(classes, classes)
    if not counts.sum():
        return {}
    right = counts.diagonal()
    predicted, occurring = counts.sum(0), counts.sum(1)
    accuracy = float(right.sum() / counts.sum())
    f1 = _ratio(2 * right, predicted + occurring)
    if classes == 2:
        return {
            "accuracy": accuracy,
            "f1": float(f1[positive]),
            "precision": float(_ratio(right, predicted)[positive]),
            "recall": float(_ratio(right, occurring)[positive]),
        }
    return {"accuracy": accuracy, "macro_f1": float(f1[predicted + occurring > 0].mean())}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
