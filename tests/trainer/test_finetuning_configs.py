"""Each committed configuration of a task, from official files as it names them to an update and a submission."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from tests.trainer.finetuned import write_small_model
from tests.trainer.official_files import write_official_files
from tests.trainer.test_led import bart
from trainer.batches.example_batches import predictions
from trainer.convert import convert
from trainer.engine.config import load_config
from trainer.engine.training import Batch
from trainer.finetune import prepare
from trainer.tasks.config import Finetuning
from trainer.tasks.description import TaskDescription
from trainer.tasks.example import Example
from trainer.tasks.example_store import encode_all
from trainer.tasks.registry import AnyTask
from trainer.tasks.task import TaskSettings

CONFIGS = Path(__file__).parents[2] / "trainer" / "configs"
FINETUNED = sorted(path for path in CONFIGS.rglob("*.yaml") if "\ntask:" in path.read_text(encoding="utf-8"))
# What a stand-in changes: none of it decides the input.
CHANGES = [("optimizer.warmup_steps", "null"), ("cache_dir", "cache"), ("micro_batch_size", "1")]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("official")
    write_official_files(folder)
    write_small_model(folder / "roberta", "roberta", tokens=512)
    write_small_model(folder / "longformer", tokens=4096)
    bart(folder / "bart", max_position_embeddings=32)
    convert(folder / "bart", folder / "led")
    return folder


@pytest.mark.parametrize("path", FINETUNED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_it_trains_evaluates_and_predicts(
    path: Path, stand_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stand_ins)
    asked = load_config(path, CHANGES, Finetuning)
    changes = [*CHANGES, ("model", stand_in(asked))]
    if asked.task.name == "summarization":
        changes.append(("task.longest_summary", "32"))
    task = prepare(load_config(path, changes, Finetuning))
    assert len(task.train) > 3
    assert task.validation is not None
    assert max(map(max, task.train.row_lengths)) <= asked.sequence_length
    chosen = task.arranged(np.arange(3))
    batch: Batch = task.micro_batch(1, chosen, np.arange(3))
    loss = task.loss(task.model, batch, torch.zeros(3, task.layers, dtype=torch.long))
    loss.backward()
    assert torch.isfinite(loss)
    assert loss > 0
    assert all(p.grad is not None for p in task.model.parameters() if p.requires_grad)
    task.model.eval()
    with torch.no_grad():
        sums = task.evaluate(1, slice(0, None), lambda: None)
    assert sums is not None
    halves = [task.evaluate(1, slice(part, None, 2), lambda: None) or [] for part in (0, 1)]
    np.testing.assert_allclose(np.sum(halves, axis=0), sums, rtol=1e-5, atol=1e-5)
    nothing = task.evaluate(1, slice(10**6, None), lambda: None)  # of more processes than examples
    assert nothing == [0.0] * len(sums)
    figures = task.evaluated(sums)
    assert figures
    assert all(0 <= value <= 100 for value in figures.values())
    examples = list(task.validation)
    said = predictions(task.model, task.task, examples)
    output = stand_ins / f"{path.stem}.predictions"
    task.task.write(output, zip(examples, said, strict=True))
    assert output.stat().st_size > 0
    assert task.describe().count("(table 6)") == 2


OWN = {
    "hyperpartisan": [{"text": "One of my own."}, {"text": "Another.", "title": "On it", "id": "second"}],
    "imdb": [{"text": "A film."}, {"text": "Another.", "id": "second"}],
    "wikihop": [
        {"question": "Who lived here?", "candidates": ["Ada", "Émilie"], "documents": ["Ada lived here."]},
        {"question": "Who?", "candidates": ["Ada"], "documents": [], "id": "second"},
    ],
    "triviaqa": [
        {"id": "first", "question": "Who lived here?", "context": "Ada lived here."},
        {"id": "second", "question": "Who lived here?", "documents": ["Ada lived here.", "So did Émilie."]},
    ],
    "hotpotqa": [
        {"id": "first", "question": "Who?", "paragraphs": [{"title": "A", "sentences": ["One.", "Two."]}]},
        {
            "id": "second",
            "question": "Who?",
            "paragraphs": [{"title": "A", "text": "One. Two."}, {"title": "B", "text": "C."}],
        },
    ],
    "summarization": [{"article": "A paper."}, {"document": "Another.", "id": "second"}],
    "coreference": [
        {"id": "first", "text": "Ada said that she sees."},
        {"id": "second", "sentences": [["Ada", "sees", "her", "house"]]},
    ],
}


@pytest.mark.parametrize("name", OWN)
def test_ones_own_rows_are_predicted(name: str, stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the forms that trainer/tasks/README.md gives, by a task that has no files."""
    monkeypatch.chdir(stand_ins)
    asked = load_config(CONFIGS / f"{name}.yaml", CHANGES, Finetuning)
    changes = [*CHANGES, ("model", stand_in(asked))]
    if name == "summarization":
        changes.append(("task.longest_summary", "32"))
    config = load_config(CONFIGS / f"{name}.yaml", changes, Finetuning)
    trained = prepare(config)
    task = TaskDescription.of(config, trained.task, True).make_task(Path("finetuned.json"))
    own = stand_ins / f"{name}.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in OWN[name]))
    encoded = encode_all(task, task.read_own(own), trained.wordpieces, config.lengths, training=False)
    examples = [example for example in encoded if isinstance(example, Example)]
    assert len(examples) == 2
    said = predictions(trained.model.eval(), task, examples)
    task.write(stand_ins / f"{name}.said", zip(examples, said, strict=True))
    assert (stand_ins / f"{name}.said").stat().st_size > 0


def stand_in(asked: Finetuning) -> str:
    """The small model in place of the configuration's."""
    if asked.task.name == "summarization":
        return "led"
    return "roberta" if asked.sequence_length <= 512 else "longformer"


def test_all_tasks_have_a_configuration_and_a_comparison_with_roberta() -> None:
    names = {load_config(path, CHANGES, Finetuning).task.name for path in FINETUNED}
    assert names == {
        "hyperpartisan",
        "imdb",
        "wikihop",
        "triviaqa",
        "hotpotqa",
        "coreference",
        "summarization",
    }
    for name in ("wikihop", "triviaqa", "hotpotqa", "coreference"):
        config = load_config(CONFIGS / f"{name}_roberta.yaml", CHANGES, Finetuning)
        assert config.longer == "chunk"
        assert config.sequence_length <= 512


ONLY_PREDICTIONS = {"candidates"}  # spans that TriviaQA lists


@pytest.mark.parametrize("kind", get_args(AnyTask), ids=lambda kind: kind.__name__)
def test_what_decides_a_task_describes_it(kind: type[TaskSettings]) -> None:
    """A run, and the examples of a cache, are known by it: every setting that is no file is in it."""
    fields = kind.model_fields
    decide = {
        name
        for name, field in fields.items()
        if name not in {"name", *ONLY_PREDICTIONS} and "Path" not in str(field.annotation)
    }
    given = {name: None for name, field in fields.items() if field.is_required()}
    if "labels" in fields:
        given["labels"] = ["no", "yes"]  # type: ignore[assignment]
    assert decide <= kind.model_construct(**given).task().describe().keys()
