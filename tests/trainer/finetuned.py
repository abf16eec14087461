"""Small models in folders, rows to classify and to summarise: what the finetuning command is tried on."""

import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml

from demo.sources import train_tokenizer
from tests.corpora import made_up_documents
from tests.trainer.test_led import bart
from trainer.convert import convert
from trainer.model.folder import write_model
from trainer.model.heads import MaskedLanguageModel
from trainer.model.longformer import Architecture, EncoderConfig
from trainer.model.weights import without_prefix

TOKENS = 64
STEPS, SUMMARY_STEPS = 10, 6


def write_small_model(
    folder: Path, architecture: Architecture = "longformer", seed: int = 0, tokens: int = TOKENS
) -> EncoderConfig:
    """A masked-language model's folder, whose weights are large enough to make outputs differ."""
    documents = made_up_documents(30)
    tokenizer = folder.with_name(f"{folder.name}-tokenizer.json")
    train_tokenizer(documents, 300, tokenizer)
    vocabulary = 1 + max(
        *json.loads(tokenizer.read_text())["model"]["vocab"].values(),
        *(token["id"] for token in json.loads(tokenizer.read_text())["added_tokens"]),
    )
    torch.manual_seed(seed)
    windows = [16, 8] if architecture == "longformer" else []
    config = EncoderConfig(
        architecture, vocabulary, 32, 2, 2, 64, tokens + 2, attention_window=windows, initializer_range=0.1
    )
    model = MaskedLanguageModel(config)
    tensors = without_prefix({name: parameter.detach() for name, parameter in model.named_parameters()})
    beside = folder.with_name(f"{folder.name}-tokenizer")
    beside.mkdir()
    tokenizer.rename(beside / "tokenizer.json")
    write_model(folder, config, tensors, beside)
    return config


def write_rows(path: Path, count: int, seed: int = 0) -> None:
    """Rows of very different lengths; a label's texts hold its word."""
    drawn = random.Random(seed)
    documents = made_up_documents(count, seed=1)
    rows = []
    for number, document in enumerate(documents):
        label = ("dull", "fine", "great")[number % 3]
        words = document.split()[: drawn.choice([3, 20, 60])]
        words.insert(drawn.randrange(len(words) + 1), label * 2)
        rows.append({"id": f"row-{number}", "text": " ".join(words), "label": label})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_small_led(folder: Path) -> None:
    """LED of a BART that was drawn, every kind of dropout in it, with a bias on its logits."""
    source = folder.with_name(f"{folder.name}-bart")
    dropout = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.1)
    bart(source, init_std=0.1, decoder_layers=1, **dropout)
    convert(source, folder, 96, 8)


def write_documents(path: Path, count: int, seed: int = 0) -> None:
    """Documents of very different lengths; a summary is one word several times."""
    drawn = random.Random(seed)
    rows = []
    for number, document in enumerate(made_up_documents(count, seed=1)):
        words = document.split()[: drawn.choice([3, 10, 30])]
        summary = " ".join(["e"] * drawn.randrange(2, 6))
        rows.append({"id": f"row-{number}", "article": " ".join(words), "abstract": summary})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def settings(folder: Path, model: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Examples of one to several rows, updates of seven examples in four passes, dropout, an evaluation, two rates."""
    return {
        "run": str(folder / name),
        "model": str(model),
        "task": {
            "name": "classification",
            "train": str(folder / "train.jsonl"),
            "validation": str(folder / "validation.jsonl"),
        },
        "sequence_length": TOKENS,
        "longer": "chunk",
        "seed": 3,
        "steps": STEPS,
        "batch_size": 8,
        "micro_batch_size": 2,
        "log_every": 1,
        "optimizer": {"learning_rate": 1e-3, "task_learning_rate": 5e-3, "warmup_steps": 2},
        "checkpoint": {"every": 2, "keep_last": 20},
        "evaluation": {"every": 4},
        "cache_dir": str(folder / "cache"),
        **changes,
    }


def summarizing(folder: Path, model: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Likewise of summaries, which are evaluated by a search of two beams."""
    task = {
        "name": "summarization",
        "train": str(folder / "train-summaries.jsonl"),
        "validation": str(folder / "validation-summaries.jsonl"),
        "longest_summary": 8,
        "beams": 2,
        "no_repeated": 0,
    }
    own = {
        "task": task,
        "longer": "truncate",
        "steps": SUMMARY_STEPS,
        "batch_size": 6,
        "evaluation": {"every": 3},
        "optimizer": {"learning_rate": 2e-2, "task_learning_rate": 6e-2, "warmup_steps": 2},  # ROUGE is not 0
    }
    return settings(folder, model, name, **own, **changes)


def write(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / f"{Path(values['run']).name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
