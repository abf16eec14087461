"""LED as the finetuning command trains it: transformers' own model, its encoder's attention by the core.

transformers' models take seconds to import: whoever trains another model does not wait for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from pipeline.tokenizer import Tokenizer
from trainer.batches.examples import ExampleBatch
from trainer.engine.config import InputError, problems
from trainer.model.configuration import MOST
from trainer.model.heads import IGNORED, masked_loss_sum
from trainer.model.json_files import read_json
from trainer.model.led import GENERATION, check_sizes
from trainer.model.longformer import EncoderConfig
from trainer.model.tokenizer_files import read_tokenizer
from trainer.model.weights import read_left_out, read_shapes_of, refuse_misfits

if TYPE_CHECKING:
    from transformers import GenerationConfig, LEDForConditionalGeneration

_TIED = ("lm_head.weight", "led.encoder.embed_tokens.weight", "led.decoder.embed_tokens.weight")


class LedSizes(BaseModel):
    """The keys of LED's config.json that are read; what a file leaves out has transformers' value."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    vocab_size: int = Field(50265, ge=1, le=MOST)
    d_model: int = Field(1024, ge=1, le=MOST)
    max_encoder_position_embeddings: int = Field(16384, ge=1, le=MOST)
    max_decoder_position_embeddings: int = Field(1024, ge=1, le=MOST)
    attention_window: int | list[int] = 512
    encoder_layers: int = Field(12, ge=1, le=1000)
    encoder_ffn_dim: int = Field(4096, ge=1, le=MOST)
    encoder_attention_heads: int = Field(16, ge=1)
    decoder_layers: int = Field(12, ge=1, le=1000)
    decoder_ffn_dim: int = Field(4096, ge=1, le=MOST)
    decoder_attention_heads: int = Field(16, ge=1)
    activation_function: str = "gelu"
    dropout: float = Field(0.1, ge=0, lt=1)
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    activation_dropout: float = Field(0.0, ge=0, lt=1)
    init_std: float = Field(0.02, ge=0)
    pad_token_id: int = Field(1, ge=0)
    bos_token_id: int = Field(0, ge=0)
    eos_token_id: int = Field(2, ge=0)
    decoder_start_token_id: int = Field(2, ge=0)

    @property
    def windows(self) -> list[int]:
        """The total width of each encoder layer's."""
        width = self.attention_window
        return width if isinstance(width, list) else [width] * self.encoder_layers


class LedGeneration(BaseModel):
    """What is taken of generation_config.json: the rest is the task's to say, or would change what `generate` gives."""

    model_config = ConfigDict(extra="ignore", strict=True)

    decoder_start_token_id: int | None = Field(None, ge=0)
    forced_bos_token_id: int | None = Field(None, ge=0)
    forced_eos_token_id: int | None = Field(None, ge=0)
    min_length: int | None = Field(None, ge=0, le=MOST)
    early_stopping: bool | Literal["never"] | None = None


def read_led_sizes(folder: Path) -> LedSizes:
    """InputError lists what is wrong with a folder's config.json, or says that it is no LED's."""
    from transformers.activations import ACT2FN

    path = folder / "config.json"
    found = read_json(path)
    if found.get("model_type") != "led":
        raise InputError(
            f"{path}: model_type: found {found.get('model_type')!r}, expected 'led' (python -m trainer.convert makes "
            "one of a BART)"
        )
    try:
        sizes = LedSizes.model_validate({k: v for k, v in found.items() if v is not None})
    except ValidationError as error:
        raise InputError("\n".join(f"{path}: {line}" for line in problems(error))) from error
    windows = sizes.windows
    if len(windows) != sizes.encoder_layers or any(
        width % 2 or not 0 < width <= 2 * MOST for width in windows
    ):
        raise InputError(
            f"{path}: attention_window: found {sizes.attention_window}, expected an even width, or one for each of "
            f"{sizes.encoder_layers} encoder layers"
        )
    check_sizes(path, sizes)
    if sizes.activation_function not in ACT2FN:
        raise InputError(
            f"{path}: activation_function: found {sizes.activation_function!r}, expected one that transformers has"
        )
    return sizes


def encoder_sizes(sizes: LedSizes) -> EncoderConfig:
    """The encoder's sizes as other encoders have them: what plans and facts are made of. Positions count from 0."""
    return EncoderConfig(
        "longformer",
        sizes.vocab_size,
        sizes.d_model,
        sizes.encoder_layers,
        sizes.encoder_attention_heads,
        sizes.encoder_ffn_dim,
        sizes.max_encoder_position_embeddings + sizes.pad_token_id + 1,
        attention_window=sizes.windows,
        hidden_dropout_prob=sizes.dropout,
        attention_probs_dropout_prob=sizes.attention_dropout,
        initializer_range=sizes.init_std,
        bos_token_id=sizes.bos_token_id,
        pad_token_id=sizes.pad_token_id,
        eos_token_id=sizes.eos_token_id,
    )


class LedModel(nn.Module):
    """What TaskModel is for encoders: hidden states of examples; and beyond them the decoder."""

    def __init__(self, sizes: LedSizes, seq2seq: LEDForConditionalGeneration, tokenizer: Tokenizer) -> None:
        from attention.huggingface import accelerate

        super().__init__()
        self.sizes = sizes
        self.tokenizer = tokenizer
        self.config = encoder_sizes(sizes)
        self.global_attention = self.global_projections = True
        self.seq2seq = accelerate(seq2seq)
        # Of transformers' model a buffer; here a constant among the parameters, which is what a checkpoint holds.
        self.final_logits_bias = nn.Parameter(seq2seq.final_logits_bias, requires_grad=False)

    @property
    def encoder(self) -> nn.Module:
        encoder: nn.Module = self.seq2seq.led.encoder
        return encoder

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The layers that torch.compile takes one by one."""
        return [*self.seq2seq.led.encoder.layers, *self.seq2seq.led.decoder.layers]

    def recompute_layers(self) -> None:
        """Less memory: each layer's forward pass once more in the backward pass."""
        self.seq2seq.activation_checkpointing_enable({"use_reentrant": False})

    def states(self, batch: ExampleBatch, dropout_seeds: Tensor | None = None) -> list[Tensor]:
        """The encoder's hidden states (tokens, d_model) of each example. Dropout draws from torch's generator, which
        the engine seeds for every micro-batch: `dropout_seeds` are not needed."""
        mask = (
            torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask.long()
        )
        assert batch.global_mask is not None
        hidden = self.seq2seq.led.encoder(
            input_ids=batch.input_ids, attention_mask=mask, global_attention_mask=batch.global_mask.long()
        ).last_hidden_state.flatten(0, 1)
        return [hidden.index_select(0, index) for index in batch.read]

    def loss_sum(self, states: list[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Sum over all tokens of the targets (m,) of their cross-entropy, in float32."""
        hidden, mask = _padded(states)
        labels = nn.utils.rnn.pad_sequence(list(targets), True, IGNORED)
        start = torch.full_like(labels[:, :1], self.sizes.decoder_start_token_id)
        given = torch.cat([start, labels[:, :-1].clamp(min=0)], 1)
        decoded = self.seq2seq.led.decoder(
            input_ids=given, encoder_hidden_states=hidden, encoder_attention_mask=mask, use_cache=False
        ).last_hidden_state
        real = labels != IGNORED  # the vocabulary is the widest thing: nothing of it for padding
        logits = F.linear(decoded[real], self.seq2seq.lm_head.weight, self.final_logits_bias[0])
        return masked_loss_sum(logits[None], labels[real][None])

    def generate(self, states: list[Tensor], **settings: Any) -> list[str]:
        """A text for each example's states, by transformers' generation under these settings."""
        from transformers.modeling_outputs import BaseModelOutput

        hidden, mask = _padded(states)
        model: Any = self.seq2seq
        # Compiled layers as they are: a graph for each length of what has been said is more than it saves.
        with torch.compiler.set_stance("force_eager"):
            found: Tensor = model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=hidden), attention_mask=mask, **settings
            )
        special = self.tokenizer.special_ids
        texts = [
            self.tokenizer.decode([index for index in ids if index not in special]) for ids in found.tolist()
        ]
        return [text.strip() for text in texts]


def _padded(states: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, N, width) and its mask int64 (B, N)."""
    hidden = nn.utils.rnn.pad_sequence(states, batch_first=True)
    lengths = torch.tensor([len(state) for state in states], device=hidden.device)
    return hidden, (torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]).long()


def load_led(folder: Path) -> LedModel:
    """A LED's folder; InputError lists all that is not as config.json says.

    Layers are never dropped as a whole (layerdrop): each parameter has a gradient in each update.
    """
    from transformers import LEDConfig, LEDForConditionalGeneration

    sizes = read_led_sizes(folder)
    values = sizes.model_dump() | {"attention_window": sizes.windows}
    with torch.device("meta"):  # what is read takes the place of every parameter
        model = LEDForConditionalGeneration(LEDConfig(**values))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = read_shapes_of(folder)
    wrong = [f"{name}: not there" for name in expected if name not in shapes and name not in _TIED]
    wrong += [
        f"{name}: found {list(shape)}, expected {list(expected[name])}"
        if name in expected
        else f"{name}: found, and a LED has no such weights"
        for name, shape in shapes.items()
        if expected.get(name) != shape
    ]
    refuse_misfits(folder, wrong)
    tensors = read_left_out(folder, expected)
    for name in _TIED:
        if name in tensors and not torch.equal(tensors[name], tensors["led.shared.weight"]):
            raise InputError(f"{folder}: {name} is not led.shared.weight, expected them to be tied")
    tensors |= dict.fromkeys(_TIED, tensors["led.shared.weight"])
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    if (folder / GENERATION).is_file():
        model.generation_config = _read_generation(folder / GENERATION, sizes)
    return LedModel(sizes, model, read_tokenizer(folder))


def _read_generation(path: Path, sizes: LedSizes) -> GenerationConfig:
    """InputError lists what is wrong with generation_config.json."""
    from transformers import GenerationConfig

    try:
        found = LedGeneration.model_validate(read_json(path)).model_dump(exclude_none=True)
    except ValidationError as error:
        raise InputError("\n".join(f"{path}: {line}" for line in problems(error))) from error
    for name, index in found.items():
        if name.endswith("token_id") and index >= sizes.vocab_size:
            raise InputError(
                f"{path}: {name}: found {index}, expected less than the {sizes.vocab_size} of config.json"
            )
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    return GenerationConfig(**{name: getattr(sizes, name) for name in names} | found)


def led_files(model: LedModel, settings: Mapping[str, Any]) -> dict[str, str]:
    """config.json and generation_config.json of the model, which generates by these settings where none are given."""
    from transformers import GenerationConfig

    config = json.loads(model.seq2seq.config.to_json_string(use_diff=False))
    generation = GenerationConfig.from_dict(model.seq2seq.generation_config.to_dict())
    generation.update(**settings)
    generation._from_model_config = False  # or transformers takes the model's instead
    return {
        "config.json": json.dumps({**config, "architectures": ["LEDForConditionalGeneration"]}, indent=2)
        + "\n",
        GENERATION: generation.to_json_string(),
    }
