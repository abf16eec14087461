"""A few steps on the corpus of real text, with RoBERTa's real tokenizer, under the real launcher."""

import math
from pathlib import Path

from tests.pipeline.test_real_text import corpus_folder, sources  # noqa: F401
from tests.trainer import launcher
from tests.trainer.launcher import PRETRAIN, run_config
from tests.trainer.runs import losses
from trainer.evaluate import evaluate_folder


def test_it_trains_at_4096_tokens_and_evaluates(corpus_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    config = run_config(
        tmp_path,
        corpus_folder,
        "real",
        sequence_length=4096,
        steps=6,
        batch_size=2,
        optimizer={"learning_rate": 5e-3, "warmup_steps": 1, "decay": "constant"},
    )
    process = launcher.start(PRETRAIN, "--config", str(config))
    output = launcher.finish(process)
    assert process.returncode == 0, output
    found = losses(tmp_path / "real")
    # A new model guesses evenly over the 50,265 entries; six steps teach it which are frequent.
    assert abs(found[0] - math.log(50_265)) < 0.2
    assert found[-1] < found[0] - 0.4
    figures = evaluate_folder(tmp_path / "real" / "export", corpus_folder, limit=2)
    assert figures["tokens"] == 2 * round(0.15 * 4094)
    assert figures["bpc"] < math.log2(50_265) - 0.6
