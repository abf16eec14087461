"""Bits per masked token of a model over a fixed masked set.

    python -m trainer.evaluate --model DIR_OR_HUB_ID --corpus DIR_OR_URI [--sequences N]

prints one JSON line {"bpc", "tokens", "sequences"}: the cross-entropy over the masked tokens divided by ln 2, which
the paper's table 5 calls BPC. The masked places depend on the seed and the corpus alone. A model with fewer positions
than the corpus's sequences gets the same text and the same masked places in consecutive pieces, so that RoBERTa and
Longformer are compared on the same tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from trainer.batches.corpus import Sequences, corpus_masking, open_sequences
from trainer.batches.evaluation import bits, loss_of_batches, masked_batches
from trainer.batches.masking import Masking
from trainer.engine.config import InputError
from trainer.model.folder import load_model, locate_model, tokenizer_fingerprint
from trainer.model.heads import MaskedLanguageModel


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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="DIR_OR_HUB_ID")
    parser.add_argument(
        "--corpus",
        required=True,
        metavar="DIR_OR_URI",
        help="made by pipeline.build_corpus; s3:// and gs:// as well",
    )
    parser.add_argument("--split", default="validation", choices=("train", "validation"))
    parser.add_argument("--sequences", type=int, metavar="N", help="the first N only (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the masked places (default 0)")
    parser.add_argument(
        "--mask-documents", action="store_true", help="keep documents packed into a sequence apart"
    )
    options = parser.parse_args(arguments)
    try:
        if options.sequences is not None and options.sequences < 1:
            raise InputError(f"--sequences: found {options.sequences}, expected at least 1")
        figures = evaluate_folder(
            options.model,
            options.corpus,
            options.split,
            options.sequences,
            options.seed,
            options.mask_documents,
        )
    except (InputError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
