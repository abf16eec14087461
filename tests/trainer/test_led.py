"""BART to LED: what transformers loads, and what it computes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, BartModel, LEDForConditionalGeneration

from demo.sources import train_tokenizer
from tests.corpora import made_up_documents
from trainer.convert import main as convert
from trainer.model.json_files import read_json

TOKENS, VOCABULARY = 24, 300


def bart(folder: Path, **changes: Any) -> BartForConditionalGeneration:
    """A BART with other layers in its two halves, in a folder; large weights, so that outputs differ."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 40,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": TOKENS,
        "init_std": 0.3,
    }
    model = BartForConditionalGeneration(BartConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.final_logits_bias.normal_()
    model.save_pretrained(folder)
    train_tokenizer(made_up_documents(10), VOCABULARY, folder / "tokenizer.json")
    return model


def converted(folder: Path, *options: str) -> LEDForConditionalGeneration:
    arguments = ["--from", str(folder / "bart"), "--to", str(folder / "led"), *options]
    assert convert(arguments) == 0
    model, info = LEDForConditionalGeneration.from_pretrained(folder / "led", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def test_where_the_window_covers_the_text_it_is_bart(tmp_path: Path) -> None:
    theirs = bart(tmp_path / "bart")
    led = converted(tmp_path, "--max-positions", "100", "--window", "64")
    ids = torch.randint(5, VOCABULARY, (3, TOKENS))
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    answers = torch.randint(5, VOCABULARY, (3, 7))
    for first in (0, 1):  # with a global token, whose projections are copies, and without
        is_global = torch.zeros_like(ids)
        is_global[:, 0] = first
        with torch.no_grad():
            expected = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=answers).logits
            found = led(
                input_ids=ids, attention_mask=mask, decoder_input_ids=answers, global_attention_mask=is_global
            ).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    same = {"max_length": 12, "num_beams": 3, "do_sample": False}
    assert torch.equal(
        led.generate(ids, attention_mask=mask, **same), theirs.generate(ids, attention_mask=mask, **same)
    )


def test_positions_are_tiled_and_the_unused_rows_are_gone(tmp_path: Path) -> None:
    theirs = bart(tmp_path / "bart")
    led = converted(tmp_path, "--max-positions", str(2 * TOKENS + 5), "--window", "4", "8")
    learned = theirs.model.encoder.embed_positions.weight[2:]
    found = led.led.encoder.embed_positions.weight
    assert torch.equal(found, torch.cat([learned, learned, learned[:5]]))
    assert torch.equal(
        led.led.decoder.embed_positions.weight, theirs.model.decoder.embed_positions.weight[2:]
    )
    assert led.config.attention_window == [4, 8]
    attention = led.led.encoder.layers[1].self_attn.longformer_self_attn
    for part in ("query", "key", "value"):
        assert torch.equal(getattr(attention, part).weight, getattr(attention, f"{part}_global").weight)


def test_the_paper_s_sizes_are_the_default(tmp_path: Path) -> None:
    bart(tmp_path / "bart")
    led = converted(tmp_path)
    assert led.config.max_encoder_position_embeddings == 16_384
    assert led.config.attention_window == [1024, 1024]
    assert json.loads((tmp_path / "led" / "tokenizer_config.json").read_text())["model_max_length"] == 16_384
    assert "16,384 and 24" in (tmp_path / "led" / "README.md").read_text()


def test_generation_settings_and_a_bare_model_s_names_are_kept(tmp_path: Path) -> None:
    theirs = bart(tmp_path / "bart")
    settings = read_json(tmp_path / "bart" / "generation_config.json") | {
        "num_beams": 4,
        "length_penalty": 2.0,
    }
    (tmp_path / "bart" / "generation_config.json").write_text(json.dumps(settings))
    assert converted(tmp_path).generation_config.num_beams == 4
    bare = BartModel(theirs.config)
    bare.load_state_dict(theirs.model.state_dict())
    bare.save_pretrained(tmp_path / "bart")
    led = converted(tmp_path)
    assert not led.final_logits_bias.any()
    assert torch.equal(led.led.shared.weight, theirs.model.shared.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_embedding": True}, "scale_embedding: found true"),
        ({"activation_function": "relu"}, "activation_function: found 'relu'"),
        ({"encoder_layers": 3}, "model.encoder.layers.2.self_attn.q_proj.weight: not there"),
        ({"d_model": 1 << 40}, "d_model: found"),
        (
            {"encoder_attention_heads": 5},
            "encoder_attention_heads: found 5, expected a divisor of d_model 16",
        ),
        ({"pad_token_id": 300}, "pad_token_id: found 300, expected less than vocab_size 300"),
        ({"decoder_start_token_id": 300}, "decoder_start_token_id: found 300, expected less than"),
        ({"max_position_embeddings": 9}, "embed_positions.weight: found [26, 16], expected [11, 16]"),
        (
            {"decoder_layers": 2},
            "model.decoder.layers.2.encoder_attn.k_proj.bias: found, and a BART has no such weights",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    bart(tmp_path / "bart")
    path = tmp_path / "bart" / "config.json"
    path.write_text(json.dumps(read_json(path) | changes))
    assert convert(["--from", str(tmp_path / "bart"), "--to", str(tmp_path / "led")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "led").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-positions", "10"], "--max-positions: found 10, expected at least the model's 24"),
        (["--window", "4", "4", "4"], "--window: found 3 widths, expected one, or one for each of 2 layers"),
        (["--window", "5"], "--window: found 5, expected an even number"),
        (["--as", "roberta", "--new-head"], "--as and --new-head: found, but"),
    ],
)
def test_options_that_do_not_fit_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    bart(tmp_path / "bart")
    assert convert(["--from", str(tmp_path / "bart"), "--to", str(tmp_path / "led"), *options]) == 2
    assert message in capsys.readouterr().err


def test_who_trains_another_model_does_not_wait_for_transformers() -> None:
    """Its models take seconds to import, in each process of a launch."""
    program = (
        "import sys, trainer.pretrain, trainer.finetune, trainer.export; print('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
