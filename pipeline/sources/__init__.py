"""The kinds of source: where documents come from, and how one is read."""

from pipeline.sources.books import Books
from pipeline.sources.realnews import RealNews
from pipeline.sources.source import Source
from pipeline.sources.stories import Stories
from pipeline.sources.text import Text
from pipeline.sources.wikipedia import Wikipedia

SOURCES: dict[str, type[Source]] = {
    source.kind: source for source in (Books, Wikipedia, RealNews, Stories, Text)
}
