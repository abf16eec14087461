"""MUC, B³, CEAFφ4 and their mean F1 of coreference clusters, as version 8 of the CoNLL scorer counts them.

The scorer's definitions are those of Pradhan et al. 2014 ("Scoring Coreference Partitions of Predicted Mentions"): key
and response are taken as they are. Mentions that only one of them has are neither added to the other nor taken away,
and singletons count, in B³ and CEAF as clusters like others, in MUC as clusters without links. (OntoNotes' key has no
singletons: a system that writes them loses precision.) A mention matches by equality alone.

Numerators and denominators are summed over documents, and ratios are of the sums. A ratio of 0/0 is 0, and so is F1
where precision and recall are: without any mention in key and response every score is 0, not 1; with an empty response
as well; and MUC of singletons alone.

Mentions that come more than once:
- in one cluster: count once;
- in several clusters of the response: count in the first alone, if the key has them. The scorer drops such;
- in several clusters of the key, which OntoNotes hardly ever has: stay in each. MUC and B³ look them up in the last;
- of the response alone, in several of its clusters: stay in each.
Empty clusters do not count. The scorer differs in one place: it counts a mention that one cluster of the key has twice
(or one of the response that the key has not at all) twice, by which its CEAF can exceed 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, field

import numpy as np

from trainer.tasks.assignment import best_assignment

Clusters = Iterable[Collection[Hashable]]
"""Of one document: clusters of mentions, in the order of which the first and last are meant above. Mentions are spans
(start, end), or whatever compares equal where it is the same mention."""
_Members = list[frozenset[Hashable]]
_Index = dict[Hashable, int]  # of mentions to numbers of clusters


@dataclass(frozen=True)
class Ratio:
    """Sums over documents, of which recall and precision are the quotients."""

    recalled: float = 0.0
    of_key: float = 0.0
    precise: float = 0.0
    of_response: float = 0.0

    def __add__(self, other: Ratio) -> Ratio:
        return Ratio(
            self.recalled + other.recalled,
            self.of_key + other.of_key,
            self.precise + other.precise,
            self.of_response + other.of_response,
        )

    @property
    def recall(self) -> float:
        return self.recalled / self.of_key if self.of_key else 0.0

    @property
    def precision(self) -> float:
        return self.precise / self.of_response if self.of_response else 0.0

    @property
    def f1(self) -> float:
        """Their harmonic mean."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


@dataclass(frozen=True)
class CoreferenceScores:
    """Of one document or, by addition, of several."""

    mentions: Ratio = field(default_factory=Ratio)
    """Mentions found, whatever their clusters: the scorer's "Identification of Mentions"."""
    muc: Ratio = field(default_factory=Ratio)
    """Links: what a cluster needs to hold together, and what of that the other side keeps (Vilain et al. 1995)."""
    b_cubed: Ratio = field(default_factory=Ratio)
    """A mean over mentions of the shared part of their two clusters (Bagga and Baldwin 1998)."""
    ceaf_e: Ratio = field(default_factory=Ratio)
    """Clusters, each matched with one at most, by φ4(K, R) = 2 |K ∩ R| / (|K| + |R|) (Luo 2005)."""

    def __add__(self, other: CoreferenceScores) -> CoreferenceScores:
        return CoreferenceScores(
            self.mentions + other.mentions,
            self.muc + other.muc,
            self.b_cubed + other.b_cubed,
            self.ceaf_e + other.ceaf_e,
        )

    @property
    def mean_f1(self) -> float:
        """What papers report as "Avg. F1" on CoNLL-2012."""
        return (self.muc.f1 + self.b_cubed.f1 + self.ceaf_e.f1) / 3


def score(documents: Iterable[tuple[Clusters, Clusters]]) -> CoreferenceScores:
    """The scores of pairs (key, response), one a document. A document without a response is (key, ())."""
    return sum((score_document(key, response) for key, response in documents), CoreferenceScores())


def score_document(key: Clusters, response: Clusters) -> CoreferenceScores:
    """The scores of one document's clusters."""
    key_clusters = [members for cluster in key if (members := frozenset(cluster))]
    key_of = {mention: number for number, cluster in enumerate(key_clusters) for mention in cluster}
    response_clusters = _without_repeats(response, key_of)
    return CoreferenceScores(
        _mentions(key_of, response_clusters),
        _muc(key_clusters, key_of, response_clusters),
        _b_cubed(key_clusters, key_of, response_clusters),
        _ceaf_e(key_clusters, response_clusters),
    )


def _without_repeats(response: Clusters, key_of: _Index) -> _Members:
    seen: set[Hashable] = set()
    kept = []
    for cluster in response:
        members = frozenset(cluster) - seen
        seen.update(mention for mention in members if mention in key_of)
        if members:
            kept.append(members)
    return kept


def _mentions(key_of: _Index, response: _Members) -> Ratio:
    found: frozenset[Hashable] = frozenset().union(*response)
    both = sum(mention in key_of for mention in found)
    return Ratio(both, len(key_of), both, len(found))


def _muc(key: _Members, key_of: _Index, response: _Members) -> Ratio:
    """|K| - 1 links hold K together. Of each response cluster, what falls into one cluster of the key is linked
    rightly; counted from either side that is the same number."""
    right = 0
    for cluster in response:
        known = [key_of[mention] for mention in cluster if mention in key_of]
        right += len(known) - len(set(known))
    return Ratio(
        right,
        sum(len(cluster) - 1 for cluster in key),
        right,
        sum(len(cluster) - 1 for cluster in response),
    )


def _b_cubed(key: _Members, key_of: _Index, response: _Members) -> Ratio:
    recalled = precise = 0.0
    for cluster in response:
        looked_up = Counter(key_of[mention] for mention in cluster if mention in key_of)
        for number, mentions in looked_up.items():
            shared = len(cluster & key[number])
            recalled += mentions * shared / len(key[number])
            precise += mentions * shared / len(cluster)
    return Ratio(recalled, sum(map(len, key)), precise, sum(map(len, response)))


def _ceaf_e(key: _Members, response: _Members) -> Ratio:
    holders: dict[Hashable, list[int]] = {}
    for number, cluster in enumerate(key):
        for mention in cluster:
            holders.setdefault(mention, []).append(number)
    shared = Counter(
        (row, column)
        for column, cluster in enumerate(response)
        for mention in cluster
        for row in holders.get(mention, ())
    )
    total = 0.0
    if shared:
        # Clusters that share no mention with any add nothing, whichever they are matched with.
        rows, row_at = np.unique([row for row, _ in shared], return_inverse=True)
        columns, column_at = np.unique([column for _, column in shared], return_inverse=True)
        similarity = np.zeros((len(rows), len(columns)))
        similarity[row_at, column_at] = [
            2 * mentions / (len(key[row]) + len(response[column]))
            for (row, column), mentions in shared.items()
        ]
        total = float(similarity[best_assignment(similarity)].sum())
    return Ratio(total, len(key), total, len(response))
