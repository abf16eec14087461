"""What a run will take, before its first step: the batch's arithmetic, memory a process, time, and disk.

All of it is arithmetic over the configuration; nothing is allocated. Memory counts what autograd keeps of this model,
tensor by tensor, so a change of the model changes it here too; a test compares it with a real step's. Time is an
estimate: FLOPs over the rate that such steps reach, not over the peak.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from trainer.engine.config import GRADIENT_BUCKET, Pretraining, Training
from trainer.engine.flops import peak_flops, recomputed_flops, step_flops
from trainer.engine.monitor import duration
from trainer.model.heads import MaskedLanguageModel
from trainer.model.longformer import EncoderConfig

MFU = 0.35
"""Of a GPU's peak, what a step of an encoder of this size reaches as a rule: a guess, said to be one."""
OF_PRODUCTS = 0.85
"""On a CPU, of the rate of torch.mm, what a step reaches: `python -m trainer.benchmark` prints it as "of bound"."""
OVERHEAD = 0.02
"""Seconds of a step under which its products say nothing about it."""
GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at the peak of a step, by what they hold. The libraries themselves come on top."""

    weights: int
    """fp32 weights; with ZeRO the optimizer's own part of them, and with bf16 the copies that the products read."""
    gradients: int
    moments: int
    activations: int
    """What the layers keep for the backward pass, and the widest of what it needs beside them."""
    logits: int
    """Of the masked places over the vocabulary, and their gradient."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.activations + self.logits


def parameter_count(config: EncoderConfig) -> int:
    """Parameters of the masked-language model, without making it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MaskedLanguageModel(config).parameters())


def trained_count(config: EncoderConfig, training: Pretraining) -> int:
    """Parameters that the optimizer changes; of the position table all rows, though some of them may be held."""
    if training.extra_positions_only:
        return config.max_position_embeddings * config.hidden_size
    return parameter_count(config)


def masked_places(training: Pretraining) -> int:
    """Of a sequence; as `trainer.batches.masking` takes them."""
    return max(1, round(training.masked_fraction * (training.sequence_length - 2)))


def layer_bytes(config: EncoderConfig, training: Training, on_gpu: bool) -> tuple[int, int]:
    """Bytes a token that one layer keeps for its backward pass: up to its attention, and after it.

    In fp32, up to it: the layer's input, query, key and value, the attention's output, logsumexp. After it: that output
    laid out by token, two dropout masks, the inputs of both LayerNorms and the first one's output, the GELU's input
    and output. In bf16 the products' operands are 2 bytes wide, the residual stream stays fp32, and each of query, key
    and value has its own copy of the input.
    """
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    bf16 = training.precision == "bf16"
    operand = 2 if bf16 else 4
    mask = (
        (1 if on_gpu else operand) if config.hidden_dropout_prob else 0
    )  # a bool on GPUs, the factor on CPUs
    before = (3 * 2 * width if bf16 else 4 * width) + 4 * operand * width + 4 * heads
    norms = 2 * (4 * width + 8) + operand * width
    after = operand * width + 2 * mask * width + norms + 2 * operand * inner
    return before, after


def global_bytes(config: EncoderConfig, training: Training) -> int:
    """Bytes a token that the projections of global tokens add to a layer's: their query, key and value; in bf16 key and
    value have their own copies of the input."""
    return config.hidden_size * ((3 * 2 + 2 * 2) if training.precision == "bf16" else 3 * 4)


def rows_memory(
    config: EncoderConfig,
    training: Training,
    parameters: int,
    tokens: int,
    world_size: int,
    on_gpu: bool,
    global_projections: bool,
) -> Memory:
    """The peak of a step of a downstream task whose largest micro-batch has so many tokens, its padding included; what
    the head keeps comes on top. On a CPU few global tokens take less than is counted."""
    weights, gradients, moments = states(parameters, parameters, training, world_size)
    operand = 2 if training.precision == "bf16" else 4
    layer = sum(layer_bytes(config, training, on_gpu)) + global_projections * global_bytes(config, training)
    passing = operand * (2 * config.intermediate_size + 2 * config.hidden_size)
    kept = 8 * config.hidden_size + 24  # the embeddings
    if training.activation_checkpointing:
        kept += config.num_hidden_layers * 4 * config.hidden_size + layer
    else:
        kept += config.num_hidden_layers * layer
    return Memory(weights, gradients, moments, tokens * (kept + passing), 0)


def states(parameters: int, trained: int, training: Training, world_size: int) -> tuple[int, int, int]:
    """Bytes of weights, gradients and moments of one process."""
    stage = training.zero_stage
    share = -(-trained // world_size)
    weights = 4 * parameters + (4 * share if stage else 0)
    if training.precision == "bf16":
        weights += 2 * parameters
    gradients = 4 * trained
    if stage:
        bucket = 4 * min(GRADIENT_BUCKET, trained)  # beside its part of the reduced gradient
        gradients = bucket + 4 * share + (4 * trained if stage == 1 else 0)
    moments = 8 * (share if stage else trained)
    return weights, gradients, moments


def memory(config: EncoderConfig, training: Pretraining, world_size: int, on_gpu: bool) -> Memory:
    """The peak of a training step."""
    weights, gradients, moments = states(
        parameter_count(config), trained_count(config, training), training, world_size
    )
    operand = 2 if training.precision == "bf16" else 4
    tokens = training.micro_batch_size * training.sequence_length
    scored = training.micro_batch_size * masked_places(training)
    width, layers = config.hidden_size, config.num_hidden_layers
    before, after = layer_bytes(config, training, on_gpu)
    layer = tokens * (before + after)
    last = tokens * before + scored * after  # only masked places go on after the last attention
    embeddings = tokens * (8 * width + 24)  # the sum, its dropout mask; ids and positions
    head = scored * (2 * operand + 8) * width
    # The gradients of a layer's widest tensors, while its backward pass runs.
    passing = tokens * operand * (2 * config.intermediate_size + 2 * width)
    logits = 2 * operand * scored * config.vocab_size
    if training.activation_checkpointing:
        kept = layers * tokens * 4 * width + embeddings
        beside = layer + passing
    else:
        kept = (layers - 1) * layer + last + embeddings
        beside = passing
    # The logits are gone when the backward pass is through the head: what comes after may take their place.
    activations = kept + max(head, beside - logits)
    return Memory(weights, gradients, moments, activations, logits)


def disk(config: EncoderConfig, training: Pretraining) -> tuple[int, int]:
    """(bytes of a checkpoint, bytes of the export): fp32 weights and two moments; weights and global projections."""
    parameters = parameter_count(config)
    checkpoint = 4 * parameters + 8 * trained_count(config, training)
    width = config.hidden_size
    projections = (
        3 * config.num_hidden_layers * (width**2 + width) if config.architecture == "longformer" else 0
    )
    return checkpoint, 4 * (parameters + projections)


def readable(size: int) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB else f"{size / 2**20:,.1f} MiB"


def free_bytes(run: Path) -> int:
    """Of the file system on which RUN lies, or will."""
    existing = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


@lru_cache
def product_rate(seconds: float = 0.25) -> float:
    """FLOP/s of torch.mm on this process's threads, measured for about this long."""
    side = 768
    left, right = torch.ones(2 * side, side), torch.ones(side, side)
    torch.mm(left, right)
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        torch.mm(left, right)
        count += 1
    return count * 2 * 2 * side**3 / passed


def step_seconds(
    config: EncoderConfig, training: Pretraining, world_size: int, gpu: str | None
) -> float | None:
    """A step's estimated time; None on a GPU whose peak is not known. `gpu`: its name, None on a CPU.

    What counts are the passes of the busiest process. On a CPU its torch.mm is measured.
    """
    passes = passes_per_process(training, world_size)
    sequences = passes * training.micro_batch_size
    places, tokens = masked_places(training), training.sequence_length
    trained = not training.extra_positions_only
    model = step_flops(config, tokens, places, sequences, weights_trained=trained)
    again = recomputed_flops(
        config, tokens, sequences, places=places, activation_checkpointing=training.activation_checkpointing
    )
    # Layers that are computed again reach what they reached before, so the rate is that of all products.
    return seconds_of(model + again, training.precision, gpu)


def seconds_of(flops: float, precision: str, gpu: str | None) -> float | None:
    """How long a process takes for so many FLOPs of products; None on a GPU whose peak is not known."""
    if gpu is None:
        return flops / (product_rate() * OF_PRODUCTS)
    peak = peak_flops(gpu, precision)
    return None if peak is None else flops / (peak * MFU)


def passes_per_process(training: Pretraining, world_size: int) -> int:
    return -(-training.batch_size // training.micro_batch_size // world_size)


def describe_plan(
    config: EncoderConfig, training: Pretraining, sequences: int, world_size: int, gpu: str | None = None
) -> list[str]:
    """Lines for the log and for --dry-run.

    sequences: of the training split. gpu: the name of this node's GPUs as torch.cuda.get_device_name gives it, None
    where the processes run on CPUs.
    """
    parameters, trained = parameter_count(config), trained_count(config, training)
    micro = training.batch_size // training.micro_batch_size
    passes = passes_per_process(training, world_size)
    per_step = training.batch_size * training.sequence_length
    epochs = training.steps * training.batch_size / sequences
    windows = sorted(set(config.attention_window))
    seen = f", window {'-'.join(map(str, windows[:: max(1, len(windows) - 1)]))}" if windows else ""
    idle = passes * world_size - micro
    return [
        f"model     {config.architecture}, {config.num_hidden_layers} layers × {config.hidden_size}{seen}, "
        f"{parameters:,} parameters ({trained:,} trained), {config.max_tokens:,} positions",
        f"corpus    {training.corpus}: {sequences:,} sequences of {training.sequence_length:,} tokens",
        f"batch     {training.batch_size} sequences = {micro} micro-batches of {training.micro_batch_size}, "
        f"{passes} on each of {world_size} processes"
        + (f" ({idle} of them idle in the last)" if idle else ""),
        f"steps     {training.steps:,} = {training.steps * per_step:,} tokens, {epochs:.2f} epochs",
        *describe_memory(memory(config, training, world_size, gpu is not None), gpu),
        "time      "
        + describe_time(
            step_seconds(config, training, world_size, gpu), training.steps, per_step, training.precision, gpu
        ),
        *describe_disk(*disk(config, training), training, training.steps),
    ]


def describe_memory(found: Memory, gpu: str | None) -> list[str]:
    line = f"memory    {memory_parts(found)}; the libraries come on top"
    if gpu is None:
        line += ", and what glibc keeps in reserve"
    return [line, *memory_warning(found, gpu)]


def memory_parts(found: Memory) -> str:
    """The peak and what it holds, in words."""
    parts = {
        "weights": found.weights,
        "gradients": found.gradients,
        "moments": found.moments,
        "activations": found.activations,
        "logits": found.logits,
    }
    listed = " + ".join(f"{readable(size)} {name}" for name, size in parts.items() if size)
    return f"about {readable(found.total)} a process = {listed}"


def memory_warning(found: Memory, gpu: str | None) -> list[str]:
    """A line where the GPU of this process has not so much."""
    if gpu is None or not torch.cuda.is_available():
        return []
    there = torch.cuda.get_device_properties(0).total_memory
    if found.total < 0.95 * there:
        return []
    return [
        f"warning   this GPU has {readable(there)}: a smaller micro_batch_size, activation_checkpointing or "
        f"zero_stage 1 takes less"
    ]


def describe_time(seconds: float | None, steps: int, tokens: int, precision: str, gpu: str | None) -> str:
    """Of so many steps of `tokens` tokens, in words; `seconds` a step."""
    if seconds is None:
        return f"not estimated: the peak of {gpu} in {precision} is not known here"
    if seconds < OVERHEAD:
        return f"not estimated: the products of a step take {seconds * 1e3:.1f} ms, less than all around them"
    how = f"{MFU:.0%} of the peak of {gpu}" if gpu else f"{OF_PRODUCTS:.0%} of what torch.mm reaches here"
    return (
        f"about {duration(steps * seconds)}: {seconds:.3g} s a step, {tokens / seconds:,.0f} tokens/s, "
        f"if it reaches {how}"
    )


def describe_disk(checkpoint: int, export: int, training: Training, steps: int) -> list[str]:
    """Of a run that keeps checkpoints and an export of so many bytes."""
    keep = training.checkpoint
    kept = keep.keep_last + (steps // keep.keep_every if keep.keep_every else 0)
    needed, free = (
        (kept + 1) * checkpoint + export,
        free_bytes(training.run),
    )  # one more is written beside them
    lines = [
        f"disk      {readable(needed)} in {training.run} = {kept} + 1 checkpoints of {readable(checkpoint)} + "
        f"export of {readable(export)}; {readable(free)} free"
    ]
    if needed > free:
        lines.append(f"warning   {training.run} has no room for that: free some, or keep fewer checkpoints")
    return lines
