"""Character models small enough that a test takes milliseconds, with weights large enough to make outputs differ."""

from __future__ import annotations

from typing import Any

import torch

from trainer.model.charlm import CharacterConfig, CharacterModel

SMALLER = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "dilated_heads": 1,
    "dilation": (1, 2),
    "initializer_range": 0.5,
}


def tiny_config(**changes: Any) -> CharacterConfig:
    """Three layers of four heads, two of them dilated by 1, 2 and 3."""
    sizes: dict[str, Any] = {
        "vocab_size": 11,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "dilation": (1, 2, 3),
        "initializer_range": 0.3,
    }
    return CharacterConfig.model_validate(sizes | changes)


def tiny_model(seed: int = 0, kind: type[CharacterModel] = CharacterModel, **changes: Any) -> CharacterModel:
    """Not training."""
    torch.manual_seed(seed)
    return kind(tiny_config(**changes)).eval()
