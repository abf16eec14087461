"""A small corpus, made by the real builder from text the tests make up: what the trainer's tests train on."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from demo.sources import train_tokenizer

SEQUENCE_LENGTH = 128


def made_up_documents(count: int, seed: int = 0) -> list[str]:
    """Documents of made-up words that follow one another by fixed habits, so that there is something to learn."""
    random_ = random.Random(seed)
    words = ["".join(random_.choices("abcdefghijklmnop", k=random_.randint(2, 7))) for _ in range(60)]
    follows = {word: random_.sample(words, 3) for word in words}
    documents = []
    for _ in range(count):
        word, sentence = random_.choice(words), []
        for _ in range(random_.randint(20, 400)):
            sentence.append(word)
            word = random_.choice(follows[word])
        documents.append(" ".join(sentence) + ".")
    return documents


def lasting_build(tokenizer: str, documents: str, seed: int) -> dict[str, Any]:
    """A configuration of so many units that there is time to lose a machine: `documents` has one a line."""
    return {
        "tokenizer": tokenizer,
        "sequence_length": SEQUENCE_LENGTH,
        "seed": seed,
        "chunk_bytes": 20_000,
        "shard_sequences": 500,
        "sources": [{"kind": "stories", "path": documents}],
        "deduplicate": {"near": {"threshold": 0.8}},
        "validation_fraction": 0.1,
    }


def build_small_corpus(folder: Path, seed: int = 0, sequence_length: int = SEQUENCE_LENGTH) -> Path:
    """Build FOLDER/corpus with pipeline.build_corpus in this machine's processes; returns its path."""
    documents = made_up_documents(150, seed)
    raw = folder / "raw"
    raw.mkdir(parents=True)
    for number, document in enumerate(documents):
        (raw / f"{number:03}.txt").write_text(document, encoding="utf-8")
    train_tokenizer(documents, 300, folder / "tokenizer.json")
    config = {
        "tokenizer": str(folder / "tokenizer.json"),
        "sequence_length": sequence_length,
        "seed": seed,
        "sources": [{"kind": "text", "path": str(raw)}],
        "validation_fraction": 0.1,
    }
    (folder / "corpus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "pipeline.build_corpus", "--local"]
    command += ["--config", str(folder / "corpus.yaml"), "--output", str(folder / "corpus")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "corpus"
