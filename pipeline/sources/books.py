"""Books: a folder or archive of .txt, one book a file, or rows {title, text} as bookcorpusopen has them.

Project Gutenberg's header and licence are no part of a book: what lies outside its START and END markers is
cut off. The paper's books are BookCorpusOpen (17,868 books, 6.6 GB); its public host is gone.
"""

import re
from typing import ClassVar

from pipeline.documents import decode_text
from pipeline.sources.source import PaperCounts, Source

# The wording changed over the decades: "THE" or "THIS", one or more blanks, a title or none. Before 1997 the
# header ended with "*END*THE SMALL PRINT! … *END*" instead.
_START = re.compile(
    r"^(\*{3} ?START OF (?:THE|THIS) PROJECT GUTENBERG EBOOK.*|\*END\*? ?THE SMALL PRINT!.*)$",
    re.MULTILINE | re.IGNORECASE,
)
_END = re.compile(
    r"^(\*{3} ?END OF (?:THE|THIS) PROJECT GUTENBERG EBOOK.*|End of (?:the |this )?Project Gutenberg.*)$",
    re.MULTILINE | re.IGNORECASE,
)


class Books(Source):
    kind: ClassVar[str] = "books"
    paper: ClassVar[PaperCounts | None] = PaperCounts(tokens=0.5e9, mean_length=95_900, share=0.077)

    def text(self, content: bytes) -> str:
        return strip_gutenberg(decode_text(content))


def strip_gutenberg(text: str) -> str:
    """The book between Project Gutenberg's markers; `text` itself where there are none."""
    start = _START.search(text)
    if start:
        text = text[start.end() :]
    end = _END.search(text)
    if end:
        text = text[: end.start()]
    return text.strip("\n") if start or end else text
