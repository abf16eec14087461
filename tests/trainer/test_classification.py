"""Classification: Hyperpartisan's, IMDB's and one's own files, their splits, input, head, metric and submissions."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import LongformerConfig, LongformerForSequenceClassification

from tests.trainer.overfit import figures, overfit, real_wordpieces, small_model
from trainer.batches.examples import as_batch
from trainer.engine.config import InputError, problems
from trainer.model.longformer import EncoderConfig
from trainer.model.task_model import TaskModel
from trainer.tasks.classification import (
    ClassificationSettings,
    ClassificationTask,
    HyperpartisanSettings,
    ImdbSettings,
    OwnClassification,
)
from trainer.tasks.classification_files import Document, read_articles, read_truth
from trainer.tasks.classification_metrics import accuracy_and_f1, confusion
from trainer.tasks.classification_splits import stratified
from trainer.tasks.example import Example, Skipped
from trainer.tasks.task import SPLITS, Lengths, TaskSettings
from trainer.tasks.wordpieces import Wordpieces

DATA = Path(os.environ.get("LONGSPAN_DATA", Path(__file__).parents[3] / "shared" / "data"))
HYPERPARTISAN = DATA / "downstream" / "hyperpartisan"
ARTICLES = HYPERPARTISAN / "articles-training-byarticle-20181122.xml.gz"
TRUTH = HYPERPARTISAN / "ground-truth-training-byarticle-20181122.xml.gz"
real_data = pytest.mark.skipif(not ARTICLES.exists(), reason="shared/data is absent")

TWO = """<?xml version="1.0" encoding="UTF-8"?><articles>
<article id="0000007" title="A &amp; B"> before <p>One <a href="x">link</a>ed
 word</p>\t<p>&#233;&lt; &amp;amp; a&amp;copy=1</p> after</article>
<article id="0000008"><p></p></article>
</articles>"""
TWO_LABELS = """<articles><article id="0000008" hyperpartisan="false"/>
<article id="0000007" hyperpartisan="true" labeled-by="article"/></articles>"""


@pytest.fixture(scope="module")
def wordpieces() -> Wordpieces:
    if not (DATA / "tokenizer").exists():
        pytest.skip("shared/data is absent")
    return real_wordpieces(DATA, own())


def own(
    labels: Sequence[str] = ("a", "b"), train: Path = Path("none.jsonl"), **paths: Path
) -> OwnClassification:
    return ClassificationSettings(name="classification", labels=list(labels), train=train, **paths).task()


def jsonl(path: Path, found: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def pair(folder: Path, articles: str = TWO, truth: str = TWO_LABELS) -> HyperpartisanSettings:
    (folder / "articles.xml").write_text(articles)
    (folder / "truth.xml").write_text(truth)
    return HyperpartisanSettings(
        name="hyperpartisan", articles=folder / "articles.xml", ground_truth=folder / "truth.xml"
    )


# ---- Hyperpartisan ---------------------------------------------------------------------------------------------------


def test_an_articles_text_is_its_title_and_its_blocks(tmp_path: Path) -> None:
    pair(tmp_path)
    first, second = read_articles(tmp_path / "articles.xml")
    assert (first.id, first.text) == ("0000007", "A & B\nbefore\nOne linked word\né< & a&copy=1\nafter")
    assert (second.id, second.text) == ("0000008", "")
    assert read_truth(tmp_path / "truth.xml") == {"0000007": "true", "0000008": "false"}


def test_the_hubs_rows_have_the_same_text(tmp_path: Path) -> None:
    text = ' before <p>One <a href="x">link</a>ed\n word</p>\t<p>&#233;&lt; &amp;amp; a&amp;copy=1</p> after'
    table = {"title": ["A & B"], "text": [text], "hyperpartisan": [True], "url": [""], "published_at": [""]}
    pq.write_table(pa.table({key: value * 20 for key, value in table.items()}), tmp_path / "hub.parquet")
    task = HyperpartisanSettings(name="hyperpartisan", articles=tmp_path / "hub.parquet").task()
    read = {split: list(task.read(split)) for split in SPLITS}
    assert [len(read[split]) for split in SPLITS] == [16, 2, 2]
    assert {(article.text, article.label) for article in read["train"]} == {
        ("A & B\nbefore\nOne linked word\né< & a&copy=1\nafter", "true")
    }
    assert sorted(article.id for split in SPLITS for article in read[split]) == [
        f"{n:07d}" for n in range(20)
    ]


@real_data
def test_the_real_set_in_disjoint_stratified_splits() -> None:
    settings = HyperpartisanSettings(name="hyperpartisan", articles=ARTICLES, ground_truth=TRUTH)
    read = {split: list(settings.task().read(split)) for split in SPLITS}
    assert [len(read[split]) for split in SPLITS] == [515, 65, 65]
    assert [sum(article.label == "true" for article in read[split]) for split in SPLITS] == [190, 24, 24]
    everything = [article for split in SPLITS for article in read[split]]
    assert len({article.id for article in everything}) == 645
    assert all("<p>" not in article.text and "&amp;" not in article.text for article in everything)
    first = next(article for article in everything if article.id == "0000000")
    assert first.text.startswith(
        "Kucinich: Reclaiming the money power\nFrom flickr.com: Money {MID-161793}\nMoney ( Image"
    )


@real_data
def test_the_published_split_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    task = HyperpartisanSettings(
        name="hyperpartisan",
        articles=ARTICLES,
        ground_truth=TRUTH,
        split="published",
        split_file=HYPERPARTISAN / "hp-splits.json",
    ).task()
    assert [len(list(task.read(split))) for split in SPLITS] == [516, 64, 65]
    assert "51 of its 65 test articles are also in its train part" in capsys.readouterr().err


@given(st.dictionaries(st.text(max_size=8), st.sampled_from(["true", "false"])), st.integers(0, 2**63))
def test_stratified_splits_are_disjoint_and_whole(truth: dict[str, str], seed: int) -> None:
    splits = stratified(truth, seed)
    assert sum(map(len, splits.values())) == len(truth)
    assert set().union(*splits.values()) == truth.keys()
    for label in ("true", "false"):
        of_label = [name for name, own in truth.items() if own == label]
        for split in ("validation", "test"):
            assert sum(name in splits[split] for name in of_label) == round(len(of_label) / 10)
    assert stratified(dict(sorted(truth.items())), seed) == splits


def test_the_split_seed_decides(tmp_path: Path) -> None:
    truth = {str(number): "true" for number in range(100)}
    assert stratified(truth, 0)["test"] != stratified(truth, 1)["test"]


LAUGHS = """<!DOCTYPE articles [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<articles><article id="0000007"><p>&b;</p></article></articles>"""


@pytest.mark.parametrize(
    ("articles", "truth", "message"),
    [
        (TWO.replace("</articles>", ""), TWO_LABELS, "articles.xml: line 5.*malformed XML"),
        (
            TWO.replace("<p>&#233;", "<p><q>&#233;"),
            TWO_LABELS,
            "articles.xml: line 3, column.*mismatched tag",
        ),
        (TWO.replace("&#233;", "&nbsp;"), TWO_LABELS, "articles.xml: line 3.*undefined entity"),
        (LAUGHS, TWO_LABELS, "articles.xml: line 1: found a document type"),
        (TWO.replace("articles>", "pages>"), TWO_LABELS, "line 1: found <pages>, expected <articles>"),
        (TWO.replace("0000008", "0000007"), TWO_LABELS, "line 4: found a second article 0000007"),
        (TWO.replace("0000008", "eight"), TWO_LABELS, "line 4: id: found 'eight', expected digits"),
        (
            TWO,
            TWO_LABELS.replace('"false"', '"no"'),
            "truth.xml: line 1: hyperpartisan: found 'no', expected true or",
        ),
        (TWO, TWO_LABELS.replace("0000007", "0000009"), "article 0000007 is not in .*truth.xml"),
        (
            TWO.replace('<article id="0000008"><p></p></article>', ""),
            TWO_LABELS,
            "truth.xml: 1 ids such as 0000008",
        ),
        ("<articles>" + "<article id='7'>" + "<q>" * 200, TWO_LABELS, "nested more than 100 deep"),
        ("", TWO_LABELS, "no element found"),
        *(
            (f'<?xml version="1.0" encoding="{name}"?>' + TWO, TWO_LABELS, f"articles.xml: line 1: .*{found}")
            for name, found in [
                ("foo", "unknown encoding"),
                ("rot13", "no.* text encoding"),
                ("gb2312", "multi-byte"),
            ]
        ),
    ],
)
def test_a_broken_pair_is_refused(tmp_path: Path, articles: str, truth: str, message: str) -> None:
    task = pair(tmp_path, articles, truth).task()
    with pytest.raises(InputError, match=message):
        list(task.read("train"))


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress((TWO * 50).encode())
    (tmp_path / "articles.xml.gz").write_bytes(packed[:-20])
    with pytest.raises(InputError, match=r"articles\.xml\.gz: Compressed file ended"):
        list(read_articles(tmp_path / "articles.xml.gz"))


def test_an_endless_article_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.tasks.classification_files.MOST_BYTES", 1 << 20)
    with gzip.open(tmp_path / "articles.xml.gz", "wt") as file:
        file.write("<articles><article id='1' title='" + "x" * (3 << 20))
    with pytest.raises(InputError, match="an article of more than"):
        list(read_articles(tmp_path / "articles.xml.gz"))


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    fitting = pair(tmp_path)
    changed = fitting.model_dump() | {"ground_truth": None, "split": "published"}
    with pytest.raises(ValidationError) as caught:
        HyperpartisanSettings.model_validate(changed)
    assert problems(caught.value) == [
        "ground_truth: found None, expected the XML with the labels",
        "split_file: found None, expected hp-splits.json",
    ]


def test_paths_may_begin_with_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = ClassificationSettings.model_validate({"name": "classification", "train": "~/train.jsonl"})
    assert settings.train == tmp_path / "train.jsonl"
    with pytest.raises(ValidationError, match="expected the home of a user of this machine"):
        ClassificationSettings.model_validate(
            {"name": "classification", "train": "~nobody-at-all/train.jsonl"}
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hyperpartisan": "true"}, "row 1: hyperpartisan: found 'true', expected true or false"),
        ({"text": None}, "row 1: text: found a NoneType, expected text"),
        ({"title": 3}, "row 1: title: found a int, expected text"),
    ],
)
def test_broken_rows_of_the_hubs_articles_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    found = {"text": "a", "title": "b", "hyperpartisan": True} | changes
    pq.write_table(pa.Table.from_pylist([found]), tmp_path / "hub.parquet")
    task = HyperpartisanSettings(name="hyperpartisan", articles=tmp_path / "hub.parquet").task()
    with pytest.raises(InputError, match=message):
        list(task.read("train"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a <![foo[ b]>c", "a c"), ("a <![if x]>b", "a b"), ("a <![", "a <![")],
)
def test_marks_of_no_known_kind_do_not_stop_the_hubs_articles(
    tmp_path: Path, text: str, expected: str
) -> None:
    row = {"text": text, "title": "", "hyperpartisan": True}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "hub.parquet")
    task = HyperpartisanSettings(name="hyperpartisan", articles=tmp_path / "hub.parquet").task()
    assert [article.text for article in task.read("train")] == [expected]


# ---- IMDB ------------------------------------------------------------------------------------------------------------


def acl_imdb(folder: Path) -> Path:
    for part in ("train", "test"):
        for label in ("neg", "pos"):
            (folder / part / label).mkdir(parents=True)
            for number in range(50):
                (folder / part / label / f"{number}_{number % 10}.txt").write_text(
                    f"{part}<br /><br />{label} {number}"
                )
    (folder / "train" / "unsup").mkdir()
    (folder / "train" / "unsup" / "0_0.txt").write_text("no label")
    return folder


def test_imdb_holds_a_share_of_train_out(tmp_path: Path) -> None:
    task = ImdbSettings(name="imdb", data=acl_imdb(tmp_path), validation_share=0.2).task()
    read = {split: list(task.read(split)) for split in SPLITS}
    ids = [{review.id for review in read[split]} for split in SPLITS]
    assert len(ids[0]) + len(ids[1]) == len(ids[2]) == 100
    assert not ids[0] & ids[1]
    assert 10 <= len(ids[1]) <= 30
    assert read["test"][0] == Document(
        "test/neg/0_0", "test\n\nneg 0", "neg", str(tmp_path / "test" / "neg" / "0_0.txt")
    )
    assert all(f" {review.label} ".strip() in review.text for split in SPLITS for review in read[split])


def test_imdb_from_the_hub(tmp_path: Path) -> None:
    for part in ("train", "test"):
        table = pa.table({"text": ["bad<br />", "good"] * 20, "label": [0, 1] * 20})
        pq.write_table(table, tmp_path / f"{part}-00000-of-00001.parquet")
    task = ImdbSettings(name="imdb", data=tmp_path).task()
    assert {(review.text, review.label) for review in task.read("test")} == {("bad", "neg"), ("good", "pos")}
    assert len([*task.read("train"), *task.read("validation")]) == 40
    jsonl(tmp_path / "train.jsonl", [{"text": "meh", "label": 2}])
    with pytest.raises(InputError, match=r"train\.jsonl: line 1: label: found 2, expected 0, 1, neg or pos"):
        list(task.read("train"))
    with pytest.raises(InputError, match="expected reviews"):
        ImdbSettings(name="imdb", data=tmp_path / "nowhere").task().files("train")


def test_official_reviews_are_predicted_as_they_are(tmp_path: Path) -> None:
    task = ImdbSettings(name="imdb", data=acl_imdb(tmp_path)).task()
    assert list(task.read_own(tmp_path / "test")) == list(task.read("test"))
    pq.write_table(pa.table({"text": ["bad", "good"], "label": [0, 1]}), tmp_path / "test.parquet")
    assert [review.label for review in task.read_own(tmp_path / "test.parquet")] == ["neg", "pos"]
    jsonl(tmp_path / "own.jsonl", [{"text": "a"}, {"text": "b", "label": "pos"}])
    assert [review.label for review in task.read_own(tmp_path / "own.jsonl")] == [None, "pos"]
    jsonl(tmp_path / "own.jsonl", [{"text": "a", "label": 2}])
    with pytest.raises(InputError, match=r"line 1: label: found '2', expected one of 'neg', 'pos'"):
        list(task.read_own(tmp_path / "own.jsonl"))


def test_the_hubs_articles_are_predicted_as_they_are(tmp_path: Path) -> None:
    row = {"text": "<p>a <b>c</b></p>", "title": "t", "hyperpartisan": True}
    path = tmp_path / "hub.parquet"
    pq.write_table(pa.Table.from_pylist([row]), path)
    task = HyperpartisanSettings(name="hyperpartisan", articles=path).task()
    assert [(article.text, article.label) for article in task.read_own(path)] == [("t\na c", "true")]
    jsonl(tmp_path / "own.jsonl", [{"text": "a <b>", "label": False}])
    (own,) = task.read_own(tmp_path / "own.jsonl")
    assert (own.text, own.label) == ("a <b>", "false")


def test_a_reviews_name_may_be_bytes_of_no_encoding(tmp_path: Path) -> None:
    folder = os.fsencode(acl_imdb(tmp_path) / "test" / "neg")
    Path(os.fsdecode(folder + b"/\xff_1.txt")).write_text("x")
    found = list(ImdbSettings(name="imdb", data=tmp_path).task().read("test"))
    assert "test/neg/?_1" in {review.id for review in found}
    assert all((review.id + review.where).encode() for review in found)


@real_data
def test_real_reviews_as_ones_own_rows(tmp_path: Path) -> None:
    found = list(own(["neg", "pos"]).read_own(DATA / "downstream" / "imdb_corpus_3rows.jsonl"))
    assert [(review.id, review.label) for review in found] == [
        ("train_5011", "neg"),
        ("train_10433", "pos"),
        ("train_11872", "neg"),
    ]


# ---- one's own rows --------------------------------------------------------------------------------------------------


def test_labels_come_from_train_and_are_ordered(tmp_path: Path) -> None:
    train = jsonl(
        tmp_path / "train.jsonl", [{"text": "x", "label": label} for label in (10, 9, "b", "a", True, None)]
    )
    task = ClassificationSettings(name="classification", train=train).task()
    assert task.labels == ("9", "10", "a", "b", "true")
    assert task.splits() == ("train",)
    assert [row.label for row in task.read("train")] == ["10", "9", "b", "a", "true", None]


def test_label_sets_that_differ_are_named(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", [{"text": "x", "label": label} for label in ("cat", "dog")])
    test = jsonl(tmp_path / "test.jsonl", [{"text": "x", "label": label} for label in ("cat", "Dog", "cow")])
    task = ClassificationSettings(name="classification", train=train, test=test).task()
    expected = r"test\.jsonl: test has the labels 'Dog', 'cow', expected those of train: 'cat', 'dog'"
    with pytest.raises(InputError, match=expected):
        list(task.read("test"))
    narrow = ClassificationSettings(name="classification", train=train, labels=["cat", "cow"]).task()
    with pytest.raises(
        InputError, match=r"train has the labels 'dog', expected those of task\.labels: 'cat', 'cow'"
    ):
        list(narrow.read("train"))
    with pytest.raises(InputError, match=r"line 2: label: found 'Dog', expected one of 'cat', 'dog'"):
        list(task.read_own(test))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"text": 3, "label": "a"}', "line 1: text: found a int, expected text"),
        ('{"label": "a"}', "line 1: text: found none, expected text"),
        ('{"text": "x", "label": 0.5}', "line 1: label: found a float"),
        ('{"text": "x", "label": ["a"]}', "line 1: label: found a list"),
        ('{"text": "x", "label": "%s"}' % ("9" * 5000), "line 1: label: found 5,000 characters"),
        ('{"text": "x", "id": 1}\n{"text": "y", "id": "1"}', "line 2: id: found a second '1'"),
        ('{"text": "x", "label": "a"}\n{"text": ', "line 2: not JSON"),
        ("[1]", "line 1: found a list, expected an object"),
        ('{"text": "x", "label": "a"}', "found the labels 'a', expected two at least"),
        ("\n", "empty, expected rows"),
        ('{"text": "\xff"}', "not JSON"),
    ],
)
def test_broken_rows_are_refused(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        list(
            ClassificationSettings(name="classification", train=tmp_path / "train.jsonl").task().read("train")
        )


def test_an_unlabelled_row_is_skipped_in_training_and_refused_in_a_test(
    tmp_path: Path, wordpieces: Wordpieces
) -> None:
    path = jsonl(
        tmp_path / "some.jsonl", [{"text": "x"}, {"text": "", "label": "a"}, {"text": "y", "label": "b"}]
    )
    task = own(["a", "b"], train=path, test=path)
    reasons = []
    for row in task.read("train"):
        try:
            task.encode(row, wordpieces, Lengths(8), training=True)
        except Skipped as skipped:
            reasons.append(str(skipped))
    assert reasons == ["no label", "no text"]
    with pytest.raises(InputError, match=r"line 1: label: found none, expected one of 'a', 'b'"):
        list(task.read("test"))
    assert [row.id for row in task.read_own(path)] == ["0", "1", "2"]


def test_ones_own_texts(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "in" / "a.txt").write_text("third")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst")
    task = own()
    assert [(text.id, text.text) for text in task.read_own(tmp_path)] == [
        ("a", "first"),
        ("b", "second"),
        ("in/a", "third"),
    ]
    assert [text.id for text in task.read_own(tmp_path / "b.txt")] == ["b"]
    (tmp_path / "bad.txt").write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="byte 2: found no UTF-8"):
        list(task.read_own(tmp_path / "bad.txt"))
    with pytest.raises(InputError, match="No such file"):
        list(task.read_own(tmp_path / "absent.txt"))


# ---- input -----------------------------------------------------------------------------------------------------------


def encoded(text: str, wordpieces: Wordpieces, tokens: int, longer: Any = "truncate") -> Example:
    return own().encode(Document("0", text, "b", ""), wordpieces, Lengths(tokens, longer), training=True)


def test_a_text_stands_between_s_and_s(wordpieces: Wordpieces) -> None:
    example = encoded("Hello world", wordpieces, 16)
    assert [row.tolist() for row in example.rows] == [[0, 31414, 232, 2]]
    assert example.global_places.tolist() == [0]
    assert example.read is not None
    assert example.read.tolist() == [0]
    assert example.features["label"].tolist() == [1]
    assert (example.context_tokens, example.tokens_cut) == (2, 0)


@given(st.text(max_size=60), st.integers(3, 12), st.sampled_from(["truncate", "chunk"]))
def test_what_is_cut_is_counted(wordpieces: Wordpieces, text: str, tokens: int, longer: Any) -> None:
    example = own().encode(Document("0", text, None, ""), wordpieces, Lengths(tokens, longer), training=False)
    pieces = wordpieces.encode(text).ids
    assert all(len(row) <= tokens and row[0] == 0 and row[-1] == 2 for row in example.rows)
    held = np.concatenate([row[1:-1] for row in example.rows])
    assert held.tolist() == pieces[: len(held)].tolist()
    assert example.tokens_cut == len(pieces) - len(held)
    assert example.context_tokens == len(pieces)
    if longer == "chunk":
        assert not example.tokens_cut
        assert all(len(row) == tokens for row in example.rows[:-1])
    else:
        assert len(example.rows) == 1
        assert len(held) == min(len(pieces), tokens - 2)
    joined = np.concatenate(example.rows)
    starts = np.cumsum([0, *map(len, example.rows)])[:-1]
    assert example.global_places.tolist() == starts.tolist()
    assert joined[example.global_places].tolist() == [0] * len(example.rows)


# ---- head, loss, metric, submission ----------------------------------------------------------------------------------


def test_the_head_is_transformers(wordpieces: Wordpieces) -> None:
    """Same weights, same logits, with global attention on <s>; shorter rows padded."""
    torch.manual_seed(1)
    sizes = {
        "vocab_size": wordpieces.size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 66,
        "attention_window": [16, 16],
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.2,
    }
    theirs = LongformerForSequenceClassification(LongformerConfig(**sizes, num_labels=3)).eval()
    task = own(["a", "b", "c"])
    config = EncoderConfig("longformer", **sizes)  # type: ignore[arg-type]
    ours = TaskModel(config, task.heads(config)).eval()
    ours.load_state_dict(theirs.state_dict())
    texts = ["A short text.", "A longer text " * 15, ""]
    examples = [
        task.encode(Document(str(n), text, None, ""), wordpieces, Lengths(64), False)
        for n, text in enumerate(texts)
    ]
    batch = as_batch(examples, 1)
    assert batch.attention_mask is not None
    assert batch.global_mask is not None
    with torch.no_grad():
        found = task._logits(ours, ours.states(batch))
        expected = theirs(batch.input_ids, batch.attention_mask.long(), batch.global_mask.long()).logits
        none = theirs(batch.input_ids, batch.attention_mask.long(), torch.zeros_like(batch.input_ids)).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert (expected - none).abs().max() > 1e-2  # the global attention shows


def scores(logits: list[list[float]]) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """A model whose head gives, to states, these logits."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = torch.nn.Identity()

    return Model(), [torch.tensor([row]) for row in logits]


def labelled(*labels: int) -> list[Example]:
    return [
        Example(str(n), (), features={"label": np.array([label], np.int32)}) for n, label in enumerate(labels)
    ]


def test_the_loss_is_the_paper_s_binary_cross_entropy() -> None:
    model, states = scores([[0.3, -0.2], [1.0, 2.5]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor([-0.5, 1.5]), torch.tensor([1.0, 0.0]), reduction="sum"
    )
    found = own().loss(model, states, labelled(1, 0))
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected)


def test_rows_of_a_text_are_averaged_and_ties_go_to_the_first() -> None:
    model, _ = scores([])
    states = [torch.tensor([[4.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0]])]
    (first, second) = own().predict(model, states, labelled(0, 0))
    assert first["label"] == "a"
    assert first["probability"] == pytest.approx(1 / (1 + np.exp(-1.5)))
    assert second == {"label": "a", "probability": 0.5}


def test_figures_by_hand() -> None:
    counts = confusion([1, 1, 1, 0, 0, -1], [1, 1, 0, 1, 0, 1], 2)
    assert counts == [1, 1, 1, 2]
    assert accuracy_and_f1(counts) == pytest.approx(
        {"accuracy": 0.6, "f1": 2 / 3, "precision": 2 / 3, "recall": 2 / 3}
    )
    halves = [confusion([1, 1, 1], [1, 1, 0], 2), confusion([0, 0, -1], [1, 0, 1], 2)]
    assert [sum(pair) for pair in zip(*halves, strict=True)] == counts
    nothing = accuracy_and_f1(confusion([0, 0], [0, 0], 2))
    assert nothing == {"accuracy": 1.0, "f1": 0.0, "precision": 0.0, "recall": 0.0}
    # Of three: f1 1 of the first, 0 of the second; the third neither occurs nor is predicted.
    assert accuracy_and_f1(confusion([0, 0, 1], [0, 0, 1], 3)) == {"accuracy": 1.0, "macro_f1": 1.0}
    assert accuracy_and_f1(confusion([0, 0, 1], [0, 0, 0], 3)) == pytest.approx(
        {"accuracy": 2 / 3, "macro_f1": 0.4}
    )
    assert accuracy_and_f1(confusion([-1], [0], 2)) == {}


def test_submissions(tmp_path: Path) -> None:
    predictions = [
        (example, {"label": label, "probability": 0.75})
        for example, label in zip(labelled(0, 1), ("false", "true"), strict=True)
    ]
    pair(tmp_path).task().write(tmp_path / "semeval.txt", predictions)
    assert (tmp_path / "semeval.txt").read_text() == "0 false 0.750000\n1 true 0.750000\n"
    own(["false", "true"]).write(tmp_path / "rows.jsonl", predictions)
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == [
        {"id": "0", "label": "false", "probability": 0.75},
        {"id": "1", "label": "true", "probability": 0.75},
    ]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        own().write(tmp_path / "file" / "rows.jsonl", predictions)


@real_data
def test_learns_real_articles_by_heart(wordpieces: Wordpieces) -> None:
    task = HyperpartisanSettings(name="hyperpartisan", articles=ARTICLES, ground_truth=TRUTH).task()
    examples = []
    for article in list(task.read("test"))[:8]:
        short = Document(article.id, article.text[:500], article.label, article.where)
        examples.append(task.encode(short, wordpieces, Lengths(64, "chunk"), training=True))
    assert {int(example.features["label"][0]) for example in examples} == {0, 1}
    assert max(len(example.rows) for example in examples) > 1
    model = small_model(task, wordpieces.size, 64, hidden_size=32)
    losses = overfit(model, task, examples, 40, 4e-3)
    assert losses[-1] < 0.2 < 0.5 < losses[0]
    assert figures(model, task, examples) == {"f1": 1.0, "accuracy": 1.0, "precision": 1.0, "recall": 1.0}


@real_data
def test_learns_real_reviews_by_heart(wordpieces: Wordpieces, tmp_path: Path) -> None:
    for line in (DATA / "downstream" / "imdb_corpus_3rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        file = tmp_path / "train" / row["label"] / Path(row["orig"]).name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(row["text"])
    task = ImdbSettings(name="imdb", data=tmp_path, validation_share=0.001).task()
    reviews = list(task.read("train"))
    assert sorted(str(review.label) for review in reviews) == ["neg", "neg", "pos"]
    examples = [task.encode(review, wordpieces, Lengths(160), training=True) for review in reviews]
    model = small_model(task, wordpieces.size, 160)
    losses = overfit(model, task, examples, 30)
    assert losses[-1] < 0.1 < 0.5 < losses[0]
    assert figures(model, task, examples)["accuracy"] == 1.0


def test_figures_come_in_the_papers_order(tmp_path: Path) -> None:
    tasks: list[tuple[Callable[[], ClassificationTask], str]] = [
        (pair(tmp_path).task, "f1"),
        (ImdbSettings(name="imdb", data=tmp_path).task, "accuracy"),
        (own, "accuracy"),
    ]
    for task, first in tasks:
        assert next(iter(task().figures([1, 2, 3, 4]))) == first
        assert task().figures([0, 0, 0, 0]) == {}
    assert issubclass(ImdbSettings, TaskSettings)


def test_precision_is_of_what_was_predicted() -> None:
    """Three texts are of the positive class, one of them found, and nothing else taken for it."""
    found = accuracy_and_f1(confusion([1, 1, 1, 0], [1, 0, 0, 0], 2))
    assert (found["precision"], found["recall"], found["f1"]) == (1, pytest.approx(1 / 3), 0.5)
