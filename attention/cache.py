"""The folder for what is worth keeping between processes: compiled kernels, and which of them were found right."""

from __future__ import annotations

import functools
import os
import stat
import tempfile
from pathlib import Path


def folder() -> Path:
    """LONGSPAN_CACHE, else longspan in XDG_CACHE_HOME or ~/.cache; where that cannot be used, a temporary folder.

    What lies there is loaded as code, so it must belong to this user and be writable by nobody else.
    """
    given = os.environ.get("LONGSPAN_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        path = Path(given or f"{home}/longspan").expanduser().absolute()
    except RuntimeError:  # there is no home
        return _temporary_folder()
    return path if _is_ours(path) else _temporary_folder()


@functools.cache
def _temporary_folder() -> Path:
    """One a user if possible, so that processes share it and leave one behind."""
    path = Path(tempfile.gettempdir(), f"longspan-{os.getuid()}").absolute()
    return path if _is_ours(path) else Path(tempfile.mkdtemp(prefix="longspan-"))


def _is_ours(path: Path) -> bool:
    """Make the folder if need be; whether this user alone can write it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = path.stat(follow_symlinks=False)
    except OSError:
        return False
    mine = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o022
    return mine and os.access(path, os.W_OK)
