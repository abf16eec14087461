"""`attn_implementation="longspan"` and lengthened positions: encoders of transformers, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.bart.modeling_bart import BartAttention
from transformers.models.bert.modeling_bert import BertCrossAttention
from transformers.models.mpnet import modeling_mpnet

from attention.huggingface import lengthen, register
from attention.pattern import Pattern
from tests.attention.test_transformers import (
    BATCH,
    WIDE,
    Batch,
    a_batch,
    a_longformer,
    assert_same,
    batches,
    outcome,
)

README = Path(__file__).parents[2] / "attention" / "README.md"
NO_DROPOUT = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
DISTILBERT = {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 32}
FAMILIES = ("Bert", "Roberta", "XLMRoberta", "DistilBert", "Electra")


def an_encoder(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {**WIDE, **NO_DROPOUT, "embedding_size": 24, "tie_word_embeddings": False}
    if family == "DistilBert":
        sizes |= DISTILBERT
    config = getattr(transformers, f"{family}Config")(**{**sizes, **changes})
    return getattr(transformers, f"{family}ForMaskedLM")(config).eval()


def windowed(model: Any, window: Any) -> Any:
    model.set_attn_implementation("longspan")
    model.config.attention_window = window
    return model


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=6, deadline=None)
@given(batch=batches(global_tokens=False), training=st.booleans())
def test_a_window_over_the_text_is_full_attention(family: str, batch: Batch, training: bool) -> None:
    model = an_encoder(family).train(training)
    model.set_attn_implementation("eager")
    expected = outcome(model, batch)
    assert_same(outcome(windowed(model, 2 * batch["input_ids"].shape[1]), batch), expected)


def masked_by_the_definition(batch: Batch, window: int) -> Batch:
    """The batch with a bias for each pair of tokens, as `eager` takes it, in place of padding and global tokens."""
    real, is_global = batch["attention_mask"] != 0, batch.get("global_attention_mask")
    shape = torch.empty(*real.shape, 1)[:, None]
    pattern = Pattern.of(
        shape, window, (1,), False, real, None if is_global is None else is_global != 0, None
    )
    bias = torch.where(pattern.dense(), 0.0, torch.finfo(torch.float32).min)
    return {"input_ids": batch["input_ids"], "attention_mask": bias}


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=6, deadline=None)
@given(batch=batches(), window=st.sampled_from([0, 4, 14]))
@torch.no_grad()
def test_a_narrow_window_is_full_attention_under_its_mask(family: str, batch: Batch, window: int) -> None:
    model = an_encoder(family)
    model.set_attn_implementation("eager")
    real = batch["attention_mask"] != 0
    expected = model(**masked_by_the_definition(batch, window)).logits[real]
    found = windowed(model, window)(**batch).logits[real]
    torch.testing.assert_close(found, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0)


def test_a_window_a_layer(tmp_path: Path) -> None:
    """Of one's own in each layer, and kept by the configuration."""
    batch = a_batch([13, 9], [])
    model = windowed(an_encoder("Roberta"), 4)
    narrow = model(**batch, output_hidden_states=True).hidden_states
    model.config.attention_window = [4, 8]
    growing = model(**batch, output_hidden_states=True).hidden_states
    assert torch.equal(growing[1], narrow[1])
    assert not torch.allclose(growing[2], narrow[2])
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="longspan").eval()
    assert torch.equal(loaded(**batch, output_hidden_states=True).hidden_states[2], growing[2])


def test_dropout_and_checkpointing() -> None:
    model = windowed(an_encoder("Bert", attention_probs_dropout_prob=0.3), 4).train()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(outcome(model, BATCH))
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(results[1], results[0])
    assert not torch.equal(results[2][0][-1], results[0][0][-1])


@torch.no_grad()
def test_compiled_as_one_graph() -> None:
    model = windowed(an_encoder("Roberta"), 4)
    expected = model(**BATCH).logits
    torch._dynamo.reset()
    found = torch.compile(model, backend="aot_eager", fullgraph=True)(**BATCH).logits
    torch._dynamo.reset()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


LONE = {"input_ids": BATCH["input_ids"]}


@pytest.mark.parametrize(
    ("window", "batch", "message"),
    [
        (None, LONE, r"RobertaConfig has no attention_window; .* model.config.attention_window = 512"),
        (5, LONE, "window is 5; expected an even integer"),
        ([4], LONE, r"attention_window is \[4\]; expected one entry a layer, and one for layer 1"),
        (
            4,
            {**LONE, "attention_mask": torch.ones(2, 1, 13, 13)},
            r"shape \(2, 1, 13, 13\); .* expects \(batch, n\)",
        ),
        (
            4,
            {**LONE, "attention_mask": torch.ones(2, 13, 13)},
            r"shape \(2, 13, 13\); .* expects \(batch, n\)",
        ),
        (4, {**LONE, "output_attentions": True}, "called with output_attentions"),
        (4, {**LONE, "head_mask": torch.ones(2, 3)}, "called with head_mask"),
        (4, {**LONE, "cu_seq_lens_q": torch.tensor([0, 13])}, "called with cu_seq_lens_q"),
        (4, {**LONE, "global_mask": torch.ones(2, 13)}, "called with global_mask, which .* does not know"),
    ],
)
def test_what_a_model_is_called_with_is_refused(window: Any, batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        windowed(an_encoder("Roberta"), window)(**batch)


@pytest.mark.parametrize("family", ["MPNet", "Deberta", "SqueezeBert", "BigBird", "Longformer"])
def test_models_without_the_interface_are_refused(family: str, tmp_path: Path) -> None:
    """They would go on with attention of their own, and padding that they misread."""
    sizes = {
        **WIDE,
        "attention_window": 4,
        "d_model": 24,
        "d_head": 8,
        "n_head": 3,
        "d_inner": 32,
        "embedding_size": 24,
    }
    config = getattr(transformers, f"{family}Config")(**sizes)
    kind = getattr(transformers, f"{family}Model")
    message = f'{family}Model does not ask transformers\' attention interface; "longspan" expects an encoder that does'
    kind(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        kind.from_pretrained(tmp_path, attn_implementation="longspan")
    register()
    with pytest.raises(ValueError, match=message):
        transformers.AutoModel.from_config(config, attn_implementation="longspan")


def test_models_of_one_s_own_and_of_others_inside_are_not() -> None:
    class Own(transformers.BertModel):
        pass

    Own.__module__ = modeling_mpnet.__name__  # which does not
    bert = transformers.BertConfig(**WIDE, attention_window=4)
    assert Own._from_config(bert, attn_implementation="longspan")(**LONE)[0].shape == (2, 13, 24)
    decoder = transformers.BertConfig(**WIDE, is_decoder=True, add_cross_attention=True)
    both = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(bert, decoder)
    model = transformers.EncoderDecoderModel(both)
    model.set_attn_implementation({"encoder": "longspan"})
    assert model(**LONE, decoder_input_ids=LONE["input_ids"]).logits.shape == (2, 13, 40)


def test_what_changes_the_result_is_refused() -> None:
    t5 = transformers.T5Config(vocab_size=40, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=3)
    # T5 asks the interface in newer versions only.
    with pytest.raises(ValueError, match=r"called with position_bias|T5EncoderModel does not ask"):
        transformers.T5EncoderModel._from_config(t5, attn_implementation="longspan")(**LONE)
    model = windowed(an_encoder("Bert", output_attentions=True), 4)
    with pytest.raises(ValueError, match="called with output_attentions"):
        model(**LONE)
    assert model(**LONE, output_attentions=False).logits.shape == (2, 13, 40)
    states = torch.randn(2, 13, 24)
    with pytest.raises(ValueError, match="BertCrossAttention is cross-attention"):
        BertCrossAttention(model.config)(states, encoder_hidden_states=states)
    of_a_decoder = BartAttention(24, 3, is_decoder=True, layer_idx=0, config=model.config)
    with pytest.raises(ValueError, match="BartAttention is a decoder's"):
        of_a_decoder(states, key_value_states=states)
    elsewhere = BartAttention(24, 3, config=model.config)
    with pytest.raises(ValueError, match="BartAttention has 13 queries and 5 keys"):
        elsewhere(states, key_value_states=states[:, :5])


def test_decoders_and_other_patterns_are_refused() -> None:
    decoder = windowed(an_encoder("Bert", is_decoder=True), 4)
    with pytest.raises(ValueError, match="asks for a mask that is causal or has a pattern of its own"):
        decoder(**LONE)
    with pytest.raises(ValueError, match="BertSelfAttention is a decoder's"):
        decoder(**LONE, attention_mask=torch.ones(2, 1, 13, 13))
    with pytest.raises(ValueError, match="does not know its layer"):
        windowed(an_encoder("DistilBert"), [4, 4])(**LONE)
    sizes = {"vocab_size": 40, "d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "attention_window": 4}
    heads = {"encoder_attention_heads": 3, "decoder_attention_heads": 3, "max_position_embeddings": 32}
    bart = transformers.BartModel(transformers.BartConfig(**sizes, **heads)).eval()
    bart.set_attn_implementation("longspan")
    assert bart.encoder(**LONE).last_hidden_state.shape == (2, 13, 24)
    with pytest.raises(ValueError, match="asks for a mask that is causal"):
        bart(**LONE)
    states, encoded = torch.empty(2, 2, 24), torch.empty(2, 13, 24)
    with pytest.raises(ValueError, match="mask of 2 queries and 13 keys"):
        transformers.masking_utils.create_bidirectional_mask(bart.config, states, None, encoded)


@pytest.mark.parametrize("positions", [62, 64, 100, 200])
@pytest.mark.parametrize("family", [*FAMILIES, "Longformer"])
def test_positions_are_tiled(family: str, positions: int, tmp_path: Path) -> None:
    model = a_longformer() if family == "Longformer" else an_encoder(family)
    first = 0 if family in ("Bert", "DistilBert", "Electra") else 2
    own = 64 - first
    if positions < own:
        with pytest.raises(
            ValueError, match=f"max_positions is {positions}; expected an integer of at least"
        ):
            lengthen(model, positions)
        return
    table = model.base_model.embeddings.position_embeddings
    before = table.weight.detach().clone()
    short = a_batch([40, 30], [])
    expected = model(**short).logits
    assert lengthen(model, np.int64(positions)) is model
    assert table.weight.requires_grad
    assert table.weight.shape == (first + positions, 24)
    assert torch.equal(table.weight[:64], before[: first + positions])
    for place in range(positions):
        assert torch.equal(table.weight[first + place], before[first + place % own])
    assert torch.equal(model(**short).logits, expected)

    long = a_batch([positions, 5], [])
    assert model(**long).logits.shape[1] == positions
    if "token_type_ids" in dict(model.base_model.embeddings.named_buffers()):
        kinds = torch.zeros_like(long["input_ids"])
        assert torch.equal(model(**long, token_type_ids=kinds).logits, model(**long).logits)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**long).logits, model(**long).logits, atol=1e-5, rtol=0)


def test_what_cannot_be_lengthened_is_refused() -> None:
    t5 = transformers.T5Config(vocab_size=40, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=3)
    with pytest.raises(ValueError, match="T5EncoderModel has 0 tables of learned absolute positions"):
        lengthen(transformers.T5EncoderModel(t5), 100)
    with pytest.raises(ValueError, match="sinusoidal_pos_embds True; expected False"):
        lengthen(an_encoder("DistilBert", sinusoidal_pos_embds=True), 100)
    two = nn.ModuleList([an_encoder("Bert"), an_encoder("Bert")])
    with pytest.raises(ValueError, match="ModuleList has 2 tables"):
        lengthen(two, 100)
    visual = transformers.VisualBertModel(transformers.VisualBertConfig(**WIDE))
    with pytest.raises(ValueError, match="VisualBertModel has 2 tables"):
        lengthen(visual, 100)
    other = an_encoder("Bert")
    other.config.max_position_embeddings = 65
    with pytest.raises(
        ValueError, match=r"table of 64 positions; expected config.max_position_embeddings, 65"
    ):
        lengthen(other, 100)
    for wrong in (100.0, True, "100", None):
        with pytest.raises(
            ValueError, match=f"max_positions is {re.escape(repr(wrong))}; expected an integer"
        ):
            lengthen(an_encoder("Bert"), wrong)  # type: ignore[arg-type]


def test_the_page_s_snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small models in folders of the names that the page uses."""
    monkeypatch.chdir(tmp_path)
    a_longformer().save_pretrained("allenai/longformer-base-4096")
    an_encoder("Roberta").save_pretrained("FacebookAI/roberta-base")
    section = README.read_text(encoding="utf-8").partition("## In transformers")[2].partition("\n## ")[0]
    snippets = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(snippets) == 2
    for snippet, length in zip(snippets, (50, 4096)):
        names: dict[str, Any] = {}
        exec(snippet, names)  # noqa: S102
        output = names["model"](**a_batch([length], [[0]]))
        assert output[0].shape[1] == length
