"""report.html: the data card of a corpus, one self-contained page; no script, no network."""

from pipeline.report.facts import BuildFacts, DuplicatePair, Example, LostDocument, PackedSplit, StageFacts
from pipeline.report.page import render_report

__all__ = [
    "BuildFacts",
    "DuplicatePair",
    "Example",
    "LostDocument",
    "PackedSplit",
    "StageFacts",
    "render_report",
]
