"""From a checkpoint to a folder that `transformers` loads.

    python -m trainer.export --checkpoint RUN/checkpoints/step-00065000 --to DIR

The checkpoint's sizes and checksums are verified first. DIR gets the weights as float32 safetensors, config.json, the
corpus's tokenizer, and README.md: a model card with the run's figures, the corpus's sources and licences, how to load
the model and how to train it again. A Longformer gets its `*_global` projections as copies of query, key and value,
which finetuning starts from. A character model's checkpoint becomes a folder for trainer.evaluate and trainer.generate.
An export that lies in DIR is replaced; a folder that holds anything else is left alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.engine.checkpoint import STATE, Checkpoint, open_checkpoint
from trainer.engine.config import InputError
from trainer.model.card import trained_card
from trainer.model.character_card import character_card
from trainer.model.charlm_folder import (
    check_character_tensors,
    is_character_model,
    read_character_config,
    write_character_model,
)
from trainer.model.folder import (
    check_shapes,
    has_tokenizer,
    read_config,
    with_global_projections,
    without_prefix,
    write_model,
)
from trainer.model.json_files import read_json
from trainer.model.led import GENERATION
from trainer.model.led_model import read_led_sizes
from trainer.model.provenance import ABOUT
from trainer.model.task_card import finetuned_card
from trainer.model.task_folder import FINETUNED, write_task_model
from trainer.model.tokenizer_files import TOKENIZER_FILES


def export_checkpoint(checkpoint: Path, to: Path) -> None:
    """Write a checkpoint's model as a folder of its own, whatever kind it is of."""
    try:
        opened = open_checkpoint(checkpoint)
    except ValueError as error:
        raise InputError(str(error)) from error
    if is_character_model(checkpoint):
        _export_characters(opened, to)
    elif (checkpoint / FINETUNED).is_file():
        _export_finetuned(opened, to)
    else:
        _export_encoder(opened, to)


def _export_characters(opened: Checkpoint, to: Path) -> None:
    """A character model, its alphabet and its card."""
    described = read_character_config(opened.folder)
    tensors = opened.weights()
    check_character_tensors(tensors, described.config, opened.folder)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    with _facts_of(opened) as about:
        card = character_card(described, parameters, opened.facts, about)
    write_character_model(to, described, tensors, card)


def _export_finetuned(opened: Checkpoint, to: Path) -> None:
    """Encoder and heads, as transformers loads them where it has such heads, with what their input needs."""
    folder = opened.folder
    settings = read_json(folder / "config.json")
    is_led = settings.get("model_type") == "led"
    config = read_led_sizes(folder) if is_led else read_config(folder)
    tensors = {name.removeprefix("seq2seq."): tensor for name, tensor in opened.weights().items()}
    parameters = sum(tensor.numel() for tensor in tensors.values())
    description = read_json(folder / FINETUNED)
    with _facts_of(opened) as about:
        architecture = settings["architectures"][0]
        card = finetuned_card(config, parameters, opened.facts, about, description, architecture)
    names = [FINETUNED, *(name for name in (GENERATION, *TOKENIZER_FILES) if (folder / name).is_file())]
    files = {name: (folder / name).read_bytes() for name in names}
    write_task_model(to, settings, tensors, files, card)


@contextmanager
def _facts_of(opened: Checkpoint) -> Iterator[dict[str, Any]]:
    """What a checkpoint carries for a card; InputError where it is not as a training writes it."""
    path = opened.folder / ABOUT
    about = read_json(path) if path.is_file() else {}
    try:
        yield about
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{opened.folder}: {STATE} or {ABOUT}: not as a training writes them ({error!r})"
        ) from error


def _export_encoder(opened: Checkpoint, to: Path) -> None:
    """Weights, configuration, tokenizer and card as a Hugging Face folder."""
    checkpoint = opened.folder
    config = read_config(checkpoint)
    tensors = without_prefix(opened.weights())
    check_shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config, checkpoint)
    if config.architecture == "longformer":
        tensors = with_global_projections(tensors)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    with _facts_of(opened) as about:
        card = trained_card(config, parameters, opened.facts, about, has_tokenizer(checkpoint))
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
