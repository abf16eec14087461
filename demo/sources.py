"""The demo's raw text: documentation that every machine has, in the four sources' own formats.

    python -m demo.sources --to DIR [--megabytes 6] [--seed 0]

The demo may download nothing beyond packages, and a project should not carry text. What every machine
with this project has is documentation: docstrings of the standard library and of the installed packages,
their READMEs, and `help()`'s topics. They are read without importing anything, shelved by package (so that
no text is in two sources) and written as the real sources are published, so that the same readers run:

    books/*.txt          a package's docstrings as one book, between Project Gutenberg's START and END lines;
                         every other book with a byte order mark and CRLF, as many of the real files are
    wikipedia.parquet    id, url, title, text: a module of the standard library or a topic is an article
    realnews.tar.gz      one .jsonl with RealNews' columns: a module of NEWS_PACKAGES is a report, some longer
                         and some shorter than the 1,200 tokens that the corpus asks for
    stories.jsonl        {"text": ...}: a distribution's README or a module of any other package is a story
    sources.json         what was asked for and what was made; a second run finds it and does nothing

The same environment, size and seed give the same bytes. The texts stay under their packages' licences.
"""

from __future__ import annotations

import argparse
import ast
import email.parser
import gzip
import hashlib
import io
import json
import re
import shutil
import sys
import sysconfig
import tarfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SHARES = {"books": 0.30, "wikipedia": 0.20, "realnews": 0.30, "stories": 0.20}
"""Of all text. RealNews and Stories are sampled later, so they are larger here than in the corpus."""

BOOK_PACKAGES = ("networkx", "numpy", "pandas", "sympy", "torch")
NEWS_PACKAGES = ("datasets", "deepspeed", "huggingface_hub", "ray", "transformers")

SKIPPED_FOLDERS = {
    "__pycache__",
    "_vendor",
    "idle_test",
    "site-packages",
    "test",
    "testing",
    "tests",
    "thirdparty_files",
}
LARGEST_FILE = 400_000
"""Bytes of a Python file; larger ones are generated tables, slow to parse and nearly without prose."""

SHORTEST_DOCSTRING = 120
SHORTEST_DOCUMENT = 400
"""Characters. One-line docstrings restate a name and teach a language model nothing."""

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")
"""RoBERTa's ids 0 to 3; its `<mask>` is the vocabulary's last."""

ALPHABET = 256


@dataclass(frozen=True)
class Document:
    """A module, a topic or a README: `title` is unique within its source."""

    title: str
    text: str

    @property
    def size(self) -> int:
        return len(self.text.encode())


@dataclass(frozen=True)
class Source:
    """A line of the table that the command prints; `bytes` are of text, before compression."""

    name: str
    format: str
    path: str
    documents: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """What was asked for and what was made: the contents of sources.json."""

    megabytes: float
    seed: int
    sources: tuple[Source, ...]
    files: dict[str, int]
    """The size of every file, by its path under the folder: how a later run sees that all are there."""

    def table(self) -> str:
        rows = [f"{'source':<10} {'format':<34} {'documents':>9} {'MB':>6}"]
        rows += [f"{s.name:<10} {s.format:<34} {s.documents:>9,} {s.bytes / 1e6:>6.2f}" for s in self.sources]
        documents, size = sum(s.documents for s in self.sources), sum(s.bytes for s in self.sources)
        return "\n".join([*rows, f"{'all':<10} {'':<34} {documents:>9,} {size / 1e6:>6.2f}"])


def write_sources(folder: Path | str, megabytes: float = 6.0, seed: int = 0) -> Summary:
    """Write the four sources under `folder`, at most `megabytes` of text in all, and say what was written.

    The folder appears complete or not at all; one that is complete already is left alone. `seed` chooses
    which modules are taken where a package holds more than its source needs. Raises ValueError if the folder
    holds anything else, or sources of another size or seed, or if a source would come out empty.
    """
    folder = Path(folder)
    if not 0 < megabytes < float("inf"):
        raise ValueError(f"megabytes: {megabytes} (expected a positive number)")
    if (made := _already_made(folder, megabytes, seed)) is not None:
        return made
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        summary = _write_all(partial, megabytes, seed)
        if folder.exists():  # empty, or sources of ours that lost a file
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def _already_made(folder: Path, megabytes: float, seed: int) -> Summary | None:
    """The summary of a folder that needs no work, or None; ValueError for a folder that is not ours."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        record = json.loads((folder / "sources.json").read_text())
        record["sources"] = tuple(Source(**source) for source in record["sources"])
        made = Summary(**record)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{folder}: holds something else than the demo's sources (no sources.json)"
        ) from error
    if (made.megabytes, made.seed) != (megabytes, seed):
        raise ValueError(
            f"{folder}: made with --megabytes {made.megabytes:g} --seed {made.seed}, "
            f"now asked for --megabytes {megabytes:g} --seed {seed}; remove it or choose another folder"
        )
    return made if made.files == _file_sizes(folder) else None


def _file_sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "sources.json")
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _write_all(folder: Path, megabytes: float, seed: int) -> Summary:
    library = Path(sysconfig.get_path("stdlib"))
    site = Path(sysconfig.get_path("purelib"))
    budget = {name: int(share * megabytes * 1e6) for name, share in SHARES.items()}

    per_book = budget["books"] // len(BOOK_PACKAGES)
    books = {name: _fill(package_documents(site, [name], seed), per_book) for name in BOOK_PACKAGES}
    books = {
        name: sorted(chapters, key=lambda chapter: chapter.title)
        for name, chapters in books.items()
        if chapters
    }
    articles = _fill(chain(topic_documents(), package_documents(library, [""], seed)), budget["wikipedia"])
    news = _fill(package_documents(site, NEWS_PACKAGES, seed), budget["realnews"])
    shelved = {*BOOK_PACKAGES, *NEWS_PACKAGES}
    others = sorted(
        path.parent.name for path in site.glob("*/__init__.py") if path.parent.name not in shelved
    )
    stories = _fill(chain(readme_documents(site), package_documents(site, others, seed)), budget["stories"])

    chapters = [chapter for book in books.values() for chapter in book]
    for name, documents in (
        ("books", chapters),
        ("wikipedia", articles),
        ("realnews", news),
        ("stories", stories),
    ):
        if not documents:
            raise ValueError(
                f"no documentation found for {name} under {site}, or {megabytes} MB hold no document"
            )

    write_books(folder / "books", books)
    write_wikipedia(folder / "wikipedia.parquet", articles)
    write_realnews(folder / "realnews.tar.gz", news)
    write_stories(folder / "stories.jsonl", stories)
    sources = (
        Source(
            "books", "text, Project Gutenberg's markers", "books", len(books), sum(d.size for d in chapters)
        ),
        Source("wikipedia", "parquet", "wikipedia.parquet", len(articles), sum(d.size for d in articles)),
        Source("realnews", "jsonl in tar.gz", "realnews.tar.gz", len(news), sum(d.size for d in news)),
        Source("stories", "jsonl", "stories.jsonl", len(stories), sum(d.size for d in stories)),
    )
    summary = Summary(megabytes, seed, sources, _file_sizes(folder))
    (folder / "sources.json").write_text(json.dumps(asdict(summary), indent=2) + "\n")
    return summary


def _fill(documents: Iterable[Document], budget: int) -> list[Document]:
    """The first documents that make up `budget` bytes, the last one cut; repeated texts are left out."""
    taken: list[Document] = []
    seen: set[str] = set()
    for document in documents:
        if document.text in seen:
            continue
        seen.add(document.text)
        if document.size > budget:
            whole_lines = document.text.encode()[:budget].decode(errors="ignore").rpartition("\n")[0]
            if len(whole_lines) >= SHORTEST_DOCUMENT:
                taken.append(Document(document.title, whole_lines))
            break
        taken.append(document)
        budget -= document.size
    return taken


def package_documents(root: Path, packages: Iterable[str], seed: int) -> Iterator[Document]:
    """The modules in the folders `packages` of `root` ("" is root itself), in an order drawn by `seed`."""
    paths = [path for package in packages for path in (root / package).rglob("*.py")]
    named = {path.relative_to(root).as_posix(): path for path in paths}
    for name in sorted(named, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()):
        path = named[name]
        if SKIPPED_FOLDERS.isdisjoint(Path(name).parts) and path.stat().st_size <= LARGEST_FILE:
            text = module_documentation(path.read_bytes())
            if len(text) >= SHORTEST_DOCUMENT:
                yield Document(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."), text)


def topic_documents() -> Iterator[Document]:
    """What `help("ASSIGNMENT")` shows: chapters of Python's language reference, where Python brings them."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return
    for name, text in sorted(topics.items()):
        if len(text := prose(text)) >= SHORTEST_DOCUMENT:
            yield Document(f"Python topic: {name}", text)


def readme_documents(site: Path) -> Iterator[Document]:
    """The long descriptions of the installed distributions, without this project's own (it changes)."""
    for path in sorted(site.glob("*.dist-info/METADATA")):
        metadata = email.parser.Parser().parsestr(path.read_text(encoding="utf-8", errors="replace"))
        text = prose(str(metadata.get_payload()))
        if metadata["Name"] != "longspan" and len(text) >= SHORTEST_DOCUMENT:
            yield Document(metadata["Name"], text)


def module_documentation(code: bytes) -> str:
    """The docstrings of a module, its classes and functions in their order, each under its name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a SyntaxWarning about someone else's escape sequences
            module = ast.parse(code)
    except (SyntaxError, ValueError):  # Python 2, templates
        return ""
    return "\n\n".join(_docstrings(module, name=""))


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[str]:
    text = prose(ast.get_docstring(node) or "")
    if len(text) >= SHORTEST_DOCSTRING:
        yield f"{name}\n{text}" if name else text
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child, f"{name}.{child.name}" if name else child.name)


def prose(text: str) -> str:
    """`text` without doctests, fenced code, tables, long links and HTML."""
    text = re.sub(r"^[ \t]*(```|~~~).*?^[ \t]*\1[ \t]*$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^[ \t]*>>> .*?(\n[ \t]*\n|\Z)", "\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<[^<>\n]*>", "", text)
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    lines = [line for line in lines if not line or _is_prose(line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _is_prose(line: str) -> bool:
    """Mostly letters, and without words as long as the addresses of badges."""
    words = line.split()
    return sum(map(str.isalpha, line)) * 2 > sum(map(len, words)) and max(map(len, words)) <= 60


def write_books(folder: Path, books: dict[str, list[Document]]) -> None:
    """A text file a book, with what Project Gutenberg puts before and after a text."""
    folder.mkdir()
    for number, (package, chapters) in enumerate(sorted(books.items())):
        title = f"THE DOCUMENTATION OF {package.upper()}"
        book = "\n".join(
            [
                f"This eBook was made from the docstrings of the installed package {package},",
                "in the form in which Project Gutenberg publishes texts.",
                "",
                f"*** START OF THE PROJECT GUTENBERG EBOOK {title} ***",
                "",
                "\n\n\n".join(f"{chapter.title.upper()}\n\n{chapter.text}" for chapter in chapters),
                "",
                f"*** END OF THE PROJECT GUTENBERG EBOOK {title} ***",
                "",
                "The text is under its package's licence.",
                "",
            ]
        )
        as_published_on_windows = number % 2 == 0
        if as_published_on_windows:
            book = "\ufeff" + book.replace("\n", "\r\n")
        (folder / f"{package}.txt").write_bytes(book.encode())


def write_wikipedia(path: Path, articles: list[Document]) -> None:
    """The columns of wikimedia/wikipedia on the Hugging Face hub."""
    columns = {
        "id": [str(number) for number in range(1, len(articles) + 1)],
        "url": [f"https://wiki.example/{article.title.replace(' ', '_')}" for article in articles],
        "title": [article.title for article in articles],
        "text": [article.text for article in articles],
    }
    pq.write_table(pa.table(columns), path)


def write_realnews(path: Path, news: list[Document]) -> None:
    """RealNews' archive: one .jsonl in a .tar.gz, without a clock's time anywhere in it."""
    lines = io.BytesIO()
    for number, report in enumerate(news):
        package = report.title.partition(".")[0]
        published = date(2016, 12, 1) + timedelta(days=number % 850)
        row = {
            "title": report.title,
            "text": report.text,
            "summary": report.text.partition("\n")[0],
            "authors": [f"The authors of {package}"],
            "publish_date": published.strftime("%m-%d-%Y"),
            "status": "success",
            "url": f"https://{package}.example/{report.title.replace('.', '/')}",
            "domain": f"{package}.example",
            "warc_date": f"{published:%Y-%m-%d}T00:00:00Z",
            "split": "train" if number % 20 else "val",
        }
        lines.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    member = tarfile.TarInfo("realnews/realnews.jsonl")
    member.size = lines.tell()
    lines.seek(0)
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        archive.addfile(member, lines)


def write_stories(path: Path, stories: list[Document]) -> None:
    """A JSON object a line."""
    path.write_text(
        "".join(json.dumps({"text": story.text}, ensure_ascii=False) + "\n" for story in stories), "utf-8"
    )


def read_texts(folder: Path | str) -> Iterator[str]:
    """The texts of the four sources under `folder`, as a tokenizer is trained on them."""
    folder = Path(folder)
    for book in sorted((folder / "books").glob("*.txt")):
        yield book.read_text(encoding="utf-8-sig")
    yield from pq.read_table(folder / "wikipedia.parquet", columns=["text"]).column("text").to_pylist()
    with tarfile.open(folder / "realnews.tar.gz") as archive:
        for member in archive:
            for row in archive.extractfile(member) or ():
                yield json.loads(row)["text"]
    with (folder / "stories.jsonl").open(encoding="utf-8") as stories:
        yield from (json.loads(line)["text"] for line in stories)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, to: Path | str) -> Tokenizer:
    """Train a byte-level BPE with RoBERTa's special tokens on `texts` and write it to the file `to`.

    The file is a tokenizer.json like roberta-base's: `<s> <pad> </s> <unk>` are 0 to 3 and `<mask>` is the
    last; no prefix space; `<s> … </s>` around a text where special tokens are asked for. A vocabulary of
    about 320, bytes and a few frequent pairs, lets a tiny model leave the unigram plateau of masked-language
    modelling soonest. Raises ValueError where `vocabulary_size` has no room for the 256 bytes and the special
    tokens, or where `texts` have fewer pairs than it has room for.
    """
    smallest = len(SPECIAL_TOKENS) + ALPHABET + 1
    if vocabulary_size < smallest:
        raise ValueError(
            f"vocabulary_size: {vocabulary_size} (expected at least {smallest}: the bytes and 5 tokens)"
        )
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    if learner.get_vocab_size() != vocabulary_size - 1:
        raise ValueError(
            f"vocabulary_size: {vocabulary_size}, but the texts gave {learner.get_vocab_size() + 1}; "
            "expected more text or a smaller vocabulary"
        )

    # The trainer puts every special token first; RoBERTa has <mask> last, and in the model's own vocabulary.
    learnt = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={**learnt["vocab"], "<mask>": vocabulary_size - 1}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", learnt["vocab"]["</s>"]), ("<s>", learnt["vocab"]["<s>"]), add_prefix_space=False
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False, special=True)])

    to = Path(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f".{to.name}.partial")
    partial.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    partial.replace(to)
    return tokenizer


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.sources", description=__doc__.partition("\n")[0])
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--megabytes", type=float, default=6.0, help="most text in all, before compression (6)"
    )
    parser.add_argument("--seed", type=int, default=0, help="which modules are taken (0)")
    arguments = parser.parse_args()
    try:
        summary = write_sources(arguments.to, arguments.megabytes, arguments.seed)
    except (OSError, ValueError) as error:
        print(f"demo.sources: {error}", file=sys.stderr)
        return 2
    print(f"{summary.table()}\n{arguments.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
