"""Bits per masked token of a model over a fixed masked set, or bits per character of a character model.

    python -m trainer.evaluate --model DIR_OR_HUB_ID --corpus DIR_OR_URI [--sequences N]
    python -m trainer.evaluate --model RUN/export --text FILE_OR_URI [--windows N]

With --corpus it prints one JSON line {"bpc", "tokens", "sequences"}: the cross-entropy over the masked tokens divided
by ln 2, which the paper's table 5 calls BPC. The masked places depend on the seed and the corpus alone. A model with
fewer positions than the corpus's sequences gets the same text and the same masked places in consecutive pieces, so
that RoBERTa and Longformer are compared on the same tokens.

With --text it prints {"bpc", "characters", "windows"}: windows of --sequence-length characters move by --step, and of
each only the predictions made at the last --step characters count, of the first one all (the paper's section 4.2.1).
"characters" are the scored ones: every one of the split but its first, or with --windows those of the first windows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from trainer.batches.corpus import Sequences, corpus_masking, open_sequences
from trainer.batches.evaluation import bits, loss_of_batches, masked_batches
from trainer.batches.masking import Masking
from trainer.engine.config import InputError
from trainer.evaluate_text import evaluate_text
from trainer.model.folder import load_model, locate_model, tokenizer_fingerprint
from trainer.model.heads import MaskedLanguageModel

CORPUS_SPLITS = ("train", "validation")
OPTIONS = {
    "corpus": {"sequences", "seed", "mask_documents"},
    "text": {"sequence_length", "step", "windows", "validation", "test", "cache_dir"},
}


def evaluate(
    model: MaskedLanguageModel,
    sequences: Sequences,
    masking: Masking,
    count: int,
    seed: int = 0,
    mask_documents: bool = False,
) -> dict[str, float]:
    """{"bpc", "tokens", "sequences"} of a model over the first `count` sequences; mask_documents keeps the documents
    packed into one apart."""
    model.eval()
    tokens = min(model.config.max_tokens, sequences.sequence_length)
    batches = masked_batches(sequences, masking, np.arange(count), tokens, seed, mask_documents)
    loss, scored = loss_of_batches(model, tqdm(batches, desc="evaluating", disable=not sys.stderr.isatty()))
    if not scored:
        raise InputError(f"{sequences.corpus.folder}: found no token to score in {count} sequences")
    return {"bpc": bits(loss, scored), "tokens": scored, "sequences": count}


def evaluate_folder(
    model: str | Path,
    corpus: str | Path,
    split: str = "validation",
    limit: int | None = None,
    seed: int = 0,
    mask_documents: bool = False,
) -> dict[str, float]:
    """As `evaluate`, from a model folder or hub id and a corpus folder or URI."""
    # The whole stored sequences, whatever the model's length: masks are drawn over those.
    sequences = open_sequences(corpus, split)
    folder = locate_model(model)
    loaded = load_model(folder)
    found = tokenizer_fingerprint(folder)
    expected = sequences.corpus.tokenizer_fingerprint
    if found is not None and found != expected:
        raise InputError(
            f"{folder}: its tokenizer is {found}, expected {expected}, the one that made {corpus}"
        )
    if loaded.config.vocab_size < sequences.corpus.vocabulary_size:
        raise InputError(
            f"{folder}: found a vocabulary of {loaded.config.vocab_size}, "
            f"expected at least {sequences.corpus.vocabulary_size} as {corpus} has"
        )
    if loaded.config.pad_token_id != sequences.corpus.pad_id:
        raise InputError(
            f"{folder}: found pad_token_id {loaded.config.pad_token_id}, expected {corpus}'s {sequences.corpus.pad_id}"
        )
    loaded.to("cuda" if torch.cuda.is_available() else "cpu")
    count = len(sequences) if limit is None else min(limit, len(sequences))
    return evaluate(loaded, sequences, corpus_masking(sequences.corpus), count, seed, mask_documents)


def _figures(options: dict[str, Any]) -> dict[str, float]:
    """What the options ask for; those that were not given are the functions' own defaults."""
    given = {name: value for name, value in options.items() if value is not None}
    kind, other = ("corpus", "text") if "corpus" in given else ("text", "corpus")
    misplaced = sorted(given.keys() & OPTIONS[other])
    if misplaced:
        name = misplaced[0].replace("_", "-")
        raise InputError(f"--{name}: found with --{kind}, expected with --{other} only")
    if kind == "text":
        return evaluate_text(**given)
    if given["split"] not in CORPUS_SPLITS:
        raise InputError(f"--split: found {given['split']}, expected train or validation of a corpus")
    limit = given.pop("sequences", None)
    if limit is not None and limit < 1:
        raise InputError(f"--sequences: found {limit}, expected at least 1")
    return evaluate_folder(**given, limit=limit)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="DIR_OR_HUB_ID")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--corpus", metavar="DIR_OR_URI", help="made by pipeline.build_corpus; s3:// and gs:// as well"
    )
    what.add_argument(
        "--text", metavar="FILE_OR_URI", help="for a character model: any text, or a zip of one"
    )
    parser.add_argument(
        "--split",
        default="validation",
        choices=("train", "validation", "test", "all"),
        help='"test" and "all" are of a text alone',
    )
    corpus = parser.add_argument_group("with --corpus")
    corpus.add_argument("--sequences", type=int, metavar="N", help="the first N only (default: all)")
    corpus.add_argument("--seed", type=int, help="of the masked places (default 0)")
    corpus.add_argument(
        "--mask-documents",
        action="store_const",
        const=True,
        help="keep documents packed into a sequence apart",
    )
    text = parser.add_argument_group("with --text")
    text.add_argument("--sequence-length", type=int, metavar="N", help="of a window (default 32256)")
    text.add_argument("--step", type=int, metavar="N", help="from a window to the next (default 512)")
    text.add_argument("--windows", type=int, metavar="N", help="the first N only (default: all)")
    text.add_argument(
        "--validation",
        type=float,
        metavar="N",
        help="the training's text.validation (default: that, else 0.05)",
    )
    text.add_argument(
        "--test",
        type=float,
        metavar="N",
        help="the training's text.test (default: that, else 0.05)",
    )
    text.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="the training's text.cache_dir (default ~/.cache/longspan)",
    )
    options = parser.parse_args(arguments)
    try:
        figures = _figures(vars(options))
    except (InputError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
