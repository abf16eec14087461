"""BART as LED, the Longformer encoder-decoder (arXiv 2004.05150, section 7): names, positions and sizes.

LED is BART with windowed self-attention in its encoder. What the conversion does, as functions of a configuration and
tensors by transformers' names: projections get Longformer's names and copies for global tokens; the encoder's learned
positions, less the two rows before position 0 that BART leaves unused, are laid end to end (the paper: 1,024 sixteen
times); the decoder's lose those two rows as well. Everything else stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from trainer.engine.checkpoint import save_tensors
from trainer.engine.config import InputError, problems
from trainer.model.configuration import MOST
from trainer.model.conversion import tile_positions
from trainer.model.folder import MODEL_FILES
from trainer.model.json_files import read_json
from trainer.model.markdown import fenced, table
from trainer.model.output_folder import CARD, replaced
from trainer.model.tokenizer_files import copy_tokenizer
from trainer.model.weights import read_left_out, read_shapes_of, refuse_misfits

BIAS = "final_logits_bias"
UNUSED_ROWS = 2
"""Of BART's position tables, before position 0; LED has none."""
GENERATION = "generation_config.json"
SHARED, ENCODER_POSITIONS = "led.shared.weight", "led.encoder.embed_positions.weight"
DECODER_POSITIONS = "led.decoder.embed_positions.weight"
_TIED = re.compile(r"^(?:led\.(?:encoder|decoder)\.embed_tokens|lm_head)\.weight$")
_PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
_ENCODER_ATTENTION = re.compile(r"^(led\.encoder\.layers\.\d+\.self_attn\.)(\w+)(\.(?:weight|bias))$")


class BartConfig(BaseModel):
    """The keys of BART's config.json that are read; what a file leaves out has transformers' value."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    vocab_size: int = Field(50265, ge=1, le=MOST)
    d_model: int = Field(1024, ge=1, le=MOST)
    max_position_embeddings: int = Field(1024, ge=1, le=MOST)
    encoder_layers: int = Field(12, ge=1, le=1000)
    encoder_ffn_dim: int = Field(4096, ge=1, le=MOST)
    encoder_attention_heads: int = Field(16, ge=1)
    decoder_layers: int = Field(12, ge=1, le=1000)
    decoder_ffn_dim: int = Field(4096, ge=1, le=MOST)
    decoder_attention_heads: int = Field(16, ge=1)
    encoder_layerdrop: float = Field(0.0, ge=0, lt=1)
    decoder_layerdrop: float = Field(0.0, ge=0, lt=1)
    activation_function: str = "gelu"
    dropout: float = Field(0.1, ge=0, lt=1)
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    activation_dropout: float = Field(0.0, ge=0, lt=1)
    init_std: float = Field(0.02, ge=0)
    scale_embedding: bool = False
    pad_token_id: int = Field(1, ge=0)
    bos_token_id: int = Field(0, ge=0)
    eos_token_id: int = Field(2, ge=0)
    decoder_start_token_id: int = Field(2, ge=0)


@dataclass
class Led:
    """A model that LEDForConditionalGeneration loads: config.json, generation_config.json and tensors by its names."""

    config: dict[str, Any]
    generation: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def tokens(self) -> int:
        """That the encoder has positions for."""
        return int(self.config["max_encoder_position_embeddings"])


def read_bart(folder: Path) -> tuple[BartConfig, dict[str, Any], dict[str, Tensor]]:
    """(sizes, generation settings, tensors by transformers' names without tied copies) of a BART's folder.

    InputError lists what is wrong with either file; shapes are compared with config.json before a tensor is read.
    """
    path = folder / "config.json"
    found = read_json(path)
    given = {name: found[name] for name in BartConfig.model_fields if found.get(name) is not None}
    try:
        config = BartConfig.model_validate(given)
    except ValidationError as error:
        raise InputError("\n".join(f"{path}: {line}" for line in problems(error))) from error
    check_sizes(path, config)
    if config.scale_embedding:
        raise InputError(
            f"{path}: scale_embedding: found true, expected false: LED does not scale embeddings"
        )
    if config.activation_function != "gelu":
        raise InputError(
            f"{path}: activation_function: found {config.activation_function!r}, expected 'gelu' as BART has"
        )
    shapes = read_shapes_of(folder)
    names = {_with_prefix(name): name for name in shapes}
    expected = bart_shapes(config)
    missing = [name for name in expected if name not in names and not _is_tied(name) and name != BIAS]
    wrong = [f"{name}: not there" for name in missing]
    wrong += [
        f"{name}: found {list(shapes[theirs])}, expected {list(expected[name])}"
        for name, theirs in names.items()
        if name in expected and shapes[theirs] != expected[name]
    ]
    wrong += [
        f"{theirs}: found, and a BART has no such weights"
        for name, theirs in names.items()
        if name not in expected
    ]
    refuse_misfits(folder, wrong)
    stored = read_left_out(folder, names.values())
    tensors = {name: stored[theirs] for name, theirs in names.items()}
    for name in [name for name in tensors if _is_tied(name)]:
        if not torch.equal(tensors.pop(name), tensors["model.shared.weight"]):
            raise InputError(f"{folder}: {name} is not model.shared.weight, expected them to be tied")
    generation = read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    return config, generation, tensors


class Sizes(Protocol):
    """What BART's and LED's configurations have in common."""

    vocab_size: int
    d_model: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    pad_token_id: int
    bos_token_id: int
    eos_token_id: int
    decoder_start_token_id: int


def check_sizes(path: Path, sizes: Sizes) -> None:
    """InputError names the key of config.json whose number cannot be beside the others: heads, tokens."""
    for side in ("encoder", "decoder"):
        heads = getattr(sizes, f"{side}_attention_heads")
        if sizes.d_model % heads:
            raise InputError(
                f"{path}: {side}_attention_heads: found {heads}, expected a divisor of d_model {sizes.d_model}"
            )
    for name in ("pad", "bos", "eos", "decoder_start"):
        index = getattr(sizes, f"{name}_token_id")
        if index >= sizes.vocab_size:
            raise InputError(
                f"{path}: {name}_token_id: found {index}, expected less than vocab_size {sizes.vocab_size}"
            )


def _with_prefix(name: str) -> str:
    """A bare BartModel's names are without `model.`."""
    bare = name.startswith(("encoder.", "decoder.", "shared."))
    return f"model.{name}" if bare else name


def _is_tied(name: str) -> bool:
    return bool(_TIED.match(name.replace("model.", "led.", 1)))


def bart_shapes(config: BartConfig) -> dict[str, tuple[int, ...]]:
    """Of every tensor in a BartForConditionalGeneration of these sizes."""
    width, rows = config.d_model, config.max_position_embeddings + UNUSED_ROWS
    shapes: dict[str, tuple[int, ...]] = {
        "model.shared.weight": (config.vocab_size, width),
        "lm_head.weight": (config.vocab_size, width),
        BIAS: (1, config.vocab_size),
    }

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    sides = (("encoder", config.encoder_layers, config.encoder_ffn_dim, ("self_attn",)),
             ("decoder", config.decoder_layers, config.decoder_ffn_dim, ("self_attn", "encoder_attn")))  # fmt: skip
    for side, layers, inner, attentions in sides:
        shapes[f"model.{side}.embed_tokens.weight"] = (config.vocab_size, width)
        shapes[f"model.{side}.embed_positions.weight"] = (rows, width)
        norm(f"model.{side}.layernorm_embedding")
        for layer in range(layers):
            at = f"model.{side}.layers.{layer}"
            for attention in attentions:
                for part in (*_PROJECTIONS, "out_proj"):
                    linear(f"{at}.{attention}.{part}", width, width)
                norm(f"{at}.{attention}_layer_norm")
            linear(f"{at}.fc1", width, inner)
            linear(f"{at}.fc2", inner, width)
            norm(f"{at}.final_layer_norm")
    return shapes


def led_of_bart(
    config: BartConfig,
    generation: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    tokens: int,
    windows: Sequence[int],
) -> Led:
    """A BART as LED of so many tokens, at least its own, with the total width of a window for each encoder layer."""
    assert tokens >= config.max_position_embeddings
    assert len(windows) == config.encoder_layers
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours = re.sub(r"^model\.", "led.", name)
        attention = _ENCODER_ATTENTION.match(ours)
        if attention is None:
            named[ours] = tensor
        elif attention[2] == "out_proj":
            named[f"{attention[1]}output{attention[3]}"] = tensor
        else:
            projection = f"{attention[1]}longformer_self_attn.{_PROJECTIONS[attention[2]]}"
            named[f"{projection}{attention[3]}"] = tensor
            named[f"{projection}_global{attention[3]}"] = tensor.clone()
    named[ENCODER_POSITIONS] = tile_positions(named[ENCODER_POSITIONS][UNUSED_ROWS:], 0, tokens)
    named[DECODER_POSITIONS] = named[DECODER_POSITIONS][UNUSED_ROWS:].clone()
    # A bare model's folder has no bias, which starts at 0.
    named.setdefault(BIAS, torch.zeros(1, config.vocab_size))
    values = config.model_dump(exclude={"max_position_embeddings", "scale_embedding"})
    return Led(
        {
            "architectures": ["LEDForConditionalGeneration"],
            "model_type": "led",
            "is_encoder_decoder": True,
            "max_encoder_position_embeddings": tokens,
            "max_decoder_position_embeddings": config.max_position_embeddings,
            "attention_window": list(windows),
            "tie_word_embeddings": True,
            "dtype": "float32",
            **values,
        },
        {**generation, "decoder_start_token_id": config.decoder_start_token_id},
        named,
    )


def write_led(folder: Path, led: Led, tokenizer_from: Path, card: str) -> None:
    """Write a folder that transformers loads; it is never there half-written."""
    with replaced(folder, (*MODEL_FILES, GENERATION)) as beside:
        save_tensors(
            beside / "model.safetensors", {name: t.float().contiguous() for name, t in led.tensors.items()}
        )
        for name, content in (("config.json", led.config), (GENERATION, led.generation)):
            (beside / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (beside / CARD).write_text(card, encoding="utf-8")
        copy_tokenizer(tokenizer_from, beside, led.tokens)


def is_bart(folder: Path) -> bool:
    """Whether a folder's config.json says that it is BART's."""
    return read_json(folder / "config.json").get("model_type") == "bart"


def led_card(led: Led, parameters: int) -> str:
    """The README.md of a model that was converted and not trained since."""
    sizes = [
        ("parameters", f"{parameters:,}"),
        ("encoder layers × width, heads", f"{led.config['encoder_layers']} × {led.config['d_model']}, "
         f"{led.config['encoder_attention_heads']}"),
        ("positions of encoder and decoder", f"{led.tokens:,} and {led.config['max_decoder_position_embeddings']:,}"),
        ("windows, both sides together", ", ".join(map(str, led.config["attention_window"][:48]))),
    ]  # fmt: skip
    program = (
        "from transformers import AutoTokenizer, LEDForConditionalGeneration\n\n"
        "tokenizer = AutoTokenizer.from_pretrained('.')\n"
        "model = LEDForConditionalGeneration.from_pretrained('.').eval()\n"
    )
    parts = [
        "---\nlibrary_name: transformers\ntags:\n- led\n- long-documents\n- longspan\n---",
        "# LED, converted from BART",
        "An encoder-decoder with windows, made from a BART by conversion and not trained since. Made with Longspan.",
        table(("", ""), sizes),
        "## Use",
        fenced(program, "python"),
        "Beyond the original's length it has not been trained: finetune it, with global attention on the first token.",
    ]
    return "\n\n".join(parts) + "\n"
