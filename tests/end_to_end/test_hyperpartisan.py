"""The Hyperpartisan experiment: its baselines, and the whole of it with a handful of updates, killed and resumed."""

import contextlib
import io
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.sources import train_tokenizer
from pipeline.tokenizer import load_tokenizer
from reproduce import hyperpartisan
from reproduce.articles import ArticleFiles, bag_of_words, constant, cut, most_frequent, score
from reproduce.bag_of_words import Weighing, fit, words
from reproduce.hyperpartisan_steps import DEFAULT
from reproduce.trainings import merged, read_metrics
from tests.corpora import made_up_documents
from trainer.engine.config import InputError
from trainer.tasks.classification_files import Document
from trainer.tasks.task import Split
from trainer.tasks.wordpieces import Wordpieces

ROOT = Path(__file__).parents[2]
SHORT, LONG = 32, 64
ROWS = ("frequent", "positive", "first_words", "words", "short", "long")


def documents(*labelled: tuple[str, str]) -> list[Document]:
    return [Document(str(number), text, label, "") for number, (text, label) in enumerate(labelled)]


# The baselines.


def test_words_are_lower_case_and_hold_apostrophes() -> None:
    assert words("It's MADE, it's made-up: naïve") == {"it's": 2, "made": 2, "up": 1, "naïve": 1}


def test_weights_are_those_of_the_formula() -> None:
    weighing = Weighing(["a a b", "a c", "b"])
    assert list(weighing.column) == ["a", "b"]  # c is in a single text
    rare = 1 + math.log(4 / 3)
    first, unknown = weighing.vectors(["a a b", "c"])
    wanted = torch.tensor([(1 + math.log(2)) * rare, rare], dtype=torch.float64)
    assert torch.allclose(first, wanted / wanted.norm())
    assert not unknown.any()
    with pytest.raises(ValueError, match="no word is in 2 of 2"):
        Weighing(["a", "b"])


@settings(deadline=None)  # torch takes a second to start
@given(st.integers(0, 1000), st.sampled_from([1e-3, 1e-2, 0.1, 1.0]))
def test_the_regression_is_where_the_gradient_is_0(seed: int, l2: float) -> None:
    random = torch.Generator().manual_seed(seed)
    vectors = torch.randn(12, 4, generator=random, dtype=torch.float64)
    labels = torch.arange(12) % 2
    found = fit(vectors, labels, l2)
    error = torch.sigmoid(found.logits(vectors)) - labels
    assert torch.allclose(
        vectors.T @ error / 12 + l2 * found.weights, torch.zeros(4, dtype=torch.float64), atol=1e-6
    )
    assert abs(float(error.mean())) < 1e-6


def test_separable_texts_are_told_apart() -> None:
    splits: dict[Split, list[Document]] = {
        "train": documents(*[("calm words here", "false"), ("angry words here", "true")] * 4),
        "validation": documents(("calm", "false"), ("angry", "true")),
        "test": documents(("angry here", "true"), ("calm here", "false"), ("so angry", "true")),
    }
    assert bag_of_words(splits, (1.0, 0.01)) == {"0": "true", "1": "false", "2": "true"}


def test_the_strength_is_chosen_on_validation_alone() -> None:
    """Three quarters of the texts have one class: a strong L2 says it of all, and validation decides for the weak."""
    train = documents(*[("calm words", "false")] * 6, *[("angry words", "true")] * 2)
    splits: dict[Split, list[Document]] = {
        "train": train,
        "validation": documents(("calm", "false"), ("angry", "true")),
        "test": documents(("angry", "false")),
    }
    assert bag_of_words(splits, (100.0,)) == {"0": "false"}
    assert bag_of_words(splits, (100.0, 1e-4)) == {"0": "true"}
    splits["validation"] = documents(("calm", "false"))  # every F1 is 0: the strongest
    assert bag_of_words(splits, (1e-4, 100.0)) == {"0": "false"}


def test_the_more_frequent_class_has_its_share_as_accuracy_and_no_f1() -> None:
    texts = documents(("", "false"), ("", "true"), ("", "false"), ("", "false"))
    truth = {one.id: str(one.label) for one in texts}
    found = score(truth, constant(texts, most_frequent(texts)))
    assert (found["accuracy"], found["f1"]) == (0.75, 0.0)
    assert score(truth, constant(texts, "true"))["f1"] == pytest.approx(2 / 5)
    assert most_frequent(texts[:2]) == "false"  # of equally many the first in the alphabet
    with pytest.raises(ValueError, match="found 3, expected the 4"):
        score(truth, constant(texts[:3], "true"))


def test_articles_are_cut_where_the_model_cuts_them(tmp_path: Path) -> None:
    train_tokenizer(made_up_documents(20), 300, tmp_path / "tokenizer.json")
    wordpieces = Wordpieces(load_tokenizer(tmp_path / "tokenizer.json"))
    texts = documents(*((text, "true") for text in ("short", *made_up_documents(5, seed=1), "naïve " * 30)))
    splits: dict[Split, list[Document]] = {"train": texts}
    for whole, beginning in zip(texts, cut(splits, wordpieces, SHORT)["train"], strict=True):
        pieces = wordpieces.encode(whole.text).ids
        assert whole.text.startswith(beginning.text)
        assert (beginning == whole) == (len(pieces) <= SHORT - 2)
        if beginning != whole:
            read = wordpieces.tokenizer.decode(pieces[: SHORT - 2].tolist()).rstrip(
                "\N{REPLACEMENT CHARACTER}"
            )
            assert beginning.text.startswith(read)
            assert len(beginning.text) - len(read) <= 1  # a character that the cut goes through is kept


def test_the_folder_of_articles_is_checked(tmp_path: Path) -> None:
    (tmp_path / "articles-a.xml").touch()
    with pytest.raises(InputError, match=r"found articles-a\.xml, expected one articles-\*\.xml"):
        ArticleFiles.below(tmp_path)


# The whole, on made-up text.


def write_inputs(folder: Path) -> list[str]:
    """A corpus, articles whose last words tell the class, and a recipe of a few updates; the options that name them."""
    raw, articles = folder / "raw", folder / "articles"
    raw.mkdir()
    articles.mkdir()
    texts = made_up_documents(60)
    for number, text in enumerate(texts):
        (raw / f"{number:03}.txt").write_text(text, encoding="utf-8")
    (folder / "text.yaml").write_text(yaml.safe_dump({"sources": [{"kind": "text", "path": "raw"}]}))
    written, labels = [], []
    for number, text in enumerate(texts):
        label = ("false", "true", "false")[number % 3]
        name = quoteattr(f"{number:07d}")
        end = " ".join(20 * [{"true": "outrage", "false": "weather"}[label]])
        written.append(f'<article id={name} title="made up"><p>{text}</p><p>{end}</p></article>')
        labels.append(f'<article id={name} hyperpartisan="{label}"/>')
    (articles / "articles-made-up.xml").write_text(f"<articles>{''.join(written)}</articles>")
    (articles / "ground-truth-made-up.xml").write_text(f"<articles>{''.join(labels)}</articles>")
    small = {
        "vocabulary": 280,
        "roberta_tokens": SHORT,
        "longformer_tokens": LONG,
        "window": 16,
        "validation_fraction": 0.2,
        "l2": [1e-2, 1e-4],
        "roberta": {
            "model": {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32},
            "steps": 6,
            "checkpoint": {"every": 3},
            "evaluation": {"every": 3, "sequences": 4},
            "optimizer": {"warmup_steps": 1},
        },
        "longformer": {
            "steps": 4,
            "checkpoint": {"every": 2},
            "evaluation": {"every": 2, "sequences": 4},
            "optimizer": {"warmup_steps": 1},
        },
        "finetuning": {"epochs": 2, "batch_size": 8, "log_every": 1, "checkpoint": {"every": 2}},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(merged(yaml.safe_load(DEFAULT.read_text(encoding="utf-8")), small)))
    return [
        *("--articles", str(articles), "--text", str(folder / "text.yaml"), "--recipe", str(recipe)),
        *("--to", str(folder / "output"), "--seeds", "2"),
    ]


def run(*options: str) -> str:
    """What the command prints, in this process: its trainings have processes of their own."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        status = hyperpartisan.main(options)
    assert status == 0, output.getvalue()
    return output.getvalue()


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, str]:
    """The options, the folder and the output of a run that was killed while finetuning and started again."""
    folder = tmp_path_factory.mktemp("hyperpartisan")
    options = write_inputs(folder)
    runs = folder / "output" / "finetuning"
    first = subprocess.Popen([sys.executable, "-m", "reproduce.hyperpartisan", *options], cwd=ROOT)
    try:
        while not list(runs.glob("seed-*/runs/long/checkpoints/step-*")):
            assert first.poll() is None
            time.sleep(0.02)
    finally:
        first.kill()  # it alone: its trainings have to notice by themselves
        first.wait()
    assert not list(runs.glob("seed-*/predictions/long.txt"))
    return options, folder / "output", run(*options)


def test_every_row_is_there_and_is_scored_on_the_same_articles(
    reproduced: tuple[list[str], Path, str],
) -> None:
    _, folder, output = reproduced
    table = output.split("== Hyperpartisan: mean")[1].split("\n\n")[0]
    found = json.loads((folder / "hyperpartisan.json").read_text())
    assert tuple(found["rows"]) == ROWS
    for row in found["rows"].values():
        assert re.search(rf"^{re.escape(row['title'])}  +\d\.\d{{3}} ± ", table, re.MULTILINE)
        assert set(row["f1"]["seeds"]) == {"0", "1"}
    assert found["articles"] == {"train": 48, "validation": 6, "test": 6}
    rows = found["rows"]
    assert rows["frequent"]["accuracy"]["mean"] == pytest.approx(4 / 6)
    assert rows["frequent"]["f1"]["mean"] == 0
    assert rows["positive"]["f1"]["mean"] == pytest.approx(2 * 2 / (2 * 2 + 4))
    # The words that tell the class are the last: of whole articles alone.
    assert rows["words"]["f1"]["mean"] == 1
    assert rows["first_words"]["f1"]["mean"] < 1
    submissions = sorted(folder.glob("finetuning/seed-*/predictions/*.txt"))
    ids = {path: [line.split()[0] for line in path.read_text().splitlines()] for path in submissions}
    assert len(ids) == 8
    for number in (0, 1):
        own = [set(found) for path, found in ids.items() if f"seed-{number}" in str(path)]
        assert all(each == own[0] for each in own)
    assert len({frozenset(each) for each in ids.values()}) == 2, "a split of its own for each seed"
    assert "always hyperpartisan" in (folder / "hyperpartisan.md").read_text()
    assert "</svg>" in (folder / "hyperpartisan.svg").read_text()


def test_lengths_are_those_of_whole_articles(reproduced: tuple[list[str], Path, str]) -> None:
    options, folder, _ = reproduced
    lengths = json.loads((folder / "hyperpartisan.json").read_text())["lengths"]
    wordpieces = Wordpieces(load_tokenizer(folder / "tokenizer" / "tokenizer.json"))
    task = ArticleFiles.below(Path(options[1])).settings(0).task()
    counted = [
        len(wordpieces.encode(article.text))
        for split in ("train", "validation", "test")
        for article in task.read(split)
    ]
    assert lengths["mean"] == pytest.approx(sum(counted) / 60)
    assert lengths["longest"] == max(counted)
    assert lengths["over"][str(LONG)] == pytest.approx(sum(count > LONG - 2 for count in counted) / 60)


def test_long_and_short_differ_in_length_alone(reproduced: tuple[list[str], Path, str]) -> None:
    _, folder, _ = reproduced
    for number in (0, 1):
        seed = folder / "finetuning" / f"seed-{number}"
        long, short = (
            yaml.safe_load((seed / "configs" / f"{name}.yaml").read_text()) for name in ("long", "short")
        )
        assert {key for key in long if long[key] != short.get(key)} == {"run", "sequence_length"}
        assert (long["sequence_length"], short["sequence_length"]) == (LONG, SHORT)
        assert long["seed"] == long["task"]["split_seed"] == number
        for name in ("long", "short"):
            steps = [row["step"] for row in read_metrics(seed / "runs" / name) if "loss" in row]
            assert steps == list(range(1, 13)), "2 epochs of 48 articles in batches of 8, each once"


def test_again_it_finds_everything_done_and_refuses_another_recipe(
    reproduced: tuple[list[str], Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, folder, output = reproduced
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/seed-*/**/*") if path.is_file()}
    tables = re.compile(r"^== Hyperpartisan.*^(?=/)", re.MULTILINE | re.DOTALL)
    assert tables.findall(run(*options)) == tables.findall(output)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    other = tmp_path / "other.yaml"
    recipe = yaml.safe_load((folder.parent / "recipe.yaml").read_text())
    other.write_text(yaml.safe_dump(recipe | {"window": 32}))
    assert hyperpartisan.main([*options, "--recipe", str(other)]) == 2
    assert "recipe.window: now 32, begun with 16" in capsys.readouterr().err
