"""config.json, in and out: which models are understood, and what of them cannot be carried.

RoBERTa, CamemBERT and XLM-RoBERTa are one body under three names, and Longformer is that body with windows. BERT is
it too, but for positions that start at row 0 of their table and for the names of its head. Here all of them are
`roberta` or `longformer`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.engine.config import InputError, problems
from trainer.model.hub import ORIGIN, hub_origin
from trainer.model.json_files import read_json
from trainer.model.longformer import Architecture, EncoderConfig
from trainer.model.tokenizer_files import special_token_id

FAMILIES = ("roberta", "camembert", "xlm-roberta", "bert", "longformer")
MOST = 1 << 24
"""The largest size believed of a configuration: positions, rows, widths."""
_CLASS_NAMES = {"roberta": "Roberta", "longformer": "Longformer"}
# By key of config.json: what it may say, and why nothing else.
_CARRIED = {
    "hidden_act": (("gelu",), "Longformer's blocks and head compute the exact GELU"),
    "position_embedding_type": (("absolute",), "Longformer has no positions relative to the key"),
    "is_decoder": ((False,), "Longformer sees both sides"),
    "is_encoder_decoder": ((False,), "Longformer is an encoder"),
    "add_cross_attention": ((False,), "Longformer has no cross-attention"),
    "autoregressive": ((False,), "Longformer's masked-language model sees both sides"),
    "pruned_heads": (({},), "every layer has all heads"),
    "quantization_config": ((), "the weights must be plain numbers"),
}
# allenai's own code writes the width of one side, and by this key tells that it wrote the file.
_ONE_SIDED = ("tvm", "sliding_chunks")


class StoredConfig(BaseModel):
    """The keys that are read. What a file leaves out has the value that transformers' classes give it."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    vocab_size: int = Field(ge=1, le=MOST)
    hidden_size: int = Field(ge=1, le=MOST)
    num_hidden_layers: int = Field(ge=1, le=10_000)
    num_attention_heads: int = Field(12, ge=1)
    intermediate_size: int = Field(3072, ge=1, le=MOST)
    max_position_embeddings: int = Field(512, ge=1, le=MOST)
    type_vocab_size: int = Field(2, ge=1, le=MOST)
    layer_norm_eps: float = Field(1e-12, ge=0)
    hidden_dropout_prob: float = Field(0.1, ge=0, lt=1)
    attention_probs_dropout_prob: float = Field(0.1, ge=0, lt=1)
    initializer_range: float = Field(0.02, ge=0)
    bos_token_id: int | None = Field(None, ge=0)
    pad_token_id: int = Field(1, ge=0)
    eos_token_id: int | None = Field(None, ge=0)
    original_max_position_embeddings: int = Field(0, ge=0)


def stored_family(folder: Path) -> str:
    """The model_type of a folder's config.json, one of FAMILIES; InputError where it is another."""
    path = folder / "config.json"
    kind = read_json(path).get("model_type")
    if kind not in FAMILIES:
        raise InputError(f"{path}: model_type: found {kind!r}, expected one of {', '.join(FAMILIES)}")
    return kind


def read_config(folder: Path) -> EncoderConfig:
    """The encoder that a folder's config.json describes; InputError lists all that is wrong with it.

    Of a BERT, max_position_embeddings counts the rows its table has here: the padding's and those before it come on
    top, as positions start behind them.
    """
    path = folder / "config.json"
    found, kind = read_json(path), stored_family(folder)
    # The notebook that made Longformers of RoBERTas left them RoBERTa's type.
    windowed = kind == "longformer" or (kind == "roberta" and found.get("attention_window") is not None)
    architecture: Architecture = "longformer" if windowed else "roberta"
    special = (
        {"pad_token_id": 0} if kind == "bert" else {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    )
    # A null says that there is no such token; of other keys it says nothing.
    unset = ("bos_token_id", "eos_token_id")
    given = {
        k: found[k] for k in StoredConfig.model_fields if k in found and (found[k] is not None or k in unset)
    }
    wrong = _not_carried(found)
    try:
        values = StoredConfig.model_validate(special | given).model_dump()
    except ValidationError as error:
        raise InputError("\n".join(f"{path}: {line}" for line in wrong + problems(error))) from error
    if kind == "bert":
        values["max_position_embeddings"] += values["pad_token_id"] + 1
        for key, role, token in (("bos_token_id", "cls", "[CLS]"), ("eos_token_id", "sep", "[SEP]")):
            if values[key] is None:
                values[key] = special_token_id(folder, role, token)
    origin = found.get("base_model")
    known = isinstance(origin, str) and ORIGIN.fullmatch(origin)
    config = EncoderConfig(
        architecture=architecture, base_model=str(origin) if known else hub_origin(folder), **values
    )
    if windowed:
        config.attention_window = _windows(found, config.num_hidden_layers, wrong)
    wrong += _misfits(config)
    if wrong:
        raise InputError("\n".join(f"{path}: {line}" for line in wrong))
    return config


def _not_carried(found: dict[str, Any]) -> list[str]:
    """What a configuration asks for that Longformer does not have."""
    wrong = [
        f"{key}: found {found[key]!r}, expected {' or '.join(map(repr, carried)) or 'none'}: {reason}"
        for key, (carried, reason) in _CARRIED.items()
        if found.get(key) is not None and found[key] not in carried
    ]
    width = found.get("embedding_size")
    if width is not None and width != found.get("hidden_size"):
        wrong.append(
            f"embedding_size: found {width!r}, expected hidden_size {found.get('hidden_size')!r}: "
            "Longformer has no projection between them"
        )
    dilation = found.get("attention_dilation", 1)
    if any(step != 1 for step in (dilation if isinstance(dilation, list) else [dilation])):
        wrong.append(
            f"attention_dilation: found {dilation}, expected 1: the masked-language model has no gaps"
        )
    return wrong


def _windows(found: dict[str, Any], layers: int, wrong: list[str]) -> list[int]:
    """The total width of each layer's window; adds what is wrong to `wrong`."""
    window = found.get("attention_window", 512)
    mode = found.get("attention_mode", "longformer")
    if mode not in ("longformer", *_ONE_SIDED):
        wrong.append(f"attention_mode: found {mode!r}, expected longformer, {' or '.join(_ONE_SIDED)}")
    widths = window if isinstance(window, list) else [window] * layers
    if len(widths) != layers:
        wrong.append(
            f"attention_window: found {len(widths)} entries, expected one for each of {layers} layers"
        )
    if not all(type(width) is int and 0 <= width <= 2 * MOST for width in widths):
        wrong.append(f"attention_window: found {window!r}, expected even widths from 0 to {2 * MOST}")
        return []
    if mode in _ONE_SIDED:
        widths = [2 * width for width in widths]
    if any(width % 2 for width in widths):
        wrong.append(f"attention_window: found {window!r}, expected even widths >= 0")
    return list(widths)


def _misfits(config: EncoderConfig) -> list[str]:
    """Values that are each fine and do not go together."""
    wrong = []
    if config.hidden_size % config.num_attention_heads:
        wrong.append(
            f"num_attention_heads: found {config.num_attention_heads}, "
            f"expected a divisor of hidden_size {config.hidden_size}"
        )
    for key in ("bos_token_id", "pad_token_id", "eos_token_id"):
        index = getattr(config, key)
        if index is not None and index >= config.vocab_size:
            wrong.append(f"{key}: found {index}, expected less than vocab_size {config.vocab_size}")
    if config.max_tokens < 1:
        wrong.append(
            f"max_position_embeddings: found {config.max_position_embeddings}, expected more than "
            f"pad_token_id + 1 = {config.pad_token_id + 1}, where positions begin"
        )
    if config.original_max_position_embeddings > config.max_position_embeddings:
        wrong.append(
            f"original_max_position_embeddings: found {config.original_max_position_embeddings}, "
            f"expected at most max_position_embeddings {config.max_position_embeddings}"
        )
    return wrong


def config_json(config: EncoderConfig, model: str = "ForMaskedLM") -> dict[str, Any]:
    """What `transformers` reads for this encoder and the head on it, by the end of its model's name there: "Model" for
    none."""
    values = config.as_dict()
    del values["architecture"]
    if config.architecture == "roberta":
        del values["attention_window"]
    if config.base_model:
        values["base_model"] = config.base_model
    return {
        "architectures": [_CLASS_NAMES[config.architecture] + model],
        "model_type": config.architecture,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "sep_token_id": config.eos_token_id,
        "dtype": "float32",
        **values,
    }
