"""What summarisation refuses of a LED's folder, leaves out of its rows, and scores."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file

from tests.trainer.test_summarization import SETTINGS, place, task_of, write_rows  # noqa: F401
from trainer.engine.config import InputError
from trainer.model.led_model import load_led
from trainer.tasks.summarization import ROUGE, rouge


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad_token_id": 300}, "pad_token_id: found 300, expected less than vocab_size 300"),
        ({"eos_token_id": 1 << 20}, "eos_token_id: found 1048576, expected less than"),
        (
            {"decoder_attention_heads": 5},
            "decoder_attention_heads: found 5, expected a divisor of d_model 16",
        ),
        (
            {"activation_function": "none"},
            "activation_function: found 'none', expected one that transformers has",
        ),
        (
            {"attention_window": [8]},
            r"attention_window: found \[8\], expected an even width, or one for each of 2",
        ),
        ({"attention_window": 7}, "attention_window: found 7, expected an even width"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_named(
    place: Path,  # noqa: F811
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
) -> None:
    folder = shutil.copytree(place / "led", tmp_path / "led")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        load_led(folder)


@pytest.mark.parametrize("name", ["lm_head.weight", "led.decoder.embed_tokens.weight"])
def test_weights_that_are_not_tied_are_refused(place: Path, tmp_path: Path, name: str) -> None:  # noqa: F811
    """They would be lost: the model has one table of words."""
    folder = shutil.copytree(place / "led", tmp_path / "led")
    tensors = load_file(folder / "model.safetensors")
    for other in (tensors["led.shared.weight"].clone(), tensors["led.shared.weight"] + 1):
        save_file({**tensors, name: other}, folder / "model.safetensors")
        if torch.equal(other, tensors["led.shared.weight"]):
            assert load_led(folder)
        else:
            with pytest.raises(
                InputError, match=f"{name} is not led.shared.weight, expected them to be tied"
            ):
                load_led(folder)


def test_a_summary_without_text_is_none(place: Path, tmp_path: Path) -> None:  # noqa: F811
    rows = [{"article": "abc dem", "abstract": said} for said in ("abc", "", " ", [], None)]
    write_rows(tmp_path / "rows.jsonl", rows)
    task = task_of(place, task={"name": "summarization", "train": str(tmp_path / "rows.jsonl"), **SETTINGS})
    assert len(task.train) == 1
    (example,) = task.train
    empty = dataclasses.replace(example, about=json.dumps({"summary": " "}))
    assert task.task.sums([example, empty], ["abc", "abc"]) == [1, 0, 1, 1]  # one word has no 2-grams


@given(*[st.text("ab cdé1.\n", max_size=30)] * 2)
def test_rouge_is_the_package_s(summary: str, prediction: str) -> None:
    if 2 * summary.count("é") <= sum(letter.isalnum() for letter in summary):
        scores = RougeScorer(ROUGE, use_stemmer=True).score(summary, prediction)
        assert rouge(summary, prediction) == [scores[name].fmeasure for name in ROUGE]


def test_rouge_reads_other_scripts() -> None:
    """Of which the package's words keep nothing."""
    assert rouge("Кошка спит дома", "кошка спит дома.") == [1, 1, 1]
    assert rouge("Кошка спит дома", "кошка ест дома")[:2] == pytest.approx([2 / 3, 0])
    assert rouge("我喜欢猫", "我喜欢狗")[:2] == pytest.approx([3 / 4, 2 / 3])
    assert rouge("हिन्दी भाषा", "हिन्दी")[0] == pytest.approx(2 / 3)
    assert rouge("Кошка", "") == [0, 0, 0]
