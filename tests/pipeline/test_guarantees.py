"""What a build promises beyond its bytes: little work twice, near copies once, evaluation data out, documents whole."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.shards import open_corpus
from pipeline.stages.select import ranges
from pipeline.stages.split import SplitUnit
from pipeline.verify.__main__ import main as verify
from tests.pipeline.conftest import build, contents, words, write_jsonl, write_tar


def manifest_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "manifest.json").read_text())


def notes(work: Path) -> list[dict[str, Any]]:
    """The notes of all records of encode in a work folder."""
    records = sorted((work / "longspan-work/encode").rglob("*.json"))
    return [json.loads(record.read_text())["notes"] for record in records]


def names(output: Path, *splits: str) -> set[str]:
    """The documents of a corpus."""
    corpora = [open_corpus(output, split) for split in splits or ("train", "validation")]
    return {name for corpus in corpora for row in range(len(corpus)) for name in corpus.documents(row)}


def test_another_filter_tokenises_what_is_new_alone(small_config: dict[str, Any], tmp_path: Path) -> None:
    work = ["--work", str(tmp_path / "work"), "--keep-work"]
    strict = {**small_config, "filters": [{"name": "length", "minimum_bytes": 600}]}
    assert build(strict, tmp_path / "strict", *work) == 0
    before = notes(tmp_path / "work")
    assert sum(note["reused"] for note in before) == 0
    kept = sum(source["kept"]["documents"] for source in manifest_of(tmp_path / "strict")["sources"])
    assert build(small_config, tmp_path / "loose", *work) == 0
    after = notes(tmp_path / "work")
    tokenised = sum(note["tokenised"] for note in after) - sum(note["tokenised"] for note in before)
    reused = sum(note["reused"] for note in after)
    assert reused >= kept
    for note in after:  # what the report shows of lengths is of all documents
        assert sum(note["lengths"]) == note["tokenised"] + note["reused"]
    assert build(small_config, tmp_path / "reference", "--work", str(tmp_path / "w"), "--keep-work") == 0
    assert tokenised + reused == sum(note["tokenised"] for note in notes(tmp_path / "w"))
    assert contents(tmp_path / "loose") == contents(tmp_path / "reference")
    # Another seed changes every place, and tokenises nothing.
    assert build({**small_config, "seed": 9}, tmp_path / "seed", *work) == 0
    again = sum(note["tokenised"] for note in notes(tmp_path / "work"))
    sampled_anew = again - sum(note["tokenised"] for note in after)
    assert sampled_anew < sum(note["tokenised"] for note in after) // 4, "but for the third that is sampled"


def test_a_new_source_tokenises_itself_alone(small_config: dict[str, Any], tmp_path: Path) -> None:
    work = ["--work", str(tmp_path / "work"), "--keep-work"]
    fewer = {**small_config, "sources": small_config["sources"][:4]}
    assert build(fewer, tmp_path / "fewer", *work) == 0
    before = sum(note["tokenised"] for note in notes(tmp_path / "work"))
    assert build(small_config, tmp_path / "more", *work) == 0
    added = sum(note["tokenised"] for note in notes(tmp_path / "work")) - before
    assert added == 22


@pytest.fixture
def near_copies(tmp_path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Some texts, and two sources: the texts, and each with a few words changed."""
    generator = random.Random(5)
    texts = [words(generator, 400) for _ in range(12)]
    changed = []
    for text in texts:
        parts = text.split(" ")
        for place in generator.sample(range(len(parts)), 2):
            parts[place] = "geändert"
        changed.append(" ".join(parts))
    write_jsonl(tmp_path / "a.jsonl", [{"id": f"{i}", "text": text} for i, text in enumerate(texts)])
    write_jsonl(tmp_path / "b.jsonl", [{"id": f"{i}", "text": text} for i, text in enumerate(changed)])
    write_jsonl(tmp_path / "c.jsonl", [{"id": f"{i}", "text": words(generator, 400)} for i in range(8)])
    sources = [
        {"kind": "text", "name": "first", "path": str(tmp_path / "a.jsonl")},
        {"kind": "text", "name": "second", "path": [str(tmp_path / "b.jsonl"), str(tmp_path / "c.jsonl")]},
    ]
    return texts, sources


def test_near_copies_go_whatever_the_chunks(
    near_copies: tuple[list[str], list[dict[str, Any]]], small_tokenizer: Path, tmp_path: Path
) -> None:
    texts, sources = near_copies
    sources[1] = {**sources[1], "id_column": "none"}
    config = {
        "tokenizer": str(small_tokenizer),
        "sequence_length": 128,
        "sources": sources,
        "deduplicate": {"near": {"threshold": 0.8}},
    }
    assert build(config, tmp_path / "one") == 0
    first, second = manifest_of(tmp_path / "one")["sources"]
    assert first["kept"]["documents"] == len(texts), "the earlier source's stay"
    assert second["dropped"]["near_duplicate"]["documents"] == len(texts)
    assert second["kept"]["documents"] == 8
    assert build({**config, "chunk_bytes": 3000}, tmp_path / "two") == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    # Other settings sign and select anew, and tokenise nothing.
    work = ["--work", str(tmp_path / "work"), "--keep-work"]
    assert build({**config, "deduplicate": {}}, tmp_path / "none", *work) == 0
    assert len(names(tmp_path / "none")) == 2 * len(texts) + 8
    before = notes(tmp_path / "work")
    assert build(config, tmp_path / "three", *work) == 0
    assert notes(tmp_path / "work") == before
    assert contents(tmp_path / "three") == contents(tmp_path / "one")


@pytest.mark.parametrize("rows", [2, 5, 13])
def test_ranges_share_the_keys_whatever_bits_they_use(
    near_copies: tuple[list[str], list[dict[str, Any]]],
    rows: int,
    small_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, sources = near_copies
    near = {"threshold": 0.8, "rows": rows, "bands": 8}
    config = {"tokenizer": str(small_tokenizer), "sequence_length": 128, "deduplicate": {"near": near}}
    config["sources"] = [sources[0], {**sources[1], "id_column": "none"}]
    assert build(config, tmp_path / "one") == 0
    monkeypatch.setattr(ranges, "DOCUMENTS", 8)
    assert build(config, tmp_path / "many", "--work", str(tmp_path), "--keep-work") == 0
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    records = [json.loads(file.read_text()) for file in (tmp_path / "longspan-work/near").glob("*.json")]
    assert sum(record["facts"]["pairs"] > 0 for record in records) > near["bands"], "of several ranges a band"


def test_evaluation_data_stay_out(
    near_copies: tuple[list[str], list[dict[str, Any]]],
    small_tokenizer: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts, sources = near_copies
    question = " ".join(texts[3].split()[40:70]).upper()
    write_jsonl(tmp_path / "evaluation.jsonl", [{"question": question, "answer": "short"}])
    config = {
        "tokenizer": str(small_tokenizer),
        "sequence_length": 128,
        "sources": sources[:1],
        "decontaminate": {"paths": str(tmp_path / "evaluation.jsonl")},
    }
    assert build(config, tmp_path / "corpus") == 0
    assert names(tmp_path / "corpus") == {f"first/{i}" for i in range(len(texts)) if i != 3}
    [source] = manifest_of(tmp_path / "corpus")["sources"]
    assert source["dropped"] == {"contaminated": {"documents": 1}}
    # A changed evaluation file is another corpus.
    write_jsonl(tmp_path / "evaluation.jsonl", [{"question": "something else altogether"}])
    assert build(config, tmp_path / "corpus") == 2
    assert "evaluation.jsonl" in capsys.readouterr().err


def test_best_fit_keeps_documents_whole(small_config: dict[str, Any], tmp_path: Path) -> None:
    fitted = {**small_config, "packing": "best_fit", "sequence_length": 512}
    assert build(fitted, tmp_path / "corpus") == 0
    assert verify([str(tmp_path / "corpus")]) == 0
    manifest = manifest_of(tmp_path / "corpus")
    assert manifest["packing"] == "best_fit"
    for split in manifest["splits"].values():
        assert split["documents_cut_needlessly"] == 0
    assert manifest["splits"]["train"]["documents_cut"] > 0, "of those longer than a sequence"
    assert build({**fitted, "chunk_bytes": 1_000_000}, tmp_path / "large") == 0
    assert contents(tmp_path / "large") == contents(tmp_path / "corpus")
    assert build({**fitted, "packing": "concatenate"}, tmp_path / "joined") == 0
    assert names(tmp_path / "joined") == names(tmp_path / "corpus")
    joined = manifest_of(tmp_path / "joined")["splits"]["train"]
    assert joined["documents_cut_needlessly"] > 0
    assert joined["sequences"] <= manifest["splits"]["train"]["sequences"]


def test_a_document_longer_than_shards_leaves_none_empty(small_tokenizer: Path, tmp_path: Path) -> None:
    generator = random.Random(6)
    rows = [{"id": "long", "text": words(generator, 3000)}]
    rows += [{"id": f"{i}", "text": words(generator, 20)} for i in range(30)]
    config = {
        "tokenizer": str(small_tokenizer),
        "sequence_length": 64,
        "shard_sequences": 8,
        "validation_fraction": 0,
        "packing": "best_fit",
        "sources": [{"kind": "text", "path": str(write_jsonl(tmp_path / "a.jsonl", rows))}],
    }
    assert build(config, tmp_path / "corpus") == 0
    shards = manifest_of(tmp_path / "corpus")["splits"]["train"]["shards"]
    assert max(shard["sequences"] for shard in shards) > 50
    assert all(shard["sequences"] for shard in shards)
    files = [path.relative_to(tmp_path / "corpus") for path in (tmp_path / "corpus/train").iterdir()]
    assert sorted(str(file) for file in files) == [shard["path"] for shard in shards]
    assert verify([str(tmp_path / "corpus")]) == 0
    assert names(tmp_path / "corpus") == {f"text/{row['id']}" for row in rows}


def test_a_killed_split_goes_on_inside_its_archive(
    built: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, reference = built
    cut = SplitUnit._cut

    def interrupted(unit: SplitUnit, *arguments: Any) -> Iterator[Any]:
        for number, sealed in enumerate(cut(unit, *arguments)):
            yield sealed
            if number == 1:
                raise KeyboardInterrupt

    config = {**config, "chunk_bytes": 4000}
    monkeypatch.setattr(SplitUnit, "_cut", interrupted)
    assert build(config, tmp_path / "corpus") == 130
    monkeypatch.undo()
    resumed = []
    run = SplitUnit.run

    def watched(unit: SplitUnit, *arguments: Any) -> Any:
        record = run(unit, *arguments)
        resumed.append(record.notes.get("chunks_of_an_earlier_run"))
        return record

    monkeypatch.setattr(SplitUnit, "run", watched)
    assert build(config, tmp_path / "corpus") == 0
    assert 2 in resumed
    assert contents(tmp_path / "corpus") == contents(reference)


def test_a_source_of_which_nothing_is_left_is_named(
    small_config: dict[str, Any], small_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "news.tar", {"a.txt": b"a text, which news are not read from"})
    write_jsonl(tmp_path / "short.jsonl", [{"text": "short"}, {"title": "no text"}])
    small_config["sources"] = [
        small_config["sources"][0],
        {"kind": "realnews", "path": str(tmp_path / "news.tar")},
        {"kind": "text", "path": str(tmp_path / "short.jsonl")},
    ]
    assert build(small_config, tmp_path / "corpus") == 0
    printed = capsys.readouterr().out
    assert "realnews is in it: its files hold no document that a source of kind realnews reads" in printed
    assert "text is in it: 1 no_text, 1 too_few_bytes" in printed
    assert verify([str(tmp_path / "corpus")]) == 0
