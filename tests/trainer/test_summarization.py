"""Summarisation by LED: input, loss and generation beside transformers' own, the command, and predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LEDForConditionalGeneration

from tests.trainer.test_led import VOCABULARY, bart
from trainer.batches.examples import as_batch
from trainer.convert import convert
from trainer.engine.config import InputError
from trainer.engine.training import check_same_everywhere
from trainer.finetune import FinetunedTask, prepare
from trainer.model.led_model import LedModel
from trainer.tasks.config import Finetuning

SETTINGS = {"beams": 2, "longest_summary": 12, "length_penalty": 1.0}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("summaries")
    bart(folder / "bart", init_std=0.1, dropout=0.0)
    convert(folder / "bart", folder / "led", 96, 8)
    documents = [
        " ".join(["abc", "dem", "cab", "nip"][(number + word) % 4] for word in range(8 + 5 * number))
        for number in range(8)
    ]
    rows = [{"article": text, "abstract": text.split()[0] + " " + text.split()[1]} for text in documents]
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "validation.jsonl", rows[:3])
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def task_of(place: Path, **changes: Any) -> FinetunedTask:
    files = {name: str(place / f"{name}.jsonl") for name in ("train", "validation")}
    values = {
        "run": str(place / "run"),
        "model": str(place / "led"),
        "task": {"name": "summarization", **files, **SETTINGS},
        "sequence_length": 64,
        "batch_size": 4,
        "micro_batch_size": 2,
        "steps": 3,
        "cache_dir": str(place / "cache"),
        **changes,
    }
    return prepare(Finetuning.model_validate(values))


def test_loss_and_gradient_are_transformers(place: Path) -> None:
    task = task_of(place)
    examples = task.train[:3]
    assert all(len(example.rows[0]) <= 64 for example in examples)
    batch = as_batch(examples, 1)
    loss = task.loss(task.model, batch, torch.zeros(3, 2, dtype=torch.long))
    loss.backward()
    theirs = LEDForConditionalGeneration.from_pretrained(place / "led")
    labels = torch.full((3, max(len(example.features["summary"]) for example in examples)), -100)
    for row, example in zip(labels, examples, strict=True):
        row[: len(example.features["summary"])] = torch.from_numpy(example.features["summary"].copy())
    assert batch.scored == int((labels != -100).sum())
    assert batch.global_mask is not None
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask.long()
    mean = theirs(
        input_ids=batch.input_ids,
        attention_mask=mask,
        global_attention_mask=batch.global_mask.long(),
        labels=labels,
    ).loss
    (mean * batch.scored).backward()
    assert loss.item() == pytest.approx(mean.item() * batch.scored, rel=1e-4)
    assert isinstance(task.model, LedModel)
    expected = dict(theirs.named_parameters())
    for name, parameter in task.model.seq2seq.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-4, msg=name)


def test_generation_is_transformers_token_by_token(place: Path) -> None:
    task = task_of(place)
    task.model.eval()
    examples = task.train[:3]
    theirs = LEDForConditionalGeneration.from_pretrained(place / "led").eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "led")
    with torch.no_grad():
        found = task.task.predict(task.model, task.model.states(as_batch(examples, 1)), examples)
        for example, said in zip(examples, found, strict=True):
            ids = torch.from_numpy(example.rows[0].astype("int64"))[None]
            is_global = torch.zeros_like(ids)
            is_global[0, 0] = 1
            expected = theirs.generate(
                ids,
                global_attention_mask=is_global,
                num_beams=2,
                max_new_tokens=12,
                no_repeat_ngram_size=3,
                length_penalty=1.0,
                do_sample=False,
            )
            assert said == tokenizer.decode(expected[0], skip_special_tokens=True).strip()


def test_it_learns_to_summarise(place: Path) -> None:
    """ROUGE of a trained model, against that of the one it starts from."""
    task = task_of(place)
    validation = task.validation
    assert validation is not None

    def rouge() -> float:
        task.model.eval()
        with torch.no_grad():
            sums = task.evaluate(1, slice(None), lambda: None)
        assert sums is not None
        return task.evaluated(sums)["validation_rouge1"]

    before = rouge()
    optimizer = torch.optim.AdamW(task.model.parameters(), 3e-3)
    task.model.train()
    for _ in range(120):
        batch = as_batch(list(task.train), 1)
        loss = task.loss(task.model, batch, torch.zeros(8, 2, dtype=torch.long)) / batch.scored
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert rouge() > before + 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"longer": "chunk"}, "longer: found chunk, expected truncate"),
        ({"model": "bart"}, "model_type: found 'bart', expected 'led'"),
        (
            {"task": {"name": "summarization", "train": "x", "longest_summary": 25}},
            "task.longest_summary: found 25, expected at most the 24",
        ),
        ({"sequence_length": 97}, "sequence_length: found 97, expected at most the 96"),
        ({"global_attention": False}, "global_attention: found false, expected true"),
        ({"global_projections": "shared"}, "global_projections: found shared, expected auto or stored"),
        ({"head": "new"}, "head: found new, expected auto or stored"),
    ],
)
def test_what_does_not_fit_is_named(place: Path, changes: dict[str, Any], message: str) -> None:
    if "model" in changes:
        changes = {"model": str(place / changes["model"])}
    with pytest.raises(InputError, match=message):
        task_of(place, **changes)


def test_another_dropout_is_another_run(place: Path, tmp_path: Path) -> None:
    """What of LED's sizes no tensor's shape tells: a checkpoint is not continued under others."""
    found = task_of(place).facts()
    shutil.copytree(place / "led", tmp_path / "led")
    config = tmp_path / "led" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"activation_dropout": 0.5}))
    with pytest.raises(InputError, match=r"activation_dropout: found 0\.5, expected 0\.0"):
        check_same_everywhere([found, task_of(place, model=str(tmp_path / "led")).facts()])


def test_pubmed_s_layout_is_read(place: Path, tmp_path: Path) -> None:
    rows = [{"article_id": "a", "article_text": ["One .", "Two ."], "abstract_text": ["<S> Both . </S>"]}]
    write_rows(tmp_path / "rows.jsonl", rows)
    (document,) = task_of(place).task.read_own(tmp_path / "rows.jsonl")
    assert (document.id, document.text, document.summary) == ("a", "One .\nTwo .", "Both .")
    assert VOCABULARY == 300
