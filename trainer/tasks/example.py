"""What the model takes of a downstream task: examples, and what is told of those that are left out or cut.

An example is one question, article or document. It has one row or several: each is a sequence of its own for the
encoder, and the head sees the hidden states of all of them joined. So a document that is longer than the model's
positions is read in pieces, WikiHop's supporting documents in chunks, and RoBERTa in 512 tokens at a time (Longformer
paper, section 6).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

NONE = np.empty(0, np.int32)


@dataclass(frozen=True, eq=False)
class Example:
    """What places below count are the tokens of the example's rows joined: of rows of 5 and 7 ids they are 0 to 11."""

    id: str
    rows: tuple[np.ndarray, ...]
    """int32 (n,) each: the ids of a sequence."""
    global_places: np.ndarray = field(default_factory=NONE.copy)
    """int32, ascending: tokens with global attention."""
    read: np.ndarray | None = None
    """int32: the places whose hidden states the head gets, in this order; None: all. What the head does not read, the
    last layer does not compute."""
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    """int32 (n,) by name: labels, spans, whatever the head needs. All examples of a task have the same names."""
    context_tokens: int = 0
    """Wordpieces of the context (article, documents, evidence) before anything was cut off: table 6's length."""
    tokens_cut: int = 0
    """Of these, how many no row holds."""
    about: str = ""
    """What decoding and scoring need besides (JSON): texts, gold answers."""
    scored: int = 1
    """Summands of the loss: what a step's sum is divided by."""

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(map(len, self.rows))


class Skipped(ValueError):
    """An example that cannot be used and is left out, counted by its reason.

    The message is the reason: a few words that are the same for all examples of the kind ("no answer occurs").
    """
