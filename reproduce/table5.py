"""The paper's table 5, at a scale that fits two CPU cores: `make reproduce`.

    python -m reproduce.table5 [--text CORPUS_CONFIG] [--output DIR] [--seeds 5] [--jobs 2] [--plot FILE]

Builds a corpus, trains a small RoBERTa on it for each seed, converts it to Longformer with and without copying its
positions, continues masked-language modelling at eight times the length for few and for many updates, and with the
added positions alone; scores every model on the same text and masked places; then the effect of the window and of
keeping packed documents apart. Trainings run under the deepspeed launcher. Interrupted, or killed, the same command
goes on.

Written to the output folder: table5.md, table5.json, table5.svg, and every run, model and log that they are made of.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from attention.figure import picture_path, save
from demo.commands import Commands, StepFailed
from demo.run import corpus_table
from pipeline.errors import BuildError
from pipeline.shards import write_atomically
from reproduce.corpus import build_corpus, choose_text, corpus_settings, unigram_bits
from reproduce.intervals import MOST_SEEDS
from reproduce.plot import draw
from reproduce.recipe import DEFAULT, Recipe, load_recipe
from reproduce.report import figures, markdown, tables
from reproduce.steps import Reproduction
from trainer.engine.config import InputError
from trainer.engine.one_writer import lock_folder


def claim(folder: Path, recipe: Recipe, text: Path) -> TextIO:
    """Hold the folder against a second writer, and against a recipe or text other than those it was begun with."""
    lock = lock_folder(folder, "reproduction")
    settings = corpus_settings(text, recipe, Path("tokenizer"))
    wanted = {"recipe": recipe.model_dump(mode="json"), "corpus": settings}
    begun = folder / "recipe.json"
    if begun.exists():
        found = json.loads(begun.read_text(encoding="utf-8"))
        differing = [
            f"  {section}.{key}: now {wanted[section].get(key)!r}, begun with {found[section].get(key)!r}"
            for section in wanted
            for key in sorted(wanted[section].keys() | found[section].keys())
            if wanted[section].get(key) != found[section].get(key)
        ]
        if differing and any(folder.glob("seed-*")):
            raise InputError(
                f"{folder}: begun with other settings; give another --output:\n" + "\n".join(differing)
            )
        if differing:  # nothing is trained yet: a text that could not be read may be mended
            for made in ("tokenizer", "corpus"):
                shutil.rmtree(folder / made, ignore_errors=True)
    elif any(path.name != ".lock" for path in folder.iterdir()):
        raise InputError(f"{folder}: holds something else (no recipe.json), expected a new folder")
    write_atomically(begun, (json.dumps(wanted, indent=2) + "\n").encode())
    return lock


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.table5",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--text",
        type=Path,
        metavar="CORPUS_CONFIG",
        help="a configuration of pipeline.build_corpus, whose sources and filters are used (default: the texts in "
        "$LONGSPAN_DATA or ../shared/data where they lie there, else this machine's documentation)",
    )
    parser.add_argument("--recipe", type=Path, default=DEFAULT, metavar="FILE", help="(%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("reproduce_output"), metavar="DIR", help="(%(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=5, help=f"1 to {MOST_SEEDS} (5)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, a core each (2)")
    parser.add_argument("--plot", type=picture_path, metavar="FILE", help="the curves (OUTPUT/table5.svg)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return reproduce(options)
    except (InputError, BuildError) as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 2
    except (StepFailed, OSError) as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("reproduce: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def reproduce(options: argparse.Namespace) -> int:
    if not 1 <= options.seeds <= MOST_SEEDS:
        raise InputError(f"--seeds: found {options.seeds}, expected 1 to {MOST_SEEDS}")
    if options.jobs < 1:
        raise InputError(f"--jobs: found {options.jobs}, expected at least 1")
    started = time.monotonic()
    folder, recipe = options.output.resolve(), load_recipe(options.recipe)
    text = options.text or choose_text()
    lock = claim(folder, recipe, text)
    print(f"== corpus: {recipe.longformer_tokens}-token sequences of the text in {text}", flush=True)
    corpus = build_corpus(Commands(folder, {}), folder, text, recipe)
    print(f"\n{corpus_table(corpus)}\n\n== trainings (their output is in {folder / 'logs'})", flush=True)
    reproduction = Reproduction(folder, recipe, options.seeds, options.jobs)
    reproduction.run()
    plan, found = reproduction.plan, reproduction.found()
    unigram = unigram_bits(corpus)
    parts = tables(plan, found, unigram)
    manifest = json.loads((corpus / "manifest.json").read_text(encoding="utf-8"))
    splits = {name: split["tokens"] for name, split in manifest["splits"].items()}
    results = figures(plan, found, unigram, {"text": text.name, "tokens": splits})
    write_atomically(folder / "table5.json", (json.dumps(results, indent=2) + "\n").encode())
    heading = f"# Table 5 at a small scale: {options.seeds} seeds, {splits['train']:,} tokens of text"
    write_atomically(folder / "table5.md", markdown(parts, heading).encode())
    picture = options.plot or folder / "table5.svg"
    save(draw(reproduction, unigram), picture)
    print("\n" + "\n\n".join(part.plain() for part in parts))
    print(f"\n{folder / 'table5.md'}, {folder / 'table5.json'}, {picture}")
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    lock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
