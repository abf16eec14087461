"""Every family that conversion reads: the same function before and after, by transformers' own models."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    LongformerConfig,
    LongformerForMaskedLM,
    LongformerModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaModel,
    TokenizersBackend,
)

from pipeline.shards import read_manifest
from tests.trainer.launcher import run_config
from tests.trainer.models import (
    FAMILIES,
    VOCABULARY,
    family_model,
    padded_batch,
    roberta_folder,
    unigram_tokenizer,
    wordpiece_tokenizer,
)
from trainer.convert import convert, main
from trainer.engine.config import InputError, Pretraining, load_config
from trainer.model.configuration import StoredConfig
from trainer.model.folder import load_encoder, load_model, read_config
from trainer.pretrain import prepare

POSITIONS = "longformer.embeddings.position_embeddings.weight"


def logits(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """At the real tokens: what a model gives for padding means nothing."""
    with torch.no_grad():
        found = model.eval()(ids, attention_mask=mask)
    return (found if isinstance(found, torch.Tensor) else found.logits)[mask.bool()]


@settings(max_examples=8, deadline=None)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    pad=st.integers(0, 5),
    positions=st.integers(3, 41),
    more=st.integers(0, 90),
    data=st.data(),
)
@example(family="bert", pad=0, positions=33, more=31, data=None)
@example(family="bert", pad=3, positions=17, more=0, data=None)
@example(family="camembert", pad=5, positions=20, more=1, data=None)
def test_where_the_windows_cover_the_text_the_logits_are_the_originals(
    family: str, pad: int, positions: int, more: int, data: st.DataObject | None
) -> None:
    tokens = positions if data is None else data.draw(st.integers(2, positions), label="tokens")
    original = family_model(family, positions, seed=positions, pad=pad)
    ids, mask = padded_batch(2, tokens, pad=pad)
    with TemporaryDirectory() as folder:
        source, long, short = (Path(folder) / name for name in ("source", "long", "short"))
        original.save_pretrained(source)
        convert(source, long, tokens=positions + more, window=2 * tokens)
        convert(long, short)
        expected = logits(original, ids, mask)
        assert expected.abs().max() > 1
        close = {"atol": 2e-4, "rtol": 1e-4}
        torch.testing.assert_close(logits(load_model(source), ids, mask), expected, **close)
        torch.testing.assert_close(logits(load_model(long), ids, mask), expected, **close)
        theirs, info = LongformerForMaskedLM.from_pretrained(long, output_loading_info=True)
        assert not any(info.values())
        torch.testing.assert_close(logits(theirs, ids, mask), expected, **close)
        # And back: a RoBERTa whatever it was, with the positions it had.
        again, info = RobertaForMaskedLM.from_pretrained(short, output_loading_info=True)
        assert not any(info.values())
        torch.testing.assert_close(logits(again, ids, mask), expected, **close)
        assert read_config(short).max_tokens == positions


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rows_below_the_first_position_are_kept(family: str, tmp_path: Path) -> None:
    original = family_model(family, 7, pad=3)
    original.save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "long", tokens=17, window=8)
    table = original.base_model.embeddings.position_embeddings.weight.detach()
    tiled = load_file(tmp_path / "long" / "model.safetensors")[POSITIONS]
    below, learned = (torch.zeros(4, 48), table) if family == "bert" else (table[:4], table[4:])
    assert len(tiled) == 4 + 17
    assert torch.equal(tiled[:4], below)
    assert all(torch.equal(tiled[4 + row], learned[row % 7]) for row in range(17))


def test_windows_are_given_for_all_layers_or_for_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = roberta_folder(tmp_path / "source", tokens=64, num_hidden_layers=3)
    flags = ["--from", str(source), "--max-positions", "64", "--window"]
    assert main([*flags, "8", "16", "32", "--to", str(tmp_path / "growing")]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    theirs = LongformerForMaskedLM.from_pretrained(tmp_path / "growing")
    assert theirs.config.attention_window == [8, 16, 32]
    ids, mask = padded_batch(2, 64)
    found = logits(load_model(tmp_path / "growing"), ids, mask)
    torch.testing.assert_close(found, logits(theirs, ids, mask), atol=2e-4, rtol=1e-4)
    assert main([*flags, "16", "--to", str(tmp_path / "same")]) == 0
    assert read_config(tmp_path / "same").attention_window == [16, 16, 16]
    assert not torch.allclose(logits(load_model(tmp_path / "same"), ids, mask), found, atol=1e-2)

    capsys.readouterr()
    assert main([*flags, "8", "16", "--to", str(tmp_path / "two")]) == 2
    assert "--window: found 2 widths, expected one, or one for each of 3 layers" in capsys.readouterr().err
    assert main([*flags, "8", "12", "16", "--to", str(tmp_path / "uneven")]) == 0
    assert "16 is no multiple of 12" in capsys.readouterr().out


def test_a_longformer_gets_more_positions_and_stays_one(tmp_path: Path) -> None:
    source = roberta_folder(tmp_path / "source", tokens=16)
    convert(source, tmp_path / "long", tokens=32, window=8)
    weights = load_file(tmp_path / "long" / "model.safetensors")
    name = "longformer.encoder.layer.0.attention.self.query_global.weight"
    weights[name] += 1  # as a finetuned one has them
    save_file(weights, tmp_path / "long" / "model.safetensors")
    convert(tmp_path / "long", tmp_path / "longer", tokens=72, into="longformer")
    longer = load_file(tmp_path / "longer" / "model.safetensors")
    assert torch.equal(longer[name], weights[name])
    assert torch.equal(longer[POSITIONS][2 + 64 :], weights[POSITIONS][2:10])
    assert read_config(tmp_path / "longer").attention_window == [8, 8]
    assert read_config(tmp_path / "longer").max_tokens == 72


def released(
    folder: Path,
    prefix: str,
    vocab_size: int = VOCABULARY,
    max_position_embeddings: int = 66,
    **settings: object,
) -> LongformerForMaskedLM:
    """A folder laid out as allenai/longformer-base-4096: old names, one pickled file, keys of its own."""
    torch.manual_seed(3)
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 96,
        "max_position_embeddings": max_position_embeddings,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.2,
        "attention_window": [16, 16],
    }
    model = LongformerForMaskedLM(LongformerConfig(**sizes)).eval()
    weights = {
        name.replace("longformer.", prefix, 1): tensor.clone() for name, tensor in model.state_dict().items()
    }
    weights[f"{prefix}embeddings.position_ids"] = torch.arange(max_position_embeddings)[None]
    weights[f"{prefix}pooler.dense.weight"] = torch.zeros(48, 48)
    weights[f"{prefix}pooler.dense.bias"] = torch.zeros(48)
    folder.mkdir()
    torch.save(weights, folder / "pytorch_model.bin")
    kept = {
        "model_type": "longformer",
        "attention_mode": "longformer",
        "gradient_checkpointing": False,
        "ignore_attention_mask": False,
        "hidden_act": "gelu",
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "sep_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps({**sizes, **kept, **settings}))
    return model


@pytest.mark.parametrize(
    ("prefix", "settings_"),
    [
        ("longformer.", {}),
        # The notebook's own, which left the type of what it had converted.
        ("roberta.", {"model_type": "roberta"}),
        # allenai's own code counts the window of one side.
        ("roberta.", {"model_type": "roberta", "attention_mode": "sliding_chunks", "attention_window": [8, 8],
                      "attention_dilation": [1, 1], "autoregressive": False}),
    ],
)  # fmt: skip
def test_a_released_longformer_is_read_as_it_lies_there(
    tmp_path: Path, prefix: str, settings_: dict[str, object]
) -> None:
    theirs = released(tmp_path / "released", prefix, **settings_)
    ids, mask = padded_batch(2, 60)
    expected = logits(theirs, ids, mask)
    ours = load_model(tmp_path / "released")
    assert ours.config.architecture == "longformer"
    torch.testing.assert_close(logits(ours, ids, mask), expected, atol=2e-4, rtol=1e-4)
    convert(tmp_path / "released", tmp_path / "again", into="longformer", tokens=64)
    loaded, info = LongformerForMaskedLM.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(logits(loaded, ids, mask), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("prefix", ["longformer.", "roberta."])
def test_pretraining_continues_a_released_longformer(prefix: str, corpus: Path, tmp_path: Path) -> None:
    """By its folder, as it lies there, with the tokenizer that made the corpus."""
    folder = tmp_path / "released"
    theirs = released(folder, prefix, vocab_size=300, max_position_embeddings=130)
    shutil.copy(corpus / "tokenizer.json", folder)
    task = prepare(load_config(run_config(tmp_path, corpus, "run", model=str(folder)), [], Pretraining))
    batch = task.micro_batch(1, np.array([0]), np.array([0]))
    with torch.no_grad():
        found = task.model.eval()(batch.input_ids, batch.places)
        expected = theirs(batch.input_ids).logits.gather(1, batch.places[..., None].expand(-1, -1, 300))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    # What its checkpoints will carry for the card.
    about = json.loads(task.files(1)["about.json"])
    assert about["corpus"]["fingerprint"] == read_manifest(corpus)["fingerprint"]
    assert about["course"] == []

    # An encoder alone is refused, with what to do; so is a tokenizer of a kind that makes no corpus.
    weights = torch.load(folder / "pytorch_model.bin")
    body = {name: tensor for name, tensor in weights.items() if not name.startswith("lm_head.")}
    torch.save(body, folder / "pytorch_model.bin")
    config = load_config(run_config(tmp_path, corpus, "run", model=str(folder)), [], Pretraining)
    with pytest.raises(InputError, match=r"python -m trainer.convert --new-head"):
        prepare(config)
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(InputError, match=r"neither tokenizer.json nor vocab.json and merges.txt"):
        prepare(config)


def test_an_encoder_without_a_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    original = BertModel(
        BertConfig(**sizes, intermediate_size=96, max_position_embeddings=20, initializer_range=0.2)
    ).eval()
    original.save_pretrained(tmp_path / "source")
    flags = ["--from", str(tmp_path / "source"), "--max-positions", "50", "--window", "40"]
    assert main([*flags, "--to", str(tmp_path / "long")]) == 0
    assert "no masked-language-model head (lm_head) there: wrote an encoder" in capsys.readouterr().out
    ids, mask = padded_batch(2, 20, pad=0)
    with torch.no_grad():
        expected = original(ids, attention_mask=mask)
        theirs, info = LongformerModel.from_pretrained(tmp_path / "long", output_loading_info=True)
        assert not any(info.values())
        found = theirs.eval()(ids, attention_mask=mask)
        ours = load_encoder(tmp_path / "long").eval()(ids, mask)
    real = mask.bool()
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(found.last_hidden_state[real], expected.last_hidden_state[real], **close)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, **close)
    torch.testing.assert_close(ours[real], expected.last_hidden_state[real], **close)
    with pytest.raises(InputError, match=r"without a masked-language-model head .* --new-head"):
        load_model(tmp_path / "long")

    assert main([*flags, "--to", str(tmp_path / "headed"), "--new-head"]) == 0
    _, info = LongformerForMaskedLM.from_pretrained(tmp_path / "headed", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(load_encoder(tmp_path / "headed").eval()(ids, mask), ours)
    model = load_model(tmp_path / "headed")
    assert float(model.lm_head.dense.weight.detach().std()) == pytest.approx(0.2, rel=0.1)
    assert not model.lm_head.bias.any()
    assert main([*flags[:1], str(tmp_path / "headed"), *flags[2:], "--to", str(tmp_path / "no"), "--as",
                 "longformer", "--new-head"]) == 2  # fmt: skip
    assert "--new-head: found a head in" in capsys.readouterr().err


def test_another_head_is_left_out_and_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = RobertaConfig(vocab_size=VOCABULARY, hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=8, max_position_embeddings=12)  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(tmp_path / "source")
    assert main(["--from", str(tmp_path / "source"), "--to", str(tmp_path / "long"), "--window", "8"]) == 0
    assert "left out, as no part of the encoder or its masked-language model: classifier" in (
        capsys.readouterr().out
    )


def test_names_of_older_files(tmp_path: Path) -> None:
    """LayerNorm's gamma and beta, as converted from TensorFlow; no prefix, as RobertaModel alone saves."""
    source = roberta_folder(tmp_path / "source", tokens=16)
    weights = load_file(source / "model.safetensors")
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in weights.items()
    }
    assert older.keys() != weights.keys()
    save_file(older, source / "model.safetensors")
    ids, mask = padded_batch(2, 16)
    changed = logits(load_model(source), ids, mask)
    save_file(weights, source / "model.safetensors")
    assert torch.equal(changed, logits(load_model(source), ids, mask))

    RobertaModel.from_pretrained(source).save_pretrained(tmp_path / "bare")
    assert "embeddings.word_embeddings.weight" in load_file(tmp_path / "bare" / "model.safetensors")
    bare, whole = load_encoder(tmp_path / "bare").eval(), load_encoder(source).eval()
    assert torch.equal(bare(ids, mask), whole(ids, mask))


def test_the_decoder_may_be_all_that_is_stored_of_tied_weights(tmp_path: Path) -> None:
    source = roberta_folder(tmp_path / "source", tokens=16)
    ids, mask = padded_batch(2, 16)
    expected = logits(load_model(source), ids, mask)
    weights = load_file(source / "model.safetensors")
    weights["lm_head.decoder.weight"] = weights.pop("roberta.embeddings.word_embeddings.weight")
    weights["lm_head.decoder.bias"] = weights.pop("lm_head.bias")
    save_file(weights, source / "model.safetensors")
    assert torch.equal(logits(load_model(source), ids, mask), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_types_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    source = roberta_folder(tmp_path / "source", tokens=16)
    weights = {name: t.to(dtype) for name, t in load_file(source / "model.safetensors").items()}
    save_file(weights, source / "model.safetensors")
    convert(source, tmp_path / "long", tokens=20, window=8)
    written = load_file(tmp_path / "long" / "model.safetensors")
    assert {t.dtype for t in written.values()} == {torch.float32}
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(written[f"longformer.{name}"], weights[f"roberta.{name}"].float())


@pytest.mark.parametrize("family", ["bert", "camembert", "xlm-roberta"])
def test_the_tokenizer_stays_what_it_was(tmp_path: Path, family: str) -> None:
    """transformers would read any Longformer's tokenizer as RoBERTa's, were its class not written down."""
    source = tmp_path / "source"
    family_model(family, 20).save_pretrained(source)
    (wordpiece_tokenizer if family == "bert" else unigram_tokenizer)(source)
    convert(source, tmp_path / "long", tokens=40, window=8)
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "long"))
    text = "Long documents, reading"
    assert after(text).input_ids == before(text).input_ids
    # Before 5.6 transformers has its general class for it, which reads the same tokenizer.json.
    assert type(after) in (type(before), TokenizersBackend)
    assert after.model_max_length == 40
    assert (after.pad_token_id, after.mask_token_id) == (before.pad_token_id, before.mask_token_id)
    config = read_config(tmp_path / "long")
    assert (config.bos_token_id, config.eos_token_id) == (before.cls_token_id, before.sep_token_id)


def test_tokens_of_its_own_and_those_of_another_class_are_left_alone(tmp_path: Path) -> None:
    def converted(settings: dict[str, str]) -> dict[str, str]:
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
        shutil.rmtree(tmp_path / "long", ignore_errors=True)
        convert(source, tmp_path / "long", tokens=40, window=8)
        return json.loads((tmp_path / "long" / "tokenizer_config.json").read_text())

    source = tmp_path / "source"
    family_model("bert", 20).save_pretrained(source)
    wordpiece_tokenizer(source)
    (source / "special_tokens_map.json").write_text('{"sep_token": "long"}')
    found = converted({"pad_token": "read", "tokenizer_class": "BertTokenizerFast"})
    assert (found["pad_token"], found["mask_token"]) == ("read", "[MASK]")
    assert "sep_token" not in found
    assert AutoTokenizer.from_pretrained(tmp_path / "long").special_tokens_map["sep_token"] == "long"  # noqa: S105
    assert "mask_token" not in converted({"tokenizer_class": "PreTrainedTokenizerFast"})


def test_a_bert_without_a_tokenizer_has_no_ends_of_text(tmp_path: Path) -> None:
    family_model("bert", 20).save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "long", tokens=40, window=8)
    theirs = LongformerForMaskedLM.from_pretrained(tmp_path / "long").config
    assert (theirs.bos_token_id, theirs.sep_token_id, theirs.pad_token_id) == (None, None, 0)
    assert read_config(tmp_path / "long").eos_token_id is None


def test_what_a_configuration_leaves_out_is_what_transformers_takes() -> None:
    ours = {name: f.default for name, f in StoredConfig.model_fields.items() if not f.is_required()}
    del ours["original_max_position_embeddings"], ours["bos_token_id"], ours["eos_token_id"]
    for config_class in (RobertaConfig, LongformerConfig, BertConfig):
        theirs = config_class()
        known = {name: getattr(theirs, name) for name in ours if name != "pad_token_id"}
        assert known == {name: ours[name] for name in known}


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("hidden_act", "relu", "exact GELU"),
        ("hidden_act", "gelu_new", "exact GELU"),
        ("position_embedding_type", "relative_key", "no positions relative to the key"),
        ("is_decoder", True, "sees both sides"),
        ("add_cross_attention", True, "no cross-attention"),
        ("embedding_size", 12, "no projection between them"),
        ("pruned_heads", {"0": [1]}, "every layer has all heads"),
        ("quantization_config", {"bits": 4}, "plain numbers"),
        ("attention_dilation", [1, 2], "has no gaps"),
        ("attention_window", [8, 7], "expected even widths"),
        ("attention_window", [8], "expected one for each of 2 layers"),
        ("attention_window", [8, "x"], "expected even widths"),
        ("attention_window", [8, 10**30], "expected even widths"),
        ("pad_token_id", VOCABULARY, f"less than vocab_size {VOCABULARY}"),
        ("pad_token_id", 18, "max_position_embeddings: found 18, expected more than"),
        ("layer_norm_eps", float("nan"), "layer_norm_eps: found nan"),
        ("num_hidden_layers", True, "num_hidden_layers: found True"),
        ("original_max_position_embeddings", 19, "at most max_position_embeddings 18"),
        # Sizes that would fill any memory, were they believed before the weights were looked at.
        ("vocab_size", 10**7, f"found [{VOCABULARY}, 48], expected [10000000, 48]"),
        ("hidden_size", 3 << 20, "the weights do not fit config.json"),
        ("intermediate_size", 10**12, "intermediate_size: found 1000000000000"),
        ("num_hidden_layers", 9000, "the weights have 2 layers, expected num_hidden_layers 9000"),
    ],
)
def test_what_cannot_be_carried_is_refused_with_the_reason(
    tmp_path: Path, key: str, value: object, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = roberta_folder(tmp_path / "source", tokens=16)
    settings_ = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**settings_, key: value}))
    capsys.readouterr()  # transformers' progress
    assert main(["--from", str(source), "--to", str(tmp_path / "out"), "--window", "8"]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.startswith(f"convert: {source}")
    assert not (tmp_path / "out").exists()
