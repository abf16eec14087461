"""Text: anyone's own documents. A .txt file is one document, a .jsonl or .parquet row {id?, text} is one."""

from typing import ClassVar

from pipeline.sources.source import Source


class Text(Source):
    kind: ClassVar[str] = "text"
