"""The configuration: what it fills in, and that it tells all its problems at once."""

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipeline
from pipeline.build_corpus import main
from pipeline.config import Config, load_config
from pipeline.decontaminate import Decontaminate
from pipeline.deduplicate import NearDuplicates
from pipeline.errors import ConfigError
from pipeline.filters import FILTERS, Length
from tests.pipeline.conftest import write_config

CONFIGS = sorted((Path(pipeline.__path__[0]) / "configs").glob("*.yaml"))


def test_defaults_of_the_kinds(small_config: dict[str, Any], tmp_path: Path) -> None:
    del small_config["sources"][2]["minimum_tokens"]
    config = load_config(write_config(tmp_path / "c.yaml", small_config)).config
    assert [source.name for source in config.sources] == ["books", "wikipedia", "realnews", "stories", "text"]
    assert [source.sample for source in config.sources] == [1, 1, Fraction(1, 3), Fraction(1, 3), 1]
    assert [source.minimum_tokens for source in config.sources] == [1, 1, 1201, 1, 1]


def test_all_problems_at_once(small_config: dict[str, Any], small_sources: Path, tmp_path: Path) -> None:
    small_config |= {"tokenizer": str(tmp_path / "absent.json"), "sequence_lenght": 128, "seed": "x"}
    small_config["sources"] = [
        {"kind": "books", "path": "nowhere"},
        {"kind": "news", "path": str(small_sources)},
        {"kind": "text", "path": str(small_sources / "own"), "sample": "2/1", "budgets": 3},
        {"kind": "text", "name": "terms", "path": str(small_sources / "own"), "terms": "read them"},
        {"kind": "text", "name": "none"},
        {"kind": "text", "name": "variable", "path": "$LONGSPAN_IS_NOT_SET/x"},
    ]
    small_config["filters"] = [{"name": "length", "minimum_byte": 3}, {"name": "symbols", "maximum": 2}]
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(tmp_path / "c.yaml", small_config))
    problems = {problem.split(": ")[0]: problem for problem in caught.value.problems}
    assert set(problems) == {
        "tokenizer",
        "sequence_lenght",
        "seed",
        "sources[0].path",
        "sources[1].kind",
        "sources[2].sample",
        "sources[2].budgets",
        "sources[3].accept_terms",
        "sources[4].path",
        "sources[5].path",
        "filters[0].minimum_byte",
        "filters[1].maximum",
    }
    assert "'sequence_length' was meant" in problems["sequence_lenght"]
    assert "'budget' was meant" in problems["sources[2].budgets"]
    assert "found 'x'" in problems["seed"]
    assert "'books', 'wikipedia'" in problems["sources[1].kind"]
    assert "found 'news'" in problems["sources[1].kind"]
    assert "no such file" in problems["sources[0].path"]
    assert "absolute path" in problems["sources[0].path"]
    assert "LONGSPAN_IS_NOT_SET is not set" in problems["sources[5].path"]
    assert "absent.json" in problems["tokenizer"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("- a", "expected keys and values"),
        ("", "expected keys and values"),
        (None, "cannot be read"),
    ],
)
def test_not_a_configuration(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    if text is not None:
        file.write_text(text)
    assert main(["--config", str(file), "--output", str(tmp_path / "out"), "--local"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_must_differ_and_filters_know_them(small_config: dict[str, Any], tmp_path: Path) -> None:
    small_config["sources"].append(small_config["sources"][0])
    with pytest.raises(ConfigError, match="2 of them have the name 'books'"):
        load_config(write_config(tmp_path / "c.yaml", small_config))
    small_config["sources"].pop()
    small_config["filters"] = [{"name": "length", "sources": ["book"]}]
    with pytest.raises(ConfigError, match="no source is named book"):
        load_config(write_config(tmp_path / "c.yaml", small_config))


def test_relative_paths_start_at_the_file(
    small_config: dict[str, Any], small_sources: Path, tmp_path: Path
) -> None:
    (tmp_path / "own").symlink_to(small_sources / "own")
    small_config["sources"] = [{"kind": "text", "path": ["own", "own/*.txt"]}]
    loaded = load_config(write_config(tmp_path / "c.yaml", small_config))
    assert [item.key for item in loaded.inputs[0]] == ["a.txt", "b.txt", "c.jsonl"]


def test_the_folder_of_the_file_is_no_pattern(
    small_config: dict[str, Any], small_sources: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus [1]"
    folder.mkdir()
    (folder / "own").symlink_to(small_sources / "own")
    small_config["sources"] = [{"kind": "text", "path": ["own/*.txt", str(small_sources / "own/*.jsonl")]}]
    loaded = load_config(write_config(folder / "c.yaml", small_config))
    assert [item.key for item in loaded.inputs[0]] == ["a.txt", "b.txt", "c.jsonl"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configurations_that_come_along(path: Path) -> None:
    data = yaml.safe_load(path.read_text())
    for source in data["sources"]:
        if source.get("terms"):
            assert source["accept_terms"] is False, "only its user can accept them"
            source["accept_terms"] = True
        assert path.stem == "text" or path.stem == "demo" or source["licence"]
    config = Config.model_validate(data)
    if path.stem == "longformer":
        assert [(s.kind, s.sample, s.minimum_tokens, s.budget) for s in config.sources] == [
            ("books", 1, 1, 500_000_000),
            ("wikipedia", 1, 1, None),
            ("realnews", Fraction(1, 3), 1201, None),
            ("stories", Fraction(1, 3), 1, None),
        ]


def test_what_text_yaml_shows_are_the_defaults() -> None:
    """Its commented-out filters and sections, put in force: nothing changes but that they are there."""
    path = next(path for path in CONFIGS if path.stem == "text")
    lines = path.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line == "filters:")
    last = next(i for i, line in enumerate(lines) if line.startswith("sequence_length"))
    shown = []
    for line in lines[first:last]:
        bare = line.replace("# ", "", 1) if line.lstrip().startswith("# ") else line
        if re.match(r" *(- )?[{\w]+:", bare) or bare.startswith("filters:"):
            shown.append(bare)
    shown = [
        line for line in shown if line not in ("decontaminate: null",) and not line.startswith("  near: null")
    ]
    data = yaml.safe_load("\n".join(shown))
    data["decontaminate"]["paths"] = "x"
    config = Config.model_validate(yaml.safe_load("\n".join(lines[:first])) | data)
    assert {item.name for item in config.filters} == set(FILTERS)
    for item in config.filters:
        assert item == (Length(minimum_bytes=200) if item.name == "length" else FILTERS[item.name]())
    assert config.deduplicate.near == NearDuplicates()
    assert config.decontaminate == Decontaminate(paths="x")
