"""The corpus of a reproduction: whatever text there is, under a small vocabulary of its own.

A byte-like vocabulary is what lets a small model leave the unigram plateau of masked-language modelling within
minutes, so the tokenizer is trained here, on the text that the corpus is made of.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from demo.commands import ROOT, Commands
from demo.sources import train_tokenizer
from pipeline.config import load_config
from pipeline.documents import Document, Dropped
from pipeline.shards import open_corpus, write_atomically
from pipeline.sources.reading import read_documents
from reproduce.recipe import CorpusSizes
from trainer.engine.config import InputError

DATA = "LONGSPAN_DATA"
REAL_TEXT = Path(__file__).with_name("real_text.yaml")
DOCUMENTATION = ROOT / "pipeline" / "configs" / "demo.yaml"
SMALLEST_VOCABULARY = 261  # the bytes and five special tokens
TOKENIZER_TEXT = 20_000_000
"""Characters that the tokenizer learns from: more would not change a few dozen merges."""


def data_folder() -> Path:
    """Where real texts lie, if they do; $LONGSPAN_DATA, which configurations name, is set to it."""
    return Path(os.environ.setdefault(DATA, str(ROOT.parent / "shared" / "data")))


def choose_text() -> Path:
    """The configuration whose text is used where the user names none: real text where it lies on this machine."""
    return REAL_TEXT if (data_folder() / "books").is_dir() else DOCUMENTATION


def corpus_settings(text: Path, recipe: CorpusSizes, tokenizer: Path) -> dict[str, Any]:
    """The pipeline's configuration: the sources and filters of `text`, the rest from the recipe."""
    try:
        given = yaml.safe_load(text.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{text}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{text}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(given, dict) or not isinstance(given.get("sources"), list):
        raise InputError(f"{text}: no `sources`, expected a configuration of pipeline.build_corpus")
    return {
        **given,
        "tokenizer": str(tokenizer),
        "sequence_length": recipe.longformer_tokens,
        "validation_fraction": recipe.validation_fraction,
        "sources": [_absolute(source, text.absolute().parent) for source in given["sources"]],
    }


def _absolute(source: Any, folder: Path) -> Any:
    """A source whose relative paths start at `folder`, not where its configuration is copied to."""
    if not isinstance(source, dict) or "path" not in source:
        return source  # the builder says what is wrong with it
    paths = source["path"] if isinstance(source["path"], list) else [source["path"]]
    kept = [path if "://" in path or path.startswith(("~", "$")) else str(folder / path) for path in paths]
    return {**source, "path": kept}


def build_corpus(commands: Commands, folder: Path, text: Path, recipe: CorpusSizes) -> Path:
    """Make FOLDER/corpus with the project's own builder, as far as it is not there; returns its path."""
    if text.resolve() == DOCUMENTATION:
        commands.environment["LONGSPAN_DEMO"] = os.environ["LONGSPAN_DEMO"] = str(folder)
        commands.python("sources", "demo.sources", "--to", str(folder / "sources"))
    tokenizer, config = folder / "tokenizer" / "tokenizer.json", folder / "corpus.yaml"
    settings = corpus_settings(text, recipe, tokenizer)
    if not tokenizer.exists():
        # A configuration names a tokenizer; until there is one, that of the bytes lets its text be read.
        of_bytes = folder / "bytes" / "tokenizer.json"
        train_tokenizer([], SMALLEST_VOCABULARY, of_bytes)
        write_atomically(config, yaml.safe_dump({**settings, "tokenizer": str(of_bytes)}).encode())
        train_tokenizer(_texts(config), recipe.vocabulary, tokenizer)
    write_atomically(config, yaml.safe_dump(settings, sort_keys=False).encode())
    output = folder / "corpus"
    commands.python(
        "corpus", "pipeline.build_corpus", "--local", "--config", str(config), "--output", str(output)
    )
    return output


def unigram_bits(corpus: Path) -> float:
    """Bits a token of the validation split under the frequencies of the training split: the plateau on which masked-
    language modelling rests until a model looks at what surrounds a mask."""
    counts = {}
    for split in ("train", "validation"):
        opened = open_corpus(corpus, split=split)
        counts[split] = np.zeros(opened.vocabulary_size)
        for number in range(len(opened)):
            counts[split] += np.bincount(opened.input_ids(number), minlength=opened.vocabulary_size)
        counts[split][list(opened.special_ids.values())] = 0  # never masked
    frequencies = (counts["train"] + 1) / (counts["train"] + 1).sum()  # no token has none
    return float(-(counts["validation"] * np.log2(frequencies)).sum() / counts["validation"].sum())


def _texts(config: Path) -> Iterator[str]:
    """The texts of a configuration's documents, as the builder cleans them, up to TOKENIZER_TEXT characters."""
    loaded = load_config(config)
    left = TOKENIZER_TEXT
    for source, inputs in zip(loaded.config.sources, loaded.inputs, strict=True):
        reader = source.reader
        for item in inputs:
            for document, _ in read_documents(reader, item):
                if not isinstance(document, Document):
                    continue
                try:
                    text = reader.clean(document.text)
                except Dropped:
                    continue
                yield text
                left -= len(text)
                if left <= 0:
                    return
