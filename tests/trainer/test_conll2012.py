"""CoNLL-2012 files and JSON rows of coreference: what is read, what is written, and what is refused."""

from __future__ import annotations

import json
import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.engine.config import InputError
from trainer.tasks.conll2012 import Document, SpanClusters, conll_text, read_conll, write_conll
from trainer.tasks.coreference_metrics import score
from trainer.tasks.coreference_rows import read_coreference_rows

DATA = Path(os.environ.get("LONGSPAN_DATA", Path(__file__).parents[3] / "shared" / "data"))
ROW = "nw/x/00/x_0000   {part}   {number}   {word}   NN   (S*)   -   -   1   {speaker}   (PERSON)   (ARG0*   *)  {last}"


def conll(cells: str, words: str = "", part: str = "000", speaker: str = "Ann_Lee") -> str:
    """A document with these last columns; / ends a sentence."""
    lines = [f"#begin document (nw/x/00/x_0000); part {part}"]
    names = iter(words.split() or [f"w{n}" for n in range(len(cells))])
    for sentence in cells.split(" / "):
        for number, last in enumerate(sentence.split()):
            lines.append(
                ROW.format(part=int(part), number=number, word=next(names), speaker=speaker, last=last)
            )
        lines.append("")
    return "\n".join([*lines, "#end document", ""])


def documents(folder: Path, text: str | bytes) -> list[Document]:
    path = folder / "some.v4_gold_conll"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(read_conll(path))


def clusters(folder: Path, cells: str) -> SpanClusters:
    (document,) = documents(folder, conll(cells))
    return document.clusters


def test_reads_what_a_document_holds(tmp_path: Path) -> None:
    text = conll("(0) - (1 1) / (0)", "Ann , the boss She") + "\n" + conll("-", "Hm", part="012", speaker="-")
    first, second = documents(tmp_path, text)
    assert (first.id, first.part) == ("nw/x/00/x_0000", "000")
    assert first.words == ("Ann", ",", "the", "boss", "She")
    assert first.speakers == ("Ann_Lee",) * 5
    assert first.sentences == ((0, 4), (4, 5))
    assert first.clusters == (((0, 1), (4, 5)), ((2, 4),))
    assert (second.part, second.words, second.speakers) == ("012", ("Hm",), ("-",))
    assert second.sentences == ((0, 1),)
    assert second.clusters == ()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ("(12|(3)|12)", (((0, 1),), ((0, 1),))),  # 3 is whole before 12 begins, as the scorer reads
        ("(12|(3) - 12)", (((0, 1),), ((0, 3),))),
        ("(12 (12 12) 12)", (((0, 4), (1, 3)),)),
        ("(12|(12 12) 12)", (((0, 2), (0, 3)),)),
        ("(12 (12 12)|12)", (((0, 3), (1, 3)),)),
        ("(1 (2 1) 2)", (((0, 3),), ((1, 4),))),  # crossing, of two clusters
        ("(1 - 1)|(1 1)", (((0, 4), (2, 3)),)),  # as the scorer: beginnings of a row first
        ("(7) - / (7 - / 7)", (((0, 1), (2, 5)),)),  # over a sentence's end
        ("(5)|(5)", (((0, 1),),)),
        ("(5)|(6)", (((0, 1),), ((0, 1),))),
        ("_ -", ()),
    ],
)
def test_mentions(tmp_path: Path, cells: str, expected: SpanClusters) -> None:
    assert clusters(tmp_path, cells) == expected


def test_white_space_other_than_blanks_parts_nothing(tmp_path: Path) -> None:
    words = ["東\u3000京", "a\u00a0b", "x\u0085y", "\u2028", "naïve🙂"]
    rows = [ROW.format(part=0, number=n, word=word, speaker="李", last="-") for n, word in enumerate(words)]
    text = "\r\n".join(["#begin document (a b); part 000", *rows, "", "#end document"])
    (document,) = documents(tmp_path, text.replace("   ", " \t ", 3))
    assert document.id == "a b"
    assert document.words == tuple(words)
    assert document.speakers == ("李",) * 5


def test_a_folder_is_its_gold_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name, part in (
        ("b/c/2.v4_gold_conll", "001"),
        ("a.v4_gold_conll", "000"),
        ("a.v4_auto_conll", "000"),
    ):
        (tmp_path / name).write_text(conll("-", part=part))
    assert [document.part for document in read_conll(tmp_path)] == ["000", "001"]
    (tmp_path / "again.v4_gold_conll").write_text(conll("-", part="001"))
    with pytest.raises(
        InputError, match=r"c/2\.v4_gold_conll: found a second .*part 001 \(the first is in .*again"
    ):
        list(read_conll(tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"found no \*gold_conll and no \*\.conll"):
        list(read_conll(empty))


ONE = conll("-")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty, expected CoNLL-2012 documents"),
        ("hello\n", "line 1: found 'hello', expected #begin document"),
        ("#begin document x\n", "line 1: found '#begin document x', expected #begin document (ID); part 000"),
        (ONE.replace("#end document\n", ""), "line 3: the file ends, expected #end document of the document from"),
        (ONE.replace("#end document", ONE), "line 4: found '#begin document (nw/x/00/x_0000); part 000', expected"),
        (ONE + ONE, "found a second #begin document (nw/x/00/x_0000); part 000"),
        (ONE.replace("(ARG0*   *)  -", ""), "line 2: found a row of 11 columns, expected 12 or more"),
        (conll("(1 1 1)"), "line 3: found '1' in the last column, expected - or clusters"),
        (conll("(1|x)"), "line 2: found '(1|x)' in the last column"),
        (conll("(1||1)"), "line 2: found '(1||1)' in the last column"),
        (conll("(1234567890)"), "line 2: found '(1234567890)' in the last column"),
        (conll("(١)"), "line 2: found '(١)' in the last column"),
        (conll("- 1)"), "line 3: found the end 1) of a mention, expected its beginning (1 before"),
        (conll("(1 (1 1) -"), "line 7: found the end of a document, expected the end 1) of the mention that begins in"),
        (conll("- (1"), "expected the end 1) of the mention that begins in line 3"),
        (ONE.encode() + b"\xff\n", "line 5: byte 1: no UTF-8"),
        (ONE + "x" * (1 << 20) + "y", "line 5: longer than 1,048,576 bytes"),
    ],
)  # fmt: skip
def test_refuses_what_is_no_such_file(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"some.v4_gold_conll: .*{re.escape(message)}"):
        documents(tmp_path, text)


def test_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: No such file"):
        list(read_conll(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nowhere: No such file"):
        list(read_coreference_rows(tmp_path / "nowhere"))


def test_writes_predictions_beside_the_other_columns(tmp_path: Path) -> None:
    text = conll("(0) - (1 1) / (0)", "Ann , the boss She") + conll("(4)", part="001")
    read = documents(tmp_path, text)
    out = tmp_path / "out" / "predicted.conll"
    write_conll(out, [(read[0], [[(0, 4), (4, 5)], [(0, 1), (2, 4)]]), (read[1], [])])
    expected = conll("(0|(1) - (1 1)|0) / (0)", "Ann , the boss She") + conll("-", part="001")
    assert out.read_text() == expected
    assert [document.clusters for document in read_conll(out)] == [
        (((0, 4), (4, 5)), ((0, 1), (2, 4)))[::-1],  # in the order of the file: (1) is whole before (0 begins
        (),
    ]
    same = tmp_path / "same.conll"
    write_conll(same, [(document, document.clusters) for document in read])
    assert same.read_text() == text.replace("(4)", "(0)")


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 2), (1, 3)], "found the spans (0, 2) and (1, 3) in cluster 0"),
        ([(0, 4), (0, 2), (1, 3)], "found the spans (0, 2) and (1, 3) in cluster 0"),
        ([(0, 6)], "found the span (0, 6) in cluster 0, expected 0 ≤ start < end ≤ 5"),
        ([(2, 2)], "found the span (2, 2)"),
        ([(-1, 2)], "found the span (-1, 2)"),
    ],
)
def test_writes_nothing_that_would_be_read_otherwise(
    tmp_path: Path, spans: list[tuple[int, int]], message: str
) -> None:
    (document,) = documents(tmp_path, conll("- - - / - -"))
    with pytest.raises(InputError, match=re.escape(message)):
        write_conll(tmp_path / "out.conll", [(document, [spans])])
    assert [path.name for path in tmp_path.iterdir()] == ["some.v4_gold_conll"]


def crosses(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[0] < one[1] < other[1]


@st.composite
def nested(draw: st.DrawFn) -> tuple[list[int], list[list[tuple[int, int]]]]:
    """Lengths of sentences, and clusters, in each of which no span crosses another."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    words = sum(lengths)
    span = st.tuples(st.integers(0, words - 1), st.integers(1, words)).filter(lambda span: span[0] < span[1])
    kept = []
    for cluster in draw(st.lists(st.lists(span, min_size=1, max_size=6, unique=True), max_size=4)):
        chosen: list[tuple[int, int]] = []
        for one in cluster:
            if not any(crosses(one, other) or crosses(other, one) for other in chosen):
                chosen.append(one)
        kept.append(chosen)
    return lengths, kept


@given(nested(), st.booleans())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[list[int], list[list[tuple[int, int]]]],
    has_columns: bool,
) -> None:
    lengths, chosen = case
    words = sum(lengths)
    folder = tmp_path_factory.mktemp("conll")
    if has_columns:
        (document,) = documents(folder, conll(" / ".join(" ".join("-" * length) for length in lengths)))
    else:
        borders = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
        sentences = tuple(pairwise(borders))
        names = tuple(f"w{n}" for n in range(words))
        document = Document("a", "007", names, ("-",) * words, sentences, ())
    (again,) = documents(folder, conll_text(document, chosen))
    assert {frozenset(cluster) for cluster in again.clusters} == {frozenset(cluster) for cluster in chosen}
    assert len(again.clusters) == len(chosen)
    assert (again.id, again.part, again.words) == (document.id, document.part, document.words)
    assert (again.speakers, again.sentences) == (document.speakers, document.sentences)
    # Twice is as once, but for the numbers of clusters.
    (third,) = documents(folder, conll_text(again, again.clusters))
    assert third.columns == again.columns
    assert sorted(third.clusters) == sorted(again.clusters)


def rows(folder: Path, *found: object) -> list[Document]:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in found) + "\n")
    return list(read_coreference_rows(path))


@pytest.mark.skipif(not (DATA / "downstream").is_dir(), reason=f"no real data in {DATA}, or $LONGSPAN_DATA")
def test_reads_preco(tmp_path: Path) -> None:
    found = list(read_coreference_rows(DATA / "downstream" / "preco.jsonl"))
    assert [document.id for document in found] == ["train_00001", "train_00002", "train_00003"]
    mentions = [
        [" ".join(document.words[a:b]) for a, b in c] for document in found for c in document.clusters
    ]
    assert ["your bones"] in mentions
    assert ["their children 's", "their children"] in mentions
    assert ["your", "you", "your"] in mentions
    assert " " in found[0].words  # an empty line, which must not shift what follows
    write_conll(tmp_path / "preco.conll", [(document, document.clusters) for document in found])
    read = list(read_conll(tmp_path / "preco.conll"))
    scores = score((a.clusters, b.clusters) for a, b in zip(found, read, strict=True))
    assert scores.mean_f1 == 1
    assert [document.sentences for document in read] == [document.sentences for document in found]


def test_reads_rows_of_the_hub(tmp_path: Path) -> None:
    row = {
        "document_id": "nw/x/00/x_0000",
        "sentences": [
            {
                "part_id": 0,
                "words": ["Ann", "Lee", "sat"],
                "speaker": "Bo",
                "coref_spans": [[3, 0, 1], [8, 1, 1]],
            },
            {"part_id": 0, "words": ["She"], "speaker": None, "coref_spans": [[3, 0, 0]]},
            {"part_id": 2, "words": ["It"], "speaker": "", "coref_spans": [[3, 0, 0]]},
        ],
    }
    first, second = rows(tmp_path, row, "")
    assert (first.id, first.part, second.part) == ("nw/x/00/x_0000", "000", "002")
    assert first.words == ("Ann", "Lee", "sat", "She")
    assert first.speakers == ("Bo", "Bo", "Bo", "-")
    assert first.sentences == ((0, 3), (3, 4))
    assert first.clusters == (((0, 2), (3, 4)), ((1, 2),))
    assert second.clusters == (((0, 1),),)


def test_a_document_to_predict_on_needs_no_clusters(tmp_path: Path) -> None:
    (document,) = rows(tmp_path, {"id": "mine", "sentences": [["a", "b c"], [], ["", "d"]]})
    assert document.sentences == ((0, 2), (2, 4))
    assert document.clusters == ()
    text = conll_text(document, [[(0, 2), (2, 3)]])
    assert text.startswith("#begin document (mine); part 000\nmine\t0\t0\ta\t")
    (again,) = documents(tmp_path, text)
    assert again.words == ("a", "b_c", "_", "d")
    assert again.clusters == (((0, 2), (2, 3)),)


PRECO = {"id": "a", "sentences": [["x", "y"], ["z"]]}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([""], "rows.jsonl: empty, expected a document a line"),
        ([PRECO, "{"], "line 2: not JSON"),
        (['{"id": "\\ud800", "sentences": []}'], "line 1: not JSON"),
        (["[]"], "line 1: found a list, expected an object"),
        ([{"sentences": []}], "line 1: id: found 'None', expected text"),
        ([{"id": "a\n#end document", "sentences": []}], "line 1: id: found 'a\\n#end document', expected a name"),
        ([{"id": "a"}], "line 1: found no sentences, expected a list"),
        ([{"id": "a", "sentences": ["x y"]}], "line 1: sentences[0]: found 'x y', expected a list"),
        ([{"id": "a", "sentences": [["x", 1]]}], "line 1: sentences[0][1]: found '1', expected text"),
        ([PRECO, PRECO], "line 2: found ('a', '000') as in line 1"),
        ([PRECO | {"mention_clusters": [[[2, 0, 1]]]}], "mention_clusters[0][0]: found sentence 2, expected one of 2"),
        ([PRECO | {"mention_clusters": [[[0, 0, 1], [1, 0, 2]]]}], "mention_clusters[0][1]: found words 0 to 2"),
        ([PRECO | {"mention_clusters": [[[0, 1, 1]]]}], "found words 1 to 1, expected 0 ≤ start < end ≤ 2"),
        ([PRECO | {"mention_clusters": [[[0, 1]]]}], "mention_clusters[0][0]: found 2 numbers, expected three"),
        ([PRECO | {"mention_clusters": [[[0, True, 2]]]}], "found 'True', expected a whole number"),
        ([PRECO | {"mention_clusters": None}], "mention_clusters: found 'None', expected a list"),
        ([{"document_id": "a", "sentences": [{"words": []}]}], "sentences[0].part_id: found 'None'"),
        ([{"document_id": "a", "sentences": [{"part_id": 0}]}], "sentences[0].words: found 'None'"),
        (
            [{"document_id": "a", "sentences": [{"part_id": 0, "words": ["x"], "coref_spans": [[0, 0, 1]]}]}],
            "sentences[0].coref_spans[0]: found words 0 to 1, expected 0 ≤ start ≤ end < 1",
        ),
    ],
)  # fmt: skip
def test_refuses_rows_that_do_not_fit(tmp_path: Path, found: list[object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        rows(tmp_path, *found)
