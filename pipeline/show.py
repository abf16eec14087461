"""Shows sequences of a corpus as text, with the borders of their documents. `python -m pipeline.show --help`."""

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import BuildError
from pipeline.shards import MANIFEST, CorpusError, shard_schema
from pipeline.storage import LocalStorage, Storage, open_storage
from pipeline.tokenizer import TOKENIZER_FILES, Tokenizer, load_tokenizer
from pipeline.verify.manifest import CONCATENATE, ShardEntry, read_form
from pipeline.verify.problems import Problems

HEAD, TAIL = 320, 120
"""Characters of a piece's text that are shown without --full, from its start and from its end."""
HEAD_IDS, TAIL_IDS = 24, 8
WIDEST = 110
"""Columns used, however wide the terminal is."""

_HELP = """\
Shows what a model will read: sequences of a corpus, decoded, with the borders of their documents.

  python -m pipeline.show corpus                           the first sequence
  python -m pipeline.show corpus --sequence 1234           the one of this number, from 0
  python -m pipeline.show corpus --random 5 --seed 1       five, the same ones for the same seed
  python -m pipeline.show corpus --document wikipedia/12   all pieces of a document, by scanning the corpus
  python -m pipeline.show s3://bucket/corpus --split validation --full --ids

Of each sequence: its shard and row, and how many of its places hold tokens of documents and how many padding. Of each
piece in it: where in the sequence it lies, its source and document, and where in the document it starts, in tokens. Its
text is shortened in the middle, line ends are drawn as ⏎; --full gives all of it as it is. <s>, </s> and <pad> stand
where the model sees them; the same characters inside a text are text.
"""


@dataclass(frozen=True)
class Row:
    """One sequence of a corpus; `pieces` are those to be shown, all if None."""

    split: str
    number: int
    shard: str
    row: int
    batch: pa.RecordBatch
    """Of this row alone."""
    pieces: tuple[int, ...] | None = None


class SealedCorpus:
    """A corpus in any storage, of which only the shards asked for are read. Nothing is verified or changed."""

    def __init__(self, storage: Storage) -> None:
        """CorpusError where there is no corpus of this format."""
        self.storage = storage
        where = storage.where(MANIFEST)
        try:
            content = storage.read(MANIFEST)
        except FileNotFoundError:
            raise CorpusError(
                f"{where}: missing; not a corpus, or one whose build has not finished"
            ) from None
        problems = Problems()
        manifest = read_form(content, problems)
        if manifest is None:
            raise CorpusError(f"{where}: {problems.shown[0].message}")
        told = manifest.tokenizer
        self.splits = {name: split.shards for name, split in manifest.splits.items()}
        self.packing = manifest.packing
        self._fingerprint = told.fingerprint
        self._schema = shard_schema(manifest.sequence_length, told.vocabulary_size, told.fingerprint)

    def load_tokenizer(self) -> Tokenizer:
        """The one saved with the corpus. CorpusError where it is not the one that the shards were made with."""
        with tempfile.TemporaryDirectory() as folder:
            for name in TOKENIZER_FILES:
                try:
                    Path(folder, name).write_bytes(self.storage.read(name))
                except FileNotFoundError:
                    raise CorpusError(f"{self.storage.where(name)}: missing") from None
            try:
                tokenizer = load_tokenizer(folder)
            except ValueError as error:
                where = self.storage.where(TOKENIZER_FILES[0])
                raise CorpusError(f"{where}: {str(error).removeprefix(f'tokenizer {folder}')}") from error
        if tokenizer.fingerprint != self._fingerprint:
            raise CorpusError(
                f"{self.storage.where(TOKENIZER_FILES[0])}: its fingerprint is {tokenizer.fingerprint}, the shards "
                f"were made with {self._fingerprint}"
            )
        return tokenizer

    def sequences(self, split: str) -> int:
        return sum(shard.sequences for shard in self._shards(split))

    def row(self, split: str, number: int) -> Row:
        """The sequence of this number. CorpusError where there is none."""
        total = self.sequences(split)
        if not 0 <= number < total:
            raise CorpusError(
                f"{self.storage.uri}: {split} has {total:,} sequences, numbered from 0; there is no number {number:,}"
            )
        first = 0
        for shard in self._shards(split):
            if number < first + shard.sequences:
                batch = self._read(shard.path)
                if number - first >= batch.num_rows:
                    break
                return Row(split, number, shard.path, number - first, batch.slice(number - first, 1))
            first += shard.sequences
        raise CorpusError(f"{self.storage.where(shard.path)}: has fewer sequences than the manifest says")

    def rows_of(self, document: str, splits: Sequence[str]) -> Iterator[Row]:
        """Every sequence with a piece of this document, in the order of the splits."""
        for split in splits:
            first, found = 0, False
            for shard in self._shards(split):
                column = self._read(shard.path, "documents").column("documents")
                hits = np.flatnonzero(pc.equal(column.flatten(), document).to_numpy(zero_copy_only=False))
                if found and not len(hits) and self.packing == CONCATENATE:
                    return  # its pieces follow one another, and no other split has any
                starts = np.cumsum([0, *pc.list_value_length(column).to_numpy()])
                rows = np.searchsorted(starts, hits, side="right") - 1
                batch = self._read(shard.path) if len(hits) else None
                for row in dict.fromkeys(rows.tolist()):
                    assert batch is not None
                    found = True
                    pieces = tuple(int(hit - starts[row]) for hit in hits[rows == row])
                    yield Row(split, first + row, shard.path, row, batch.slice(row, 1), pieces)
                first += shard.sequences

    def _shards(self, split: str) -> list[ShardEntry]:
        if split not in self.splits:
            raise CorpusError(f"{self.storage.uri}: no split {split!r}, it has {', '.join(self.splits)}")
        return self.splits[split]

    def _read(self, name: str, column: str | None = None) -> pa.RecordBatch:
        """A shard's rows, or one column of them: then only that is fetched."""
        fields = None if column is None else [self._schema.get_field_index(column)]
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        where = self.storage.where(name)
        try:
            if isinstance(self.storage, LocalStorage):
                source = pa.memory_map(str(self.storage.path(name)))
            else:
                source = pa.PythonFile(self.storage.open(name), mode="r")
            reader = pa.ipc.open_file(source, options=options)
            schema = self._schema if column is None else pa.schema([self._schema.field(column)])
            if not reader.schema.equals(schema):
                raise CorpusError(f"{where}: not a shard of this corpus; python -m pipeline.verify says more")
            return reader.read_all().combine_chunks().to_batches()[0]
        except FileNotFoundError:
            raise CorpusError(f"{where}: missing, though {MANIFEST} lists it") from None
        except pa.ArrowException as error:
            raise CorpusError(f"{where}: not a readable Arrow file: {error}") from error


@dataclass(frozen=True)
class Style:
    """How rows are written: colours, columns, and how much of them."""

    colour: bool
    columns: int
    full: bool = False
    ids: bool = False

    def paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text


BOLD, DIM, SPECIAL, SOURCE = "1", "2", "35", "36"


def render(row: Row, tokenizer: Tokenizer, style: Style) -> str:
    """A sequence as text for people, several lines."""
    ids = row.batch.column("input_ids")[0].values.to_numpy()
    starts, documents, offsets, sources = (
        row.batch.column(name)[0].as_py()
        for name in ("document_starts", "documents", "document_offsets", "sources")
    )
    real = len(ids) - int((ids == tokenizer.pad_id).sum())
    ends = [*starts[1:], real]
    wrap = np.isin(ids, [tokenizer.bos_id, tokenizer.eos_id])
    count = "piece" if len(starts) == 1 else "pieces"
    title = f"sequence {row.number:,} of {row.split}"
    about = f"{row.shard}, row {row.row:,}; {real - int(wrap.sum()):,} tokens in {len(starts):,} {count}"
    about += f", {len(ids) - real:,} padding"
    lines = [style.paint(BOLD, title), style.paint(DIM, f"  {about}")]
    for piece in row.pieces if row.pieces is not None else range(len(starts)):
        start, end = starts[piece], ends[piece]
        own = int((~wrap[start:end]).sum())
        place = f"{start}–{end - 1}"
        lines += [
            "",
            f"  {style.paint(SOURCE, inert(sources[piece]))}  {style.paint(BOLD, inert(documents[piece]))}",
            style.paint(
                DIM, f"  places {place}: {own:,} tokens, from token {offsets[piece]:,} of the document on"
            ),
        ]
        lines += _content(ids[start:end], tokenizer, style)
    if real < len(ids) and row.pieces is None:
        lines += ["", f"  {style.paint(SPECIAL, '<pad>')} × {len(ids) - real:,}"]
    return "\n".join(lines) + "\n"


def _content(ids: np.ndarray, tokenizer: Tokenizer, style: Style) -> list[str]:
    """The lines of a piece: its text between its special tokens, and its ids if they are wanted."""
    first = 1 if len(ids) and ids[0] == tokenizer.bos_id else 0
    last = len(ids)
    while last > first and ids[last - 1] == tokenizer.eos_id:
        last -= 1
    before, after = "<s>" * first, "</s>" * (len(ids) - last)
    text = inert(tokenizer.decode(ids[first:last].tolist()), keep="\n\t" if style.full else "")
    if style.full:
        lines = text.split("\n")
    else:
        if len(text) > HEAD + TAIL + 40:
            text = f"{text[:HEAD]} […{len(text) - HEAD - TAIL:,} characters…] {text[-TAIL:]}"
        lines = wrapped(text, style.columns - 4 - len(before) - len(after))
    lines[0] = style.paint(SPECIAL, before) + lines[0]
    lines[-1] += style.paint(SPECIAL, after)
    shown = [f"    {line}" for line in lines]
    if style.ids:
        numbers = [str(i) for i in ids.tolist()]
        if not style.full and len(numbers) > HEAD_IDS + TAIL_IDS + 1:
            left = len(numbers) - HEAD_IDS - TAIL_IDS
            numbers = [*numbers[:HEAD_IDS], f"[…{left:,}…]", *numbers[-TAIL_IDS:]]
        shown += [style.paint(DIM, f"    {line}") for line in wrapped(" ".join(numbers), style.columns - 4)]
    return shown


def inert(text: str, keep: str = "") -> str:
    """Text that a terminal only draws: line ends as ⏎, other control characters spelt out, but those in `keep`."""

    def spell(match: re.Match[str]) -> str:
        character = match[0]
        if character in keep:
            return character
        return "⏎ " if character == "\n" else " " if character == "\t" else f"\\x{ord(character):02x}"

    return re.sub("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", spell, text)


def wrapped(text: str, columns: int) -> list[str]:
    """Lines of at most so many columns, broken at spaces where there are any; wide characters take two."""
    lines, line, width = [], "", 0
    for word in re.findall(r" *[^ ]+| +$", text):
        size = _width(word)
        if line and width + size > columns:
            lines.append(line)
            word = word.lstrip(" ")
            line, width, size = "", 0, _width(word)
        while size > columns:
            cut = next(i for i in range(len(word), 0, -1) if _width(word[:i]) <= columns)
            lines.append(word[:cut])
            word = word[cut:]
            size = _width(word)
        line, width = line + word, width + size
    return [*lines, line]


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) != 0 for c in text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0, or 2 with one message where it cannot show what was asked for."""
    options = _parser().parse_args(arguments)
    try:
        _show(options)
        sys.stdout.flush()
    except (BuildError, CorpusError) as error:
        return _complain(str(error), 2)
    except BrokenPipeError:  # `| head` has seen enough; what Python flushes at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return _complain(f"{error.filename or options.corpus}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        return _complain("stopped", 130)
    return 0


def _show(options: argparse.Namespace) -> None:
    corpus = SealedCorpus(open_storage(options.corpus))
    tokenizer = corpus.load_tokenizer()
    live = sys.stdout.isatty()
    colour = live and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    columns = min(shutil.get_terminal_size((80, 24)).columns, WIDEST) if live else 80
    style = Style(colour, max(columns, 30), options.full, options.ids)
    found = False
    for row in _wanted(corpus, options):
        print(("\n" if found else "") + render(row, tokenizer, style), end="", flush=True)
        found = True
    if not found:
        splits = ", ".join([options.split] if options.split else corpus.splits)
        raise CorpusError(
            f"{corpus.storage.uri}: no document {options.document!r} in {splits}; ids look like {_example(corpus)}"
        )


def _wanted(corpus: SealedCorpus, options: argparse.Namespace) -> Iterator[Row]:
    split = options.split or "train"
    if options.document is not None:
        if options.split and options.split not in corpus.splits:
            corpus.sequences(options.split)  # says which there are
        yield from corpus.rows_of(options.document, [options.split] if options.split else list(corpus.splits))
    elif options.random is not None:
        total = corpus.sequences(split)
        if not total:
            raise CorpusError(f"{corpus.storage.uri}: {split} has no sequences")
        numbers = random.Random(options.seed).sample(range(total), min(options.random, total))  # noqa: S311
        for number in sorted(numbers):
            yield corpus.row(split, number)
    else:
        yield corpus.row(split, options.sequence)


def _example(corpus: SealedCorpus) -> str:
    split = next((name for name in corpus.splits if corpus.sequences(name)), None)
    return (
        "source/name" if split is None else repr(corpus.row(split, 0).batch.column("documents")[0].as_py()[0])
    )


def _complain(message: str, code: int) -> int:
    print(f"show: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pipeline.show", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("corpus", metavar="DIR_OR_URI", help="the folder of the corpus, or its s3:// or gs:// URI")
    add("--split", metavar="NAME", help="train, unless said otherwise; --document looks in all")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--sequence", type=int, default=0, metavar="I", help="the number of a sequence (default 0)"
    )
    which.add_argument("--document", metavar="ID", help="a document, by its id: source/name")
    which.add_argument("--random", type=_positive, metavar="N", help="this many sequences, chosen by --seed")
    add("--seed", type=int, default=0, metavar="S", help="for --random (default 0)")
    add("--full", action="store_true", help="all of each text, as it is")
    add("--ids", action="store_true", help="the token ids as well")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
