"""What a kind of source says about itself; `reading` does the reading."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from pipeline.documents import decode_text
from pipeline.sources.streams import Lines


@dataclass(frozen=True)
class PaperCounts:
    """A row of the Longformer paper's table of its corpus (appendix C)."""

    tokens: float
    mean_length: float
    share: float


@dataclass(frozen=True)
class Source:
    """One kind of source. A subclass states its formats, its defaults and its columns.

    Immutable and small: it travels to the workers and is part of what names a unit of work.
    """

    kind: ClassVar[str]
    paper: ClassVar[PaperCounts | None] = None
    reads_text_files: ClassVar[bool] = True
    """Whether .txt files hold documents of this kind; .jsonl and .parquet rows always do."""
    many_in_a_text_file: ClassVar[bool] = False
    """Whether a .txt file holds many documents, told apart by `text_file`; else it is one."""
    reads_dumps: ClassVar[bool] = False
    """Whether .xml files are MediaWiki dumps of documents of this kind."""
    cleaning: ClassVar[str] = ""
    """Names what `clean` does and the versions it depends on: part of the ids of the units that call it."""
    sample: ClassVar[Fraction] = Fraction(1)
    """The fraction of documents kept unless the configuration says otherwise."""
    minimum_tokens: ClassVar[int] = 1
    """The shortest document kept unless the configuration says otherwise."""

    separator: str = "\n"
    """What ends a document in a text file that holds many; only Stories looks at it."""
    text_column: str = "text"
    """Which column of rows holds the text."""
    id_column: str | None = "id"
    """Which column of rows names a document; None where its position does."""
    maximum_document_bytes: int = 16_000_000
    """A larger document goes to quarantine; no more of it than this is ever held in memory."""

    def row(self, row: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """(id, text) of a row: no id where its position names it, no text where it has none."""
        text = row.get(self.text_column)
        identifier = row.get(self.id_column) if self.id_column else None
        named = isinstance(identifier, str | int) and not isinstance(identifier, bool) and identifier != ""
        return (str(identifier) if named else None), (text if isinstance(text, str) else None)

    def text_file(self, lines: Lines) -> Iterator[tuple[int, bytes]]:
        """(line, content) of each document in a text file that holds many, for `many_in_a_text_file`. When one
        is given, `lines` stands behind it. Of one that is too large, as of a line, the content is a byte more
        than `maximum_document_bytes`."""
        raise NotImplementedError

    def text(self, content: bytes) -> str:
        """The text of a document from a text file. UnicodeDecodeError where it is not UTF-8."""
        return decode_text(content)

    def clean(self, text: str) -> str:
        """What of a document's text a corpus is made of: without markup, headers, licences. It is done where the
        documents are tokenised, in parallel, not where they are read. Raises Dropped where it is no document."""
        return text
