"""Predicting with an export: what it is made of, hostile or damaged parts of it, and where the submission goes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LongformerForQuestionAnswering

from tests.trainer.finetuned import settings, write_rows, write_small_model
from trainer.batches.example_batches import summed
from trainer.engine.checkpoint import save_checkpoint
from trainer.engine.config import InputError, load_config
from trainer.export import export_checkpoint
from trainer.finetune import FinetunedTask, prepare
from trainer.model.folder import read_tokenizer, with_global_projections
from trainer.model.task_card import finetuned_card
from trainer.model.task_folder import load_task_model
from trainer.predict import main as predict
from trainer.tasks.config import Finetuning
from trainer.tasks.triviaqa import TriviaQASettings
from trainer.tasks.wordpieces import Wordpieces


def task_of(values: dict[str, Any]) -> FinetunedTask:
    return prepare(Finetuning.model_validate(values))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows, and an export of a model that has not been trained: read it."""
    folder = tmp_path_factory.mktemp("predicting")
    write_small_model(folder / "model")
    write_rows(folder / "train.jsonl", 12)
    write_rows(folder / "validation.jsonl", 6, seed=7)
    (folder / "own.jsonl").write_text('{"text": "a great text"}\n')
    task = task_of(settings(folder, folder / "model", "run"))
    weights = {name: parameter.detach() for name, parameter in task.model.named_parameters()}
    moments = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    state = {"weights": weights, "exp_avg": moments, "exp_avg_sq": moments}
    checkpoints = folder / "run" / "checkpoints"
    checkpoint = save_checkpoint(checkpoints, 10, state, {**task.facts(), "progress": {}}, task.files(10))
    export_checkpoint(checkpoint, folder / "export")
    return folder


@pytest.fixture
def export(place: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(place / "export", tmp_path / "export"))


def refused(place: Path, model: Path, *arguments: str, data: str = "own.jsonl", output: str = "out") -> bool:
    """Whether nothing was written; the exit status is that of wrong input."""
    to = model.parent / output
    there = to.exists()
    given = ["--model", str(model), "--data", str(place / data), "--output", str(to), *arguments]
    assert predict(given) == 2
    return to.exists() == there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequence_length": 10**9}, r"sequence_length: found 1000000000, expected at most the 64 that"),
        ({"sequence_length": -4}, r"sequence_length: found -4"),
        ({"sequence_length": "long"}, r"sequence_length: found 'long', expected integer"),
        ({"longer": "never"}, r"longer: found 'never', expected 'truncate' or 'chunk'"),
        ({"task": None}, r"task: found None"),
        ({"task": {"name": ["classification"]}}, r"task.name: found \['classification'\], expected one of"),
        (
            {"task": {"name": "coreference", "feed_forward_size": 10**12}},
            r"task.feed_forward_size: found 10+,",
        ),
        (
            {"task": {"name": "classification", "labels": [1, "a"]}},
            r"task.labels.0: found 1, expected string",
        ),
        ({"task": {"name": "classification", "labels": ["a"]}}, r"task.labels: found \['a'\], expected"),
        ({"task": {"name": "classification"}}, r"task.labels: found none"),
        ({"task": {"name": "classification", "labels": ["a", "b"]}}, r"is \[3, 32\], expected \[2, 32\]"),
        ({"task": {"name": "wikihop"}}, r"found a tokenizer of \d+ entries with the task's"),
        ({"task": {"name": "triviaqa"}}, r"does not have the head of triviaqa: no qa_outputs"),
        ({"task": {"name": "triviaqa", "evidence": "/home"}}, r"task.evidence: found a path, expected none"),
    ],
)
def test_a_description_that_is_no_good_is_refused(
    place: Path, export: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    path = export / "finetuned.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert refused(place, export)
    shown = capsys.readouterr().err
    assert re.search(message, shown), shown
    assert shown.startswith("predict: ")


def test_parts_of_another_model_are_refused(
    place: Path, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that nothing has trained, and projections that are copies, would predict something."""
    tensors = load_file(export / "model.safetensors")
    name = "longformer.encoder.layer.1.attention.self.value_global.bias"
    save_file({key: value for key, value in tensors.items() if key != name}, export / "model.safetensors")
    assert refused(place, export)
    assert re.search(
        r"global_projections: .* has no .*1.attention.self.value_global.bias", capsys.readouterr().err
    )
    save_file(tensors, export / "model.safetensors")
    larger = Wordpieces(read_tokenizer(export), ("[new]",)).files()
    (export / "tokenizer.json").write_bytes(larger["tokenizer.json"])
    assert refused(place, export)
    assert "it is another model's" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task.labels", "[a"], r"--task.labels: found '\[a', expected a YAML value"),
        (["--task.moves=3"], "task: found moves"),
        (["--task.labels=[a, b]"], r"expected \[2, 32\]"),
    ],
)
def test_keys_of_the_task_are_given_beside(
    place: Path, export: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert refused(place, export, *arguments)
    assert re.search(message, capsys.readouterr().err)


def test_where_the_submission_goes(place: Path, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (export.parent / "folder").mkdir()
    assert refused(place, export, output="folder")
    assert "found a folder, expected the name of a file" in capsys.readouterr().err
    own = export.parent / "own.jsonl"
    shutil.copy(place / "own.jsonl", own)
    assert refused(export.parent, export, output="own.jsonl")
    assert "found the data themselves" in capsys.readouterr().err
    assert own.read_bytes() == (place / "own.jsonl").read_bytes()
    new = export.parent / "new" / "out.jsonl"
    assert predict(["--model", str(export), "--data", str(own), "--output", str(new)]) == 0
    assert json.loads(new.read_text())["id"] == "0"


def test_a_score_without_answers_is_refused(
    place: Path, export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(place, export, "--score")
    assert "own.jsonl: found no answers to score by" in capsys.readouterr().err


def test_the_card_trains_it_again_and_names_no_path(place: Path, tmp_path: Path) -> None:
    card = (place / "export" / "README.md").read_text()
    config = tmp_path / "config.yaml"
    config.write_text(re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)[0])
    assert "--run RUN --model MODEL --task.train TRAIN\n" in card
    given = [("run", str(tmp_path)), ("model", str(place / "model")), ("cache_dir", str(place / "cache"))]
    again = prepare(load_config(config, [*given, ("task.train", str(place / "train.jsonl"))], Finetuning))
    assert again.facts() == task_of(settings(place, place / "model", "run")).facts()
    for file in (place / "export").iterdir():
        assert str(place).encode() not in file.read_bytes(), file.name
        assert b".jsonl" not in file.read_bytes(), file.name


def test_a_figure_that_is_none_is_no_obstacle_to_the_card(place: Path) -> None:
    """A loss that was not finite is null in metrics.jsonl."""
    task = task_of(settings(place, place / "model", "run"))
    about = {
        "task": "classification",
        "course": [{"step": 1, "loss": None}, {"step": 2, "loss": 0.5}],
        "validation": [{"step": 1}, {"step": 2, "validation_f1": 0.25}],
    }
    description = json.loads((place / "export" / "finetuned.json").read_text())
    state = {"step": 2, **task.facts()}
    card = finetuned_card(task.model.config, 1, state, about, description, "LongformerModel")
    for line in ("| 1 |  |", "| 2 | 0.5 |", "| step | validation_f1 |", "| 2 | 0.25 |"):
        assert line in card.splitlines(), line


def test_transformers_finds_the_longest_input(place: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "export")
    assert len(tokenizer("great " * 100, truncation=True).input_ids) == 64


@pytest.mark.parametrize("form", ["pickled", "in parts"])
def test_transformers_checkpoint_for_answers_is_the_start(place: Path, tmp_path: Path, form: str) -> None:
    theirs = LongformerForQuestionAnswering.from_pretrained(place / "model")
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    if form == "pickled":
        for file in tmp_path.glob("model*.safetensors*"):
            file.unlink()
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    task = TriviaQASettings(name="triviaqa", train=Path("none")).task()
    wordpieces = Wordpieces(read_tokenizer(place / "model"), task.added_tokens)
    model, made_of = load_task_model(tmp_path, task, wordpieces)
    assert made_of == ["head: the stored one", "global projections: the stored ones"]
    expected = theirs.state_dict()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], msg=name)


class Counted(list[Any]):
    """Tells what was read."""

    def __init__(self, examples: Any) -> None:
        super().__init__(examples)
        self.read: list[Any] = []

    def __getitem__(self, number: Any) -> Any:
        self.read.append(number)
        return super().__getitem__(number)


def test_a_process_reads_its_share_of_what_is_evaluated(place: Path) -> None:
    task = task_of(settings(place, place / "model", "run"))
    assert task.validation is not None
    examples = Counted(task.validation)
    task.model.eval()
    parts = [summed(task.model, task.task, examples, slice(rank, None, 4), first=5) for rank in range(4)]
    assert sorted(examples.read) == [0, 1, 2, 3, 4]
    examples.read.clear()
    whole = summed(task.model, task.task, examples, slice(0, None), first=5)
    assert [sum(each) for each in zip(*parts, strict=True)] == whole
    assert sum(whole) == 5
    assert (
        sum(summed(task.model, task.task, examples, slice(7, None, 8))) == 0
    )  # more processes than examples


def test_a_split_without_examples_is_refused_before_training(place: Path, tmp_path: Path) -> None:
    for number, label in enumerate(("pos", "neg") * 4):
        path = tmp_path / "train" / label / f"{number}_7.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"A film {number}.")
    task = {"name": "imdb", "data": str(tmp_path), "validation_share": 1e-9}
    values = settings(place, place / "model", "imdb", task=task)
    with pytest.raises(InputError, match=r"task.validation: found no example to evaluate by"):
        task_of(values)
    assert task_of(values | {"evaluation": {"epochs": 0}}).validation is None


def test_projections_of_a_model_without_the_head_are_copied_anew(place: Path, tmp_path: Path) -> None:
    """Unless they are asked for: what masked-language modelling has not trained is no better than its copies."""
    shutil.copytree(place / "model", tmp_path / "model")
    tensors = with_global_projections(load_file(tmp_path / "model" / "model.safetensors"))
    changed = {name: tensor + ("_global." in name) for name, tensor in tensors.items()}
    save_file(changed, tmp_path / "model" / "model.safetensors")
    for asked, moved in (("auto", 0), ("copied", 0), ("stored", 1)):
        task = task_of(settings(place, tmp_path / "model", "copies", global_projections=asked))
        own = dict(task.model.named_parameters())
        names = [name for name in own if "_global." in name]
        assert len(names) == 12
        for name in names:
            torch.testing.assert_close(own[name], own[name.replace("_global", "")] + moved, msg=name)


@pytest.mark.parametrize(
    ("changes", "steps", "warmup", "every"),
    [
        ({"steps": None, "epochs": 5}, 8, 1, 2),  # 12 examples by 8, rounded up; the warm-up a tenth of 8
        ({"steps": None, "epochs": 5, "optimizer": {"warmup_share": 0.5}}, 8, 4, 2),
        ({"steps": 6, "optimizer": {"warmup_steps": 6, "warmup_share": 1}}, 6, 6, 2),
        ({"steps": 6, "optimizer": {"warmup_steps": 0}, "evaluation": {"epochs": 2.5}}, 6, 0, 4),
        ({"evaluation": {"epochs": 1e-9}}, 10, 1, 1),
        ({"evaluation": {"every": 3, "epochs": 0}}, 10, 1, 3),
        ({"evaluation": {"epochs": 0}}, 10, 1, 0),
    ],
)
def test_steps_warm_up_and_evaluations_are_counted_in_epochs(
    place: Path, changes: dict[str, Any], steps: int, warmup: int, every: int
) -> None:
    task = task_of(
        settings(place, place / "model", "steps", **{"optimizer": {}, "evaluation": {}, **changes})
    )
    (phase,) = task.phases.phases
    assert (phase.steps, phase.warmup_steps, task.config.evaluation.every) == (steps, warmup, every)


def test_a_warm_up_longer_than_the_epochs_is_refused(place: Path) -> None:
    changes = {"steps": None, "epochs": 5, "optimizer": {"warmup_steps": 9}}
    with pytest.raises(
        InputError, match=r"warmup_steps: found 9, expected at most the 8 updates of 5 epochs"
    ):
        task_of(settings(place, place / "model", "steps", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"global_attention": False},
        {"global_projections": "shared"},
        {"head": "new", "seed": 4},
        {"sequence_length": 48},
        {"task": {"labels": ["great", "fine", "dull"]}},
        {"optimizer": {"task_learning_rate": None}},
        {"epochs": 6},
        {"batch_size": 4},
    ],
)
def test_what_decides_the_numbers_is_a_fact_of_the_run(place: Path, changes: dict[str, Any]) -> None:
    values = settings(place, place / "model", "run")
    changed = {
        key: {**values[key], **value} if isinstance(value, dict) else value for key, value in changes.items()
    }
    assert task_of(values | changed).facts() != task_of(values).facts()


def test_what_decides_nothing_is_no_fact_of_the_run(place: Path, tmp_path: Path) -> None:
    values = settings(place, place / "model", "run")
    for name in ("model", "train.jsonl"):
        source = place / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    moved = {
        "run": str(tmp_path / "run"),
        "model": str(tmp_path / "model"),
        "cache_dir": str(tmp_path / "cache"),
        "task": {"name": "classification", "train": str(tmp_path / "train.jsonl")},
        "evaluation": {"every": 0},
    }
    assert task_of(values | moved).facts() == task_of(values).facts()
