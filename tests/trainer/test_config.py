"""Configurations: every problem at once, every key overridable, the committed files valid."""

import importlib.util
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel

from trainer.engine.character_config import (
    CharacterEvaluation,
    CharacterPhase,
    CharacterTraining,
    TextSection,
)
from trainer.engine.config import InputError, NewModel, Pretraining, parse_arguments
from trainer.engine.config import load_config as load_any_config
from trainer.engine.deepspeed import check_raw_keys
from trainer.engine.estimate import memory
from trainer.model.longformer import EncoderConfig
from trainer.tasks.config import Finetuning

CONFIGS = Path(__file__).parents[2] / "trainer" / "configs"
CHARACTERS = sorted(CONFIGS.glob("*charlm*.yaml"))
FINETUNED = sorted(path for path in CONFIGS.rglob("*.yaml") if "\ntask:" in path.read_text(encoding="utf-8"))
MASKED = sorted(set(CONFIGS.glob("*.yaml")) - {*CHARACTERS, *FINETUNED})


def load_config(path: Path, overrides: Sequence[tuple[str, str]] = ()) -> Pretraining:
    return load_any_config(path, overrides, Pretraining)


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


MINIMAL = "run: r\nmodel: m\ncorpus: c\nsteps: 1000\n"


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "run: r\nmodel: {hidden_size: 0, layers: 3}\nstep: 5\nprecision: fp8\noptimizer: {power: zero}\n",
    )
    with pytest.raises(InputError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}:"
    expected = {
        "  model.hidden_size: found 0, expected greater than or equal to 1",
        "  model.layers: unknown key",
        "  step: unknown key",
        "  steps: not there, and it has no default",
        "  corpus: not there, and it has no default",
        "  precision: found 'fp8', expected 'fp32' or 'bf16'",
    }
    assert expected <= set(lines)
    assert sum(line.startswith("  optimizer.power: found 'zero'") for line in lines) == 1
    assert len(lines) == len(expected) + 2


def test_keys_that_do_not_fit_together(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "batch_size: 7\nmicro_batch_size: 2\noptimizer: {warmup_steps: 2000}\n")
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert "batch_size: found 7, expected a multiple of micro_batch_size 2" in str(caught.value)
    assert "optimizer.warmup_steps: found 2000, expected at most steps 1000" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1, 2]", "expected a mapping"), ("a: [", "not YAML"), ("a: !!python/name:os.system\n", "not YAML")],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer: {power: 2}\noptimizer: {epsilon: 1e-8}\n", "'optimizer' is there twice in its section"),
        ("optimizer: {learning_rate: .inf}\n", r"learning_rate: found inf, expected a? ?finite number"),
        ("hang_minutes: .nan\n", "hang_minutes: found nan"),
        ("deepspeed: " + "[" * 5000 + "]" * 5000 + "\n", "not YAML"),
        ("seed: 100000000000000000000000\nsteps_: 1\n", "steps_: unknown key"),
    ],
)
def test_values_that_would_be_found_out_late(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(write(tmp_path, MINIMAL + text))


def test_steps_have_names_for_their_checkpoints(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, MINIMAL), [("steps", "99999999")]).steps == 99_999_999
    with pytest.raises(InputError, match="steps: found 100000000, expected less than or equal to 99999999"):
        load_config(write(tmp_path, MINIMAL), [("steps", "100000000")])


@pytest.mark.parametrize("key", ["run", "model", "corpus"])
def test_a_home_that_nobody_has(tmp_path: Path, key: str) -> None:
    with pytest.raises(InputError, match=rf"{key}\.?:? ?found '~nobody-has-this/x', expected the home"):
        load_config(write(tmp_path, MINIMAL), [(key, "~nobody-has-this/x")])


def test_a_value_of_nested_aliases_does_not_fill_the_message(tmp_path: Path) -> None:
    bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    with pytest.raises(InputError) as caught:
        load_config(write(tmp_path, f"a0: &a0 [x]\n{bomb}" + MINIMAL + "seed: *a8\n"))
    assert len(str(caught.value)) < 10_000


def test_which_keys_a_run_continues_under(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    exact = load_config(path).exact()
    free = [
        ("run", "s"),
        ("corpus", "d"),
        ("data.cache_dir", "2024"),
        ("log_every", "3"),
        ("zero_stage", "2"),
        ("checkpoint.every", "7"),
        ("evaluation.every", "7"),
        ("loss_spike.ratio", "7"),
        ("deepspeed.wall_clock_breakdown", "true"),
        ("activation_checkpointing", "true"),
    ]
    assert load_config(path, free).exact() == exact
    decides = [
        ("seed", "1"),
        ("steps", "1001"),
        ("batch_size", "32"),
        ("micro_batch_size", "2"),
        ("precision", "bf16"),
        ("sequence_length", "128"),
        ("mask_documents", "true"),
        ("masked_fraction", "0.2"),
        ("extra_positions_only", "true"),
        ("optimizer.weight_decay", "0.1"),
        ("optimizer.gradient_clipping", "0.1"),
        ("loss_spike.skip", "true"),
        ("deepspeed.communication_data_type", "bf16"),
    ]
    for override in decides:
        assert load_config(path, [override]).exact() != exact, override


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_config(tmp_path / "none.yaml")


def test_overrides_reach_any_key(tmp_path: Path) -> None:
    arguments = [
        "--local_rank=0",
        "--config",
        str(write(tmp_path, MINIMAL.replace("model: m", "model: {}"))),
        "--optimizer.learning_rate=1e-4",
    ]
    arguments += ["--model.hidden_size", "64", "--model.num_attention_heads", "4", "--mask_documents", "true"]
    path, overrides, dry_run = parse_arguments([*arguments, "--dry-run"], "", Pretraining)
    config = load_config(path, overrides)
    assert dry_run
    assert config.optimizer.learning_rate == 1e-4
    assert config.mask_documents
    assert isinstance(config.model, NewModel)
    assert config.model.hidden_size == 64


def test_a_section_s_key_does_not_replace_a_model_folder(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    with pytest.raises(InputError, match=r"--model\.hidden_size: model is 'm', expected a section"):
        load_config(path, [("model.hidden_size", "64")])


def test_folders_are_text_and_homes_are_expanded(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    arguments = [
        "--config",
        str(path),
        "--run",
        "2024",
        "--corpus",
        "~/c",
        "--model=on",
        "--micro-batch-size",
        "2",
    ]
    config = load_config(path, parse_arguments(arguments, "", Pretraining)[1])
    assert config.run == Path("2024")
    assert config.corpus == str(Path.home() / "c")
    assert config.model == "on"
    assert config.micro_batch_size == 2


def test_what_deepspeed_must_not_decide_again(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        MINIMAL + "precision: fp16\ndeepspeed: {fp16: {enabled: true}, wall_clock_breakdown: true}\n",
    )
    with pytest.raises(InputError, match="fp16 needs loss scaling"):
        load_config(path)
    with pytest.raises(InputError, match=r"deepspeed\.fp16: found, expected it under this file's own keys"):
        load_config(path, [("precision", "bf16")])


def test_raw_keys_that_deepspeed_refuses_are_told_before_it_starts(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    check_raw_keys(load_config(path, [("deepspeed.wall_clock_breakdown", "true")]))
    for key, value in (("comms_logger.enabled", "x"), ("flops_profiler", "3")):
        with pytest.raises(
            InputError, match=rf"deepspeed: found .*{key.partition('.')[0]}.*, which DeepSpeed refuses"
        ):
            check_raw_keys(load_config(path, [(f"deepspeed.{key}", value)]))


def test_help_lists_every_key_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_arguments(["--help"], "usage", Pretraining)
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for text in ("--optimizer.power [3.0]", "--checkpoint.keep_last [2]", "--sequence_length [4096]"):
        assert text in shown


@pytest.mark.parametrize("path", MASKED, ids=lambda path: path.stem)
def test_the_committed_configurations_are_valid(path: Path) -> None:
    assert load_config(path).steps > 0


def test_weights_and_biases_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = write(tmp_path, MINIMAL + "wandb: {project: mine}\nbatch_size: 3\nmicro_batch_size: 2\n")
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert "wandb.project: found 'mine', expected its package to be installed (pip install" in str(
        caught.value
    )
    assert "batch_size: found 3" in str(caught.value)


def explained(path: Path) -> set[str]:
    """The dotted keys of a file, each of whose lines must say what it is."""
    found, section = set(), ""
    for line in path.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r"( *)([a-z0-9_]+):( \S.*?)? +# \S.*", line)
        assert match, f"{path.name}: a key without an explanation: {line}"
        indent, key, value = match.groups()
        section = section if indent else key
        if value is not None:
            found.add(f"{section}.{key}" if indent else key)
    return found


def keys_of(section: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= keys_of(inner, f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return found


def test_every_key_is_explained_in_a_committed_file() -> None:
    found = {path.stem: explained(path) for path in MASKED}
    continued = keys_of(Pretraining)
    assert found["longformer_base"] == continued
    assert found["roberta_base"] >= {f"model.{key}" for key in NewModel.model_fields}
    known = continued | {f"model.{key}" for key in NewModel.model_fields}
    for stem, keys in found.items():
        assert keys <= known, stem


@pytest.mark.parametrize("path", MASKED, ids=lambda path: path.stem)
def test_the_arithmetic_of_the_batch_is_right(path: Path) -> None:
    """ "64 sequences an update = 8 processes × 2 passes × 4 sequences; 64 × 4,096 = 2^18 tokens" in the head."""
    config, head = load_config(path), path.read_text().replace("\n# ", " ").replace(",", "")
    if "1x24gb" in path.stem:
        sizes = re.search(r"(\d+) passes of (\d+) sequences each", head)
        assert sizes, path
        assert [int(size) for size in sizes.groups()] == [
            config.batch_size // config.micro_batch_size,
            config.micro_batch_size,
        ]
        return
    whole = r"(\d+) sequences an update = (\d+) processes × (\d+) pass(?:es)? × (\d+) sequences?"
    sizes = re.search(whole + r"; (\d+) × (\d+) = 2\^(\d+) tokens", head)
    assert sizes, path
    batch, processes, passes, micro, again, tokens, power = (int(size) for size in sizes.groups())
    assert (batch, micro, tokens) == (config.batch_size, config.micro_batch_size, config.sequence_length)
    assert batch == again == processes * passes * micro
    assert batch * tokens == 2**power


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads", "architecture", "processes"),
    [
        ("longformer_base", 12, 768, 12, "longformer", 8),
        ("longformer_base_16k", 12, 768, 12, "longformer", 8),
        ("longformer_base_1x24gb", 12, 768, 12, "longformer", 1),
        ("longformer_large", 24, 1024, 16, "longformer", 8),
        ("roberta_base", 12, 768, 12, "roberta", 8),
    ],
)
def test_the_estimate_in_the_head_is_what_is_estimated(
    name: str,
    layers: int,
    width: int,
    heads: int,
    architecture: Literal["roberta", "longformer"],
    processes: int,
) -> None:
    path = CONFIGS / f"{name}.yaml"
    training = load_config(path)
    config = EncoderConfig(
        architecture,
        50265,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=training.sequence_length + 2,
        attention_window=[512] * layers if architecture == "longformer" else [],
    )
    told = re.search(r"--dry-run estimates (\d+) GiB", path.read_text().replace("\n# ", " "))
    assert told, path
    estimated = memory(config, training, processes, on_gpu=True).total / 2**30
    assert estimated == pytest.approx(int(told.group(1)), abs=0.75)


@pytest.mark.parametrize("path", FINETUNED, ids=lambda path: path.stem)
def test_the_committed_finetuning_configurations_are_valid(path: Path) -> None:
    assert "train" in load_any_config(path, (), Finetuning).task.task().splits()


@pytest.mark.parametrize("path", CHARACTERS, ids=lambda path: path.stem)
def test_the_committed_character_configurations_are_valid(path: Path) -> None:
    config = load_any_config(path, (), CharacterTraining)
    for before, phase in pairwise(config.phases):  # appendix B
        assert phase.lookback == tuple(2 * back for back in before.lookback)
        assert phase.learning_rate == before.learning_rate / 2
    if "demo" not in path.stem:
        assert [phase.sequence_length for phase in config.phases] == [2048, 4096, 8192, 16384, 23040]
        ends = [(phase.lookback[0], phase.lookback[-1]) for phase in (config.phases[0], config.phases[-1])]
        assert ends == [(32 // 2, 512 // 2), (512 // 2, 8192 // 2)]
        assert all(phase.warmup == min(10_000, phase.steps // 10) for phase in config.phases)


def test_every_key_of_a_character_model_s_training_is_explained() -> None:
    text = (CONFIGS / "charlm_small.yaml").read_text()
    explained_ones = set(re.findall(r"^[ -]*([a-z0-9_]+):(?: \S.*?)? +# \S", text, re.MULTILINE))
    sections = (CharacterTraining, TextSection, CharacterPhase, CharacterEvaluation)
    keys = {key for section in sections for key in section.model_fields}
    plain = {
        "text",
        "model",
        "phases",
        "optimizer",
        "checkpoint",
        "evaluation",
        "loss_spike",
    }  # their keys tell
    assert keys - plain <= explained_ones


def test_phases_that_do_not_fit_are_named_by_their_number(tmp_path: Path) -> None:
    phase = "{steps: 5, sequence_length: 8, batch_size: 3, micro_batch_size: 2, learning_rate: 1, lookback: [1, -2]}"
    path = write(tmp_path, f"run: r\ntext: {{path: t}}\nmodel: {{num_hidden_layers: 3}}\nphases: [{phase}]\n")
    with pytest.raises(InputError) as caught:
        load_any_config(path, [("phases.0.warmup_steps", "6")], CharacterTraining)
    for line in (
        "phases.0.batch_size: found 3, expected a multiple of micro_batch_size 2",
        "phases.0.warmup_steps: found 6, expected at most steps 5",
        "phases.0.lookback: found 2 entries, expected one a layer, 3",
        "phases.0.lookback: found [1, -2], expected counts of characters",
    ):
        assert line in str(caught.value)
    with pytest.raises(
        InputError, match=r"--phases\.1\.steps: found 1, expected the number of an entry, 0 to 0"
    ):
        load_any_config(path, [("phases.1.steps", "6")], CharacterTraining)


def test_help_lists_the_keys_of_a_phase(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"], "usage", CharacterTraining)
    shown = capsys.readouterr().out
    for text in ("--phases.0.steps", "--phases.0.batch_size [32]", "--text.vocabulary [bytes]"):
        assert text in shown
