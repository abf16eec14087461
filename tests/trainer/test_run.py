"""What a run leaves behind, and what transformers makes of it."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LongformerForMaskedLM

from tests.trainer.runs import rows, step_folder, step_rows
from trainer.model.folder import load_model


def test_what_a_run_writes(launched: Path) -> None:
    run = launched / "fp32-0"
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "metrics.jsonl", "tensorboard", "export"}
    assert any((run / "tensorboard").iterdir())
    row = step_rows(run)[0]
    assert row.keys() >= {"step", "loss", "bpc", "learning_rate", "grad_norm", "tokens_per_second"}
    assert [r["learning_rate"] for r in step_rows(run)] == [5e-4, 1e-3, 1e-3 / 8, 0]


def test_the_last_checkpoints_and_every_nth_are_kept(launched: Path) -> None:
    left = sorted(path.name for path in (launched / "long-0" / "checkpoints").iterdir())
    assert left == [f"step-{step:08d}" for step in (10, 20, 30, 40, 50, 55, 60)]


def test_the_exports_card_tells_what_the_metrics_do(launched: Path) -> None:
    card = (launched / "fp32-0" / "export" / "README.md").read_text()
    told = rows(launched / "fp32-0")
    for row in told:
        figure = row["bpc"] if "bpc" in row else row["validation_bpc"]
        assert f"| {row['step']} | {figure:.4f} |" in card
    assert {"bpc", "validation_bpc"} <= set().union(*told)


def test_transformers_loads_the_export_and_gives_our_logits(launched: Path) -> None:
    export = launched / "fp32-0" / "export"
    theirs, info = LongformerForMaskedLM.from_pretrained(export, output_loading_info=True)
    assert not any(info.values())
    ids = torch.randint(4, 299, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.eval()(ids, attention_mask=torch.ones_like(ids)).logits
        found = load_model(export).eval()(ids)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    weights = load_file(step_folder(launched / "fp32-0", 4) / "weights.safetensors")
    exported = load_file(export / "model.safetensors")
    assert all(torch.equal(exported[name], tensor) for name, tensor in weights.items())
