"""Packing and selection against slow, obvious references."""

import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.decisions import decision_hash, text_hash, threshold
from pipeline.stages.encode import TABLE_SCHEMA
from pipeline.stages.pack import Layout, PackUnit, cut_pieces, lay_out
from pipeline.stages.select import KEEP_SCHEMA, SPLITS, SelectUnit, Table
from pipeline.storage import LocalStorage, Stores
from pipeline.units import PublishedFile

BOS, PAD, EOS = 0, 1, 2


def layout(sequence_length: int) -> Layout:
    return Layout(sequence_length, 1000, "t", BOS, EOS, PAD)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    sequence_length=st.integers(3, 20),
    shard=st.integers(1, 5),
)
def test_sequences_are_the_stream_and_pieces_say_where(
    lengths: list[int], sequence_length: int, shard: int
) -> None:
    documents = [[10 + (7 * i + j) % 900 for j in range(n)] for i, n in enumerate(lengths)]
    stream = [token for document in documents for token in (*document, EOS)]
    start = np.cumsum([0, *(n + 1 for n in lengths)])[:-1]
    inner = sequence_length - 2

    rows, starts, offsets, pieces = [], [], [], []
    for begin in range(0, len(stream), shard * inner):  # shard by shard, as the units do
        end = min(begin + shard * inner, len(stream))
        first = int(np.searchsorted(start, begin, side="right")) - 1
        last = int(np.searchsorted(start, end, side="left"))
        rows.append(lay_out(np.array(stream[begin:end], dtype=np.uint16), layout(sequence_length)))
        for column, part in zip(
            (starts, offsets, pieces), cut_pieces(start[first:last], begin, end, inner, first), strict=True
        ):
            column.extend(part)
    ids = np.concatenate(rows)

    # The rows, read back, are the stream: nothing lost, nothing made up.
    assert ids.shape == (-(-len(stream) // inner), sequence_length)
    assert (ids[:, 0] == BOS).all()
    real = [row[row != PAD] for row in ids]
    assert all((row[len(r) :] == PAD).all() for row, r in zip(ids, real, strict=True))
    assert all(len(r) == sequence_length for r in real[:-1])
    assert all(r[-1] == EOS for r in real)
    assert np.concatenate([r[1:-1] for r in real]).tolist() == stream

    # Each piece, cut out by the columns, is that part of its document; together they are all of it.
    found: dict[int, list[int]] = {}
    for row, s, o, p in zip(real, starts, offsets, pieces, strict=True):
        assert s[0] == 0
        assert s == sorted(set(s))
        for piece, (left, right) in enumerate(zip(s, [*s[1:], len(row)], strict=True)):
            tokens = [int(t) for t in row[left:right] if t not in (BOS, EOS)]
            document = documents[p[piece]]
            assert tokens == document[o[piece] : o[piece] + len(tokens)]
            assert found.setdefault(p[piece], []) == document[: o[piece]]
            found[p[piece]] += tokens
    assert [found[i] for i in range(len(documents))] == documents


@settings(deadline=None)
@given(
    documents=st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 5), st.integers(1, 9)), max_size=40
    ),
    budget=st.none() | st.integers(1, 60),
    fraction=st.sampled_from([Fraction(0), Fraction(1, 10), Fraction(1, 2), Fraction(1)]),
)
def test_selection(
    documents: list[tuple[int, int, int, int]],
    budget: int | None,
    fraction: Fraction,
) -> None:
    """Documents are (source, table, text, tokens), ids their number; some get an id twice."""
    with tempfile.TemporaryDirectory() as folder:
        _check_selection(Path(folder), documents, budget, fraction)


def _check_selection(
    folder: Path, documents: list[tuple[int, int, int, int]], budget: int | None, fraction: Fraction
) -> None:
    stores = Stores(LocalStorage(folder), LocalStorage(folder))
    sources = ("first", "second")
    rows: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for number, (source, table, text, tokens) in enumerate(documents):
        name = f"{sources[source]}/{number % 17}"
        content = text_hash(f"text {text}")
        hashes = [decision_hash(decision, 0, name) for decision in ("order", "budget")]
        split = decision_hash("split", 0, content)
        halves = [int.from_bytes(content[:8], "big"), int.from_bytes(content[8:], "big")]
        rows.setdefault((source, table), []).append((*hashes, split, *halves, tokens))
    tables = []
    for (source, table), entries in sorted(rows.items()):
        entries.sort(key=lambda entry: entry[0])
        columns = np.array(entries, dtype=np.uint64)
        arrays = [
            pa.array(columns[:, i].astype(f.type.to_pandas_dtype())) for i, f in enumerate(TABLE_SCHEMA)
        ]
        name = f"encode/{source}-{table}.arrow"
        written = stores.work.publish_arrow(name, pa.record_batch(arrays, schema=TABLE_SCHEMA))
        file = PublishedFile.of("work", name, written)
        tables.append(Table(file, file, sources[source]))
    if not tables:
        return
    unit = SelectUnit(tuple(tables), sources, (budget, None), fraction)
    record = unit.run(stores)

    # The reference: one document after the other, in plain Python.
    alive = [
        (file, row, sources.index(table.source), *entry)
        for file, table in enumerate(tables)
        for row, entry in enumerate(rows[(sources.index(table.source), int(table.table.name[-7]))])
    ]
    by_id: dict[int, tuple[int, ...]] = {}
    for d in sorted(alive, key=lambda d: (d[3], d[6], d[7], d[0], d[1])):
        by_id.setdefault(d[3], d)
    by_text: dict[tuple[int, int], tuple[int, ...]] = {}
    for d in sorted(by_id.values(), key=lambda d: (d[2], d[3])):
        by_text.setdefault((d[6], d[7]), d)
    kept, spent = [], 0
    for d in sorted(by_text.values(), key=lambda d: (d[4], d[3])):
        if d[2] == 0 and budget is not None:
            spent += d[8]
            if spent > budget:
                continue
        kept.append(d)
    held = [d for d in kept if d[5] < threshold(fraction)]
    by_split = sorted(kept, key=lambda d: (d[5], d[3]))
    if fraction and len(kept) >= 2:
        held = held or by_split[:1]
        held = held if len(held) < len(kept) else by_split[:-1]
    else:
        held = []
    expected = {"train": [d for d in kept if d not in held], "validation": held}
    for split, file in zip(SPLITS, record.files, strict=True):
        assert file.name == f"select/{unit.id}.{split}.arrow"
        batch = stores.work.open_arrow(file.name, file.sha256).get_batch(0)
        assert batch.schema == KEEP_SCHEMA
        start = 0
        wanted = []
        for d in sorted(expected[split], key=lambda d: d[3]):
            wanted.append({"file": d[0], "row": d[1], "tokens": d[8], "start": start})
            start += d[8] + 1
        assert batch.to_pylist() == wanted
        assert record.facts["streams"][split] == start
    counted = record.facts["sources"]
    lost = sum(t["documents"] for s in sources for t in counted[s]["dropped"].values())
    assert lost + len(kept) == len(documents)


def test_pack_unit_ids_name_what_they_depend_on() -> None:
    keep = PublishedFile("work", "select/1.train.arrow", 8, "s")
    unit = PackUnit(keep, "train", 0, 0, 5, (), layout(8))
    assert unit.id == PackUnit(keep, "train", 0, 0, 5, (), layout(8)).id
    others = [
        PackUnit(replace(keep, sha256="t"), "train", 0, 0, 5, (), layout(8)),
        PackUnit(keep, "validation", 0, 0, 5, (), layout(8)),
        PackUnit(keep, "train", 0, 0, 4, (), layout(8)),
        PackUnit(keep, "train", 0, 0, 5, (), layout(9)),
    ]
    assert len({unit.id, *(other.id for other in others)}) == 5
