"""Books: a folder or archive of .txt, one book a file, or rows {title, text} as bookcorpusopen has them.

Project Gutenberg's header and licence are no part of a book: what lies outside its START and END markers is
cut off. The paper's books are BookCorpusOpen (17,868 books, 6.6 GB); its public host is gone.
"""

import re
from collections.abc import Iterator
from typing import ClassVar

from pipeline.sources.source import PaperCounts, Source

# The wording changed over the decades: "THE" or "THIS", one or more blanks, a title or none. Before 1997 the
# header ended with "*END*THE SMALL PRINT! … *END*" instead.
_START = re.compile(
    r"\*{3} ?START OF (?:THE|THIS) PROJECT GUTENBERG EBOOK.*|\*END\*? ?THE SMALL PRINT!.*", re.IGNORECASE
)
_END = re.compile(
    r"\*{3} ?END OF (?:THE|THIS) PROJECT GUTENBERG EBOOK.*|End of (?:the |this )?Project Gutenberg.*",
    re.IGNORECASE,
)
_WORDS = ("GUTENBERG", "Gutenberg", "gutenberg", "SMALL PRINT", "Small Print")


class Books(Source):
    kind: ClassVar[str] = "books"
    paper: ClassVar[PaperCounts | None] = PaperCounts(tokens=0.5e9, mean_length=95_900, share=0.077)
    cleaning: ClassVar[str] = "gutenberg 1"

    def clean(self, text: str) -> str:
        return strip_gutenberg(text)


def strip_gutenberg(text: str) -> str:
    """The book between Project Gutenberg's markers; `text` itself where there are none."""
    start = _first(_START, text, 0)
    begin = start.end() if start else 0
    end = _first(_END, text, begin)
    return text[begin : end.start() if end else None].strip("\r\n") if start or end else text


def _first(pattern: re.Pattern[str], text: str, begin: int) -> re.Match[str] | None:
    """The first line behind `begin` that matches from its start."""
    matches = (pattern.match(text, line) for line in _lines_to_look_at(text, begin))
    return min((match for match in matches if match), key=re.Match.start, default=None)


def _lines_to_look_at(text: str, begin: int) -> Iterator[int]:
    """Where lines begin that have a word of the markers: few, and found as fast as memory is read."""
    for word in _WORDS:
        at = text.find(word, begin)
        while at >= 0:
            yield text.rfind("\n", begin, at) + 1 or begin
            end = text.find("\n", at)
            at = text.find(word, end) if end >= 0 else -1
