"""The coarse-to-fine coreference scorer that stands on the encoder's wordpieces.

All spans of some words are candidates. A mention score keeps the best of them that do not cross, a bilinear score the
best antecedents of each of these, and a network looks at the pairs that are left (Lee et al. 2018, "Higher-order
coreference resolution with coarse-to-fine inference"; on BERT Joshi et al. 2019, whose sizes and features these are).

W words in P wordpieces, hidden size H, D = 3 H + F numbers a span, K spans kept, A antecedents each.

Memory at OntoNotes' longest documents: W of 4,000 words has some 60,000 candidates. The pruning is not differentiable,
and gradients reach the spans that are kept alone; so candidates are scored without gradient and without dropout, a
block at a time, and only those kept are computed again, in a way that the loss can be followed through. Pairs, K · A of
them, are computed a block at a time, and again in the backward pass.

Beside the original, which has candidates, widths and the number kept in wordpieces, they are of words here: a mention
begins and ends with a word. And the original prunes under dropout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.model.longformer import initialise

CANDIDATES = 8192
"""Spans whose hidden layer is computed together."""
PAIRS = 16_384
"""Pairs whose hidden layer is computed together."""
MOST_SPANS = 3900
"""Kept of a document, as by Joshi et al.: the coarse scores are a square of them."""
DISTANCES = 10
"""Buckets of the distance in kept spans: 0, 1, 2, 3, 4, 5-7, 8-15, 16-31, 32-63, 64 and more."""
SEGMENTS = 11
"""Distances in rows that are told apart; the last is all greater ones."""
GENRES = 8
"""OntoNotes' seven and, as 0, none known."""


@dataclass(frozen=True)
class ScorerSizes:
    """What the scorer is made of and how much it keeps; the defaults are those of Joshi et al."""

    max_span_width: int = 30
    """Words."""
    spans_per_word: float = 0.4
    """Spans kept, by the words of the document."""
    antecedents: int = 50
    """Kept for each span."""
    feed_forward_size: int = 3000
    feature_size: int = 20
    depth: int = 2
    """How often pairs are scored: each time but the first with spans refined by their antecedents."""
    dropout: float = 0.3


@dataclass(frozen=True)
class Words:
    """A document's W words as the scorer reads them: int64 (W,) each, on the device of the states."""

    first: Tensor
    """The first wordpiece."""
    last: Tensor
    """The last wordpiece, inclusive."""
    sentence_end: Tensor
    """Behind the last word of its sentence: no span goes beyond."""
    speaker: Tensor
    """Numbers that are equal where the same one speaks."""
    segment: Tensor
    """The row that it was encoded in."""
    genre: int

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Antecedents:
    """What the scorer says of a document."""

    starts: np.ndarray
    """int64 (K,): the first words of the spans kept, which ascend by (start, end)."""
    ends: np.ndarray
    """int64 (K,): their last words, inclusive."""
    index: Tensor
    """int64 (K, A): candidates for each span's antecedent among the K; all before it where a score is finite."""
    mention: Tensor
    """float32 (K,): the spans' own scores."""
    scores: Tensor
    """float32 (K, A): -inf where there is no such antecedent. That there is none at all has the score 0."""


class CoreferenceScorer(nn.Module):
    """Scores of a document's spans and of their antecedents."""

    def __init__(self, hidden_size: int, sizes: ScorerSizes, standard_deviation: float = 0.02) -> None:
        super().__init__()
        self.sizes = sizes
        feature, hidden, dropout = sizes.feature_size, sizes.feed_forward_size, sizes.dropout
        span = 3 * hidden_size + feature
        self.head_attention = nn.Linear(hidden_size, 1, bias=False)  # softmax would not see a bias
        self.width = nn.Embedding(sizes.max_span_width, feature)
        self.mention = SplitFeedForward([hidden_size] * 3 + [feature], hidden, dropout)
        self.prior_width = nn.Embedding(sizes.max_span_width, feature)
        self.width_prior = SplitFeedForward([feature], hidden, dropout)
        self.coarse = nn.Linear(span, span)
        self.prior_distance = nn.Embedding(DISTANCES, feature)
        self.distance_prior = nn.Linear(feature, 1, bias=False)
        self.same_speaker = nn.Embedding(2, feature)
        self.genre = nn.Embedding(GENRES, feature, padding_idx=0)
        self.segment = nn.Embedding(SEGMENTS, feature)
        self.distance = nn.Embedding(DISTANCES, feature)
        self.pair = SplitFeedForward([span] * 3 + [4 * feature], hidden, dropout)
        self.gate = nn.Linear(2 * span, span) if sizes.depth > 1 else None
        self.dropout = nn.Dropout(dropout)
        initialise(self, standard_deviation)

    def forward(self, states: Tensor, words: Words, also: Sequence[tuple[int, int]] = ()) -> Antecedents:
        """states (P, H) of a document's wordpieces; spans `also`, (first, last) words, are kept whatever their score,
        if they are candidates."""
        starts, ends = candidates(words.sentence_end.cpu().numpy(), self.sizes.max_span_width)
        keep = min(MOST_SPANS, max(2, int(self.sizes.spans_per_word * len(words))))
        with torch.no_grad():
            scores = self.candidate_scores(states, words, _tensor(starts, states), _tensor(ends, states))
        kept = best_without_crossing(scores.cpu().numpy(), starts, ends, keep, len(words))
        if also:
            kept = np.union1d(kept, _numbers(starts, ends, also))
        starts, ends = starts[kept], ends[kept]
        if len(kept) < 2:
            nothing = states.new_zeros((len(kept), 0), dtype=torch.float32)
            return Antecedents(starts, ends, nothing.long(), nothing.sum(1), nothing)
        return Antecedents(
            starts, ends, *self._antecedents(states, words, _tensor(starts, states), _tensor(ends, states))
        )

    def candidate_scores(self, states: Tensor, words: Words, starts: Tensor, ends: Tensor) -> Tensor:
        """Mention scores (candidates,) of spans whose starts ascend, float32 and without dropout.

        The hidden layer's product with [start; end; head; width] is a sum of products of each part, and but for the
        head's weighted mean these are of wordpieces and widths, not of the many spans.
        """
        with torch.autocast(states.device.type, enabled=False):
            states = states.float()
            ffn = self.mention
            of_start, of_end, of_head = (ffn.product(part, states) for part in range(3))
            of_width = ffn.product(3, self.width.weight)
            prior = self.width_prior.output(F.relu(self.width_prior.hidden(self.prior_width.weight)))
            attention = self.head_attention(states).squeeze(-1)
            scores = states.new_empty(len(starts))
            for block in _blocks(len(starts), CANDIDATES):
                start, end = starts[block], ends[block]
                first, last = words.first[start], words.last[end]
                low, high = int(first[0]), int(last.max()) + 1
                weights = head_weights(attention[low:high], first - low, last - low)
                hidden = of_start[first] + of_end[last] + of_width[end - start]
                hidden += weights @ of_head[low:high]
                scores[block] = (ffn.output(F.relu(hidden)) + prior[end - start]).squeeze(-1)
            return scores

    def _antecedents(
        self, states: Tensor, words: Words, starts: Tensor, ends: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """index, mention and scores, as in Antecedents, of two spans or more."""
        with torch.autocast(states.device.type, enabled=False):
            spans, mention = self._spans(states.float(), words, starts, ends)
            index, scores = self._coarse(spans, mention)
        before = index < torch.arange(len(index), device=index.device)[:, None]
        features = self._pair_features(words, starts, index)
        fine = self._fine(spans, index, features)
        for _ in range(1, self.sizes.depth):
            # The dummy antecedent, that a span has none, holds the span as it is.
            found = F.pad((scores + fine).masked_fill(~before, -torch.inf), (1, 0)).softmax(-1)
            spans = self._refined(spans, index, found)
            fine = self._fine(spans, index, features)
        return index, mention, (scores + fine).masked_fill(~before, -torch.inf)

    def _spans(self, states: Tensor, words: Words, starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Representations (K, D) and mention scores (K,)."""
        first, last, width = words.first[starts], words.last[ends], ends - starts
        weights = head_weights(self.head_attention(states).squeeze(-1), first, last)
        parts = [
            states.index_select(0, first),
            states.index_select(0, last),
            weights @ states,
            self.dropout(self.width(width)),
        ]
        prior = self.width_prior([self.prior_width.weight])
        mention = self.mention(parts) + F.embedding(width, prior)
        return torch.cat(parts, 1), mention.squeeze(-1)

    def _coarse(self, spans: Tensor, mention: Tensor) -> tuple[Tensor, Tensor]:
        """The best antecedents (K, A) of each span by the cheap score, and these scores."""
        K = len(spans)
        bilinear = self.dropout(self.coarse(spans)) @ self.dropout(spans).T
        prior = self.distance_prior(self.dropout(self.prior_distance.weight))  # (DISTANCES, 1)
        place = torch.arange(K, device=spans.device)
        with torch.no_grad():
            away = place[:, None] - place
            everything = bilinear + mention[:, None] + mention + prior[distance_bucket(away.clamp(min=0)), 0]
            index = best_antecedents(everything.masked_fill(away <= 0, -torch.inf), self.sizes.antecedents)
        bucket = distance_bucket((place[:, None] - index).clamp(min=0))
        scores = bilinear.gather(1, index) + mention[:, None] + mention[index]
        return index, scores + F.embedding(bucket, prior).squeeze(-1)

    def _pair_features(self, words: Words, starts: Tensor, index: Tensor) -> list[Tensor]:
        """What is known of pairs besides their spans: entries (K, A) of speaker, segment and distance."""
        speaker, segment = words.speaker[starts], words.segment[starts]
        away = torch.arange(len(index), device=index.device)[:, None] - index
        genre = torch.full_like(index, words.genre)
        return [
            (speaker[:, None] == speaker[index]).long(),
            genre,
            (segment[:, None] - segment[index]).clamp(0, SEGMENTS - 1),
            distance_bucket(away.clamp(min=0)),
        ]

    def _fine(self, spans: Tensor, index: Tensor, features: list[Tensor]) -> Tensor:
        """Scores (K, A) of pairs, float32."""
        as_antecedent = self.pair.product(1, spans)
        blocks = list(_blocks(len(index), max(1, PAIRS // index.shape[1])))
        if len(blocks) == 1 or not torch.is_grad_enabled():
            run = [self._pairs(spans, as_antecedent, index, features, block) for block in blocks]
        else:
            run = [
                checkpoint(self._pairs, spans, as_antecedent, index, features, block, use_reentrant=False)
                for block in blocks
            ]
        return torch.cat(run)

    def _pairs(
        self, spans: Tensor, as_antecedent: Tensor, index: Tensor, features: list[Tensor], block: slice
    ) -> Tensor:
        """Scores of the pairs of some spans: of [span; antecedent; their product; features]."""
        own, other = spans[block], index[block].flatten()
        shape = index[block].shape
        tables = (self.same_speaker, self.genre, self.segment, self.distance)
        known = torch.cat(
            [table(feature[block]) for table, feature in zip(tables, features, strict=True)], -1
        )
        product = own[:, None] * spans.index_select(0, other).view(*shape, -1)
        hidden = (
            self.pair.product(0, own)[:, None]
            + as_antecedent.index_select(0, other).view(*shape, -1)
            + self.pair.product(2, product)
            + self.pair.product(3, self.dropout(known))
        )
        return self.pair.output(self.dropout(F.relu(hidden))).squeeze(-1)

    def _refined(self, spans: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Spans gated with the mean of their antecedents under weights (K, 1 + A), the first the span's own."""
        assert self.gate is not None
        with torch.autocast(spans.device.type, enabled=False):
            K = len(spans)
            mixed = weights.new_zeros(K, K).scatter(1, index, weights[:, 1:])
            expected = weights[:, :1] * spans + mixed @ spans
            gate = torch.sigmoid(self.gate(torch.cat([spans, expected], 1)))
            return gate * expected + (1 - gate) * spans


class SplitFeedForward(nn.Module):
    """A hidden layer with ReLU and dropout, and one number out, in float32; the input comes in parts.

    `product` gives a part's share of the hidden layer, so that what many inputs share is multiplied once.
    """

    def __init__(self, parts: list[int], hidden: int, dropout: float) -> None:
        super().__init__()
        self.parts = parts
        self.dense = nn.Linear(sum(parts), hidden)
        self.score = nn.Linear(hidden, 1)
        self.dropout = nn.Dropout(dropout)

    def product(self, part: int, inputs: Tensor) -> Tensor:
        """(…, hidden): the shares of all parts sum to the hidden layer before its ReLU; the last has the bias."""
        is_last = part == len(self.parts) - 1
        weight = self.dense.weight.split(self.parts, 1)[part]
        return F.linear(inputs, weight, self.dense.bias if is_last else None)

    def hidden(self, *inputs: Tensor) -> Tensor:
        """Before the ReLU."""
        total = self.product(0, inputs[0])
        for part, values in enumerate(inputs[1:], start=1):
            total = total + self.product(part, values)
        return total

    def output(self, hidden: Tensor) -> Tensor:
        """(…, 1)."""
        with torch.autocast(hidden.device.type, enabled=False):
            scores: Tensor = self.score(hidden.float())
            return scores

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """(…, 1) of parts (…, size)."""
        return self.output(self.dropout(F.relu(self.hidden(*inputs))))


def candidates(sentence_end: np.ndarray, max_width: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends (inclusive), int64, of all spans of 1 to max_width words within a sentence, ascending.

    sentence_end (W,): behind the last word of each word's sentence.
    """
    word = np.arange(len(sentence_end), dtype=np.int64)
    widths = np.minimum(sentence_end - word, max_width)
    starts = np.repeat(word, widths)
    return starts, starts + np.arange(len(starts)) - np.repeat(np.cumsum(widths) - widths, widths)


def best_without_crossing(
    scores: np.ndarray, starts: np.ndarray, ends: np.ndarray, keep: int, words: int
) -> np.ndarray:
    """Which of the spans (ends inclusive) to keep, ascending: by score, the earlier first where they are equal, each
    that crosses none kept before it, until there are `keep`.

    Spans cross that have words in common, each besides words that the other has not. All operations look at a span's
    own words: at the farthest end of what begins in it, and the farthest start of what ends in it.
    """
    farthest_end = [-1] * words  # of the spans kept, by their start
    farthest_start = [words] * words  # by their end
    kept: list[int] = []
    # Ascending by index where scores are equal.
    for number in np.argsort(-scores, kind="stable").tolist():
        if len(kept) == keep:
            break
        start, end = int(starts[number]), int(ends[number])
        if end > start and (
            max(farthest_end[start + 1 : end + 1]) > end or min(farthest_start[start:end]) < start
        ):
            continue
        kept.append(number)
        farthest_end[start] = max(farthest_end[start], end)
        farthest_start[end] = min(farthest_start[end], start)
    return np.array(sorted(kept), np.int64)


def best_antecedents(scores: Tensor, most: int) -> Tensor:
    """int64 (K, A): for each row of scores (K, K) the A = min(most, K - 1) best columns, the best first, and where
    scores are equal the earlier first (topk promises no order). Where fewer are finite, columns of -inf follow."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return order[:, : min(most, len(scores) - 1)].contiguous()


def distance_bucket(distance: Tensor) -> Tensor:
    """The bucket, 0 to DISTANCES - 1, of distances ≥ 0."""
    bounds = torch.tensor([1, 2, 3, 4, 5, 8, 16, 32, 64], device=distance.device)
    return torch.bucketize(distance, bounds, right=True)


def head_weights(attention: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Softmax (S, P) of attention (P,) over the wordpieces first to last (S,), inclusive, of each span."""
    piece = torch.arange(len(attention), device=attention.device)
    inside = (piece >= first[:, None]) & (piece <= last[:, None])
    return torch.where(inside, attention, -torch.inf).softmax(-1)


def marginal_loss(scores: Tensor, gold: Tensor) -> Tensor:
    """Negative log-likelihood, summed over spans, of all their true antecedents together, in nats (Lee et al. 2017).

    scores (K, A) as in Antecedents; gold bool (K, A) marks the true antecedents. Where a span has none in it, none is
    what is true: the dummy antecedent, of score 0.
    """
    scores, gold = F.pad(scores.float(), (1, 0)), F.pad(gold, (1, 0))
    gold[:, 0] = ~gold.any(1)
    return (scores.logsumexp(1) - scores.masked_fill(~gold, -torch.inf).logsumexp(1)).sum()


def _numbers(starts: np.ndarray, ends: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Where among candidates these spans are, those that are there."""
    stride = int(ends.max(initial=0)) + 1
    wanted = [start * stride + end for start, end in spans if end < stride]
    return np.flatnonzero(np.isin(starts * stride + ends, wanted))


def _tensor(numbers: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(numbers).to(like.device)


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
