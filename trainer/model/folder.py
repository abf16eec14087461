"""Model folders in Hugging Face's layout: config.json, model.safetensors and the tokenizer's files, in and out.

The one door for commands; what lies behind it: `hub` finds folders, `configuration` and `weights` read them whatever
family they are of, `tokenizer_files` copies what travels with them.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from trainer.engine.checkpoint import save_tensors
from trainer.engine.config import InputError
from trainer.model.configuration import config_json, read_config
from trainer.model.heads import MaskedLanguageModel
from trainer.model.hub import locate_model
from trainer.model.longformer import Encoder, EncoderConfig
from trainer.model.output_folder import CARD, replaced
from trainer.model.tokenizer_files import (
    TOKENIZER_FILES,
    copy_tokenizer,
    has_tokenizer,
    read_tokenizer,
    tokenizer_fingerprint,
)
from trainer.model.weights import (
    check_shapes,
    read_model,
    weights_fingerprint,
    with_global_projections,
    without_global_projections,
    without_prefix,
)

__all__ = [
    "MODEL_FILES",
    "check_shapes",
    "config_json",
    "has_tokenizer",
    "load_encoder",
    "load_model",
    "locate_model",
    "read_config",
    "read_model",
    "read_tokenizer",
    "tokenizer_fingerprint",
    "weights_fingerprint",
    "with_global_projections",
    "without_global_projections",
    "without_prefix",
    "write_model",
]
MODEL_FILES = ("config.json", "model.safetensors", CARD, *TOKENIZER_FILES)


def load_model(folder: Path) -> MaskedLanguageModel:
    """The masked-language model in a folder of any known family; every parameter must be there in its shape."""
    stored = read_model(folder)
    if not stored.has_head:
        raise InputError(
            f"{folder}: an encoder without a masked-language-model head (no lm_head), expected one to train or "
            "score with; `python -m trainer.convert --new-head` gives it a new one"
        )
    with torch.device("meta"):  # what is read takes the place of every parameter: none is drawn before
        model = MaskedLanguageModel(stored.config)
    own = dict(model.named_parameters())
    model.load_state_dict(
        {name: _own(stored.tensors.pop(bare)) for name, bare in zip(own, without_prefix(own), strict=True)},
        assign=True,
    )
    return model


def load_encoder(folder: Path) -> Encoder:
    """The encoder in a folder, with a head or without; to continue from it with another head."""
    stored = read_model(folder)
    with torch.device("meta"):
        encoder = Encoder(stored.config)
    encoder.load_state_dict(
        {name: _own(stored.tensors.pop(name)) for name, _ in encoder.named_parameters()}, assign=True
    )
    return encoder


def _own(tensor: Tensor) -> Tensor:
    """float32 in memory of its own: a tensor of a file may lie in a map of it."""
    return tensor.to(torch.float32, copy=True)


def write_model(
    folder: Path,
    config: EncoderConfig,
    tensors: dict[str, Tensor],
    tokenizer_from: Path | None,
    card: str = "",
) -> None:
    """Write a folder `transformers` loads, from tensors by our names, as float32; it is never there half-written.

    With the masked-language-model head where the tensors have one; the tied decoder is not stored, as `transformers`
    ties it again. Without it the folder is of `LongformerModel`, pooler and all. A folder that is empty, or holds a
    model and nothing else, is replaced; any other is left alone with an InputError.
    """
    head = "lm_head.bias" in tensors
    # Bare encoders are stored without a prefix, and models with a head without the pooler.
    prefix = f"{config.architecture}." if head else ""
    named = {
        name if name.startswith("lm_head.") else prefix + name: tensor.float().contiguous()
        for name, tensor in tensors.items()
        if not (head and name.startswith("pooler."))
    }
    with replaced(folder, MODEL_FILES) as beside:
        save_tensors(beside / "model.safetensors", named)
        settings = json.dumps(config_json(config, "ForMaskedLM" if head else "Model"), indent=2) + "\n"
        (beside / "config.json").write_text(settings, encoding="utf-8")
        if card:
            (beside / CARD).write_text(card, encoding="utf-8")
        if tokenizer_from is not None:
            copy_tokenizer(tokenizer_from, beside, config.max_tokens)
