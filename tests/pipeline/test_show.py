"""Sequences shown as text: what stands where, for whom, and what is said where it cannot be shown."""

import os
import pty
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards import open_corpus
from pipeline.show import inert, main, wrapped
from pipeline.tokenizer import load_tokenizer
from tests.pipeline.conftest import build, write_jsonl
from tests.pipeline.test_build import documents_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(built: tuple[dict[str, Any], Path]) -> Path:
    return built[1]


def show(capsys: pytest.CaptureFixture[str], corpus: Path | str, *options: str) -> str:
    assert main([str(corpus), *options]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refusal(capsys: pytest.CaptureFixture[str], corpus: Path | str, *options: str) -> str:
    assert main([str(corpus), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in line)


def test_every_sequence_is_shown_with_its_borders(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = open_corpus(corpus, "validation")
    for number in range(len(opened)):
        out = show(capsys, corpus, "--split", "validation", "--sequence", str(number))
        lines = out.splitlines()
        ids = opened.input_ids(number).tolist()
        padding = ids.count(opened.pad_id)
        tokens = sum(
            i not in (opened.special_ids["bos"], opened.special_ids["eos"], opened.pad_id) for i in ids
        )
        assert lines[0] == f"sequence {number} of validation"
        assert lines[1].startswith(f"  validation/00000.arrow, row {number}; {tokens} tokens in ")
        assert lines[1].endswith(f", {padding} padding")
        assert (f"<pad> × {padding}" in out) == (padding > 0)
        assert out.count("<s>") == 1
        assert out.count("</s>") == ids.count(opened.special_ids["eos"])
        for document, source in zip(opened.documents(number), opened.sources(number), strict=True):
            assert f"  {source}  {document}" in lines
        for offset, start in zip(
            opened.document_offsets(number), opened.document_starts(number), strict=True
        ):
            assert f"  places {start}–" in out
            assert f"tokens, from token {offset:,} of the document on" in out
        assert all(columns(line) <= 80 for line in lines)
        assert "\x1b" not in out


def test_a_document_is_found_and_shown_whole(
    built: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, corpus = built
    texts = documents_of(config)
    tokenizer = load_tokenizer(corpus)
    for split in ("train", "validation"):
        opened = open_corpus(corpus, split)
        places: dict[str, list[int]] = {}
        for number in range(len(opened)):
            for document in opened.documents(number):
                places.setdefault(document, []).append(number)
        for document in sorted(places)[::7]:
            out = show(capsys, corpus, "--document", document, "--ids", "--full")
            said = [
                int(line.split()[1].replace(",", ""))
                for line in out.splitlines()
                if line.startswith("sequence ")
            ]
            assert said == places[document]
            assert out.count(f"  {document}\n") == len(said)
            ids = [int(word) for line in out.splitlines() for word in line.split() if _is_ids(line)]
            assert [i for i in ids if i > 4] == tokenizer.encode_batch([texts[document]])[0]


def _is_ids(line: str) -> bool:
    return line.startswith("    ") and line.replace(" ", "").isdecimal()


def test_text_is_shortened_in_the_middle_unless_it_is_wanted_whole(
    small_tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "Start.\n\n" + "middle " * 200 + "\n\tThe end, <mask> </s> \x1b[31m\x07 日本."
    write_jsonl(tmp_path / "a.jsonl", [{"id": "a", "text": text}])
    config = {
        "tokenizer": str(small_tokenizer),
        "sequence_length": 4096,
        "sources": [{"kind": "text", "path": str(tmp_path / "a.jsonl")}],
        "validation_fraction": 0,
    }
    assert build(config, tmp_path / "corpus") == 0
    capsys.readouterr()
    out = show(capsys, tmp_path / "corpus")
    assert "<s>Start.⏎ ⏎ middle middle" in out
    assert " characters…] " in out
    assert "The end, <mask> </s> \\x1b[31m\\x07 日本.</s></s>\n" in " ".join(out.split("\n    ")) + "\n"
    full = show(capsys, tmp_path / "corpus", "--full")
    shown = text.replace("\x1b", "\\x1b").replace("\x07", "\\x07").replace("\n", "\n    ")
    assert f"    <s>{shown}</s></s>\n" in full
    assert "[…" not in full


def test_random_sequences_are_the_same_for_the_same_seed(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = show(capsys, corpus, "--random", "3", "--seed", "5")
    assert first == show(capsys, corpus, "--random", "3", "--seed", "5")
    assert first != show(capsys, corpus, "--random", "3", "--seed", "6")
    assert first.count("sequence ") == 3
    every = show(capsys, corpus, "--random", "1000000", "--split", "validation")
    assert every.count(" of validation\n") == len(open_corpus(corpus, "validation"))


def test_what_cannot_be_shown_is_said_in_one_line(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    total = len(open_corpus(corpus))
    assert f"train has {total:,} sequences, numbered from 0; there is no number {total:,}" in refusal(
        capsys, corpus, "--sequence", str(total)
    )
    assert "there is no number -1" in refusal(capsys, corpus, "--sequence", "-1")
    assert "no split 'test', it has train, validation" in refusal(capsys, corpus, "--split", "test")
    assert "no split 'test'" in refusal(capsys, corpus, "--split", "test", "--document", "a")
    assert "no document 'x' in train, validation; ids look like '" in refusal(
        capsys, corpus, "--document", "x"
    )
    assert "manifest.json: missing; not a corpus" in refusal(capsys, tmp_path)
    assert "unknown scheme ftp://" in refusal(capsys, "ftp://a/b")
    copy = Path(shutil.copytree(corpus, tmp_path / "copy"))
    content = (copy / "train/00000.arrow").read_bytes()
    (copy / "train/00000.arrow").write_bytes(content[:1000])
    assert "train/00000.arrow: not a readable Arrow file" in refusal(capsys, copy)
    (copy / "train/00000.arrow").unlink()
    assert "train/00000.arrow: missing, though manifest.json lists it" in refusal(capsys, copy)
    (copy / "tokenizer.json").write_text("{}")
    assert "tokenizer.json: not a tokenizer.json" in refusal(capsys, copy)
    (copy / "manifest.json").write_text("{}")
    assert "manifest.json: format version None, expected 1" in refusal(capsys, copy)


def test_colours_are_for_terminals(corpus: Path) -> None:
    command = [sys.executable, "-m", "pipeline.show", str(corpus)]
    plain = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"}
    piped = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, timeout=60)
    assert "\x1b" not in piped.stdout

    def in_terminal(**extra: str) -> str:
        reading, writing = pty.openpty()
        with subprocess.Popen(command, cwd=ROOT, env=plain | extra, stdout=writing) as process:
            os.close(writing)
            written = b""
            while True:
                try:
                    written += os.read(reading, 65536)
                except OSError:
                    break
            assert process.wait(60) == 0
        os.close(reading)
        return written.decode()

    assert "\x1b[35m<s>\x1b[0m" in in_terminal()
    assert "\x1b" not in in_terminal(NO_COLOR="1")
    assert "\x1b" not in in_terminal(TERM="dumb")


def test_a_reader_that_stops_reading_is_no_error(corpus: Path) -> None:
    command = f"'{sys.executable}' -m pipeline.show '{corpus}' --random 300 --full --ids | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@given(text=st.text(), width=st.integers(2, 40))
def test_wrapping_loses_nothing_and_keeps_the_width(text: str, width: int) -> None:
    text = inert(text)
    lines = wrapped(text, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(columns(line) <= width for line in lines)


@given(text=st.text())
def test_nothing_reaches_the_terminal_but_characters_to_draw(text: str) -> None:
    assert not any(unicodedata.category(c) == "Cc" for c in inert(text))
    assert "\x1b" not in inert("\x1b\n", keep="\n\t")
