"""What the phases of a character model's training will take: as `estimate` does for masked-language models."""

from __future__ import annotations

import torch

from trainer.engine.character_config import CharacterPhase, CharacterTraining
from trainer.engine.estimate import (
    Memory,
    describe_disk,
    describe_time,
    memory_parts,
    memory_warning,
    seconds_of,
    states,
)
from trainer.engine.flops import character_attention_flops, character_step_flops
from trainer.engine.monitor import duration
from trainer.engine.phases import Phases
from trainer.model.charlm import CharacterConfig, CharacterModel


def character_parameters(config: CharacterConfig) -> int:
    """Parameters, without making the model."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CharacterModel(config).parameters())


def character_layer_bytes(config: CharacterConfig, precision: str, on_gpu: bool) -> int:
    """Bytes a character that one layer keeps for its backward pass.

    Of a sequence alone; the angles that turn query and key, of several together, are counted with it.
    The layer's input and, as the products read it, its LayerNorm's output; the projections, of which the values are a
    view, query and key turned, the attention's output and logsumexp, all in float32; that output laid out by character,
    a dropout mask; input and output of the second LayerNorm; the GELU's input, a dropout mask, what it leaves; the last
    dropout mask.
    """
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    operand = 2 if precision == "bf16" else 4
    mask = (1 if on_gpu else operand) if config.dropout else 0
    norms = 2 * (4 * width + 8 + operand * width)
    angles = 2 * 8 * (width // heads // 2)  # as complex numbers, for query and key
    attention = 4 * (3 + 2 + 1) * width + angles + 4 * heads + operand * width + mask * width
    feed_forward = 2 * operand * inner + mask * inner + mask * width
    return norms + attention + feed_forward


def character_memory(
    config: CharacterConfig, training: CharacterTraining, phase: CharacterPhase, world_size: int, on_gpu: bool
) -> Memory:
    """The peak of a step of a phase."""
    parameters = character_parameters(config)
    weights, gradients, moments = states(parameters, parameters, training, world_size)
    operand = 2 if training.precision == "bf16" else 4
    characters = phase.micro_batch_size * phase.sequence_length
    width = config.hidden_size
    layer = characters * character_layer_bytes(config, training.precision, on_gpu)
    mask = (1 if on_gpu else 4) if config.dropout else 0
    # Embeddings and ids; the last LayerNorm's input and output.
    ends = characters * (mask * width + 16 + 4 * width + 8 + operand * width)
    # The gradients of a layer's widest tensors, while its backward pass runs.
    passing = characters * (2 * operand * config.intermediate_size + 4 * 3 * width)
    if training.activation_checkpointing:
        kept, beside = config.num_hidden_layers * characters * 4 * width + ends, layer + passing
    else:
        kept, beside = config.num_hidden_layers * layer + ends, passing
    # In the products' precision and in float32, their softmax and its gradient.
    logits = characters * config.vocab_size * (operand % 4 + 4 + 4 + 4)
    return Memory(weights, gradients, moments, kept + max(0, beside - logits), logits)


def describe_character_plan(
    config: CharacterConfig,
    training: CharacterTraining,
    sizes: tuple[int, int, int],
    phases: Phases,
    world_size: int,
    gpu: str | None = None,
) -> list[str]:
    """Lines for the log and for --dry-run; arguments as those of `estimate.describe_plan`."""
    parameters = character_parameters(config)
    dilated = sorted({*config.dilation} - {1})
    gaps = f", {config.dilated_heads} of them dilated up to {dilated[-1]}" if dilated else ""
    seconds = [_seconds(config, training, phase, world_size, gpu) for phase in training.phases]
    known = [each for each in seconds if each is not None]
    lines = [
        f"model     characters, {config.num_hidden_layers} layers × {config.hidden_size}, "
        f"{config.num_attention_heads} heads{gaps}, {parameters:,} parameters, {config.vocab_size} symbols",
        f"text      {training.text.path}: {' + '.join(f'{size:,}' for size in sizes)} characters (train, "
        f"validation, test)",
        f"steps     {phases.steps:,} in {len(phases)} phase{'s' * (len(phases) > 1)} = "
        f"{phases.tokens(phases.steps):,} characters, {phases.epochs(phases.steps):.2f} epochs",
    ]
    if len(known) == len(seconds) and len(seconds) > 1:
        total = sum(phase.steps * each for phase, each in zip(training.phases, known, strict=True))
        lines.append(f"time      about {duration(total)} in all")
    lines += describe_disk(12 * parameters, 4 * parameters, training, phases.steps)
    for number in range(len(phases)):
        lines += describe_character_phase(config, training, phases, number, world_size, gpu)
    return lines


def describe_character_phase(
    config: CharacterConfig,
    training: CharacterTraining,
    phases: Phases,
    number: int,
    world_size: int,
    gpu: str | None = None,
) -> list[str]:
    """What one phase does and takes, in lines."""
    phase, steps = training.phases[number], phases.phases[number]
    passes = -(-steps.micro_batches // world_size)
    memory = character_memory(config, training, phase, world_size, gpu is not None)
    low, high = min(phase.lookback), max(phase.lookback)
    return [
        f"phase {number + 1:<4}{phase.steps:,} steps of {phase.batch_size} sequences × {phase.sequence_length:,} "
        f"characters = {steps.micro_batches} micro-batches of {phase.micro_batch_size}, {passes} on each of "
        f"{world_size} processes; {phase.steps * phase.batch_size / steps.sequences:.2f} epochs",
        f"          looking back {low:,} to {high:,} a layer, {config.reach(phase.lookback):,} in all; learning rate "
        f"{phase.learning_rate:.4g} after {phase.warmup:,} updates, {phase.decay}",
        f"          {memory_parts(memory)}",
        *memory_warning(memory, gpu),
        "          "
        + describe_time(
            _seconds(config, training, phase, world_size, gpu),
            phase.steps,
            phase.batch_size * phase.sequence_length,
            training.precision,
            gpu,
        ),
    ]


def _seconds(
    config: CharacterConfig,
    training: CharacterTraining,
    phase: CharacterPhase,
    world_size: int,
    gpu: str | None,
) -> float | None:
    """A step's estimated time."""
    micro_batches = phase.batch_size // phase.micro_batch_size
    sequences = -(-micro_batches // world_size) * phase.micro_batch_size
    shape = (config, phase.lookback, phase.sequence_length, sequences)
    again = 4 / 3 if training.activation_checkpointing else 1
    attention = character_attention_flops(*shape)
    others = seconds_of(again * (character_step_flops(*shape) - attention), training.precision, gpu)
    in_fp32 = seconds_of(again * attention, "fp32", gpu)
    return None if others is None or in_fp32 is None else others + in_fp32
