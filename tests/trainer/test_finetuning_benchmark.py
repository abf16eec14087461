import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainer.benchmark import finetuning, finetuning_step
from trainer.benchmark.finetuning_step import KINDS, OURS, PEER, SAME_LOGITS, FinetuningStep
from trainer.benchmark.step import Setting

SETTING = Setting(layers=2, tokens=72, window=16, vocabulary=60, dropout=0.0)  # 72 is no multiple of 16


def test_the_command_tells_ratio_bound_and_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quick", "--rounds", "2", "--allocator", "tuned", "--json", str(tmp_path / "found.json")]
    assert finetuning.main([*options, "--sections", "answering"]) == 0
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    [section] = found["sections"]
    [measured] = section["steps"]
    ours, theirs = measured["rows"]
    assert (ours["method"], theirs["method"], ours["ratio"]) == (OURS, PEER, 1)
    assert theirs["losses"] == pytest.approx(ours["losses"], rel=1e-4)
    assert len(theirs["losses"]) == 4  # two steps to warm up, two measured
    assert ours["losses"][-1] < ours["losses"][0]
    assert ours["of_bound"] == pytest.approx(measured["bound"] / ours["median"])
    [target] = found["targets"]
    assert target["target"] == 3
    assert target["figure"] == theirs["ratio"]
    assert "answering, 100 tokens" in printed
    assert "dropout 0.0 in both" in printed


@pytest.mark.parametrize("kind", KINDS)
def test_both_compute_the_same_function_and_learn_alike(kind: str) -> None:
    assert finetuning_step.logits_apart(kind, SETTING) <= SAME_LOGITS
    ours, theirs = FinetuningStep(OURS, kind, SETTING), FinetuningStep(PEER, kind, SETTING)
    for _ in range(2):
        ours()
        theirs()
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
    for name, weights in ours.model.state_dict().items():
        torch.testing.assert_close(theirs.model.state_dict()[name], weights, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_another_window_or_other_global_tokens_are_seen_in_the_logits(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = finetuning_step.one_batch(KINDS[kind], SETTING)
    assert batch.global_mask is not None
    fewer = batch.global_mask.clone()
    fewer[0, int(fewer.nonzero()[-1, 1])] = False
    exact = finetuning_step.peer_output
    monkeypatch.setattr(
        finetuning_step,
        "peer_output",
        lambda kind, model, batch: exact(kind, model, replace(batch, global_mask=fewer)),
    )
    assert finetuning_step.logits_apart(kind, SETTING) > SAME_LOGITS
    monkeypatch.undo()
    peer_model = finetuning_step.peer_model

    def narrower(*arguments: object) -> torch.nn.Module:
        model = peer_model(*arguments)  # type: ignore[arg-type]
        for part in model.modules():
            if hasattr(part, "one_sided_attn_window_size"):
                part.one_sided_attn_window_size -= 4
        return model

    monkeypatch.setattr(finetuning_step, "peer_model", narrower)
    assert finetuning_step.logits_apart(kind, replace(SETTING, tokens=96)) > SAME_LOGITS


@pytest.mark.parametrize("options", [["--window", "15"], ["--tokens", "32"]])
def test_sizes_that_do_not_fit_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        finetuning.main(options)
    assert stopped.value.code == 2
    assert options[0] in capsys.readouterr().err
