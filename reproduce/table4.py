"""The paper's table 4, windows and dilation of the character model, at a scale that fits two CPU cores.

    python -m reproduce.table4 [--text FILE …] [--output DIR] [--seeds 3] [--jobs 2] [--plot FILE]

Trains the same small character model four times for each text and seed, under the deepspeed launcher: with windows that
decrease from the bottom to the top, that are the same everywhere, that increase, and that increase with two heads
dilated in the higher layers. The average window is the same in every row; rows of a seed share text, order and start
weights. Interrupted, or killed, the same command goes on.

Written to the output folder: table4.md, table4.json, table4.svg, and every run and log that they are made of.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attention.figure import save
from attention.files import whole
from pipeline.shards import file_sha256
from pipeline.sources.formats import format_of
from pipeline.sources.streams import Damaged, decompressed
from reproduce.ablation import DEFAULT, Ablation, AblationRecipe, TextAblation
from reproduce.ablation_results import draw, tables
from reproduce.command import claim_folder, load_recipe, run, table_parser
from reproduce.corpus import data_folder
from reproduce.tables import figures, tell_results
from reproduce.trainings import Launches, run_side_by_side
from trainer.engine.config import InputError

REAL_TEXTS = {"tinyshakespeare": "charlm/tinyshakespeare.txt", "wikipedia-xml": "wikipedia/*.xml*.bz2"}
"""Files of $LONGSPAN_DATA; the second, like enwik8, is a piece of Wikipedia's XML."""


def choose_texts(given: Sequence[Path]) -> dict[str, Path]:
    """{name: file}: what the user names, else the texts in $LONGSPAN_DATA."""
    named = {path.name.split(".")[0]: path for path in given}
    if len(named) < len(given):
        raise InputError(f"--text: found {', '.join(map(str, given))}, expected a different name for each")
    if given:
        return named
    found = {name: next(data_folder().glob(pattern), None) for name, pattern in REAL_TEXTS.items()}
    texts = {name: path for name, path in found.items() if path is not None}
    if len(texts) < len(found):
        raise InputError(
            f"--text: none given, and {data_folder()} has not {' and '.join(REAL_TEXTS.values())}"
        )
    return texts


def unpack(file: Path, to: Path) -> None:
    """The file's bytes, decompressed where its ending says that they are not plain, as far as they are not there."""
    if to.exists():
        return
    to.parent.mkdir(exist_ok=True)
    try:
        with file.open("rb") as packed, whole(to) as beside, beside.open("wb") as out:
            shutil.copyfileobj(decompressed(packed, format_of(file.name)[1]), out)
    except Damaged as error:
        raise InputError(f"{file}: {error}") from error


def parser() -> argparse.ArgumentParser:
    parser = table_parser("table4", __doc__ or "", recipe=DEFAULT, output="table4_output", seeds=3)
    parser.add_argument(
        "--text",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="plain text, or .gz, .bz2 or .xz of it, whose bytes are read (default: "
        f"{' and '.join(REAL_TEXTS.values())} in $LONGSPAN_DATA or ../shared/data)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run(parser(), reproduce, arguments)


def reproduce(options: argparse.Namespace) -> None:
    folder, recipe = options.output.resolve(), load_recipe(options.recipe, AblationRecipe)
    files = choose_texts(options.text)
    wanted = {
        "recipe": recipe.model_dump(mode="json"),
        "texts": {name: file_sha256(file) for name, file in files.items()},
    }
    lock = claim_folder(folder, wanted, trained="*/seed-*", made=("texts",))
    ablation = Ablation(recipe)
    texts = [TextAblation(folder, name, ablation, options.seeds) for name in files]
    for text, file in zip(texts, files.values(), strict=True):
        unpack(file, text.file)
        print(f"{text.name}: {text.file.stat().st_size:,} bytes of {file}", flush=True)
    print(f"\n== trainings (their output is in {folder / 'logs'})", flush=True)
    launches = Launches(folder)
    several = [
        [partial(text.train, launches, text.seeds[number])]
        for number in range(options.seeds)
        for text in texts
    ]
    run_side_by_side(several, options.jobs, [text.tokens for text in texts])
    results: dict[str, dict[str, Any]] = {}
    for text in texts:
        about = {"sha256": wanted["texts"][text.name], "bytes": text.file.stat().st_size}
        results[text.name] = {**about, **figures(ablation.rows, ablation.order, text.found())}
    picture = options.plot or folder / "table4.svg"
    save(draw(texts), picture)
    heading = f"# Table 4 at a small scale: {options.seeds} seeds"
    parts = [part for text in texts for part in tables(text)]
    tell_results(folder, "table4", heading, parts, {"recipe": wanted["recipe"], "texts": results}, picture)
    lock.close()


if __name__ == "__main__":
    sys.exit(main())
