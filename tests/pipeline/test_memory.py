"""What reading holds in memory, whatever the archive: measured in a process of its own."""

import bz2
import gzip
import io
import json
import lzma
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pipeline.conftest import ROOT, environment

LIMIT = 300
"""MB, of a whole process that reads documents: Python and pyarrow take 110 of them."""

READ = """
import json, re, sys
from collections import Counter
from pathlib import Path
from pipeline.errors import InputError
from pipeline.fetch import Input
from pipeline.sources import SOURCES
from pipeline.sources.reading import read_documents

path = Path(sys.argv[1])
counts = Counter()
try:
    for document, _ in read_documents(SOURCES[sys.argv[2]](), Input(str(path), path.name, path.stat().st_size)):
        counts[getattr(document, "reason", "read")] += 1
except InputError as error:
    counts[str(error)] += 1
# Not getrusage, which counts what the process that started this one held.
[peak] = re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps([counts, int(peak) / 1000]))
"""

MB = b"0123456789abcde " * 62_500
LINE = b'{"text": "' + MB[:2035] + b'"}\n'


def many_lines(path: Path) -> None:
    """1.2 GB of rows in an archive of a single member, as RealNews is."""
    block = gzip.compress(LINE * 1000, 1)
    header = tarfile.TarInfo("realnews.jsonl")
    header.size = 600_000 * len(LINE)
    assert header.size % 512 == 0
    end = gzip.compress(bytes(1024))
    path.write_bytes(gzip.compress(header.tobuf()) + block * 600 + end)


def long_line(path: Path) -> None:
    with path.open("wb") as file:
        file.write(LINE + b'{"text": "')
        for _ in range(200):
            file.write(MB)
        file.write(b'"}\n' + LINE)


def huge_row_group(path: Path) -> None:
    texts = [str(number) + MB[:20_000].decode() for number in range(10_000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1_000_000, compression="zstd")


def parquet_in_tar(path: Path) -> None:
    huge_row_group(path.with_name("a.parquet"))
    with tarfile.open(path, "w") as archive:
        archive.add(path.with_name("a.parquet"), "a.parquet")


def parquet_in_zip(path: Path) -> None:
    huge_row_group(path.with_name("a.parquet"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path.with_name("a.parquet"), "a.parquet")


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.jsonl", "w") as member:
        for _ in range(600):
            member.write(bytes(1_000_000))


def bomb(pack: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(b"".join([pack(bytes(50_000_000))] * 12)) and None


def many_members(path: Path) -> None:
    """tarfile keeps every member it has seen."""
    out = io.BytesIO()
    header = tarfile.TarInfo("name.txt")
    header.size = 1
    out.write((header.tobuf() + b"x".ljust(512, b"\0")) * 1000)
    path.write_bytes(gzip.compress(out.getvalue()) * 300 + gzip.compress(bytes(1024)))


def long_name(path: Path) -> None:
    """tarfile reads a member's long name whole."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 400_000_000
    block = gzip.compress(bytes(40_000_000).replace(b"\0", b"a"))
    path.write_bytes(gzip.compress(header.tobuf()) + block * 10)


BOMB = "a decompression bomb"
CASES: dict[str, tuple[str, str, Callable[[Path], None], dict[str, int]]] = {
    "many lines": ("realnews", "r.tar.gz", many_lines, {"read": 600_000}),
    "long line": ("text", "a.jsonl", long_line, {"read": 2, "too_large": 1}),
    "huge row group": ("text", "b.parquet", huge_row_group, {"read": 10_000}),
    "parquet in tar": ("text", "b.tar", parquet_in_tar, {"read": 10_000}),
    "parquet in zip": ("text", "b.zip", parquet_in_zip, {"read": 10_000}),
    "zip bomb": ("text", "b.zip", zip_bomb, {BOMB: 1}),
    "gz bomb": ("text", "b.jsonl.gz", bomb(gzip.compress), {BOMB: 1}),
    "bz2 bomb": ("text", "b.jsonl.bz2", bomb(bz2.compress), {BOMB: 1}),
    "xz bomb": ("text", "b.jsonl.xz", bomb(lzma.compress), {BOMB: 1}),
    "bomb of a text": ("text", "b.txt.gz", bomb(gzip.compress), {"too_large": 1}),
    "many members": ("text", "b.tar.gz", many_members, {"read": 300_000}),
    "long name": ("text", "b.tar.gz", long_name, {"a member's header of 400,000,000 bytes": 1}),
}


@pytest.mark.parametrize("case", CASES)
def test_reading_holds_little(tmp_path: Path, case: str) -> None:
    kind, name, make, expected = CASES[case]
    make(tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / name), kind],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    counts, megabytes = json.loads(done.stdout)
    assert megabytes < LIMIT
    for what, count in expected.items():
        assert sum(found for key, found in counts.items() if what in key) == count, counts
    assert len(counts) == len(expected)
