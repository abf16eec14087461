"""FLOPs by the formula against torch's own counter and against a counted mask."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from attention.draw import make_pattern
from attention.pattern import visible_pairs
from trainer.engine.flops import peak_flops, recomputed_flops, step_flops
from trainer.model.heads import MaskedLanguageModel, masked_loss_sum
from trainer.model.longformer import EncoderConfig
from trainer.pretrain import train_extra_positions_only

TOKENS, PLACES, SEQUENCES, WINDOW = 37, 5, 2, 8


def config(**changes: Any) -> EncoderConfig:
    sizes: dict[str, Any] = {
        "architecture": "longformer",
        "vocab_size": 91,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "max_position_embeddings": TOKENS + 2,
        "attention_window": [WINDOW] * 3,
    }
    return EncoderConfig(**(sizes | changes))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 50))
@settings(deadline=None)
def test_pairs_are_those_of_the_mask(documents: list[int], half: int) -> None:
    seen = make_pattern(sum(documents), 2 * half, documents=documents).dense().sum()
    assert sum(visible_pairs(length, 2 * half) for length in documents) == seen


def counted(sizes: EncoderConfig, checkpointing: bool = False, positions_only: bool = False) -> int:
    """FLOPs of the matrix products of a real step, by torch's counter, which does not see into our attention."""
    torch.manual_seed(0)
    model = MaskedLanguageModel(sizes).train()
    model.encoder.activation_checkpointing = checkpointing
    if positions_only:
        train_extra_positions_only(model)
    ids = torch.randint(4, 91, (SEQUENCES, TOKENS))
    places = torch.arange(PLACES).expand(SEQUENCES, -1)
    with FlopCounterMode(display=False) as counter:
        masked_loss_sum(model(ids, places), ids[:, :PLACES]).backward()
    return int(counter.get_total_flops())


def attention_flops(sizes: EncoderConfig, products: int) -> int:
    pairs = sum(visible_pairs(TOKENS, window) for window in sizes.attention_window) or 3 * TOKENS**2
    return SEQUENCES * products * 2 * sizes.hidden_size * pairs


@pytest.mark.parametrize(
    "changes", [{}, {"attention_window": [4, 8, 16]}, {"architecture": "roberta", "attention_window": []}]
)
def test_a_step_is_what_torch_counts_and_attention(changes: dict[str, Any]) -> None:
    sizes = config(**changes)
    assert step_flops(sizes, TOKENS, PLACES, SEQUENCES) == counted(sizes) + attention_flops(sizes, 6)
    assert recomputed_flops(sizes, TOKENS, SEQUENCES) == attention_flops(sizes, 1)


def test_checkpointing_adds_a_forward_pass_of_the_layers() -> None:
    sizes = config()
    both = counted(sizes, checkpointing=True) + attention_flops(sizes, 6 + 3)
    again = recomputed_flops(sizes, TOKENS, SEQUENCES, places=PLACES, activation_checkpointing=True)
    assert step_flops(sizes, TOKENS, PLACES, SEQUENCES) + again == both


def test_frozen_weights_need_no_gradient() -> None:
    sizes = config()
    frozen = step_flops(sizes, TOKENS, PLACES, SEQUENCES, weights_trained=False)
    assert frozen == counted(sizes, positions_only=True) + attention_flops(sizes, 6)


def test_documents_kept_apart_see_fewer_pairs() -> None:
    sizes = config()
    whole = step_flops(sizes, TOKENS, PLACES, SEQUENCES)
    assert step_flops(sizes, TOKENS, PLACES, SEQUENCES, documents=[TOKENS] * SEQUENCES) == whole
    fewer = visible_pairs(TOKENS, WINDOW) - visible_pairs(30, WINDOW) - visible_pairs(7, WINDOW)
    apart = step_flops(sizes, TOKENS, PLACES, SEQUENCES, documents=[TOKENS, 30, 7])
    assert whole - apart == 12 * sizes.hidden_size * 3 * fewer


def test_the_peak_is_of_this_gpu_or_unknown() -> None:
    assert peak_flops("NVIDIA A100-SXM4-80GB", "bf16") == 312e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989.4e12
    assert peak_flops("NVIDIA GeForce RTX 4090", "fp32") == 82.6e12
    for name in (
        "NVIDIA A100-SXM4-80GB MIG 3g.40gb",
        "NVIDIA A10G",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "Some CPU",
    ):
        assert peak_flops(name, "bf16") is None
    assert peak_flops("Tesla V100-SXM2-32GB", "bf16") is None
    assert peak_flops("Tesla V100-SXM2-32GB", "fp32") == 15.7e12
