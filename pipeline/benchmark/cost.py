"""What the paper's corpus would cost in CPU hours, from rates measured here."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Raw:
    """A source of the paper as one gets it, in GB (1e9 bytes).

    `text` is what of it is text to look at, `tokenised` what is left to tokenise: a third of Stories and RealNews is
    sampled before tokenising, and articles under 1,201 bytes cannot have more than 1,200 tokens.
    """

    name: str
    raw: float
    text: float
    tokenised: float
    how: str


PAPER = (
    Raw("Books", 6.6, 6.6, 6.6, "all of it; the budget is applied to counted tokens"),
    Raw("Wikipedia", 20.0, 20.0, 20.0, "all of it"),
    # Assumed: four fifths of a row are its text, one twentieth of the text lies in articles under 1,201 bytes.
    Raw(
        "RealNews",
        120.0,
        96.0,
        96.0 * 0.95 / 3,
        "a third of the articles of 1,201 bytes or more (95 %, assumed)",
    ),
    Raw("Stories", 31.0, 31.0, 31.0 / 3, "a third"),
)


def paper_costs(tokenising: dict[str, float], reading: float, rest: float) -> list[dict[str, Any]]:
    """CPU hours a source.

    Args:
        tokenising: MB of text a CPU second by engine.
        reading: MB of raw text a CPU second that fetching's end, the archive and split take to chunks.
        rest: MB of tokenised text a CPU second for all else: encode without its tokenising, select, pack, seal.
    """
    rows = []
    for source in PAPER:
        row: dict[str, Any] = {"source": source.name, "raw": source.raw, "tokenised": source.tokenised}
        row["how"] = source.how
        row["reading"] = source.raw * 1e3 / reading / 3600
        row["rest"] = source.tokenised * 1e3 / rest / 3600
        row["tokenising"] = {
            engine: source.tokenised * 1e3 / rate / 3600 for engine, rate in tokenising.items()
        }
        rows.append(row)
    return rows
