"""From a checkpoint to a folder that `transformers` loads.

    python -m trainer.export --checkpoint RUN/checkpoints/step-00065000 --to DIR

The checkpoint's sizes and checksums are verified first. DIR gets the weights as float32 safetensors, config.json, the
corpus's tokenizer, and README.md: a model card with the run's figures, the corpus's sources and licences, how to load
the model and how to train it again. A Longformer gets its `*_global` projections as copies of query, key and value,
which finetuning starts from. An export that lies in DIR is replaced; a folder that holds anything else is left alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.engine.checkpoint import STATE, open_checkpoint
from trainer.engine.config import InputError
from trainer.model.card import trained_card
from trainer.model.folder import (
    check_shapes,
    has_tokenizer,
    read_config,
    with_global_projections,
    without_prefix,
    write_model,
)
from trainer.model.json_files import read_json
from trainer.model.provenance import ABOUT


def export_checkpoint(checkpoint: Path, to: Path) -> None:
    """Write a checkpoint's weights, configuration, tokenizer and card as a Hugging Face folder."""
    try:
        opened = open_checkpoint(checkpoint)
    except ValueError as error:
        raise InputError(str(error)) from error
    config = read_config(checkpoint)
    tensors = without_prefix(opened.weights())
    check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config, checkpoint)
    if config.architecture == "longformer":
        tensors = with_global_projections(tensors)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    about = read_json(checkpoint / ABOUT) if (checkpoint / ABOUT).is_file() else {}
    try:
        card = trained_card(config, parameters, opened.facts, about, has_tokenizer(checkpoint))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{checkpoint}: {STATE} or {ABOUT}: not as a training writes them ({error!r})"
        ) from error
    write_model(to, config, tensors, tokenizer_from=checkpoint, card=card)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="a step-… folder of a run"
    )
    parser.add_argument(
        "--to", type=Path, required=True, metavar="DIR", help="the folder to write: new, empty or a model's"
    )
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
