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
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from attention.figure import save
from demo.commands import Commands
from demo.run import corpus_table
from reproduce.command import claim_folder, load_recipe, run, table_parser
from reproduce.corpus import build_corpus, choose_text, corpus_settings, unigram_bits
from reproduce.plot import draw
from reproduce.recipe import DEFAULT, Recipe
from reproduce.report import tables
from reproduce.steps import Reproduction
from reproduce.tables import figures, tell_results


def claim(folder: Path, recipe: Recipe, text: Path) -> TextIO:
    settings = corpus_settings(text, recipe, Path("tokenizer"))
    wanted = {"recipe": recipe.model_dump(mode="json"), "corpus": settings}
    return claim_folder(folder, wanted, trained="seed-*", made=("tokenizer", "corpus"))


def parser() -> argparse.ArgumentParser:
    parser = table_parser("table5", __doc__ or "", recipe=DEFAULT, output="reproduce_output", seeds=5)
    parser.add_argument(
        "--text",
        type=Path,
        metavar="CORPUS_CONFIG",
        help="a configuration of pipeline.build_corpus, whose sources and filters are used (default: the texts in "
        "$LONGSPAN_DATA or ../shared/data where they lie there, else this machine's documentation)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run(parser(), reproduce, arguments)


def reproduce(options: argparse.Namespace) -> None:
    folder, recipe = options.output.resolve(), load_recipe(options.recipe, Recipe)
    text = options.text or choose_text()
    lock = claim(folder, recipe, text)
    print(f"== corpus: {recipe.longformer_tokens}-token sequences of the text in {text}", flush=True)
    corpus = build_corpus(Commands(folder, {}), folder, text, recipe)
    print(f"\n{corpus_table(corpus)}\n\n== trainings (their output is in {folder / 'logs'})", flush=True)
    reproduction = Reproduction(folder, recipe, options.seeds)
    reproduction.run(options.jobs)
    plan, found = reproduction.plan, reproduction.found()
    unigram = unigram_bits(corpus)
    parts = tables(plan, found, unigram)
    manifest = json.loads((corpus / "manifest.json").read_text(encoding="utf-8"))
    splits = {name: split["tokens"] for name, split in manifest["splits"].items()}
    results = {
        "recipe": recipe.model_dump(mode="json"),
        "corpus": {"text": text.name, "tokens": splits},
        "unigram_bpc": unigram,
        **figures(plan.rows, plan.order, found),
    }
    heading = f"# Table 5 at a small scale: {options.seeds} seeds, {splits['train']:,} tokens of text"
    picture = options.plot or folder / "table5.svg"
    save(draw(reproduction, unigram), picture)
    tell_results(folder, "table5", heading, parts, results, picture)
    lock.close()


if __name__ == "__main__":
    sys.exit(main())
