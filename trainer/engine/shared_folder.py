"""Whether every node of a run writes to the same folder, seen before the first step and not at the first resume.

A checkpoint is written by one process and read by all. Where RUN is a folder of each node's own, training goes well
until it is interrupted, and then resumes at different steps on different nodes.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path

from trainer.engine.config import InputError
from trainer.engine.deepspeed import gather_objects

PATIENCE = 15.0  # seconds for a network file system to show a new file on other nodes
PREFIX = ".node-"  # of the file that each node writes for a moment


def check_shared_folder(run: Path) -> None:
    """Make RUN, and check that each node sees what each other writes there; collective.

    InputError, on every rank, names each node and folder that does not. A folder that this made is removed then.
    """
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"  # one process a node
    node = f"{socket.gethostname()} (node {os.environ.get('CROSS_RANK', '0')})"
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    token = run / f"{PREFIX}{uuid.uuid4().hex}"
    problem = ""
    if speaks:
        try:
            run.mkdir(parents=True, exist_ok=True)
            token.write_text(node, encoding="utf-8")
        except OSError as error:
            problem = f"run: {run.absolute()} on {node}: {error.strerror}, expected a folder to write in"
    try:
        wrote = [entry for entry in gather_objects((speaks, node, token.name, problem)) if entry[0]]
        problems = [entry[3] for entry in wrote if entry[3]]
        if not problems:
            unseen = _unseen(run, {name: of for _, of, name, _ in wrote}) if speaks else []
            if unseen:
                problem = (
                    f"run: {run.absolute()} on {node} does not show what {', '.join(unseen)} wrote in that run's "
                    f"folder; expected a folder on a file system that every node mounts"
                )
            problems = [each for each in gather_objects(problem) if each]
    finally:
        if speaks:
            with suppress(OSError):
                token.unlink(missing_ok=True)
    if problems:
        for folder in made if speaks else []:
            with suppress(OSError):  # not empty: it was not this run alone that made it
                folder.rmdir()
        raise InputError("\n".join(problems))


def _unseen(run: Path, tokens: dict[str, str]) -> list[str]:
    """The nodes whose token does not appear here in time; `tokens` are file names and the nodes that wrote them."""
    deadline = time.monotonic() + PATIENCE
    left = dict(tokens)
    while left:
        for name, node in tokens.items():
            with suppress(OSError):
                if (run / name).read_text(encoding="utf-8") == node:
                    left.pop(name, None)
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return sorted(left.values())
