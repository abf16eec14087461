"""A sealed corpus checked again: a whole one passes, each damage is found and named."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import show
from pipeline.shards import serialise_shard, shard_schema
from pipeline.stages.seal import corpus_fingerprint
from pipeline.storage import LocalStorage, open_storage
from pipeline.units import PublishedFile
from pipeline.verify.__main__ import main
from pipeline.verify.corpus import Verdict, verify_corpus
from pipeline.verify.documents import Chain, Coverage
from pipeline.verify.problems import Problems
from pipeline.verify.rows import UNKNOWN, Block, Rules, read_pieces
from tests.pipeline.object_store import serve, use

ROOT = Path(__file__).parents[2]
TRAIN = "train/00000.arrow"


@pytest.fixture
def corpus(built: tuple[dict[str, Any], Path], tmp_path: Path) -> Path:
    """A copy of the small corpus, to be damaged."""
    return Path(shutil.copytree(built[1], tmp_path / "corpus"))


def verify(corpus: Path, quick: bool = False) -> Verdict:
    return verify_corpus(LocalStorage(corpus), quick)


def said(corpus: Path, quick: bool = False) -> list[str]:
    return [str(problem) for problem in verify(corpus, quick).problems.shown]


def edit_manifest(corpus: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = corpus / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def forge(corpus: Path, name: str, edit: Callable[[dict[str, list[Any]]], None]) -> None:
    """Changes the rows of a shard, and the manifest with it, so that every checksum is right."""
    path = corpus / name
    with pa.ipc.open_file(str(path)) as reader:
        batch = reader.get_batch(0)
    columns = batch.to_pydict()
    edit(columns)
    ids = np.array(columns.pop("input_ids"), dtype=np.uint16)
    path.write_bytes(serialise_shard(batch.schema, ids, *columns.values()))

    def reseal(manifest: dict[str, Any]) -> None:
        shards = [entry for split in manifest["splits"].values() for entry in split["shards"]]
        for entry in shards:
            content = (corpus / entry["path"]).read_bytes()
            entry |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        files = [PublishedFile("output", e["path"], e["bytes"], e["sha256"]) for e in shards]
        manifest["fingerprint"] = corpus_fingerprint(
            files, manifest["tokenizer"]["fingerprint"], manifest["versions"]
        )

    edit_manifest(corpus, reseal)


def test_a_whole_corpus_is_whole(
    built: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, output = built
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert main([str(output)]) == 0
    assert ": whole; " in capsys.readouterr().out
    assert main([str(output), "--quick"]) == 0
    assert "sizes, formats and counts are right" in capsys.readouterr().out
    assert main([str(output), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["whole"]
    assert verdict["problems"] == []
    manifest = json.loads((output / "manifest.json").read_text())
    assert verdict["tokens"] == sum(source["kept"]["tokens"] for source in manifest["sources"])
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_exit_codes_and_names(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert "manifest.json: missing; not a corpus" in capsys.readouterr().err
    assert main([f"ftp://{tmp_path}"]) == 2
    (corpus / TRAIN).unlink()
    assert main([str(corpus)]) == 1
    out = capsys.readouterr().out
    assert f"{TRAIN}: missing, though the manifest lists it\n" in out
    assert out.endswith("damaged, one problem\n")
    command = [sys.executable, "-m", "pipeline.verify", str(corpus), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    verdict = json.loads(done.stdout)
    assert verdict["problem_count"] == 1
    assert verdict["problems"][0]["file"] == TRAIN


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_is_found_wherever_it_is(corpus: Path, seed: int) -> None:
    files = [path for path in sorted(corpus.rglob("*")) if path.is_file() and path.suffix == ".arrow"]
    path = files[seed % len(files)]
    content = bytearray(path.read_bytes())
    content[seed * 7919 * 31 % len(content)] ^= 1 << seed
    path.write_bytes(content)
    name = path.relative_to(corpus).as_posix()
    assert any(line.startswith(f"{name}: sha256, as the manifest says: found") for line in said(corpus))


def test_a_damaged_column_name_is_damage(corpus: Path) -> None:
    """A regression: the name that is no UTF-8 ended the check with a UnicodeDecodeError."""
    content = (corpus / TRAIN).read_bytes()
    (corpus / TRAIN).write_bytes(content.replace(b"document_starts", b"document_start\xff"))
    for quick in (False, True):
        assert any("its columns are not readable, not input_ids" in line for line in said(corpus, quick))


def test_a_cut_file_is_found(corpus: Path) -> None:
    content = (corpus / TRAIN).read_bytes()
    (corpus / TRAIN).write_bytes(content[:-1000])
    for quick in (False, True):
        assert f"{TRAIN}: has {len(content) - 1000:,} bytes, the manifest says {len(content):,}" in said(
            corpus, quick
        )
    assert any(line.startswith(f"{TRAIN}: not a readable Arrow file") for line in said(corpus))


def test_what_is_not_in_the_manifest_is_found(corpus: Path) -> None:
    shutil.copy(corpus / TRAIN, corpus / "train/00099.arrow")
    assert said(corpus) == ["train/00099.arrow: not in the manifest"]
    assert said(corpus, quick=True) == ["train/00099.arrow: not in the manifest"]


def test_swapped_shards_are_found(corpus: Path) -> None:
    other = corpus / "train/00001.arrow"
    first = (corpus / TRAIN).read_bytes()
    (corpus / TRAIN).write_bytes(other.read_bytes())
    other.write_bytes(first)
    found = said(corpus)
    assert {line.split(":")[0] for line in found} >= {TRAIN, "train/00001.arrow"}
    assert any("sha256" in line for line in found)
    # With every checksum made right, the stream itself tells.
    forge(corpus, TRAIN, lambda columns: None)
    assert any(
        line.startswith("train/") and "row 0: a piece of " in line and "what comes before it is not" in line
        for line in said(corpus)
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(version=2), "manifest.json: format version 2, expected 1"),
        (lambda m: m.pop("sources"), "manifest.json: sources: Field required"),
        (
            lambda m: m["splits"]["train"]["shards"][0].update(path="../x.arrow"),
            "splits.train.shards.0.path: ",
        ),
        (
            lambda m: m["sources"][0].update(read=6),
            "sources.books.read, as kept + dropped + quarantined: found 6",
        ),
        (lambda m: m["sources"][1]["quarantined"].update(no_text=2), "sources.wikipedia.read"),
        (lambda m: m["splits"]["train"].update(tokens=5), "splits.train.tokens: found 5, expected"),
        (lambda m: m["splits"]["train"].update(sequences=5), "splits.train.sequences: found 5, expected"),
        (lambda m: m.update(fingerprint="0" * 64), "manifest.json: fingerprint, from the shards' checksums"),
        (
            lambda m: m["tokenizer"].update(fingerprint="0"),
            "tokenizer.json: fingerprint, as the manifest says",
        ),
        (lambda m: m.update(sequence_length=64), f"{TRAIN}: not a shard of this corpus"),
        (lambda m: m["splits"]["train"]["shards"].pop(), "not in the manifest"),
        (lambda m: m["sources"][0]["length_histogram"].append(1), "sources.books.length_histogram, its sum"),
    ],
)
@pytest.mark.parametrize("quick", [False, True])
def test_an_edited_manifest_is_found(
    corpus: Path, edit: Callable[[dict[str, Any]], None], message: str, quick: bool
) -> None:
    edit_manifest(corpus, edit)
    assert any(message in line for line in said(corpus, quick)), said(corpus, quick)


def test_tokens_moved_between_sources_are_found(corpus: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        for source, change in zip(manifest["sources"], (1, -1)):
            source["kept"]["tokens"] += change
            source["splits"]["train"]["tokens"] += change

    edit_manifest(corpus, edit)
    found = said(corpus)
    assert len(found) == 2
    assert found[0].startswith("manifest.json: tokens of books in train, in the shards and here: found ")


def test_a_torn_manifest_is_damage(corpus: Path) -> None:
    path = corpus / "manifest.json"
    path.write_text(path.read_text()[:-100])
    assert main([str(corpus)]) == 1
    assert said(corpus)[0].startswith("manifest.json: not readable as JSON")


def test_another_tokenizer_is_found(corpus: Path, small_tokenizer: Path) -> None:
    settings = json.loads(small_tokenizer.read_text())
    settings["model"]["merges"].pop()
    (corpus / "tokenizer.json").write_text(json.dumps(settings))
    assert said(corpus)[0].startswith("tokenizer.json: fingerprint, as the manifest says: found ")
    (corpus / "tokenizer.json").unlink()
    assert said(corpus) == ["tokenizer.json: missing"]


def test_lost_quarantine_lines_are_found(corpus: Path) -> None:
    path = corpus / "quarantine/wikipedia.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]) + "no JSON\n")
    name = "quarantine/wikipedia.jsonl"
    for quick in (False, True):
        assert said(corpus, quick) == [
            f"{name}: line 3 is not a JSON object with source and reason",
            f"{name}: lines with reason 'invalid_json': found 0, expected 1",
        ]
    path.unlink()
    assert said(corpus) == [f"{name}: missing"]


def change(
    column: str, row: int, edit: Callable[[list[Any]], object]
) -> Callable[[dict[str, list[Any]]], None]:
    return lambda columns: edit(columns[column][row])


def cell(place: int, value: object) -> Callable[[list[Any]], None]:
    return lambda cells: cells.__setitem__(place, value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("input_ids", 3, cell(0, 9)), "row 3: id 9 at position 0, expected 0, <s>"),
        (change("input_ids", 3, cell(127, 9)), "row 3: id 9 at position 127, expected 2, </s>"),
        (change("input_ids", 3, cell(5, 4)), "row 3: special id 4 at position 5, inside a document"),
        (change("input_ids", 3, cell(5, 2)), "row 3: special id 2 at position 5, inside a document"),
        (
            change("input_ids", 3, cell(5, 500)),
            "row 3: id 500 at position 5, outside of the vocabulary of 500",
        ),
        (change("input_ids", 3, cell(5, 1)), "row 3: <pad> at position 5 with other tokens after it"),
        (change("input_ids", 3, cell(127, 1)), "row 3: 1 <pad> in a row that is not the last of its split"),
        (change("document_starts", 3, cell(0, 1)), "row 3: its first piece starts at 1, not at 0"),
        (
            change("document_starts", 3, lambda c: c.append(128)),
            "row 3: documents has not one entry for each",
        ),
        (lambda c: [c[name][3].clear() for name in c if name != "input_ids"], "row 3: has no piece"),
        (change("document_offsets", 3, cell(0, -1)), "row 3: a negative document offset"),
    ],
)
def test_a_broken_row_is_named_though_every_checksum_is_right(
    corpus: Path, edit: Callable[[dict[str, list[Any]]], None], message: str
) -> None:
    forge(corpus, TRAIN, edit)
    assert any(line.startswith(f"{TRAIN}, {message}") for line in said(corpus)), said(corpus)


def test_a_document_under_another_name_is_found(corpus: Path) -> None:
    with pa.ipc.open_file(str(corpus / TRAIN)) as reader:
        offsets = reader.get_batch(0).column("document_offsets").to_pylist()
    row = next(row for row, offset in enumerate(offsets[1:]) if offset[0] > 0)
    forge(corpus, TRAIN, change("documents", row, cell(-1, "books/none")))
    assert any(f"row {row + 1}: a piece of " in line for line in said(corpus))
    forge(corpus, TRAIN, change("sources", row, cell(-1, "another")))
    found = said(corpus)
    assert f"{TRAIN}, row {row}: document books/none is said to be of source another" in found
    assert "manifest.json: no source 'another', though the shards name it" in found


def test_a_document_in_both_splits_is_found(corpus: Path) -> None:
    """One that lies in a single row of train gets the name of one of validation's."""
    with pa.ipc.open_file(str(corpus / "validation/00000.arrow")) as reader:
        names = [name for row in reader.get_batch(0).column("documents").to_pylist() for name in row]
    with pa.ipc.open_file(str(corpus / TRAIN)) as reader:
        held = reader.get_batch(0).column("documents").to_pylist()
    row, place, taken = next(
        (row, place, name)
        for row, pieces in enumerate(held)
        for place in range(1, len(pieces) - 1)
        for name in names
        if name.split("/")[0] == pieces[place].split("/")[0]
    )
    forge(corpus, TRAIN, change("documents", row, cell(place, taken)))
    [found] = said(corpus)
    assert "a document that is in another split too: " in found


def make_rules(packing: str, length: int = 8) -> Rules:
    return Rules(length, packing, bos=0, eos=2, pad=1, special=frozenset({0, 1, 2, 3, 4}), vocabulary_size=50)


def make_block(rows: list[list[int]], pieces: list[list[tuple[int, str, int]]]) -> Block:
    """Rows with their pieces as (start, document, offset)."""
    schema = shard_schema(len(rows[0]), 50, "t")
    columns = [[[piece[i] for piece in row] for row in pieces] for i in range(3)]
    sources = [[name.split("/")[0] for name in row] for row in columns[1]]
    shard = serialise_shard(schema, np.array(rows, np.uint16), columns[0], columns[1], columns[2], sources)
    return Block("a.arrow", 0, pa.ipc.open_file(shard).get_batch(0))


def check(rules: Rules, block: Block, following: int | None = None) -> list[str]:
    problems = Problems()
    pieces = read_pieces(block, rules, following, problems)
    if pieces is not None:
        with Coverage() as coverage:
            if rules.packing == "concatenate":
                Chain().follow(block, pieces, problems)
            coverage.add("train", block, pieces, problems)
            coverage.check(problems)
    return [str(problem) for problem in problems.shown]


def pack_best_fit(
    documents: dict[str, int], length: int
) -> tuple[list[list[int]], list[list[tuple[int, str, int]]]]:
    """The reference: each row `<s>`, pieces each with its </s>, <pad> to the end; first fit is as good as best."""
    parts = [
        (name, offset, min(tokens - offset, length - 2))
        for name, tokens in documents.items()
        for offset in range(0, tokens, length - 2)
    ]
    rows: list[list[int]] = []
    pieces: list[list[tuple[int, str, int]]] = []
    for name, offset, tokens in sorted(parts, key=lambda part: -part[2]):
        fits = [i for i, row in enumerate(rows) if len(row) + tokens + 1 <= length]
        if not fits:
            rows.append([0])
            pieces.append([])
        index = fits[0] if fits else -1
        pieces[index].append((len(rows[index]) if pieces[index] else 0, name, offset))
        rows[index] += [10 + (offset + i) % 40 for i in range(tokens)] + [2]
    return [row + [1] * (length - len(row)) for row in rows], pieces


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), length=st.integers(4, 20), data=st.data()
)
def test_best_fit_rows(lengths: list[int], length: int, data: st.DataObject) -> None:
    documents = {f"a/{number}": tokens for number, tokens in enumerate(lengths)}
    rows, pieces = pack_best_fit(documents, length)
    rules = make_rules("best_fit", length)
    assert check(rules, make_block(rows, pieces)) == []
    # Any other id at any place that is not a document's own is found, and any special one anywhere.
    row, place = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, length - 1))
    before = rows[row][place]
    rows[row][place] = data.draw(
        st.sampled_from([i for i in ([0, 1, 2, 3, 4, 50] + [9] * (before < 5)) if i != before])
    )
    assert f"a.arrow, row {row}: " in "\n".join(check(rules, make_block(rows, pieces)))


def test_gaps_and_overlaps_of_best_fit_pieces_are_found() -> None:
    rows, pieces = pack_best_fit({"a/0": 20, "a/1": 3}, 8)
    rules = make_rules("best_fit")
    assert check(rules, make_block(rows, pieces)) == []
    assert [piece for row in pieces for piece in row if piece[1] == "a/0"][1] == (0, "a/0", 6)
    pieces[1] = [(0, "a/0", 7)]
    found = check(rules, make_block(rows, pieces))
    assert "a.arrow, row 1: a piece of a document starts at its token 7, the one before it ends at 6" in found
    assert "a.arrow, row 2: tokens of a document that are also in a.arrow, row 1" in found
    pieces[0], pieces[1] = [(0, "a/5", 3)], [(0, "a/0", 0)]
    found = check(rules, make_block(rows, pieces))
    assert (
        "a.arrow, row 0: a document's first piece starts at its token 3: what comes before is missing"
        in found
    )


def test_padding_is_for_the_last_row_of_concatenated_documents() -> None:
    rows = [[0, 10, 11, 12, 13, 14, 15, 2], [0, 2, 20, 21, 2, 2, 1, 1]]
    pieces = [[(0, "a/0", 0)], [(0, "a/0", 6), (2, "a/1", 0)]]
    rules = make_rules("concatenate")
    block = make_block(rows, pieces)
    assert check(rules, block) == []
    assert (
        check(rules, block, following=0)[0]
        == "a.arrow, row 1: 2 <pad> in a row that is not the last of its split"
    )
    assert check(rules, make_block(rows[:1], pieces[:1]), following=UNKNOWN) == []
    assert check(rules, make_block(rows[:1], pieces[:1]), following=6) == []
    assert check(rules, make_block(rows[:1], pieces[:1]))[0].startswith(
        "a.arrow, row 0: id 15 at position 6, expected 2"
    )


def test_only_a_document_that_went_on_may_have_no_tokens_in_a_row() -> None:
    rows, rules = [[0, 2, 20, 21, 2, 2, 1, 1]], make_rules("concatenate")
    block = make_block(rows, [[(0, "a/0", 0), (2, "a/1", 0)]])
    assert check(rules, block) == ["a.arrow, row 0: a piece without tokens of its document"]
    block = make_block(rows, [[(0, "a/0", 6), (2, "a/1", 0)]])
    assert "a.arrow, row 0: a piece without tokens of its document" not in check(rules, block)


def test_a_document_cut_between_the_splits_is_found() -> None:
    rows, pieces = pack_best_fit({"a/0": 12}, 8)
    problems = Problems()
    with Coverage() as coverage:
        for row, split in enumerate(("train", "validation")):
            block = make_block(rows[row : row + 1], pieces[row : row + 1])
            read = read_pieces(block, make_rules("best_fit"), None, problems)
            assert read is not None
            coverage.add(split, block, read, problems)
        coverage.check(problems)
    assert [problem.message for problem in problems.shown] == [
        "a document that is in another split too: a.arrow, row 0"
    ]


def test_many_special_ids_are_looked_up_in_a_table() -> None:
    rules = Rules(8, "concatenate", 0, 2, 1, frozenset({*range(0, 40, 2), 1}), 50)
    rows = [[0, 11, 13, 15, 17, 19, 2, 2]]
    assert check(rules, make_block(rows, [[(0, "a/0", 0)]])) == []
    for value, message in ((12, "special id 12"), (60, "id 60")):
        rows[0][3] = value
        assert message in check(rules, make_block(rows, [[(0, "a/0", 0)]]))[0]


def test_a_corpus_in_an_object_store(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checked and shown where it lies; a damaged object is named and left alone."""
    with serve("moto", tmp_path) as server:
        use(server, monkeypatch)
        uri = f"{server.uri}/corpora/small"
        storage = open_storage(uri)
        for path in corpus.rglob("*"):
            if path.is_file():
                storage.publish(path.relative_to(corpus).as_posix(), path.read_bytes())
        capsys.readouterr()
        for options in ([], ["--quick"]):
            assert main([uri, *options]) == 0, capsys.readouterr()
        assert f"{uri}: whole; " in capsys.readouterr().out
        with pa.ipc.open_file(str(corpus / "validation/00000.arrow")) as reader:
            document = reader.get_batch(0).column("documents")[0].as_py()[0]
        for options in (
            ["--sequence", "3"],
            ["--document", document],
            ["--random", "2", "--split", "validation"],
        ):
            shown = []
            for place in (uri, str(corpus)):
                assert show.main([place, *options]) == 0
                shown.append(capsys.readouterr().out)
            assert shown[0] == shown[1]
        content = bytearray((corpus / TRAIN).read_bytes())
        content[len(content) // 2] ^= 1
        storage.publish(TRAIN, bytes(content))
        assert main([uri]) == 1
        assert (
            f"{TRAIN}: sha256, as the manifest says: found {hashlib.sha256(content).hexdigest()}"
            in capsys.readouterr().out
        )
        assert storage.read(TRAIN) == content
        storage.remove(TRAIN)
        assert main([uri, "--quick"]) == 1
        assert f"{TRAIN}: missing, though the manifest lists it" in capsys.readouterr().out
        assert main([f"{server.uri}/nothing"]) == 2
        assert show.main([f"{server.uri}/nothing"]) == 2
