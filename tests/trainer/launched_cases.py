"""Run by the launcher in the tests: trains several configurations one after another in one launch.

Beside each YAML, NAME.seen-RANK.json tells what every micro-batch of this rank saw: {seed of its hidden dropout:
[digest of its tensors and of its attention's dropout seeds, its summed loss]}. SLOW_SYNC in the environment makes each
fsync of a save take so many seconds longer, so that signals and kills find saves under way.
"""

import hashlib
import json
import os
import sys
import time
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.engine import checkpoint
from trainer.engine import deepspeed as processes
from trainer.engine.config import Pretraining, load_config
from trainer.engine.training import train
from trainer.pretrain import MaskedLanguageModelling, prepare

plain_sync = checkpoint.sync


class Recorded(MaskedLanguageModelling):
    """Remembers what its micro-batches saw."""

    seen: dict[str, tuple[str, float]]

    def loss(self, model: Any, batch: Any, dropout_seeds: Tensor) -> Tensor:
        digest = hashlib.sha256()
        for tensor in (*astuple(batch), dropout_seeds):
            digest.update(b"none" if tensor is None else tensor.cpu().contiguous().numpy().tobytes())
        key = str(torch.initial_seed())
        loss = super().loss(model, batch, dropout_seeds)
        # A rank without a micro-batch runs one again, with weight 0.
        assert self.seen.get(key, (digest.hexdigest(),))[0] == digest.hexdigest()
        self.seen[key] = (digest.hexdigest(), float(loss.detach()))
        return loss


def slow_sync(path: Path) -> None:
    time.sleep(float(os.environ.get("SLOW_SYNC", "0")))
    plain_sync(path)


if __name__ == "__main__":
    processes.start_processes()
    checkpoint.sync = slow_sync
    status = 0
    for path in [Path(argument) for argument in sys.argv[1:] if argument.endswith(".yaml")]:
        task = Recorded(**vars(prepare(load_config(path, [], Pretraining))))
        task.seen = {}
        status = train(task)
        if status:
            break
        path.with_suffix(f".seen-{processes.rank()}.json").write_text(json.dumps(task.seen))
    processes.end_processes()
    processes.leave(status)
