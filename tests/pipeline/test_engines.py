"""The engines behind the tokenizer: each gives the reference's ids on every text, or is not used, and says why."""

import bz2
import gzip
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer

from pipeline.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer
from pipeline.tokenizer import tokenizer as tokenizer_module
from pipeline.tokenizer.engines import ENGINE_VARIABLE, FAST, REFERENCE, Fastokens, Guarded
from pipeline.tokenizer.ranks import byte_characters
from tests.pipeline.conftest import words

FASTER = [name for name in FAST if find_spec(name)]
ENGINES = [*FASTER, REFERENCE]


def assert_equal(tokenizer: Tokenizer, texts: list[str], expected: list[list[int]]) -> None:
    ids, offsets = tokenizer.encode(texts)
    assert offsets.dtype == np.int64
    assert offsets.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    for text, start, end, right in zip(texts, offsets[:-1], offsets[1:], expected, strict=True):
        assert ids[start:end].tolist() == right, text[:200]


def real_texts(folder: Path) -> list[str]:
    """Every file, unpacked where it is packed by itself, and as it lies: bytes that are no UTF-8."""
    texts = []
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.parent.name != "tokenizer":
            content = file.read_bytes()
            texts.append(content[:300_000].decode("utf-8", errors="replace"))
            opener: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".bz2": bz2.decompress}
            texts.append(opener.get(file.suffix, bytes)(content).decode("utf-8", errors="replace"))
    return texts


@pytest.fixture(scope="module")
def hugging_face(shared_data: Path) -> tuple[list[str], list[list[int]]]:
    """All the real text, and its ids by transformers."""
    theirs = AutoTokenizer.from_pretrained(str(shared_data / "tokenizer"), split_special_tokens=True)
    texts = real_texts(shared_data)
    assert sum(map(len, texts)) > 20_000_000
    return texts, [theirs(text, add_special_tokens=False).input_ids for text in texts]


@pytest.mark.parametrize("engine", ENGINES)
def test_all_real_text(
    engine: str, shared_data: Path, hugging_face: tuple[list[str], list[list[int]]]
) -> None:
    tokenizer = load_tokenizer(shared_data / "tokenizer", engine)
    assert tokenizer.engine.split()[0] == engine
    assert tokenizer.encode([])[0].dtype == np.uint16
    assert_equal(tokenizer, *hugging_face)


@pytest.fixture(scope="module")
def every_character(shared_data: Path) -> tuple[list[str], tuple[np.ndarray, np.ndarray]]:
    """Each code point among letters, numbers, blanks and itself, and their ids by the reference."""
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    parts = [f"a{c} {c}1{c}{c}" for c in map(chr, codes)]
    texts = ["".join(parts[start : start + 500]) for start in range(0, len(parts), 500)]
    return texts, load_tokenizer(shared_data / "tokenizer", REFERENCE).encode(texts)


@pytest.mark.parametrize("engine", FASTER)
def test_every_character(
    engine: str, shared_data: Path, every_character: tuple[list[str], tuple[np.ndarray, np.ndarray]]
) -> None:
    """Engines carry their own tables of letters, numbers and blanks, of one Unicode version or another."""
    texts, expected = every_character
    for found, right in zip(
        load_tokenizer(shared_data / "tokenizer", engine).encode(texts), expected, strict=True
    ):
        assert np.array_equal(found, right)


def trained(texts: list[str], size: int) -> Tokenizer:
    backend = ByteLevelBPETokenizer()
    backend.train_from_iterator(
        texts, vocab_size=size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    return Tokenizer(tokenizers.Tokenizer.from_str(backend.to_str()), "in memory")


@pytest.fixture(scope="module", params=["syllables", "runs", "wide"])
def small(request: pytest.FixtureRequest) -> str:
    """Trained vocabularies: of words, of long runs, of characters beyond ASCII."""
    import random

    generator = random.Random(5)
    texts = {
        "syllables": [words(generator, 3000)],
        "runs": ["".join(generator.choices("aab  \n'1=", k=60)) for _ in range(300)],
        "wide": ["".join(map(chr, generator.choices(range(0xA0, 0x800), k=80))) for _ in range(300)],
    }[request.param]
    return trained(texts, 700).to_json()


BLANKS = st.text(st.sampled_from(" \n\t\r\v\f\x1c\x85\u00a0\u2003\u2028\u3000\u200b"), max_size=20)
DIGITS = st.text(st.sampled_from("0123456789'sStTmMdDlLrReEvV .,²½٣"), max_size=30)
REPEATED = st.builds(lambda unit, times: unit * times, st.text(min_size=1, max_size=3), st.integers(1, 600))
TEXTS = st.lists(
    st.lists(st.one_of(st.text(), BLANKS, DIGITS, REPEATED), max_size=6).map("".join), max_size=4
)


@pytest.mark.parametrize("engine", FASTER)
@settings(deadline=None, max_examples=150)
@given(texts=TEXTS)
def test_random_unicode(engine: str, small: str, texts: list[str]) -> None:
    tokenizer = loaded(small, engine)
    assert_equal(tokenizer, texts, tokenizer.encode_batch(texts))
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


_loaded: dict[tuple[str, str], Tokenizer] = {}


def loaded(content: str, engine: str) -> Tokenizer:
    """Once for all of hypothesis' examples."""
    if (content, engine) not in _loaded:
        _loaded[content, engine] = Tokenizer(tokenizers.Tokenizer.from_str(content), "in memory", engine)
    return _loaded[content, engine]


@pytest.mark.parametrize("engine", ENGINES)
def test_random_unicode_with_the_real_vocabulary(engine: str, shared_data: Path) -> None:
    content = (shared_data / "tokenizer/tokenizer.json").read_text()

    @settings(deadline=None, max_examples=150)
    @given(texts=TEXTS)
    def check(texts: list[str]) -> None:
        tokenizer = loaded(content, engine)
        assert_equal(tokenizer, texts, tokenizer.encode_batch(texts))

    check()


@pytest.mark.parametrize("engine", ENGINES)
def test_runs_that_no_pattern_ends(engine: str, small_tokenizer: Path) -> None:
    """tiktoken's pattern gives up on the blanks before a word: the reference takes that text."""
    tokenizer = load_tokenizer(small_tokenizer, engine)
    texts = [" " * 1_200_000 + "x", "ab" * 100_000, "🙂" * 100_000, "\n" * 100_000]
    assert_equal(tokenizer, ["before", *texts, "after"], tokenizer.encode_batch(["before", *texts, "after"]))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_lone_surrogate_is_refused(engine: str, small_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(small_tokenizer, engine)
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode(["fine", "a\ud800b"])


def test_wide_vocabularies_have_wide_ids(small_tokenizer: Path, tmp_path: Path) -> None:
    data = json.loads(small_tokenizer.read_text())
    data["model"]["vocab"]["far"] = 70_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    ids, _ = load_tokenizer(tmp_path).encode(["far away"])
    assert ids.dtype == np.uint32


# Which engine is used, and why not a faster one.


def test_the_fastest_installed_engine_is_used(small_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    tokenizer = load_tokenizer(small_tokenizer)
    assert tokenizer.engine.split()[0] == ENGINES[0]
    assert tokenizer.passed_over == tuple(f"{name} is not installed" for name in FAST if name not in FASTER)
    assert load_tokenizer(small_tokenizer, tokenizer.engine).engine == tokenizer.engine
    monkeypatch.setenv(ENGINE_VARIABLE, REFERENCE)
    assert load_tokenizer(small_tokenizer).engine == f"{REFERENCE} {tokenizers.__version__}"
    assert load_tokenizer(small_tokenizer, tokenizer.engine).engine == tokenizer.engine


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("sentencepiece", "engine 'sentencepiece': expected auto, fastokens, tiktoken or tokenizers"),
        ("fastokens 0.0.1", "engine fastokens 0.0.1: fastokens is installed in version"),
        ("tokenizers 0.0.1", "engine tokenizers 0.0.1: tokenizers is installed in version"),
    ],
)
def test_an_engine_that_cannot_be_had(asked: str, found: str, small_tokenizer: Path) -> None:
    with pytest.raises(ValueError, match=f"tokenizer {small_tokenizer}: {found}"):
        load_tokenizer(small_tokenizer, asked)


def _model(data: dict[str, Any], **changes: Any) -> None:
    data["model"].update(changes)


def _merge(data: dict[str, Any], place: int, left: str, right: str) -> None:
    data["model"]["merges"].insert(place, [left, right])
    data["model"]["vocab"].setdefault(left + right, len(data["model"]["vocab"]))


def _unreachable(data: dict[str, Any]) -> None:
    """ "qx" and "xq" merge before "q" and "xq" could: "qxq" is never made of its own letters."""
    for place, pair in enumerate((("q", "x"), ("x", "q"), ("q", "xq"))):
        _merge(data, place, *pair)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "normalizer": (lambda d: d.update(normalizer={"type": "NFC"}), "its normalizer is NFC, expected none"),
    "sequence": (
        lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [d["pre_tokenizer"]]}),
        "its pre-tokenizer is Sequence, expected ByteLevel alone",
    ),
    "prefix": (lambda d: d["pre_tokenizer"].update(add_prefix_space=True), "puts a space before each text"),
    "pattern": (lambda d: d["pre_tokenizer"].update(use_regex=False), "splits by no pattern"),
    "ignore_merges": (lambda d: _model(d, ignore_merges=True), "its model sets ignore_merges to True"),
    "byte_fallback": (lambda d: _model(d, byte_fallback=True), "its model sets byte_fallback to True"),
    "added": (
        lambda d: d["added_tokens"].append(
            {**d["added_tokens"][0], "id": 900, "content": "ba", "special": False}
        ),
        "its added token 'ba' is not special",
    ),
    "bytes": (lambda d: d["model"]["vocab"].pop("Ā"), "byte 0x00 is not in its vocabulary"),
    "order": (
        lambda d: _merge(d, 0, d["model"]["merges"][0][0], "".join(d["model"]["merges"][0])),
        "joins what no",
    ),
    "twice": (
        lambda d: [_merge(d, 0, *pair) for pair in (("qx", "v"), ("q", "xv"), ("q", "x"), ("x", "v"))],
        "its merge of 'qx' and 'v' makes what an earlier merge makes",
    ),
    "unreachable": (_unreachable, "its merges make 'qxq', but not of that entry's own bytes"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tokenizer_that_ranks_do_not_tell_is_the_reference_s(
    change: str, small_tokenizer: Path, tmp_path: Path
) -> None:
    data = json.loads(small_tokenizer.read_text())
    edit, reason = CHANGES[change]
    edit(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.engine.split()[0] == REFERENCE
    assert [reason in line for line in tokenizer.passed_over] == [True] * len(FAST)
    texts = ["qxq aqxqa baba\x00 <mask>", "ba ba"]
    assert_equal(tokenizer, texts, tokenizer.encode_batch(texts))
    for engine in FASTER:
        with pytest.raises(ValueError, match=f"engine {engine}: {engine} does not fit this tokenizer"):
            load_tokenizer(tmp_path, engine)


def test_the_unreachable_would_differ(small_tokenizer: Path) -> None:
    """What the third condition of `ranks` is for: here an engine of ranks takes the whole, and the list does not."""
    pytest.importorskip("tiktoken")
    from pipeline.tokenizer.engines import Tiktoken

    data = json.loads(small_tokenizer.read_text())
    _unreachable(data)
    reference = tokenizers.Tokenizer.from_str(json.dumps(data))
    ids, _ = Tiktoken(data).encode(["qxq"])
    assert ids.tolist() != reference.encode("qxq").ids


def test_every_byte_has_a_character() -> None:
    assert sorted(byte_characters().values()) == list(range(256))
    assert set(byte_characters()) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.skipif("fastokens" not in FASTER, reason="fastokens is not installed")
@pytest.mark.parametrize("fault", ["wrong id", "error", "lost text"])
def test_an_engine_that_fails_on_the_sample_is_passed_over(
    fault: str, small_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Faulty(Fastokens):
        def encode(self, texts: Any) -> Any:
            if fault == "error":
                raise RuntimeError("no more")
            ids, offsets = super().encode(texts)
            if fault == "wrong id":
                ids = ids.copy()
                ids[-1] += 1
            return ids, offsets if fault == "wrong id" else offsets[:-1]

    monkeypatch.setattr(tokenizer_module, "_chosen", {})
    monkeypatch.setitem(FAST, "fastokens", Faulty)
    monkeypatch.delitem(FAST, "tiktoken")
    tokenizer = load_tokenizer(small_tokenizer)
    said = "failed on the sample texts: RuntimeError: no more" if fault == "error" else "gives other ids"
    assert tokenizer.engine.split()[0] == REFERENCE
    assert tokenizer.passed_over[0].startswith("fastokens")
    assert said in tokenizer.passed_over[0]


def test_what_an_engine_refuses_later_the_reference_encodes(small_tokenizer: Path) -> None:
    class PanicException(BaseException):
        """As Rust's bindings raise it: no Exception."""

    class Refusing:
        def encode(self, texts: Any) -> Any:
            if any("odd" in text for text in texts):
                raise PanicException
            return inner.encode(texts)

    reference = load_tokenizer(small_tokenizer, REFERENCE)
    inner = reference._choose(REFERENCE).engine
    guarded = Guarded(Refusing(), inner)
    texts = ["one", "odd", "", "another odd", "two"]
    for result, right in zip(guarded.encode(texts), reference.encode(texts), strict=True):
        assert result.tolist() == right.tolist()
