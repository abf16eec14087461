"""Draws each task's input: an example's tokens, which of them are global, and who attends to whom.

    python -m trainer.tasks.draw --output trainer/tasks/global_tokens.svg

The texts are made up, and the tokenizer learns them on the spot. Everything else is the tasks' own: the examples come
from their `read_own` and `encode`, the patterns from attention/pattern.py. Of the long inputs that the tasks are for a
picture shows a few dozen tokens; its window is as small.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from tokenizers import ByteLevelBPETokenizer

from attention import figure
from attention.draw import COLOURS, MEANINGS, Cell, cells, make_pattern
from pipeline.tokenizer import SPECIAL_TOKENS, load_tokenizer
from trainer.tasks.example import Example
from trainer.tasks.registry import settings_class
from trainer.tasks.task import DownstreamTask, Lengths
from trainer.tasks.wordpieces import Wordpieces

ROW = 64  # tokens that the model of the picture reads
WINDOW = 8
LINE = 13  # tokens beside each other


class Role(Enum):
    """What a token is part of: its name in the legend, and its colour."""

    SPECIAL = "special token", figure.GREY
    QUESTION = "question", figure.RED
    CANDIDATE = "candidate", figure.PURPLE
    TITLE = "paragraph's title", "#F0E442"
    DOCUMENT = "text", figure.BLUE

    @property
    def colour(self) -> tuple[str, float]:
        """Paler than the pattern's colours, which have their own meaning."""
        return self.value[1], 0.4


@dataclass(frozen=True)
class Layout:
    """One task's picture."""

    name: str
    """In a configuration."""
    title: str
    entry: Mapping[str, Any]
    """A row as one's own files have them."""
    behind: Mapping[str, Role]
    """What stands behind each special token, up to the next."""


LAYOUTS = (
    Layout(
        "classification",
        "Classification: <s>",
        {
            "text": "The harbour council met on Monday. It spent four hours on one bridge, and then went home "
            "without a vote on it."
        },
        {"<s>": Role.DOCUMENT},
    ),
    Layout(
        "wikihop",
        "WikiHop: <s>, question and candidates",
        {
            "question": "country Lake Orra",
            "candidates": ["Norland", "Vesmark"],
            "documents": [
                "Lake Orra lies in the county of Tessen.",
                "Tessen is the smallest county of Vesmark.",
            ],
        },
        {"[q]": Role.QUESTION, "[ent]": Role.CANDIDATE, "</s>": Role.DOCUMENT},
    ),
    Layout(
        "triviaqa",
        "TriviaQA: <s> and question",
        {
            "id": "clock",
            "question": "Who built the clock of Tessen?",
            "context": "The town hall of Tessen burned twice. Its clock, which Ada Brem built, was saved "
            "both times by the same baker.",
        },
        {"<s>": Role.QUESTION, "</s>": Role.DOCUMENT},
    ),
    Layout(
        "hotpotqa",
        "HotpotQA: question, and a token of each title and sentence",
        {
            "id": "ferry",
            "question": "Which ferry is older?",
            "paragraphs": [
                {"title": "Orra", "sentences": ["Orra is a ferry.", " She sails since 1911."]},
                {"title": "Brem", "sentences": ["Brem is a ferry.", " She sails since 1934."]},
            ],
        },
        {"[q]": Role.QUESTION, "<t>": Role.TITLE, "</t>": Role.DOCUMENT, "[s]": Role.DOCUMENT},
    ),
    Layout(
        "coreference",
        "Coreference: none",
        {
            "id": "baker",
            "text": "Ada saw the baker. She told him that the clock was saved. He laughed, and Ada laughed with "
            "him, but neither of them said why they did.",
        },
        {"<s>": Role.DOCUMENT},
    ),
    Layout(
        "summarization",
        "Summarisation, LED's encoder: <s>",
        {
            "article": "The ferry Orra was sold on Friday. Ada Brem, who has steered her since 1981, said that "
            "the new owner may keep the horn."
        },
        {"<s>": Role.DOCUMENT},
    ),
)


@dataclass(frozen=True, eq=False)
class Drawn:
    """An example of one row, token by token."""

    layout: Layout
    task: DownstreamTask
    example: Example
    tokens: tuple[str, ...]
    roles: tuple[Role, ...]
    is_global: np.ndarray
    """bool (n,)."""


def drawn(layout: Layout, folder: Path) -> Drawn:
    """The task's own example of the layout's entry; `folder` is for files on the way."""
    settings = settings_class(layout.name, folder).model_validate({"name": layout.name, **_files(layout)})
    task = settings.task()
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(layout.entry) + "\n", encoding="utf-8")
    [entry] = task.read_own(path)
    wordpieces = _wordpieces(task, folder)
    example = task.encode(entry, wordpieces, Lengths(ROW), training=False)
    [row] = example.rows
    assert example.tokens_cut == 0, f"{layout.name}: the entry takes more than {ROW} tokens"
    is_global = np.zeros(len(row), bool)
    is_global[example.global_places] = True
    special = {wordpieces.bos: "<s>", wordpieces.eos: "</s>"}
    special |= {wordpieces.special(token): token for token in task.added_tokens}
    roles, tokens, behind = [], [], Role.SPECIAL
    for token in row.tolist():
        if token in special:
            behind = layout.behind.get(special[token], Role.SPECIAL)
        roles.append(Role.SPECIAL if token in special else behind)
        tokens.append(special.get(token) or wordpieces.tokenizer.decode([token]).strip())
    return Drawn(layout, task, example, tuple(tokens), tuple(roles), is_global)


def _files(layout: Layout) -> dict[str, Any]:
    """Settings that a task has to have and that `read_own` does not use."""
    return {"train": "train.jsonl"} | ({"labels": ["no", "yes"]} if layout.name == "classification" else {})


def _wordpieces(task: DownstreamTask, folder: Path) -> Wordpieces:
    """A byte-level BPE that knows the words of all layouts."""
    trained = ByteLevelBPETokenizer()
    texts = [text for layout in LAYOUTS for text in _texts(layout.entry)]
    texts += [text.replace(".", " .").replace(",", " ,") for text in texts]  # coreference splits words first
    trained.train_from_iterator(
        [before + text for text in texts for before in ("", " ")],
        vocab_size=5000,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    path = folder / "tokenizer.json"
    trained.save(str(path))
    return Wordpieces(load_tokenizer(path), task.added_tokens)


def _texts(value: Any) -> list[str]:
    """All texts in an entry."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, Mapping) else value
    return [text for one in inside for text in _texts(one)]


def draw(pictures: Sequence[Drawn]) -> Figure:
    """A line for each task: its tokens, and the pattern beside them."""
    with matplotlib.rc_context(figure.STYLE):
        result = Figure(figsize=(11, 1.75 * len(pictures) + 0.9), layout="constrained")
        axes = result.subplots(len(pictures), 2, squeeze=False, width_ratios=[5.2, 1])
        for picture, (tokens, pattern) in zip(pictures, axes, strict=True):
            _draw_tokens(tokens, picture)
            _draw_pattern(pattern, picture)
        shown = {role for picture in pictures for role in picture.roles}
        handles = [Patch(facecolor=role.colour, label=role.value[0]) for role in Role if role in shown]
        handles.append(Patch(facecolor="none", edgecolor=figure.BLACK, linewidth=1.6, label="global"))
        handles += [
            Patch(color=COLOURS[cell], label=text) for cell, text in MEANINGS.items() if cell != Cell.PADDING
        ]
        result.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8.5)
    return result


def _draw_tokens(axis: Axes, picture: Drawn) -> None:
    for place, (token, role) in enumerate(zip(picture.tokens, picture.roles, strict=True)):
        line, column = divmod(place, LINE)
        is_global = bool(picture.is_global[place])
        axis.add_patch(
            Rectangle(
                (column + 0.05, line + 0.1),
                0.9,
                0.8,
                facecolor=role.colour,
                edgecolor=figure.BLACK if is_global else "none",
                linewidth=1.6 if is_global else 0,
            )
        )
        weight = "bold" if is_global else "normal"
        axis.text(column + 0.5, line + 0.5, token, ha="center", va="center", fontsize=7, fontweight=weight)
    axis.set_xlim(0, LINE)
    axis.set_ylim(max(4, -(-len(picture.tokens) // LINE)), 0)
    axis.set_title(picture.layout.title, fontsize=10.5, loc="left")
    axis.set_axis_off()


def _draw_pattern(axis: Axes, picture: Drawn) -> None:
    pattern = make_pattern(
        len(picture.tokens), WINDOW, global_positions=np.flatnonzero(picture.is_global).tolist()
    )
    axis.imshow(
        cells(pattern),
        cmap=ListedColormap([COLOURS[cell] for cell in Cell]),
        vmin=0,
        vmax=len(Cell) - 1,
        interpolation="nearest",
    )
    axis.set_title(
        f"{len(picture.tokens)} tokens, {picture.is_global.sum()} global", fontsize=8, color=figure.MUTED
    )
    axis.set_axis_off()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.tasks.draw",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output", type=figure.picture_path, required=True, metavar="FILE", help="a name in .png or .svg"
    )
    output: Path = parser.parse_args(arguments).output
    with tempfile.TemporaryDirectory(prefix="longspan-draw-") as temporary:
        pictures = [drawn(layout, Path(temporary)) for layout in LAYOUTS]
    try:
        figure.save(draw(pictures), output)
    except OSError as error:
        parser.error(f"--output: cannot write {output}: {error}")
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
