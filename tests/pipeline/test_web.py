"""Files on web servers that fail: read whole and right, or an error that says what happened."""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import fetch
from pipeline.config import load_config
from pipeline.errors import BuildError, DamagedFile, InputError
from pipeline.fetch import Input, find_inputs, open_input, with_checksums, with_version
from pipeline.remote import patience
from pipeline.stages import fetch as stage
from pipeline.storage import Stores, open_storage
from pipeline.units import execute, find_record
from tests.pipeline.conftest import command, contents, write_config, write_jsonl
from tests.pipeline.faulty_server import FaultyServer, faulty_server

CONTENT = random.Random(0).randbytes(3_000_000)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.001)
    monkeypatch.setenv("LONGSPAN_RETRIES", "4")
    with faulty_server() as running:
        yield running


def find(uri: str) -> Input:
    [item] = find_inputs([uri], lambda name: True)
    return with_version(item)


def read(item: Input) -> bytes:
    with open_input(item) as stream:
        return stream.read()


FAULTS = {
    "none": [],
    "busy": ["503", "429 0", "503", ""],
    "busy meanwhile": ["drop 1000000", "503", "drop 500000", "503 0", ""],
    "drops": ["drop 0", "drop 1", "drop 999999", ""],
    "many drops": ["drop 300000"] * 9,  # more than the retries: but bytes came between them
}


@pytest.mark.parametrize("traits", ["", "no_etag", "weak_etag", "no_ranges", "no_head", "no_ranges no_etag"])
@pytest.mark.parametrize("faults", FAULTS)
def test_what_passes_is_waited_out(server: FaultyServer, faults: str, traits: str) -> None:
    if faults == "many drops" and "no_ranges" in traits:
        pytest.skip("it drops each time before the place to go on from")
    uri = server.serve("/a.txt", CONTENT, traits=traits)
    item = find(uri)
    assert item.ranges == ("no_ranges" not in traits)
    server.files["/a.txt"].faults = list(FAULTS[faults])
    assert read(item) == CONTENT
    with open_input(item) as stream:
        stream.seek(2_999_990)
        assert stream.read() == CONTENT[-10:]
        stream.seek(5)
        assert stream.read(5) == CONTENT[5:10]
    asked = [condition for _, begin, condition in server.requests if begin == "bytes=2999990-2999999"]
    assert asked == [item.version if "etag" not in traits else ""]


def test_patience_ends(server: FaultyServer) -> None:
    item = find(server.serve("/a.txt", CONTENT))
    server.files["/a.txt"].faults = ["drop 1000000", *["503"] * 5]
    with pytest.raises(
        InputError, match=r"a\.txt: cannot be read at byte 1,000,000 of 3,000,000: the server says 503"
    ):
        read(item)
    with pytest.raises(InputError, match=r"b\.txt: the server says 404 Not Found: there is no such file"):
        find(server.uri + "/b.txt")
    with pytest.raises(InputError, match=r"b\.txt: cannot be reached: .*refused"):
        find("http://127.0.0.1:9/b.txt")


@pytest.mark.parametrize(
    ("traits", "content", "message"),
    [
        ("", CONTENT[::-1], "its version was"),
        ("", CONTENT[:-1], "3,000,000 bytes and has 2,999,999"),
        ("", b"", "no byte|and has 0"),
        ("no_etag", CONTENT + b"x", "3,000,000 bytes and has 3,000,001"),
        ("weak_etag", CONTENT[::-1], "its version was W/"),
        ("no_ranges", CONTENT[::-1], "its version was"),
    ],
)
def test_a_file_that_changes_is_never_mixed(
    server: FaultyServer, traits: str, content: bytes, message: str
) -> None:
    item = find(server.serve("/a.txt", CONTENT, traits=traits))
    stream = open_input(item)
    assert stream.read(10) == CONTENT[:10]
    server.serve("/a.txt", content, traits=traits)
    stream.seek(2_000_000)
    with pytest.raises(InputError, match=rf"a\.txt: changed while the corpus was built: .*{message}"):
        stream.read()


def test_a_range_that_was_not_asked_for_is_refused(server: FaultyServer) -> None:
    item = find(server.serve("/a.txt", CONTENT))
    server.files["/a.txt"].faults = ["shifted"]
    stream = open_input(item)
    stream.seek(7)
    with pytest.raises(InputError, match=r"asked for bytes from 7 on and sends 'bytes 8-"):
        stream.read()


def test_a_file_of_no_length_is_refused(server: FaultyServer) -> None:
    with pytest.raises(InputError, match="does not say how long it is"):
        find(server.serve("/a.txt", CONTENT, traits="no_length no_ranges"))
    assert find(server.serve("/empty.txt", b"")).bytes == 0


def test_redirects_lead_to_the_web_alone(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    target = server.serve("/real.txt", CONTENT)
    assert read(find(server.serve("/a.txt", b"", location=target))) == CONTENT
    for location in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/x"):
        with pytest.raises(InputError, match=r"a\.txt: cannot be reached: "):
            find(server.serve("/a.txt", b"", location=location))


def test_no_secret_is_in_any_message(server: FaultyServer) -> None:
    address = server.uri.replace("//", "//user:pa55word@")
    uris = [
        f"{address}/a.txt?X-Amz-Signature=pa55word",
        "http://user:pa55word@127.0.0.1:9/a.txt?sig=pa55word",
    ]
    for fault in ("404", "503", ""):
        server.serve("/a.txt", CONTENT, *[fault] * 5, traits="" if fault else "no_length no_ranges")
        for uri in uris:
            with pytest.raises(InputError) as raised:
                find(uri)
            assert "pa55word" not in str(raised.value)
            assert "a.txt" in str(raised.value)
    server.serve("/a.txt", CONTENT)
    item = find(uris[0])
    assert "pa55word" not in item.name + item.key
    server.serve("/a.txt", CONTENT[1:])
    with pytest.raises(InputError, match=r"/a\.txt\?…: changed") as raised:
        read(item)
    assert "pa55word" not in str(raised.value)


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stores:
    for module in (fetch, stage):
        monkeypatch.setattr(module, "PART_BYTES", 700_000)
    return Stores(work=open_storage(str(tmp_path / "work")), output=open_storage(str(tmp_path / "out")))


@pytest.mark.parametrize("traits", ["", "no_ranges", "no_etag"])
def test_fetched_in_parts(server: FaultyServer, stores: Stores, traits: str) -> None:
    item = find(server.serve("/a.txt", CONTENT, traits=traits))
    units = list(stage.plan_fetch(item))
    assert len(units) == (1 if traits == "no_ranges" else 5)
    assert sum(unit.size for unit in units) == len(CONTENT)
    server.files["/a.txt"].faults = ["drop 400000", "503", ""]
    for unit in reversed(units):
        execute(unit, stores)
        assert find_record(unit, stores)
    whole = stage.fetched(item)
    assert len(whole.parts) == 5
    asked = len(server.requests)
    with open_input(whole, stores.work) as stream:
        assert stream.read() == CONTENT
        for at in (0, 699_999, 700_000, 2_999_999, 1_400_001):
            stream.seek(at)
            assert stream.read(3) == CONTENT[at : at + 3]
    assert len(server.requests) == asked


def test_a_part_that_was_damaged_is_fetched_again(
    server: FaultyServer, stores: Stores, tmp_path: Path
) -> None:
    """It once became text, or made its archive look damaged for good."""
    item = stage.fetched(find(server.serve("/a.txt", CONTENT)))
    units = list(stage.plan_fetch(item))
    for unit in units:
        execute(unit, stores)
    stage.verify_parts(item, stores)
    part = Path(stores.work.where(item.parts[0]))
    part.write_bytes(b"x" + part.read_bytes()[1:])
    with pytest.raises(DamagedFile, match=r"part: its sha256 is"):
        stage.verify_parts(item, stores)
    assert [find_record(unit, stores) is None for unit in units] == [True] + [False] * (len(units) - 1)


def test_a_part_that_broke_off_is_not_there(server: FaultyServer, stores: Stores) -> None:
    item = find(server.serve("/a.txt", CONTENT))
    [first, second, *_] = stage.plan_fetch(item)
    execute(first, stores)
    server.files["/a.txt"].faults = ["drop 400000", *["503"] * 5]
    with pytest.raises(BuildError, match="503"):
        execute(second, stores)
    assert find_record(first, stores)
    assert not find_record(second, stores)
    assert stores.work.size(stage.part_name(item, 1)) is None
    server.serve("/a.txt", CONTENT[::-1])
    with pytest.raises(InputError, match="changed while the corpus was built"):
        execute(second, stores)
    assert {unit.id for unit in stage.plan_fetch(find(server.uri + "/a.txt"))}.isdisjoint(
        {first.id, second.id}
    )


def test_checksums(server: FaultyServer, stores: Stores, tmp_path: Path) -> None:
    right, wrong = hashlib.sha256(CONTENT).hexdigest(), "0" * 64
    [item] = with_checksums([find(server.serve("/a.txt", CONTENT))], {"a.txt": right.upper()})
    for unit in stage.plan_fetch(item):
        execute(unit, stores)
    [good] = stage.plan_verify(item)
    execute(good, stores)
    assert find_record(good, stores)
    [bad] = stage.plan_verify(replace(item, sha256=wrong))
    with pytest.raises(InputError, match=rf"a\.txt: its sha256 is {right}; expected {wrong}"):
        execute(bad, stores)
    assert not any(find_record(unit, stores) for unit in stage.plan_fetch(item))
    (tmp_path / "b.txt").write_bytes(CONTENT)
    local = Input(str(tmp_path / "b.txt"), "b.txt", len(CONTENT))
    assert with_version(with_checksums([local], right)[0]).version == f"sha256:{right}"
    with pytest.raises(InputError, match=rf"b\.txt: its sha256 is {right}; expected {wrong}"):
        with_version(with_checksums([local], wrong)[0])
    with pytest.raises(
        InputError, match=r"'c\.txt' is no file of this source; its files are named a\.txt, b\.txt"
    ):
        with_checksums([item, local], {"c.txt": right})
    with pytest.raises(InputError, match="one sha256 for 2 files"):
        with_checksums([item, local], right)


def test_a_corpus_from_a_server_that_fails(
    server: FaultyServer, small_tokenizer: Path, tmp_path: Path
) -> None:
    """The real command, through 503, a broken connection and ignored ranges: the corpus of the same file at hand."""
    rows = [{"id": str(n), "text": f"text {n} " * 30} for n in range(3000)]
    local = write_jsonl(tmp_path / "a.jsonl", rows)
    config = {"tokenizer": str(small_tokenizer), "sequence_length": 64}
    source = {"kind": "text", "name": "a", "path": str(local)}
    done = command(
        write_config(tmp_path / "l.yaml", {**config, "sources": [source]}), tmp_path / "l", "--local"
    )
    assert done.returncode == 0, done.stderr
    for number, traits in enumerate(["", "no_ranges"]):
        faults = ["503", "", "503 0", "drop 100000", "drop 30000" if not traits else "", ""]
        uri = server.serve("/a.jsonl", local.read_bytes(), *faults, traits=traits)
        file = write_config(tmp_path / f"{number}.yaml", {**config, "sources": [{**source, "path": uri}]})
        done = command(file, tmp_path / str(number), "--local")
        assert done.returncode == 0, done.stderr
        mine, its = contents(tmp_path / str(number)), contents(tmp_path / "l")
        shards = [name for name in its if name.endswith(".arrow")]
        assert shards
        assert all(mine[name] == its[name] for name in shards)


def test_a_wrong_checksum_of_a_local_file_ends_the_command(small_tokenizer: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "text " * 100}])
    source = {"kind": "text", "path": "a.jsonl", "checksums": "0" * 64}
    config = {"tokenizer": str(small_tokenizer), "sequence_length": 64, "sources": [source]}
    file = write_config(tmp_path / "c.yaml", config)
    assert load_config(file).inputs[0][0].sha256 == "0" * 64
    done = command(file, tmp_path / "out", "--local")
    assert done.returncode == 2
    assert (
        f"a.jsonl: its sha256 is {hashlib.sha256((tmp_path / 'a.jsonl').read_bytes()).hexdigest()}"
        in done.stderr
    )
    assert json.dumps("0" * 64).strip('"') in done.stderr


def test_a_file_that_changes_during_the_build_ends_the_command(
    server: FaultyServer, small_tokenizer: Path, tmp_path: Path
) -> None:
    """In the middle of its download; the same command then builds a corpus of the file as it is now, alone."""
    rows = [{"id": str(n), "text": f"text {n} " * 30} for n in range(1000)]
    content = write_jsonl(tmp_path / "a.jsonl", rows).read_bytes()
    uri = server.serve("/a.jsonl", content, "", "change 100000")
    settings = {"tokenizer": str(small_tokenizer), "sequence_length": 64}
    file = write_config(tmp_path / "c.yaml", {**settings, "sources": [{"kind": "text", "path": uri}]})
    done = command(file, tmp_path / "out", "--local")
    assert done.returncode == 2
    assert f"build_corpus: {uri}: changed while the corpus was built: its version was" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out/manifest.json").exists()
    server.serve("/a.jsonl", b"".join(line + b"\n" for line in content.splitlines()[::-1]))
    for name in ("out", "anew"):
        done = command(file, tmp_path / name, "--local")
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "anew")
    assert json.loads((tmp_path / "out/manifest.json").read_text())["sources"][0]["read"] == len(rows)
