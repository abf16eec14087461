"""What an update computes under the real launcher: accumulation, precision, spikes, and numbers that are not finite."""

import json
import os
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.trainer import launcher
from tests.trainer.launcher import NEW_MODEL, run_config
from tests.trainer.models import roberta_folder
from tests.trainer.runs import rows, state_bytes, step_rows, timeless
from trainer.batches.order import SequenceOrder
from trainer.convert import convert
from trainer.engine.config import LossSpike, Pretraining, load_config
from trainer.engine.training import Progress
from trainer.evaluate import evaluate_folder
from trainer.model.folder import load_model
from trainer.pretrain import prepare

CURVE = Path(__file__).with_name("loss_curve.json")
CASES = Path(__file__).with_name("launched_numbers.py")
STAGES = (0, 1, 2)
NO_DROPOUT = {**NEW_MODEL, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
CLIPPED = {"learning_rate": 1e-2, "warmup_steps": 2, "weight_decay": 0.3, "gradient_clipping": 0.5}
NARROW_SPIKES = {"ratio": 1.0001, "window": 1, "skip": True}


def tensors(run: Path, step: int, kind: str = "weights") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{kind}.safetensors")


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("numbers")
    long = str(folder / "long")
    convert(roberta_folder(folder / "roberta", tokens=64, vocab_size=300), Path(long), tokens=128, window=16)
    every_step = {"every": 1, "keep_last": 20}
    large = {"batch_size": 32, "steps": 2, "model": NO_DROPOUT}
    tiny_rate = {"learning_rate": 1e-8, "warmup_steps": 0, "decay": "constant", "weight_decay": 0}
    tiny_rate["epsilon"] = 1e-15  # of gradients however small the update is the rate itself
    cases: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        cases[f"spikes-{stage}"] = {"steps": 12, "loss_spike": NARROW_SPIKES, "checkpoint": every_step}
        cases[f"gradient-{stage}"] = {"checkpoint": every_step}
        cases[f"one-{stage}"] = {**large, "micro_batch_size": 32}
        cases[f"many-{stage}"] = {**large, "micro_batch_size": 1}
        cases[f"tiny-{stage}"] = {"steps": 1, "precision": "bf16", "optimizer": tiny_rate}
        cases[f"spikes-resumed-{stage}"] = cases[f"spikes-{stage}"]
        cases[f"reference-{stage}"] = {"model": NO_DROPOUT, "optimizer": CLIPPED}
        positions = {**CLIPPED, "decay": "constant", "warmup_steps": 0}
        cases[f"positions-{stage}"] = {"model": long, "extra_positions_only": True, "optimizer": positions}
        cases[f"positions-resumed-{stage}"] = cases[f"positions-{stage}"]
        for name in ("spikes", "gradient", "one", "many", "tiny", "reference", "positions"):
            cases[f"{name}-{stage}"]["zero_stage"] = stage
    cases["curve"] = {
        "steps": 30,
        "precision": "fp32",
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 5},
    }
    cases["plain"] = {"evaluation": {"every": 2, "sequences": 3}}
    cases["compiled"] = {"compile": True, "evaluation": {"every": 0}}
    configs = [str(run_config(folder, corpus, name, **changes)) for name, changes in cases.items()]
    process = launcher.start(CASES, *configs)
    output = launcher.finish(process, timeout=900)
    assert process.returncode == 0, output
    (folder / "output").write_text(output)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_spike_is_skipped_and_leaves_the_weights_alone(launched: Path, stage: int) -> None:
    run = launched / f"spikes-{stage}"
    marked = {row["step"]: row.get("spike") for row in step_rows(run)}
    skipped = [step for step, spike in marked.items() if spike == "skipped"]
    assert 1 <= len(skipped) < 11, marked
    previous = None
    for step in range(1, 13):
        state = {kind: tensors(run, step, kind) for kind in ("weights", "exp_avg", "exp_avg_sq")}
        if previous is not None:
            for kind, before in previous.items():
                same = all(torch.equal(state[kind][name], tensor) for name, tensor in before.items())
                assert same == (step in skipped or (kind == "weights" and step == 12)), (step, kind)
        previous = state
    facts = json.loads((run / "checkpoints" / "step-00000012" / "state.json").read_text())
    assert facts["progress"]["updates"] == 12 - len(skipped)
    assert "no update was taken" in (launched / "output").read_text()
    losses = [row["loss"] for row in step_rows(run)]
    assert losses == pytest.approx([row["loss"] for row in step_rows(launched / "spikes-0")], rel=1e-5)


def test_what_is_a_spike() -> None:
    settings = LossSpike(ratio=2, window=3)
    progress = Progress()
    judged = [
        (9.0, False),  # too early to tell
        (1.0, False),
        (1.0, False),
        (2.1, True),  # over twice the median of 9, 1 and 1; and not remembered
        (1.5, False),
        (2.1, True),  # of 1, 1 and 1.5
        (1.9, False),
        (2.9, False),  # of 1, 1.5 and 1.9
    ]
    assert [(loss, progress.is_spike(loss, settings)) for loss, _ in judged] == judged


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("name", "last"), [("spikes", 12), ("positions", 4)])
def test_resumed_in_between_it_is_the_same_run(launched: Path, name: str, last: int, stage: int) -> None:
    """Which losses were no spikes, how many updates there were, and the moments of a part of the weights."""
    whole, resumed = launched / f"{name}-{stage}", launched / f"{name}-resumed-{stage}"
    at = next((row["step"] - 1 for row in reversed(rows(whole)) if "spike" in row), 2)
    assert [json.loads(line)["step"] for line in (resumed / "starts.jsonl").read_text().splitlines()] == [at]
    assert state_bytes(resumed, last) == state_bytes(whole, last)
    assert timeless(resumed) == timeless(whole)


def test_updates_are_those_of_plain_torch(launched: Path) -> None:
    """AdamW over one whole batch in one process: its groups, clipping, rates and denominators, written out."""
    task = prepare(load_config(launched / "reference-0.yaml", [], Pretraining))
    model, order = task.model.train(), SequenceOrder(len(task.data), 3)
    matrices, others = (
        [p for p in model.parameters() if (p.dim() > 1) == is_matrix] for is_matrix in (True, False)
    )
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, foreach=False)
    losses, norms = [], []
    for step, rate in enumerate((5e-3, 1e-2, 1e-2 / 8, 0), 1):
        batch = task.micro_batch(step, order.batch(step, 4), np.arange(4))
        loss = task.loss(model, batch, torch.zeros(4, 2, dtype=torch.long)) / batch.scored
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    assert min(norms) > 0.5  # clipped each time
    for stage in STAGES:
        run = launched / f"reference-{stage}"
        assert [row["loss"] for row in step_rows(run)] == pytest.approx(losses, rel=1e-5)
        assert [row["grad_norm"] for row in step_rows(run)] == pytest.approx(norms, rel=1e-4)
        found = tensors(run, 4)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(
                found[name], parameter.detach(), atol=1e-4, rtol=1e-4, msg=f"{stage} {name}"
            )


@pytest.mark.parametrize("stage", STAGES)
def test_extra_positions_only_moves_the_added_rows_and_nothing_else(launched: Path, stage: int) -> None:
    before = {name: p.detach() for name, p in load_model(launched / "long").named_parameters()}
    after, moments = (
        tensors(launched / f"positions-{stage}", 4),
        tensors(launched / f"positions-{stage}", 4, "exp_avg"),
    )
    table = "longformer.embeddings.position_embeddings.weight"
    assert moments.keys() == {table}
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        if name != table:
            assert torch.equal(after[name], tensor), name
    assert torch.equal(
        after[table][:66], before[table][:66]
    )  # 64 positions, and the rows up to the padding's
    assert ((after[table][66:] - before[table][66:]).abs().amax(1) > 1e-3).all()


def test_a_resumed_run_sees_spikes_over_fewer_steps_than_before() -> None:
    progress = Progress(recent=deque([1.0] * 50))
    assert not progress.is_spike(1.1, LossSpike(window=10))
    assert progress.is_spike(9.0, LossSpike(window=10))
    assert list(progress.recent) == [1.0] * 9 + [1.1]


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_stops_before_the_update(launched: Path, stage: int) -> None:
    message = (launched / f"gradient-{stage}.error").read_text()
    assert message.startswith("step 3: the gradient's norm (inf) is not finite; its sequences are "), message
    run = launched / f"gradient-{stage}"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
    assert [row["step"] for row in step_rows(run)] == [1, 2]


@pytest.mark.parametrize("stage", STAGES)
def test_many_micro_batches_are_one_large_batch(launched: Path, stage: int) -> None:
    one, many = launched / f"one-{stage}", launched / f"many-{stage}"
    assert [row["loss"] for row in step_rows(one)] == pytest.approx(
        [row["loss"] for row in step_rows(many)], rel=1e-6
    )
    for kind in ("weights", "exp_avg"):
        expected = tensors(one, 2, kind)
        for name, tensor in tensors(many, 2, kind).items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-5, msg=f"{kind} {name}")


@pytest.mark.parametrize("stage", STAGES)
def test_an_update_of_1e_8_is_not_lost_in_bf16(launched: Path, corpus: Path, stage: int) -> None:
    start = prepare(load_config(launched / f"tiny-{stage}.yaml", [], Pretraining)).model.state_dict()
    moved = tensors(launched / f"tiny-{stage}", 1)
    for name in ("longformer.encoder.layer.0.attention.self.query.weight", "lm_head.dense.weight"):
        change = (moved[name] - start[name]).abs()
        # Adam's first update is the rate itself wherever there is a gradient; weights of 0.02 are 2e-9 apart in fp32
        # and 1e-4 in bf16.
        assert ((change > 5e-9) & (change < 2e-8)).float().mean() > 0.95


def test_compiled_layers_draw_the_same_dropout(launched: Path) -> None:
    plain, compiled = ([row["loss"] for row in step_rows(launched / name)] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-5)


def test_evaluation_while_training_is_what_evaluate_says(launched: Path, corpus: Path) -> None:
    run = launched / "plain"
    found = {row["step"]: row["validation_bpc"] for row in rows(run) if "validation_bpc" in row}
    assert found.keys() == {2, 4}
    expected = evaluate_folder(run / "export", corpus, limit=3)
    assert found[4] == pytest.approx(expected["bpc"], rel=1e-5)


def test_the_loss_curve_is_the_committed_one(launched: Path) -> None:
    """A change that is not about numbers leaves it alone; another CPU's rounding stays within the tolerance.

    A change that is about numbers writes it anew: LONGSPAN_WRITE_CURVE=1 pytest tests/trainer/test_numbers.py
    """
    found = [
        {key: row[key] for key in ("step", "loss", "grad_norm")} for row in step_rows(launched / "curve")
    ]
    assert len(found) == 30
    if os.environ.get("LONGSPAN_WRITE_CURVE"):
        CURVE.write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n")
    expected = json.loads(CURVE.read_text())
    for key in ("step", "loss", "grad_norm"):
        assert [row[key] for row in found] == pytest.approx([row[key] for row in expected], rel=1e-4), key
