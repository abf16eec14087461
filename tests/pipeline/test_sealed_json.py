"""Records that are damaged are told from whole ones."""

import json

import pytest

from pipeline.sealed_json import read_sealed_json, seal_json

DATA = {"files": [("a", 1)], "facts": {"dé": {"documents": 3}, "share": 0.1}, "notes": None}


def test_what_was_sealed_is_read() -> None:
    assert read_sealed_json(seal_json(DATA)) == {**DATA, "files": [["a", 1]]}
    assert read_sealed_json(seal_json({})) == {}


def test_every_changed_bit_is_noticed() -> None:
    content = seal_json(DATA)
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            try:
                found = read_sealed_json(bytes(changed))
            except ValueError:
                continue
            assert found == read_sealed_json(content), "as for a letter of \\u00e9 in upper case"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"3", b"\0\0", json.dumps(DATA).encode()])
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        read_sealed_json(content)
