"""What the commands under the launcher share: arguments in, a task prepared and trained, an exit status out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

from trainer.engine import deepspeed as processes
from trainer.engine.config import Config, InputError, load_config, parse_arguments
from trainer.engine.deepspeed import rank, world_size
from trainer.engine.training import Task, train

TIME_TO_SPEAK = 10  # seconds that a node's first rank has to say what is wrong


def train_by_command(
    name: str,
    usage: str,
    kind: type[Config],
    prepare: Callable[[Config], Task],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run `name --config FILE [--dry-run] [--any.key value …]` on this process; returns the exit status."""
    try:
        path, overrides, dry_run = parse_arguments(
            sys.argv[1:] if arguments is None else arguments, usage, kind
        )
        task = prepare(load_config(path, overrides, kind))
        if dry_run:
            if rank() == 0:
                print(task.describe())
            return 0
        processes.start_processes()
        processes.settle(task.config.deterministic)
        if rank() == 0:
            print(f"{world_size()} processes on {processes.device().type}", flush=True)
        return train(task)
    except (InputError, FloatingPointError) as error:
        # Once a node: a file system may be missing on one that is not the first.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        else:
            # The launcher ends all ranks when one of them fails: the one that speaks must not be ended before it did.
            time.sleep(TIME_TO_SPEAK)
        return 2 if isinstance(error, InputError) else 1
    except RuntimeError as error:
        if not processes.is_lost_peer(error):
            raise
        if "EADDRINUSE" in str(error):
            port = os.environ.get("MASTER_PORT")
            print(
                f"{name}: port {port} is in use here, by another training? Give `deepspeed` another --master_port",
                file=sys.stderr,
                flush=True,
            )
            return 2
        print(
            f"{name}: rank {rank()} has lost another process, whose own lines say why; the same command resumes",
            file=sys.stderr,
            flush=True,
        )
        return 1
    finally:
        processes.end_processes()
