"""Wikipedia: rows {id, url, title, text} of `wikimedia/wikipedia`, as parquet or jsonl."""

from typing import ClassVar

from pipeline.sources.source import PaperCounts, Source


class Wikipedia(Source):
    kind: ClassVar[str] = "wikipedia"
    paper: ClassVar[PaperCounts | None] = PaperCounts(tokens=2.1e9, mean_length=506, share=0.323)
    reads_text_files: ClassVar[bool] = False
