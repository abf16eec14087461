"""Best-fit packing: documents go whole into sequences wherever they fit, each into the fullest one that has room.

Concatenation cuts nearly each document that is not at a sequence's border; this cuts only documents longer than a
sequence ("Fewer truncations improve language modeling", Ding et al. 2024, arXiv 2404.10830), for a little padding.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fitted:
    """Pieces of documents in sequences, by sequence; (pieces,) int64 each."""

    sequence: np.ndarray
    document: np.ndarray
    offset: np.ndarray
    """How many of the document's tokens come before the piece."""
    tokens: np.ndarray

    @property
    def sequences(self) -> int:
        return int(self.sequence[-1]) + 1 if len(self.sequence) else 0


def best_fit(lengths: np.ndarray, room: int) -> Fitted:
    """Fits documents of these `lengths`, (documents,), each at least 1, into sequences.

    A sequence has room for `room` tokens and a closing mark, and each piece takes one place more than its tokens, for
    the mark that follows it. A document longer than that is cut, from its start, into pieces that fill a sequence and
    a rest. Pieces are placed longest first, each into the sequence with the least room that is enough. Sequences are
    given by their first document, and pieces in a sequence by document.
    """
    counts = -(-lengths // room)
    document = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    offset = number * room
    tokens = np.minimum(room, lengths[document] - offset)
    ranked = np.argsort(-tokens, kind="stable")
    sequence = np.empty(len(document), dtype=np.int64)
    sequence[ranked] = _place(tokens[ranked], room)
    # Documents ascend, and so does the least of each sequence: its first piece says where it comes.
    first = np.full(len(document), len(document))
    np.minimum.at(first, sequence, np.arange(len(document)))
    place = np.empty(len(document), dtype=np.int64)
    place[np.argsort(first, kind="stable")] = np.arange(len(document))
    sequence = place[sequence]
    order = np.argsort(sequence, kind="stable")
    return Fitted(sequence[order], document[order], offset[order], tokens[order])


def _place(tokens: np.ndarray, room: int) -> list[int]:
    """For pieces in descending order of their tokens, the number of the sequence that each goes to."""
    found = []
    with_room: list[list[int]] = [[] for _ in range(room + 2)]  # by places left: which sequences
    some = 0  # bit r is set where a sequence with r places is left
    sequences = 0
    for need in (tokens + 1).tolist():
        enough = some >> need
        if enough:
            left = need + (enough & -enough).bit_length() - 1
            number = with_room[left].pop()
            if not with_room[left]:
                some ^= 1 << left
        else:
            left, number = room + 1, sequences
            sequences += 1
        found.append(number)
        left -= need
        if left:
            with_room[left].append(number)
            some |= 1 << left
    return found
