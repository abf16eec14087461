"""Near-duplicates: the fast signatures against a slow reference, the estimate and the S-curve against exact Jaccard
similarity, pairs and components against what a nested loop finds."""

import gzip
import json
import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.deduplicate import (
    NearDuplicates,
    agreements,
    components,
    shared,
    signatures,
    similar_pairs,
    survivors,
)
from pipeline.tokenizer import load_tokenizer

SMALL = NearDuplicates(ngram=3, bands=4, rows=4, minimum_tokens=3)


def flat(documents: Sequence[Sequence[int]], dtype: type = np.uint16) -> tuple[np.ndarray, np.ndarray]:
    """(ids, offsets) of documents given as lists of ids."""
    offsets = np.cumsum([0, *map(len, documents)]).astype(np.int64)
    return np.array([token for document in documents for token in document], dtype=dtype), offsets


def similarity(left: Sequence[int], right: Sequence[int], ngram: int) -> float:
    a, b = ({tuple(d[i : i + ngram]) for i in range(len(d) - ngram + 1)} for d in (left, right))
    return len(a & b) / len(a | b)


def mix(number: int) -> int:
    number ^= number >> 16
    number = number * 0x85EBCA6B & 0xFFFFFFFF
    number ^= number >> 13
    number = number * 0xC2B2AE35 & 0xFFFFFFFF
    return number ^ number >> 16


def slow_signature(document: Sequence[int], s: NearDuplicates) -> list[int]:
    """The keys of one document, in the words of the paper: rounds of hashes until every place is filled."""
    if len(document) < s.minimum_tokens:
        return [0] * s.bands
    hashes = set()
    for start in range(len(document) - s.ngram + 1):
        value = 0
        for token in document[start : start + s.ngram]:
            value = (value * 0x01000193 + mix(token + 1 & 0xFFFFFFFF)) & 0xFFFFFFFF
        hashes.add(mix(value))
    minima: list[int | None] = [None] * s.places
    for number in range(32 + s.places):
        empty = [place for place, least in enumerate(minima) if least is None]
        if not empty:
            break
        for value in hashes:
            again = mix(value ^ number * 0x9E3779B9 & 0xFFFFFFFF) if number else value
            if number < 32:
                place = again * s.places >> 32
            else:
                place = number - 32
            if place in empty and again != 0xFFFFFFFF:
                least = minima[place]
                minima[place] = again if least is None else min(least, again)
    keys = []
    for band in range(s.bands):
        key = 0
        for row in range(s.rows):
            least = minima[band * s.rows + row]
            assert least is not None
            key |= mix(least) >> 32 - s.bits << row * s.bits
        keys.append(key)
    return keys


tokens = st.one_of(st.integers(0, 3), st.integers(0, 65_535))


@settings(deadline=None, max_examples=60)
@given(
    documents=st.lists(st.lists(tokens, max_size=60), max_size=6),
    ngram=st.integers(1, 5),
    bands=st.integers(1, 5),
    rows=st.integers(2, 16),
    longer=st.integers(0, 5),
)
def test_signatures_are_the_references(
    documents: list[list[int]], ngram: int, bands: int, rows: int, longer: int
) -> None:
    s = NearDuplicates(ngram=ngram, bands=bands, rows=rows, minimum_tokens=ngram + longer)
    expected = [slow_signature(document, s) for document in documents]
    for dtype in (np.uint16, np.uint32):
        found = signatures(*flat(documents, dtype), s)
        assert found.shape == (len(documents), bands)
        assert found.dtype == np.uint64
        assert found.tolist() == expected


def test_signatures_at_the_borders_of_blocks_and_groups() -> None:
    """Documents around the sizes at which the work is cut, short ones between them, and one that repeats itself
    over several blocks: each as if it were alone."""
    generator = np.random.default_rng(0)
    lengths = [1 << 15, 3, (1 << 15) + 1, *generator.integers(0, 120, 600), 70_000, 9]
    documents = [generator.integers(0, 65_536, length) for length in lengths]
    documents.append(np.tile(generator.integers(0, 65_536, 7), 12_000))
    s = NearDuplicates(minimum_tokens=5)
    together = signatures(*flat(documents), s)
    alone = [signatures(*flat([document]), s)[0] for document in documents]
    np.testing.assert_array_equal(together, alone)
    cyclic = np.resize(documents[-1], 11)  # all of its n-grams, once
    np.testing.assert_array_equal(signatures(*flat([cyclic]), s)[0], together[-1])
    for number in (0, 2):
        assert together[number].tolist() == slow_signature(documents[number].tolist(), s)


def test_bits_that_a_disk_may_hold() -> None:
    """Sealed signatures are compared with new ones: these may change only together with the version of a unit."""
    found = signatures(*flat([range(60)]), NearDuplicates(bands=2))
    assert found.tolist() == [slow_signature(range(60), NearDuplicates(bands=2))]
    assert found.tolist() == PINNED


PINNED = [[5832482231595384138, 17201905112843619226]]


def edited(document: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Each token replaced with this probability."""
    replaced = generator.random(len(document)) < share
    return np.where(replaced, generator.integers(0, 50_000, len(document)), document)


@pytest.mark.parametrize("length", [80, 400, 6000])
def test_estimate_is_unbiased_and_as_close_as_binomial(length: int) -> None:
    """The share of agreeing places, less those that agree by chance, against exact similarity. A sketch of places
    drawn one by one has the variance s (1 - s) / places; this one has at most that."""
    s = NearDuplicates()
    generator = np.random.default_rng(length)
    documents, exact = [], []
    for share in np.tile([0.01, 0.03, 0.06, 0.12], 100):
        document = generator.integers(0, 50_000, length)
        documents += [document, edited(document, share, generator)]
        exact.append(similarity(documents[-2].tolist(), documents[-1].tolist(), s.ngram))
    keys = signatures(*flat(documents), s)
    chance = 2.0**-s.bits
    estimate = (agreements(keys[::2], keys[1::2], s) / s.places - chance) / (1 - chance)
    error = (estimate - exact) / np.sqrt(np.array(exact) * (1 - np.array(exact)) / s.places + 1e-9)
    assert abs(error.mean()) < 4 / np.sqrt(len(exact))
    assert error.std() < 1.15


def test_s_curve() -> None:
    """The pairs found at each similarity are as many as the formula in the settings says."""
    s = NearDuplicates(threshold=Fraction(1, 2), ngram=1, minimum_tokens=1)
    generator = np.random.default_rng(3)
    for percent in (30, 50, 60, 70, 80, 90):
        pairs = 400
        found = 0
        for _ in range(pairs):
            pool = generator.choice(65_536, 200, replace=False)
            common, rest = pool[: 2 * percent], pool[2 * percent :]
            half = len(rest) // 2
            two = [[*common, *rest[:half]], [*common, *rest[half:]]]
            keys = signatures(*flat(two), s)
            found += any((keys[0] == keys[1]).tolist())
        place = percent / 100 + (1 - percent / 100) / 2**s.bits
        expected = 1 - (1 - place**s.rows) ** s.bands
        spread = 4 * np.sqrt(pairs * expected * (1 - expected)) + 4
        assert abs(found - pairs * expected) < spread, percent


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_agreements_counts_places(data: st.DataObject) -> None:
    rows = data.draw(st.integers(2, 16))
    s = NearDuplicates(bands=3, rows=rows)
    values = st.integers(0, (1 << s.bits) - 1)
    two = [data.draw(st.lists(values, min_size=s.places, max_size=s.places)) for _ in range(2)]
    some = data.draw(st.lists(st.integers(0, s.places - 1)))
    for place in some:
        two[1][place] = two[0][place]
    keys = np.zeros((2, 3), dtype=np.uint64)
    for number, places in enumerate(two):
        for place, value in enumerate(places):
            keys[number, place // rows] |= np.uint64(value << place % rows * s.bits)
    assert agreements(keys[0], keys[1], s) == sum(a == b for a, b in zip(*two))


def test_agreeing_is_what_the_threshold_stands_for() -> None:
    assert NearDuplicates().agreeing == 102  # 128 (0.8 + 0.2 / 256) = 102.5, half to even
    assert NearDuplicates(threshold="1").agreeing == 128
    assert NearDuplicates(threshold=0.5, rows=2, bands=4).agreeing == 4  # and a chance of 2^-32
    assert NearDuplicates(threshold="1/3", rows=4, bands=3).agreeing == 4
    assert NearDuplicates(threshold=0.8, rows=2, bands=3).agreeing == 5  # 4.8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": 0}, "greater than 0"),
        ({"threshold": "2"}, "less than or equal to 1"),
        ({"threshold": "much"}, "expected a number or a fraction"),
        ({"ngram": 7, "minimum_tokens": 6}, "minimum_tokens: .* at least ngram = 7, found 6"),
        ({"rows": 17}, "less than or equal to 16"),
        ({"permutations": 3}, "Extra inputs are not permitted"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NearDuplicates.model_validate(values)


def test_shared() -> None:
    keys = np.array([5, 0, 7, 5, 0, 9, 2**64 - 1, 5, 2**64 - 1], dtype=np.uint64)
    assert shared(keys).tolist() == [True, False, False, True, False, False, True, True, True]
    assert shared(keys[:0]).tolist() == []
    assert shared(keys[:1]).tolist() == [False]


def test_pairs_compare_with_the_first_of_a_key() -> None:
    """Four copies of one text, two of another with the same key in one band, and one that stands alone."""
    s = NearDuplicates(ngram=1, bands=4, rows=2, minimum_tokens=1)
    a, b = [1, 10, 11, 12], [1, 20, 21, 22]
    keys = np.array([a, b, a, a, b, [7, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], a], dtype=np.uint64)
    source = np.array([1, 0, 0, 1, 0, 0, 0, 0, 0])
    text = np.array([5, 9, 9, 4, 8, 1, 1, 1, 2])
    pairs = similar_pairs(keys, 0, [source, text], s)
    assert {tuple(pair) for pair in pairs.tolist()} == {(8, 2), (8, 3), (8, 0), (4, 1)}
    assert similar_pairs(keys[:0], 0, [source[:0], text[:0]], s).shape == (0, 2)
    assert similar_pairs(keys[:1], 0, [source[:1], text[:1]], s).shape == (0, 2)
    assert similar_pairs(keys[6:8], 0, [source[:2], text[:2]], s).shape == (0, 2)


def test_the_threshold_is_met_exactly() -> None:
    s = NearDuplicates(threshold=Fraction(3, 4), bands=4, rows=2)
    assert s.agreeing == 6  # of 8 places
    keys = np.full((5, 4), 1 << 40 | 3, dtype=np.uint64)
    for number in range(1, 5):
        keys[number, 1 : 1 + number] ^= np.uint64(1)  # agrees with the first in 8 - number places
    keys[4, 1] ^= np.uint64(2)
    found = similar_pairs(keys[:, [3, 0, 1, 2]], 1, [np.arange(5)], s)
    assert found.tolist() == [[0, 1], [0, 2], [3, 4]]


def test_a_key_that_many_share_costs_a_pair_each() -> None:
    keys = np.full((20_000, 4), 99, dtype=np.uint64)
    pairs = similar_pairs(keys, 2, [np.arange(20_000)[::-1]], SMALL)
    assert len(pairs) == 19_999
    assert set(pairs[:, 0].tolist()) == {19_999}


def slow_components(pairs: Sequence[tuple[int, int]]) -> dict[int, int]:
    groups: list[set[int]] = []
    for pair in pairs:
        touched = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if not group & set(pair)]
        groups.append(set(pair).union(*touched))
    return {document: min(group) for group in groups for document in group}


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40), st.randoms())
def test_components_are_the_references_in_any_order(
    pairs: list[tuple[int, int]], shuffled: random.Random
) -> None:
    documents, labels = components(np.array(pairs, dtype=np.int64).reshape(-1, 2))
    assert dict(zip(documents.tolist(), labels.tolist(), strict=True)) == slow_components(pairs)
    again = [pair if shuffled.random() < 0.5 else pair[::-1] for pair in pairs]
    shuffled.shuffle(again)
    others = components(np.array(again, dtype=np.int64).reshape(-1, 2))
    np.testing.assert_array_equal(others, (documents, labels))


@pytest.mark.parametrize("order", ["ascending", "descending", "random", "zigzag"])
def test_components_of_a_long_chain(order: str) -> None:
    """Each resembles the next one only: one component all the same, in few rounds."""
    chain = np.arange(100_000, dtype=np.uint64) + np.uint64(2**63)
    if order == "descending":
        chain = chain[::-1]
    if order == "random":
        chain = np.random.default_rng(0).permutation(chain)
    if order == "zigzag":
        chain = np.stack([chain[:50_000], chain[:49_999:-1]], axis=1).reshape(-1)
    documents, labels = components(np.stack([chain[:-1], chain[1:]], axis=1))
    assert len(documents) == 100_000
    assert set(labels.tolist()) == {2**63}


def test_survivors_come_first() -> None:
    labels = np.array([3, 3, 8, 8, 8, 1])
    source = np.array([1, 0, 2, 2, 2, 0])
    text = np.array([0, 7, 2, 1, 3, 0])
    assert survivors(labels, [source, text]).tolist() == [False, True, False, True, False, True]
    assert survivors(labels[:0], [source[:0]]).tolist() == []


def find_duplicates(documents: list[np.ndarray], s: NearDuplicates) -> list[bool]:
    """The whole way, as the stages go it: who survives. `precedence` is the document's content."""
    keys = signatures(*flat(documents), s)
    precedence = [np.array([int(document.sum()) for document in documents])]
    pairs = []
    for band in range(s.bands):
        some = np.flatnonzero(shared(keys[:, band]))
        pairs.append(some[similar_pairs(keys[some], band, [precedence[0][some]], s)])
    inside, labels = components(np.concatenate(pairs))
    alive = np.ones(len(documents), dtype=bool)
    alive[inside] = survivors(labels, [precedence[0][inside]])
    return alive.tolist()


@pytest.fixture(scope="module")
def crowd() -> list[np.ndarray]:
    """40 documents and, of half of them, two edited copies each."""
    generator = np.random.default_rng(11)
    documents = [
        generator.integers(0, 50_000, int(generator.integers(60, 2000))).astype(np.uint16) for _ in range(40)
    ]
    for document in documents[:20]:
        documents.append(edited(document, 0.005, generator))
        documents.append(document[: len(document) * 95 // 100])
    return documents


def test_one_of_each_crowd_survives(crowd: list[np.ndarray]) -> None:
    s = NearDuplicates()
    alive = find_duplicates(crowd, s)
    assert sum(alive) == 40
    for number in range(20):
        assert alive[number] + alive[40 + 2 * number] + alive[41 + 2 * number] == 1
    assert all(alive[20:40])


def test_survivors_are_the_same_in_any_order_of_documents(crowd: list[np.ndarray]) -> None:
    s = NearDuplicates(threshold=0.5)
    expected = {document.tobytes() for document, alive in zip(crowd, find_duplicates(crowd, s)) if alive}
    for seed in range(5):
        shuffled = random.Random(seed).sample(crowd, len(crowd))
        alive = find_duplicates(shuffled, s)
        assert {document.tobytes() for document, kept in zip(shuffled, alive) if kept} == expected


def test_edited_real_texts(shared_data: Path) -> None:
    """Pieces of stories, each beside a copy with some words replaced: nearly all pairs from the threshold on are
    found, few just below it, none far below it, and no two different pieces."""
    tokenizer = load_tokenizer(shared_data / "tokenizer")
    generator = random.Random(0)
    with gzip.open(shared_data / "stories" / "short_fiction.jsonl.gz", "rt", encoding="utf-8") as rows:
        stories = [json.loads(row)["text"].split(" ") for row in rows]
    pieces = [story[i : i + 300] for story in stories for i in range(0, len(story) - 300, 4000)]
    texts = []
    for piece in pieces:
        rate = generator.choice([0.005, 0.01, 0.02, 0.03, 0.05])
        copy = [w if generator.random() > rate else generator.choice(generator.choice(pieces)) for w in piece]
        texts += [" ".join(piece), " ".join(copy)]
    s = NearDuplicates()
    ids, offsets = tokenizer.encode(texts)
    documents = [ids[a:b].tolist() for a, b in pairwise(offsets)]
    exact = np.array([similarity(*two, s.ngram) for two in zip(documents[::2], documents[1::2], strict=True)])
    keys = signatures(ids, offsets, s)
    pairs = set()
    for band in range(s.bands):
        found = similar_pairs(keys, band, [np.arange(len(texts))], s)
        pairs |= {(left, right) for left, right in found.tolist()}
    assert all(right == left + 1 and left % 2 == 0 for left, right in pairs)
    together = np.array([(2 * i, 2 * i + 1) in pairs for i in range(len(pieces))])
    assert ((exact >= 0.8).sum(), ((exact >= 0.6) & (exact < 0.8)).sum()) > (80, 80)
    assert together[exact >= 0.8].mean() > 0.9
    assert together[exact >= 0.87].mean() > 0.98
    assert together[exact >= 0.93].all()
    assert together[(exact >= 0.7) & (exact < 0.8)].mean() < 0.4
    assert not together[exact < 0.65].any()


def test_unrelated_documents_are_never_paired(crowd: list[np.ndarray]) -> None:
    s = NearDuplicates()
    keys = signatures(*flat(crowd[:40]), s)
    most = max(int(agreements(keys[a], keys[b], s)) for a, b in combinations(range(40), 2))
    assert most < s.places // 8
