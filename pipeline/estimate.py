"""What a build will cost, from the sizes of its inputs and rates that were measured (`python -m pipeline.benchmark`).

An estimate for deciding whether and where to run: text compresses differently, machines differ, and what filters drop
is not known before. Expect it to be right within a factor of two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.sources.formats import format_of
from pipeline.stages.plan import SourcePlan

UNPACKED = {"": 1.0, ".gz": 2.7, ".bz2": 3.7, ".xz": 3.4, ".zip": 2.7, ".parquet": 1.7}
"""Bytes of text in a stored byte, by compression: of 9 MB of Wikipedia articles and stories."""
READ, ENCODE = 120.0, 45.0
"""MB of text per CPU second that are cut into chunks; and that are filtered, hashed, sorted and packed, tokenising
itself left out."""
MARKUP = 4.7
"""MB of wiki markup per CPU second."""
TOKENISE = {"tokenizers": 1.3, "tiktoken": 6.5, "fastokens": 97.0}
"""By engine."""
BYTES_A_TOKEN = 4.4
"""Of English text, with RoBERTa's tokenizer."""


@dataclass(frozen=True)
class Estimate:
    """Of one source."""

    files: int
    stored_bytes: int
    text_bytes: float
    cpu_seconds: float
    work_bytes: float
    """What lies in the work storage towards the end, at most."""
    output_bytes: float


def estimate(plan: SourcePlan, engine: str, token_bytes: int) -> Estimate:
    """The estimate of one source, for a tokenizer's engine (name and version) and bytes a token."""
    stored = sum(item.bytes for item in plan.inputs)
    text = sum(item.bytes * _unpacked(item.key) for item in plan.inputs)
    sample = float(plan.source.sample or 1)
    tokens = text * sample / BYTES_A_TOKEN
    rate = TOKENISE.get(engine.split()[0], TOKENISE["tokenizers"])
    seconds = text / 1e6 * (1 / READ + 1 / ENCODE) + text * sample / 1e6 / rate
    if any(".xml" in item.key for item in plan.inputs):
        seconds += text / 1e6 / MARKUP
    remote = sum(item.bytes for item in plan.inputs if item.uri.startswith(("http", "hf:")))
    output = min(tokens, plan.source.budget or tokens) * token_bytes
    return Estimate(len(plan.inputs), stored, text, seconds, remote + text + tokens * token_bytes, output)


def total(estimates: Sequence[Estimate]) -> Estimate:
    """All sources together."""
    return Estimate(
        sum(e.files for e in estimates),
        sum(e.stored_bytes for e in estimates),
        sum(e.text_bytes for e in estimates),
        sum(e.cpu_seconds for e in estimates),
        sum(e.work_bytes for e in estimates),
        sum(e.output_bytes for e in estimates),
    )


def _unpacked(name: str) -> float:
    kind, compression = format_of(name)
    return UNPACKED.get(compression or kind, 1.0)
