"""The character model: its size, its causality, how far it sees, and a dense model beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.config as dynamo
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.trainer.character_models import SMALLER, tiny_config
from trainer.engine.training import compile_blocks
from trainer.model.charlm import CausalSelfAttention, CharacterConfig, CharacterModel, rotary_angles, turn


@pytest.mark.parametrize(("layers", "millions"), [(12, 38), (30, 95)])
def test_sizes_are_the_paper_s_without_its_relative_projection(layers: int, millions: int) -> None:
    with torch.device("meta"):
        model = CharacterModel(CharacterConfig(vocab_size=256, num_hidden_layers=layers))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(*[st.integers(1, 4)] * 3),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.integers(1, 29),
    st.integers(0, 999),
)
def test_no_later_character_changes_a_logit_and_none_is_seen_from_beyond_its_reach(
    dilation: tuple[int, ...], lookback: tuple[int, ...], place: int, seed: int
) -> None:
    torch.manual_seed(seed)
    config = tiny_config(dilation=dilation)
    model = CharacterModel(config).eval()
    characters = torch.randint(0, 11, (1, 30))
    other = characters.clone()
    other[0, place] = (other[0, place] + 1) % 11
    with torch.no_grad():
        changed = (
            (model(characters, lookback) != model(other, lookback)).any(-1)[0].nonzero().flatten().tolist()
        )
    assert changed
    assert min(changed) == place
    assert max(changed) <= place + config.reach(lookback)


def test_the_receptive_field_is_the_sum_of_the_layers() -> None:
    torch.manual_seed(0)
    config, lookback = tiny_config(), (2, 3, 4)
    assert config.reach(lookback) == 2 + 6 + 12
    model = CharacterModel(config).eval()
    found = []
    model.embeddings.register_forward_hook(
        lambda _module, _inputs, output: found.append(output) or output.retain_grad()
    )
    logits = model(torch.randint(0, 11, (1, 40)), lookback)
    logits[0, 35].square().sum().backward()
    seen = found[0].grad[0].abs().sum(-1).nonzero().flatten()
    assert (seen.min(), seen.max()) == (35 - 20, 35)


def test_it_is_a_dense_causal_model_under_the_window_s_mask() -> None:
    torch.manual_seed(0)
    config, lookback, N = tiny_config(), (3, 2, 4), 23
    model = CharacterModel(config).eval()
    characters = torch.randint(0, 11, (2, N))
    hidden = model.embeddings(characters)
    angles = rotary_angles(torch.arange(N), 4)
    distance = torch.arange(N)[:, None] - torch.arange(N)[None]
    for index, layer in enumerate(model.layers):
        query, key, value = layer.attention.projections(layer.attention_norm(hidden), angles)
        steps = torch.tensor(config.steps_of_heads(index))[:, None, None]
        seen = (distance >= 0) & (distance % steps == 0) & (distance <= steps * lookback[index])
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[None])
        hidden = hidden + layer.attention.output(attended.transpose(1, 2).flatten(2))
        hidden = layer.feed_forward(hidden)
    expected = F.linear(model.norm(hidden), model.embeddings.weight, model.bias)
    torch.testing.assert_close(model(characters, lookback), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        model(characters, lookback, scored_from=20), expected[:, 20:], atol=1e-5, rtol=1e-5
    )


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*[st.integers(1, 4)] * 3),
    st.tuples(*[st.integers(0, 5)] * 3),
    st.integers(0, 29),
    st.integers(0, 999),
)
def test_what_is_not_scored_is_left_out_where_nothing_scored_depends_on_it(
    dilation: tuple[int, ...], lookback: tuple[int, ...], scored_from: int, seed: int
) -> None:
    torch.manual_seed(seed)
    config = tiny_config(dilation=dilation)
    model = CharacterModel(config).eval()
    computed = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _layer, _inputs, output: computed.append(30 - output.shape[1]))
    characters = torch.randint(0, 11, (2, 30))
    with torch.no_grad():
        few = model(characters, lookback, scored_from=scored_from)
        assert computed == config.needed_from(lookback, scored_from)[1:]
        every = model(characters, lookback)
    torch.testing.assert_close(few, every[:, scored_from:], atol=1e-5, rtol=1e-5)


def test_each_layer_is_needed_from_where_the_next_looks_back_to() -> None:
    assert tiny_config().needed_from((2, 3, 4), 35) == [15, 17, 23, 35]
    assert tiny_config().needed_from((2, 3, 4), 14) == [0, 0, 2, 14]


def test_attention_is_in_fp32_inside_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Appendix B: the products of weights alone are in bf16."""
    seen: list[Any] = []
    attend = CausalSelfAttention.attend

    def look(self: CausalSelfAttention, *inputs: Any) -> torch.Tensor:
        seen.extend(tensor.dtype for tensor in inputs[:3])
        seen.append(torch.is_autocast_enabled("cpu"))
        return attend(self, *inputs)

    monkeypatch.setattr(CausalSelfAttention, "attend", look)
    model = CharacterModel(tiny_config(num_hidden_layers=1, dilation=()))
    model.layers[0].attention.query_key_value.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.dtype)
    )
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.zeros(1, 9, dtype=torch.int64), (3,))
    assert seen == [torch.bfloat16, *[torch.float32] * 3, False]


def test_scores_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 64), torch.randn(1, 1, 1, 64)

    def score(i: int, j: int) -> torch.Tensor:
        turned = [turn(x, *rotary_angles(torch.tensor([place]), 64)) for x, place in ((query, i), (key, j))]
        return (turned[0] * turned[1]).sum()

    for i, j in ((5, 3), (100, 7), (32_255, 24_063)):
        torch.testing.assert_close(score(i, j), score(i - j, 0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dilation": (1, 2)}, "found 2 entries, expected one a layer, 3"),
        ({"dilation": (1, 0, 2)}, "expected steps of 1 to 65,536"),
        ({"dilated_heads": 5}, "found 5, expected at most 4 heads"),
        ({"hidden_size": 12}, "expected a multiple of twice the 4 heads"),
    ],
)
def test_misfits_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny_config(**changes)


def test_all_dilations_lengths_and_windows_are_compiled() -> None:
    """Layers share their code, of which torch keeps few graphs before it gives up: here training and evaluating."""
    config = tiny_config(**SMALLER | {"num_hidden_layers": 4, "dilation": (1, 2, 3, 4)})
    model = CharacterModel(config)
    with dynamo.patch(recompile_limit=dynamo.recompile_limit, fail_on_recompile_limit_hit=True):
        compile_blocks([])
        for layer in model.layers:
            layer.compile(backend="eager")
        for length in (16, 32):
            characters, lookback = torch.zeros(2, length, dtype=torch.int64), (length // 8,) * 4
            model.train()(characters, lookback, torch.zeros(2, 4, dtype=torch.int64)).sum().backward()
            with torch.no_grad():
                model.eval()(characters, lookback, scored_from=length // 2)
