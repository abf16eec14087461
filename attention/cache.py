"""The folder for what is worth keeping between processes: compiled kernels, and which of them were found right."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def folder() -> Path:
    """LONGSPAN_CACHE, else longspan in XDG_CACHE_HOME or ~/.cache; where that cannot be written, a temporary one.

    What lies there is loaded as code, so it must belong to this user and be writable by nobody else.
    """
    given = os.environ.get("LONGSPAN_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(given or f"{home}/longspan").expanduser()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = path.stat()
        if state.st_uid == os.getuid() and not state.st_mode & 0o022 and os.access(path, os.W_OK):
            return path
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="longspan-"))
