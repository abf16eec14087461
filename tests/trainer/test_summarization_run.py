"""LED learns to summarise real texts, launched, killed and started again: ROUGE beside lead and an untrained model."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from demo.sources import train_tokenizer
from tests.trainer import launcher
from tests.trainer.finetuned import write
from tests.trainer.runs import rows
from trainer.convert import convert
from trainer.engine.config import load_config
from trainer.finetune import prepare
from trainer.predict import predict_folder
from trainer.tasks.config import Finetuning
from trainer.tasks.summarization import ROUGE, rouge

SCRIPT = Path(__file__).parents[2] / "trainer" / "finetune.py"
VOCABULARY, TOKENS, SUMMARY = 2000, 256, 64
TRAINED, HELD_OUT, STEPS = 24, 32, 120


def pairs(shared_data: Path) -> list[dict[str, str]]:
    """Wikipedia's articles without their first paragraphs, which are what they are summarised as."""
    found = []
    with gzip.open(shared_data / "wikipedia" / "enwiki_106_articles_plain.jsonl.gz", "rt") as file:
        for article in map(json.loads, file):
            first, *others = [line for line in article["text"].split("\n") if line.strip()]
            if len(first.split()) >= 20 and len(others) >= 3:
                found.append({"id": article["id"], "article": "\n".join(others), "abstract": first})
    return found


def write_model(folder: Path, texts: Sequence[str]) -> None:
    """An LED from a small BART that was drawn."""
    torch.manual_seed(0)
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 256)
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
    config = BartConfig(
        vocab_size=VOCABULARY, d_model=128, max_position_embeddings=128, init_std=0.05, dropout=0.0, **sizes
    )
    BartForConditionalGeneration(config).save_pretrained(folder.with_name("bart"))
    train_tokenizer(texts, VOCABULARY, folder.with_name("bart") / "tokenizer.json")
    convert(folder.with_name("bart"), folder, TOKENS, 64)


@pytest.fixture(scope="module")
def place(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run on one process that was killed at a random step and started again: read it."""
    folder = tmp_path_factory.mktemp("real-summaries")
    drawn = pairs(shared_data)
    random.Random(0).shuffle(drawn)
    splits = {"train": drawn[:TRAINED], "validation": drawn[TRAINED : TRAINED + HELD_OUT]}
    for name, chosen in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    write_model(
        folder / "led", [text for row in splits["train"] for text in (row["article"], row["abstract"])]
    )
    values = {
        "run": str(folder / "run"),
        "model": str(folder / "led"),
        "task": {
            "name": "summarization",
            **{name: str(folder / f"{name}.jsonl") for name in splits},
            "longest_summary": SUMMARY,
            "beams": 2,
            "length_penalty": 1.0,
        },
        "sequence_length": TOKENS,
        "steps": STEPS,
        "batch_size": 8,
        "micro_batch_size": 8,
        "log_every": 1,
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": 10},
        "checkpoint": {"every": 10, "keep_last": 2},
        "evaluation": {"every": STEPS},
        "cache_dir": str(folder / "cache"),
    }
    config = write(folder, values)
    due = random.Random(int(os.environ.get("LONGSPAN_SEED", "9"))).randrange(15, STEPS - 30)
    process = launcher.start(SCRIPT, "--config", str(config), processes=1)
    launcher.wait_until(lambda: launcher.steps_logged(folder / "run") >= due, process)
    launcher.kill(process)
    launcher.finish(process)
    assert not (folder / "run" / "export").exists()
    process = launcher.start(SCRIPT, "--config", str(config), processes=1)
    output = launcher.finish(process)
    assert process.returncode == 0, output
    found = re.search(rf"start     step (\d+) of {STEPS}", output)
    assert found is not None
    assert int(found[1]) > 0, output
    return folder


def predicted(place: Path, split: str) -> dict[str, float]:
    """ROUGE of the export's summaries of a split."""
    data, output = place / f"{split}.jsonl", place / f"{split}-summaries.jsonl"
    return predict_folder(place / "run" / "export", data, output, score=True)


def lead(place: Path, split: str) -> dict[str, float]:
    """ROUGE of each article's first three sentences."""
    scores = []
    for line in (place / f"{split}.jsonl").read_text().splitlines():
        row = json.loads(line)
        sentences = re.split(r"(?<=[.!?])\s+", row["article"])[:3]
        scores.append(rouge(row["abstract"], "\n".join(sentences)))
    return dict(zip(ROUGE, (100 * np.mean(scores, axis=0)).tolist(), strict=True))


def untrained(place: Path) -> dict[str, float]:
    """ROUGE of the model that the run began with, on the held-out pairs."""
    task = prepare(load_config(place / "run" / "config.yaml", [], Finetuning))
    task.model.eval()
    sums = task.evaluate(0, slice(None), lambda: None)
    assert sums is not None
    return {name.removeprefix("validation_"): value for name, value in task.evaluated(sums).items()}


def test_pairs_that_it_was_trained_on_it_summarises_better_than_lead(place: Path) -> None:
    """Learnt by heart, which is all that so small a model can be asked for."""
    found, baseline = predicted(place, "train"), lead(place, "train")
    print(f"of {TRAINED} trained pairs: {found}; lead: {baseline}")
    assert found["rouge1"] > baseline["rouge1"] + 10
    assert found["rouge2"] > baseline["rouge2"] + 20


def test_pairs_that_it_never_saw_it_summarises_better_than_before(place: Path) -> None:
    """Not better than lead: what it has learnt is how first paragraphs are worded."""
    found, before = predicted(place, "validation"), untrained(place)
    print(f"of {HELD_OUT} held-out pairs: {found}; untrained: {before}; lead: {lead(place, 'validation')}")
    assert found["rouge1"] > before["rouge1"] + 8
    evaluated = [row for row in rows(place / "run") if "validation_rouge1" in row][-1]
    assert evaluated["step"] == STEPS
    assert found == {name: pytest.approx(evaluated[f"validation_{name}"]) for name in found}
