"""From a checkpoint to a folder that `transformers` loads.

    python -m trainer.export --checkpoint RUN/checkpoints/step-00065000 --to DIR

A Longformer gets its `*_global` projections as copies of query, key and value, which finetuning starts from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.engine.checkpoint import open_checkpoint
from trainer.engine.config import InputError
from trainer.model.folder import body_and_head, read_config, with_global_projections, write_model


def export_checkpoint(checkpoint: Path, to: Path) -> None:
    """Write a checkpoint's weights, configuration and tokenizer as a Hugging Face folder."""
    try:
        weights = open_checkpoint(checkpoint).weights()
    except ValueError as error:
        raise InputError(str(error)) from error
    config = read_config(checkpoint)
    tensors = body_and_head(weights, checkpoint)
    if config.architecture == "longformer":
        tensors = with_global_projections(tensors)
    write_model(to, config, tensors, tokenizer_from=checkpoint)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="a step-… folder of a run"
    )
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="the folder to write")
    options = parser.parse_args(arguments)
    try:
        export_checkpoint(options.checkpoint, options.to)
    except (InputError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    print(f"exported to {options.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
