"""The corpus of real text with the real tokenizer: counts that were looked at once, and must stay.

3 books, 106 Wikipedia articles, 261 stories, and as news the 5 rows of RealNews that are public and 65 speeches,
which the test writes out as RealNews' rows; 6 of those are not valid UTF-8.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from tokenizers import Tokenizer

from pipeline.documents import Document
from pipeline.fetch import find_inputs
from pipeline.shards import Corpus, open_corpus
from pipeline.sources import SOURCES
from pipeline.sources.reading import read_documents
from tests.pipeline.conftest import build, write_tar
from tests.pipeline.test_build import pieces

SPEECHES_NOT_UTF8 = 6


@pytest.fixture(scope="module")
def sources(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The `sources` of the configuration; RealNews as its tar.gz of one jsonl."""
    lines = (shared_data / "realnews/realnews_tiny.jsonl").read_bytes()
    with zipfile.ZipFile(shared_data / "realnews/nltk_state_union.zip") as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".txt"):
                # As the bytes are: a speech that is not UTF-8 makes a row that is not.
                text = json.dumps(archive.read(name).decode("latin-1"), ensure_ascii=False).encode("latin-1")
                lines += b'{"title": "%s", "text": %s, "split": "train"}\n' % (name.encode(), text)
    news = tmp_path_factory.mktemp("news") / "realnews.tar.gz"
    write_tar(news, {"realnews/realnews.jsonl": lines})
    return [
        {"kind": "books", "path": str(shared_data / "books")},
        {"kind": "wikipedia", "path": str(shared_data / "wikipedia/enwiki_106_articles_plain.jsonl.gz")},
        {"kind": "realnews", "path": str(news), "sample": 1},
        {"kind": "stories", "path": str(shared_data / "stories/short_fiction.jsonl.gz"), "sample": 1},
    ]


@pytest.fixture(scope="module")
def corpus_folder(
    shared_data: Path, sources: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("real") / "corpus"
    config = {"tokenizer": str(shared_data / "tokenizer"), "sequence_length": 4096, "sources": sources}
    assert build(config, output) == 0
    return output


def test_counts(corpus_folder: Path) -> None:
    manifest = json.loads((corpus_folder / "manifest.json").read_text())
    found = {s["name"]: (s["read"], s["kept"], s["quarantined"], s["dropped"]) for s in manifest["sources"]}
    assert found == {
        "books": (3, {"documents": 3, "tokens": 422_010}, {}, {}),
        "wikipedia": (106, {"documents": 106, "tokens": 605_195}, {}, {}),
        "realnews": (
            70,
            {"documents": 59, "tokens": 386_923},
            {"invalid_utf8": SPEECHES_NOT_UTF8},
            {"too_few_tokens": {"documents": 5, "tokens": 3_324}},
        ),
        "stories": (261, {"documents": 261, "tokens": 1_616_834}, {}, {}),
    }
    tokens = sum(source["kept"]["tokens"] for source in manifest["sources"])
    assert sum(split["tokens"] for split in manifest["splits"].values()) == tokens
    documents = sum(source["kept"]["documents"] for source in manifest["sources"])
    streams = sum(split["sequences"] for split in manifest["splits"].values())
    assert 0 <= streams * 4094 - (tokens + documents) < 2 * 4094, "one sequence a split has padding"


def test_tokens_are_the_reference_s(
    corpus_folder: Path, shared_data: Path, sources: list[dict[str, Any]]
) -> None:
    reference = Tokenizer.from_file(str(shared_data / "tokenizer/tokenizer.json"))
    reference.encode_special_tokens = True
    texts = {}
    for entry in sources:
        for item in find_inputs([entry["path"]], lambda name: True):
            for document, _ in read_documents(SOURCES[entry["kind"]](), item):
                if isinstance(document, Document):
                    texts[f"{entry['kind']}/{document.id}"] = SOURCES[entry["kind"]]().clean(document.text)
    found: dict[str, list[int]] = {}
    for split in ("train", "validation"):
        for document, _, offset, tokens in pieces(open_corpus(corpus_folder, split, verify=True)):
            assert offset == len(found.setdefault(document, []))
            found[document] += tokens
    assert len(found) == 3 + 106 + 59 + 261
    for document, ids in found.items():
        assert reference.encode(texts[document], add_special_tokens=False).ids == ids, document


def test_datasets_reads_it(corpus_folder: Path, tmp_path: Path) -> None:
    files = [str(path) for path in sorted((corpus_folder / "train").glob("*.arrow"))]
    rows = load_dataset("arrow", data_files=files, split="train", cache_dir=str(tmp_path))
    corpus: Corpus = open_corpus(corpus_folder)
    assert len(rows) == len(corpus)
    assert all(len(row) == 4096 for row in rows["input_ids"][:5])
    assert rows[100]["input_ids"] == corpus.input_ids(100).tolist()
    assert rows[100]["documents"] == corpus.documents(100)


def test_the_paper_s_sampling(shared_data: Path, sources: list[dict[str, Any]], tmp_path: Path) -> None:
    """With the kinds' own defaults about a third of news and stories is left, and all five rows are still out."""
    defaults = [{k: v for k, v in source.items() if k != "sample"} for source in sources[2:]]
    config = {"tokenizer": str(shared_data / "tokenizer"), "sequence_length": 4096, "sources": defaults}
    assert build(config, tmp_path / "corpus") == 0
    news, stories = json.loads((tmp_path / "corpus/manifest.json").read_text())["sources"]
    assert 10 <= news["kept"]["documents"] <= 30
    assert 60 <= stories["kept"]["documents"] <= 115
    assert stories["dropped"]["not_sampled"]["documents"] + stories["kept"]["documents"] == 261
