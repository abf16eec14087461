"""Stories (CC-Stories): one text file of many documents, or rows {text} as parquet or jsonl.

In a text file `separator` ends a document: a line end (the default, a document a line), two line ends (one or
more blank lines), or any other text, which then must fill a line of its own. Look at your file first: how
`cc-stories.txt` separates its documents is not documented. The paper takes one third of the documents, at random,
of any length.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import ClassVar

from pipeline.sources.source import PaperCounts, Source
from pipeline.sources.streams import Lines

_BOM = b"\xef\xbb\xbf"


class Stories(Source):
    kind: ClassVar[str] = "stories"
    paper: ClassVar[PaperCounts | None] = PaperCounts(tokens=2.1e9, mean_length=7_800, share=0.323)
    sample: ClassVar[Fraction] = Fraction(1, 3)

    many_in_a_text_file: ClassVar[bool] = True

    def text_file(self, lines: Lines) -> Iterator[tuple[int, bytes]]:
        if self.separator == "\n":
            yield from ((lines.number, line) for line in lines if line.strip(_BOM).strip())
            return
        mark = self.separator.strip().encode()
        first, held = lines.number + 1, bytearray()
        for line in lines:
            if line.strip() == mark:
                if held.strip():
                    yield first, bytes(held)
                first, held = lines.number + 1, bytearray()
            else:
                held += line[: lines.maximum + 1 - len(held)]
        if held.strip():
            yield first, bytes(held)

    def text(self, content: bytes) -> str:
        return super().text(content).strip("\n")
