"""The benchmarks at sizes that say nothing about speed: their output, and that what they compare computes the same."""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree  # of our own files
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from attention import backends, chunks
from attention.benchmark import __main__ as benchmark
from attention.benchmark import measure, peers, rates, scaling, targets
from attention.benchmark.__main__ import ALLOCATORS
from attention.benchmark.measure import Measured
from attention.benchmark.targets import Sizes, Target, measure_targets
from attention.benchmark.workload import (
    PASSES,
    difference,
    exact,
    make_inputs,
    scratch,
    useful_flops,
    visible_pairs,
)
from attention.figure import save
from pipeline.filters import FILTERS
from trainer.benchmark import alone, charlm, charlm_step, step
from trainer.benchmark.rounds import same_losses
from trainer.model.heads import MaskedLanguageModel

BOTH = ("forward", "forward+backward")
PEERS = {"transformers, sliding chunks", "SDPA over blocks", "SDPA, band as mask", "SDPA, dense (no window)"}
CPU = torch.device("cpu")
FEW = 64  # bytes of scalars that PyTorch allocates on the way


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


def measure_json(module: str, folder: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What a benchmark prints, and what it writes."""
    done = run(module, *arguments, "--rounds", "2", "--json", str(folder / "found.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((folder / "found.json").read_text())


def check_rows(printed: str, rows: list[dict[str, Any]]) -> None:
    """Ours is first, what the others are compared with, and every row is in the table."""
    assert rows[0]["method"].startswith("longspan")
    assert rows[0]["ratio"] == 1
    for row in rows:
        assert len(row["seconds"]) == 2
        assert all(seconds > 0 for seconds in row["seconds"])
        assert row["ratio"] > 0
        of_bound = row["of_bound"]
        assert all(share > 0 for share in (of_bound.values() if isinstance(of_bound, dict) else [of_bound]))
        assert any(line.startswith(row["method"]) for line in printed.splitlines())


# Attention: the comparison by length.


def test_attention_under_both_allocators(tmp_path: Path) -> None:
    """One command, a section an allocator; every method's result is right; the plot opens."""
    arguments = ["--tokens", "48", "--window", "16", "--plot", str(tmp_path / "figure1.svg")]
    printed, found = measure_json("attention.benchmark", tmp_path, *arguments)
    ours = {"longspan (default)", *(f"longspan {name}" for name in backends())}
    assert len(found["sections"]) == len(ALLOCATORS)
    for section, (allocator, settings) in zip(found["sections"], ALLOCATORS.items(), strict=True):
        assert section["heading"] == f"{allocator} allocator"
        assert f"{allocator} allocator ==" in printed
        assert all(f"{name}={value}" in section["conditions"] for name, value in settings.items())
        assert not section["targets"]
        for what in BOTH:
            check_comparison(printed, section, 48, what, ours)
    assert ElementTree.parse(tmp_path / "figure1.svg").getroot().tag.endswith("svg")  # noqa: S314
    assert {path.name for path in tmp_path.iterdir()} == {"figure1.svg", "found.json"}


def check_comparison(printed: str, section: dict[str, Any], tokens: int, what: str, ours: set[str]) -> None:
    rows = [row for row in section["rows"] if (row["tokens"], row["pass"]) == (tokens, what)]
    left = {x["method"] for x in section["left_out"] if (x["tokens"], x["pass"]) == (tokens, what)}
    names = {row["method"] for row in rows}
    assert names | left == ours | PEERS | {"FlexAttention, compiled"}
    assert left <= {"FlexAttention, compiled"}  # it has no backward pass here, and may fail to compile
    check_rows(printed, rows)
    for row in rows:
        same = row["difference"]
        assert same is None if "no window" in row["method"] else same < 1e-4
        assert set(row["of_bound"]) == set(row["rates"])
        assert "torch.mm" in row["rates"]
        assert row["scratch_bytes"] >= 0
    for one in section["left_out"]:
        assert one["reason"] in printed


def setting(window: int = 16, limit: float = 100.0) -> scaling.Setting:
    return scaling.Setting(window, 2, 1, CPU, torch.float32, limit)


def test_a_method_is_left_out_by_what_it_took_before(monkeypatch: pytest.MonkeyPatch) -> None:
    quadratic = scaling.Method(lambda query, key, value: query, order=2)
    past = scaling.Past(tokens=100, seconds=2.0, peak_bytes=1 << 20)
    assert past.forbids(100, quadratic, setting(limit=2)) is None
    reason = past.forbids(1000, quadratic, setting(limit=2))
    assert reason is not None
    assert "200.0 s" in reason
    monkeypatch.setattr(scaling, "free_memory", lambda device: 64 << 20)
    assert past.forbids(200, quadratic, setting(limit=1e9)) is None
    assert "MB free" in (past.forbids(1000, quadratic, setting(limit=1e9)) or "")


def test_a_peer_that_fails_is_left_out_with_the_reason_and_ours_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel\nand more")

    few = {"a peer": scaling.Method(fail)}
    monkeypatch.setattr(scaling, "peers", lambda window, device: few)
    monkeypatch.setattr(scaling, "backends", list)
    measuring = scaling.Scaling(setting())
    rows, left_out = measuring.at(32)
    assert [row["method"] for row in rows] == [scaling.OURS] * 2
    assert [one["reason"] for one in left_out] == ["RuntimeError: no kernel"] * 2
    measuring.methods[scaling.OURS] = scaling.Method(fail)
    with pytest.raises(RuntimeError, match="no kernel"):
        measuring.at(32)


def test_blocks_of_every_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the window is no multiple of the block, and for either layout."""
    for layout in ("model", "contiguous"):
        inputs = make_inputs(96, layout)
        for what, compute in PASSES.items():
            for size in (16, 32, 48):
                blocked = peers.BlockedSDPA(40, {(96, what): size})
                assert difference(compute(blocked, inputs), exact(what, inputs, 40)) < 1e-5
    monkeypatch.setattr(peers, "BLOCKS", (16, 32))
    blocked = peers.BlockedSDPA(40)
    PASSES["forward"](blocked, make_inputs(96))
    assert blocked.chosen[96, "forward"] in (16, 32)


def test_the_plot_opens_and_shows_every_method(tmp_path: Path) -> None:
    rows = [
        {"method": name, "pass": what, "tokens": tokens, "median": tokens / 1e4, "peak_bytes": tokens << 10}
        for name in (scaling.OURS, "another")
        for what in BOTH[: 2 if name == scaling.OURS else 1]
        for tokens in (512, 1024)
    ]
    drawn = scaling.plot([{"rows": rows, "window": 512, "heading": "default allocator"}])
    names = {text.get_text() for text in drawn.legends[0].get_texts()}
    assert names == {scaling.OURS, "another", "forward pass alone"}
    for name in ("a.png", "a.svg"):
        save(drawn, tmp_path / name)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.width > opened.height


# Attention: what is counted.


def test_useful_flops_are_the_standard_count() -> None:
    assert visible_pairs(5, 2) == 13  # x x . . . / x x x . . / …
    assert visible_pairs(4, 512) == 16
    assert useful_flops("forward", 5, 2) == 2 * 13 * 2 * 64 * 12
    assert useful_flops("forward+backward", 5, 2) == 7 * 13 * 2 * 64 * 12


def test_scratch_is_what_is_beyond_inputs_and_results() -> None:
    inputs = make_inputs(64)
    one = inputs[0].nbytes
    nothing = scratch(lambda: [inputs[0] + 1], inputs)
    assert nothing == (pytest.approx(0, abs=FEW), pytest.approx(0, abs=1e-3))
    beyond, share = scratch(lambda: [(inputs[0].repeat(3, 1, 1, 1) + 1)[:1].clone()], inputs)
    assert beyond == pytest.approx(5 * one, abs=FEW)  # two of three at once, without the result
    assert share == pytest.approx(1, rel=1e-3)


def test_a_backends_own_scratch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([123, 1000])  # of earlier runs, of this one
    monkeypatch.setattr(chunks, "scratch_bytes", lambda: next(held), raising=False)
    monkeypatch.setattr("attention.benchmark.workload.backends", lambda: ["loop", "chunks"])
    inputs = make_inputs(8)
    assert scratch(lambda: [inputs[0] + 1], inputs)[0] == pytest.approx(1000, abs=FEW)


def test_rounds_are_interleaved_and_ratios_are_of_rounds() -> None:
    order: list[str] = []
    runs: dict[str, Callable[[], object]] = {name: (lambda name=name: order.append(name)) for name in "ab"}
    measured, found = measure.take_rounds(
        runs, {name: Measured([]) for name in "ab"}, 3, measure.cpu_seconds, {}
    )
    assert "".join(order) == "ababab"
    assert found == {}
    assert [len(measured[name].seconds) for name in "ab"] == [3, 3]
    assert Measured([1.0, 4.0, 9.0]).ratio(Measured([1.0, 2.0, 3.0])) == 2


def test_tiles_are_multiplied_right_or_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for threads in (1, 2):
        with contextlib.suppress(RuntimeError):  # no compiler, or a torch without brgemm
            product = rates.tile_product(threads)
            product.run()
            assert product.flops == threads * rates.TILES * 2 * 64 * 576 * 64
    rates._tile_loop.cache_clear()
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler"):
        rates.tile_product()
    products, missing = setting().products()
    assert list(products) == ["torch.mm"]
    assert "no C++ compiler" in missing
    rates._tile_loop.cache_clear()


# Attention: the targets.


def test_targets_under_each_allocator(capsys: pytest.CaptureFixture[str]) -> None:
    sizes, threads = Sizes(tokens=128, long=256, short=20, window=32), torch.get_num_threads()
    everything = measure_targets("default", 2, sizes)
    against_peers = measure_targets("tuned", 2, sizes)
    assert len(everything) == 12
    assert [target.target for target in against_peers] == [4.8, 2.7, 1]
    assert [target.target for target in everything[:3]] == [13, 2.7, 1]
    for target in everything + against_peers:
        figure = target.figure["model"]
        assert target.remark if figure is None else figure > 0
        assert json.loads(json.dumps(target.as_dict()))["reached"] is target.reached
    targets.print_targets(everything)
    printed = capsys.readouterr().out
    assert all(target.name in printed for target in everything)
    assert "256 over 128 tokens" in printed
    assert torch.get_num_threads() == threads


def test_a_target_missed_by_under_five_percent_counts_as_reached() -> None:
    def reached(figure: float | None, at_least: bool) -> bool | None:
        return Target("x", {"model": figure, "contiguous": 0}, 10, at_least=at_least).reached

    assert [reached(x, True) for x in (9.4, 9.51, 11, None)] == [False, True, True, None]
    assert [reached(x, False) for x in (9.4, 10.49, 10.6)] == [True, True, False]


def test_all_features_are_on() -> None:
    features = targets._features(64)
    assert int(features["global_attention_mask"].sum()) == 8
    assert features["document_ids"].unique().tolist() == [0, 1, 2, 3]
    assert features["global_attention_mask"][0, ::16].all()  # at the head of each document


# Attention: options, and the report of a GPU.


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--tokens 100 --window 16", ["multiples"]),
        ("--window 15 --tokens 15", ["even --window"]),
        ("--tokens 16 --window 16 --plot x.pdf", ["--plot", "'x.pdf'", ".png or .svg"]),
        (
            "--tokens 16 --window 16 --json missing/x.json",
            ["--json", "missing/x.json", "a folder that exists"],
        ),
        ("--targets --plot x.svg", ["--plot", "--tokens"]),
        ("--allocator other", ["--allocator", "other", "tuned"]),
        ("--check", ["--check", "--device cuda"]),
        ("--device cuda --targets", ["--targets", "--device cpu"]),
        ("--rounds 0", ["--rounds", "'0'", "at least 1"]),
    ],
)
def test_attention_refuses(options: str, named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(options.split())
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert all(part in message for part in named), message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_message_says_what_was_looked_for() -> None:
    done = run("attention.benchmark", "--device", "cuda", "--check")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert "--device cuda: found no GPU" in message
    assert "torch.cuda.is_available()" in message
    assert not done.stdout


@dataclasses.dataclass
class Result:
    """As attention.check's."""

    name: str
    dtype: str
    head_dim: int
    passed: bool
    errors: dict[str, float]
    bounds: dict[str, float]
    message: str


def test_the_check_of_a_kernel_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [
        Result(
            "causal",
            "float32",
            64,
            True,
            {"output": 1e-6, "query": 2e-6},
            {"output": 4e-6, "query": 4e-6},
            "",
        ),
        Result("documents", "bfloat16", 32, False, {}, {}, "did not compile"),
    ]
    seen: list[torch.device] = []

    def run_checks(device: torch.device, progress: Callable[[str], None]) -> list[Result]:
        seen.append(device)
        progress("checking")
        return results

    fake = types.SimpleNamespace(run=run_checks)
    monkeypatch.setitem(sys.modules, "attention.check", fake)  # type: ignore[arg-type]
    found = benchmark.check_kernel(CPU)
    printed, progress = capsys.readouterr()
    assert seen == [CPU]
    assert progress == "checking\n"
    assert "50%" in printed
    assert "FAILED: did not compile" in printed
    assert "1 of 2 checks passed" in printed
    assert [check["passed"] for check in json.loads(json.dumps(found))] == [True, False]


@pytest.mark.parametrize("passed", [True, False])
def test_a_report_of_a_gpu_holds_checks_and_one_section(
    passed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The command's way, with a GPU that is made up; its exit code says whether the kernel passed."""
    measured: list[tuple[str, list[int], bool]] = []

    def measure_nothing(options: argparse.Namespace, allocator: str, lengths: list[int]) -> dict[str, Any]:
        measured.append((options.device, lengths, options.targets))
        return {"rows": []}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(benchmark, "versions", lambda device: {"device": f"a made-up {device}"})
    monkeypatch.setattr(benchmark, "check_kernel", lambda device: [{"passed": passed}])
    monkeypatch.setattr(benchmark, "measure_section", measure_nothing)
    path = tmp_path / "report.json"
    assert benchmark.main(["--device", "cuda", "--check", "--json", str(path)]) == (0 if passed else 1)
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report == {
        "versions": {"device": "a made-up cuda"},
        "checks": [{"passed": passed}],
        "sections": [{"rows": []}],
    }
    assert measured == [("cuda", [512, 1024, 4096, 16384], False)]


def test_the_report_names_what_it_ran_on() -> None:
    assert benchmark.versions(CPU)["torch"] == torch.__version__


def test_other_dtypes_are_measured_the_same_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The path of a GPU as far as a CPU can go it: bfloat16, no tiles, several lengths."""
    few = {"SDPA over blocks": scaling.Method(peers.BlockedSDPA(16))}
    monkeypatch.setattr(scaling, "peers", lambda window, device: few)
    options = argparse.Namespace(device="cpu", dtype="bfloat16", threads=1, rounds=2, window=16, limit=100)
    options.targets = False
    section = benchmark.measure_section(options, "default", [32, 16])
    assert "bfloat16" in capsys.readouterr().out
    assert all(list(row["rates"]) == ["torch.mm"] for row in section["rows"])
    assert all(row["difference"] < 0.1 for row in section["rows"])
    assert [row["tokens"] for row in section["rows"]] == sorted(row["tokens"] for row in section["rows"])


# The other two.


def test_pipeline(tmp_path: Path) -> None:
    sizes = ["--vocabulary", "500", "--made-up"]
    sections = ["--quick", "--sections", "compare", "filters", "driver", "cost"]
    printed, found = measure_json("pipeline.benchmark", tmp_path, *sizes, *sections)
    rows = found["rows"]
    check_rows(printed, rows)
    assert len(rows) == 8
    assert found["bytes"] >= 100_000
    # Every method, in every round, had the same ids.
    assert len({digest for row in rows for digest in row["digests"]}) == 1
    assert len({row["ids"] for row in rows}) == 1
    assert rows[0]["ids"] > 10_000
    assert all(row["peak_bytes"] > 50_000_000 for row in rows)
    for row in rows[:3]:
        assert {"split", "encode", "tokenising", "pack"} <= row["parts"].keys()
    assert len(found["filters"]) > len(FILTERS)
    for row in found["filters"]:
        assert row["rate"] > 0
        assert any(line.startswith(row["method"]) for line in printed.splitlines())
    few, many = found["driver"]
    assert (few["units"], many["units"]) == (100, 1000)
    assert many["peak_bytes"] < few["peak_bytes"] + 20_000_000  # kept in memory, 900 units would be more
    assert [row["source"] for row in found["cost"]] == ["Books", "Wikipedia", "RealNews", "Stories"]
    assert all(hours > 0 for row in found["cost"] for hours in row["tokenising"].values())


@pytest.mark.skipif(sys.platform != "linux", reason="processes are followed as Linux does")
def test_pipeline_scaling(tmp_path: Path) -> None:
    sizes = ["--quick", "--vocabulary", "500", "--made-up", "--sections", "scaling"]
    printed, found = measure_json("pipeline.benchmark", tmp_path, *sizes)
    scaling = found["scaling"]
    assert list(scaling["rows"]) == ["--local", "Ray, one worker", "Ray, two workers"]
    for name, row in scaling["rows"].items():
        assert any(line.startswith(name) for line in printed.splitlines())
        assert row["peak_bytes"]["driver"] > 50_000_000
        assert (row["peak_bytes"].get("worker", 0) > 50_000_000) == (name != "--local")
        assert row["cpu"] > 0
    # Ray's workers and its own processes are counted.
    assert scaling["rows"]["Ray, one worker"]["cpu"] > scaling["rows"]["--local"]["cpu"] + 1
    assert scaling["machine"] > 0


def check_targets(printed: str, targets: list[dict[str, Any]], expected: list[float]) -> None:
    assert [target["target"] for target in targets] == expected
    for target in targets:
        assert (target["figure"] >= target["target"]) == (target["reached"] == target["at_least"])
        assert any(line.startswith(target["name"]) for line in printed.splitlines())


def test_trainer_steps(tmp_path: Path) -> None:
    sections = ["--quick", "--allocator", "tuned", "--sections", "step"]
    printed, found = measure_json("trainer.benchmark", tmp_path, *sections)
    [measured] = found["step"]["allocators"].values()
    rows = measured["rows"]
    check_rows(printed, rows)
    assert "2 layers of the base model's 12" in printed
    assert "MALLOC_MMAP_MAX_=0" in printed
    assert len(rows) == 3
    assert measured["agree"]
    ours = rows[0]["losses"]
    assert ours[-1] < ours[0]
    for row in rows[1:]:
        assert row["losses"] == pytest.approx(ours, rel=1e-4)
    check_targets(printed, found["targets"], [3])


def test_trainer_beside_its_steps(tmp_path: Path) -> None:
    sections = ["--quick", "--sections", "data", "start", "checkpoint"]
    printed, found = measure_json("trainer.benchmark", tmp_path, *sections)
    assert all(row["tokens_per_second"] > 0 for row in found["data"]["rows"])
    [start] = found["start"]["rows"]
    assert min(start.values()) > 0
    saved = found["checkpoint"]
    assert saved["bytes"] == 12 * sum(p.numel() for p in base_width_model(128, 16, 600).parameters())
    assert [row["method"] for row in saved["rows"]] == ["write and fsync", "save", "open and verify"]
    check_targets(printed, found["targets"], [3, 3])


def base_width_model(tokens: int, window: int, vocabulary: int) -> MaskedLanguageModel:
    with torch.device("meta"):
        return MaskedLanguageModel(step.Setting(2, tokens, window, vocabulary, 0).config())


def test_character_model(tmp_path: Path) -> None:
    printed, found = measure_json("trainer.benchmark.charlm", tmp_path, "--quick", "--precision", "bf16")
    measured = found["step"]["bf16"]
    check_rows(printed, measured["rows"])
    assert [row["method"] for row in measured["rows"]] == list(charlm_step.METHODS)
    assert measured["agree"]
    losses = {row["method"]: row["losses"][0] for row in measured["rows"]}
    assert losses[charlm_step.LOCAL] == pytest.approx(losses[charlm_step.OURS], rel=1e-3)
    assert [row["tokens"] for row in found["memory"]["rows"]] == [128, 256]
    evaluation = found["evaluation"]
    assert len(evaluation["seconds"]) == 2
    assert evaluation["extrapolated"] == pytest.approx(
        evaluation["median"] * evaluation["windows_of_text"]
    )  # of a text of 5,000,000 characters by steps of 16, whose first window is of 128
    assert evaluation["windows_of_text"] == 1 + math.ceil((5_000_000 - 1 - 128) / 16)
    assert [row["before"] for row in found["generation"]["rows"]] == [100, 200]
    assert found["generation"]["rows"][0]["cache_bytes"] == found["generation"]["rows"][1]["cache_bytes"] > 0
    check_targets(printed, found["targets"], [3, 1.5, 2.1, 3, 1.1])


def characters(tokens: int, lookback: tuple[int, ...]) -> charlm_step.Setting:
    return charlm_step.Setting(tokens, lookback, (1,) * len(lookback), width=32, heads=4)


@pytest.mark.parametrize("tokens", [16, 63, 130])
def test_attention_in_the_character_model_s_place_computes_the_same(tokens: int) -> None:
    apart = charlm_step.logits_apart(characters(tokens, (4, 8, 12)))
    assert apart[charlm_step.DENSE] > charlm_step.SAME_LOGITS
    assert all(value < 1e-4 for name, value in apart.items() if name != charlm_step.DENSE)


def test_attention_in_its_place_that_looks_further_back_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = charlm_step.local_attention
    monkeypatch.setattr(charlm_step, "local_attention", lambda lookback, back: exact(2 * lookback, back))
    with pytest.raises(RuntimeError, match=r"local-attention: logits .* expected at most"):
        charlm_step.logits_apart(characters(64, (4, 8)))


def test_fewer_layers_are_taken_from_the_bottom_to_the_top() -> None:
    assert charlm.small_model(3, 3) == ((64, 256, 1024), (1, 1, 4))
    lookback, dilation = charlm.small_model(5)
    assert len(lookback) == len(dilation) == charlm.LAYERS
    assert (lookback[0], lookback[-1]) == (256, 4096)


def test_a_method_has_the_allocator_asked_for_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    before = dict(os.environ)
    with alone.allocator_environment(ALLOCATORS["tuned"]):
        meanwhile = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    assert meanwhile == ALLOCATORS["tuned"]
    assert dict(os.environ) == before


def test_losses_that_differ_are_told() -> None:
    rows = [{"losses": [2.0, 1.0]}, {"losses": [2.0, 1.00005]}]
    assert same_losses(rows, step.LOSSES_AGREE)
    assert not same_losses([*rows, {"losses": [2.0, 1.001]}], step.LOSSES_AGREE)
