"""A downstream task's model in a folder, in and out: encoder, heads, tokenizer, and what the task's input needs.

Where transformers has a model with the same head (classification, extractive question answering), its folders are read
and ours are such; of other tasks transformers reads the encoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.shards import write_atomically
from trainer.engine.checkpoint import save_tensors
from trainer.engine.config import InputError
from trainer.model.configuration import config_json, read_config
from trainer.model.folder import MODEL_FILES
from trainer.model.led import GENERATION
from trainer.model.led_model import LedModel, encoder_sizes, load_led, read_led_sizes
from trainer.model.longformer import EncoderConfig
from trainer.model.output_folder import CARD, replaced
from trainer.model.task_model import TaskModel
from trainer.model.weights import WORDS, read_left_out, read_model, with_global_projections, without_prefix
from trainer.tasks.task import DownstreamTask
from trainer.tasks.wordpieces import Wordpieces

FINETUNED = "finetuned.json"
"""Beside config.json: the task, its settings, and how its input is made."""
SEQ2SEQ = "ForConditionalGeneration"
"""What transformers calls encoder-decoders, LED's among them."""
Projections = Literal["auto", "copied", "stored", "shared"]
HeadFrom = Literal["auto", "new", "stored"]


def read_sizes(folder: Path, task: DownstreamTask) -> EncoderConfig:
    """What config.json says of the encoder; InputError where it is none that the task can be trained on."""
    if task.architecture == SEQ2SEQ:
        sizes = read_led_sizes(folder)
        longest = task.describe()["longest_summary"]
        if longest > sizes.max_decoder_position_embeddings:
            raise InputError(
                f"task.longest_summary: found {longest}, expected at most the {sizes.max_decoder_position_embeddings} "
                f"tokens that the decoder of {folder} has positions for"
            )
        return encoder_sizes(sizes)
    return read_config(folder)


def load_task_model(
    folder: Path,
    task: DownstreamTask,
    wordpieces: Wordpieces,
    projections: Projections = "auto",
    head: HeadFrom = "auto",
    global_attention: bool = True,
) -> tuple[TaskModel | LedModel, list[str]]:
    """The model to finetune or to predict with, and lines that say where its parts come from.

    A head that is drawn, rows for the task's special tokens, and nothing else come from torch's generator. InputError
    where the folder does not have what is asked for as "stored".
    """
    if task.architecture == SEQ2SEQ:
        for key, found, possible in (
            ("global_projections", projections, ("auto", "stored")),
            ("head", head, ("auto", "stored")),
            ("global_attention", global_attention, (True,)),
        ):
            if found not in possible:
                expected = " or ".join(str(each).lower() for each in possible)
                raise InputError(
                    f"{key}: found {str(found).lower()}, expected {expected}: LED is trained as stored"
                )
        return load_led(folder), ["encoder, decoder and global projections: the stored ones"]
    stored = read_model(folder)
    config, tensors = stored.config, stored.tensors
    rows = config.vocab_size
    config.vocab_size = max(rows, wordpieces.size)
    heads = task.heads(config)
    stored_heads, missing = _stored_heads(folder, heads, stored.left_out)
    if head == "stored" and missing:
        raise InputError(f"head: {folder} does not have the head of {task.name}: {missing}")
    taken = head != "new" and not missing
    model = TaskModel(config, heads, projections != "shared", global_attention and task.has_global_tokens)
    own = projections != "shared" and model.global_attention
    encoder = dict(model.encoder.named_parameters())
    lacking = [name for name in encoder if "_global." in name and name not in tensors]
    if projections == "stored" and lacking:
        raise InputError(
            f"global_projections: {folder} has no {lacking[0]}, expected *_global weights, or `copied`"
        )
    keep = own and not lacking and (projections == "stored" or (projections == "auto" and taken))
    if own and not keep:  # masked-language modelling has trained none: copies of what it has
        tensors = with_global_projections(tensors)
    if config.vocab_size > rows:
        added = torch.empty(config.vocab_size - rows, config.hidden_size)
        nn.init.normal_(added, std=config.initializer_range)
        tensors[WORDS] = torch.cat([tensors[WORDS].float(), added])
    model.encoder.load_state_dict({name: tensors[name].float() for name in encoder})
    if taken:
        for name, module in heads.items():
            module.load_state_dict({part: stored_heads[f"{name}.{part}"] for part in module.state_dict()})
    words = [f"head: {'the stored one' if taken else 'new'}" + (f" ({missing})" if missing else "")]
    if own:
        words.append(f"global projections: {'the stored ones' if keep else 'copies of the local ones'}")
    elif task.has_global_tokens and config.architecture == "longformer":
        words.append(
            "global tokens share the local projections" if global_attention else "no global attention"
        )
    if config.vocab_size > rows:
        words.append(f"{config.vocab_size - rows} new rows of special tokens")
    return model, words


def _stored_heads(
    folder: Path, heads: Mapping[str, nn.Module], left_out: list[str]
) -> tuple[dict[str, Tensor], str]:
    """The folder's tensors of these heads, and why they cannot be taken, "" where they can."""
    wanted = {
        f"{name}.{part}": tuple(tensor.shape)
        for name, module in heads.items()
        for part, tensor in module.state_dict().items()
    }
    there = wanted.keys() & set(left_out)
    if not there:
        return {}, f"no {', '.join(heads)} there"
    if lacking := sorted(wanted.keys() - there):
        return {}, f"{', '.join(lacking)} not there"
    found = read_left_out(folder, there)
    wrong = [
        f"{name} is {list(found[name].shape)}, expected {list(shape)}"
        for name, shape in sorted(wanted.items())
        if tuple(found[name].shape) != shape
    ]
    return found, "; ".join(wrong)


def task_config_json(config: EncoderConfig, task: DownstreamTask) -> dict[str, Any]:
    """config.json of the task's model; with the labels of a task that has such."""
    values = config_json(config, task.architecture or "Model")
    labels = getattr(task, "labels", None)
    if labels:
        values["id2label"] = {str(number): label for number, label in enumerate(labels)}
        values["label2id"] = {label: number for number, label in enumerate(labels)}
    return values


def write_task_model(
    folder: Path,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    files: Mapping[str, bytes],
    card: str,
) -> None:
    """Write a folder from a checkpoint's tensors, its config.json and its other small files by name; it is never there
    half-written. A Longformer's encoder has `*_global` weights in any case, as transformers wants them."""
    named = dict(tensors)
    bare = without_prefix(named)
    if settings["model_type"] == "longformer" and not any("_global." in name for name in bare):
        named = with_global_projections(named)
    if settings["architectures"][0].endswith("Model"):
        prefix = (
            f"{settings['model_type']}."  # bare encoders are stored without a prefix, the heads beside them
        )
        named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
    with replaced(folder, (*MODEL_FILES, FINETUNED, GENERATION)) as beside:
        save_tensors(
            beside / "model.safetensors", {name: t.float().contiguous() for name, t in named.items()}
        )
        write_atomically(beside / "config.json", (json.dumps(dict(settings), indent=2) + "\n").encode())
        write_atomically(beside / CARD, card.encode())
        for name, content in files.items():
            write_atomically(beside / name, content)
