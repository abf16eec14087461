"""Predictions of a finetuned model, in the task's official submission format.

    python -m trainer.predict --model RUN/export --data FILE --output FILE [--score]

DATA is one's own documents or the task's official file; trainer/README.md has the layouts. The model's folder knows the
task and how its input is made; `--task.KEY VALUE` changes a key of the task's section, such as where evidence lies.
--score prints the official metric as one line of JSON: the data must have the answers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tqdm import tqdm

from trainer.batches.example_batches import predictions
from trainer.engine.config import InputError, load_config
from trainer.model.folder import locate_model, read_tokenizer
from trainer.model.led_model import LedModel
from trainer.model.task_folder import FINETUNED, Projections, load_task_model, read_sizes
from trainer.model.task_model import TaskModel
from trainer.tasks.config import Finetuning
from trainer.tasks.description import TaskDescription, read_description
from trainer.tasks.example import Example, Skipped
from trainer.tasks.example_store import encode_all
from trainer.tasks.task import SPLITS, DownstreamTask, Split
from trainer.tasks.wordpieces import Wordpieces

BLOCK = 256
"""Examples that are held, and sorted by length, at one time."""


def load_finetuned(
    location: str | Path, settings: Mapping[str, Any] | None = None
) -> tuple[TaskModel | LedModel, DownstreamTask, Wordpieces, TaskDescription]:
    """A finetuned model in evaluation mode with its task, of whose section `settings` may change keys.

    InputError where the folder is none.
    """
    folder = locate_model(location)
    if not (folder / FINETUNED).is_file():
        raise InputError(
            f"{folder}: found no {FINETUNED}, expected a model that trainer/finetune.py has exported"
        )
    description = read_description(folder / FINETUNED)
    task = description.make_task(folder / FINETUNED, settings)
    wordpieces = Wordpieces(read_tokenizer(folder), task.added_tokens)
    found = read_sizes(folder, task)
    if not 3 <= description.sequence_length <= found.max_tokens:
        raise InputError(
            f"{folder / FINETUNED}: sequence_length: found {description.sequence_length}, expected at most the "
            f"{found.max_tokens} that the model has positions for"
        )
    if wordpieces.size > found.vocab_size or wordpieces.pad != found.pad_token_id:
        raise InputError(
            f"{folder}: found a tokenizer of {wordpieces.size} entries with the task's, padding {wordpieces.pad}, "
            f"expected the model's {found.vocab_size} and {found.pad_token_id}: it is another model's"
        )
    projections: Projections = "shared" if description.shared_projections else "stored"
    model, _ = load_task_model(folder, task, wordpieces, projections, "stored", description.global_attention)
    return model.eval(), task, wordpieces, description


def predict(
    model: TaskModel | LedModel,
    task: DownstreamTask,
    examples: Iterator[Example | Skipped],
    told: Callable[[int], Any],
) -> Iterator[tuple[Example, Any]]:
    """Each example with what the model says of it, in their order."""
    while block := list(islice(examples, BLOCK)):
        kept = [example for example in block if isinstance(example, Example)]
        found = predictions(model, task, kept)
        told(len(block))
        yield from zip(kept, found, strict=True)


def predict_folder(
    location: str | Path,
    data: Path | Split,
    output: Path,
    *,
    score: bool = False,
    run: Finetuning | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Predict a file, or a split of a run's own data by its name, and write the submission; the official figures with
    `score`."""
    model, task, wordpieces, description = load_finetuned(location, settings)
    _check_output(output, data)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    reader = task if run is None else run.task.task()
    if isinstance(data, Path):
        entries = reader.read_own(data)
    elif data in reader.splits():
        entries = reader.read(data)
    else:
        raise InputError(f"--predict: found {data}, expected a file or one of {', '.join(reader.splits())}")
    encoded = encode_all(task, entries, wordpieces, description.lengths, training=False)
    parts = []
    seen = cut = 0

    def counted(bar: Any) -> Iterator[tuple[Example, Any]]:
        nonlocal seen, cut
        for example, prediction in predict(model, task, encoded, bar.update):
            seen, cut = seen + 1, cut + (example.tokens_cut > 0)
            if score:
                parts.append(task.sums([example], [prediction]))
            yield example, prediction

    with tqdm(unit=" examples", disable=not sys.stderr.isatty()) as bar:
        task.write(output, counted(bar))
    if cut:
        print(f"{cut:,} of {seen:,} were cut at {description.sequence_length:,} tokens", file=sys.stderr)
    figures = task.figures([float(each) for each in np.sum(parts, axis=0)]) if parts else {}
    if score and not figures:
        raise InputError(f"{data}: found no answers to score by; {output} is written")
    return figures


def _check_output(output: Path, data: Path | Split) -> None:
    """Now, not after hours of predicting. InputError where the submission cannot be written."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.is_dir():
        raise InputError(f"{output}: found a folder, expected the name of a file to write")
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"{output.parent}: cannot be written to")
    if isinstance(data, Path) and data.exists() and output.exists() and output.samefile(data):
        raise InputError(f"{output}: found the data themselves, expected another file to write")


def predict_by_run(arguments: Sequence[str]) -> int:
    """`trainer/finetune.py --config RUN/config.yaml --predict FILE --output FILE [--score]`."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.finetune", description="Predict with a finished run's export."
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="a finished run's config.yaml"
    )
    parser.add_argument(
        "--predict",
        required=True,
        metavar="FILE",
        help="the data; train, validation or test: the run's own split",
    )
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="the run, where it is not the configuration's"
    )
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)
    _shared(parser)
    options = parser.parse_args(arguments)

    def act() -> dict[str, float]:
        run = load_config(options.config, [], Finetuning)
        model = (options.run or run.run) / "export"
        if not model.is_dir():
            raise InputError(f"{model}: not there, expected the export of a finished run")
        data = options.predict if options.predict in SPLITS else Path(options.predict)
        return predict_folder(model, data, options.output, score=options.score, run=run)

    return _tell(act, "finetune")


def _shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the submission to write")
    parser.add_argument("--score", action="store_true", help="print the official metric too")


def _value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{key}: found {text!r}, expected a YAML value") from error


def _tell(act: Callable[[], dict[str, float]], name: str) -> int:
    try:
        figures = act()
    except (InputError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    if figures:
        print(json.dumps(figures))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", required=True, metavar="DIR_OR_HUB_ID", help="an export of trainer/finetune.py"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FILE")
    _shared(parser)
    options, rest = parser.parse_known_args(arguments)
    rest = [part for word in rest for part in (word.split("=", 1) if word.startswith("--task.") else [word])]
    keys = [key for key in rest[::2] if key.startswith("--task.")]
    if len(rest) % 2 or len(keys) < len(rest) // 2:
        parser.error(f"found {' '.join(rest)}, expected --task.KEY VALUE")

    def act() -> dict[str, float]:
        settings = {
            key.removeprefix("--task."): _value(key, text) for key, text in zip(keys, rest[1::2], strict=True)
        }
        return predict_folder(
            options.model, options.data, options.output, score=options.score, settings=settings
        )

    return _tell(act, "predict")


if __name__ == "__main__":
    sys.exit(main())
