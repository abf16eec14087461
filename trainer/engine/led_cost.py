"""FLOPs and memory of a step of LED: its encoder's as any encoder's, its decoder's and its logits' beside them.

Counted as in `flops` and `estimate`. A decoder layer of transformers keeps a number for each pair of a summary's token
with another and with each of the document's, for every head: at 16,384 tokens that is most of what a step keeps.
"""

from __future__ import annotations

from collections.abc import Iterable

from trainer.engine.config import Training
from trainer.engine.estimate import Memory, global_bytes, layer_bytes, states
from trainer.engine.flops import rows_flops
from trainer.model.led_model import LedSizes, encoder_sizes


def led_flops(sizes: LedSizes, lengths: Iterable[tuple[int, int]]) -> int:
    """Model FLOPs of forward and backward over examples of (tokens read, tokens of the summary).

    The decoder's projections of the document, its attention to all of it, and the logits of each of its tokens.
    """
    width, layers = sizes.d_model, sizes.decoder_layers
    read, written, pairs = [], 0, 0
    for document, summary in lengths:
        read.append(document)
        written += summary
        pairs += summary * document + summary * (summary + 1) // 2
    for_written = 6 * width**2 + 2 * width * sizes.decoder_ffn_dim
    weights = layers * (written * for_written + sum(read) * 2 * width**2) + written * width * sizes.vocab_size
    decoder = 2 * (3 * weights + 6 * width * layers * pairs)
    return rows_flops(encoder_sizes(sizes), read) + decoder


def decoder_layer_bytes(sizes: LedSizes, training: Training, on_gpu: bool) -> tuple[int, int, int]:
    """Bytes that a layer of the decoder keeps for its backward pass: a token of the summary, a token of the document,
    and a pair of tokens that meet in its attention, in a batch that is padded.

    Of a summary's token: the input, and query, key, value and output of the attention to the summary, query and output
    of that to the document, the inputs of the three LayerNorms and two of their outputs, the GELU's input and output,
    dropout's masks. Of a document's: key and value. Of a pair: the weight before and after dropout, and its mask. In
    bf16 the products' operands are 2 bytes wide, and each product has its own copy of its input.
    """
    width, inner, heads = sizes.d_model, sizes.decoder_ffn_dim, sizes.decoder_attention_heads
    bf16 = training.precision == "bf16"
    operand = 2 if bf16 else 4
    mask = 1 if on_gpu else operand  # a bool on GPUs, the factor on CPUs
    inputs = 5 * 2 * width if bf16 else 3 * 4 * width
    written = inputs + 6 * operand * width + 3 * (4 * width + 8) + 2 * operand * inner
    written += 3 * mask * width * bool(sizes.dropout) + mask * inner * bool(sizes.activation_dropout)
    read = 2 * operand * width + (2 * 2 * width if bf16 else 0)
    pair = 4 + (operand if bf16 else 0)  # in float32 wherever there is padding, and another for the product
    if sizes.attention_dropout:
        pair += (1 if on_gpu else 4) + (0 if bf16 else 4)
    return written, read, heads * pair


def led_memory(
    sizes: LedSizes,
    training: Training,
    parameters: int,
    examples: int,
    document: int,
    summary: int,
    world_size: int,
    on_gpu: bool,
) -> Memory:
    """The peak of a step whose largest micro-batch has so many examples of so many tokens each, padding included."""
    config = encoder_sizes(sizes)
    width, bf16 = sizes.d_model, training.precision == "bf16"
    operand = 2 if bf16 else 4
    read, written = examples * document, examples * summary
    pairs = written * (document + summary)
    layer = sum(layer_bytes(config, training, on_gpu))
    layer += sizes.encoder_ffn_dim * (1 if on_gpu else operand) * bool(sizes.activation_dropout)
    # The one global token of each row: on a CPU its projections alone, over the input that bf16 has no other copy of.
    layer += global_bytes(config, training) if on_gpu else (4 * width if bf16 else 0)
    of_written, of_read, of_pair = decoder_layer_bytes(sizes, training, on_gpu)
    encoder_layer = read * layer
    decoder_layer = written * of_written + read * of_read + pairs * of_pair
    embeddings = 8 * width + 24
    encoder = read * embeddings
    decoder = written * embeddings + 8 * width * read  # and the hidden states, as they are and filled up
    if training.activation_checkpointing:
        encoder += sizes.encoder_layers * 4 * width * read
        decoder += sizes.decoder_layers * 4 * width * written
    else:
        encoder += sizes.encoder_layers * encoder_layer
        decoder += sizes.decoder_layers * decoder_layer
    again = training.activation_checkpointing
    # The gradients of a layer's widest tensors, while its backward pass runs: two at a time, by when what the product
    # behind them had kept for itself is gone.
    a_pair = 8 if bf16 or not sizes.attention_dropout else 4
    in_decoder = decoder_layer * again + a_pair * sizes.decoder_attention_heads * pairs
    in_encoder = encoder_layer * again + read * operand * (sizes.encoder_ffn_dim + 2 * width)
    logits = 2 * operand * written * sizes.vocab_size
    peak = max(encoder + decoder + max(logits, in_decoder), encoder + in_encoder)
    return Memory(*states(parameters, parameters, training, world_size), peak - logits, logits)
