"""Global rows without all tokens' keys and values, against the plain way."""

import pytest
import torch
from torch import Tensor

from attention.few_global import FewGlobal
from trainer.model.longformer import Encoder, EncoderConfig, initialise

N, HEAD_DIM = 24, 8


def encoder(architecture: str = "longformer", dropout: float = 0.0) -> Encoder:
    torch.manual_seed(0)
    windows = [4, 6] if architecture == "longformer" else []
    config = EncoderConfig(
        architecture,  # type: ignore[arg-type]
        50,
        16,
        2,
        2,
        32,
        N + 2,
        windows,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    made = Encoder(config, global_projections=architecture == "longformer")
    initialise(made, 0.3)
    for parameter in made.parameters():  # biases too
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def batch() -> tuple[Tensor, Tensor]:
    """Ids (3, N) and which are real: one row is shorter, and in another a token inside is padding."""
    ids = torch.randint(2, 50, (3, N), generator=torch.Generator().manual_seed(1))
    real = torch.ones(3, N, dtype=torch.bool)
    real[1, 15:] = False
    real[2, 5] = False
    return torch.where(real, ids, 1), real


def global_mask(places: list[list[int]]) -> Tensor:
    mask = torch.zeros(3, N, dtype=torch.bool)
    for row, own in enumerate(places):
        mask[row, own] = True
    return mask


def everything(
    model: Encoder, mask: Tensor, places: Tensor | None, seeds: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states, and every parameter's gradient."""
    ids, real = batch()
    torch.manual_seed(7)
    hidden = model(ids, real, None, seeds, places, mask)
    weights = torch.linspace(-1, 1, hidden.shape[-1]) * torch.linspace(1, 2, hidden.shape[1])[:, None]
    read = hidden if places is not None else hidden[real]
    model.zero_grad()
    (read * (weights if places is not None else weights.expand(3, -1, -1)[real])).sum().backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad.clone()
    return read.detach(), gradients


MASKS = {
    "first": [[0], [0], [0]],
    "some": [[0, 1, 2], [0], [3, 9, 11, 23]],
    "none in a row": [[], [2, 3], [0]],
    "on padding": [[0], [0, 20], [0, 5]],
}


@pytest.mark.parametrize("seeded", [None, True, False], ids=["no dropout", "seeds", "drawn"])
@pytest.mark.parametrize("read", ["all", "global", "both"])
@pytest.mark.parametrize("name", MASKS)
def test_it_is_the_plain_way_with_all_gradients(
    name: str, read: str, seeded: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = encoder(dropout=0.0 if seeded is None else 0.3).train()
    mask = global_mask(MASKS[name])
    places = None
    if read != "all":
        first = [own[0] if own else 4 for own in MASKS[name]]
        places = torch.tensor([[at, at] if read == "global" else [at, 12 - at % 5] for at in first])
    seeds = torch.tensor([[1, 2], [3, 4], [5, 6]]) if seeded else None
    found = everything(model, mask, places, seeds)
    calls = []
    monkeypatch.setattr(FewGlobal, "of", lambda *_: calls.append(1))
    expected = everything(model, mask, places, seeds)
    assert calls
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-4)
    for key, gradient in expected[1].items():
        torch.testing.assert_close(found[1][key], gradient, atol=1e-3, rtol=1e-3, msg=key)


def test_what_is_read_decides_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(
        mask: list[list[int]], places: list[list[int]] | None, real: Tensor | None = None
    ) -> FewGlobal | None:
        at = None if places is None else torch.tensor(places)
        return FewGlobal.of(global_mask(mask), real, at, HEAD_DIM)

    assert found([[], [], []], None) is None
    assert found([[0], list(range(HEAD_DIM // 2 + 1)), []], None) is None  # more than pay
    few = found([[3], list(range(HEAD_DIM // 2)), []], [[3, 3], [0, 2], [0, 0]])
    assert few is not None
    assert not few.alone  # of the last row a token is read that is not global
    assert few.used.tolist() == [[True, False, False, False], [True] * 4, [False] * 4]
    few = found([[0, 3], [0], [0]], [[3, 0], [0, 0], [0, 0]])
    assert few is not None
    assert few.alone
    assert not found([[0], [0], [0]], None).alone  # type: ignore[union-attr]
    real = batch()[1]
    assert not found([[0], [0], [5]], [[0], [0], [5]], real).alone  # type: ignore[union-attr]
    assert FewGlobal.of(None, None, None, HEAD_DIM) is None


@pytest.mark.parametrize("checkpointed", [False, True])
def test_only_the_global_row_of_the_last_layer_is_attended_to(
    checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last layer's band is not computed, and its local projections have a gradient: 0."""
    from trainer.model import longformer

    bands, plain = [], longformer.windowed_attention
    monkeypatch.setattr(longformer, "windowed_attention", lambda *a, **k: bands.append(1) or plain(*a, **k))
    model = encoder(dropout=0.3).train()
    model.activation_checkpointing = checkpointed
    hidden, gradients = everything(model, global_mask([[0]] * 3), torch.zeros(3, 1, dtype=torch.long), None)
    assert len(bands) == (2 if checkpointed else 1)
    assert hidden.shape == (3, 1, 16)
    for part in ("query", "key", "value"):
        assert not gradients[f"encoder.layer.1.attention.self.{part}.weight"].any()
        assert gradients[f"encoder.layer.0.attention.self.{part}.weight"].any()
        assert gradients[f"encoder.layer.1.attention.self.{part}_global.weight"].any()


def test_a_roberta_has_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FewGlobal, "attend", None)
    everything(encoder("roberta"), global_mask([[0]] * 3), torch.zeros(3, 1, dtype=torch.long), None)


def test_under_autocast_the_rows_fit_the_others() -> None:
    model = encoder().eval()
    ids, real = batch()
    mask = global_mask(MASKS["some"])
    with torch.no_grad():
        exact = model(ids, real, global_mask=mask)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(ids, real, global_mask=mask)
    torch.testing.assert_close(found[real].float(), exact[real], atol=0.2, rtol=0.1)
