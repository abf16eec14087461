import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trainer.benchmark import huggingface, huggingface_step
from trainer.benchmark.huggingface_step import FAMILIES, OURS, PEER, SAME_STATES, Encoder, EncoderStep

TINY = {"layers": 2, "tokens": 72, "window": 16, "vocabulary": 60, "dropout": 0.0}  # 72 is no multiple of 16


def test_the_command_tells_ratio_bound_and_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quick", "--rounds", "2", "--allocator", "tuned", "--json", str(tmp_path / "found.json")]
    assert huggingface.main([*options, "--sections", "led", "--modes", "training"]) == 0
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    [section] = found["sections"]
    [measured] = section["steps"]
    ours, theirs = measured["rows"]
    assert (ours["method"], theirs["method"], ours["ratio"]) == (OURS, PEER, 1)
    assert theirs["losses"] == pytest.approx(ours["losses"], rel=1e-4)
    assert ours["losses"][-1] < ours["losses"][0]
    assert ours["of_bound"] == pytest.approx(measured["bound"] / ours["median"])
    [target] = found["targets"]
    assert target["figure"] == theirs["ratio"]
    assert "led, 2 layers" in printed
    assert "1 text of 100 tokens" in printed


def test_a_missed_figure_is_told_as_missed() -> None:
    measured = {
        "rows": [
            {"method": OURS, "ratio": 1.0, "peak_bytes": 100},
            {"method": PEER, "ratio": 2.6, "peak_bytes": 290},
        ]
    }
    case = {"mode": "inference", "precision": "fp32", "allocator": "default"}

    def reached(family: str, tokens: int, **changes: str) -> list[bool]:
        return [target.reached for target in huggingface.targets_of(family, tokens, case | changes, measured)]

    assert reached("longformer", 4096) == [False, True]
    assert reached("longformer", 4096, mode="training") == [True, True]
    assert reached("longformer", 300) == [True]
    assert reached("led", 16384) == [False, False]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_compute_the_same_function_and_learn_alike(family: str) -> None:
    encoder = Encoder(**TINY, family=family)
    assert huggingface_step.states_apart(encoder) <= SAME_STATES
    ours, theirs = EncoderStep(OURS, encoder, "training"), EncoderStep(PEER, encoder, "training")
    for _ in range(2):
        ours()
        theirs()
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
    for name, weights in ours.model.state_dict().items():
        torch.testing.assert_close(theirs.model.state_dict()[name], weights, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_window_is_seen_in_the_hidden_states(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = huggingface_step.states
    calls = []

    def narrower(model: nn.Module, text: dict[str, Tensor]) -> Tensor:
        calls.append(model)
        for part in model.modules():
            if len(calls) == 2 and hasattr(part, "one_sided_attn_window_size"):
                part.one_sided_attn_window_size -= 4
        return exact(model, text)

    monkeypatch.setattr(huggingface_step, "states", narrower)
    assert huggingface_step.states_apart(Encoder(**TINY, family=family)) > SAME_STATES
    assert len(calls) == 2


def test_an_odd_window_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        huggingface.main(["--window", "15"])
    assert stopped.value.code == 2
    assert "--window" in capsys.readouterr().err
