"""Wikipedia: rows {id, url, title, text} of `wikimedia/wikipedia`, as parquet or jsonl, or a MediaWiki XML dump.

A dump's redirects and its pages outside of the articles' namespace are counted as dropped, under these reasons.
"""

from typing import ClassVar

from pipeline.sources import dumps, wikitext
from pipeline.sources.source import PaperCounts, Source


class Wikipedia(Source):
    kind: ClassVar[str] = "wikipedia"
    paper: ClassVar[PaperCounts | None] = PaperCounts(tokens=2.1e9, mean_length=506, share=0.323)
    reads_text_files: ClassVar[bool] = False
    reads_dumps: ClassVar[bool] = True
    cleaning: ClassVar[str] = f"wikitext {wikitext.VERSION}"

    def clean(self, text: str) -> str:
        return dumps.clean(text)
