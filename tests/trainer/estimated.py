"""The model that the estimate is checked on: small, but with activations, logits and states that all weigh."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainer.model.longformer import EncoderConfig

TOKENS = 1024


def encoder_config(layers: int, hidden_size: int = 256) -> EncoderConfig:
    return EncoderConfig(
        architecture="longformer",
        vocab_size=8000,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=TOKENS + 2,
        attention_window=[64] * layers,
    )


def kept_bytes(model: nn.Module, precision: str, forward: Callable[[], object]) -> int:
    """Bytes that autograd keeps beside a model's parameters and their casts, over one forward pass."""
    weights = {parameter.numel() for parameter in model.parameters()}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}
    alive: list[Tensor] = []

    def look(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        where = tensor.untyped_storage().data_ptr()
        if where not in own and tensor.numel() not in weights:
            found[where] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        forward()
    return sum(found.values())
