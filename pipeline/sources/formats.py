"""What a file's name says of its format."""

from pathlib import PurePosixPath

from pipeline.sources.source import Source

ROWS = frozenset({".jsonl", ".json", ".ndjson"})
ARCHIVES = frozenset({".tar", ".zip"})
_COMPRESSIONS = frozenset({".gz", ".bz2", ".xz"})
_SHORT_NAMES = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz"}


def format_of(name: str) -> tuple[str, str]:
    """(format, compression) by the name's endings, such as (".tar", ".gz"); "" for none."""
    path = PurePosixPath(name.lower())
    suffixes = PurePosixPath(path.stem + _SHORT_NAMES.get(path.suffix, path.suffix)).suffixes
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        # `pages-articles1.xml-p10p30302.bz2`, as Wikimedia names the parts of a dump.
        kind = suffixes[-2] if len(suffixes) > 1 else ""
        return (".xml" if kind.startswith(".xml-p") else kind, suffixes[-1])
    return (suffixes[-1] if suffixes else "", "")


def accepts(source: type[Source], name: str) -> bool:
    """Whether `name` says a format that sources of this kind are read from."""
    return holds_documents(source, name) or is_archive(name)


def holds_documents(source: type[Source], name: str) -> bool:
    """Whether a file of this name is documents, not an archive of such files."""
    kind, compression = format_of(name)
    if kind == ".parquet":
        return not compression
    text = kind == ".txt" and source.reads_text_files
    return kind in ROWS or text or (kind == ".xml" and source.reads_dumps)


def is_archive(name: str) -> bool:
    kind, compression = format_of(name)
    return kind == ".tar" or (kind == ".zip" and not compression)


def is_small_file(name: str) -> bool:
    """Whether a file of this name is worth reading together with others: neither an archive nor rows."""
    return format_of(name) == (".txt", "")
