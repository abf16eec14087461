"""Whole builds of small sources, in this process: what comes out, what stays out, and what is refused."""

import json
import random
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import load_dataset

from pipeline.build_corpus import main
from pipeline.decisions import decision_hash, threshold
from pipeline.documents import Document
from pipeline.fetch import find_inputs
from pipeline.shards import Corpus, open_corpus
from pipeline.sources import SOURCES
from pipeline.sources.formats import accepts
from pipeline.sources.reading import read_documents
from pipeline.stages import split as splitting
from pipeline.stages.select.catalogue import read_catalogue
from pipeline.stages.select.keep import KeepUnit
from pipeline.storage import LocalStorage, Lock, Stores
from pipeline.tokenizer import load_tokenizer
from pipeline.units import Record
from tests.pipeline.conftest import build, command, contents, words, write_config, write_jsonl, write_tar


def documents_of(config: dict[str, Any]) -> dict[str, str]:
    """Every readable document of a configuration by id, read without the pipeline's stages."""
    found = {}
    for entry in config["sources"]:
        kind = SOURCES[entry["kind"]]
        for item in find_inputs([entry["path"]], lambda name, kind=kind: accepts(kind, name)):
            for document, _ in read_documents(kind(), item):
                if isinstance(document, Document):
                    found[f"{entry['kind']}/{document.id}"] = kind().clean(document.text)
    return found


def pieces(corpus: Corpus) -> list[tuple[str, str, int, list[int]]]:
    """(document, source, offset, tokens) of every piece, in order; without `<s>`, `</s>` and `<pad>`."""
    wrap = {corpus.special_ids[role] for role in ("bos", "eos", "pad")}
    found = []
    for index in range(len(corpus)):
        ids = corpus.input_ids(index).tolist()
        starts = corpus.document_starts(index).tolist()
        for piece, (left, right) in enumerate(zip(starts, [*starts[1:], len(ids)], strict=True)):
            tokens = [token for token in ids[left:right] if token not in wrap]
            place = int(corpus.document_offsets(index)[piece])
            found.append((corpus.documents(index)[piece], corpus.sources(index)[piece], place, tokens))
    return found


def test_every_piece_is_in_its_document_at_its_offset(built: tuple[dict[str, Any], Path]) -> None:
    config, output = built
    texts = documents_of(config)
    tokenizer = load_tokenizer(output)
    manifest = json.loads((output / "manifest.json").read_text())
    seen: dict[str, set[str]] = {}
    for split in ("train", "validation"):
        corpus = open_corpus(output, split, verify=True)
        whole: dict[str, list[int]] = {}
        order = []
        for document, source, offset, tokens in pieces(corpus):
            assert document.startswith(f"{source}/")
            assert offset == len(whole.setdefault(document, []))
            if offset == 0:
                order.append(decision_hash("order", 3, document))
            whole[document] += tokens
        assert whole
        assert order == sorted(order)
        for document, ids in whole.items():
            assert tokenizer.encode_batch([texts[document]]) == [ids], document
        seen[split] = set(whole)
        tally = manifest["splits"][split]
        assert tally["tokens"] == sum(map(len, whole.values()))
        assert tally["sequences"] == len(corpus) == sum(s["sequences"] for s in tally["shards"])
    assert len(manifest["splits"]["train"]["shards"]) > 1
    assert not seen["train"] & seen["validation"]
    kept = sum(source["kept"]["documents"] for source in manifest["sources"])
    assert len(seen["train"] | seen["validation"]) == kept


def test_every_document_is_accounted_for(built: tuple[dict[str, Any], Path]) -> None:
    config, output = built
    sources = {s["name"]: s for s in json.loads((output / "manifest.json").read_text())["sources"]}
    assert {name: source["read"] for name, source in sources.items()} == {
        "books": 5,
        "wikipedia": 64,
        "realnews": 80,
        "stories": 60,
        "text": 22,
    }
    assert sources["wikipedia"]["quarantined"] == {"invalid_json": 1, "invalid_utf8": 1, "no_text": 1}
    assert sources["wikipedia"]["dropped"]["empty"] == {"documents": 1}
    assert sources["wikipedia"]["dropped"]["too_few_bytes"]["documents"] > 0
    assert sources["text"]["dropped"]["duplicate_text"]["documents"] == 1, "the same but for case and space"
    texts = documents_of(config)
    tokenizer = load_tokenizer(output)
    news = [name for name in texts if name.startswith("realnews/")]
    long = {name for name in news if len(tokenizer.encode_batch([texts[name]])[0]) > 300}
    sampled = {
        name for name in news if decision_hash("sample", 3, name) < threshold(SOURCES["realnews"].sample)
    }
    assert 0 < sources["realnews"]["kept"]["documents"] == len(long & sampled) < len(long)
    for source in sources.values():
        lost = sum(source["quarantined"].values()) + sum(d["documents"] for d in source["dropped"].values())
        assert source["read"] == source["kept"]["documents"] + lost
        assert sum(source["length_histogram"]) == source["kept"]["documents"]
    lines = (output / "quarantine/wikipedia.jsonl").read_text().splitlines()
    assert [(json.loads(line)["position"], json.loads(line)["reason"]) for line in lines] == [
        ("wikipedia.jsonl.gz, line 61", "invalid_json"),
        ("wikipedia.jsonl.gz, line 62", "invalid_utf8"),
        ("wikipedia.jsonl.gz, line 63", "no_text"),
    ]


def test_datasets_opens_the_shards(built: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    _, output = built
    corpus = open_corpus(output)
    files = sorted(str(path) for path in (output / "train").glob("*.arrow"))
    rows = load_dataset("arrow", data_files=files, split="train", cache_dir=str(tmp_path))
    assert len(rows) == len(corpus)
    for index in (0, len(corpus) // 2, len(corpus) - 1):
        assert rows[index]["input_ids"] == corpus.input_ids(index).tolist()
        assert rows[index]["document_starts"] == corpus.document_starts(index).tolist()
        assert rows[index]["documents"] == corpus.documents(index)
        assert rows[index]["document_offsets"] == corpus.document_offsets(index).tolist()
        assert rows[index]["sources"] == corpus.sources(index)


def test_report_is_whole_and_self_contained(built: tuple[dict[str, Any], Path]) -> None:
    _, output = built
    report = (output / "report.html").read_text()
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["fingerprint"] in report
    assert all(shard["sha256"] in report for shard in manifest["splits"]["train"]["shards"])
    assert "<svg" in report
    assert "95,900" in report, "the paper's mean length of a book"
    assert "src=" not in report
    assert "://" not in report


def test_bytes_do_not_depend_on_chunks_or_the_order_of_files(
    built: tuple[dict[str, Any], Path], small_sources: Path, tmp_path: Path
) -> None:
    config, output = built
    other = {**config, "chunk_bytes": 1_000_000}
    assert build(other, tmp_path / "large") == 0
    assert contents(tmp_path / "large") == contents(output)
    files = sorted(str(path) for path in (small_sources / "own").iterdir())
    shuffled = [files[2], files[0], files[1]]
    other = {**config, "sources": [*config["sources"][:4], {"kind": "text", "path": shuffled}]}
    assert build(other, tmp_path / "shuffled") == 0
    there, here = contents(output), contents(tmp_path / "shuffled")
    assert {k: v for k, v in here.items() if k != "manifest.json"} == {
        k: v for k, v in there.items() if k != "manifest.json"
    }
    fingerprints = [json.loads(corpus["manifest.json"])["fingerprint"] for corpus in (there, here)]
    assert fingerprints[0] == fingerprints[1]


def test_counts_do_not_depend_on_chunks(small_tokenizer: Path, tmp_path: Path) -> None:
    """Of documents that are too short some are seen to be before they are tokenised, some only then."""
    generator = random.Random(3)
    rows = [{"text": words(generator, count)} for count in (5, 60, 5, 60, 60, 300, 5, 300)]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    config = {
        "tokenizer": str(small_tokenizer),
        "sequence_length": 64,
        "sources": [{"kind": "text", "path": path, "minimum_tokens": 200}],
    }
    assert build(config, tmp_path / "one") == 0
    assert build({**config, "chunk_bytes": 400}, tmp_path / "many") == 0
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    [source] = json.loads((tmp_path / "one/manifest.json").read_text())["sources"]
    assert source["dropped"] == {"too_few_tokens": {"documents": 6}}


def test_a_chunk_of_tiny_documents_ends_before_its_bytes_do(
    small_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": "" if number % 3 else f"word {number}"} for number in range(40)]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    config = {
        "tokenizer": str(small_tokenizer),
        "sequence_length": 64,
        "sources": [{"kind": "text", "path": path}],
    }
    assert build(config, tmp_path / "one") == 0
    monkeypatch.setattr(splitting, "MAXIMUM_DOCUMENTS", 7)
    monkeypatch.setattr(splitting, "BATCH_DOCUMENTS", 3)
    assert build(config, tmp_path / "many", "--work", str(tmp_path), "--keep-work") == 0
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    [record] = (tmp_path / "longspan-work/split").glob("*.json")
    chunks = json.loads(record.read_text())["facts"]["chunks"]
    assert [chunk["documents"] for chunk in chunks] == [7, 7, 7, 7, 7, 5]
    with pa.memory_map(str(tmp_path / "longspan-work" / chunks[0]["name"])) as file:
        batches = pa.ipc.open_file(file)
        assert [batches.get_batch(i).num_rows for i in range(batches.num_record_batches)] == [3, 3, 1]


def test_seed_changes_the_order(built: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    config, output = built
    assert build({**config, "seed": 4}, tmp_path / "corpus") == 0
    first = [open_corpus(folder).documents(0)[0] for folder in (output, tmp_path / "corpus")]
    assert first[0] != first[1]


def test_the_same_command_again_does_nothing(
    built: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = built
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert build(config, output) == 0
    assert "holds this corpus already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_a_damaged_corpus_is_not_called_finished(
    small_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(small_config, tmp_path / "corpus") == 0
    (tmp_path / "corpus/train/00001.arrow").unlink()
    assert build(small_config, tmp_path / "corpus") == 2
    assert "00001.arrow: missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "report.html", "quarantine/books.jsonl"]
)
def test_a_corpus_without_one_of_its_files_is_not_called_finished(
    name: str, built: tuple[dict[str, Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = built
    shutil.copytree(output, tmp_path / "corpus")
    (tmp_path / "corpus" / name).unlink()
    assert build(config, tmp_path / "corpus") == 2
    assert f"{name}: missing; {tmp_path / 'corpus'} was damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["manifest.json", "build.json"])
@pytest.mark.parametrize(
    "content", ['{"version": 1}', '{"version": 1', "[1]", '{"version": 1, "tokenizer": 3}']
)
def test_a_damaged_description_is_said(
    name: str,
    content: str,
    small_config: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / name).write_text(content)
    assert build(small_config, tmp_path / "corpus") == 2
    assert str(tmp_path / "corpus") in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "corpus").iterdir()] == [name]


def test_an_output_of_another_configuration_is_refused(
    built: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = built
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    other = {**config, "seed": 4, "filters": []}
    assert build(other, output) == 2
    message = capsys.readouterr().err
    assert "holds another corpus" in message
    assert "seed: 3, 4" in message
    assert "filters:" in message
    assert "sequence_length" not in message
    assert build(config, output, "--limit", "5") == 2
    assert "limit: null, 5" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_inputs_that_changed_are_named(
    small_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "own" / name).write_text(f"the text of {name}")
    config = {"tokenizer": str(small_tokenizer), "sources": [{"kind": "text", "path": str(tmp_path / "own")}]}
    assert build(config, tmp_path / "corpus") == 0
    (tmp_path / "own/b.txt").write_text("another text")
    assert build(config, tmp_path / "corpus") == 2
    message = capsys.readouterr().err
    assert "text/b.txt" in message
    assert "text/a.txt" not in message


def test_the_command_as_a_user_sees_it_fail(small_config: dict[str, Any], tmp_path: Path) -> None:
    small_config |= {"tokenizer": str(tmp_path / "absent/tokenizer.json"), "sead": 1}
    small_config["sources"][0]["path"] = str(tmp_path / "absent-books")
    file = write_config(tmp_path / "c.yaml", small_config)
    done = command(file, tmp_path / "corpus", "--local")
    assert done.returncode == 2
    assert "3 problems" in done.stderr
    assert "absent-books: no such file or folder" in done.stderr
    assert "absent/tokenizer.json: no such file or folder" in done.stderr
    assert "perhaps 'seed' was meant" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "corpus").exists()


def test_a_disk_without_room_is_said(
    small_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where the work folder should be: like a full disk, an error of the system."""
    (tmp_path / "work").write_text("in the way")
    assert build(small_config, tmp_path / "corpus", "--work", str(tmp_path / "work")) == 2
    assert str(tmp_path / "work") in capsys.readouterr().err
    assert not (tmp_path / "corpus/manifest.json").exists()


def test_a_folder_of_something_else_is_refused(
    small_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    assert build(small_config, tmp_path / "mine") == 2
    assert "expected a new or an empty folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    file = write_config(tmp_path / "c.yaml", small_config)
    assert main(["--config", str(file), "--output", "ftp://host/corpus"]) == 2
    assert "unknown scheme ftp://" in capsys.readouterr().err


def test_plan_writes_nothing(
    small_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(small_config, tmp_path / "corpus", "--plan") == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "corpus").exists()
    assert "realnews: 1 units read 1 files" in printed
    assert "cpu-seconds" in printed
    assert "0.txt and" in printed


def test_limit_is_of_each_source(small_config: dict[str, Any], tmp_path: Path) -> None:
    assert build(small_config, tmp_path / "corpus", "--limit", "7") == 0
    manifest = json.loads((tmp_path / "corpus/manifest.json").read_text())
    read = {s["name"]: s["read"] - sum(s["quarantined"].values()) for s in manifest["sources"]}
    assert read == {"books": 5, "wikipedia": 7, "realnews": 7, "stories": 7, "text": 7}
    assert manifest["limit"] == 7


def test_what_a_limit_leaves_out_does_not_depend_on_chunks(small_tokenizer: Path, tmp_path: Path) -> None:
    """Files that cannot be read are counted as far as the limit lets a unit read."""
    generator = random.Random(8)
    (tmp_path / "own").mkdir()
    for number in range(24):
        text = words(generator, 30).encode() if number < 8 or number % 2 else b"\xff\xfe"
        (tmp_path / "own" / f"{number:02}.txt").write_bytes(text)
    config = {
        "tokenizer": str(small_tokenizer),
        "sequence_length": 64,
        "sources": [{"kind": "text", "path": str(tmp_path / "own")}],
    }
    for limit in ("9", "12"):
        assert build(config, tmp_path / f"one-{limit}", "--limit", limit) == 0
        assert build({**config, "chunk_bytes": 2000}, tmp_path / f"many-{limit}", "--limit", limit) == 0
        assert contents(tmp_path / f"many-{limit}") == contents(tmp_path / f"one-{limit}")


def test_budget_and_priority(small_tokenizer: Path, tmp_path: Path) -> None:
    generator = random.Random(2)
    texts = [words(generator, 60) for _ in range(50)]
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    write_jsonl(
        tmp_path / "b.jsonl", [{"id": str(i % 40), "text": text.upper()} for i, text in enumerate(texts)]
    )
    config = {
        "tokenizer": str(small_tokenizer),
        "sequence_length": 64,
        "sources": [
            {"kind": "text", "name": "second", "path": str(tmp_path / "a.jsonl"), "budget": 5000},
            {"kind": "wikipedia", "path": str(tmp_path / "b.jsonl")},
        ],
    }
    assert build(config, tmp_path / "one") == 0
    first, other = json.loads((tmp_path / "one/manifest.json").read_text())["sources"]
    assert other["dropped"] == {
        "duplicate_id": {"documents": 10, "tokens": other["dropped"]["duplicate_id"]["tokens"]},
        "duplicate_text": {"documents": 40, "tokens": other["dropped"]["duplicate_text"]["tokens"]},
    }
    assert 4000 < first["kept"]["tokens"] <= 5000
    assert first["dropped"]["over_budget"]["documents"] + first["kept"]["documents"] == 50
    config["sources"].reverse()
    assert build(config, tmp_path / "two") == 0
    first, other = json.loads((tmp_path / "two/manifest.json").read_text())["sources"]
    assert first["kept"]["documents"] == 40, "the earlier source's copies stay"
    assert other["dropped"]["duplicate_text"]["documents"] == 40


def test_one_document_is_a_corpus(small_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one word")
    config = {
        "tokenizer": str(small_tokenizer),
        "sequence_length": 64,
        "sources": [{"kind": "text", "path": str(tmp_path / "a.txt")}],
    }
    assert build(config, tmp_path / "corpus") == 0
    corpus = open_corpus(tmp_path / "corpus")
    assert len(corpus) == 1
    assert len(open_corpus(tmp_path / "corpus", "validation")) == 0
    ids = corpus.input_ids(0)
    real = ids[ids != corpus.pad_id]
    assert load_tokenizer(tmp_path / "corpus").decode(real) == "<s>one word</s></s>"
    assert np.all(ids[len(real) :] == corpus.pad_id)


def test_nothing_left_is_said(
    small_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("one word")
    config = {
        "tokenizer": str(small_tokenizer),
        "sources": [{"kind": "text", "path": str(tmp_path / "a.txt"), "minimum_tokens": 100}],
    }
    assert build(config, tmp_path / "corpus") == 2
    assert "of 1 documents none is left: 1 too_few_tokens" in capsys.readouterr().err
    assert not (tmp_path / "corpus/manifest.json").exists()
    write_jsonl(tmp_path / "a.jsonl", [{"title": "no text"}, {"text": 3}, b"{"])
    config["sources"] = [{"kind": "text", "path": str(tmp_path / "a.jsonl")}]
    assert build(config, tmp_path / "other") == 2
    assert "of 3 documents none is left: 1 invalid_json, 2 no_text" in capsys.readouterr().err
    write_jsonl(tmp_path / "b.jsonl", [{"text": "the same"}, {"text": "The  same"}])
    config["sources"] = [{"kind": "text", "path": str(tmp_path / "b.jsonl"), "budget": 1}]
    assert build(config, tmp_path / "third") == 2
    assert "none is left: 1 duplicate_text, 1 over_budget" in capsys.readouterr().err
    assert not (tmp_path / "third/manifest.json").exists()


def test_a_truncated_archive_is_named_and_can_be_put_right(
    small_config: dict[str, Any], small_sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(small_config, tmp_path / "reference") == 0
    archive = tmp_path / "realnews.tar.gz"
    whole = (small_sources / "realnews.tar.gz").read_bytes()
    archive.write_bytes(whole[: len(whole) * 2 // 3])
    small_config["sources"][2]["path"] = str(archive)
    output = tmp_path / "corpus"
    assert build(small_config, output) == 2
    message = capsys.readouterr().err
    assert str(archive) in message
    assert "truncated" in message
    assert not {"manifest.json", "train", "validation", "report.html"} & {p.name for p in output.iterdir()}
    archive.write_bytes(whole)
    assert build(small_config, output) == 0
    assert open_corpus(output).fingerprint == open_corpus(tmp_path / "reference").fingerprint
    assert not (output / ".work").exists()
    assert not (output / "build.json").exists()


def test_work_is_kept_and_used_for_another_corpus(
    small_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = ["--work", str(tmp_path / "work"), "--keep-work"]
    assert build(small_config, tmp_path / "one", *work) == 0
    folder = tmp_path / "work/longspan-work/encode"
    encoded = sorted(folder.rglob("*"))
    longer = {**small_config, "sequence_length": 256}
    assert build(longer, tmp_path / "two", *work) == 0
    assert sorted(folder.rglob("*")) == encoded, "nothing tokenised anew"
    assert build(longer, tmp_path / "three") == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "three")
    # A result that is gone, or of another size, is made again.
    shutil.rmtree(tmp_path / "two")
    for path in sorted(folder.rglob("*.arrow"))[:3]:
        path.unlink()
    assert build(longer, tmp_path / "two", *work) == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "three")


@pytest.mark.parametrize("keep", [False, True])
def test_folders_beside_the_work_are_left_alone(
    keep: bool, small_config: dict[str, Any], tmp_path: Path
) -> None:
    """--work in a project with tokenizer/, split/ and encode/ of its own once replaced and removed them."""
    for name in ("tokenizer/tokenizer.json", "split/mine", "encode/mine", "select/mine", "pack/mine"):
        (tmp_path / "work" / name).parent.mkdir(parents=True)
        (tmp_path / "work" / name).write_text("mine")
    before = contents(tmp_path / "work")
    options = ["--work", str(tmp_path / "work"), *(["--keep-work"] if keep else [])]
    assert build(small_config, tmp_path / "corpus", *options) == 0
    after = contents(tmp_path / "work")
    assert {name: content for name, content in after.items() if name in before} == before
    assert all(name.startswith("longspan-work/") for name in after if name not in before)
    assert bool(set(after) - set(before)) == keep


@pytest.mark.parametrize("option", ["--output", "--work"])
def test_relative_folders_are_refused_on_a_cluster(
    option: str,
    small_config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A submitted job once succeeded into Ray's copy of the working directory."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.chdir(tmp_path)
    folders = {"--output": str(tmp_path / "corpus"), "--work": str(tmp_path / "work"), option: "here"}
    file = write_config(tmp_path / "c.yaml", small_config)
    assert main(["--config", str(file), *(word for pair in folders.items() for word in pair)]) == 2
    assert f"{option} here: a relative path" in (message := capsys.readouterr().err)
    assert "absolute path that every machine mounts" in message
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.parametrize("shared", ["output", "work"])
def test_two_builds_do_not_write_to_one_folder(
    shared: str, small_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "corpus" if shared == "output" else tmp_path / "work/longspan-work"
    with LocalStorage(folder).locked():
        assert build(small_config, tmp_path / "corpus", "--work", str(tmp_path / "work")) == 2
        assert f"{folder}: another build is writing here" in capsys.readouterr().err
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert build(small_config, tmp_path / "corpus", "--work", str(tmp_path / "work")) == 0
    assert not list((tmp_path / "work").iterdir())
    assert not (tmp_path / "corpus/.lock").exists()


def test_a_build_does_not_overwrite_what_another_finished_meanwhile(
    small_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its first look at the output and its lock."""
    locked = LocalStorage.locked

    def late(storage: LocalStorage) -> AbstractContextManager[Lock]:
        monkeypatch.setattr(LocalStorage, "locked", locked)
        assert build({**small_config, "seed": 4}, tmp_path / "corpus") == 0
        return locked(storage)

    monkeypatch.setattr(LocalStorage, "locked", late)
    assert build(small_config, tmp_path / "corpus") == 2
    assert json.loads((tmp_path / "corpus/manifest.json").read_text())["config"]["seed"] == 4


@pytest.mark.parametrize(
    "what",
    [
        "split/*/*0.arrow",
        "split/*/*.quarantine.jsonl",
        "encode/*/*.tokens.arrow",
        "encode/*/*.table.arrow",
        "select/*.arrow",
        "texts/*.arrow",
        "keep/*.train.arrow",
    ],
)
def test_a_changed_byte_in_the_work_is_not_sealed(
    what: str, small_config: dict[str, Any], tmp_path: Path
) -> None:
    """Who reads a changed file removes it, and it is made anew; so are torn records."""
    work = ["--work", str(tmp_path / "work"), "--keep-work"]
    assert build(small_config, tmp_path / "one", *work) == 0
    damaged = list((tmp_path / "work/longspan-work").glob(what))
    assert damaged
    for path in damaged:
        content = bytearray(path.read_bytes())
        if not content:
            continue
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    for stage in ("encode", "keep", "pack"):
        record = min((tmp_path / "work/longspan-work" / stage).rglob("*.json"))
        record.write_bytes(record.read_bytes()[:-20])
    assert build(small_config, tmp_path / "two", *work) == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_file_that_changes_during_the_build_is_named_and_made_anew(
    small_config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Between the unit that wrote it and the one that reads it."""
    output = tmp_path / "corpus"
    run = KeepUnit.run

    def change_first(unit: KeepUnit, stores: Stores) -> Record:
        entry = next(read_catalogue(unit.catalogue, stores.work))
        path = Path(stores.work.where(entry.tokens.name))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        return run(unit, stores)

    monkeypatch.setattr(KeepUnit, "run", change_first)
    assert build(small_config, output) == 0
    assert "tokens.arrow: its sha256 is" in capsys.readouterr().out
    monkeypatch.undo()
    assert build(small_config, tmp_path / "reference") == 0
    assert contents(output) == contents(tmp_path / "reference")


def test_a_file_that_another_unit_removed_is_made_anew(
    small_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of two units that read a damaged file at one time the slower one finds it."""
    run = KeepUnit.run

    def remove_first(unit: KeepUnit, stores: Stores) -> Record:
        monkeypatch.setattr(KeepUnit, "run", run)
        entry = next(read_catalogue(unit.catalogue, stores.work))
        stores.work.remove(entry.table.name)
        return run(unit, stores)

    monkeypatch.setattr(KeepUnit, "run", remove_first)
    assert build(small_config, tmp_path / "corpus") == 0
    assert build(small_config, tmp_path / "reference") == 0
    assert contents(tmp_path / "corpus") == contents(tmp_path / "reference")


def test_work_that_is_another_build_s_by_now_is_left_alone(
    small_config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = tmp_path / "work/longspan-work"
    run = KeepUnit.run

    def lose_the_lock(unit: KeepUnit, stores: Stores) -> Record:
        (work / ".lock").unlink(missing_ok=True)
        return run(unit, stores)

    monkeypatch.setattr(KeepUnit, "run", lose_the_lock)
    assert build(small_config, tmp_path / "corpus", "--work", str(tmp_path / "work")) == 2
    assert "another one may have begun" in capsys.readouterr().err
    assert list((work / "encode").iterdir())
    monkeypatch.undo()
    assert build(small_config, tmp_path / "corpus", "--work", str(tmp_path / "work")) == 0
    assert not work.exists()


def test_shards_of_an_unfinished_build_do_not_stay(small_config: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    assert build(small_config, output, "--keep-work") == 0
    reference = contents(output)
    begun = json.loads((output / "manifest.json").read_text())
    identity = {
        "config": begun["config"],
        "limit": None,
        "tokenizer": begun["tokenizer"]["fingerprint"],
        "inputs": [],
    }
    (output / "build.json").write_text(json.dumps(identity))
    (output / "manifest.json").unlink()
    shutil.copy(output / "train/00000.arrow", output / "train/00099.arrow")
    assert build(small_config, output, "--keep-work") == 0
    assert contents(output) == reference


def test_a_build_killed_in_its_first_write_can_be_run_again(
    small_config: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/.build.json.host.1.tmp").write_text("{")
    assert build(small_config, tmp_path / "corpus") == 0
    assert not list((tmp_path / "corpus").glob(".*"))


def test_bad_members_of_archives_do_not_escape(small_tokenizer: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"../../escaped.txt": b"a text that is long enough", "b.txt": b"\xff"})
    config = {
        "tokenizer": str(small_tokenizer),
        "sequence_length": 64,
        "sources": [{"kind": "books", "path": str(tmp_path / "a.tar")}],
    }
    assert build(config, tmp_path / "corpus") == 0
    assert open_corpus(tmp_path / "corpus").documents(0) == ["books/a.tar/escaped.txt"]
    assert not (tmp_path.parent / "escaped.txt").exists()
