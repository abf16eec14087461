"""What `start` launches: trainer.pretrain's command, after telling when its imports were done.

    deepspeed … trainer/benchmark/launched.py FOLDER --config …

The time is written to FOLDER/imported-RANK, on the clock that all processes of a machine share.
"""

import os
import sys
import time
from pathlib import Path

from trainer import pretrain
from trainer.engine import deepspeed as processes

if __name__ == "__main__":
    # The launcher puts --local_rank first.
    folder = next(argument for argument in sys.argv[1:] if not argument.startswith("-"))
    sys.argv.remove(folder)
    Path(folder, f"imported-{os.environ['RANK']}").write_text(repr(time.monotonic()), encoding="ascii")
    processes.leave(pretrain.main())
