"""The baseline that knows no order: logistic regression over the words of a text, weighted by tf-idf.

    f(w, text) = (1 + ln count(w, text)) · (1 + ln((1 + texts) / (1 + texts with w)))

of the texts that are trained on, each text's vector scaled to length 1.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_WORD = re.compile(r"\w+(?:['’]\w+)*")
FEWEST_TEXTS = 2
"""That a word is in; one that a single text has tells nothing of others."""


def words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text.lower()))


class Weighing:
    """Texts as vectors of their words' weights; the vocabulary and the weights are those of the texts given."""

    def __init__(self, texts: Sequence[str]) -> None:
        """ValueError where no word is in FEWEST_TEXTS of them."""
        within = Counter(word for text in texts for word in words(text))
        kept = sorted(word for word, number in within.items() if number >= FEWEST_TEXTS)
        if not kept:
            raise ValueError(f"texts: no word is in {FEWEST_TEXTS} of {len(texts)}")
        self.column = {word: number for number, word in enumerate(kept)}
        self.rarity = torch.tensor(
            [1 + math.log((1 + len(texts)) / (1 + within[word])) for word in kept], dtype=torch.float64
        )

    def vectors(self, texts: Sequence[str]) -> Tensor:
        """float64 (texts, words), rows of length 1, or 0 where no word is known."""
        found = torch.zeros(len(texts), len(self.column), dtype=torch.float64)
        for row, text in enumerate(texts):
            for word, count in words(text).items():
                if word in self.column:
                    found[row, self.column[word]] = 1 + math.log(count)
        return F.normalize(found * self.rarity, dim=1)


@dataclass(frozen=True)
class Regression:
    """Logistic regression of two classes."""

    weights: Tensor
    """float64 (features,)."""
    bias: Tensor

    def logits(self, vectors: Tensor) -> Tensor:
        """float64 (texts,): over 0 is class 1."""
        return vectors @ self.weights + self.bias


def fit(vectors: Tensor, labels: Tensor, l2: float) -> Regression:
    """Minimises the mean of the cross-entropy plus l2 / 2 · |weights|²; vectors (texts, features), labels (texts,) of 0
    and 1. With l2 > 0 there is one minimum; L-BFGS finds it from 0, so nothing here is random."""
    weights = torch.zeros(vectors.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    wanted = labels.to(torch.float64)
    search = torch.optim.LBFGS(
        [weights, bias],
        max_iter=500,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        search.zero_grad()
        loss = F.binary_cross_entropy_with_logits(vectors @ weights + bias, wanted)
        loss = loss + l2 / 2 * weights.square().sum()
        loss.backward()
        return loss

    search.step(closure)
    return Regression(weights.detach(), bias.detach())
