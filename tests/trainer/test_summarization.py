"""Summarisation by LED: input, loss and generation beside transformers' own, the command, and predictions."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoTokenizer, LEDForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from tests.trainer.test_led import VOCABULARY, bart
from trainer.batches.examples import as_batch
from trainer.convert import convert
from trainer.engine.checkpoint import save_checkpoint
from trainer.engine.config import InputError
from trainer.engine.led_cost import led_flops
from trainer.engine.training import check_same_everywhere
from trainer.export import main as export_command
from trainer.finetune import FinetunedTask, prepare
from trainer.model.led_model import LedModel
from trainer.predict import load_finetuned
from trainer.predict import main as predict
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


def test_the_plan_is_of_the_decoder_too(place: Path) -> None:
    task = task_of(place)
    assert isinstance(task.model, LedModel)
    lengths = [(example.tokens, len(example.features["summary"])) for example in task.train]
    assert task.phases.phases[0].flops == led_flops(task.model.sizes, lengths) * 4 // 8
    said = task.describe()
    assert "model     LED, 2 + 3 layers × 16, window 8, " in said
    assert "of them the decoder's)" in said
    assert "MiB logits" in said
    assert "heads" not in said


@pytest.fixture(scope="session")
def export(place: Path) -> Path:
    """Of the model as it is: nothing of it is trained."""
    task = task_of(place)
    weights = {name: parameter.detach() for name, parameter in task.model.named_parameters()}
    state = dict.fromkeys(("weights", "exp_avg", "exp_avg_sq"), weights)
    saved = save_checkpoint(place / "checkpoints", 3, state, task.facts(), task.files(3))
    assert export_command(["--checkpoint", str(saved), "--to", str(place / "export")]) == 0
    return place / "export"


def test_transformers_says_of_an_export_what_we_do(place: Path, export: Path) -> None:
    """Logits of transformers' own LED are ours, and so are summaries, by the search that its files describe."""
    theirs, info = LEDForConditionalGeneration.from_pretrained(export, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    model, task, wordpieces, description = load_finetuned(export)
    assert isinstance(model, LedModel)
    tokenizer = AutoTokenizer.from_pretrained(export)
    assert tokenizer.model_max_length == 96
    answers = torch.randint(5, VOCABULARY, (1, 6))
    for document in task.read_own(place / "validation.jsonl"):
        example = task.encode(document, wordpieces, description.lengths, training=False)
        inputs = tokenizer(document.text, truncation=True, max_length=64, return_tensors="pt")
        assert example.rows[0].tolist() == inputs.input_ids[0].tolist()
        is_global = torch.zeros_like(inputs.input_ids)
        is_global[:, 0] = 1
        with torch.no_grad():
            batch = as_batch([example], 1)
            states = model.states(batch)
            hidden = BaseModelOutput(last_hidden_state=states[0][None])
            ours = model.seq2seq(encoder_outputs=hidden, decoder_input_ids=answers).logits
            expected = theirs.eval()(
                **inputs, global_attention_mask=is_global, decoder_input_ids=answers
            ).logits
            found = theirs.generate(**inputs, global_attention_mask=is_global)
            said = task.predict(model, states, [example])
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        assert said == [tokenizer.decode(found[0], skip_special_tokens=True).strip()]


def test_an_export_and_transformers_own_folder_are_starts(place: Path, export: Path, tmp_path: Path) -> None:
    LEDForConditionalGeneration.from_pretrained(place / "led").save_pretrained(tmp_path)
    shutil.copy(place / "led" / "tokenizer.json", tmp_path)
    expected = dict(task_of(place).model.named_parameters())
    for folder in (export, tmp_path):
        found = dict(task_of(place, model=str(folder)).model.named_parameters())
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_own_documents_are_summarised_and_scored(
    place: Path, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    arguments = ["--model", str(export), "--data", str(place / "validation.jsonl"), "--output", str(output)]
    assert predict([*arguments, "--score"]) == 0
    task = task_of(place)
    task.model.eval()
    sums = task.evaluate(1, slice(None), lambda: None)
    assert sums is not None
    figures = {f"validation_{name}": score for name, score in json.loads(capsys.readouterr().out).items()}
    assert figures == pytest.approx(task.evaluated(sums))
    summaries = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in summaries] == ["0", "1", "2"]
    assert predict([*arguments, "--task.longest_summary", "4"]) == 0
    short = [json.loads(line)["summary"] for line in output.read_text().splitlines()]
    assert all(len(one) < len(other["summary"]) for one, other in zip(short, summaries, strict=True))
    write_rows(tmp_path / "own.jsonl", [{"text": "abc " * 99}, {"text": ""}])
    arguments[3] = str(tmp_path / "own.jsonl")
    assert predict(arguments) == 0
    assert "1 of 2 were cut at 64 tokens" in capsys.readouterr().err
    assert predict([*arguments, "--score"]) == 2
    assert "found no answers to score by" in capsys.readouterr().err


def test_the_card_s_program_runs_as_it_is_printed(export: Path) -> None:
    card = (export / "README.md").read_text()
    assert "# LED finetuned on summarization" in card
    assert "| decoder layers, heads | 3, 2 |" in card
    assert ModelCard(card).data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "summarization",
        "tags": ["led", "summarization", "longspan"],
    }
    [program] = re.findall(r"^```python\n(.*?)\n```$", card, flags=re.DOTALL | re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=export, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forced_bos_token_id": 300}, "forced_bos_token_id: found 300, expected less than the 300"),
        ({"min_length": "long"}, "min_length: found 'long', expected integer"),
        ({"early_stopping": 7}, "early_stopping"),
    ],
)
def test_generation_settings_that_do_not_fit_are_named(
    place: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    shutil.copytree(place / "led", tmp_path / "led")
    (tmp_path / "led" / "generation_config.json").write_text(json.dumps(changes))
    with pytest.raises(InputError, match=rf"generation_config\.json: {message}"):
        task_of(place, model=str(tmp_path / "led"))


def test_generation_settings_that_are_the_task_s_to_say_are_not_taken(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "led", tmp_path / "led")
    settings = {"num_return_sequences": 2, "return_dict_in_generate": True, "max_length": 3, "min_length": 5}
    (tmp_path / "led" / "generation_config.json").write_text(json.dumps(settings))
    task = task_of(place, model=str(tmp_path / "led"))
    task.model.eval()
    with torch.no_grad():
        said = task.task.predict(task.model, task.model.states(as_batch(task.train[:2], 1)), task.train[:2])
    assert len(said) == 2
    kept = json.loads(task.files(0)["generation_config.json"])
    assert kept["min_length"] == 5
    assert kept["max_new_tokens"] == 12
    assert not kept.keys() & {"num_return_sequences", "return_dict_in_generate", "max_length"}


def test_pubmed_s_layout_is_read(place: Path, tmp_path: Path) -> None:
    rows = [{"article_id": "a", "article_text": ["One .", "Two ."], "abstract_text": ["<S> Both . </S>"]}]
    write_rows(tmp_path / "rows.jsonl", rows)
    (document,) = task_of(place).task.read_own(tmp_path / "rows.jsonl")
    assert (document.id, document.text, document.summary) == ("a", "One .\nTwo .", "Both .")
    assert VOCABULARY == 300
