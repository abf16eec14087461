"""Answers as spans of a text: where they occur, the loss over all places where they do, and the best spans of a model.

A span head has two logits at each place it reads: that the answer starts there, and that it ends there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.tasks.question_answering_metrics import ARTICLES
from trainer.tasks.wordpieces import Pieces

# By code point; U+3000 is the last that is white space.
_WHITE = np.array([chr(code).isspace() for code in range(0x3002)])


def occurrences(
    text: str, answers: Iterable[str], punctuation: Mapping[int, str | int | None]
) -> list[tuple[int, int]]:
    """The characters (start, end) of `text`, the end exclusive, that an official metric takes for one of `answers`.

    punctuation: TRIVIAQA_PUNCTUATION, or SQUAD_PUNCTUATION for HotpotQA. The text is compared in that metric's whole
    words: "York" does not occur in "Yorkshire", and "the Tower, of London" is where "tower of London" does. Spans
    begin and end with characters of the answer's words; they ascend, and are different. Answers that normalise to
    nothing occur nowhere.
    """
    words = _words(text, punctuation)
    joined = f" {words.joined} "
    found = set()
    for answer in {_words(answer, punctuation).joined for answer in answers} - {""}:
        further = answer.count(" ")
        at = joined.find(f" {answer} ")
        while at >= 0:
            first = int(np.searchsorted(words.places, at))
            start, end = int(words.starts[first]), int(words.ends[first + further])
            # A capital sigma is lowered by what surrounds it: what alone is another word is not the answer.
            if "Σ" not in text[start:end] or _words(text[start:end], punctuation).joined == answer:
                found.add((start, end))
            at = joined.find(f" {answer} ", at + 1)
    return sorted(found)


class _Words(NamedTuple):
    """What a metric's normalisation leaves of a text."""

    joined: str
    """The words, by single spaces."""
    places: np.ndarray
    """Where in `joined` each begins."""
    starts: np.ndarray
    """The character of the text that each begins with."""
    ends: np.ndarray
    """Behind the character that each ends with."""


def _words(text: str, punctuation: Mapping[int, str | int | None]) -> _Words:
    lowered = text.lower()
    origin = np.arange(len(text))
    if len(lowered) != len(text):  # İ is two characters when lowered
        origin = np.repeat(origin, [len(character.lower()) for character in text])
    if None in punctuation.values():
        origin = origin[[punctuation.get(ord(mark), mark) is not None for mark in lowered]]
    # Of the same length as without: what is left keeps its place.
    plain = ARTICLES.sub(lambda article: " " * len(article[0]), lowered.translate(punctuation))
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), "<u4")
    white = _WHITE[np.minimum(codes, len(_WHITE) - 1)]
    edges = np.flatnonzero(np.diff(white, prepend=True, append=True))  # of words, first and end by turns
    first, end = edges[::2], edges[1::2]
    lengths = end - first + 1
    return _Words(" ".join(plain.split()), np.cumsum(lengths) - lengths, origin[first], origin[end - 1] + 1)


def answer_pieces(
    pieces: Pieces, answers: Iterable[str], punctuation: Mapping[int, str | int | None], longest: int
) -> list[tuple[int, int]]:
    """The wordpieces (first, last), the last inclusive, that hold an occurrence each, of at most `longest` pieces."""
    found = {pieces.covering(*span) for span in occurrences(pieces.text, answers, punctuation)}
    return sorted((first, last) for first, last in found if last - first < longest)


def or_loss(logits: Tensor, starts: Tensor, ends: Tensor, parts: Tensor | None = None) -> Tensor:
    """One example's loss, in float32: -log of the probability that one of the answers starts here, and that one ends
    here, halved (Clark and Gardner 2018, section 2.2; Longformer paper, appendix D).

    logits: (places, 2), those of all rows of the example together: one softmax. starts, ends: int64 (n,), the places
    where answers start and end, repeated ones count once. parts: int (places,), negative outside the context, which no
    answer is in; None: all is context. Without answers the loss is 0, and so are its gradients.
    """
    logits = logits.float()
    if not len(starts):
        return logits.sum() * 0
    context = logits if parts is None else logits.masked_fill((parts < 0)[:, None], -torch.inf)
    everywhere = context.logsumexp(0)
    right = [logits[places.unique(), side].logsumexp(0) for side, places in enumerate((starts, ends))]
    return (everywhere - torch.stack(right)).sum() / 2


class Span(NamedTuple):
    first: int
    last: int  # inclusive
    score: float
    """log p(start) + log p(end), each over the context."""


def best_spans(logits: Tensor, longest: int, count: int, parts: Tensor | None = None) -> list[Span]:
    """The `count` best spans of at most `longest` places, best first; of equal ones the first to start, then to end.

    logits: (places, 2). parts: int (places,), a span's places are all of one part (a row of the encoder, a sentence),
    negative outside the context; a part's places follow each other. Fewer spans where there are fewer, none in an empty
    context.
    """
    logits = logits.detach().float()
    places = len(logits)
    if parts is None:
        parts = torch.zeros(places, dtype=torch.long, device=logits.device)
    ends = torch.arange(places, device=logits.device)[:, None] + torch.arange(longest, device=logits.device)
    inside = ends < places
    ends = ends.clamp(max=places - 1)
    allowed = inside & (parts[ends] == parts[:, None]) & (parts >= 0)[:, None]
    count = min(count, int(allowed.sum()))
    if not count:
        return []
    scores = (logits[:, :1] + logits[:, 1][ends]).masked_fill(~allowed, -torch.inf).flatten()
    # topk says nothing of the order of equal scores: it only tells how good a span must be.
    good = (scores >= scores.topk(count).values[-1]).nonzero().flatten()
    best = good[scores[good].sort(descending=True, stable=True).indices[:count]]
    normaliser = logits.masked_fill((parts < 0)[:, None], -torch.inf).logsumexp(0).sum()
    chosen = zip((best // longest).tolist(), (best % longest).tolist(), (scores[best] - normaliser).tolist())
    return [Span(first, first + further, score) for first, further, score in chosen]
