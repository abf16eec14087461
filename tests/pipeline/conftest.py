"""What the pipeline's tests share: the real data where it is, a small tokenizer, small sources, and the command."""

import gzip
import io
import json
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import ByteLevelBPETokenizer

from pipeline.build_corpus import main
from pipeline.tokenizer import SPECIAL_TOKENS

ROOT = Path(__file__).parents[2]


def words(generator: random.Random, count: int) -> str:
    """A text of `count` words of a small vocabulary, in lines, with some characters beyond ASCII."""
    syllables = ["ba", "ce", "di", "fo", "gu", "lé", "mö", "na", "pi", "日本", "ru", "ста", "ti", "vo", "🙂"]
    parts = []
    for index in range(count):
        parts.append("".join(generator.choices(syllables, k=generator.randint(1, 4))))
        parts.append(".\n" if index % 17 == 16 else " ")
    return "".join(parts)


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE of 500 entries, as `tokenizers` trains and saves one."""
    generator = random.Random(0)
    tokenizer = ByteLevelBPETokenizer()
    texts = [words(generator, 200) for _ in range(50)]
    tokenizer.train_from_iterator(
        texts, vocab_size=500, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any] | bytes]) -> Path:
    """Rows as a .jsonl or .jsonl.gz; bytes are written as a line of their own, as they are."""
    lines = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines, mtime=0) if path.suffix == ".gz" else lines)
    return path


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="session")
def small_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four sources and some own documents, small, in their formats, with one of every difficulty."""
    folder = tmp_path_factory.mktemp("sources")
    generator = random.Random(1)
    (folder / "books").mkdir()
    for number in range(5):
        body = words(generator, 800)
        text = f"Header\r\n*** START OF THE PROJECT GUTENBERG EBOOK {number} ***\r\n{body}\r\n"
        text += f"*** END OF THE PROJECT GUTENBERG EBOOK {number} ***\r\nLicence\r\n"
        (folder / "books" / f"{number}.txt").write_bytes(text.encode("utf-8-sig" if number % 2 else "utf-8"))
    articles: list[Mapping[str, Any] | bytes] = [
        {"id": str(i), "url": "u", "title": "t", "text": words(generator, generator.randint(1, 300))}
        for i in range(60)
    ]
    articles.append(b'{"id": "60", "text": "broken')
    articles.append('{"id": "61", "text": "caf\xe9"}'.encode("latin-1"))
    articles.append({"id": "62", "title": "no text here"})
    articles.append({"id": "63", "text": "   \n"})
    write_jsonl(folder / "wikipedia.jsonl.gz", articles)
    news = [
        {"title": "t", "text": words(generator, generator.choice([20, 400])), "url": "u", "split": "train"}
        for _ in range(80)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in news).encode()
    write_tar(folder / "realnews.tar.gz", {"realnews/realnews.jsonl": lines})
    (folder / "stories.txt").write_text(
        "".join(words(generator, 150).replace("\n", " ") + "\n" for _ in range(60)), encoding="utf-8"
    )
    repeated = words(generator, 90)
    (folder / "own").mkdir()
    (folder / "own" / "a.txt").write_text(repeated + "<mask> </s> <s>", encoding="utf-8")
    (folder / "own" / "b.txt").write_text(repeated.upper() + " <MASK>  </s>\n<s>", encoding="utf-8")
    write_jsonl(folder / "own" / "c.jsonl", [{"text": words(generator, 50)} for _ in range(20)])
    return folder


def make_small_config(small_sources: Path, small_tokenizer: Path) -> dict[str, Any]:
    """A configuration of all small sources; chunks and shards so small that there are several of each."""
    return {
        "tokenizer": str(small_tokenizer),
        "sequence_length": 128,
        "seed": 3,
        "chunk_bytes": 20_000,
        "shard_sequences": 100,
        "validation_fraction": 0.1,
        "sources": [
            {"kind": "books", "path": str(small_sources / "books")},
            {"kind": "wikipedia", "path": str(small_sources / "wikipedia.jsonl.gz")},
            {"kind": "realnews", "path": str(small_sources / "realnews.tar.gz"), "minimum_tokens": 301},
            {"kind": "stories", "path": str(small_sources / "stories.txt")},
            {"kind": "text", "path": str(small_sources / "own")},
        ],
        "filters": [{"name": "length", "minimum_bytes": 50}],
    }


@pytest.fixture
def small_config(small_sources: Path, small_tokenizer: Path) -> dict[str, Any]:
    """`make_small_config`'s, for a test to change."""
    return make_small_config(small_sources, small_tokenizer)


@pytest.fixture(scope="session")
def built(
    tmp_path_factory: pytest.TempPathFactory, small_sources: Path, small_tokenizer: Path
) -> tuple[dict[str, Any], Path]:
    """The small corpus, built once without Ray: its configuration and its folder. Tests must not change it."""
    config = make_small_config(small_sources, small_tokenizer)
    output = tmp_path_factory.mktemp("built") / "corpus"
    assert build(config, output) == 0
    return config, output


def write_config(path: Path, config: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(config), allow_unicode=True), encoding="utf-8")
    return path


def build(config: Mapping[str, Any], output: Path, *options: str) -> int:
    """The command, in this process; `--local` unless the options say `--ray`."""
    file = write_config(output.parent / f"{output.name}.yaml", config)
    where = [option for option in options if option != "--ray"]
    where += [] if "--ray" in options else ["--local"]
    return main(["--config", str(file), "--output", str(output), *where])


def environment(**extra: str) -> dict[str, str]:
    """For processes the tests start: this environment's programs first, quiet and private Ray."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Other programs of the machine may fill its memory; Ray would kill its own workers for that.
        "RAY_memory_monitor_refresh_ms": "0",
        **extra,
    }


def command(config: Path, output: Path, *options: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """The command as a user starts it; `extra` are variables of its environment."""
    arguments = ["-m", "pipeline.build_corpus", "--config", str(config), "--output", str(output), *options]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=300,
    )


def contents(output: Path) -> dict[str, bytes]:
    """All files of a corpus that must not depend on how it was built; the report has timings."""
    files = (path for path in sorted(output.rglob("*")) if path.is_file() and path.name != "report.html")
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in files}
