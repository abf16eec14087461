"""That nothing is lost on the way is checked when a corpus is sealed; here, that the check fails where it was."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from pipeline.stages.seal import balance
from pipeline.stages.split import Chunk
from pipeline.units import Record


def encoded(read: int, kept: int, **dropped: dict[str, int]) -> Record:
    return Record([], {"read": read, "kept": {"documents": kept}, "dropped": dropped})


def build() -> dict[str, Any]:
    """What `balance` is given by a build of one source in two chunks, of which 10 documents were taken."""
    chunks = [(Chunk("split/0", "", 6, 100), 6), (Chunk("split/1", "", 9, 100), 4)]
    return {
        "split": [(Record([], {"quarantined": {"invalid_json": 2}}), chunks)],
        "encoded": [
            encoded(6, 4, too_few_tokens={"documents": 2, "tokens": 8, "tokenised": 2}),
            encoded(4, 3, too_few_tokens={"documents": 1, "tokens": 0, "tokenised": 0}),
        ],
        "selected": {
            "dropped": {"duplicate_text": {"documents": 2, "tokens": 50}},
            "splits": {
                "train": {"documents": 4, "tokens": 90},
                "validation": {"documents": 1, "tokens": 10},
            },
            "length_histogram": [5],
        },
        "packed": 100,
    }


def test_counts_balance() -> None:
    counts = balance("books", **build())
    assert counts["read"] == 12
    assert counts["kept"] == {"documents": 5, "tokens": 100}
    assert counts["dropped"] == {
        "duplicate_text": {"documents": 2, "tokens": 50},
        "too_few_tokens": {"documents": 3},
    }


def _forget_a_chunk(of: dict[str, Any]) -> None:
    del of["encoded"][1]
    of["selected"]["splits"]["train"] = {"documents": 1, "tokens": 90}


def _encode_a_document_less(of: dict[str, Any]) -> None:
    of["encoded"][0].facts["read"] = 5


def _drop_without_a_reason(of: dict[str, Any]) -> None:
    of["encoded"][0].facts["dropped"] = {}


def _keep_twice(of: dict[str, Any]) -> None:
    of["selected"]["splits"]["validation"]["documents"] += 1


def _pack_less(of: dict[str, Any]) -> None:
    of["packed"] -= 1


@pytest.mark.parametrize(
    "fault", [_forget_a_chunk, _encode_a_document_less, _drop_without_a_reason, _keep_twice, _pack_less]
)
def test_whatever_is_lost_is_noticed(fault: Callable[[dict[str, Any]], None]) -> None:
    broken = deepcopy(build())
    fault(broken)
    with pytest.raises(AssertionError, match="books: "):
        balance("books", **broken)
