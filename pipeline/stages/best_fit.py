"""Best-fit packing: documents go whole into sequences wherever they fit, each into the fullest one that has room.

Concatenation cuts nearly each document that is not at a sequence's border; this cuts only documents longer than a
sequence ("Fewer truncations improve language modeling", Ding et al. 2024, arXiv 2404.10830), for a little padding.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens `offset` to `offset + tokens` of a document."""

    document: int
    offset: int
    tokens: int


def best_fit(lengths: np.ndarray, room: int) -> list[list[Piece]]:
    """Sequences of the documents of these `lengths`, (documents,), each at least 1: a list of pieces each.

    A sequence has room for `room` tokens and a closing mark, and each piece takes one place more than its tokens, for
    the mark that follows it. A document longer than that is cut, from its start, into pieces that fill a sequence and
    a rest. Pieces are placed longest first, each into the sequence with the least room that is enough. Sequences are
    given by their first document, and pieces in a sequence by document.
    """
    pieces = [
        Piece(document, offset, min(room, length - offset))
        for document, length in enumerate(lengths.tolist())
        for offset in range(0, length, room)
    ]
    pieces.sort(key=lambda piece: (-piece.tokens, piece.document, piece.offset))
    sequences: list[list[Piece]] = []
    with_room: list[list[int]] = [[] for _ in range(room + 2)]  # by places left: which sequences
    some = 0  # bit r is set where a sequence with r places is left
    for piece in pieces:
        need = piece.tokens + 1
        enough = some >> need
        if enough:
            left = need + (enough & -enough).bit_length() - 1
            number = with_room[left].pop()
            if not with_room[left]:
                some ^= 1 << left
        else:
            left, number = room + 1, len(sequences)
            sequences.append([])
        sequences[number].append(piece)
        left -= need
        if left:
            with_room[left].append(number)
            some |= 1 << left
    for pieces in sequences:
        pieces.sort(key=lambda piece: (piece.document, piece.offset))
    return sorted(sequences, key=lambda pieces: (pieces[0].document, pieces[0].offset))
