"""The character model's training: phases, exactness, resuming in any of them, and what it writes."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from tests.trainer import launcher
from tests.trainer.runs import losses, rewind, rows, state_bytes, step_rows, timeless
from trainer.batches.text import open_text
from trainer.charlm import CharacterModelling, prepare
from trainer.charlm import main as charlm
from trainer.engine.character_config import CharacterTraining
from trainer.engine.checkpoint import open_checkpoint
from trainer.engine.config import InputError, load_config
from trainer.engine.deepspeed import parameter_groups
from trainer.engine.training import check_same_run
from trainer.export import export_checkpoint
from trainer.model.character_card import character_card
from trainer.model.charlm_folder import CharacterDescription, load_character_model

CASES = Path(__file__).with_name("launched_characters.py")
SCRIPT = Path(__file__).parents[2] / "trainer" / "charlm.py"
LENGTHS = (4, 5, 3)  # steps of the phases
BORDERS = (4, 9)
STEPS = sum(LENGTHS)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = ["long", "document", "window", "layer", "the", "of", "sees", "back"]
    drawn = random.Random(0).choices(words, k=1500)
    path.write_text(" ".join(drawn))
    return path


def settings(folder: Path, text: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Three phases of other lengths, windows and batches, with dropout and dilation.

    A step is two, one and two passes of each of two processes: an odd number lies before the last phase, where counting
    on from those before would end each step a pass too soon.
    """
    shapes = [(16, 4, 1, [2, 4]), (32, 6, 3, [4, 8]), (48, 3, 1, [8, 16])]
    return {
        "run": str(folder / name),
        "text": {"path": str(text)},
        "model": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 32,
            "dilation": [1, 2],
            "dropout": 0.1,
        },
        "log_every": 1,
        "optimizer": {"gradient_clipping": 0.25},
        "checkpoint": {"every": 2, "keep_last": 20},
        "evaluation": {"every": 4, "characters": 300},
        "phases": [
            {
                "steps": steps,
                "sequence_length": length,
                "batch_size": batch,
                "micro_batch_size": micro,
                "learning_rate": 1e-2 / 2**number,
                "warmup_steps": 2,
                "lookback": lookback,
            }
            for number, (steps, (length, batch, micro, lookback)) in enumerate(
                zip(LENGTHS, shapes, strict=True)
            )
        ],
        **changes,
    }


def write(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / f"{Path(values['run']).name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def cut_in_two(values: dict[str, Any]) -> dict[str, Any]:
    """The second phase as two, which are the same together."""
    first, second, third = values["phases"]
    parts = [{**second, "steps": 3}, {**second, "steps": 2, "warmup_steps": 0}]
    return {**values, "phases": [first, *parts, third]}


@pytest.fixture(scope="session")
def characters(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """One launch on two processes: read its runs, do not write to them.

    whole-0, -1, -2 by ZeRO stage; stopped-0, -1, -2 stopped at both borders of phases, before and behind one, and in
    the middle, and started again each time; two is whole-0 with its second phase as two; checkpointed; first is the
    first phase alone.
    """
    folder = tmp_path_factory.mktemp("characters")
    arguments = []
    for stage in (0, 1, 2):
        arguments.append(write(folder, settings(folder, text, f"whole-{stage}", zero_stage=stage)))
    stops = ("3,4,5,8", "4,9", "7,10")
    for stage, steps in enumerate(stops):
        path = write(folder, settings(folder, text, f"stopped-{stage}", zero_stage=stage))
        arguments.append(Path(f"{path}@{steps}"))
    arguments.append(write(folder, cut_in_two(settings(folder, text, "two"))))
    arguments.append(write(folder, settings(folder, text, "checkpointed", activation_checkpointing=True)))
    alone = settings(folder, text, "first")
    arguments.append(write(folder, {**alone, "phases": alone["phases"][:1]}))
    arguments.append(write(folder, settings(folder, text, "bf16", precision="bf16")))
    process = launcher.start(CASES, *map(str, arguments))
    output = launcher.finish(process)
    assert process.returncode == 0, output
    (folder / "output").write_text(output)
    return folder


def task_of(folder: Path, name: str) -> CharacterModelling:
    return prepare(CharacterTraining.model_validate(yaml.safe_load((folder / f"{name}.yaml").read_text())))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_stopped_at_borders_of_phases_and_within_them_it_is_the_same_run(
    characters: Path, stage: int
) -> None:
    stopped, whole = characters / f"stopped-{stage}", characters / f"whole-{stage}"
    assert state_bytes(stopped, STEPS) == state_bytes(whole, STEPS)
    assert timeless(stopped) == timeless(whole)
    for border in BORDERS:
        assert state_bytes(stopped, border) == state_bytes(whole, border)


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_computes_the_same(characters: Path, stage: int) -> None:
    np.testing.assert_allclose(
        losses(characters / f"whole-{stage}"), losses(characters / "whole-0"), rtol=1e-4
    )


def test_a_phase_cut_in_two_is_the_same_run(characters: Path) -> None:
    assert state_bytes(characters / "two", STEPS) == state_bytes(characters / "whole-0", STEPS)


def test_the_first_phase_of_several_is_that_phase_alone(characters: Path) -> None:
    assert state_bytes(characters / "first", LENGTHS[0]) == state_bytes(characters / "whole-0", LENGTHS[0])


def test_layers_computed_again_are_the_same(characters: Path) -> None:
    assert state_bytes(characters / "checkpointed", STEPS) == state_bytes(characters / "whole-0", STEPS)


def test_bf16_stays_near(characters: Path) -> None:
    found, expected = losses(characters / "bf16"), losses(characters / "whole-0")
    assert found != expected
    np.testing.assert_allclose(found, expected, rtol=0.03)


def test_what_is_logged(characters: Path) -> None:
    run = characters / "whole-0"
    found = step_rows(run)
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    assert [row["phase"] for row in found] == [1] * 4 + [2] * 5 + [3] * 3
    rates = [0.005, 0.01, 0.01, 0.01, 0.0025, 0.005, 0.005, 0.005, 0.005, 0.00125, 0.0025, 0.0025]
    assert [row["learning_rate"] for row in found] == pytest.approx(rates)
    assert found[-1]["tokens"] == 4 * 4 * 16 + 5 * 6 * 32 + 3 * 3 * 48
    assert all(row["bpc"] == pytest.approx(row["loss"] / np.log(2)) for row in found)
    evaluated = [row["step"] for row in rows(run) if "validation_bpc" in row]
    assert evaluated == [4, 8, 9, 12]  # every fourth step, and at the end of each phase
    output = (characters / "output").read_text()
    assert "phase 2   5 steps of 6 sequences × 32 characters = 2 micro-batches of 3, 1 on each of 2" in output


def test_the_update_is_that_of_the_plain_mathematics(characters: Path) -> None:
    """Without dropout: the second step of the second phase against torch alone, over the whole batch at once."""
    values = yaml.safe_load((characters / "whole-0.yaml").read_text())
    values["model"]["dropout"] = 0.0
    task = prepare(CharacterTraining.model_validate(values))
    phases, step = task.phases, 6
    place = phases.at(step)
    assert (place.number, place.within, place.taken) == (1, 2, 6)
    chosen = np.arange(6)
    whole = task.micro_batch(step, chosen, np.arange(6))
    parts = [task.micro_batch(step, chosen[i : i + 2], np.arange(i, i + 2)) for i in (0, 2, 4)]
    assert torch.equal(torch.cat([part.characters for part in parts]), whole.characters)
    assert whole.scored == 6 * 32
    seeds = torch.zeros(6, 2, dtype=torch.int64)
    logits = task.model.eval()(whole.characters[:, :-1], whole.lookback)
    expected = F.cross_entropy(logits.transpose(1, 2), whole.characters[:, 1:], reduction="sum")
    torch.testing.assert_close(task.loss(task.model, whole, seeds), expected)


def test_biases_and_layer_norms_do_not_decay(text: Path, tmp_path: Path) -> None:
    task = prepare(CharacterTraining.model_validate(settings(tmp_path, text, "r")))
    names = {id(parameter): name for name, parameter in task.model.named_parameters()}
    decayed, kept = (
        {names[id(parameter)] for parameter in group["params"]}
        for group in parameter_groups(task.model, task.config.optimizer)
    )
    assert len(decayed) + len(kept) == len(names)
    assert kept == {name for name in names.values() if name.endswith("bias") or "norm." in name}


def test_an_epoch_reads_the_text_once_and_the_next_is_cut_elsewhere(text: Path, tmp_path: Path) -> None:
    values = settings(tmp_path, text, "r")
    values["phases"] = [{**values["phases"][0], "steps": 10_000, "batch_size": 1}]
    task = prepare(CharacterTraining.model_validate(values))
    count, tokens = task.phases.phases[0].sequences, 16
    starts = []
    for epoch in range(3):
        step = epoch * count + 1
        batch = task.micro_batch(step, np.arange(count), np.arange(count))
        assert batch.characters.shape == (count, tokens + 1)
        read = batch.characters[:, :-1].flatten().numpy()
        assert np.array_equal(batch.characters[:-1, -1], batch.characters[1:, 0])  # one begins where one ends
        train = task.train
        found = [start for start in range(tokens) if np.array_equal(train[start : start + len(read)], read)]
        starts += found
        assert len(found) == 1
        assert len(read) > len(train) - 2 * tokens
    assert len(set(starts)) > 1


def test_one_process_goes_on_with_what_two_began(characters: Path, text: Path, tmp_path: Path) -> None:
    """On another number of processes and under another ZeRO stage, in the middle of the second phase."""
    whole = characters / "whole-0"
    values = settings(tmp_path, text, "resumed", zero_stage=1)
    rewind(whole, tmp_path / "resumed", 6)
    process = launcher.start(SCRIPT, "--config", str(write(tmp_path, values)), processes=1)
    output = launcher.finish(process)
    assert process.returncode == 0, output
    assert "start     step 6 of 12" in output
    np.testing.assert_allclose(losses(tmp_path / "resumed"), losses(whole), rtol=1e-4)
    exported = load_character_model(tmp_path / "resumed" / "export")
    assert exported.lookback == (8, 16)


@pytest.mark.drill
def test_killed_anywhere_and_started_again_it_is_the_same(
    characters: Path, text: Path, tmp_path: Path, kills: int
) -> None:
    config = write(tmp_path, settings(tmp_path, text, "killed"))
    run = tmp_path / "killed"
    seed = int(os.environ.get("LONGSPAN_SEED", "5"))
    moments = random.Random(seed)
    kills = 2 if kills <= 3 else min(kills, 12)
    for number in range(kills):
        process = launcher.start(SCRIPT, "--config", str(config))
        due = (number + moments.uniform(0, 1)) * STEPS / kills
        launcher.wait_while(lambda due=due: launcher.steps_logged(run) < due, process, every=0.001)
        launcher.kill(process)
        launcher.finish(process)
    process = launcher.start(SCRIPT, "--config", str(config))
    output = launcher.finish(process)
    assert process.returncode == 0, output
    assert state_bytes(run, STEPS) == state_bytes(characters / "whole-0", STEPS)
    assert timeless(run) == timeless(characters / "whole-0")


def test_what_is_exported_is_what_was_trained(characters: Path, text: Path, tmp_path: Path) -> None:
    stored = load_character_model(characters / "whole-0" / "export")
    checkpoint = characters / "whole-0" / "checkpoints" / f"step-{STEPS:08d}"
    again = load_character_model(checkpoint)
    inputs = torch.from_numpy(open_text(text).ids[:40].astype(np.int64))[None]
    with torch.no_grad():
        torch.testing.assert_close(stored.model(inputs, (8, 16)), again.model(inputs, (8, 16)))
    assert stored.lookback == again.lookback == (8, 16)
    earlier = characters / "whole-0" / "checkpoints" / "step-00000004"
    export_checkpoint(earlier, tmp_path / "earlier")
    assert load_character_model(tmp_path / "earlier").lookback == (2, 4)
    card = (characters / "whole-0" / "export" / "README.md").read_text()
    assert "| updates | 12 |" in card
    assert str(text) not in card


def test_a_card_s_configuration_trains_the_same_again(text: Path, tmp_path: Path) -> None:
    values = settings(tmp_path, text, "r")
    values["text"] |= {"vocabulary": "characters", "test": 0.2}
    task = prepare(CharacterTraining.model_validate(values))
    described = CharacterDescription(task.model.config, (8, 16), task.text.alphabet)
    card = character_card(described, 1, {**task.facts(), "step": STEPS}, {})
    (tmp_path / "config.yaml").write_text(card.split("```yaml\n")[1].split("```")[0])
    overrides = [("run", "again"), ("text.path", str(text))]
    again = prepare(load_config(tmp_path / "config.yaml", overrides, CharacterTraining))
    assert again.facts() == task.facts()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lookback": [1]}, "lookback: found \\[1\\], expected 2 counts"),
        ({"model_type": "bert"}, "model_type: found 'bert', expected 'longspan-characters'"),
        ({"vocab_size": 4}, "vocab_size: found 4, expected the 256 of its alphabet"),
        ({"num_hidden_layers": 3, "dilation": [], "lookback": [1, 1, 1]}, "layers.2.*expected"),
        ({"hidden_size": 1 << 40}, "hidden_size: found"),
        ({"vocabulary": "characters", "characters": "ba"}, "vocabulary: found 'characters'"),
        (
            {"vocabulary": "characters", "characters": "a\ud800", "vocab_size": 2},
            "vocabulary: found 'characters'",
        ),
        ({"text": {"sha256": "", "characters": [-1, 2, 2]}}, "text: found"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(
    characters: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(characters / "whole-0" / "export", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=f"(?s){folder}.*{message}"):
        load_character_model(folder)


def test_another_text_or_phase_is_another_run(characters: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(text.read_text().replace("window", "widnow"))
    values = settings(tmp_path, other, "whole-0")
    values["phases"][1]["lookback"] = [4, 9]
    checkpoint = open_checkpoint(characters / "whole-0" / "checkpoints" / "step-00000006")
    check_same_run(checkpoint, task_of(characters, "whole-0").facts())
    with pytest.raises(
        InputError, match=r"(?s)  phases\.1\.lookback: found \[4, 9\], expected \[4, 8\]\n.*sha256: found"
    ):
        check_same_run(checkpoint, prepare(CharacterTraining.model_validate(values)).facts())


def test_all_of_a_text_can_be_trained_on_where_nothing_is_evaluated(text: Path, tmp_path: Path) -> None:
    values = settings(tmp_path, text, "r", evaluation={"every": 0})
    values["text"] |= {"validation": 0, "test": 0}
    assert len(prepare(CharacterTraining.model_validate(values)).train) == text.stat().st_size
    values["evaluation"] = {"every": 1}
    with pytest.raises(InputError, match=r"text\.validation: found 0 characters, expected at least 2"):
        prepare(CharacterTraining.model_validate(values))


def test_a_dry_run_tells_each_phase(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, settings(tmp_path, text, "r"))
    assert charlm(["--config", str(path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for line in (
        "2 layers × 16, 4 heads, 2 of them dilated up to 2",
        "steps     12 in 3 phases = 1,648 characters",
        "looking back 8 to 16 a layer, 40 in all; learning rate 0.0025 after 2 updates",
    ):
        assert line in shown
    assert not (tmp_path / "r").exists()


def test_a_text_too_short_for_a_phase_is_named(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, settings(tmp_path, text, "r"))
    assert charlm(["--config", str(path), "--phases.2.sequence_length", "9000"]) == 2
    assert "phases.2.sequence_length: found 9,000, expected at most half" in capsys.readouterr().err
