"""Small JSON files of a model folder, read with messages that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.engine.config import InputError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an InputError that names the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: found a {type(found).__name__}, expected an object")
    return found
