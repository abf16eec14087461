"""Table 4: its recipe, and the whole of it with a handful of updates, killed and resumed."""

import bz2
import contextlib
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reproduce import table4
from reproduce.ablation import DEFAULT, Ablation, AblationRecipe
from reproduce.ablation_results import differences
from reproduce.command import load_recipe
from reproduce.trainings import merged, read_metrics
from tests.corpora import made_up_documents
from trainer import charlm
from trainer.engine.character_config import CharacterTraining
from trainer.engine.config import InputError, load_config

ROOT = Path(__file__).parents[2]
ROWS = ("decreasing", "fixed", "increasing", "dilated")
STEPS = 60


@given(st.lists(st.integers(1, 500), min_size=2, max_size=8), st.integers(1, 4))
def test_every_row_looks_back_equally_far_on_average(steps: list[int], dilation: int) -> None:
    lookback = np.cumsum(steps).tolist()
    lookback[-1] += -sum(lookback) % len(lookback)
    given = load_recipe(DEFAULT, AblationRecipe).model_dump()
    recipe = AblationRecipe(**given | {"lookback": lookback, "dilation": [dilation] * len(lookback)})
    phases = {training.name: training.keys["phases"] for training in Ablation(recipe).trainings}
    assert tuple(phases) == ROWS
    rows = {name: found[0]["lookback"] for name, found in phases.items()}
    assert {sum(row) for row in rows.values()} == {sum(lookback)}
    assert len(set(rows["fixed"])) == 1
    assert rows["increasing"] == rows["dilated"] == rows["decreasing"][::-1] == lookback


def test_rows_differ_in_lookback_and_dilation_alone() -> None:
    recipe = load_recipe(DEFAULT, AblationRecipe)
    trainings = {training.name: dict(training.keys) for training in Ablation(recipe).trainings}
    assert [trainings[name]["model"].pop("dilation") for name in ROWS] == [[], [], [], list(recipe.dilation)]
    for keys in trainings.values():
        for phase in keys["phases"]:
            del phase["lookback"]
    assert all(keys == trainings["fixed"] for keys in trainings.values())


def test_a_recipe_names_what_is_wrong_with_it(tmp_path: Path) -> None:
    path, given = tmp_path / "recipe.yaml", yaml.safe_load(DEFAULT.read_text())
    for wrong, message in (
        (
            {"lookback": [*given["lookback"][:-1], given["lookback"][-1] + 1]},
            "whose average is no whole number",
        ),
        ({"lookback": given["lookback"][::-1]}, "expected them to increase"),
        ({"dilation": [1, 2]}, f"dilation: found 2 entries, expected one a layer, {len(given['lookback'])}"),
        ({"dilations": [1, 2]}, "dilations: unknown key"),
    ):
        path.write_text(yaml.safe_dump(given | wrong))
        with pytest.raises(InputError, match=message):
            load_recipe(path, AblationRecipe)


def test_differences_are_seed_by_seed() -> None:
    ones, others = [[(1, 2.0), (2, 1.5)], [(1, 3.0)]], [[(2, 1.0)], [(1, 1.0), (2, 0.5)]]
    assert differences(ones, others) == [[(2, 0.5)], [(1, 2.0)]]


def test_texts_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LONGSPAN_DATA", str(tmp_path))
    torn = tmp_path / "torn.txt.bz2"
    torn.write_bytes(bz2.compress(b"text" * 100)[:-20])
    same = tmp_path / "torn.txt"
    same.write_text("text")
    for arguments, message in (
        ((), "--text: none given"),
        (("--text", str(torn), str(same)), "expected a different name for each"),
        (("--text", str(torn)), "ended early"),
        (("--text", str(tmp_path / "nowhere.txt")), "nowhere.txt"),
    ):
        assert table4.main([*arguments, "--to", str(tmp_path / "output")]) in (1, 2)
        assert message in capsys.readouterr().err
    assert not list((tmp_path / "output").glob("texts/*"))


# The whole, on made-up text.


def write_inputs(folder: Path) -> list[str]:
    """A packed text and a recipe of a few updates; the options that name them."""
    text, recipe = folder / "made-up.txt.bz2", folder / "recipe.yaml"
    text.write_bytes(bz2.compress("\n".join(made_up_documents(60)).encode()))
    given = yaml.safe_load(DEFAULT.read_text(encoding="utf-8"))
    small = {
        "lookback": [1, 3],
        "dilation": [1, 3],
        "training": {
            "model": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4},
            "evaluation": {"every": 20, "characters": 1000},
            "checkpoint": {"every": 5},
            "log_every": 1,
            "phases": [
                {**given["training"]["phases"][0], "steps": STEPS, "sequence_length": 32, "warmup_steps": 4}
            ],
        },
    }
    recipe.write_text(yaml.safe_dump(merged(given, small)), encoding="utf-8")
    return [
        *("--text", str(text), "--recipe", str(recipe)),
        *("--to", str(folder / "output"), "--seeds", "1"),
    ]


def run(*options: str) -> str:
    """What the command prints, in this process: its trainings have processes of their own."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        status = table4.main(options)
    assert status == 0, output.getvalue()
    return output.getvalue()


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, str]:
    """The options, the folder and the output of a run that was killed in its first training and started again."""
    folder = tmp_path_factory.mktemp("table4")
    options = write_inputs(folder)
    runs = folder / "output" / "made-up" / "seed-0" / "runs"
    first = subprocess.Popen([sys.executable, "-m", "reproduce.table4", *options], cwd=ROOT)
    try:
        while not list(runs.glob("decreasing/checkpoints/step-*")):
            assert first.poll() is None
            time.sleep(0.02)
    finally:
        first.kill()  # it alone: its trainings have to notice by themselves
        first.wait()
    assert not (runs / "dilated" / "export").exists()
    return options, folder / "output", run(*options)


def test_every_row_is_there_beside_the_paper_s(reproduced: tuple[list[str], Path, str]) -> None:
    _, folder, output = reproduced
    table = output.split("== Table 4 on made-up")[1].split("\n\n")[0]
    rows = re.findall(r"^(\S.*?)  +(\d+\.\d{3})  +(\d+\.\d{2})  +\d+\.\d{3}$", table, re.MULTILINE)
    assert [(title, paper) for title, _, paper in rows] == [
        ("decreasing, from 3 to 1", "1.24"),
        ("fixed, 2", "1.23"),
        ("increasing, from 1 to 3", "1.21"),
        ("increasing, 2 heads dilated", "1.20"),
    ]
    found = json.loads((folder / "table4.json").read_text())["texts"]["made-up"]
    for name, (_, bpc, _) in zip(ROWS, rows, strict=True):
        metrics = read_metrics(folder / "made-up" / "seed-0" / "runs" / name)
        steps = [row["step"] for row in metrics if "loss" in row]
        assert steps == list(range(1, STEPS + 1))
        assert metrics[-1]["validation_bpc"] == found["bpc"][name]["0"] == pytest.approx(float(bpc), abs=6e-4)
    assert len({found["bpc"][name]["0"] for name in ROWS}) == len(ROWS)
    assert "decreasing, from 3 to 1" in (folder / "table4.md").read_text()
    assert "</svg>" in (folder / "table4.svg").read_text()


def test_rows_start_from_the_same_weights_and_read_the_same_batches(
    reproduced: tuple[list[str], Path, str],
) -> None:
    _, folder, _ = reproduced
    configs = folder / "made-up" / "seed-0" / "configs"
    tasks = [
        charlm.prepare(load_config(configs / f"{name}.yaml", overrides, CharacterTraining))
        for name, overrides in (*((name, []) for name in ROWS), ("fixed", [("seed", "1")]))
    ]
    places = np.arange(4)
    fixed, other = tasks[1], tasks[-1]
    for task in tasks[:-1]:
        assert all(map(torch.equal, task.model.parameters(), fixed.model.parameters()))
        batches = [one.micro_batch(7, places, places).characters for one in (task, fixed)]
        assert torch.equal(*batches)
    assert not torch.equal(other.model.embeddings.weight, fixed.model.embeddings.weight)


def test_again_it_finds_everything_done_and_refuses_another_recipe(
    reproduced: tuple[list[str], Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, folder, output = reproduced
    before = {path: path.stat().st_mtime_ns for path in folder.glob("made-up/**/*") if path.is_file()}
    picture = tmp_path / "curves.png"
    tables = re.compile(r"^== Table 4.*^(?=/)", re.MULTILINE | re.DOTALL)
    assert tables.findall(run(*options, "--plot", str(picture))) == tables.findall(output)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert picture.read_bytes().startswith(b"\x89PNG")
    other = tmp_path / "other.yaml"
    recipe = yaml.safe_load((folder.parent / "recipe.yaml").read_text())
    other.write_text(yaml.safe_dump(recipe | {"lookback": [2, 4]}))
    assert table4.main([*options, "--recipe", str(other)]) == 2
    assert "recipe.lookback: now [2, 4], begun with [1, 3]" in capsys.readouterr().err
