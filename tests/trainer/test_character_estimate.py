"""What a character model's training is said to take, against what a step keeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.trainer.estimated import kept_bytes
from trainer.engine.character_estimate import character_layer_bytes, character_parameters
from trainer.engine.flops import character_attention_flops, character_step_flops
from trainer.model.charlm import CharacterConfig, CharacterModel

CHARACTERS = 333


def config(layers: int, **changes: object) -> CharacterConfig:
    values = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 160, **changes}
    return CharacterConfig.model_validate({"vocab_size": 50, "num_hidden_layers": layers, **values})


def kept(settings: CharacterConfig, precision: str) -> int:
    model = CharacterModel(settings).train()
    ids = torch.randint(50, (1, CHARACTERS))
    seeds = torch.zeros(1, settings.num_hidden_layers, dtype=torch.int64)

    def forward() -> None:
        logits = model(ids, (8,) * settings.num_hidden_layers, seeds)
        F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="sum")

    return kept_bytes(model, precision, forward)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.2, 0.0])
def test_layers_keep_what_is_counted(precision: str, dropout: float) -> None:
    one, two = (config(layers, dropout=dropout) for layers in (1, 2))
    found = kept(two, precision) - kept(one, precision)
    counted = character_layer_bytes(one, precision, on_gpu=False)
    assert found / CHARACTERS == pytest.approx(counted, rel=0.01)


def test_parameters_are_the_model_s() -> None:
    settings = config(2)
    assert character_parameters(settings) == sum(p.numel() for p in CharacterModel(settings).parameters())


def test_flops_are_six_a_weight_and_twelve_a_dimension_of_a_pair() -> None:
    settings = config(1, dilation=[2])
    weights = 4 * 64 * 64 + 2 * 64 * 160 + 64 * 50
    # Ten characters that see up to one before: 19 pairs in two heads; every second in the other two: 18.
    pairs = 2 * 19 + 2 * 18
    assert character_attention_flops(settings, [1], 10, 3) == 3 * 12 * 16 * pairs
    assert character_step_flops(settings, [1], 10, 3) == 3 * (6 * 10 * weights + 12 * 16 * pairs)
