"""Table 5: the statistics of reproductions, and the whole of it with a handful of updates, killed and resumed."""

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reproduce.command import load_recipe
from reproduce.intervals import T_975, interval, paired
from reproduce.recipe import DEFAULT, Plan, Recipe
from reproduce.table5 import claim
from reproduce.tables import Step, steps_of_order
from reproduce.trainings import merged, read_metrics
from tests.corpora import made_up_documents
from trainer.engine.config import InputError

ROOT = Path(__file__).parents[2]
FIGURES = st.floats(-100, 100)


@pytest.mark.parametrize("degrees", T_975)
def test_the_quantiles_hold_95_percent_of_student_s_distribution(degrees: int) -> None:
    x = np.linspace(0, T_975[degrees], 200_001)
    constant = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2) / math.sqrt(degrees * math.pi)
    density = constant * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
    assert 2 * np.trapezoid(density, x) == pytest.approx(0.95, abs=1e-4)


@given(st.lists(FIGURES, min_size=2, max_size=10))
def test_an_interval_is_the_textbook_s(values: list[float]) -> None:
    found = interval(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert found.half_width == pytest.approx(T_975[len(values) - 1] * error, abs=1e-9)


@given(st.lists(FIGURES, min_size=3, max_size=3), st.floats(0.01, 10))
def test_what_seeds_share_does_not_widen_a_paired_difference(starts: list[float], gain: float) -> None:
    better = dict(enumerate(starts))
    worse = {seed: start + gain for seed, start in better.items()}
    found = paired(worse, better)
    assert found.mean == pytest.approx(gain)
    assert found.excludes_zero


def test_a_single_seed_shows_nothing_and_other_seeds_do_not_pair() -> None:
    assert math.isnan(interval([1.0]).half_width)
    assert not interval([1.0]).excludes_zero
    assert str(interval([1.0])) == "1.000"
    with pytest.raises(ValueError, match="found 0"):
        interval([])
    with pytest.raises(ValueError, match=r"found \[0\] and \[1\]"):
        paired({0: 1.0}, {1: 1.0})


def test_the_order_holds_only_where_every_neighbour_is_worse_beyond_the_spread() -> None:
    plan = Plan(load_recipe(DEFAULT, Recipe))
    found = {
        name: {0: number + 0.0, 1: number + 0.1, 2: number + 0.2} for number, name in enumerate(plan.order)
    }

    def order() -> list[Step]:
        return steps_of_order(plan.rows, plan.order, found)

    assert all(step.holds for step in order())
    found["few"] = {0: 0.0, 1: 0.2, 2: 0.1}  # no longer beyond the spread of its difference to `many`
    assert [step.holds for step in order()] == [False, True, True, True, True]
    found["few"] = {0: -9.0, 1: -9.1, 2: -9.2}  # better than what the paper has before it
    assert [step.holds for step in order()] == [False, True, True, True, True]
    assert sum(step.paper for step in order()) == pytest.approx(10.299 - 1.705)


def test_sections_merge_key_by_key() -> None:
    first = {"steps": 1, "optimizer": {"power": 3, "learning_rate": 1}}
    assert merged(first, {"optimizer": {"power": 1}}) == {
        "steps": 1,
        "optimizer": {"power": 1, "learning_rate": 1},
    }
    assert first["optimizer"] == {"power": 3, "learning_rate": 1}


def test_a_recipe_names_all_that_is_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    given = yaml.safe_load(DEFAULT.read_text())
    path.write_text(yaml.safe_dump(given | {"window": 31, "vocabulary": 20, "windws": 3}))
    with pytest.raises(InputError) as error:
        load_recipe(path, Recipe)
    for key in ("window", "vocabulary", "windws"):
        assert re.search(rf"^  {key}: ", str(error.value), re.MULTILINE)


def test_settings_may_be_mended_until_something_is_trained(tmp_path: Path) -> None:
    text, recipe = tmp_path / "text.yaml", load_recipe(DEFAULT, Recipe)
    text.write_text(yaml.safe_dump({"sources": [{"kind": "text", "path": "raw"}]}))
    folder = tmp_path / "output"
    claim(folder, recipe, text).close()
    (folder / "corpus").mkdir()
    mended = recipe.model_copy(update={"vocabulary": 300})
    claim(folder, mended, text).close()
    assert not (folder / "corpus").exists()
    (folder / "seed-0").mkdir()
    with claim(folder, mended, text), pytest.raises(InputError, match="another reproduction is writing"):
        claim(folder, mended, text)
    with pytest.raises(InputError, match=r"recipe\.vocabulary: now 320, begun with 300"):
        claim(folder, recipe, text)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds something else"):
        claim(tmp_path / "else", recipe, text)


# The whole, on made-up text.


def write_inputs(folder: Path) -> tuple[Path, Path]:
    """A corpus configuration and a recipe of a few updates."""
    raw = folder / "raw"
    raw.mkdir()
    for number, document in enumerate(made_up_documents(60)):
        (raw / f"{number:03}.txt").write_text(document, encoding="utf-8")
    text = folder / "text.yaml"
    text.write_text(yaml.safe_dump({"sources": [{"kind": "text", "path": "raw"}]}), encoding="utf-8")
    given = yaml.safe_load(DEFAULT.read_text(encoding="utf-8"))
    small = {
        "vocabulary": 280,
        "roberta_tokens": 32,
        "longformer_tokens": 64,
        "window": 32,
        "windows": [16, 32],
        "validation_fraction": 0.2,
        "evaluated_sequences": 8,
        "curve_sequences": 4,
        "roberta": {
            "evaluation": {"every": 4},
            "steps": 12,
            "batch_size": 8,
            "micro_batch_size": 8,
            "log_every": 2,
            "checkpoint": {"every": 4},
        },
        "longformer": {
            "batch_size": 4,
            "micro_batch_size": 4,
            "log_every": 1,
            "optimizer": {"warmup_steps": 1},
        },
        "few_updates": {"steps": 2, "optimizer": {"warmup_steps": 1}},
        "many_updates": {"steps": 4, "optimizer": {"warmup_steps": 1}},
        "positions": {"steps": 3, "optimizer": {"warmup_steps": 1}},
        "effects": {"steps": 3, "optimizer": {"warmup_steps": 1}},
    }
    small["roberta"]["optimizer"] = {"warmup_steps": 2}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(merged(given, small)), encoding="utf-8")
    return text, recipe


def command(folder: Path, *more: str) -> list[str]:
    inputs = ("--text", str(folder / "text.yaml"), "--recipe", str(folder / "recipe.yaml"))
    where = ("--output", str(folder / "output"), "--seeds", "2")
    return [sys.executable, "-m", "reproduce.table5", *inputs, *where, *more]


def run(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *more), cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a run that was killed once a first model was there, and started again."""
    folder = tmp_path_factory.mktemp("reproduce")
    write_inputs(folder)
    first = subprocess.Popen(
        command(folder), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        while not list((folder / "output").glob("seed-*/runs/roberta/export")):
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.05)
    finally:
        first.kill()  # it alone: its trainings have to notice by themselves
        first.wait()
    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr + logs(folder)
    return folder, done.stdout


def logs(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted((folder / "output" / "logs").glob("seed-*.log")))


def test_every_row_is_there_with_its_interval_and_the_paper_s_figure(reproduced: tuple[Path, str]) -> None:
    folder, output = reproduced
    table = output.split("== Table 5")[1].split("\n\n")[0]
    rows = re.findall(r"^ *(\S.*?)  +(\d+\.\d{3}) ± \d+\.\d{3} {1,14}(\d+\.\d{3})  +\d", table, re.MULTILINE)
    assert [float(paper) for _, _, paper in rows] == [1.846, 10.299, 1.957, 1.753, 1.705, 1.850]
    found = json.loads((folder / "output" / "table5.json").read_text())
    plan = Plan(load_recipe(folder / "recipe.yaml", Recipe))
    assert set(found["bpc"]) == set(plan.evaluated())
    for (_, mean, _), row in zip(rows, plan.rows, strict=True):
        assert float(mean) == pytest.approx(np.mean(list(found["bpc"][row.name].values())), abs=6e-4)
    # The same text and masked places for every model, and models that differ.
    evaluations = folder / "output" / "seed-1" / "evaluations"
    figures = {name: json.loads((evaluations / f"{name}.json").read_text()) for name in plan.evaluated()}
    assert len({one["tokens"] for one in figures.values()}) == 1
    del figures[
        plan.documents.name
    ]  # where no border of documents is in sight, keeping them apart changes nothing
    assert len({one["bpc"] for one in figures.values()}) == len(figures)
    written = (folder / "output" / "table5.md").read_text()
    assert all(row.title.strip() in written for row in (*plan.rows, plan.control, plan.documents))
    assert "</svg>" in (folder / "output" / "table5.svg").read_text()


def test_a_killed_training_went_on_and_every_training_ran_to_its_end(reproduced: tuple[Path, str]) -> None:
    folder, _ = reproduced
    plan = Plan(load_recipe(folder / "recipe.yaml", Recipe))
    for seed in ("seed-0", "seed-1"):
        for training in plan.trainings():
            rows = read_metrics(folder / "output" / seed / "runs" / training.name)
            steps = [row["step"] for row in rows if "loss" in row]
            assert steps[-1] == training.keys["steps"]
            assert steps == sorted(set(steps))
            assert rows[-1]["validation_bpc"] > 0


def test_again_it_finds_everything_done_and_refuses_another_recipe(reproduced: tuple[Path, str]) -> None:
    folder, output = reproduced
    before = {
        path: path.stat().st_mtime_ns for path in (folder / "output").glob("seed-*/**/*") if path.is_file()
    }
    picture = folder / "curves.png"
    again = run(folder, "--plot", str(picture))
    assert again.returncode == 0, again.stdout + again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in before}
    tables = re.compile(r"^== Table 5.*^(?=/)", re.MULTILINE | re.DOTALL)
    assert tables.findall(again.stdout) == tables.findall(output)
    assert picture.read_bytes().startswith(b"\x89PNG")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "other.yaml").write_text(yaml.safe_dump(recipe | {"window": 16}), encoding="utf-8")
    refused = run(folder, "--recipe", str(folder / "other.yaml"))
    assert refused.returncode == 2
    assert "recipe.window: now 16, begun with 32" in refused.stderr
    assert "Traceback" not in refused.stderr
