"""Model cards: what the hub reads, what a person reads, and that nothing foreign gets out of its place."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from demo.sources import train_tokenizer
from pipeline.shards import read_manifest
from tests.corpora import made_up_documents
from tests.trainer.launcher import NEW_MODEL, run_config
from tests.trainer.models import roberta_folder
from trainer.convert import convert
from trainer.engine.checkpoint import save_checkpoint
from trainer.engine.config import Pretraining, load_config
from trainer.export import main as export
from trainer.model.card import trained_card
from trainer.model.folder import MODEL_FILES, config_json
from trainer.model.heads import MaskedLanguageModel
from trainer.model.longformer import EncoderConfig
from trainer.model.provenance import ABOUT, LONGEST, POINTS, SOURCES, corpus_facts, run_facts


def small(**changes: object) -> EncoderConfig:
    sizes = {
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 130,
        "attention_window": [16, 16],
    }
    return EncoderConfig("longformer", **(sizes | changes))  # type: ignore[arg-type]


def metrics(path: Path, steps: int) -> Path:
    rows = [
        {"step": step, "loss": 5 - step / 100, "bpc": 7 - step / 100, "learning_rate": 1e-3, "grad_norm": 1.0,
         "epoch": 0.1, "tokens_per_second": 12.5}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    scores = [{"step": step, "validation_bpc": 6.5} for step in (10, 20)]
    path.write_text("\n".join(json.dumps(row) for row in [*rows, *scores]) + '\n{"step": 9')
    return path


def checkpoint(folder: Path, corpus: Path, config: EncoderConfig, step: int = 20) -> Path:
    """A checkpoint as a run writes it, of a model that was not trained."""
    torch.manual_seed(0)
    weights = dict(MaskedLanguageModel(config).named_parameters())
    run = load_config(run_config(folder, corpus, "run", steps=40), [], Pretraining)
    facts = {
        "config": run.exact(),
        "model": config.as_dict(),
        "corpus": "f" * 64,
    }
    about = run_facts(metrics(folder / "metrics.jsonl", step), corpus_facts(read_manifest(corpus)))
    extra = {
        "config.json": json.dumps(config_json(config)),
        "tokenizer.json": (corpus / "tokenizer.json").read_text(),
        ABOUT: json.dumps(about),
    }
    tensors = {name: tensor.detach() for name, tensor in weights.items()}
    state = dict.fromkeys(("weights", "exp_avg", "exp_avg_sq"), tensors)
    return save_checkpoint(folder / "checkpoints", step, state, facts, extra)


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)\n```$", card, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("card")
    saved = checkpoint(folder, corpus, small(base_model=f"owner/tiny@{'b' * 40}"))
    for _ in range(2):  # the second replaces the first, card and all
        assert export(["--checkpoint", str(saved), "--to", str(folder / "export")]) == 0
    assert {file.name for file in (folder / "export").iterdir()} <= set(MODEL_FILES)
    return folder / "export"


def test_the_front_matter_is_what_the_hub_reads(exported: Path) -> None:
    data = ModelCard.load(exported / "README.md").data.to_dict()
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "base_model": "owner/tiny",
        "tags": ["longformer", "long-documents", "longspan"],
    }


def test_the_figures_are_the_runs(exported: Path, corpus: Path) -> None:
    card = (exported / "README.md").read_text()
    assert "| updates | 20 of 40 |" in card
    assert "| batch | 4 sequences of 128 tokens |" in card
    assert f"| tokens | {20 * 4 * 128:,} |" in card
    assert "| 1 | 6.9900 | 0.001 |" in card  # the first logged update
    assert "| 20 | 6.8000 | 0.001 |" in card  # and the last
    assert "| 20 | 6.5000 |" in card
    source = read_manifest(corpus)["sources"][0]
    kept = source["kept"]
    assert f"| {source['name']} | text | {kept['documents']:,} | {kept['tokens']:,} | not stated |" in card
    assert read_manifest(corpus)["fingerprint"] in card
    assert str(corpus) not in card
    assert str(exported.parent) not in card
    parameters = sum(p.numel() for p in MaskedLanguageModel(small()).parameters()) + 2 * 3 * (32 * 32 + 32)
    assert f"| parameters | {parameters:,} |" in card


def test_its_python_runs_as_it_is(exported: Path) -> None:
    [code] = blocks((exported / "README.md").read_text(), "python")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=exported, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(ast.literal_eval(done.stdout.splitlines()[-1])) == 5


def test_its_command_and_configuration_start_the_same_run(
    exported: Path, corpus: Path, tmp_path: Path
) -> None:
    card = (exported / "README.md").read_text()
    [command], [settings] = blocks(card, "sh"), blocks(card, "yaml")
    assert command == "deepspeed trainer/pretrain.py --config config.yaml --run RUN --corpus CORPUS"
    (tmp_path / "config.yaml").write_text(settings)
    again = load_config(tmp_path / "config.yaml", [("run", "RUN"), ("corpus", str(corpus))], Pretraining)
    first = load_config(run_config(tmp_path, corpus, "run", steps=40), [], Pretraining)
    assert again.exact() == first.exact()
    # A model that was continued is no key of the run's: the command names it.
    state = {"step": 3, "config": {key: value for key, value in again.exact().items() if key != "model"}}
    [command] = blocks(trained_card(small(base_model="owner/tiny@abc"), 9, state, {}, True), "sh")
    assert command.endswith("--model owner/tiny@abc")
    [command] = blocks(trained_card(small(), 9, state, {}, True), "sh")
    assert command.endswith("--model MODEL")
    converted = small(base_model="owner/tiny@abc", original_max_position_embeddings=34)
    [commands] = blocks(trained_card(converted, 9, state, {}, True), "sh")
    convert_, pretrain = commands.splitlines()
    assert convert_.endswith(
        "--from owner/tiny@abc --to MODEL --as longformer --max-positions 128 --window 16"
    )
    assert pretrain.endswith("--model MODEL")


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        ([], {}),
        (["", ""], {}),
        (["CC BY-SA 3.0"], {"license": "cc-by-sa-3.0"}),
        (["CC BY-SA 3.0", "cc-by-sa-3.0"], {"license": "cc-by-sa-3.0"}),
        (["CC BY-SA 3.0", ""], {"license": "other", "license_name": "see-the-corpus-sources"}),
        (["CC BY-SA 3.0 and GFDL"], {"license": "other", "license_name": "see-the-corpus-sources"}),
        (["MIT", "CC BY 4.0"], {"license": "other", "license_name": "see-the-corpus-sources"}),
        (["mit\n---\nbase_model: x"], {"license": "other", "license_name": "see-the-corpus-sources"}),
    ],
)
def test_the_licence_is_the_sources_where_they_agree(
    licences: list[str], expected: dict[str, str], corpus: Path
) -> None:
    manifest = read_manifest(corpus)
    [source] = manifest["sources"]
    manifest["sources"] = [{**source, "licence": licence} for licence in licences]
    about = {"corpus": corpus_facts(manifest)}
    data = ModelCard(trained_card(small(), 1, {"step": 1}, about, True)).data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == expected


def test_foreign_names_stay_in_their_cells(corpus: Path, tmp_path: Path) -> None:
    hostile = "a|b`c`<script>alert(1)</script>\n---\n# [x](http://evil) ~~~ ![](y) @all " + "long " * 200
    manifest = read_manifest(corpus)
    [source] = manifest["sources"]
    foreign = {**source, "name": hostile, "licence": hostile, "terms": hostile}
    manifest["sources"] = [foreign] * (SOURCES + 25)
    facts = run_facts(metrics(tmp_path / "metrics.jsonl", 900), corpus_facts(manifest))
    assert len(facts["course"]) == POINTS
    assert [facts["course"][0]["step"], facts["course"][-1]["step"]] == [1, 900]
    settings = {"steps": 900, "deepspeed": {"note": hostile + "\n```\n# not a heading"}}
    card = trained_card(small(), 1, {"step": 900, "config": settings}, facts, True)
    assert len(card) < 120_000
    assert len(json.dumps(facts)) < 120_000
    assert yaml.safe_load(card.split("---\n")[1]).keys() == {
        "library_name", "pipeline_tag", "license", "license_name", "tags"
    }  # fmt: skip
    rows = [line for line in card.splitlines() if "script" in line and line.startswith("|")]
    assert len(rows) == SOURCES
    assert "25 more sources" in card
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 7  # six cells
        assert not re.search(r"(?<!\\)[<`\[!@]", row)
        assert len(row) < 8 * LONGEST
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert [line for line in headings if "evil" in line] == []
    # The configuration's own ``` does not end its block.
    fence = re.search(r"^(`{4,})yaml$", card, flags=re.MULTILINE)
    assert fence is not None
    body = card.split(fence[0], 1)[1].split(f"\n{fence[1]}\n", 1)[0]
    assert yaml.safe_load(body)["deepspeed"]["note"].endswith("# not a heading")


def test_a_checkpoint_that_says_little_gets_a_card_all_the_same(tmp_path: Path) -> None:
    card = trained_card(small(), 1, {"step": 5}, {}, has_tokenizer=False)
    assert ModelCard(card).data.pipeline_tag == "fill-mask"
    assert "The checkpoint does not say." in card


@pytest.mark.parametrize(
    ("facts", "about"),
    [
        ({}, {"course": [{}]}),
        ({}, {"course": [{"step": "x", "bpc": "y", "learning_rate": []}]}),
        ({}, {"corpus": {"sources": [{}]}}),
        ({}, {"corpus": "x"}),
        ({}, {"versions": []}),
        ({"config": {"optimizer": {"x": 1}}}, {}),
        ({"config": {"steps": "x"}}, {}),
    ],
)
def test_facts_of_another_shape_are_one_message(
    facts: dict[str, object],
    about: dict[str, object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = {name: tensor.detach() for name, tensor in MaskedLanguageModel(small()).named_parameters()}
    state = {"weights": weights, "exp_avg": {}, "exp_avg_sq": {}}
    files = {"config.json": json.dumps(config_json(small())), ABOUT: json.dumps(about)}
    checkpoint = save_checkpoint(tmp_path / "run", 1, state, facts, files)
    assert export(["--checkpoint", str(checkpoint), "--to", str(tmp_path / "to")]) == 2
    assert "state.json or about.json: not as a training writes them" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def test_weights_of_other_sizes_than_the_configuration_are_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {name: tensor.detach() for name, tensor in MaskedLanguageModel(small()).named_parameters()}
    state = {"weights": weights, "exp_avg": {}, "exp_avg_sq": {}}
    files = {"config.json": json.dumps(config_json(small(intermediate_size=32)))}
    checkpoint = save_checkpoint(tmp_path / "run", 1, state, {}, files)
    assert export(["--checkpoint", str(checkpoint), "--to", str(tmp_path / "to")]) == 2
    assert "intermediate.dense.bias: found [64], expected [32]" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def test_a_converted_models_card(tmp_path: Path, corpus: Path) -> None:
    source = roberta_folder(tmp_path / "source", tokens=16, vocab_size=300)
    train_tokenizer(made_up_documents(20), 300, source / "tokenizer.json")
    convert(source, tmp_path / "long", tokens=64, window=8)
    card = ModelCard.load(tmp_path / "long" / "README.md")
    assert card.data.to_dict()["tags"][0] == "longformer"
    assert "A Longformer made from a roberta for 16 tokens by conversion, and not trained since." in card.text
    [code] = blocks(card.content, "python")
    compile(code, "card", "exec")
    assert str(tmp_path) not in card.content


def test_the_hubs_own_reader_finds_no_difference(exported: Path) -> None:
    """What is read and written again is the same: no key is lost, no type changed."""
    content = (exported / "README.md").read_text()
    card = ModelCard(content)
    assert yaml.safe_load(str(card).split("---\n")[1]) == yaml.safe_load(content.split("---\n")[1])


def test_new_models_of_a_run_have_no_base(tmp_path: Path) -> None:
    assert NEW_MODEL["architecture"] == "longformer"
    assert "base_model" not in config_json(small())
    assert config_json(small(base_model="a/b@c"))["base_model"] == "a/b@c"
