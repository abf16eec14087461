"""A cluster's file with its placeholders filled in, as its user would."""

from __future__ import annotations

import re
from typing import Any

LISTS = {
    "worker_ips": ["10.0.0.2", "10.0.0.3"],
    "SecurityGroupIds": ["sg-0"],
    "SubnetIds": ["subnet-0"],
}
TEXT = "example.com/longspan:filled-in"


def filled(value: Any, key: str = "") -> Any:
    """`value` with something of the right type in place of every placeholder."""
    if isinstance(value, dict):
        if set(value) == {"FILL_IN"}:
            return LISTS.get(key, TEXT)
        return {name: filled(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, key) for inner in value]
    return re.sub(r"FILL_IN\w*", "filled-in", value) if isinstance(value, str) else value
