"""The pictures of the report, as SVG whose colours are the page's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.report.html import count, share, short, text

LABEL = 17
"""Pixels that a label needs."""


@dataclass(frozen=True)
class Fate:
    """What became of documents: a class of the page's style, and a name."""

    kind: str
    name: str


def flow(read: Mapping[str, int], went: Mapping[tuple[str, Fate], int]) -> str:
    """Where the documents of each source went: from left to right, ribbons as thick as they are many.

    `read` has the documents of each source, `went` those of a source that met a fate, in the order to be drawn.
    """
    total = sum(read.values())
    if not total:
        return ""
    fates: dict[Fate, int] = {}
    for (_, fate), number in went.items():
        fates[fate] = fates.get(fate, 0) + number
    scale = 300 / total
    left, left_end = _stack([number * scale for number in read.values()])
    right, right_end = _stack([number * scale for number in fates.values()])
    sources, targets = dict(zip(read, left, strict=True)), dict(zip(fates, right, strict=True))
    parts = []
    used_left, used_right = dict.fromkeys(read, 0.0), dict.fromkeys(fates, 0.0)
    for source in read:
        for fate in fates:
            number = went.get((source, fate), 0)
            if not number:
                continue
            thick = number * scale
            a, b = sources[source] + used_left[source], targets[fate] + used_right[fate]
            used_left[source] += thick
            used_right[fate] += thick
            drawn = max(thick, 0.75)
            parts.append(
                f'<path class="ribbon {fate.kind}" d="M186 {a:.1f}C400 {a:.1f} 400 {b:.1f} 612 {b:.1f}v{drawn:.1f}'
                f'C400 {b + drawn:.1f} 400 {a + drawn:.1f} 186 {a + drawn:.1f}z"><title>{text(source)}: {number:,} '
                f"{text(fate.name)}</title></path>"
            )
    for source, number in read.items():
        y, high = sources[source], max(number * scale, 1)
        parts.append(f'<rect class="node" x="178" y="{y:.1f}" width="8" height="{high:.1f}" rx="1.5"/>')
        parts.append(
            f'<text class="end" x="168" y="{y + high / 2 + 4:.1f}">{text(_cut(source, 18))} '
            f'<tspan class="muted">{short(number)}</tspan></text>'
        )
    for fate, number in fates.items():
        y, high = targets[fate], max(number * scale, 1)
        parts.append(
            f'<rect class="node {fate.kind}" x="612" y="{y:.1f}" width="8" height="{high:.1f}" rx="1.5"/>'
        )
        parts.append(
            f'<text x="630" y="{y + high / 2 + 4:.1f}">{text(_cut(fate.name, 30))} '
            f'<tspan class="muted">{short(number)}, {share(number, total)}</tspan></text>'
        )
    return _svg(900, max(left_end, right_end) + 6, "Where every document went", parts, "flow")


def _stack(heights: Sequence[float]) -> tuple[list[float], float]:
    """The tops of boxes of these heights, each with room for its label, and where the last one ends."""
    tops, y = [], 6.0
    for height in heights:
        room = max(height, LABEL)
        tops.append(y + (room - max(height, 1)) / 2)
        y += room + 7
    return tops, y


def histogram(
    name: str, kept: Sequence[int], before: Sequence[int], exponents: range, sequence_length: int
) -> str:
    """Documents by length, a bar for each power of two in `exponents`; `before` stands behind as an outline. A line
    marks what fits one sequence."""
    width, height, base = 400, 128, 146
    step = width / len(exponents)
    most = max([*kept, *before, 1])
    parts = [f'<line class="axis" x1="0" x2="{width}" y1="{base}" y2="{base}"/>']
    for place, exponent in enumerate(exponents):
        x = place * step
        for counts, kind in ((before, "before"), (kept, "kept")):
            number = counts[exponent] if exponent < len(counts) else 0
            if number:
                high = max(height * number / most, 1)
                parts.append(
                    f'<rect class="{kind}" x="{x + 1.5:.1f}" y="{base - high:.1f}" width="{step - 3:.1f}" '
                    f'height="{high:.1f}" rx="1.5"><title>{count(number)} documents of {1 << exponent:,} to '
                    f"{(2 << exponent) - 1:,} tokens{'' if kind == 'kept' else ', before filtering'}</title></rect>"
                )
        if place % (1 + len(exponents) // 11) == 0:
            parts.append(
                f'<text class="small middle" x="{x + step / 2:.1f}" y="{base + 15}">{_power(exponent)}</text>'
            )
    fits = sequence_length.bit_length() - 1
    if fits in exponents:
        x = (fits - exponents.start + (sequence_length / (1 << fits) - 1)) * step
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="3" y2="{base}"/>')
        side, gap = ("end", -4) if x > width / 2 else ("start", 4)
        parts.append(f'<text class="small {side}" x="{x + gap:.1f}" y="11">one sequence</text>')
    return _svg(width, base + 22, f"Document lengths of {name}, in tokens", parts, "histogram", margin=14)


def stacked(parts: Sequence[tuple[str, str, int]]) -> str:
    """One bar of parts (class, name, size), with its key below."""
    total = sum(size for _, _, size in parts)
    if not total:
        return ""
    bars = "".join(
        f'<span class="{kind}" style="flex:{max(size / total, 0.0015):.5f} 0 0" title="{text(name)}: {size:,}"></span>'
        for kind, name, size in parts
        if size
    )
    key = "".join(
        f'<li><span class="dot {kind}"></span>{text(name)} <span class="muted">{short(size)}, {share(size, total)}'
        "</span></li>"
        for kind, name, size in parts
    )
    return f'<div class="stacked">{bars}</div><ul class="key">{key}</ul>'


def _svg(width: float, height: float, label: str, parts: Sequence[str], kind: str, margin: float = 0) -> str:
    box = f"{-margin:g} 0 {width + 2 * margin:g} {height:.0f}"
    drawn = "\n".join(parts)
    return f'<svg class="{kind}" viewBox="{box}" role="img" aria-label="{text(label)}">{drawn}</svg>'


def _power(exponent: int) -> str:
    value = 1 << exponent
    return f"{value >> 20}M" if exponent >= 20 else f"{value >> 10}K" if exponent >= 10 else str(value)


def _cut(name: str, characters: int) -> str:
    return name if len(name) <= characters else name[: characters - 1] + "…"
