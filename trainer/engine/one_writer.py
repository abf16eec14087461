"""A folder with one writer at a time, whichever process and machine it is on."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TextIO

from trainer.engine.config import InputError


def lock_folder(folder: Path, what: str, name: str = ".lock") -> TextIO:
    """Hold a folder, made where it is missing, until the result is closed or the process ends, however it ends.

    InputError where another one holds it: "another `what` is writing here". On NFS the lock holds between machines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / name).open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise InputError(f"{folder}: another {what} is writing here") from error
    return lock
