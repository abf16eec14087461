"""RoBERTa to Longformer and back, by the command."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LongformerForMaskedLM, RobertaForMaskedLM

from tests.trainer.models import padded_batch, roberta_folder
from trainer.convert import main
from trainer.export import main as export

POSITIONS = "embeddings.position_embeddings.weight"


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roberta_folder(tmp_path_factory.mktemp("models") / "roberta", tokens=32)


def run(source: Path, to: Path, *flags: str) -> int:
    return main(["--from", str(source), "--to", str(to), *flags])


def test_positions_are_tiled_and_the_last_copy_cut(roberta: Path, tmp_path: Path) -> None:
    assert run(roberta, tmp_path / "long", "--max-positions", "80", "--window", "16") == 0
    table = load_file(roberta / "model.safetensors")["roberta." + POSITIONS]
    tiled = load_file(tmp_path / "long" / "model.safetensors")["longformer." + POSITIONS]
    assert tiled.shape[0] == 82
    assert torch.equal(tiled[:2], table[:2])  # rows that are no positions keep their values
    for row in range(80):
        assert torch.equal(tiled[2 + row], table[2 + row % 32])


def test_transformers_loads_it_whole_with_global_projections_copied(roberta: Path, tmp_path: Path) -> None:
    run(roberta, tmp_path / "long", "--max-positions", "64", "--window", "8")
    model, info = LongformerForMaskedLM.from_pretrained(tmp_path / "long", output_loading_info=True)
    assert not any(info.values())
    assert model.config.attention_window == [8, 8]
    assert model.config.max_position_embeddings == 66
    attention = model.longformer.encoder.layer[1].attention.self
    for part in ("query", "key", "value"):
        local, added = getattr(attention, part), getattr(attention, f"{part}_global")
        assert torch.equal(local.weight, added.weight)
        assert torch.equal(local.bias, added.bias)


def test_back_to_roberta_gives_the_same_logits(roberta: Path, tmp_path: Path) -> None:
    run(roberta, tmp_path / "long", "--max-positions", "80", "--window", "16")
    assert run(tmp_path / "long", tmp_path / "short") == 0
    model, info = RobertaForMaskedLM.from_pretrained(tmp_path / "short", output_loading_info=True)
    assert not any(info.values())
    ids, mask = padded_batch(2, 32)
    with torch.no_grad():
        found = model.eval()(ids, attention_mask=mask).logits
        expected = RobertaForMaskedLM.from_pretrained(roberta).eval()(ids, attention_mask=mask).logits
    assert torch.equal(found, expected)


def test_without_copying_only_the_new_rows_are_random(roberta: Path, tmp_path: Path) -> None:
    flags = ("--max-positions", "80", "--window", "16", "--no-copy-positions")
    for name in ("one", "two"):
        run(roberta, tmp_path / name, *flags)
    table = load_file(roberta / "model.safetensors")["roberta." + POSITIONS]
    one, two = (
        load_file(tmp_path / n / "model.safetensors")["longformer." + POSITIONS] for n in ("one", "two")
    )
    assert torch.equal(one[:34], table)
    assert torch.equal(one, two)  # the same seed draws the same rows
    assert one[34:].std() == pytest.approx(0.2, rel=0.1)  # the model's initializer_range


@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_model_bin_is_read_as_plain_weights_only(roberta: Path, tmp_path: Path, zipped: bool) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text((roberta / "config.json").read_text())
    weights = load_file(roberta / "model.safetensors")
    # Older files carry the prefix-free buffer and the decoder's own bias.
    weights["lm_head.decoder.bias"] = weights.pop("lm_head.bias")
    weights["roberta.embeddings.position_ids"] = torch.arange(34)[None]
    torch.save(weights, old / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert run(old, tmp_path / "from_bin", "--max-positions", "64", "--window", "8") == 0
    assert run(roberta, tmp_path / "from_safe", "--max-positions", "64", "--window", "8") == 0
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("from_bin", "from_safe"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.path,))


def test_a_pickle_that_runs_code_is_refused(
    roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "config.json").write_text((roberta / "config.json").read_text())
    (evil / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil(tmp_path / "touched")))
    assert run(evil, tmp_path / "out") == 2
    assert "not loadable as plain weights" in capsys.readouterr().err
    assert not (tmp_path / "touched").exists()
    assert not (tmp_path / "out").exists()


def test_an_untied_decoder_is_refused_rather_than_dropped(
    roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untied = roberta_folder(tmp_path / "untied", tie_word_embeddings=False)
    assert run(untied, tmp_path / "out") == 2
    assert "expected them to be tied" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", "48"), ("num_attention_heads", 0), ("pad_token_id", -1), ("vocab_size", None)],
)
def test_a_configuration_of_odd_values(
    tmp_path: Path, key: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = roberta_folder(tmp_path / "odd")
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**config, key: value}))
    assert run(odd, tmp_path / "out") == 2
    assert f"config.json: {key}" in capsys.readouterr().err


def test_sharded_weights_are_read_and_a_missing_shard_is_named(
    roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sharded = tmp_path / "sharded"
    RobertaForMaskedLM.from_pretrained(roberta).save_pretrained(sharded, max_shard_size="20KB")
    shards = sorted(sharded.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert run(sharded, tmp_path / "one", "--max-positions", "64") == 0
    shards[1].unlink()
    assert run(sharded, tmp_path / "two", "--max-positions", "64") == 2
    assert f"{shards[1]}: not there" in capsys.readouterr().err


def test_sharded_pickles_are_read(roberta: Path, tmp_path: Path) -> None:
    weights = load_file(roberta / "model.safetensors")
    names = sorted(weights)
    files = {name: f"pytorch_model-0000{1 + (i > 9)}-of-00002.bin" for i, name in enumerate(names)}
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    shutil.copy(roberta / "config.json", sharded)
    (sharded / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    for file in set(files.values()):
        torch.save({name: weights[name] for name in names if files[name] == file}, sharded / file)
    assert run(sharded, tmp_path / "one", "--max-positions", "64") == 0
    assert run(roberta, tmp_path / "two", "--max-positions", "64") == 0
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_an_index_may_not_name_files_elsewhere(
    roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    shutil.copy(roberta / "config.json", hostile)
    for name in (f"../{roberta.name}/model.safetensors", str(roberta / "model.safetensors"), "config.json"):
        index = {"weight_map": {"lm_head.bias": name}}
        (hostile / "model.safetensors.index.json").write_text(json.dumps(index))
        assert run(hostile, tmp_path / "out") == 2
        assert f"weight_map: found {name!r}, expected .safetensors files" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_links_are_followed_as_the_hubs_cache_needs(roberta: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in roberta.iterdir():
        (linked / file.name).symlink_to(file)
    assert run(linked, tmp_path / "out", "--max-positions", "64") == 0
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())


def test_files_that_hold_something_else(
    roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(roberta / "model.safetensors")
    words = "roberta.embeddings.word_embeddings.weight"
    query = "roberta.encoder.layer.0.attention.self.query"
    few = torch.ones(1).expand(weights[words].shape)  # one number, given out as many
    cases: list[tuple[object, str]] = [
        ([1, 2], "found a list, expected tensors by name"),
        ({**weights, "steps": 3}, "'steps': found a int, expected a tensor"),
        ({**weights, words: few}, "that is not stored"),
        ({**weights, words: weights[words].to(torch.int8)}, f"{words}: found torch.int8"),
        ({**weights, words.removeprefix("roberta."): weights[words]}, "found both"),
        ({**weights, f"{query}_global.weight": weights[f"{query}.weight"]}, "a roberta has no such weights"),
        ({**weights, "lm_head.decoder.bias": weights["lm_head.bias"] + 1}, "expected them to be tied"),
        ({name: t for name, t in weights.items() if "layer.1." not in name}, "the weights have 1 layers"),
        ({name: t for name, t in weights.items() if "lm_head.dense" not in name}, "dense.bias: not there"),
        (
            {**weights, "roberta.pooler.dense.bias": torch.zeros(5)},
            "pooler.dense.bias: found [5], expected [48]",
        ),
        ({**weights, "roberta.pooler.more": torch.zeros(5)}, "pooler.more: found, and a roberta has no such"),
        ({}, "the weights have 0 layers"),
    ]
    for number, (content, message) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(roberta / "config.json", folder)
        torch.save(content, folder / "pytorch_model.bin")
        assert run(folder, tmp_path / "out") == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "{", "[]", '{"model_type": "bert", "model_type": 3}', "\xff"]
)
def test_a_config_that_is_none(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_bytes(text.encode("latin-1"))
    assert run(tmp_path / "odd", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith(f"convert: {tmp_path / 'odd' / 'config.json'}: ")


def test_what_a_killed_conversion_left_is_removed_by_the_next(roberta: Path, tmp_path: Path) -> None:
    host = os.uname().nodename
    # Process 1 runs; there is none of a number beyond Linux's largest.
    theirs = {f".out.{host}.1.partial", f".outside.{host}.4194399.partial", ".out.elsewhere.4194399.partial"}
    for name in {*theirs, f".out.{host}.4194399.partial", f".out.{host}.4194399.previous"}:
        (tmp_path / name).mkdir()
    assert run(roberta, tmp_path / "out", "--max-positions", "64") == 0
    assert {path.name for path in tmp_path.iterdir()} == {*theirs, "out"}


def test_a_checkpoint_is_no_model_and_says_what_makes_one(
    roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    shutil.copy(roberta / "config.json", folder)
    (folder / "weights.safetensors").touch()
    assert run(folder, tmp_path / "out") == 2
    assert "a checkpoint: trainer.export makes a model of it" in capsys.readouterr().err


@pytest.mark.parametrize("command", [main, export])
def test_help_says_what_comes_out(
    command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(["--help"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "that `transformers" in said
    assert "`*_global` projections" in said
    assert "the folder to write: new, empty or a model's" in said


@pytest.mark.parametrize("option", ["--max-positions", "--window"])
def test_a_longformer_s_options_are_not_ignored_where_a_roberta_is_made(
    roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    long, to = str(tmp_path / "long"), tmp_path / "longer"
    assert main(["--from", str(roberta), "--to", long, "--max-positions", "64", "--window", "8"]) == 0
    assert main(["--from", long, "--to", str(to), option, "128"]) == 2
    assert f"{option}: found, but a RoBERTa is what is made of " in capsys.readouterr().err
    assert not to.exists()
    assert main(["--from", long, "--to", str(to), option, "128", "--as", "longformer"]) == 0


def test_a_model_is_replaced_also_behind_a_link(roberta: Path, tmp_path: Path) -> None:
    run(roberta, tmp_path / "real", "--max-positions", "64", "--window", "8")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert run(roberta, tmp_path / "link", "--max-positions", "64", "--window", "16") == 0
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "real" / "config.json").read_text())["attention_window"] == [16, 16]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_bad_input_is_one_message_and_exit_2(
    roberta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    other = tmp_path / "gpt"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    cases = [
        ((roberta, precious), "precious: holds something else"),
        ((tmp_path / "none" / "at all" / "here", tmp_path / "out"), "no such folder"),
        ((tmp_path / "empty", tmp_path / "out"), "found no config.json"),
        (
            (other, tmp_path / "out"),
            "model_type: found 'gpt2', expected one of roberta, camembert, xlm-roberta",
        ),
        ((roberta, tmp_path / "out", "--window", "7"), "--window: found 7, expected an even number"),
        ((roberta, tmp_path / "out", "--window", "0"), "--window: found 0, expected an even number >= 2"),
        ((roberta, roberta), "the folder of --from; expected another"),
        ((roberta, precious / "thesis.txt" / "out"), "File exists"),
        (
            (roberta, tmp_path / "out", "--max-positions", "16"),
            "--max-positions: found 16, expected at least",
        ),
    ]
    for arguments, message in cases:
        assert run(*arguments) == 2  # type: ignore[arg-type]
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "gpt", "precious"]
    assert [path.name for path in precious.iterdir()] == ["thesis.txt"]
