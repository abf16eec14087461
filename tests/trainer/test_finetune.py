"""The finetuning command: exactness, resuming, what it writes, predicting with it, and what it refuses."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import (
    AutoTokenizer,
    LongformerForSequenceClassification,
    RobertaForSequenceClassification,
)

from tests.trainer import launcher
from tests.trainer.finetuned import (
    STEPS,
    SUMMARY_STEPS,
    TOKENS,
    settings,
    summarizing,
    write,
    write_documents,
    write_rows,
    write_small_led,
    write_small_model,
)
from tests.trainer.runs import losses, rewind, rows, state_bytes, step_folder, step_rows, timeless
from trainer.batches.examples import as_batch
from trainer.engine.checkpoint import open_checkpoint
from trainer.engine.config import InputError
from trainer.engine.deepspeed import RATE_SCALE, parameter_groups
from trainer.engine.training import check_same_everywhere, check_same_run
from trainer.finetune import FinetunedTask, prepare
from trainer.finetune import main as finetune
from trainer.model.folder import read_model
from trainer.model.task_model import TaskModel
from trainer.predict import load_finetuned
from trainer.predict import main as predict
from trainer.tasks.config import Finetuning

CASES = Path(__file__).with_name("launched_finetuning.py")
LED = "led-"  # before the names of its runs


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a RoBERTa, an LED and rows: read it."""
    folder = tmp_path_factory.mktemp("finetuning")
    write_small_model(folder / "model")
    write_small_model(folder / "roberta", "roberta")
    write_rows(folder / "train.jsonl", 30)
    write_rows(folder / "validation.jsonl", 9, seed=7)
    write_small_led(folder / "led")
    write_documents(folder / "train-summaries.jsonl", 30)
    write_documents(folder / "validation-summaries.jsonl", 5, seed=7)
    return folder


@pytest.fixture(scope="session")
def launched(place: Path) -> Path:
    """One launch on two processes: read its runs, do not write to them.

    whole-0, -1, -2 by ZeRO stage; stopped-0, -1, -2 stopped twice each; checkpointed; bf16; all these by LED as well,
    stopped once; roberta and no-projections.
    """
    arguments = [
        write(place, settings(place, place / "model", f"whole-{stage}", zero_stage=stage))
        for stage in range(3)
    ]
    for stage, stops in enumerate(("3,4", "1,7", "2,9")):
        path = write(place, settings(place, place / "model", f"stopped-{stage}", zero_stage=stage))
        arguments.append(Path(f"{path}@{stops}"))
    for name, changes in {
        "checkpointed": {"activation_checkpointing": True},
        "bf16": {"precision": "bf16"},
        "no-projections": {"global_projections": "shared"},
    }.items():
        arguments.append(write(place, settings(place, place / "model", name, **changes)))
    arguments.append(write(place, settings(place, place / "roberta", "roberta", zero_stage=1)))
    for stage, stop in enumerate((3, 5, 2)):
        values = summarizing(place, place / "led", f"led-whole-{stage}", zero_stage=stage)
        arguments.append(write(place, values))
        path = write(place, values | {"run": str(place / f"led-stopped-{stage}")})
        arguments.append(Path(f"{path}@{stop}"))
    for name, changes in {
        "led-checkpointed": {"activation_checkpointing": True},
        "led-bf16": {"precision": "bf16"},
    }.items():
        arguments.append(write(place, summarizing(place, place / "led", name, **changes)))
    process = launcher.start(CASES, *map(str, arguments))
    output = launcher.finish(process)
    assert process.returncode == 0, output
    (place / "output").write_text(output)
    return place


def both(place: Path, folder: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    """Settings of runs in a folder by the names of those that `launched` has: a classification, and LED's summaries."""
    made = {
        "whole-0": settings(place, place / "model", "whole-0", **changes),
        "led-whole-0": summarizing(place, place / "led", "led-whole-0", **changes),
    }
    return {name: values | {"run": str(folder / name)} for name, values in made.items()}


def last_state(run: Path) -> dict[str, bytes]:
    return state_bytes(run, SUMMARY_STEPS if run.name.startswith(LED) else STEPS)


def task_of(values: dict[str, Any]) -> FinetunedTask:
    return prepare(Finetuning.model_validate(values))


@pytest.mark.parametrize("model", ["", LED])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_stopped_and_started_again_it_is_the_same_run(launched: Path, model: str, stage: int) -> None:
    stopped, whole = launched / f"{model}stopped-{stage}", launched / f"{model}whole-{stage}"
    assert last_state(stopped) == last_state(whole)
    assert timeless(stopped) == timeless(whole)


@pytest.mark.parametrize("model", ["", LED])
@pytest.mark.parametrize("stage", [1, 2])
def test_zero_computes_the_same(launched: Path, model: str, stage: int) -> None:
    found, expected = losses(launched / f"{model}whole-{stage}"), losses(launched / f"{model}whole-0")
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("model", ["", LED])
def test_layers_computed_again_are_the_same(launched: Path, model: str) -> None:
    again, whole = launched / f"{model}checkpointed", launched / f"{model}whole-0"
    assert last_state(again) == last_state(whole)


@pytest.mark.parametrize("model", ["", LED])
def test_bf16_stays_near(launched: Path, model: str) -> None:
    found, expected = losses(launched / f"{model}bf16"), losses(launched / f"{model}whole-0")
    assert found != expected
    np.testing.assert_allclose(found, expected, rtol=0.05)


def test_one_process_goes_on_with_what_two_began(launched: Path, tmp_path: Path) -> None:
    """On another number of processes and under another ZeRO stage."""
    configs = []
    for name, values in both(launched, tmp_path, zero_stage=1).items():
        rewind(launched / name, tmp_path / name, 4)
        configs.append(write(tmp_path, values))
    process = launcher.start(CASES, *map(str, configs), processes=1)
    output = launcher.finish(process)
    assert process.returncode == 0, output
    assert "start     step 4 of 10" in output
    assert "start     step 4 of 6" in output
    for config in configs:
        name = config.stem
        np.testing.assert_allclose(losses(tmp_path / name), losses(launched / name), rtol=1e-4)


@pytest.mark.drill
def test_killed_anywhere_and_started_again_it_is_the_same(launched: Path, tmp_path: Path, kills: int) -> None:
    """Two runs, one after the other, of which each start goes on. The making of the examples is killed as well."""
    cache = tmp_path / "cache"
    runs = both(launched, tmp_path, cache_dir=str(cache))
    configs = [str(write(tmp_path, values)) for values in runs.values()]
    seed = int(os.environ.get("LONGSPAN_SEED", "8"))
    moments = random.Random(seed)

    def logged(folder: Path) -> int:
        return sum(launcher.steps_logged(folder / name) for name in runs)

    rows_in_all = logged(launched)
    kills = min(kills, 20)
    for number in range(kills):
        process = launcher.start(CASES, *configs)
        if number == 0:
            launcher.wait_while(lambda: not list(cache.rglob("*.arrow")), process, every=0.001)
        else:
            due = (number + moments.uniform(0, 1)) * rows_in_all / kills
            launcher.wait_while(lambda due=due: logged(tmp_path) < due, process, every=0.001)
        launcher.kill(process)
        launcher.finish(process)
    process = launcher.start(CASES, *configs)
    output = launcher.finish(process)
    assert process.returncode == 0, output
    for name in runs:
        assert last_state(tmp_path / name) == last_state(launched / name)
        assert timeless(tmp_path / name) == timeless(launched / name)


def test_what_is_logged(launched: Path) -> None:
    run = launched / "whole-0"
    assert [row["step"] for row in step_rows(run)] == list(range(1, STEPS + 1))
    rates = [0.0005, 0.001, *(0.001 * (8 - done) / 8 for done in range(1, 9))]
    assert [row["learning_rate"] for row in step_rows(run)] == pytest.approx(rates)
    evaluated = [row for row in rows(run) if "validation_accuracy" in row]
    assert [row["step"] for row in evaluated] == [4, 8, 10]
    assert evaluated[-1]["validation_accuracy"] * 9 == pytest.approx(
        round(evaluated[-1]["validation_accuracy"] * 9)
    )
    output = (launched / "output").read_text()
    assert "30 examples; context in wordpieces: mean" in output
    assert "read in several rows of at most 64 tokens" in output
    assert "accuracy 0." in output


def test_the_update_is_that_of_the_plain_mathematics(place: Path, launched: Path) -> None:
    """Without dropout: the first update, over all examples at once and by torch alone."""
    values = settings(place, place / "model", "plain")
    task = task_of(values)
    for part in task.model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        if hasattr(part, "dropout_p"):
            part.dropout_p = 0.0
    task.model.train()
    chosen = task.arranged(np.arange(8))
    assert sorted(chosen.tolist()) == list(range(8))
    longest = task.train.longest_rows[chosen]
    assert longest.tolist() == sorted(longest)  # of like length together
    summed = 0.0
    for start in range(0, 8, 2):
        batch = task.micro_batch(1, chosen[start : start + 2], np.arange(start, start + 2))
        loss = task.loss(task.model, batch, torch.zeros(2, 2, dtype=torch.long))
        loss.backward()
        summed += loss.item()
    gradients = {name: parameter.grad.clone() for name, parameter in task.model.named_parameters()}
    task.model.zero_grad()
    whole = as_batch([task.train[number] for number in range(8)], task.model.config.pad_token_id)
    loss = task.task.loss(task.model, task.model.states(whole), whole.examples)
    loss.backward()
    assert loss.item() == pytest.approx(summed, rel=1e-5)
    for name, parameter in task.model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)


def test_heads_learn_at_a_rate_of_their_own(place: Path) -> None:
    task = task_of(settings(place, place / "model", "rates"))
    names = {id(parameter): name for name, parameter in task.model.named_parameters()}
    groups = parameter_groups(task.model, task.config.optimizer)
    by_name = {names[id(p)]: group[RATE_SCALE] for group in groups for p in group["params"]}
    assert by_name.keys() == set(names.values())
    assert {scale for name, scale in by_name.items() if name.startswith("classifier.")} == {5.0}
    assert {scale for name, scale in by_name.items() if not name.startswith("classifier.")} == {1.0}


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_first_updates_are_of_these_rates(place: Path, launched: Path, stage: int) -> None:
    """An update of Adam is at most about its rate: after two they are 0.0005 + 0.001, of the head five times that."""
    start = dict(task_of(settings(place, place / "model", "rates")).model.named_parameters())
    after = open_checkpoint(step_folder(launched / f"whole-{stage}", 2)).weights()
    farthest = {True: 0.0, False: 0.0}
    for name, parameter in start.items():
        moved = float((after[name] - parameter.detach()).abs().max())
        farthest[name.startswith("classifier.")] = max(farthest[name.startswith("classifier.")], moved)
    assert farthest[True] == pytest.approx(5 * 0.0015, rel=0.02)
    assert farthest[False] == pytest.approx(0.0015, rel=0.02)


def test_global_projections_start_as_copies_and_are_trained(place: Path, launched: Path) -> None:
    task = task_of(settings(place, place / "model", "copies"))
    tensors = dict(task.model.named_parameters())
    names = [name for name in tensors if "_global." in name]
    assert len(names) == 12
    for name in names:
        torch.testing.assert_close(tensors[name], tensors[name.replace("_global", "")])
    trained = open_checkpoint(step_folder(launched / "whole-0", STEPS)).weights()
    assert all(not torch.equal(trained[name], tensors[name]) for name in names if name.endswith("weight"))
    shared = open_checkpoint(step_folder(launched / "no-projections", STEPS)).weights()
    assert not any("_global." in name for name in shared)


@pytest.mark.parametrize("name", ["whole-0", "no-projections", "roberta"])
def test_transformers_loads_the_export_and_says_the_same(launched: Path, name: str) -> None:
    export = launched / name / "export"
    model, task, wordpieces, description = load_finetuned(export)
    assert description.lengths.tokens == TOKENS
    kind = RobertaForSequenceClassification if name == "roberta" else LongformerForSequenceClassification
    theirs, info = kind.from_pretrained(export, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert theirs.config.id2label == {0: "dull", 1: "fine", 2: "great"}
    text = "a great text"
    inputs = AutoTokenizer.from_pretrained(export)(text, return_tensors="pt")
    entry = next(iter(task.read_own(_own(launched / f"own-{name}.jsonl", [text]))))
    example = task.encode(entry, wordpieces, description.lengths, training=False)
    assert example.rows[0].tolist() == inputs.input_ids[0].tolist()
    with torch.no_grad():
        batch = as_batch([example], model.config.pad_token_id, model.global_attention)
        ours = model.get_submodule("classifier")(torch.cat(model.states(batch)))
        torch.testing.assert_close(ours, theirs.eval()(**inputs).logits, rtol=1e-4, atol=1e-5)


def _own(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_own_documents_are_predicted(
    launched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = _own(tmp_path / "own.jsonl", ["great " * 100, "dull", ""])
    export, output = launched / "whole-0" / "export", tmp_path / "predictions.jsonl"
    assert predict(["--model", str(export), "--data", str(own), "--output", str(output)]) == 0
    assert capsys.readouterr() == ("", "")  # what is longer than a row is read in several
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in found] == ["0", "1", "2"]
    assert {row["label"] for row in found} <= {"dull", "fine", "great"}


def test_what_is_cut_to_be_predicted_is_told(
    launched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tmp_path / "export"
    shutil.copytree(launched / "whole-0" / "export", export)
    description = json.loads((export / "finetuned.json").read_text())
    (export / "finetuned.json").write_text(json.dumps(description | {"longer": "truncate"}))
    own = _own(tmp_path / "own.jsonl", ["great " * 100, "dull"])
    assert predict(["--model", str(export), "--data", str(own), "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == "1 of 2 were cut at 64 tokens\n"


def test_a_run_predicts_its_validation_split_as_it_was_evaluated(
    launched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = launched / "whole-0"
    arguments = ["--config", str(run / "config.yaml"), "--predict", "validation", "--score"]
    assert finetune([*arguments, "--output", str(tmp_path / "out.jsonl")]) == 0
    figures = json.loads(capsys.readouterr().out)
    evaluated = [row for row in rows(run) if "validation_accuracy" in row][-1]
    assert {f"validation_{name}": value for name, value in figures.items()}.items() <= evaluated.items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data", "bad.jsonl"], "bad.jsonl"),
        (["--model", "MODEL", "--data", "own.jsonl"], "found no finetuned.json"),
        (
            ["--model", "DAMAGED", "--data", "own.jsonl"],
            r"finetuned.json: task.name: found 'chess', expected one of",
        ),
        (["--model", "UNKNOWN", "--data", "own.jsonl"], r"finetuned.json: task: found moves"),
    ],
)
def test_what_cannot_be_predicted_is_named(
    launched: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    _own(tmp_path / "own.jsonl", ["x"])
    (tmp_path / "bad.jsonl").write_text("{")
    export = launched / "whole-0" / "export"
    for name, change in (("DAMAGED", {"name": "chess"}), ("UNKNOWN", {"moves": 3})):
        shutil.copytree(export, tmp_path / name)
        description = json.loads((export / "finetuned.json").read_text())
        description["task"] |= change
        (tmp_path / name / "finetuned.json").write_text(json.dumps(description))
    given = arguments if "--model" in arguments else ["--model", str(export), *arguments]
    given = [str(launched / "model") if word == "MODEL" else word for word in given]
    assert predict([*given, "--output", "out.jsonl"]) == 2
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert re.search(message, shown), shown
    assert not (tmp_path / "out.jsonl").exists()


def test_other_examples_settings_or_weights_are_another_run(launched: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(step_folder(launched / "whole-0", 4))
    values = settings(launched, launched / "model", "whole-0")
    check_same_run(checkpoint, task_of(values).facts())
    write_rows(tmp_path / "train.jsonl", 31)
    changed = values | {
        "task": values["task"] | {"train": str(tmp_path / "train.jsonl")},
        "longer": "truncate",
    }
    with pytest.raises(InputError, match=r"(?s)longer: found 'truncate'.*examples: found 31, expected 30"):
        check_same_run(checkpoint, task_of(changed).facts())
    write_small_model(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="model's weights: found"):
        check_same_run(checkpoint, task_of(values | {"model": str(tmp_path / "other")}).facts())
    # The same rows elsewhere are the same run.
    shutil.copy(launched / "train.jsonl", tmp_path / "copy.jsonl")
    moved = values | {"task": values["task"] | {"train": str(tmp_path / "copy.jsonl")}}
    check_same_run(checkpoint, task_of(moved).facts())


def test_processes_with_other_examples_are_refused(launched: Path, tmp_path: Path) -> None:
    """As on machines that each have a copy of the files, one of them an older one."""
    values = settings(launched, launched / "model", "whole-0")
    first = task_of(values).facts()
    check_same_everywhere([first, json.loads(json.dumps(first))])
    write_rows(tmp_path / "train.jsonl", 31)
    other = task_of(values | {"task": values["task"] | {"train": str(tmp_path / "train.jsonl")}}).facts()
    with pytest.raises(InputError, match=r"process 2 has other .*\n  examples: found 31, expected 30\n"):
        check_same_everywhere([first, first, other])


def test_a_finetuned_model_starts_with_its_own_head_and_projections(launched: Path, tmp_path: Path) -> None:
    export = launched / "whole-0" / "export"
    task = task_of(settings(launched, export, "again"))
    assert "head: the stored one" in task.made_of
    assert "global projections: the stored ones" in task.made_of
    trained = open_checkpoint(step_folder(launched / "whole-0", STEPS)).weights()
    for name, parameter in task.model.named_parameters():
        torch.testing.assert_close(parameter, trained[name], msg=name)
    drawn = task_of(settings(launched, export, "again", head="new", global_projections="copied"))
    assert any(line.startswith("head: new") for line in drawn.made_of)
    with pytest.raises(InputError, match=r"head: .*model does not have the head of classification"):
        task_of(settings(launched, launched / "model", "again", head="stored"))


def test_a_head_of_other_labels_is_not_taken(launched: Path, tmp_path: Path) -> None:
    values = settings(launched, launched / "whole-0" / "export", "two")
    kept = [line for line in (launched / "train.jsonl").read_text().splitlines() if '"great"' not in line]
    (tmp_path / "two.jsonl").write_text("\n".join(kept) + "\n")
    values["task"] = {"name": "classification", "train": str(tmp_path / "two.jsonl")}
    task = task_of(values)
    assert any("out_proj.weight is [3, 32], expected [2, 32]" in line for line in task.made_of)


def test_without_global_attention_no_token_is_global(place: Path) -> None:
    task = task_of(settings(place, place / "model", "none", global_attention=False))
    batch = task.micro_batch(1, np.arange(2), np.arange(2))
    assert batch.global_mask is None
    assert not any("_global." in name for name, _ in task.model.named_parameters())


def test_a_dry_run_tells_and_leaves_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(place, settings(place, place / "model", "dry"))
    assert finetune(["--config", str(path), "--dry-run", "--longer", "truncate"]) == 0
    shown = capsys.readouterr().out
    for part in ("cut at 64 tokens", "(table 6)", "steps     10 = 2.67 epochs of classification"):
        assert part in shown
    assert not (place / "dry").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_length": 4096}, "sequence_length: found 4096, expected at most the 64 that"),
        ({"batch_size": 5}, "batch_size: found 5, expected a multiple of micro_batch_size 2"),
        ({"task": {"name": "chess"}}, "task: found 'chess'|task: .*expected"),
        ({"task": {"name": "classification"}}, "task.train: not there, and it has no default"),
        ({"task": {"name": "classification", "train": "x.jsonl", "moves": 1}}, "task.moves: unknown key"),
        ({"optimizer": {"warmup_steps": 99}}, "optimizer.warmup_steps: found 99, expected at most"),
        ({"model": "nowhere/at/all"}, "nowhere/at/all: no such folder"),
    ],
)
def test_what_does_not_fit_is_named(
    place: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    path = place / "misfit.yaml"
    path.write_text(yaml.safe_dump(settings(place, place / "model", "misfit") | changes))
    assert finetune(["--config", str(path)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (place / "misfit").exists()


def test_help_lists_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        finetune(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for line in (
        "task, where task.name is hyperpartisan:",
        "--task.articles",
        "--optimizer.task_learning_rate",
    ):
        assert line in shown


def test_transformers_own_checkpoint_is_the_start(place: Path, tmp_path: Path) -> None:
    """A LongformerForSequenceClassification's folder: its head and its global projections are taken as they are."""
    stored = read_model(place / "model").config
    theirs = LongformerForSequenceClassification.from_pretrained(place / "model", num_labels=3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    theirs.save_pretrained(tmp_path / "theirs")
    AutoTokenizer.from_pretrained(place / "model").save_pretrained(tmp_path / "theirs")
    task = task_of(settings(place, tmp_path / "theirs", "theirs"))
    assert isinstance(task.model, TaskModel)
    assert task.made_of == ["head: the stored one", "global projections: the stored ones"]
    assert task.model.config.num_hidden_layers == stored.num_hidden_layers
    task.model.eval()
    example = task.train[0]
    batch = as_batch([example], 1)
    with torch.no_grad():
        ours = task.model.get_submodule("classifier")(torch.cat(task.model.states(batch))[:1])
        ids = torch.from_numpy(example.rows[0].astype(np.int64))[None]
        torch.testing.assert_close(ours, theirs.eval()(ids).logits, rtol=1e-4, atol=1e-5)
