"""Models by their place: a folder on this machine, or `owner/name[@revision]` on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from trainer.engine.config import InputError
from trainer.model.tokenizer_files import TOKENIZER_FILES

SETTINGS = ("config.json", *TOKENIZER_FILES)
# Exact names, not model*: repositories hold the same weights in several types and formats.
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-?????-of-?????.bin")
# A hub id is `name` or `owner/name`; anything else is meant as a path.
_NAME = r"[A-Za-z0-9][\w.\-]*(?:/[A-Za-z0-9][\w.\-]*)?"
_HUB_ID = re.compile(rf"(?P<name>{_NAME})(?:@(?P<revision>\w[\w.\-/]*))?")
ORIGIN = re.compile(rf"{_NAME}@\w+")
"""What `hub_origin` gives."""


def locate_model(location: str | Path) -> Path:
    """The local folder of a model named by path or hub id.

    A hub id, with a branch, tag or commit behind an `@` where not the newest is meant, is fetched into Hugging Face's
    cache: configuration, tokenizer and weights, these as safetensors where there are any, and nothing else.
    """
    folder = Path(location)
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise InputError(f"{folder}: found no config.json, expected a Hugging Face model folder")
    asked = _HUB_ID.fullmatch(str(location))
    if not asked:
        raise InputError(
            f"{location}: no such folder, and not a hub id (expected `owner/name` or `owner/name@revision`)"
        )
    fetched = _fetch(asked["name"], asked["revision"], (*SETTINGS, *SAFETENSORS))
    if not (fetched / "config.json").is_file():
        raise InputError(f"{location}: no such folder, and the hub's has no config.json")
    if not any((fetched / name).is_file() for name in SAFETENSORS[:2]):
        fetched = _fetch(asked["name"], fetched.name, PICKLED)
    return fetched


def _fetch(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    """The folder of one commit in the cache; what is there already is not fetched again."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        asked = f"{name}@{revision}" if revision else name
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{asked}: no such folder, and the hub did not give it: {reason}") from error


def hub_origin(folder: Path) -> str:
    """`owner/name@commit` of a folder in Hugging Face's cache; "" of any other, whose path is its owner's business."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith("models--"):
        return ""
    return f"{repository.removeprefix('models--').replace('--', '/')}@{folder.name}"
