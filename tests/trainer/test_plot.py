"""Curves from what runs write, finished, going on or cut; and what is not a run."""

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.plot import draw, last_figures, main, read_run, running_mean


def make_run(
    folder: Path, rows: int = 60, floor: float = 2.0, resumed: tuple[int, ...] = (), tokens: bool = True
) -> Path:
    folder.mkdir(parents=True)
    with (folder / "metrics.jsonl").open("w") as file:
        for number in range(rows):
            row: dict[str, Any] = {"step": 10 * number + 1, "bpc": floor + 1 / (1 + number), "loss": 1.0}
            row |= {"learning_rate": 1e-4, "grad_norm": 0.5, "tokens_per_second": 1e5}
            row |= {"tokens": 1024 * row["step"]} if tokens else {}
            file.write(json.dumps(row) + "\n")
            if number % 20 == 19:
                file.write(json.dumps({"step": row["step"], "validation_bpc": floor}) + "\n")
    starts = [{"step": step, "time": "2026-01-01T00:00:00+00:00"} for step in (0, *resumed)]
    (folder / "starts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in starts))
    return folder


def test_rows_are_read_by_figure(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a", resumed=(200, 400, 400)))
    steps, values = run.series("bpc")
    assert len(steps) == len(values) == 60
    assert run.series("validation_bpc")[0].tolist() == [191, 391, 591]
    assert run.series("nothing")[0].tolist() == []
    assert run.resumed == (200, 400)
    assert run.places([0, 191], "tokens").tolist() == [0, 191 * 1024]
    assert run.phases == ()
    assert last_figures(run, "validation_bpc", 1) == (591, 2.0, 1)


def test_a_run_that_goes_on_or_was_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "a")
    path = folder / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 601, "bpc": 2.')
    assert read_run(folder).steps[-1] == 591
    assert capsys.readouterr().err == ""
    path.write_text(whole + 'broken\n[1]\n{"step": 601, "bpc": null, "grad_norm": 1.0}\n')
    run = read_run(folder)
    assert run.steps[-1] == 601
    assert run.series("bpc")[0][-1] == 591  # a figure that was not finite is a gap
    assert [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()] == [
        "line 64 is no row, passed over",
        "line 65 is no row, passed over",
    ]
    (folder / "starts.jsonl").unlink()
    assert main([str(folder)]) == 0


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.integers(1, 12))
def test_the_mean_is_over_the_rows_around(values: list[float], rows: int) -> None:
    found = running_mean(np.array(values), rows)
    half = rows // 2
    for index, mean in enumerate(found):
        before = min(half, index)
        behind = min(before, len(values) - 1 - index)
        assert mean == pytest.approx(np.mean(values[index - before : index + behind + 1]), abs=1e-9)


def test_panels_show_every_run(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / name, resumed=(200,))) for name in "ab"]
    picture = draw(runs, ["bpc", "grad_norm"])
    large, small = picture.axes
    assert [text.get_text() for text in large.get_legend().get_texts()] == [
        "a",
        "b",
        "every row (strong: mean of 3)",
        "validation split",
        "resumed",
    ]
    (validation,) = [line for line in large.lines if line.get_xdata().tolist() == [191, 391, 591]][:1]
    assert validation.get_ydata().tolist() == [2.0, 2.0, 2.0]
    assert any(line.get_xdata().tolist() == [200] for line in small.lines)
    assert large.get_xlabel() == "updates"
    tokens = draw(runs, ["bpc"], against="tokens").axes[0]
    assert any(line.get_xdata().tolist() == [191 * 1024, 391 * 1024, 591 * 1024] for line in tokens.lines)


def test_a_steep_start_leaves_the_panel_and_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows[0]["bpc"] = 15.0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    axis = draw([read_run(folder)], ["bpc"]).axes[0]
    assert axis.get_ylim()[1] < 4
    assert axis.get_ylim()[0] < 2.0
    assert [text.get_text() for text in axis.texts] == ["↑ up to 15"]


def test_pictures_are_written_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "a<b")
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == [
        "run",
        "updates",
        "bpc",
        "validation_bpc",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
    ]
    assert out[1].split()[:2] == ["a<b", "591"]
    assert out[2] == f"wrote {folder / 'plot.png'}"
    pixels = matplotlib.image.imread(folder / "plot.png")
    assert pixels.shape[0] > 500
    assert pixels[..., :3].min() < 0.2
    for name in ("x.svg", "x.html"):
        assert main([str(folder), "--output", str(tmp_path / name), "--keys", "loss"]) == 0
        first = (tmp_path / name).read_bytes()
        assert main([str(folder), "--output", str(tmp_path / name), "--keys", "loss"]) == 0
        assert (tmp_path / name).read_bytes() == first
    page = (tmp_path / "x.html").read_text()
    assert "<svg" in page
    assert "<td>a&lt;b</td>" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a<b", "x.html", "x.svg"]


def test_bad_input_is_one_message_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "a")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "metrics.jsonl").write_text('{"st')
    bare = make_run(tmp_path / "bare", tokens=False)
    for arguments, message in (
        ([str(tmp_path / "none")], "none/metrics.jsonl: No such file or directory, expected the metrics"),
        ([str(empty)], "empty/metrics.jsonl: found no row yet"),
        ([str(folder), "--keys", "bcp"], "--keys: found bcp, expected some of bpc, grad_norm"),
        ([str(folder), "--smooth", "0"], "--smooth: found 0, expected at least 1"),
        ([str(bare), "--against", "tokens"], "bare has no row that says `tokens`"),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    for option in ("x.pdf", "nowhere/x.png"):
        with pytest.raises(SystemExit) as caught:
            main([str(folder), "--output", str(tmp_path / option)])
        assert caught.value.code == 2
    assert not (folder / "plot.png").exists()


@pytest.mark.parametrize(
    "lines",
    [
        '{"step": 99999999999999999999999, "bpc": 1}',
        '{"step": 1, "bpc": 1e308}\n{"step": 2, "bpc": -1e308}',
        '{"step": 1, "bpc": ' + "9" * 400 + "}",
        '{"step": 1}',
        "[" * 100_000,
    ],
)
def test_rows_without_a_figure_to_draw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str
) -> None:
    (tmp_path / "metrics.jsonl").write_text(lines + "\n")
    assert main([str(tmp_path)]) == 2
    assert "metrics.jsonl: found no " in capsys.readouterr().err
    # Beside a row to draw they are left out.
    (tmp_path / "metrics.jsonl").write_text(lines + '\n{"step": 5, "bpc": 2.0, "tokens": "many"}\n')
    assert main([str(tmp_path)]) == 0
    assert read_run(tmp_path).series("bpc")[1].tolist() == [2.0]


def test_names_are_no_formulas(tmp_path: Path) -> None:
    run = tmp_path / r"run_$\frac{"
    run.mkdir()
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, r"$\x{$": 2}) + "\n")
    assert main([str(run)]) == 0
    assert (run / "plot.png").is_file()


def test_phases_have_borders_and_tokens_of_their_own(tmp_path: Path) -> None:
    rows = [{"step": step, "bpc": 2.0, "phase": 1 + (step > 4), "tokens": 10 * step} for step in range(1, 5)]
    rows += [{"step": step, "bpc": 1.0, "phase": 2, "tokens": 40 + 100 * (step - 4)} for step in (5, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_run(tmp_path)
    assert run.phases == (5,)
    assert run.places([3, 4, 6], "tokens").tolist() == [30, 40, 240]
    axis = draw([run], ["bpc"], against="tokens").axes[0]
    assert any(list(line.get_xdata()) == [140, 140] for line in axis.lines)


def test_a_finetunings_loss_and_metric_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"step": step, "loss": 1 / step, "learning_rate": 1e-4, "grad_norm": 0.5, "tokens_per_second": 1e4}
        for step in (1, 2, 3)
    ]
    rows.append({"step": 3, "validation_accuracy": 0.75, "validation_f1": 0.5, "validation_recall": 0.1})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(tmp_path)]) == 0
    head, figures = capsys.readouterr().out.splitlines()[:2]
    assert head.split() == ["run", "updates", "loss", "validation_accuracy", "validation_f1", "learning_rate"]
    assert figures.split()[1:] == ["3", "0.3333", "0.75", "0.5", "0.0001"]
