"""What --dry-run says, against what a step takes."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.estimated import TOKENS, encoder_config, kept_bytes
from trainer.engine import estimate
from trainer.engine.config import Pretraining
from trainer.engine.estimate import describe_plan, disk, layer_bytes, memory, parameter_count
from trainer.model.heads import MaskedLanguageModel, masked_loss_sum
from trainer.model.longformer import EncoderConfig

ROOT = Path(__file__).parents[2]


def training(**changes: Any) -> Pretraining:
    values: dict[str, Any] = {
        "run": "no_such_run",
        "model": "m",
        "corpus": "c",
        "steps": 1000,
        "sequence_length": TOKENS,
        "batch_size": 8,
        "micro_batch_size": 2,
    }
    return Pretraining.model_validate(values | changes)


def test_parameters_are_the_model_s() -> None:
    base = EncoderConfig("longformer", 50265, max_position_embeddings=4098, attention_window=[512] * 12)
    # The released base model less its global projections (LongformerForMaskedLM: 148,711,257, of which 21,261,312).
    assert parameter_count(base) == 148_711_257 - 21_261_312
    small = encoder_config(2)
    assert parameter_count(small) == sum(p.numel() for p in MaskedLanguageModel(small).parameters())


def kept(config: EncoderConfig, precision: str) -> int:
    model = MaskedLanguageModel(config).train()
    ids = torch.randint(4, config.vocab_size, (1, 333))
    seeds = torch.zeros(1, config.num_hidden_layers, dtype=torch.int64)
    return kept_bytes(
        model,
        precision,
        lambda: masked_loss_sum(model(ids, torch.arange(5)[None], None, None, seeds), ids[:, :5]),
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_keep_what_is_counted(precision: str) -> None:
    one, two = (encoder_config(layers, hidden_size=64) for layers in (1, 2))
    found = kept(two, precision) - kept(one, precision)  # a layer that is not the last one
    counted = layer_bytes(one, training(precision=precision), on_gpu=False)
    assert found / 333 == pytest.approx(sum(counted), rel=0.01)


CASES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "checkpointing": {"activation_checkpointing": True},
}
LAYERS = 4


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The rise of a process's resident set over real steps.

    With a fixed threshold of glibc's, so that memory which is freed goes back to the system: by default it keeps some
    in reserve, a third to three quarters of a model as small as this one.
    """
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc to measure")
    folder = tmp_path_factory.mktemp("measured")
    paths = []
    for name, changes in CASES.items():
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(training(**changes).model_dump_json())  # JSON is YAML
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.memory_of_a_step", str(LAYERS), *map(str, paths)],
        cwd=ROOT,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, map(int, done.stdout.split()), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_memory_is_that_of_a_real_step(measured: dict[str, int], name: str) -> None:
    estimated = memory(encoder_config(LAYERS), training(**CASES[name]), 1, on_gpu=False)
    assert estimated.total == pytest.approx(measured[name], rel=0.2), estimated


def test_zero_divides_what_it_says() -> None:
    config = encoder_config(2)
    found = [memory(config, training(zero_stage=stage), 4, on_gpu=False) for stage in (0, 1, 2)]
    parameters = parameter_count(config)
    assert [memory.moments for memory in found] == [8 * parameters, 2 * parameters, 2 * parameters]
    assert found[1].weights - found[0].weights == parameters  # the optimizer's own fourth
    assert found[2].gradients == found[1].gradients - 4 * parameters
    assert len({memory.activations for memory in found}) == 1


def test_frozen_weights_have_neither_gradients_nor_moments() -> None:
    config = encoder_config(2)
    rows = config.max_position_embeddings * config.hidden_size
    found = memory(config, training(extra_positions_only=True), 1, on_gpu=False)
    assert (found.gradients, found.moments) == (4 * rows, 8 * rows)
    assert disk(config, training(extra_positions_only=True))[0] == 4 * parameter_count(config) + 8 * rows


def lines(
    sequences: int = 10_000, world_size: int = 2, gpu: str | None = None, **changes: Any
) -> dict[str, str]:
    told = describe_plan(encoder_config(2), training(**changes), sequences, world_size, gpu)
    return {line.split()[0]: line for line in told}


def test_the_plan_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "product_rate", lambda: 1e12)
    told = lines(run=str(tmp_path / "new" / "run"))
    parameters = parameter_count(encoder_config(2))
    assert (
        f"2 layers × 256, window 64, {parameters:,} parameters ({parameters:,} trained), 1,024"
        in told["model"]
    )
    assert told["corpus"] == "corpus    c: 10,000 sequences of 1,024 tokens"
    assert told["batch"] == "batch     8 sequences = 4 micro-batches of 2, 2 on each of 2 processes"
    assert told["steps"] == "steps     1,000 = 8,192,000 tokens, 0.80 epochs"
    assert re.search(r"about [\d.]+ MiB a process = [\d.]+ MiB weights \+ .* logits", told["memory"])
    assert re.search(r"about \d+ s: [\d.]+ s a step, [\d,]+ tokens/s, if it reaches 85%", told["time"])
    assert "2 + 1 checkpoints" in told["disk"]
    assert "warning" not in told
    assert "not estimated: the products of a step take" in lines(batch_size=2, micro_batch_size=1)["time"]
    assert not (tmp_path / "new").exists()
    assert "(2 of them idle in the last)" in lines(world_size=3)["batch"]


def test_time_is_of_a_known_gpu_or_not_told() -> None:
    config, eight = encoder_config(2), training(batch_size=8, precision="bf16")
    one = estimate.step_seconds(config, eight, 1, "NVIDIA A100-SXM4-80GB")
    assert one is not None
    flops = estimate.step_flops(config, TOKENS, 153, 8) + estimate.recomputed_flops(config, TOKENS, 8)
    assert one == pytest.approx(flops / (312e12 * estimate.MFU))
    assert estimate.step_seconds(config, eight, 4, "NVIDIA A100-SXM4-80GB") == pytest.approx(one / 4)
    # Three processes: the busiest has two of four passes, like one of two.
    assert estimate.step_seconds(config, eight, 3, "NVIDIA A100-SXM4-80GB") == pytest.approx(one / 2)
    assert (
        "not estimated: the peak of Some GPU in bf16 is not known"
        in lines(gpu="Some GPU", precision="bf16")["time"]
    )


def test_a_disk_that_is_too_small_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "free_bytes", lambda run: 10**8)
    told = lines(gpu="x", checkpoint={"keep_last": 5})
    assert "keep fewer checkpoints" in told["warning"]
    assert "10 + 1 checkpoints" in lines(checkpoint={"keep_last": 5, "keep_every": 200})["disk"]
    monkeypatch.undo()
    assert estimate.free_bytes(tmp_path / "not" / "yet") > 0


def test_torch_mm_is_measured() -> None:
    assert 1e8 < estimate.product_rate(0.01) < 1e15
