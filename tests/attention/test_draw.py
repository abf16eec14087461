"""The pictures: their cells against the definition, the drawn colours against the cells, files, options and errors."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree  # of our own files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from matplotlib.colors import to_rgb
from PIL import Image

from attention import draw, figure
from attention.draw import COLOURS, Cell, Panel, cells, figure_2, make_pattern
from attention.pattern import Pattern
from tests.attention.cases import Case, cases


def pattern_of(case: Case) -> Pattern:
    query, dilation = case.projections[0], case.options["dilation"]
    per_head = (dilation,) * query.shape[1] if isinstance(dilation, int) else tuple(dilation)
    real, is_global = (case.options.get(name) for name in ("attention_mask", "global_attention_mask"))
    masks = [None if mask is None else mask.bool() for mask in (real, is_global)]
    return Pattern.of(
        query, case.window, per_head, case.options["causal"], *masks, case.options.get("document_ids")
    )


@given(cases())
@settings(max_examples=30, deadline=None)
def test_what_is_coloured_is_what_the_definition_sees(case: Case) -> None:
    pattern = pattern_of(case)
    for head in range(len(pattern.dilation)):
        coloured = np.isin(cells(pattern, head), [cell for cell in Cell if cell.seen])
        np.testing.assert_array_equal(coloured, pattern.dense()[0, head].numpy())


def test_the_reasons_on_a_case_written_out_by_hand() -> None:
    pattern = make_pattern(6, 2, global_positions=[2], documents=[4, 2], padding=[5])
    letters = {
        Cell.UNSEEN: ".",
        Cell.PADDING: "p",
        Cell.WINDOW: "w",
        Cell.COLUMN: "c",
        Cell.ROW: "r",
        Cell.ITSELF: "i",
    }
    drawn = ["".join(letters[Cell(cell)] for cell in row) for row in cells(pattern)]
    assert drawn == ["iwc..p", "wic..p", "rrir.p", "..ci.p", "....ip", "pppppp"]


def test_the_drawn_colours_are_the_cells() -> None:
    """Back from the pixels in the middle of each cell to the definition: queries downwards, keys to the right."""
    pattern = make_pattern(13, 4, [1, 2], True, [3], [8, 5], [12])
    drawn = draw.draw([Panel("", "", pattern, head) for head in range(2)])
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", dpi=200)
    with Image.open(stream) as opened:
        pixels = np.asarray(opened.convert("RGB")) / 255
    palette = np.array([to_rgb(COLOURS[cell]) for cell in Cell])
    scale = 200 / drawn.dpi
    for head, axis in enumerate(drawn.axes):
        for query in range(13):
            for key in range(13):
                x, y = axis.transData.transform((key, query)) * scale
                pixel = pixels[round(pixels.shape[0] - y), round(x)]
                nearest = Cell(int(np.abs(palette - pixel).sum(1).argmin()))
                assert nearest == cells(pattern, head)[query, key], (head, query, key)


def test_figure_2_is_the_papers() -> None:
    full, window, dilated, with_global = (
        np.isin(cells(panel.pattern), [2, 3, 4, 5]) for panel in figure_2(24)
    )
    assert full.all()
    position = np.arange(24)
    distance = np.abs(position[:, None] - position)
    np.testing.assert_array_equal(window, distance <= 3)
    np.testing.assert_array_equal(dilated, (distance <= 6) & (distance % 2 == 0))
    is_global = np.isin(position, [0, 14])
    np.testing.assert_array_equal(with_global, window | is_global | is_global[:, None])


@pytest.mark.parametrize("tokens", [1, 3, 24, 70])
def test_both_formats_open_and_are_the_same_bytes_again(tokens: int, tmp_path: Path) -> None:
    for name in ("a.png", "b.svg"):
        written = []
        for _ in range(2):
            assert draw.main(["--tokens", str(tokens), "--output", str(tmp_path / name)]) == 0
            written.append((tmp_path / name).read_bytes())
        assert written[0] == written[1]
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.width > 3 * opened.height / 2
    root = ElementTree.parse(tmp_path / "b.svg").getroot()  # noqa: S314
    assert root.tag.endswith("svg")
    assert "date" not in (tmp_path / "b.svg").read_text(encoding="utf-8").lower()
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.svg"}


def test_options_give_the_pattern_they_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Panel] = []
    monkeypatch.setattr(draw, "draw", lambda panels: drawn.extend(panels))
    monkeypatch.setattr(figure, "save", lambda result, path: None)
    options = "--window 4 --dilation 1 3 --causal --global 0 5-6 --documents 5 6 --padding 9-10 --head 1"
    assert draw.main([*options.split(), "--output", str(tmp_path / "x.svg")]) == 0
    (panel,) = drawn
    expected = make_pattern(11, 4, [1, 3], True, [0, 5, 6], [5, 6], [9, 10])
    assert panel.head == 1
    assert "dilation 3" in panel.title
    np.testing.assert_array_equal(cells(panel.pattern, 1), cells(expected, 1))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--output x.pdf", ["--output", "'x.pdf'", ".png or .svg"]),
        ("--output missing/x.svg", ["--output", "missing/x.svg", "a folder that exists"]),
        ("--window 5 --output x.svg", ["--window", "5", "an even number"]),
        ("--window many --output x.svg", ["--window", "'many'", "a whole number"]),
        ("--global 24 30 --output x.svg", ["--global", "24, 30", "0 to 23"]),
        ("--global 5-3 --output x.svg", ["--global", "'5-3'", "a range such as"]),
        ("--padding -1 --output x.svg", ["--padding"]),
        ("--dilation 0 --output x.svg", ["--dilation", "0", ">= 1"]),
        ("--dilation 1 2 --head 2 --output x.svg", ["--head", "2", "0 to 1"]),
        ("--documents 4 4 --tokens 9 --output x.svg", ["--documents", "sum to 8", "9"]),
        ("--documents 4 0 --output x.svg", ["--documents", "0", "at least 1"]),
        ("--tokens 0 --output x.svg", ["--tokens", "0", "1 to"]),
        ("--tokens 99999 --output x.svg", ["--tokens", "99999", "2,048"]),
        ("--window 5 --dilation 0 --output x.svg", ["--window", "--dilation"]),
    ],
)
def test_errors_name_the_option_what_was_found_and_what_was_expected(
    options: str,
    named: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        draw.main(options.split())
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert all(part in message for part in named), message
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "picture.svg"
    path.write_text("before", encoding="utf-8")

    def full_disk(self: object, beside: Path, **_: object) -> None:
        beside.write_text("<svg", encoding="utf-8")
        raise OSError("No space left on device")

    monkeypatch.setattr(figure.Figure, "savefig", full_disk)
    with pytest.raises(SystemExit) as stopped:
        draw.main(["--output", str(path)])
    assert stopped.value.code == 2
    assert "No space left" in capsys.readouterr().err
    assert [p.read_text(encoding="utf-8") for p in tmp_path.iterdir()] == ["before"]
