"""The model against transformers' own, on the same weights."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import LongformerForMaskedLM, RobertaForMaskedLM
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from attention import windowed_attention
from tests.trainer.models import family_model, padded_batch, roberta_folder
from trainer.convert import convert
from trainer.engine.config import InputError
from trainer.model import heads
from trainer.model.folder import load_model, with_global_projections
from trainer.model.heads import MaskedLanguageModel, masked_loss_sum
from trainer.model.longformer import EncoderConfig


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roberta_folder(tmp_path_factory.mktemp("models") / "roberta")


@pytest.fixture(scope="module")
def longformer(roberta: Path) -> Path:
    folder = roberta.parent / "longformer"
    convert(roberta, folder, tokens=200, window=8)
    return folder


@pytest.mark.parametrize("tokens", [1, 7, 31])
def test_roberta_gives_transformers_logits(roberta: Path, tokens: int) -> None:
    theirs = RobertaForMaskedLM.from_pretrained(roberta).eval()
    ids, mask = padded_batch(3, tokens)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask).logits
        found = load_model(roberta).eval()(ids, attention_mask=mask)
    assert expected.abs().max() > 1
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tokens", [5, 63, 111, 200])
def test_longformer_gives_transformers_logits_and_loss(longformer: Path, tokens: int) -> None:
    theirs = LongformerForMaskedLM.from_pretrained(longformer).eval()
    ours = load_model(longformer).eval()
    ids, mask = padded_batch(2, tokens)
    places = torch.tensor([[1, tokens // 2, tokens - 1], [0, 2, 3]])
    labels = ids.gather(1, places)
    dense = torch.full_like(ids, -100).scatter(1, places, labels)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, labels=dense)
        everywhere = ours(ids, attention_mask=mask)
        loss = masked_loss_sum(ours(ids, places, mask), labels)
    torch.testing.assert_close(everywhere[mask.bool()], expected.logits[mask.bool()], atol=1e-4, rtol=1e-4)
    scored = (dense != -100).sum()
    assert float(loss / scored) == pytest.approx(float(expected.loss), rel=1e-5)


class OurAttention(torch.nn.Module):
    """Stands in for transformers' LongformerSelfAttention, with its weights, over windowed_attention."""

    def __init__(self, theirs: LongformerSelfAttention, window: int) -> None:
        super().__init__()
        self.theirs, self.window = theirs, window

    def forward(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor, **masks: torch.Tensor
    ) -> tuple[torch.Tensor]:
        B, N, _ = hidden.shape

        def heads(name: str) -> torch.Tensor:
            return getattr(self.theirs, name)(hidden).view(B, N, self.theirs.num_heads, -1).transpose(1, 2)

        attended = windowed_attention(
            *(heads(name) for name in ("query", "key", "value")),
            self.window,
            attention_mask=~masks["is_index_masked"],
            global_attention_mask=masks["is_index_global_attn"],
            **{name: heads(name) for name in ("query_global", "key_global", "value_global")},
        )
        return (attended.transpose(1, 2).reshape(B, N, -1),)


def test_global_tokens_in_transformers_model_over_our_attention(longformer: Path) -> None:
    """The masked-language model of this package has no global tokens (nor has the paper's); its attention has."""
    weights = load_file(longformer / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    drawn = {
        name: torch.randn(tensor.shape, generator=generator) * 0.2
        for name, tensor in weights.items()
        if "_global" in name
    }
    ids, mask = padded_batch(2, 48)
    is_global = torch.zeros_like(ids)
    is_global[:, 0], is_global[0, 17] = 1, 1
    labels = torch.where(mask.bool(), ids, -100)
    found = []
    for replace in (False, True):
        model = LongformerForMaskedLM.from_pretrained(longformer).eval()
        model.load_state_dict(drawn, strict=False)
        for layer in model.longformer.encoder.layer if replace else ():
            layer.attention.self = OurAttention(layer.attention.self, 8)
        output = model(ids, attention_mask=mask, global_attention_mask=is_global, labels=labels)
        gradient = torch.autograd.grad(output.loss, model.longformer.embeddings.word_embeddings.weight)[0]
        found.append((output.logits[mask.bool()].detach(), output.loss.detach(), gradient))
        local = model(ids, attention_mask=mask, labels=labels).loss
        assert abs(local - output.loss) > 1e-2
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_positions_count_real_tokens_also_behind_padding(roberta: Path) -> None:
    ids, _ = padded_batch(1, 24)
    ids[0, [0, 1, 9]] = 1
    mask = (ids != 1).long()
    theirs = RobertaForMaskedLM.from_pretrained(roberta, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask).logits[mask.bool()]
        found = load_model(roberta).eval()(ids, attention_mask=mask)[mask.bool()]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_window_that_covers_the_sequence_is_full_attention(roberta: Path, tmp_path: Path) -> None:
    convert(roberta, tmp_path / "wide", tokens=64, window=64)
    ids, mask = padded_batch(2, 32)
    with torch.no_grad():
        full = load_model(roberta).eval()(ids, attention_mask=mask)
        windowed = load_model(tmp_path / "wide").eval()(ids, attention_mask=mask)
    torch.testing.assert_close(windowed, full, atol=1e-5, rtol=1e-5)


def test_documents_kept_apart_do_not_see_each_other(longformer: Path) -> None:
    model = load_model(longformer).eval()
    ids, _ = padded_batch(1, 40)
    documents = torch.tensor([[0] * 20 + [1] * 20])
    changed = ids.clone()
    changed[0, 20:] = 5
    with torch.no_grad():
        apart = [model(x, document_ids=documents)[0, :20] for x in (ids, changed)]
        packed = [model(x)[0, :20] for x in (ids, changed)]
    assert torch.equal(apart[0], apart[1])
    assert not torch.equal(packed[0], packed[1])


@pytest.mark.parametrize("family", ["roberta", "bert"])
def test_no_parameter_is_without_a_gradient_in_masked_language_modelling(family: str, tmp_path: Path) -> None:
    family_model(family, 32).save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "long", tokens=200, window=8)
    model = load_model(tmp_path / "long").train()
    ids, mask = padded_batch(2, 200, pad=model.config.pad_token_id)
    places = torch.arange(0, 140, 7).expand(2, -1)
    masked_loss_sum(model(ids, places, mask), ids.gather(1, places)).backward()
    assert all(parameter.requires_grad for parameter in model.parameters())
    unmoved = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unmoved == []


def test_dropout_is_a_function_of_the_seeds_and_survives_activation_checkpointing(longformer: Path) -> None:
    ids, _ = padded_batch(2, 60)
    places = torch.arange(0, 60, 5).expand(2, -1)
    seeds = torch.tensor([[1, 2], [3, 4]])

    def gradient(activation_checkpointing: bool) -> torch.Tensor:
        model = load_model(longformer).train()
        model.encoder.activation_checkpointing = activation_checkpointing
        torch.manual_seed(5)
        masked_loss_sum(model(ids, places, dropout_seeds=seeds), ids.gather(1, places)).backward()
        found = model.encoder.embeddings.word_embeddings.weight.grad
        assert found is not None
        return found

    plain = gradient(False)
    assert torch.equal(plain, gradient(False))
    torch.testing.assert_close(plain, gradient(True), atol=0, rtol=0)


@pytest.mark.parametrize("places", [[[1, 7, 7, 30], [0, 2, 3, 5]], [[4], [9]]])
def test_hidden_states_at_places_are_those_of_the_whole_sequence(
    longformer: Path, places: list[list[int]]
) -> None:
    encoder = load_model(longformer).encoder.eval()
    ids, mask = padded_batch(2, 40)
    chosen = torch.tensor(places)

    def gradients(hidden: torch.Tensor) -> list[torch.Tensor]:
        weights = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
        return list(torch.autograd.grad((hidden * weights).sum(), list(encoder.parameters())))

    whole = encoder(ids, mask)
    expected = torch.stack([row[at] for row, at in zip(whole, chosen, strict=True)])
    found = encoder(ids, mask, places=chosen)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 100, 1 << 22])
def test_the_loss_is_torchs_cross_entropy(
    dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradient, whatever the size of the blocks, with ignored labels and a row that is certain."""
    monkeypatch.setattr(heads, "CPU_BLOCK", block)
    torch.manual_seed(0)
    logits = (torch.randn(2, 7, 50) * 5).to(dtype)
    logits[0, 3, 4] = 1000
    labels = torch.randint(0, 50, (2, 7))
    labels[0, 3], labels[1, 2:5] = 4, heads.IGNORED
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    found = masked_loss_sum(ours, labels)
    expected = F.cross_entropy(theirs.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    (found * 0.3).backward()
    (expected * 0.3).backward()
    assert ours.grad is not None
    assert ours.grad.dtype == dtype
    assert not ours.grad[1, 2:5].any()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_loss_of_nothing_is_zero() -> None:
    logits = torch.randn(1, 3, 9, requires_grad=True)
    masked_loss_sum(logits, torch.full((1, 3), heads.IGNORED)).backward()
    assert logits.grad is not None
    assert not logits.grad.any()
    assert float(masked_loss_sum(torch.randn(2, 0, 9), torch.zeros(2, 0, dtype=torch.long))) == 0


def test_the_base_models_parameter_count_is_the_published_one() -> None:
    config = EncoderConfig(
        "longformer", vocab_size=50265, max_position_embeddings=4098, attention_window=[512] * 12
    )
    with torch.device("meta"):
        model = MaskedLanguageModel(config)
    counts = {name: p.numel() for name, p in model.named_parameters()}
    added = with_global_projections(dict(model.named_parameters()))
    projections = sum(p.numel() for name, p in added.items() if "_global" in name)
    assert projections == 21_261_312
    assert sum(counts.values()) + projections == 148_711_257


def test_a_folder_whose_weights_do_not_fit_its_configuration(roberta: Path, tmp_path: Path) -> None:
    broken = roberta_folder(tmp_path / "broken")
    text = (broken / "config.json").read_text().replace('"intermediate_size": 96', '"intermediate_size": 97')
    (broken / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"intermediate.dense.weight: found \[96, 48\], expected \[97, 48\]"):
        load_model(broken)
    (broken / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(InputError, match=r"model.safetensors: not a readable"):
        load_model(broken)
