"""Hostile and broken inputs through the real command: a clear message, or quarantine with every count kept."""

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.conftest import command, contents, write_config, write_jsonl, write_tar

TEXT = "a text that is long enough to be kept, "
ROWS = [{"id": str(number), "text": f"{number}: {TEXT}" * 5} for number in range(200)]


def config(tokenizer: Path, *paths: str, **more: Any) -> dict[str, Any]:
    source = {"kind": "text", "name": "own", "path": list(paths), **more}
    return {"tokenizer": str(tokenizer), "sequence_length": 64, "sources": [source]}


def build(folder: Path, settings: dict[str, Any], name: str = "out") -> tuple[int, str, dict[str, Any]]:
    done = command(write_config(folder / f"{name}.yaml", settings), folder / name, "--local")
    assert "Traceback" not in done.stderr, done.stderr
    manifest = folder / name / "manifest.json"
    sources = json.loads(manifest.read_text())["sources"] if manifest.exists() else [{}]
    return done.returncode, done.stderr, sources[0]


def reasons(source: dict[str, Any]) -> dict[str, int]:
    """Of the documents that are not in the corpus; their sum and the kept ones are all that were read."""
    dropped = {reason: count["documents"] for reason, count in source["dropped"].items()}
    found = dropped | source["quarantined"]
    assert source["read"] == source["kept"]["documents"] + sum(found.values())
    return found


def test_rows_of_every_bad_kind(small_tokenizer: Path, tmp_path: Path) -> None:
    bad = [
        b'{"text": "caf\xe9"}',
        b'{"text": "\x00"}',
        b'{"text": "' + b"x" * 3000 + b'"}',
        b'{"text": ' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"text": "torn',
        b'{"text": ["a list"]}',
        b'"a string"',
        b"null",
        b'{"id": "empty", "text": ""}',
        b'{"id": "blank", "text": " \\n "}',
    ]
    special = [
        {"id": "special", "text": f"<mask> </s> <s> <pad> {TEXT}" * 4},
        {"id": "nul", "text": f"\0 \ufeff \u202e {TEXT}" * 4},
        {"id": "twice", "text": f"the first {TEXT}" * 4},
        {"id": "twice", "text": f"the second {TEXT}" * 4},
    ]
    write_jsonl(tmp_path / "a.jsonl", [*ROWS, *bad, *special])
    (tmp_path / "none.jsonl").write_bytes(b"")
    (tmp_path / "none.txt").write_bytes(b"")
    settings = config(small_tokenizer, "a.jsonl", "none.jsonl", "none.txt", maximum_document_bytes=2500)
    code, stderr, source = build(tmp_path, settings)
    assert code == 0, stderr
    found = reasons(source)
    assert source["kept"]["documents"] == len(ROWS) + 3
    assert {reason: found[reason] for reason in ("invalid_utf8", "too_large", "no_text", "empty")} == {
        "invalid_utf8": 1,
        "too_large": 2,
        "no_text": 3,
        "empty": 3,
    }
    assert found["invalid_json"] == 2
    assert sum(found.values()) == len(bad) + 1 + 1
    entries = (tmp_path / "out/quarantine/own.jsonl").read_text().splitlines()
    assert len(entries) == 8
    assert all("text that is" not in entry for entry in entries)


def tar_of(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, kind in (
            ("link.txt", tarfile.SYMTYPE),
            ("hard.txt", tarfile.LNKTYPE),
            ("tty.txt", tarfile.CHRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name in ("../../escape.txt", "/root.txt", "a/../b.txt", "inner.tar.gz", "inner.zip", "cover.jpg"):
            member = tarfile.TarInfo(name)
            content = f"{name}: {TEXT}".encode() * 9
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def zip_of(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("link.txt", "hard.txt", "tty.txt"):
            member = zipfile.ZipInfo(name)
            member.external_attr = {"link.txt": 0o120777, "hard.txt": 0o140777, "tty.txt": 0o020666}[
                name
            ] << 16
            archive.writestr(member, "/etc/passwd")
        for name in ("../../escape.txt", "/root.txt", "a/../b.txt", "inner.tar.gz", "inner.zip", "cover.jpg"):
            archive.writestr(name, f"{name}: {TEXT}" * 9)


@pytest.mark.parametrize(("name", "make"), [("a.tar.gz", tar_of), ("a.zip", zip_of)])
def test_members_of_every_bad_kind(
    small_tokenizer: Path, tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    """Nothing is written or read outside; what is no file, or an archive again, is told."""
    folder = tmp_path / "a/b/c"
    folder.mkdir(parents=True)
    make(folder / name)
    before = sorted(p for p in tmp_path.rglob("*") if folder not in p.parents)
    code, stderr, source = build(folder, config(small_tokenizer, name))
    assert code == 0, stderr
    assert reasons(source) == {"not_a_file": 3, "nested_archive": 2}
    assert source["kept"]["documents"] == 3
    assert sorted(p for p in tmp_path.rglob("*") if folder not in p.parents) == before
    positions = [json.loads(line)["position"] for line in (folder / "out/quarantine/own.jsonl").open()]
    assert positions == [
        f"{name}/{member}" for member in ("link.txt", "hard.txt", "tty.txt", "inner.tar.gz", "inner.zip")
    ]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.jsonl.gz", "a.zip", "a.tar"])
def test_an_archive_cut_in_the_middle(small_tokenizer: Path, tmp_path: Path, name: str) -> None:
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    path = tmp_path / name
    if name == "a.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.jsonl", lines)
    elif "tar" in name:
        write_tar(path, {"a.jsonl": lines, "b.jsonl": lines})
    else:
        path.write_bytes(gzip.compress(lines))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    code, stderr, _ = build(tmp_path, config(small_tokenizer, name, id_column="none"))
    assert code == 2
    assert f"{name}: truncated or damaged" in stderr
    path.write_bytes(whole)
    code, stderr, source = build(tmp_path, config(small_tokenizer, name, id_column="none"))
    assert code == 0, stderr
    assert source["read"] == len(ROWS) * (2 if "tar" in name else 1)


def test_a_bomb_ends_the_command(small_tokenizer: Path, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=9) as file:
        for _ in range(300):
            file.write(bytes(1_000_000))
    code, stderr, _ = build(tmp_path, config(small_tokenizer, "a.jsonl.gz"))
    assert code == 2
    assert "a.jsonl.gz: truncated or damaged" in stderr
    assert "a decompression bomb" in stderr


def test_files_in_another_order_give_the_same_bytes(small_tokenizer: Path, tmp_path: Path) -> None:
    names = [f"{number}.jsonl" for number in range(4)]
    for number, name in enumerate(names):
        write_jsonl(tmp_path / name, ROWS[number * 50 : number * 50 + 50])
    for name, paths in (("one", names), ("two", names[::-1])):
        assert build(tmp_path, config(small_tokenizer, *paths), name)[0] == 0
    one, two = (contents(tmp_path / name) for name in ("one", "two"))
    assert [n for n in one if n.endswith(".arrow")]
    assert all(two[name] == content for name, content in one.items() if name.endswith(".arrow"))
