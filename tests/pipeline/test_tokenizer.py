"""The tokenizer: its ids are the reference's, its fingerprint names what decides them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

import pipeline.tokenizer
from pipeline.tokenizer import SPECIAL_TOKENS, load_tokenizer


def test_golden_ids(shared_data: Path) -> None:
    golden = json.loads((shared_data / "tokenizer/golden_ids.json").read_text())
    tokenizer = load_tokenizer(shared_data / "tokenizer")
    assert tokenizer.vocabulary_size == golden["vocab_size"]
    assert [tokenizer.bos_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.mask_id] == [
        golden["special"][token] for token in SPECIAL_TOKENS
    ]
    rows = [row for row in golden["published"] + golden["computed"] if "<mask>" not in row["text"]]
    texts = [row["text"] for row in rows]
    assert [[0, *ids, 2] for ids in tokenizer.encode_batch(texts)] == [row["ids"] for row in rows]
    assert tokenizer.encode(texts)[0].tolist() == [index for row in rows for index in row["ids"][1:-1]]
    unused = set(golden["unused"].values())
    assert tokenizer.special_ids == {*golden["special"].values(), *unused}


def test_a_literal_special_token_is_text(shared_data: Path) -> None:
    tokenizer = load_tokenizer(shared_data / "tokenizer")
    text = "Paris is the <mask> of France.</s><s><pad>"
    [ids] = tokenizer.encode_batch([text])
    assert not tokenizer.special_ids & set(ids)
    assert tokenizer.decode(ids) == text


def test_fingerprint_is_of_the_content_not_of_the_files(shared_data: Path, tmp_path: Path) -> None:
    pair = tmp_path / "pair"
    pair.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared_data / "tokenizer" / name, pair)
    from_pair = load_tokenizer(pair)
    from_json = load_tokenizer(shared_data / "tokenizer/tokenizer.json")
    assert from_pair.fingerprint == from_json.fingerprint
    assert from_pair.special_ids == from_json.special_ids
    from_pair.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == from_json.fingerprint


def test_fingerprint_changes_with_what_decides_ids(small_tokenizer: Path, tmp_path: Path) -> None:
    fingerprint = load_tokenizer(small_tokenizer).fingerprint
    for change in ("merge", "prefix", "token"):
        data = json.loads(small_tokenizer.read_text())
        if change == "merge":
            merges = data["model"]["merges"]
            merges[0], merges[1] = merges[1], merges[0]
        elif change == "prefix":
            data["pre_tokenizer"]["add_prefix_space"] = True
        else:
            data["added_tokens"].append({**data["added_tokens"][0], "id": 500, "content": "<extra>"})
        (tmp_path / "tokenizer.json").write_text(json.dumps(data))
        assert load_tokenizer(tmp_path).fingerprint != fingerprint, change


@pytest.mark.parametrize("real", [True, False])
def test_saved_tokenizer_is_what_transformers_loads(
    real: bool, request: pytest.FixtureRequest, small_tokenizer: Path, tmp_path: Path
) -> None:
    source = request.getfixturevalue("shared_data") / "tokenizer" if real else small_tokenizer
    tokenizer = load_tokenizer(source)
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    text = "Hello world! cécé herlolip 日本語"
    [ids] = tokenizer.encode_batch([text])
    assert theirs(text).input_ids == [tokenizer.bos_id, *ids, tokenizer.eos_id]
    assert theirs("a <mask>").input_ids[-2] == theirs.mask_token_id == tokenizer.mask_id
    assert (theirs.pad_token_id, theirs.unk_token_id) == (tokenizer.pad_id, tokenizer.unk_id)
    assert len(theirs) == tokenizer.vocabulary_size


@settings(deadline=None, max_examples=100)
@given(texts=st.lists(st.text(), max_size=5))
def test_ids_are_the_reference_s_and_cover_bytes(texts: list[str]) -> None:
    backend = ByteLevelBPETokenizer()
    backend.train_from_iterator(["ab abc ab"] * 3, vocab_size=270, special_tokens=list(SPECIAL_TOKENS))
    reference = Tokenizer.from_str(backend.to_str())
    reference.encode_special_tokens = True
    tokenizer = pipeline.tokenizer.Tokenizer(Tokenizer.from_str(backend.to_str()), "in memory")
    encoded = tokenizer.encode_batch(texts)
    assert encoded == [reference.encode(text, add_special_tokens=False).ids for text in texts]
    assert tokenizer.covers_bytes
    assert all(len(ids) <= len(text.encode()) for ids, text in zip(encoded, texts, strict=True))
    assert [tokenizer.decode(ids) for ids in encoded] == texts


@pytest.mark.parametrize(
    ("model", "splitter", "found"),
    [
        (models.Unigram([(token, 0.0) for token in SPECIAL_TOKENS], 3), None, "model is Unigram"),
        (
            models.WordLevel({token: i for i, token in enumerate(SPECIAL_TOKENS)}, "<unk>"),
            pre_tokenizers.Whitespace(),
            "model is WordLevel and its pre-tokenizer Whitespace",
        ),
        (
            models.BPE({token: i for i, token in enumerate(SPECIAL_TOKENS)}, []),
            pre_tokenizers.Metaspace(),
            "model is BPE and its pre-tokenizer Metaspace",
        ),
    ],
)
def test_other_kinds_of_tokenizer_are_refused(model: Any, splitter: Any, found: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer(model)
    if splitter:
        tokenizer.pre_tokenizer = splitter
    tokenizer.save(str(tmp_path / "t.json"))
    with pytest.raises(ValueError, match=rf"t\.json: its {found}.*expected BPE and ByteLevel"):
        load_tokenizer(tmp_path / "t.json")


def test_what_is_wrong_is_said(small_tokenizer: Path, tmp_path: Path) -> None:
    bare = ByteLevelBPETokenizer()
    bare.train_from_iterator(["a b c"], vocab_size=270, special_tokens=["<s>", "</s>"])
    bare.save(str(tmp_path / "bare.json"))
    with pytest.raises(ValueError, match=r"bare\.json: no <pad> <unk> <mask> in its vocabulary"):
        load_tokenizer(tmp_path / "bare.json")
    (tmp_path / "torn.json").write_text(small_tokenizer.read_text()[:1000])
    with pytest.raises(ValueError, match=r"torn\.json: not a tokenizer\.json"):
        load_tokenizer(tmp_path / "torn.json")
    with pytest.raises(ValueError, match=r"neither tokenizer\.json nor vocab\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no such file or folder"):
        load_tokenizer(tmp_path / "absent")
