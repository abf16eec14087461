"""FLOPs of a training step, and what a GPU could do at the most: the two sides of MFU.

Counted are the matrix products, two FLOPs a multiplication and addition, as the mathematics wants them: a weight takes
part in one product forward and two backward, a pair of a query and a key that it sees in two forward and four backward.
Pairs are those of the window, not n²; the head, and in the last layer all that follows attention, run on the masked
places alone. That is a step's *model* FLOPs, and
MFU, model FLOPs utilisation (Chowdhery et al., PaLM, 2022, appendix B), is their rate over the GPU's peak. What an
implementation computes once more to save memory is counted apart, in `recomputed_flops`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from attention.pattern import visible_pairs
from trainer.model.charlm import CharacterConfig
from trainer.model.longformer import EncoderConfig


def step_flops(
    config: EncoderConfig,
    tokens: int,
    places: int,
    sequences: int = 1,
    documents: Sequence[int] | None = None,
    *,
    weights_trained: bool = True,
) -> int:
    """Model FLOPs of forward and backward over `sequences` sequences of `tokens` tokens with `places` masked ones each.

    documents: where documents are kept apart, the lengths of all their pieces in these sequences, which sum to their
    tokens. weights_trained: false where the gradient only passes through the weights (extra_positions_only), one
    product of the three less.
    """
    width = config.hidden_size
    head = sequences * places * (width**2 + width * config.vocab_size)
    products = 3 if weights_trained else 2
    weights = _layers_products(config, tokens * sequences, places * sequences) + head
    return 2 * (products * weights + 6 * width * _pairs(config, tokens, sequences, documents))


def rows_flops(config: EncoderConfig, lengths: Sequence[int]) -> int:
    """Model FLOPs of forward and backward of an encoder over rows of these lengths, which a downstream task reads.

    Without its global tokens and its head: they are few beside the band and the layers' weights.
    """
    weights = _layers_products(config, sum(lengths), sum(lengths))
    return 2 * (3 * weights + 6 * config.hidden_size * _pairs(config, 0, 0, lengths))


def character_step_flops(
    config: CharacterConfig, lookback: Sequence[int], characters: int, sequences: int = 1
) -> int:
    """Model FLOPs of forward and backward of a character model over sequences of so many characters, all predicted."""
    width = config.hidden_size
    layer = 4 * width**2 + 2 * width * config.intermediate_size
    weights = characters * (config.num_hidden_layers * layer + width * config.vocab_size)
    return 6 * sequences * weights + character_attention_flops(config, lookback, characters, sequences)


def character_attention_flops(
    config: CharacterConfig, lookback: Sequence[int], characters: int, sequences: int = 1
) -> int:
    """Of those the attention's: the ones of pairs, which are in fp32 whatever the precision."""
    pairs = sum(
        causal_pairs(characters, back, step)
        for number, back in enumerate(lookback)
        for step in config.steps_of_heads(number)
    )
    return 12 * sequences * (config.hidden_size // config.num_attention_heads) * pairs


def causal_pairs(characters: int, lookback: int, step: int) -> int:
    """Visible pairs of a causal head that sees itself and up to `lookback` characters before, every `step`-th."""
    # Of the characters i with i // step = b there are `step`, but for the last; each sees min(b, lookback) + 1.
    whole, rest = divmod(characters, step)
    full = min(whole, lookback + 1)
    pairs = full * (full + 1) // 2 + (whole - full) * (lookback + 1)
    return step * pairs + rest * (min(whole, lookback) + 1)


def recomputed_flops(
    config: EncoderConfig,
    tokens: int,
    sequences: int = 1,
    documents: Sequence[int] | None = None,
    *,
    places: int | None = None,
    activation_checkpointing: bool = False,
) -> int:
    """FLOPs that the backward pass spends on what the forward pass had: with `step_flops` the hardware's FLOPs.

    Attention computes its scores again, always; activation checkpointing every layer's forward pass, whose last one
    has `places` masked tokens a sequence to go on with after attention (None: all).
    """
    width, pairs = config.hidden_size, _pairs(config, tokens, sequences, documents)
    again = width * pairs
    if activation_checkpointing:
        read = sequences * (tokens if places is None else places)
        again += _layers_products(config, tokens * sequences, read) + 2 * width * pairs
    return 2 * again


def _layers_products(config: EncoderConfig, tokens: int, read: int) -> int:
    """Multiplications of all layers' weights with `tokens` tokens; after the last attention with the `read` ones.

    Query, key and value come before attention, its output and the two of the MLP after.
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    before, after = 3 * width**2, width**2 + 2 * width * config.intermediate_size
    return layers * tokens * before + ((layers - 1) * tokens + read) * after


def _pairs(config: EncoderConfig, tokens: int, sequences: int, documents: Sequence[int] | None) -> int:
    """Visible pairs of a head, over all layers."""
    lengths = [tokens] * sequences if documents is None else documents
    # RoBERTa's sees everything.
    windows = config.attention_window or [2 * max(lengths, default=0)] * config.num_hidden_layers
    counted = {
        (length, window): visible_pairs(length, window) for length in set(lengths) for window in windows
    }
    return sum(counted[length, window] for length in lengths for window in windows)


# Dense TFLOP/s of fp32 (IEEE, no tensor cores: the trainer never uses TF32) and of bf16 on tensor cores with fp32 sums,
# from NVIDIA's data sheets and architecture white papers, whose figures "with sparsity" are halved. None: not certain,
# or the GPU has no bf16. Keys match the whole name that torch.cuda.get_device_name gives, so that a slice of a GPU
# (MIG), a laptop's or a relative's (A10G) does not pass for it.
PEAKS: dict[str, tuple[float | None, float | None]] = {
    r"NVIDIA B200": (None, 2250),  # HGX B200: 4.5 PFLOPS sparse
    r"NVIDIA (H200|GH200 \d+GB)": (67, 989.4),  # H200 data sheet: 67 and 1,979 sparse
    r"NVIDIA H200 NVL": (60, 835.5),  # H200 data sheet: 60 and 1,671 sparse
    r"NVIDIA H100 \d+GB HBM3": (67, 989.4),  # H100 data sheet, SXM5: 67 and 1,979 sparse
    r"NVIDIA H100 PCIe": (51, 756),  # H100 data sheet, PCIe: 51 and 1,513 sparse
    r"NVIDIA H100 NVL": (60, 835.5),  # H100 NVL data sheet: 60 and 1,671 sparse
    r"(NVIDIA )?A100-(SXM4|PCIE)-\d+GB|NVIDIA A100 80GB PCIe": (19.5, 312),  # A100 data sheet
    r"NVIDIA A40": (37.4, 149.7),  # A40 data sheet
    r"NVIDIA A30": (10.3, 165),  # A30 data sheet
    r"NVIDIA A10": (31.2, 125),  # A10 data sheet
    r"NVIDIA L40S": (91.6, 362),  # L40S data sheet
    r"NVIDIA L40": (90.5, 181),  # L40 data sheet
    r"NVIDIA L4": (30.3, 121),  # L4 data sheet: 242 sparse
    r"(NVIDIA )?GeForce RTX 4090": (82.6, 165.2),  # Ada white paper, appendix A
    r"(NVIDIA )?GeForce RTX 3090": (35.6, 71),  # GA102 white paper, appendix A
    r"Tesla V100-SXM\d-\d+GB": (15.7, None),  # V100 data sheet
    r"Tesla V100-PCIE-\d+GB": (14, None),  # V100 data sheet
    r"(Tesla|NVIDIA) T4": (8.1, None),  # T4 data sheet
}


def peak_flops(name: str, precision: str) -> float | None:
    """FLOP/s that the GPU of this name reaches at the most in "fp32" or "bf16", densely; None where not known."""
    for pattern, (fp32, bf16) in PEAKS.items():
        if re.fullmatch(pattern, name):
            peak = bf16 if precision == "bf16" else fp32
            return None if peak is None else peak * 1e12
    return None
