"""Small files of JSON that know their own checksum: who finds one again can tell whether it is what was written."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_CHECK = "sha256"


def seal_json(data: Mapping[str, Any]) -> bytes:
    """`data`, whose keys are strings, with its checksum as one more key, the last."""
    plain = json.loads(json.dumps(data))  # tuples are lists, as they will be when it is read
    assert _CHECK not in plain
    return json.dumps({**plain, _CHECK: _digest(plain)}).encode()


def read_sealed_json(content: bytes) -> dict[str, Any]:
    """What was sealed. ValueError where the content is no such file or was changed since."""
    data = json.loads(content)
    if not isinstance(data, dict) or data.pop(_CHECK, None) != _digest(data):
        raise ValueError("not as it was sealed")
    return data


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()
