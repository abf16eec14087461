from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from attention import figure
from trainer.tasks import draw
from trainer.tasks.draw import LAYOUTS, Drawn, Layout, Role
from trainer.tasks.registry import AnyTask

GLOBAL = {
    "classification": "<s>",
    "wikihop": "<s> [q] country Lake Orra [/q] [ent] Norland [/ent] [ent] Vesmark [/ent]",
    "triviaqa": "<s> Who built the clock of Tessen ?",
    "hotpotqa": "<s> [q] Which ferry is older ? [/q] <t> [s] [s] <t> [s] [s]",
    "coreference": "",
    "summarization": "<s>",
}
"""Of each layout's example, as the paper has them."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Drawn]:
    return [draw.drawn(layout, tmp_path_factory.mktemp(layout.name)) for layout in LAYOUTS]


def test_every_registered_task_is_drawn(pictures: list[Drawn]) -> None:
    """Tasks that encode alike, as all classifications do, share a picture."""
    encoders = {type(picture.task).encode for picture in pictures}
    registered = {
        kind.task(kind.model_construct(**dict.fromkeys(kind.model_fields))) for kind in get_args(AnyTask)
    }
    assert {type(task).encode for task in registered} == encoders
    assert len(encoders) == len(LAYOUTS)


def test_the_global_tokens_of_the_picture_are_the_paper_s(pictures: list[Drawn]) -> None:
    for picture in pictures:
        tokens = [token for token, is_global in zip(picture.tokens, picture.is_global) if is_global]
        assert " ".join(tokens) == GLOBAL[picture.layout.name]


def test_what_is_outlined_is_what_the_example_has_global(pictures: list[Drawn]) -> None:
    shown = draw.draw(pictures)
    for picture, (tokens, pattern) in zip(pictures, np.reshape(shown.axes, (-1, 2)), strict=True):
        cells = [patch for patch in tokens.patches if isinstance(patch, Rectangle)]
        assert len(cells) == len(picture.tokens) == picture.example.tokens
        outlined = [place for place, cell in enumerate(cells) if cell.get_linewidth()]
        assert outlined == picture.example.global_places.tolist()
        assert [text.get_text() for text in tokens.texts] == list(picture.tokens)
        seen = pattern.images[0].get_array() != draw.Cell.UNSEEN
        everything = np.flatnonzero(seen.all(1) & seen.all(0)).tolist()
        assert everything == outlined


def test_roles_follow_the_special_tokens(pictures: list[Drawn]) -> None:
    words = {
        layout.name: {
            role: " ".join(token for token, own in zip(picture.tokens, picture.roles) if own == role)
            for role in Role
        }
        for layout, picture in zip(LAYOUTS, pictures, strict=True)
    }
    assert words["wikihop"][Role.CANDIDATE] == "Norland Vesmark"
    assert words["triviaqa"][Role.QUESTION] == "Who built the clock of Tessen ?"
    assert words["triviaqa"][Role.DOCUMENT].startswith("The town hall")
    assert words["hotpotqa"][Role.TITLE] == "Orra Brem"
    assert words["classification"][Role.SPECIAL] == "<s> </s>"
    assert words["coreference"][Role.DOCUMENT].startswith("Ada saw the baker . She told")
    assert all(token for picture in pictures for token in picture.tokens)


def test_an_entry_that_the_picture_would_cut_is_refused(tmp_path: Path) -> None:
    long = Layout("classification", "", {"text": "The clock. " * draw.ROW}, {})
    with pytest.raises(AssertionError, match="takes more than"):
        draw.drawn(long, tmp_path)


def test_the_command_writes_the_picture_that_the_documentation_has(tmp_path: Path) -> None:
    assert draw.main(["--output", str(tmp_path / "drawn.svg")]) == 0
    committed = Path(draw.__file__).with_name("global_tokens.svg")
    for path in (tmp_path / "drawn.svg", committed):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")  # noqa: S314
        assert path.stat().st_size < 300_000
    assert [line for line in committed.read_text().splitlines() if "<!--" in line] == [
        line for line in (tmp_path / "drawn.svg").read_text().splitlines() if "<!--" in line
    ]  # matplotlib's comments hold every text: drawn again when a task's input changes


def test_the_output_s_ending_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        draw.main(["--output", "picture.pdf"])
    assert figure.FORMATS[0] in capsys.readouterr().err
