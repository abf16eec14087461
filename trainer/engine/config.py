"""The configuration of a training run: one YAML a run, any key overridable, all problems reported at once.

The classes are the documentation: `--help` prints their descriptions and defaults. pydantic collects the problems;
unknown keys are errors, because a mistyped key that is ignored costs a week.
"""

from __future__ import annotations

import importlib.util
import json
import reprlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trainer.engine.schedule import Decay

# What this file decides itself, and DeepSpeed's JSON would decide again.
DEEPSPEED_KEYS_MODELLED_HERE = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "zero_optimization",
    "fp16",
    "bf16",
    "torch_autocast",
    "optimizer",
    "scheduler",
}
GRADIENT_BUCKET = 500_000_000  # gradients that ZeRO reduces together, at the most (DeepSpeed's default)
# Keys of it that only tell; any other may decide what is computed, and a run continues under the same one.
DEEPSPEED_KEYS_THAT_TELL = {
    "comms_logger",
    "dump_state",
    "flops_profiler",
    "memory_breakdown",
    "steps_per_print",
    "wall_clock_breakdown",
}
PATHS = ("run", "model", "corpus", "data.cache_dir", "text.path", "text.cache_dir")
MOST_STEPS = 99_999_999  # a checkpoint's name has eight digits


class InputError(ValueError):
    """Something the user gave does not fit; the message names it, what was found and what was expected."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class NewModel(Section):
    """A model to train from scratch, with the corpus's tokenizer (for when there is none to continue from)."""

    architecture: Literal["roberta", "longformer"] = Field(
        "roberta", description="full attention, or windowed"
    )
    hidden_size: int = Field(768, ge=1)
    num_hidden_layers: int = Field(12, ge=1)
    num_attention_heads: int = Field(12, ge=1)
    intermediate_size: int = Field(3072, ge=1)
    attention_window: int = Field(512, ge=2, multiple_of=2, description="total width, longformer only")
    hidden_dropout_prob: float = Field(0.1, ge=0, lt=1)
    attention_probs_dropout_prob: float = Field(0.1, ge=0, lt=1)
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of the initial weights")
    sinusoidal_positions: bool = Field(
        False, description="start the learned positions as sinusoids: small models find word order sooner"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> NewModel:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads: found {self.num_attention_heads}, "
                f"expected a divisor of hidden_size {self.hidden_size}"
            )
        return self


class AdamW(Section):
    """AdamW; no weight decay on biases and LayerNorms."""

    weight_decay: float = Field(0.01, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    epsilon: float = Field(1e-6, gt=0)
    gradient_clipping: float = Field(0.0, ge=0, description="largest norm of the gradient; 0 does not clip")


class Optimizer(AdamW):
    """AdamW as RoBERTa's, with its schedule; no weight decay on biases and LayerNorms."""

    learning_rate: float = Field(3e-5, gt=0, description="the peak, reached after the warm-up")
    warmup_steps: int = Field(500, ge=0, description="updates of linear warm-up")
    decay: Decay = Field("polynomial", description="after the warm-up, to 0 at the last step")
    power: float = Field(3.0, gt=0, description="of the polynomial decay (the paper's is 3)")


class Checkpointing(Section):
    """What is kept of a run, to resume from and to export."""

    every: int = Field(1000, ge=1, description="steps between checkpoints; the last step always makes one")
    keep_last: int = Field(2, ge=1, description="complete checkpoints to keep")
    keep_every: int = Field(0, ge=0, description="keep those of every so many steps for good; 0: none")


class Evaluating(Section):
    """Figures of the validation split while training."""

    every: int = Field(1000, ge=0, description="steps between evaluations, and at a phase's last; 0: none")


class Evaluation(Evaluating):
    """Bits per masked token of the validation split while training, under the run's masked_fraction, mask_documents and
    precision; trainer.evaluate measures the same in fp32, with a masked_fraction of 0.15."""

    sequences: int = Field(128, ge=1, description="of the validation split, as stored: the first so many")


class LossSpike(Section):
    """A step whose loss stands out is reported and, if asked, leaves the weights alone."""

    ratio: float = Field(2.0, gt=1, description="a spike is a loss over so many times the recent median")
    window: int = Field(50, ge=1, description="steps that the median is of; none is a spike before so many")
    skip: bool = Field(False, description="take no update from a spike; ten in a row end the run")


class WeightsAndBiases(Section):
    """Send the figures to Weights & Biases as well (pip install -e '.[wandb]'); nothing where no project is named."""

    project: str | None = Field(None, description="the project's name")
    team: str | None = Field(None, description="the entity it belongs to")
    group: str | None = Field(None, description="runs of one group are shown together")


class Data(Section):
    """Where the corpus is read."""

    cache_dir: Path | None = Field(
        None, description="local folder that a corpus at s3:// or gs:// is copied to, once a node"
    )


class Training(Section):
    """What every training has: precision, optimizer, checkpoints, and what it tells."""

    run: Path = Field(description="folder of the run; the same command again resumes what lies there")
    seed: int = Field(0, ge=0, description="of order, masks, dropout and initial weights")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 keeps fp32 weights, sums and reductions"
    )
    zero_stage: Literal[0, 1, 2] = Field(
        0, description="what ZeRO divides: nothing, optimizer, and gradients"
    )
    activation_checkpointing: bool = Field(
        False, description="recompute each layer in the backward pass: less memory"
    )
    compile: bool = Field(False, description="torch.compile each layer: slower to start, then faster on GPUs")
    deterministic: bool = Field(
        False, description="on GPUs only algorithms that give the same bits every time, at some speed"
    )
    log_every: int = Field(10, ge=1, description="steps between rows of metrics.jsonl")
    hang_minutes: float = Field(
        10.0,
        gt=0,
        description="a step that takes longer, and 20 times the median, ends the run with its stacks dumped",
    )
    optimizer: AdamW = Field(default_factory=AdamW)  # type: ignore[arg-type]
    checkpoint: Checkpointing = Field(default_factory=Checkpointing)  # type: ignore[arg-type]
    evaluation: Evaluating = Field(default_factory=Evaluating)  # type: ignore[arg-type]
    loss_spike: LossSpike = Field(default_factory=LossSpike)  # type: ignore[arg-type]
    wandb: WeightsAndBiases = Field(default_factory=WeightsAndBiases)  # type: ignore[arg-type]
    deepspeed: dict[str, Any] = Field(
        default_factory=dict, description="raw keys for DeepSpeed's JSON that are not modelled here"
    )

    @field_validator("run")
    @classmethod
    def _expand_home(cls, path: Path) -> Path:
        return expand_home(path)

    def misfits(self) -> list[str]:
        """Keys that do not fit together, a line each."""
        owned = DEEPSPEED_KEYS_MODELLED_HERE & self.deepspeed.keys()
        found = [f"deepspeed.{key}: found, expected it under this file's own keys" for key in sorted(owned)]
        if self.wandb.project is not None and importlib.util.find_spec("wandb") is None:
            found.append(
                f"wandb.project: found {self.wandb.project!r}, expected its package to be installed "
                f"(pip install 'longspan[wandb]')"
            )
        return found

    @model_validator(mode="after")
    def _fits_together(self) -> Training:
        if misfits := self.misfits():
            raise ValueError("\n".join(misfits))
        return self

    def exact(self) -> dict[str, Any]:
        """The keys that determine what the run computes: a checkpoint continues only under the same ones.

        Which loss is a spike decides something only where spikes are skipped, and of DeepSpeed's raw keys those that
        only tell do not.
        """
        kept: dict[str, Any] = json.loads(self.model_dump_json(exclude=set(FREE_KEYS)))
        if not self.loss_spike.skip:
            kept["loss_spike"] = {"skip": False}
        kept["deepspeed"] = {k: v for k, v in kept["deepspeed"].items() if k not in DEEPSPEED_KEYS_THAT_TELL}
        return kept


class OnePhase(Training):
    """A training whose steps are all alike."""

    steps: int = Field(ge=1, le=MOST_STEPS, description="updates in all")
    batch_size: int = Field(64, ge=1, description="sequences an update, over all processes")
    micro_batch_size: int = Field(
        1,
        ge=1,
        description="sequences a forward pass; batch_size is a multiple of it, whatever the process count",
    )
    optimizer: Optimizer = Field(default_factory=Optimizer)  # type: ignore[arg-type]

    def misfits(self) -> list[str]:
        found = super().misfits()
        if self.batch_size % self.micro_batch_size:
            found.append(
                f"batch_size: found {self.batch_size}, expected a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.optimizer.warmup_steps > self.steps:
            found.append(
                f"optimizer.warmup_steps: found {self.optimizer.warmup_steps}, expected at most steps {self.steps}"
            )
        return found


# Where things lie, what is told, and how the same numbers are computed.
FREE_KEYS = (
    "run",
    "corpus",
    "data",
    "text",
    "log_every",
    "hang_minutes",
    "checkpoint",
    "evaluation",
    "wandb",
    "activation_checkpointing",
    "compile",
    "deterministic",
    "cache_dir",
    "zero_stage",
)


class Pretraining(OnePhase):
    """Masked-language-model pretraining."""

    evaluation: Evaluation = Field(default_factory=Evaluation)  # type: ignore[arg-type]

    model: str | NewModel = Field(
        description="model folder or hub id (owner/name@revision) to continue from, or sizes of a new model"
    )
    corpus: str = Field(
        description="corpus made by pipeline.build_corpus: a folder, or s3:// or gs:// (copied to data.cache_dir)"
    )
    data: Data = Field(default_factory=Data)  # type: ignore[arg-type]
    sequence_length: int = Field(
        4096, ge=3, description="tokens; a divisor of the corpus's length trains on its consecutive pieces"
    )
    mask_documents: bool = Field(False, description="keep the documents packed into a sequence apart")
    masked_fraction: float = Field(0.15, gt=0, lt=1, description="of a sequence's tokens, less its two ends")
    extra_positions_only: bool = Field(
        False, description="train only the position embeddings that conversion added (table 5's last row)"
    )

    @field_validator("model", "corpus")
    @classmethod
    def _expand_homes(cls, location: str | NewModel) -> str | NewModel:
        if isinstance(location, str) and location.startswith("~"):
            return str(expand_home(Path(location)))
        return location

    def misfits(self) -> list[str]:
        found = super().misfits()
        if self.extra_positions_only and isinstance(self.model, NewModel):
            found.append("extra_positions_only: found true, expected false for a new model")
        return found


Config = TypeVar("Config", bound=Training)


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once in its section; of two, plain YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    problem = f"{key.value!r} is there twice in its section"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def expand_home(path: Path) -> Path:
    """`~` and `~user` as a folder; ValueError where nobody has that name."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"found {str(path)!r}, expected the home of a user of this machine") from error


def load_config(path: Path, overrides: Sequence[tuple[str, str]], kind: type[Config]) -> Config:
    """Read a YAML file, apply `(dotted.key, yaml value)` overrides, validate. InputError lists every problem."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506, it is a SafeLoader
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: found {type(values).__name__}, expected a mapping of keys")
    for key, text in overrides:
        _override(values, key, text)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}:\n" + "\n".join(f"  {line}" for line in problems(error))) from error


def _override(values: dict[str, Any], key: str, text: str) -> None:
    *sections, name = key.split(".")
    here: Any = values
    for section in sections:
        if isinstance(here, list):
            inner = here[_index(key, section, here)]
        else:
            inner = here.setdefault(section, {})
        if not isinstance(inner, dict | list):
            raise InputError(f"--{key}: {section} is {inner!r}, expected a section with keys of its own")
        here = inner
    last = _index(key, name, here) if isinstance(here, list) else name
    if key in PATHS:  # a folder named 2024 is no number
        here[last] = text
        return
    try:
        here[last] = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"--{key}: found {text!r}, expected a YAML value") from error


def _index(key: str, text: str, entries: list[Any]) -> int:
    """A list's entry by its number, as in --phases.0.steps 10."""
    if not (text.isdecimal() and int(text) < len(entries)):
        raise InputError(f"--{key}: found {text}, expected the number of an entry, 0 to {len(entries) - 1}")
    return int(text)


_SHORT = reprlib.Repr()  # with aliases a small YAML can be a huge value
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 200, 200


def problems(error: ValidationError) -> list[str]:
    """One line a problem: the key, what is wrong, what was found."""
    lines = []
    for problem in error.errors():
        # A union's branches add their own names to the location; the user wrote only the keys.
        where = problem["loc"]
        if len(where) > 1 and where[0] == "task":  # whose section is one of several, by name
            where = (where[0], *where[2:])
        key = ".".join(str(part) for part in where if part != "str" and "NewModel" not in str(part))
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key")
        elif problem["type"] == "missing":
            lines.append(f"{key}: not there, and it has no default")
        elif problem["type"] == "value_error":
            prefix = f"{key}." if key else ""
            lines += [prefix + line for line in str(problem["ctx"]["error"]).splitlines()]
        else:
            expected = problem["msg"].removeprefix("Input should be ").removeprefix("a valid ")
            if key == "precision" and problem["input"] == "fp16":
                expected += " (fp16 needs loss scaling, which skips updates; bf16 has the range of fp32)"
            lines.append(f"{key}: found {_SHORT.repr(problem['input'])}, expected {expected}")
    # A model given as neither a name nor sizes fails both branches of the union; the sizes' problems tell more.
    if any(line.startswith("model.") for line in lines):
        lines = [line for line in lines if not line.startswith("model: ")]
    return lines


def parse_arguments(
    arguments: Sequence[str], usage: str, kind: type[Training]
) -> tuple[Path, list[tuple[str, str]], bool]:
    """`--config FILE [--dry-run] [--any.key value …]`; returns the file, the overrides and whether to stop early."""
    config: Path | None = None
    dry_run = False
    overrides: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ("-h", "--help"):
            print(usage + "\n" + describe(kind))
            sys.exit(0)
        if not argument.startswith("--"):
            raise InputError(f"{argument}: found a bare word, expected --config FILE or --some.key VALUE")
        key, equals, value = argument[2:].partition("=")
        key = key.replace("-", "_")
        if key == "dry_run" and not equals:
            dry_run = True
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"--{key}: expected a value")
            value = rest.pop(0)
        if key == "config":
            config = Path(value)
        elif key != "local_rank":  # the launcher adds it; the environment says the same
            overrides.append((key, value))
    if config is None:
        raise InputError("--config: not given, expected the YAML file of a run (--help lists the keys)")
    return config, overrides, dry_run


def describe(section: type[BaseModel], prefix: str = "") -> str:
    """The keys of a section with defaults and meaning, for --help."""
    lines = []

    def as_section(annotation: Any) -> type[BaseModel] | None:
        return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None

    # What must be given comes first, sections with keys of their own last.
    fields = sorted(
        section.model_fields.items(),
        key=lambda item: (
            as_section(item[1].annotation) is not None
            or get_origin(item[1].annotation) is tuple
            or item[1].discriminator is not None,
            not item[1].is_required(),
        ),
    )
    for name, field in fields:
        inner = as_section(field.annotation)
        key = prefix + name
        if field.discriminator:  # one of several sections, by its name
            for each in map(as_section, get_args(field.annotation)):
                assert each
                chosen = get_args(each.model_fields["name"].annotation)[0]
                lines += [f"\n{key}, where {key}.name is {chosen}: {(each.__doc__ or '').strip()}"]
                lines.append(describe(each, f"{key}."))
            continue
        entries = [as_section(kind) for kind in get_args(field.annotation)]
        if get_origin(field.annotation) is tuple and entries[0]:
            lines += [f"\n{key}: {(entries[0].__doc__ or '').strip()}", describe(entries[0], f"{key}.0.")]
            continue
        if inner:
            lines += [f"\n{key}: {(inner.__doc__ or '').strip()}", describe(inner, f"{key}.")]
            continue
        default = "" if field.is_required() else f" [{field.get_default(call_default_factory=True)}]"
        lines.append(f"  --{key}{default}  {field.description or ''}".rstrip())
        if name == "model" and NewModel in get_args(field.annotation):
            lines += [f"    {(NewModel.__doc__ or '').strip()}", describe(NewModel, "  model.")]
    return "\n".join(lines)
