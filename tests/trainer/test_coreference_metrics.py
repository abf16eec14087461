"""MUC, B³ and CEAFφ4 against published and hand-worked examples, plain definitions, and what must hold of any."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, permutations
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.tasks.assignment import best_assignment
from trainer.tasks.coreference_metrics import Clusters, CoreferenceScores, Ratio, score, score_document

METRICS = ("mentions", "muc", "b_cubed", "ceaf_e")


def ratios(scores: CoreferenceScores) -> dict[str, tuple[float, float]]:
    """(recall, precision) of each metric."""
    return {name: (getattr(scores, name).recall, getattr(scores, name).precision) for name in METRICS}


# Key, response, then recall and precision of MUC, B³ and CEAFφ4; letters are mentions, words clusters.
EXAMPLES = {
    # Pradhan et al. 2014, section 4.
    "mentions that differ": ("abc defg", "ab cd fghi", "2/5 2/5", "5/12 1/2", "13/20 13/30"),
    # Vilain et al. 1995, table 1; B³ and CEAF worked by hand.
    "a cluster in two": ("ABCD", "AB CD", "2/3 1", "1/2 1", "2/3 1/3"),
    "two clusters in one": ("AB CD", "ABCD", "1 2/3", "1 1/2", "1/3 2/3"),
    "a mention left out": ("ABC", "AC", "1/2 1", "4/9 1", "4/5 4/5"),
    "three clusters across one": ("BCDEGHJ", "ABC DEF GHI", "1/2 1/2", "12/49 4/9", "2/5 2/15"),
    "clusters across each other": ("ABC DEFG", "AB CD FGH", "2/5 1/2", "5/12 13/21", "24/35 16/35"),
    # Bagga and Baldwin 1998, and Luo 2005, table 1: the same key and four systems.
    "small into large": ("12345 67 89ABC", "12345 6789ABC", "1 9/10", "1 16/21", "11/18 11/12"),
    "large into large": ("12345 67 89ABC", "1234589ABC 67", "1 9/10", "1 7/12", "5/9 5/6"),
    "all in one": ("12345 67 89ABC", "123456789ABC", "1 9/11", "1 3/8", "10/51 10/17"),
    "all alone": ("12345 67 89ABC", "1 2 3 4 5 6 7 8 9 A B C", "0 0", "1/4 1", "4/9 1/9"),
    # The scorer's own cases.
    "perfect": ("a bc def", "a bc def", "1 1", "1 1", "1 1"),
    "missing": ("a bc def", "a de", "1/3 1", "7/18 1", "3/5 9/10"),
    "invented": ("a bc def", "a bcx defy z", "1 3/5", "1 55/108", "31/35 93/140"),
    "missing and invented": ("a bc def", "a bcx dy z", "1/3 1/3", "5/9 17/42", "11/15 11/20"),
    "one more in the same": ("a bc def", "a bcxB dy z", "1/3 1/4", "5/9 5/16", "31/45 31/60"),
    "one more elsewhere": ("a bc def", "a bcx dy Bz", "1/3 1/4", "5/9 17/48", "11/15 11/20"),
    "twice in the same": ("a bc def", "a bcxb dy z", "1/3 1/3", "5/9 17/42", "11/15 11/20"),
    "twice, elsewhere": ("a bc def", "a bcx dy bz", "1/3 1/3", "5/9 17/42", "11/15 11/20"),
    "ten times": ("a bc def", "a bcx dy bbbbbbbbbbz", "1/3 1/3", "5/9 17/42", "11/15 11/20"),
    "the key's, all alone": ("a bc def", "a b c d e f", "0 0", "1/2 1", "13/18 13/36"),
    "the key's, all in one": ("a bc def", "abcdef", "1 3/5", "1 7/18", "2/9 2/3"),
    "others, all alone": ("a bc def", "a x y c d e z", "0 0", "13/36 4/7", "13/18 13/42"),
    "others, all in one": ("a bc def", "axycdez", "1/3 1/6", "17/36 6/49", "2/15 2/5"),
    # Its cases of singletons.
    "singletons": ("a b c d e f", "a b c d e f", "0 0", "1 1", "1 1"),
    "singletons, half of them": ("a b c d e f", "a b c x y z", "0 0", "1/2 1/2", "1/2 1/2"),
    # Worked by hand by the rules of the module's docstring.
    "in two clusters of the key": ("ab bc", "ab", "0 0", "3/8 3/4", "1/2 1"),
    "invented in two clusters": ("ab", "abx cx", "1 1/3", "1 4/15", "4/5 2/5"),
    "a cluster again": ("abc", "abc abc", "1 1", "1 1", "1 1"),
    "nothing at all": ("", "", "0 0", "0 0", "0 0"),
    "no response": ("ab c", "", "0 0", "0 0", "0 0"),
    "no key": ("", "ab c", "0 0", "0 0", "0 0"),
    "nothing in common": ("ab", "cd", "0 0", "0 0", "0 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_agrees_with_examples(name: str) -> None:
    key, response, *expected = EXAMPLES[name]
    found = ratios(score_document(key.split(), response.split()))
    for metric, text in zip(METRICS[1:], expected, strict=True):
        assert found[metric] == pytest.approx([float(Fraction(part)) for part in text.split()]), metric


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("small into large", (0.947, 0.865, 0.733)),
        ("large into large", (0.947, 0.737, 0.667)),
        ("all in one", (0.900, 0.545, 0.294)),
        ("all alone", (0.0, 0.400, 0.178)),
    ],
)
def test_agrees_with_the_f1_of_luo_s_table(name: str, published: tuple[float, ...]) -> None:
    key, response, *_ = EXAMPLES[name]
    scores = score_document(key.split(), response.split())
    found = scores.muc.f1, scores.b_cubed.f1, scores.ceaf_e.f1
    assert tuple(round(f1, 3) for f1 in found) == published
    assert scores.mean_f1 == pytest.approx(sum(found) / 3)


def test_agrees_with_the_figures_of_pradhan_et_al() -> None:
    """To their two places; their F1 of B³ is 0.46, of recall and precision that were rounded before."""
    scores = score_document(["abc", "defg"], ["ab", "cd", "fghi"])
    found = [(round(metric.recall, 2), round(metric.precision, 2)) for metric in (scores.muc, scores.b_cubed)]
    assert found == [(0.40, 0.40), (0.42, 0.50)]
    assert round(2 * 0.42 * 0.50 / (0.42 + 0.50), 2) == 0.46
    assert round(scores.b_cubed.f1, 4) == 0.4545
    assert (round(scores.ceaf_e.recall, 2), round(scores.ceaf_e.precision, 2)) == (0.65, 0.43)
    assert round(scores.ceaf_e.f1, 2) == 0.52


def test_sums_over_documents_before_it_divides() -> None:
    documents = [("abc defg", "ab cd fghi"), ("", ""), ("ab", ""), ("", "xyz"), ("a bc def", "a de")]
    total = score((key.split(), response.split()) for key, response in documents)
    assert total.muc == Ratio(3, 5 + 1 + 3, 3, 5 + 2 + 1)
    assert total.mentions == Ratio(6 + 3, 7 + 2 + 6, 6 + 3, 8 + 3 + 3)
    assert total.b_cubed.recall == pytest.approx((35 / 12 + 7 / 3) / 15)
    assert total.b_cubed.precision == pytest.approx((4 + 3) / 14)
    assert total.ceaf_e.recall == pytest.approx((1.3 + 1.8) / 6)
    assert total.ceaf_e.precision == pytest.approx((1.3 + 1.8) / 6)
    assert score([]) == CoreferenceScores()
    assert score([]).mean_f1 == 0


def test_empty_clusters_do_not_count() -> None:
    assert score_document(["", "ab", ""], ["ab", "", "ab"]) == score_document(["ab"], ["ab"])


def partitions(mentions: int = 8) -> st.SearchStrategy[list[tuple[int, ...]]]:
    """Disjoint clusters of some of so many mentions, in any order."""

    def clusters(placed: dict[int, int]) -> list[tuple[int, ...]]:
        numbers = dict.fromkeys(placed.values())
        return [tuple(mention for mention in placed if placed[mention] == number) for number in numbers]

    return st.dictionaries(st.integers(0, mentions - 1), st.integers(0, 4)).map(clusters)


@given(partitions())
def test_a_perfect_response_scores_one(key: list[tuple[int, ...]]) -> None:
    scores = score_document(key, key)
    linked = any(len(cluster) > 1 for cluster in key)
    assert (scores.muc.recall, scores.muc.precision, scores.muc.f1) == (float(linked),) * 3
    for metric in (scores.mentions, scores.b_cubed, scores.ceaf_e):
        assert (metric.recall, metric.precision, metric.f1) == pytest.approx((float(bool(key)),) * 3)


@given(partitions(), partitions())
def test_swapping_key_and_response_swaps_recall_and_precision(
    key: list[tuple[int, ...]], response: list[tuple[int, ...]]
) -> None:
    there, back = score_document(key, response), score_document(response, key)
    for name in METRICS:
        recall, precision = ratios(there)[name]
        assert ratios(back)[name] == pytest.approx((precision, recall)), name
    assert there.mean_f1 == pytest.approx(back.mean_f1)


@given(partitions(), partitions(), st.randoms(use_true_random=False))
def test_order_and_names_of_mentions_do_not_matter(
    key: list[tuple[int, ...]], response: list[tuple[int, ...]], shuffled: Random
) -> None:
    names = [(word, word + 1) for word in range(8)]
    shuffled.shuffle(names)

    def other(clusters: list[tuple[int, ...]]) -> Clusters:
        renamed = [[names[mention] for mention in cluster] for cluster in clusters]
        for cluster in [*renamed, renamed]:
            shuffled.shuffle(cluster)
        return renamed

    expected = ratios(score_document(key, response))
    for name, found in ratios(score_document(other(key), other(response))).items():
        assert found == pytest.approx(expected[name]), name


ANY = st.lists(st.lists(st.integers(0, 6), max_size=5), max_size=5)


@given(st.lists(st.tuples(ANY, ANY), max_size=4))
def test_scores_lie_between_zero_and_one(documents: list[tuple[list[list[int]], list[list[int]]]]) -> None:
    scores = score(documents)
    for metric in (getattr(scores, name) for name in METRICS):
        for value in (metric.recall, metric.precision, metric.f1):
            assert 0 <= value <= 1 + 1e-12
    assert 0 <= scores.mean_f1 <= 1 + 1e-12


@given(partitions(), partitions())
def test_agrees_with_the_definitions(key: list[tuple[int, ...]], response: list[tuple[int, ...]]) -> None:
    """MUC by the partition that the other side makes of a cluster, B³ by mentions, CEAF by trying every assignment."""
    scores = score_document(key, response)

    def links(of: list[tuple[int, ...]], by: list[tuple[int, ...]]) -> int:
        kept = 0
        for cluster in of:
            parts = [set(cluster) & set(other) for other in by]
            outside = len(cluster) - sum(map(len, parts))  # each a part of its own
            kept += len(cluster) - (sum(map(bool, parts)) + outside)
        return kept

    def alike(of: list[tuple[int, ...]], by: list[tuple[int, ...]]) -> float:
        total = 0.0
        for cluster in of:
            for mention in cluster:
                other = next((other for other in by if mention in other), ())
                total += len(set(cluster) & set(other)) / len(cluster)
        return total

    assert scores.muc.recalled == links(key, response)
    assert scores.muc.precise == links(response, key)
    assert scores.b_cubed.recalled == pytest.approx(alike(key, response))
    assert scores.b_cubed.precise == pytest.approx(alike(response, key))
    few, many = sorted((key, response), key=len)
    best = max(
        sum(2 * len(set(a) & set(b)) / (len(a) + len(b)) for a, b in zip(few, chosen, strict=True))
        for chosen in permutations(many, len(few))
    )
    assert scores.ceaf_e.recalled == pytest.approx(best)
    assert scores.ceaf_e.of_key == len(key)
    assert scores.ceaf_e.of_response == len(response)


@given(st.data(), st.integers(0, 5), st.integers(0, 5))
def test_the_assignment_is_the_best_of_all(data: st.DataObject, rows: int, columns: int) -> None:
    entry = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e3, 1e3))
    weights = np.array(
        data.draw(st.lists(entry, min_size=rows * columns, max_size=rows * columns)), np.float64
    ).reshape(rows, columns)
    chosen_rows, chosen_columns = best_assignment(weights)
    size = min(rows, columns)
    assert len(set(chosen_rows.tolist())) == len(set(chosen_columns.tolist())) == size
    assert chosen_rows.tolist() == sorted(chosen_rows.tolist())
    best = max(
        sum(weights[row, column] for row, column in zip(some, order, strict=True))
        for some in combinations(range(rows), size)
        for order in permutations(range(columns), size)
    )
    assert weights[chosen_rows, chosen_columns].sum() == pytest.approx(best, abs=1e-9)


def test_the_assignment_is_the_best_of_larger_ones() -> None:
    """Where paths are long: 8 by 9, by dynamic programming over the sets of columns taken."""
    generator = np.random.default_rng(0)
    for kind in range(60):
        weights = generator.integers(0, 30, (8, 9)) / 7 if kind % 2 else generator.random((8, 9))
        best = {0: 0.0}
        for row in weights.tolist():
            longer: dict[int, float] = {}
            for taken, total in best.items():
                for column, weight in enumerate(row):
                    if not taken >> column & 1:
                        more = taken | 1 << column
                        longer[more] = max(longer.get(more, 0.0), total + weight)
            best = longer
        for given_weights in (weights, weights.T):
            assert given_weights[best_assignment(given_weights)].sum() == pytest.approx(max(best.values()))


def test_many_clusters() -> None:
    """Each key cluster in two halves, and neighbours' halves joined: 300 by 300, where greedy choices would not do."""
    key = [range(10 * number, 10 * number + 10) for number in range(300)]
    response = [range(10 * number - 6, 10 * number + 4) for number in range(1, 300)]
    scores = score_document(key, response)
    assert scores.ceaf_e.recalled == pytest.approx(299 * 0.6)
    assert scores.muc.recalled == 299 * (5 + 3)
