"""Masked-language-model pretraining under the DeepSpeed launcher.

    deepspeed trainer/pretrain.py --config trainer/configs/longformer_base.yaml [--any.key value …] [--dry-run]

Continues a RoBERTa or a Longformer folder (or trains a new model) on a corpus of pipeline.build_corpus. The same
command again resumes from the newest complete checkpoint by itself, on any number of processes and any ZeRO stage.
On CPU: DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 deepspeed --num_gpus PROCESSES trainer/pretrain.py …

RUN/config.yaml, RUN/metrics.jsonl, RUN/tensorboard/, RUN/checkpoints/step-00000100/ and RUN/export/ are written.

Keys (of the YAML, or as --key value):
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from pipeline.shards import write_atomically
from trainer.batches.corpus import MaskedBatch, Sequences, as_batch, corpus_masking, open_sequences
from trainer.batches.masking import IGNORED, Masking
from trainer.batches.order import SequenceOrder
from trainer.engine import deepspeed as engine_module
from trainer.engine.checkpoint import Checkpoint, newest_checkpoint, prune_checkpoints, save_checkpoint
from trainer.engine.config import InputError, NewModel, Pretraining, load_config, parse_arguments
from trainer.engine.deepspeed import Engine, all_reduce_sum, on_first_rank, rank, world_size
from trainer.engine.monitor import Monitor
from trainer.engine.randomness import as_seed, attention_dropout_seeds, hash64, reseed_torch
from trainer.engine.schedule import learning_rate
from trainer.export import export_checkpoint
from trainer.model.folder import config_json, load_model, locate_model, tokenizer_fingerprint
from trainer.model.heads import MaskedLanguageModel, masked_loss_sum
from trainer.model.longformer import EncoderConfig, set_sinusoidal_positions

TIME_TO_SPEAK = 10  # seconds that a node's first rank has to say what is wrong
INTERRUPTED = 143  # the exit status of a run that SIGTERM stopped, after its checkpoint


@dataclass
class Prepared:
    """Everything a run needs, checked against each other before the first process talks to another."""

    config: Pretraining
    sequences: Sequences
    masking: Masking
    model: MaskedLanguageModel

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint must agree on to be continued: whatever decides batches, masks and updates."""
        exact = self.config.exact()
        if not isinstance(self.config.model, NewModel):
            del exact["model"]  # by what it is, not by where it lies
        return {
            "config": exact,
            "model": self.model.config.as_dict(),
            "corpus": self.sequences.corpus.fingerprint,
        }


def prepare(config: Pretraining) -> Prepared:
    """Open corpus and model, and check that they fit; InputError names every misfit."""
    sequences = open_sequences(config.corpus, "train", config.sequence_length)
    corpus = sequences.corpus
    torch.manual_seed(as_seed("initial weights", config.seed))
    problems = []
    if isinstance(config.model, NewModel):
        model = MaskedLanguageModel(new_encoder_config(config.model, config.sequence_length, sequences))
        if config.model.sinusoidal_positions:
            set_sinusoidal_positions(model.encoder.embeddings, config.model.initializer_range)
    else:
        folder = locate_model(config.model)
        model = load_model(folder)
        found = tokenizer_fingerprint(folder)
        if model.config.vocab_size < corpus.vocabulary_size:
            problems.append(
                f"model: {folder} has a vocabulary of {model.config.vocab_size}, "
                f"expected at least {corpus.vocabulary_size} as {config.corpus} has"
            )
        elif found is not None and found != corpus.tokenizer_fingerprint:
            problems.append(
                f"model: the tokenizer in {folder} is {found}, expected {corpus.tokenizer_fingerprint}, "
                f"the one that made {config.corpus}"
            )
        if model.config.max_tokens < config.sequence_length:
            problems.append(
                f"model: {folder} has positions for {model.config.max_tokens} tokens, expected at least "
                f"sequence_length {config.sequence_length} (python -m trainer.convert lengthens a model)"
            )
        if model.config.pad_token_id != corpus.pad_id:
            problems.append(
                f"model: {folder} has pad_token_id {model.config.pad_token_id}, expected the corpus's {corpus.pad_id}"
            )
        if config.extra_positions_only and not model.config.original_max_position_embeddings:
            problems.append(
                f"extra_positions_only: {folder} does not say how many positions it had before conversion; "
                f"expected a folder made by trainer.convert"
            )
    if problems:
        raise InputError("\n".join(problems))
    encoder = model.encoder
    encoder.activation_checkpointing = config.activation_checkpointing
    if config.extra_positions_only:
        encoder.embeddings.frozen_positions = model.config.original_max_position_embeddings
    return Prepared(config, sequences, corpus_masking(corpus, config.masked_fraction), model)


def new_encoder_config(new: NewModel, tokens: int, sequences: Sequences) -> EncoderConfig:
    """A new model's sizes, with the vocabulary and special ids of the corpus and positions for `tokens`."""
    values = new.model_dump(exclude={"attention_window", "sinusoidal_positions"})
    ids = sequences.corpus.special_ids
    return EncoderConfig(
        **values,
        vocab_size=sequences.corpus.vocabulary_size,
        max_position_embeddings=tokens + ids["pad"] + 1,
        attention_window=[new.attention_window] * new.num_hidden_layers
        if new.architecture == "longformer"
        else [],
        bos_token_id=ids["bos"],
        pad_token_id=ids["pad"],
        eos_token_id=ids["eos"],
    )


def masked_loss(model: nn.Module, batch: MaskedBatch, dropout_seeds: Tensor) -> Tensor:
    """The summed loss of one micro-batch."""
    logits = model(batch.input_ids, batch.places, batch.attention_mask, batch.document_ids, dropout_seeds)
    return masked_loss_sum(logits, batch.labels)


def micro_batch(prepared: Prepared, step: int, chosen: np.ndarray, places: np.ndarray) -> MaskedBatch:
    """The masked batch of the sequences `chosen`, which stand at `places` of the step's batch.

    Masks are a function of (seed, step, place): a sequence that a small corpus repeats in a batch gets other ones.
    """
    config = prepared.config
    masked = prepared.masking.apply(
        prepared.sequences.input_ids(chosen), hash64("masks", config.seed, step, places)
    )
    documents = prepared.sequences.document_ids(chosen) if config.mask_documents else None
    return as_batch(masked, prepared.sequences.corpus.pad_id, documents)


def describe_plan(prepared: Prepared) -> str:
    """What the run will do, for the log and for --dry-run."""
    config, model = prepared.config, prepared.model
    parameters = sum(p.numel() for p in model.parameters())
    trained = parameters
    if config.extra_positions_only:
        trained = model.encoder.embeddings.position_embeddings.weight.numel()
    micro = config.batch_size // config.micro_batch_size
    passes = -(-micro // int(os.environ.get("WORLD_SIZE", "1")))
    tokens = config.steps * config.batch_size * config.sequence_length
    # fp32 weights and gradients on every process; Adam's two moments are divided from ZeRO 1 on.
    moments = trained * 8 / (int(os.environ.get("WORLD_SIZE", "1")) if config.zero_stage else 1)
    states = (parameters * 4 + trained * 4 + moments) / 2**30
    return "\n".join(
        [
            f"model     {model.config.architecture}, {parameters:,} parameters ({trained:,} trained), "
            f"{model.config.max_tokens:,} positions",
            f"corpus    {config.corpus}: {len(prepared.sequences):,} sequences of {config.sequence_length:,} tokens",
            f"batch     {config.batch_size} sequences = {micro} micro-batches of {config.micro_batch_size}, "
            f"{passes} on each of {os.environ.get('WORLD_SIZE', '1')} processes",
            f"steps     {config.steps:,} = {tokens:,} tokens, "
            f"{config.steps * config.batch_size / len(prepared.sequences):.2f} epochs",
            f"memory    {states:.2f} GiB a process for weights, gradients and Adam's moments; activations come on top",
        ]
    )


def lock_run(run: Path) -> TextIO:
    """The run's one-writer lock; held until the process ends, however it ends."""
    run.mkdir(parents=True, exist_ok=True)
    lock = (run / ".lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"{run}: another training is writing here") from error
    return lock


def check_same_run(checkpoint: Checkpoint, facts: dict[str, Any]) -> None:
    """Refuse to continue a checkpoint under other numbers; names each key that differs."""
    expected = json.loads(json.dumps(facts))
    differing = []
    for section in ("config", "model", "corpus"):
        was, is_now = checkpoint.facts[section], expected[section]
        if isinstance(was, dict):
            differing += [
                f"  {key}: found {is_now.get(key)!r}, expected {was.get(key)!r}"
                for key in sorted(was.keys() | is_now.keys())
                if was.get(key) != is_now.get(key)
            ]
        elif was != is_now:
            differing.append(f"  {section}: found {is_now!r}, expected {was!r}")
    if differing:
        raise InputError(
            f"{checkpoint.folder} was trained under another configuration; give another --run, or restore:\n"
            + "\n".join(differing)
        )


def train(prepared: Prepared) -> int:
    """Run to the last step, or to the first step after SIGTERM; returns the exit status."""
    config, facts = prepared.config, prepared.facts
    checkpoints = config.run / "checkpoints"
    main = rank() == 0
    lock: list[TextIO] = []

    def claim() -> Checkpoint | None:
        lock.append(lock_run(config.run))
        found = newest_checkpoint(checkpoints, report=lambda line: print(line, file=sys.stderr, flush=True))
        if found is not None:
            check_same_run(found, facts)
        settings = yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False)
        write_atomically(config.run / "config.yaml", settings.encode())
        return found

    checkpoint = on_first_rank(claim)
    start = checkpoint.step if checkpoint else 0
    prepared.model.to(engine_module.device())
    engine = Engine(prepared.model, masked_loss, config)
    if checkpoint:
        engine.load_state(checkpoint.state(), start)
    if main:
        print(describe_plan(prepared), flush=True)
        print(f"start     step {start} of {config.steps}, run in {config.run}", flush=True)
    monitor = None
    if main:
        monitor = Monitor(config.run, start, config.steps, engine_module.monitors(config.run))

    stop_requested = False

    def request_stop(number: int, frame: FrameType | None) -> None:
        nonlocal stop_requested
        stop_requested = True

    signal.signal(signal.SIGTERM, request_stop)

    order = SequenceOrder(len(prepared.sequences), config.seed)
    size = config.micro_batch_size
    layers = prepared.model.config.num_hidden_layers
    device = engine_module.device()
    settings = config.optimizer
    prepared.model.train()
    since, logged = time.monotonic(), start
    for step in range(start + 1, config.steps + 1):
        chosen = order.batch(step, config.batch_size)
        passes = []
        for number, weight in engine.assigned():
            places = np.arange(number * size, (number + 1) * size)
            passes.append((number, weight, places, micro_batch(prepared, step, chosen[places], places)))
        scored = sum(weight * float((batch.labels != IGNORED).sum()) for _, weight, _, batch in passes)
        # A batch of special tokens alone has nothing to score: its loss and gradient are 0.
        denominator = max(1.0, *all_reduce_sum(scored))
        total = torch.zeros((), dtype=torch.float64, device=device)
        for turn, (number, weight, places, batch) in enumerate(passes):
            if turn:
                engine.next_pass()
            reseed_torch(config.seed, step, number)
            seeds = torch.from_numpy(attention_dropout_seeds(config.seed, step, places, layers)).to(device)
            loss = engine.engine(batch.to(device), seeds)
            engine.backward(loss * weight, denominator)
            total += weight * loss.detach()
        loss_sum, stopping = all_reduce_sum(float(total), float(stop_requested))
        if not math.isfinite(loss_sum):
            raise FloatingPointError(
                f"step {step}: the loss is {loss_sum}; its sequences are {chosen.tolist()}. Nothing was updated; "
                f"the last checkpoint is intact"
            )
        rate = learning_rate(
            step,
            peak=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            steps=config.steps,
            decay=settings.decay,
            power=settings.power,
        )
        norm = engine.update(rate)
        if norm is not None and not math.isfinite(norm):
            # ZeRO tells the norm only after its update; nothing of it is saved.
            raise FloatingPointError(
                f"step {step}: the gradient's norm is {norm}; its sequences are {chosen.tolist()}. "
                f"The last checkpoint is intact"
            )
        if monitor:
            monitor.advance()
            if step % config.log_every == 0 or step in (1, config.steps):
                now = time.monotonic()
                tokens = (step - logged) * config.batch_size * config.sequence_length
                mean = loss_sum / denominator
                row = {
                    "step": step,
                    "loss": mean,
                    "bpc": mean / math.log(2),
                    "learning_rate": rate,
                    "grad_norm": norm,
                    "epoch": step * config.batch_size / len(prepared.sequences),
                    "tokens_per_second": tokens / (now - since),
                }
                monitor.log(row)
                since, logged = now, step
        if step % config.checkpoint.every == 0 or step == config.steps or stopping:
            save(prepared, engine, step, facts)
        if stopping and step < config.steps:
            if main:
                print(
                    f"SIGTERM: stopped after step {step}, checkpoint saved; the same command resumes",
                    flush=True,
                )
            return INTERRUPTED
    if monitor:
        monitor.close()
    on_first_rank(lambda: finish(config))
    return 0


def save(prepared: Prepared, engine: Engine, step: int, facts: dict[str, Any]) -> None:
    """Save a checkpoint; every rank takes part in gathering, the first writes."""
    state = engine.state()
    corpus = prepared.sequences.corpus
    checkpoints = prepared.config.run / "checkpoints"

    def write() -> None:
        extra = {
            "config.json": json.dumps(config_json(prepared.model.config), indent=2) + "\n",
            "tokenizer.json": (corpus.folder / "tokenizer.json").read_text(encoding="utf-8"),
        }
        save_checkpoint(checkpoints, step, state, facts, extra)
        prune_checkpoints(checkpoints, prepared.config.checkpoint.keep_last, newest=step)

    on_first_rank(write)


def finish(config: Pretraining) -> None:
    """Export the last step's weights to RUN/export."""
    last = config.run / "checkpoints" / f"step-{config.steps:08d}"
    export_checkpoint(last, config.run / "export")
    print(f"done: {config.run / 'export'} (transformers' from_pretrained loads it)", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        path, overrides, dry_run = parse_arguments(
            sys.argv[1:] if arguments is None else arguments, __doc__ or ""
        )
        prepared = prepare(load_config(path, overrides))
        if dry_run:
            if rank() == 0:
                print(describe_plan(prepared))
            return 0
        engine_module.start_processes()
        if rank() == 0:
            print(f"{world_size()} processes on {engine_module.device().type}", flush=True)
        return train(prepared)
    except (InputError, FloatingPointError) as error:
        # Once a node: a file system may be missing on one that is not the first.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"pretrain: {error}", file=sys.stderr, flush=True)
        else:
            # The launcher ends all ranks when one of them fails: the one that speaks must not be ended before it did.
            time.sleep(TIME_TO_SPEAK)
        return 2 if isinstance(error, InputError) else 1
    finally:
        engine_module.end_processes()


if __name__ == "__main__":
    engine_module.leave(main())
