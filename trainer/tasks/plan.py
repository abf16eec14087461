"""What a finetuning will do, in lines: the model, the data with the lengths of its contexts, the steps."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.engine.estimate import describe_disk, describe_memory, describe_time, rows_memory, seconds_of
from trainer.engine.led_cost import led_memory
from trainer.engine.phases import Phases
from trainer.model.led_model import LedModel
from trainer.model.task_model import TaskModel
from trainer.tasks.config import Finetuning
from trainer.tasks.example_store import Examples


def describe_finetuning(
    config: Finetuning,
    task: str,
    model: TaskModel | LedModel,
    splits: Mapping[str, Examples],
    phases: Phases,
    world_size: int,
    gpu: str | None,
) -> list[str]:
    """For the log and for --dry-run; `gpu` is the name of this node's, None on CPUs."""
    sizes, phase = model.config, phases.phases[0]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    encoder = sum(parameter.numel() for parameter in model.encoder.parameters())
    windows = sorted(set(sizes.attention_window))
    seen = f", window {'-'.join(map(str, windows))}" if windows else ", full attention"
    schedule = config.optimizer
    rates = f"{schedule.learning_rate:g}"
    if schedule.task_learning_rate is not None:
        rates += f" (heads {schedule.task_learning_rate:g})"
    if isinstance(model, LedModel):
        named, others = f"LED, {sizes.num_hidden_layers} + {model.sizes.decoder_layers}", "the decoder's"
    else:
        named, others = f"{sizes.architecture}, {sizes.num_hidden_layers}", "heads"
    lines = [
        f"model     {named} layers × {sizes.hidden_size}{seen}, "
        f"{parameters:,} parameters ({parameters - encoder:,} of them {others})"
    ]
    for name, examples in splits.items():
        lines += [f"{name:9} {line}" for line in describe_examples(examples, config)]
    return [
        *lines,
        f"batch     {config.batch_size} examples = {phase.micro_batches} micro-batches of {config.micro_batch_size}, "
        f"those of like length together, {-(-phase.micro_batches // world_size)} on each of {world_size} processes",
        f"steps     {phase.steps:,} = {phases.epochs(phase.steps):.2f} epochs of {task}, learning rate {rates}, "
        f"{phase.warmup_steps} of warm-up, {schedule.decay} decay",
        *_cost(config, model, splits["train"], phases, world_size, gpu),
    ]


def _cost(
    config: Finetuning,
    model: TaskModel | LedModel,
    train: Examples,
    phases: Phases,
    world_size: int,
    gpu: str | None,
) -> list[str]:
    """Memory at the longest examples, time of all steps at the mean one, and disk."""
    phase, parameters = phases.phases[0], sum(parameter.numel() for parameter in model.parameters())
    examples, on_gpu = config.micro_batch_size, gpu is not None
    if isinstance(model, LedModel):
        longest = int(train.longest_rows.max()), int(train.scored.max())
        found = led_memory(model.sizes, config, parameters, examples, *longest, world_size, on_gpu)
    else:
        tokens = examples * int((train.rows * train.longest_rows).max())
        own = model.global_projections
        found = rows_memory(model.config, config, parameters, tokens, world_size, on_gpu, own)
    passes = -(-phase.micro_batches // world_size)
    seconds = seconds_of(phase.flops * passes / phase.micro_batches, config.precision, gpu)
    per_step = phase.batch_size * phase.tokens
    return [
        *describe_memory(found, gpu),
        f"time      {describe_time(seconds, phase.steps, per_step, config.precision, gpu)}",
        *describe_disk(12 * parameters, 4 * parameters, config, phase.steps),
    ]


def describe_examples(examples: Examples, config: Finetuning) -> list[str]:
    """How many, how long, what does not fit, what was left out."""
    found = examples.context_lengths()
    cut = int((examples.tokens_cut > 0).sum())
    several = int((examples.rows > 1).sum())
    lines = [
        f"{len(examples):,} examples; context in wordpieces: mean {found.mean:,.0f}, 95th percentile "
        f"{found.percentile_95:,.0f}, longest {found.longest:,} (table 6)"
    ]
    if cut:
        share = examples.tokens_cut.sum() / max(1, examples.context_tokens.sum())
        lines.append(
            f"{cut:,} cut at {config.sequence_length:,} tokens: {share:.1%} of all context is not read"
        )
    if several:
        lines.append(f"{several:,} read in several rows of at most {config.sequence_length:,} tokens")
    lines += [f"left out {count:,}: {reason}" for reason, count in examples.skipped.items()]
    return lines
