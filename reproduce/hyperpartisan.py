"""The paper's Hyperpartisan row (table 7), with a small Longformer on two CPU cores.

    python -m reproduce.hyperpartisan [--articles DIR] [--text CORPUS_CONFIG] [--output DIR] [--seeds 5] [--jobs 2]

Builds a corpus, pretrains a small RoBERTa on it, converts it to Longformer and continues masked-language modelling at
4,096 tokens. That model is finetuned on Hyperpartisan's articles for each seed, once as it is and once with articles
cut at 512 tokens, and scored on test beside the more frequent class and a bag of words. A seed has a stratified split
of its own, the same for all rows. Trainings run under the deepspeed launcher. Interrupted, or killed, the same command
goes on.

Written to the output folder: hyperpartisan.md, hyperpartisan.json, hyperpartisan.svg, and every run, model, prediction
and log that they are made of.
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
from pipeline.shards import file_sha256
from reproduce.articles import ArticleFiles
from reproduce.command import claim_folder, load_recipe, run, table_parser
from reproduce.corpus import build_corpus, choose_text, corpus_settings, data_folder
from reproduce.hyperpartisan_results import Results
from reproduce.hyperpartisan_steps import DEFAULT, Experiment, HyperpartisanRecipe
from reproduce.tables import tell_results


def claim(folder: Path, recipe: HyperpartisanRecipe, text: Path, files: ArticleFiles) -> TextIO:
    wanted = {
        "recipe": recipe.model_dump(mode="json"),
        "corpus": corpus_settings(text, recipe, Path("tokenizer")),
        "articles": {path.name: file_sha256(path) for path in (files.articles, files.ground_truth)},
    }
    return claim_folder(folder, wanted, trained="*/seed-*", made=("tokenizer", "corpus"))


def parser() -> argparse.ArgumentParser:
    parser = table_parser(
        "hyperpartisan", __doc__ or "", recipe=DEFAULT, output="hyperpartisan_output", seeds=5
    )
    parser.add_argument(
        "--articles",
        type=Path,
        metavar="DIR",
        help="the folder of the by-article set's two XML files (default: downstream/hyperpartisan in $LONGSPAN_DATA or "
        "../shared/data)",
    )
    parser.add_argument(
        "--text",
        type=Path,
        metavar="CORPUS_CONFIG",
        help="a configuration of pipeline.build_corpus, whose text is pretrained on (default: as for table5)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run(parser(), reproduce, arguments)


def reproduce(options: argparse.Namespace) -> None:
    folder, recipe = options.output.resolve(), load_recipe(options.recipe, HyperpartisanRecipe)
    files = ArticleFiles.below((options.articles or data_folder() / "downstream" / "hyperpartisan").resolve())
    text = options.text or choose_text()
    lock = claim(folder, recipe, text, files)
    print(f"== corpus: {recipe.longformer_tokens:,}-token sequences of the text in {text}", flush=True)
    corpus = build_corpus(Commands(folder, {}), folder, text, recipe)
    print(f"\n{corpus_table(corpus)}\n\n== trainings (their output is in {folder / 'logs'})", flush=True)
    experiment = Experiment(folder, recipe, files, options.seeds)
    experiment.run(options.jobs)
    results = Results(experiment, experiment.predicted())
    manifest = json.loads((corpus / "manifest.json").read_text(encoding="utf-8"))
    tokens = manifest["splits"]["train"]["tokens"]
    picture = options.plot or folder / "hyperpartisan.svg"
    save(results.draw(), picture)
    parts = {split: len(documents) for split, documents in experiment.splits[0].items()}
    heading = (
        f"# Hyperpartisan at a small scale: {options.seeds} seeds, each with a split of its own "
        f"({', '.join(f'{count} {split}' for split, count in parts.items())})"
    )
    told = {
        "recipe": recipe.model_dump(mode="json"),
        "corpus": {"text": text.name, "tokens": tokens},
        "articles": parts,
        **results.as_json(),
    }
    tell_results(folder, "hyperpartisan", heading, results.tables(), told, picture)
    lock.close()


if __name__ == "__main__":
    sys.exit(main())
