"""RealNews: `realnews.tar.gz`, one archive with one 120 GB jsonl, or that jsonl by itself.

Rows: title, text, summary, authors, publish_date, status, url, domain, warc_date, split. An address can have
been crawled more than once, so a row is named by its place in the file. The paper keeps documents of more than
1,200 tokens, and one third of them.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from pipeline.sources.source import PaperCounts, Source


@dataclass(frozen=True)
class RealNews(Source):
    kind: ClassVar[str] = "realnews"
    paper: ClassVar[PaperCounts | None] = PaperCounts(tokens=1.8e9, mean_length=1_700, share=0.277)
    reads_text_files: ClassVar[bool] = False
    sample: ClassVar[Fraction] = Fraction(1, 3)
    minimum_tokens: ClassVar[int] = 1_201
    id_column: str | None = None
