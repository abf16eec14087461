"""A small corpus to measure with, sealed by the real builder: made-up words, and one token a byte."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import tokenizers
import yaml

from pipeline.tokenizer import SPECIAL_TOKENS


def build_corpus(folder: Path, sequences: int, sequence_length: int) -> Path:
    """Build FOLDER/corpus of about so many sequences; returns its path. RuntimeError with what the builder said."""
    save_byte_tokenizer(folder / "tokenizer.json")
    drawn = random.Random(0)  # noqa: S311
    words = ["".join(drawn.choices("abcdefghijklmnop", k=drawn.randint(2, 9))) for _ in range(2000)]
    written = 0
    with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
        while written < sequences * sequence_length:
            text = " ".join(drawn.choices(words, k=drawn.randint(100, 2000)))
            file.write(json.dumps({"text": text}) + "\n")
            written += len(text)
    config = {
        "tokenizer": str(folder / "tokenizer.json"),
        "sequence_length": sequence_length,
        "sources": [{"kind": "text", "path": str(folder / "text.jsonl")}],
    }
    (folder / "corpus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "pipeline.build_corpus", "--local"]
    command += ["--config", str(folder / "corpus.yaml"), "--output", str(folder / "corpus")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return folder / "corpus"


def save_byte_tokenizer(file: Path) -> None:
    """A byte-level tokenizer without a merge."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    ids = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ids, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(file))
