"""Near-duplicates: MinHash over token ids, and locality-sensitive hashing to find the pairs. Integers only.

A document is the set of its n-grams of token ids. Two documents are near-duplicates where the Jaccard similarity
of their sets (shared n-grams ÷ all n-grams of both) is at least `threshold`. Token ids lie sealed on disk, so
other settings tokenise nothing anew.

A *signature* has `bands` × `rows` places. Two documents agree in a place with the probability of their similarity,
so the places they agree in estimate it. Each band of a signature is one 64-bit key, its rows side by side in
64 ÷ rows bits each: a signature is the keys of its bands, (bands,) uint64, and nothing else is stored. Documents
that share a key are compared place by place. A key of 0 is nobody's: a document with fewer tokens than
`minimum_tokens` has them all 0 and is compared with none.

    keys = signatures(ids, offsets, settings)               of a file of token documents
    for band in range(settings.bands):                      in parallel, and by ranges of the key
        some = np.flatnonzero(shared(keys[:, band]))
        pairs = similar_pairs(keys[some], band, precedence, settings)
    label = components(pairs)                               of all bands together

The places are those of "fast similarity sketching" (Dahlgaard, Knudsen, Thorup 2017, arXiv 1704.04370): one hash of
an n-gram serves all places, its high digits naming the place and the least hash winning it. Places that are still
empty then go to further rounds with other hashes. That costs a few ns a token where a hash for each place costs a
hundred, and the estimate has no bias, also of documents with fewer n-grams than places.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.shares import Share

_GROUP = 256
"""Documents at a time, and n-grams of them at a time: what stays in the processor's caches. Changes no bit."""
_BLOCK = 1 << 15
_EMPTY = np.uint32(0xFFFFFFFF)
_ROUNDS = 32
"""After so many rounds each place that is still empty takes the least of all n-grams under a hash of its own: only
documents of some thirty different n-grams and fewer come that far."""
_STARS = 8
"""How often the documents of one key that the least of them does not resemble are compared among themselves."""


class NearDuplicates(BaseModel):
    """How near-duplicates are found. Two documents of similarity s share a band with probability
    1 - (1 - s**rows)**bands: with the defaults 0.95 at 0.8, 0.48 at 0.7, 0.06 at 0.5."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: Annotated[Share, Field(gt=0)] = Fraction(4, 5)
    """Documents whose estimated similarity is at least this are near-duplicates. The estimate's standard error is
    sqrt(s (1 - s) / (bands · rows)), 0.035 at the default."""
    ngram: Annotated[int, Field(ge=1, le=64)] = 5
    """Tokens an n-gram. One changed token changes so many n-grams: with 5, documents in which one token in 45 was
    replaced have a similarity of 0.8."""
    bands: Annotated[int, Field(ge=1, le=256)] = 16
    """More find more of the pairs just above the threshold, for 8 bytes a document each."""
    rows: Annotated[int, Field(ge=2, le=16)] = 8
    """Places a band. More compare fewer pairs below the threshold, and miss more above it."""
    minimum_tokens: Annotated[int, Field(ge=1)] = 50
    """Shorter documents are compared with none: in so few n-grams a changed date makes another document."""

    @model_validator(mode="after")
    def _an_ngram_fits(self) -> "NearDuplicates":
        if self.minimum_tokens < self.ngram:
            raise ValueError(
                f"minimum_tokens: a shorter document has no n-gram; expected at least ngram = {self.ngram}, "
                f"found {self.minimum_tokens}"
            )
        return self

    @property
    def places(self) -> int:
        return self.bands * self.rows

    @property
    def bits(self) -> int:
        """Bits of a place."""
        return min(32, 64 // self.rows)

    @property
    def agreeing(self) -> int:
        """The least number of places in which near-duplicates agree: what the threshold stands for, places that
        agree by chance included, to the nearest."""
        chance = Fraction(1, 1 << self.bits)
        return round(self.places * (self.threshold + (1 - self.threshold) * chance))


class Deduplicate(BaseModel):
    """Which copies go. Of documents with one id one stays, and of documents with one text (but for case and white
    space), always; near-duplicates where `near` says how they are found, `near: {}` with its defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exact: Literal[True] = True
    near: NearDuplicates | None = None


def signatures(ids: np.ndarray, offsets: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """(documents, bands) uint64: each document's keys, all 0 where it has fewer than `minimum_tokens`.

    `ids` (total,) uint16 or uint32 are the documents' tokens one after the other, document i at
    `offsets[i]:offsets[i + 1]`; `offsets` (documents + 1,) int64.
    """
    assert len(offsets) > 0
    lengths = np.diff(offsets)
    assert lengths.min(initial=0) >= 0
    assert offsets[-1] <= len(ids)
    keys = np.zeros((len(lengths), settings.bands), dtype=np.uint64)
    compared = np.flatnonzero(lengths >= settings.minimum_tokens)
    for first in range(0, len(compared), _GROUP):
        group = compared[first : first + _GROUP]
        keys[group] = _pack(_minima(ids, offsets[group], offsets[group + 1], settings), settings)
    return keys


def agreements(left: np.ndarray, right: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """(…,) int64: in how many places the signatures left and right, (…, bands) uint64, agree."""
    differing = left ^ right
    mask = np.uint64((1 << settings.bits) - 1)
    agreeing = np.zeros(differing.shape[:-1], dtype=np.int64)
    for row in range(settings.rows):
        agreeing += ((differing >> np.uint64(row * settings.bits)) & mask == 0).sum(axis=-1)
    return agreeing


def shared(keys: np.ndarray) -> np.ndarray:
    """(documents,) bool: whose key of one band, (documents,) uint64, another document has too."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    same = np.zeros(len(keys) + 1, dtype=bool)
    same[1:-1] = (ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)
    found = np.zeros(len(keys), dtype=bool)
    found[order] = same[1:] | same[:-1]
    return found


def similar_pairs(
    signatures: np.ndarray, band: int, precedence: Sequence[np.ndarray], settings: NearDuplicates
) -> np.ndarray:
    """(pairs, 2) int64: near-duplicates, by row, among those that share their key of `band`; the one that comes
    first is on the left.

    `signatures` are (documents, bands) uint64. `precedence` are (documents,) integers each, what counts most first,
    as in (source's place, text hash high, low): the least document comes first; its row decides between equals.

    Of the documents with one key, the first is compared with each other one, so that a page that a million others
    resemble costs a million comparisons. Those that do not resemble it are compared likewise among themselves, a
    few times over. What resembles only one of those that go is so no reason to go, unless another band says so.
    """
    keys = signatures[:, band]
    left = np.lexsort([*reversed(precedence), keys])
    left = left[keys[left] != 0]
    found = [np.zeros((0, 2), dtype=np.int64)]
    for _ in range(_STARS):
        ordered = keys[left]
        first = np.append(True, ordered[1:] != ordered[:-1])[: len(left)]
        if first.all():
            break
        centre = left[np.maximum.accumulate(np.where(first, np.arange(len(left)), 0))]
        pairs = np.stack([centre, left], axis=1)[~first]
        alike = _alike(signatures, pairs, settings)
        found.append(pairs[alike])
        left = pairs[~alike, 1]
    return np.concatenate(found)


def _alike(signatures: np.ndarray, pairs: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    alike = np.zeros(len(pairs), dtype=bool)
    for first in range(
        0, len(pairs), _BLOCK
    ):  # the gathered signatures would be larger than what they come from
        some = slice(first, first + _BLOCK)
        agreeing = agreements(signatures[pairs[some, 0]], signatures[pairs[some, 1]], settings)
        alike[some] = agreeing >= settings.agreeing
    return alike


def components(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(documents, labels): those that are in `pairs`, sorted, each once, and the least document of each one's
    connected component; (n,) each, of the type of `pairs`, (pairs, 2) of any integers, in any order.
    """
    documents, ends = np.unique(pairs, return_inverse=True)
    left, right = ends.reshape(-1, 2).T
    label = np.arange(len(documents))
    while len(left):
        # Every root takes the least root beside it, then every document its root's.
        least = np.minimum(label[left], label[right])
        np.minimum.at(label, label[left], least)
        np.minimum.at(label, label[right], least)
        while (label[label] != label).any():
            label = label[label]
        apart = label[left] != label[right]
        left, right = label[left[apart]], label[right[apart]]
    return documents, documents[label]


def survivors(labels: np.ndarray, precedence: Sequence[np.ndarray]) -> np.ndarray:
    """(documents,) bool: the first document of each component, by `precedence` as in `similar_pairs`."""
    order = np.lexsort([*reversed(precedence), labels])
    ordered = labels[order]
    kept = np.zeros(len(labels), dtype=bool)
    kept[order] = np.append(True, ordered[1:] != ordered[:-1])[: len(labels)]
    return kept


def _mix(hashes: np.ndarray) -> np.ndarray:
    """Murmur3's finaliser, in place: a permutation of the 32-bit integers in which each bit changes every other
    one with probability 1/2."""
    hashes ^= hashes >> np.uint32(16)
    hashes *= np.uint32(0x85EBCA6B)
    hashes ^= hashes >> np.uint32(13)
    hashes *= np.uint32(0xC2B2AE35)
    hashes ^= hashes >> np.uint32(16)
    return hashes


def _round(hashes: np.ndarray, number: int) -> np.ndarray:
    """Another hash of the same n-grams; of round 0, they themselves."""
    return _mix(hashes ^ np.uint32(number * 0x9E3779B9 & 0xFFFFFFFF)) if number else hashes


def _ngram_hashes(ids: np.ndarray, ngram: int) -> np.ndarray:
    """(tokens - ngram + 1,) uint32: a hash of the n-gram that starts at each of `ids`."""
    # The ids are small and alike; mixed first, no difference of two n-grams is a multiple of a high power of 2.
    mixed = _mix(ids.astype(np.uint32) + np.uint32(1))
    count = len(ids) - ngram + 1
    hashes = mixed[:count].copy()
    for place in range(1, ngram):
        hashes *= np.uint32(0x01000193)
        hashes += mixed[place : place + count]
    return _mix(hashes)


def _blocks(
    ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, ngram: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(documents of the n-grams, hashes of the n-grams) of the documents ids[starts[i]:ends[i]], a part at a time.
    Both (n-grams,); documents are numbered by i."""
    counts = ends - starts - ngram + 1
    assert counts.min(initial=1) > 0
    bounds = np.append(0, np.cumsum(counts))  # of each document among the n-grams of all
    for begin in range(0, int(bounds[-1]), _BLOCK):
        end = min(begin + _BLOCK, int(bounds[-1]))
        first = int(np.searchsorted(bounds, begin, side="right")) - 1
        last = int(np.searchsorted(bounds, end, side="left"))
        within = np.clip(bounds[first : last + 1], begin, end)
        documents = np.repeat(np.arange(first, last), np.diff(within))
        # Where the documents follow each other in `ids`, one stretch of it is hashed whole.
        begins = starts[first:last] + within[:-1] - bounds[first:last]
        stops = begins + np.diff(within) + ngram - 1
        low, high = int(begins[0]), int(stops[-1])
        if high - low <= 2 * _BLOCK:
            hashes = _ngram_hashes(ids[low:high], ngram)
            if last - first > 1:
                places = np.arange(end - begin) + np.repeat(
                    begins - low - (within[:-1] - begin), np.diff(within)
                )
                hashes = hashes[places]
        else:
            hashes = np.concatenate(
                [_ngram_hashes(ids[a:b], ngram) for a, b in zip(begins, stops, strict=True)]
            )
        yield documents, hashes


def _minima(ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """(documents, places) uint32: the hash that wins each place."""
    places = settings.places
    minima = np.full((len(starts), places), _EMPTY, dtype=np.uint32)
    for documents, hashes in _blocks(ids, starts, ends, settings.ngram):
        _least(minima, documents, hashes)
    unfinished = np.flatnonzero((minima == _EMPTY).any(axis=1))
    if not len(unfinished):
        return minima
    left = minima[unfinished]
    documents, hashes = _gather(_blocks(ids, starts[unfinished], ends[unfinished], settings.ngram))
    for number in range(1, _ROUNDS):
        empty = left == _EMPTY
        going_on = empty.any(axis=1)[documents]
        documents, hashes = documents[going_on], hashes[going_on]
        if not len(documents):
            break
        rehashed = _round(hashes, number)
        wanted = empty[documents, _place(rehashed, places)]
        _least(left, documents[wanted], rehashed[wanted])
    for place in range(places):
        wanted = (left[:, place] == _EMPTY)[documents]
        if wanted.any():
            np.minimum.at(left[:, place], documents[wanted], _round(hashes[wanted], _ROUNDS + place))
    minima[unfinished] = left
    return minima


def _place(hashes: np.ndarray, places: int) -> np.ndarray:
    return (hashes.astype(np.uint64) * np.uint64(places) >> np.uint64(32)).astype(np.int64)


def _least(minima: np.ndarray, documents: np.ndarray, hashes: np.ndarray) -> None:
    places = minima.shape[1]
    np.minimum.at(minima.reshape(-1), documents * places + _place(hashes, places), hashes)


def _gather(blocks: Iterator[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """All blocks in one. A document that fills a block by itself and left places empty repeats itself, a million
    times perhaps: of its hashes each is taken once."""
    parts = []
    for documents, hashes in blocks:
        if documents[0] == documents[-1]:
            hashes = np.sort(hashes)
            hashes = hashes[np.append(True, hashes[1:] != hashes[:-1])]
            documents = np.full(len(hashes), documents[0])  # a view would keep all of them
        parts.append((documents, hashes))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _pack(minima: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """(documents, places) uint32 → (documents, bands) uint64."""
    # The winner of a place has the place's own high digits and is small beside them: mixed, any bits of it will do.
    rows = _mix(minima.copy()).reshape(len(minima), settings.bands, settings.rows)
    keys = np.zeros(rows.shape[:2], dtype=np.uint64)
    for row in range(settings.rows):
        place = rows[:, :, row] >> np.uint32(32 - settings.bits)
        keys |= place.astype(np.uint64) << np.uint64(row * settings.bits)
    return keys
