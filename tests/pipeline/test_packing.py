"""Packing and selection against slow, obvious references."""

import contextlib
import io
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Config
from pipeline.decisions import decision_hash, text_hash, threshold
from pipeline.runner import LocalRunner
from pipeline.stages.best_fit import best_fit
from pipeline.stages.encode import TABLE_SCHEMA
from pipeline.stages.pack import Layout, PackUnit, cut_pieces, lay_out, plan_shards
from pipeline.stages.run import Stages
from pipeline.stages.select import KeepList, select
from pipeline.stages.select.catalogue import Catalogue, write_catalogue
from pipeline.stages.select.keep import KEEP_SCHEMA
from pipeline.stages.tokens import write_tokens
from pipeline.storage import LocalStorage, Stores
from pipeline.units import PublishedFile, Record

BOS, PAD, EOS = 0, 1, 2


def layout(sequence_length: int, packing: Any = "concatenate") -> Layout:
    return Layout(packing, sequence_length, 1000, "t", BOS, EOS, PAD)


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
        cut = cut_pieces(start[first:last], begin, end, inner)
        for left, right in zip([0, *cut.ends[:-1]], cut.ends, strict=True):
            starts.append(cut.starts[left:right].tolist())
            offsets.append(cut.offsets[left:right].tolist())
            pieces.append((first + cut.documents[left:right]).tolist())
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
    lengths=st.lists(st.integers(1, 60), max_size=40),
    sequence_length=st.integers(3, 20),
)
def test_best_fit_cuts_only_what_is_longer_than_a_sequence(lengths: list[int], sequence_length: int) -> None:
    room = sequence_length - 2
    fitted = best_fit(np.array(lengths, dtype=np.int64), room)
    sequences: list[list[tuple[int, int, int]]] = [[] for _ in range(fitted.sequences)]
    columns = (fitted.sequence, fitted.document, fitted.offset, fitted.tokens)
    for number, *piece in zip(*(column.tolist() for column in columns), strict=True):
        sequences[number].append(tuple(piece))
    for pieces in sequences:
        assert pieces
        assert sum(tokens + 1 for _, _, tokens in pieces) <= room + 1
        assert pieces == sorted(pieces)
    assert [pieces[0] for pieces in sequences] == sorted(pieces[0] for pieces in sequences)
    found: dict[int, list[tuple[int, int]]] = {}
    for pieces in sequences:
        for document, offset, tokens in pieces:
            found.setdefault(document, []).append((offset, tokens))
    for document, length in enumerate(lengths):
        parts = sorted(found[document])
        assert len(parts) == -(-length // room)
        assert sum(tokens for _, tokens in parts) == length
        assert [offset for offset, _ in parts] == list(range(0, length, room))
    # Placed longest first into the fullest that has room: what a plain search for it gives as well.
    left = [room + 1 - sum(tokens + 1 for _, _, tokens in pieces) for pieces in sequences]
    assert sorted(left) == sorted(_places_left(lengths, room))


def _places_left(lengths: list[int], room: int) -> list[int]:
    """Best-fit decreasing, looking at every sequence for every piece: the places that are left in each."""
    pieces = [min(room, length - offset) for length in lengths for offset in range(0, length, room)]
    left: list[int] = []
    for piece in sorted(pieces, reverse=True):
        enough = [i for i, free in enumerate(left) if free >= piece + 1]
        if enough:
            best = min(enough, key=lambda i: left[i])
            left[best] -= piece + 1
        else:
            left.append(room + 1 - piece - 1)
    return left


@settings(deadline=None, max_examples=60)
@given(
    documents=st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 5), st.integers(1, 9)), max_size=40
    ),
    budget=st.none() | st.integers(1, 60),
    fraction=st.sampled_from([Fraction(0), Fraction(1, 10), Fraction(1, 2), Fraction(1)]),
    in_a_range=st.sampled_from([2, 7, 1_000_000]),
    shards=st.tuples(st.sampled_from(["concatenate", "best_fit"]), st.integers(8, 20), st.integers(1, 3)),
)
def test_selection_and_packing(
    documents: list[tuple[int, int, int, int]],
    budget: int | None,
    fraction: Fraction,
    in_a_range: int,
    shards: tuple[str, int, int],
) -> None:
    """Documents are (source, table, text, tokens), ids their number modulo 17; some get an id twice."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.stages.select.ranges.DOCUMENTS", in_a_range)
        packing, sequence_length, shard_sequences = shards
        config = Config(
            tokenizer="t",
            sources=tuple(
                {"kind": "text", "name": name, "path": name, "budget": b}
                for name, b in (("first", budget), ("second", None))
            ),
            validation_fraction=fraction,
            packing=packing,
            sequence_length=sequence_length,
            shard_sequences=shard_sequences,
        )
        _check_selection(Path(folder), documents, config)


def _check_selection(folder: Path, documents: list[tuple[int, int, int, int]], config: Config) -> None:
    stages = Stages(Stores(LocalStorage(folder), LocalStorage(folder)), LocalRunner())
    work = stages.stores.work
    sources = [source.name for source in config.sources]
    rows: dict[tuple[int, int], list[tuple[Any, ...]]] = {}
    for number, (source, table, text, tokens) in enumerate(documents):
        name = f"{sources[source]}/{number % 17}"
        content = text_hash(f"text {text}")
        hashes = [decision_hash(decision, 0, name) for decision in ("order", "budget")]
        split = decision_hash("split", 0, content)
        halves = [int.from_bytes(content[:8], "big"), int.from_bytes(content[8:], "big")]
        ids = [10 + (text + i) % 500 for i in range(tokens)]
        rows.setdefault((source, table), []).append((*hashes, split, *halves, tokens, name, ids))
    tables = []
    for file, ((source, _), entries) in enumerate(sorted(rows.items())):
        entries.sort(key=lambda entry: entry[0])
        columns = np.array([entry[:6] for entry in entries], dtype=np.uint64)
        arrays = [
            pa.array(columns[:, i].astype(f.type.to_pandas_dtype())) for i, f in enumerate(TABLE_SCHEMA)
        ]
        table = work.publish_arrow(f"{file}.table", pa.record_batch(arrays, schema=TABLE_SCHEMA))
        with work.create(f"{file}.tokens") as writer:
            lengths = [len(entry[7]) for entry in entries]
            offsets = np.cumsum([0, *lengths])
            flat = np.array([token for entry in entries for token in entry[7]], dtype=np.uint16)
            write_tokens(writer, [entry[6] for entry in entries], np.arange(len(entries)), flat, offsets)
        files = [
            PublishedFile.of("work", f"{file}.tokens", writer.written),
            PublishedFile.of("work", f"{file}.table", table),
        ]
        kept = {"documents": len(entries), "tokens": sum(lengths)}
        stages.ledger.add("encode", file, Record(files, {"source": sources[source], "kept": kept}))
        tables.append((source, entries))
    if not tables:
        return
    priorities = {name: number for number, name in enumerate(sources)}
    catalogue = write_catalogue(stages.ledger, priorities, False, stages.stores)
    with contextlib.redirect_stdout(io.StringIO()):
        selection = select(stages, catalogue, config)
        stages.run(
            "pack", plan_shards(catalogue, selection, config, layout(config.sequence_length, config.packing))
        )

    # The reference: one document after the other, in plain Python.
    alive = [
        (file, row, source, *entry)
        for file, (source, entries) in enumerate(tables)
        for row, entry in enumerate(entries)
    ]
    by_id: dict[int, tuple[Any, ...]] = {}
    for d in sorted(alive, key=lambda d: (d[3], d[6], d[7], d[0], d[1])):
        by_id.setdefault(d[3], d)
    by_text: dict[tuple[int, int], tuple[Any, ...]] = {}
    for d in sorted(by_id.values(), key=lambda d: (d[2], d[3])):
        by_text.setdefault((d[6], d[7]), d)
    budget = config.sources[0].budget
    kept, spent = [], 0
    for d in sorted(by_text.values(), key=lambda d: (d[4], d[3])):
        if d[2] == 0 and budget is not None:
            spent += d[8]
            if spent > budget:
                continue
        kept.append(d)
    held = [d for d in kept if d[5] < threshold(config.validation_fraction)]
    by_split = sorted(kept, key=lambda d: (d[5], d[3]))
    if config.validation_fraction and len(kept) >= 2:
        held = held or by_split[:1]
        held = held if len(held) < len(kept) else by_split[:-1]
    else:
        held = []
    expected = {"train": [d for d in kept if d not in held], "validation": held}
    for split, lists in selection.keep_lists.items():
        start = 0
        wanted = []
        for d in sorted(expected[split], key=lambda d: d[3]):
            wanted.append({"file": d[0], "row": d[1], "tokens": d[8], "start": start})
            start += d[8] + 1
        found = []
        for keep in lists:
            batch = work.open_arrow(keep.file.name, keep.file.sha256).get_batch(0)
            assert batch.schema == KEEP_SCHEMA
            found += [{**row, "start": row["start"] + keep.start} for row in batch.to_pylist()]
        assert found == wanted
        assert lists[-1].end == start
        _check_shards(folder, stages, split, {d[9]: d[10] for d in expected[split]}, config)
    lost = sum(t["documents"] for s in selection.sources.values() for t in s["dropped"].values())
    assert lost + len(kept) == len(documents)


def _check_shards(
    folder: Path, stages: Stages, split: str, documents: dict[str, list[int]], config: Config
) -> None:
    """The pieces of the shards are the documents, whole and each once."""
    found: dict[str, dict[int, list[int]]] = {}
    for record in stages.ledger.records("pack"):
        if record.facts["split"] != split:
            continue
        assert len(record.files) == (record.facts["sequences"] > 0), "no shard is empty"
        shards = [pa.ipc.open_file(str(folder / file.name)).get_batch(0) for file in record.files]
        for row in (row for shard in shards for row in shard.to_pylist()):
            ids = np.array(row["input_ids"])
            end = int((ids != PAD).sum())
            assert (ids[end:] == PAD).all()
            assert ids[0] == BOS
            assert ids[end - 1] == EOS
            assert len(row["documents"]) == len(row["sources"]) == len(row["document_offsets"])
            for piece, (left, right) in enumerate(
                zip(row["document_starts"], [*row["document_starts"][1:], end], strict=True)
            ):
                tokens = [int(token) for token in ids[left:right] if token not in (BOS, EOS)]
                name, offset = row["documents"][piece], row["document_offsets"][piece]
                assert row["sources"][piece] == name.split("/")[0]
                if tokens:
                    assert offset not in found.setdefault(name, {})
                    found[name][offset] = tokens
    whole = {name: [t for _, p in sorted(pieces.items()) for t in p] for name, pieces in found.items()}
    assert whole == documents
    if config.packing == "best_fit":
        cut = [
            len(pieces)
            for name, pieces in found.items()
            if len(documents[name]) <= config.sequence_length - 2
        ]
        assert set(cut) <= {1}


def test_pack_unit_ids_name_what_they_depend_on() -> None:
    keep = PublishedFile("work", "keep/1.train.arrow", 8, "s")
    catalogue = Catalogue(replace(keep, name="catalogue"), 3)
    unit = PackUnit(catalogue, ("a",), (KeepList(keep, 0, 9),), "train", 0, 0, 5, layout(8))
    assert unit.id == replace(unit).id
    others = [
        replace(unit, keep_lists=(KeepList(replace(keep, sha256="t"), 0, 9),)),
        replace(unit, catalogue=replace(catalogue, documents=4)),
        replace(unit, sources=("b",)),
        replace(unit, split="validation"),
        replace(unit, end=4),
        replace(unit, layout=layout(9)),
        replace(unit, layout=layout(8, "best_fit")),
    ]
    assert len({unit.id, *(other.id for other in others)}) == 8
