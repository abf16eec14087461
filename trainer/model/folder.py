"""Model folders in Hugging Face's layout: config.json, model.safetensors and the tokenizer's files, in and out.

Weights are read from safetensors, or from pytorch_model.bin with `weights_only=True`, which runs no pickled code.
Both `roberta.` and `longformer.` prefixes are understood: allenai's own Longformers carry the former.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.tokenizer import Tokenizer, load_tokenizer
from trainer.engine.checkpoint import save_tensors
from trainer.engine.config import InputError
from trainer.model.heads import MaskedLanguageModel
from trainer.model.longformer import Architecture, EncoderConfig

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
MODEL_FILES = ("config.json", "model.safetensors", *TOKENIZER_FILES)
GLOBAL_PROJECTIONS = ("query", "key", "value")
_CLASS_NAMES = {"roberta": "RobertaForMaskedLM", "longformer": "LongformerForMaskedLM"}
# A hub id is `name` or `owner/name`; anything else is meant as a path.
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?$")


def locate_model(location: str | Path) -> Path:
    """The local folder of a model named by path or hub id; a hub id is fetched into Hugging Face's cache."""
    folder = Path(location)
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise InputError(f"{folder}: found no config.json, expected a Hugging Face model folder")
    if not _HUB_ID.match(str(location)):
        raise InputError(f"{location}: no such folder, and not a hub id (expected `owner/name`)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        fetched = snapshot_download(
            str(location),
            allow_patterns=["config.json", "model*.safetensors*", "pytorch_model.bin", *TOKENIZER_FILES],
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{location}: no such folder, and the hub did not give it: {reason}") from error
    return Path(fetched)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an InputError that names the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: found a {type(found).__name__}, expected an object")
    return found


def read_config(folder: Path) -> EncoderConfig:
    """The encoder's sizes from a folder's config.json (RoBERTa or Longformer)."""
    path = folder / "config.json"
    found = read_json(path)
    kind = found.get("model_type")
    if kind not in ("roberta", "longformer"):
        raise InputError(f"{path}: model_type: found {kind!r}, expected roberta or longformer")
    if found.get("hidden_act", "gelu") != "gelu":
        raise InputError(f"{path}: hidden_act: found {found['hidden_act']!r}, expected gelu")
    architecture: Architecture = kind
    known = EncoderConfig.__dataclass_fields__.keys() - {"architecture", "attention_window"}
    # Older files leave RoBERTa's special ids to the class; ours are the same.
    values = {key: found[key] for key in known if found.get(key) is not None}
    missing = [key for key in ("vocab_size", "hidden_size", "num_hidden_layers") if key not in values]
    if missing:
        raise InputError(f"{path}: {', '.join(missing)}: not there")
    for key, value in values.items():
        kind_of_value = type(EncoderConfig.__dataclass_fields__[key].default)
        least = 0 if key.endswith(("_token_id", "_prob")) or key.startswith("original_") else 1
        if kind_of_value is float:
            if not isinstance(value, int | float) or value < 0:
                raise InputError(f"{path}: {key}: found {value!r}, expected a number >= 0")
        elif not isinstance(value, int) or value < least:
            raise InputError(f"{path}: {key}: found {value!r}, expected a whole number >= {least}")
    config = EncoderConfig(architecture=architecture, **values)
    if architecture == "longformer":
        window = found.get("attention_window", 512)
        config.attention_window = (
            list(window) if isinstance(window, list) else [window] * config.num_hidden_layers
        )
        if len(config.attention_window) != config.num_hidden_layers:
            raise InputError(
                f"{path}: attention_window: found {len(config.attention_window)} entries, "
                f"expected one for each of {config.num_hidden_layers} layers"
            )
        if not all(
            isinstance(width, int) and width >= 0 and width % 2 == 0 for width in config.attention_window
        ):
            raise InputError(f"{path}: attention_window: found {window}, expected even widths >= 0")
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"{path}: num_attention_heads: found {config.num_attention_heads}, "
            f"expected a divisor of hidden_size {config.hidden_size}"
        )
    return config


def config_json(config: EncoderConfig) -> dict[str, Any]:
    """What `transformers` reads for this encoder with its masked-language-model head."""
    values = config.as_dict()
    del values["architecture"]
    if config.architecture == "roberta":
        del values["attention_window"]
    return {
        "architectures": [_CLASS_NAMES[config.architecture]],
        "model_type": config.architecture,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "sep_token_id": config.eos_token_id,
        "dtype": "float32",
        **values,
    }


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder by its Hugging Face name, without running pickled code."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        placed = read_json(index).get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise InputError(
                f"{index}: weight_map: found {type(placed).__name__}, expected names and their files"
            )
        files = sorted({folder / Path(str(shard)).name for shard in placed.values()})
        for file in files:
            if not file.is_file():
                raise InputError(f"{file}: not there, though {index} lists it")
    else:
        files = [folder / "model.safetensors"]
    if all(file.is_file() for file in files):
        weights: dict[str, Tensor] = {}
        for file in files:
            try:
                weights.update(load_file(file))
            except (
                Exception
            ) as error:  # safetensors raises its own and OSErrors; all mean the file is unusable
                raise InputError(f"{file}: not a readable safetensors file ({error})") from error
        return weights
    pickled = folder / "pytorch_model.bin"
    if pickled.is_file():
        try:
            return torch.load(pickled, map_location="cpu", weights_only=True)
        except Exception as error:  # the restricted unpickler has no common base class for its refusals
            raise InputError(
                f"{pickled}: not loadable as plain weights ({str(error).splitlines()[0]})"
            ) from error
    raise InputError(f"{folder}: found no model.safetensors and no pytorch_model.bin")


def body_and_head(weights: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """The tensors of the encoder (without its prefix) and of `lm_head.`; buffers, poolers and tied copies go.

    InputError where the decoder is not tied to the word embeddings, which RoBERTa's and Longformer's always are.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        bare = re.sub(r"^(roberta|longformer)\.", "", name)
        if bare.startswith(("embeddings.", "encoder.", "lm_head.")) and not bare.endswith("position_ids"):
            kept[bare] = tensor
    if "lm_head.decoder.bias" in kept:  # tied to lm_head.bias; some files hold only this one
        kept.setdefault("lm_head.bias", kept["lm_head.decoder.bias"])
    decoder = kept.pop("lm_head.decoder.weight", None)
    words = kept.get("embeddings.word_embeddings.weight")
    if decoder is not None and words is not None and not torch.equal(decoder, words):
        raise InputError(
            f"{source}: lm_head.decoder.weight is not the word embeddings, expected them to be tied"
        )
    kept.pop("lm_head.decoder.bias", None)
    return kept


def without_global_projections(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "_global." not in name}


def with_global_projections(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add `*_global` as copies of query, key and value: masked-language modelling does not train them."""
    added = {
        re.sub(rf"\.self\.{part}\.", f".self.{part}_global.", name): tensor.clone()
        for name, tensor in tensors.items()
        for part in GLOBAL_PROJECTIONS
        if f".self.{part}." in name
    }
    return {**tensors, **added}


def load_model(folder: Path) -> MaskedLanguageModel:
    """The masked-language model in a folder; every parameter must be there in its shape."""
    config = read_config(folder)
    model = MaskedLanguageModel(config)
    tensors = without_global_projections(body_and_head(read_weights(folder), folder))
    load_tensors(model, tensors, folder)
    return model


def load_tensors(model: MaskedLanguageModel, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy tensors by prefix-free name into a model, reporting every missing or ill-shaped one at once."""
    problems = []
    prefix = f"{model.config.architecture}."
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            bare = name.removeprefix(prefix)
            if bare not in tensors:
                problems.append(f"{bare}: not there")
            elif tensors[bare].shape != parameter.shape:
                problems.append(
                    f"{bare}: found {list(tensors[bare].shape)}, expected {list(parameter.shape)}"
                )
            else:
                parameter.copy_(tensors[bare])
    if problems:
        shown = "\n  ".join(
            problems[:10] + ([f"... and {len(problems) - 10} more"] if len(problems) > 10 else [])
        )
        raise InputError(f"{source}: the weights do not fit config.json:\n  {shown}")


def write_model(
    folder: Path, config: EncoderConfig, tensors: dict[str, Tensor], tokenizer_from: Path | None
) -> None:
    """Write a folder `transformers` loads, from prefix-free tensors, as float32; it is never there half-written.

    The tied decoder is not stored; `transformers` ties it again. A folder that is empty, or holds a model and nothing
    else, is replaced; any other is left alone with an InputError.
    """
    folder = folder.resolve()
    if folder.exists() and (
        not folder.is_dir() or {path.name for path in folder.iterdir()} - set(MODEL_FILES)
    ):
        raise InputError(
            f"{folder}: holds something else, expected a new or empty folder, or a model to replace"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        named = {
            (
                name if name.startswith("lm_head.") else f"{config.architecture}.{name}"
            ): tensor.float().contiguous()
            for name, tensor in tensors.items()
        }
        save_tensors(beside / "model.safetensors", named)
        (beside / "config.json").write_text(
            json.dumps(config_json(config), indent=2) + "\n", encoding="utf-8"
        )
        if tokenizer_from is not None:
            copy_tokenizer(tokenizer_from, beside, config.max_tokens)
        if folder.exists():
            previous = folder.with_name(f".{folder.name}.{os.getpid()}.previous")
            folder.rename(previous)
            beside.rename(folder)
            shutil.rmtree(previous)
        else:
            beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def tokenizer_fingerprint(folder: Path) -> str | None:
    """The fingerprint of a model folder's tokenizer, None where it has none."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return None
    return read_tokenizer(folder).fingerprint


def read_tokenizer(location: Path) -> Tokenizer:
    """The tokenizer of a folder or file; InputError says what is wrong with it."""
    try:
        return load_tokenizer(location)
    except ValueError as error:
        raise InputError(str(error)) from error


def copy_tokenizer(source: Path, target: Path, max_tokens: int) -> None:
    """Copy a tokenizer's files as they are, but for the length `transformers` truncates at.

    A bare tokenizer.json (as a corpus folder holds) gets the tokenizer_config.json that `transformers` needs.
    """
    present = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in present:
        shutil.copyfile(source / name, target / name)
    if not present:
        return
    if "tokenizer_config.json" not in present and "tokenizer.json" in present:
        read_tokenizer(source / "tokenizer.json").save(target)
    path = target / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    settings["model_max_length"] = max_tokens
    settings.pop("max_len", None)  # the same under its older name
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
