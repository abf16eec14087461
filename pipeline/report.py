"""report.html: the data card of a corpus, one self-contained page; no script, no network."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from pipeline.sources import SOURCES

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; color: #666; padding: .3rem 0; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; vertical-align: top; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #888; }
code { font-size: .85em; word-break: break-all; } .wide td { text-align: left; }
svg { width: 100%; height: auto; } svg text { font: 11px system-ui, sans-serif; fill: #555; }
"""


def render_report(manifest: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    """The page for a manifest; `seconds` of processor time by stage."""
    sections = [
        _overview(manifest),
        _sources(manifest["sources"]),
        _dropped(manifest["sources"]),
        *(_histogram(source) for source in manifest["sources"] if source["kept"]["documents"]),
        _licences(manifest["sources"]),
        _timings(seconds),
        _shards(manifest),
        _inputs(manifest["inputs"]),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>Corpus report</title>\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>Corpus report</h1>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _overview(manifest: Mapping[str, Any]) -> str:
    tokenizer = manifest["tokenizer"]
    rows = [
        ("Fingerprint", f"<code>{manifest['fingerprint']}</code>"),
        ("Sequence length", f"{manifest['sequence_length']:,} tokens"),
        ("Tokenizer", f"<code>{tokenizer['fingerprint']}</code>, {tokenizer['vocabulary_size']:,} entries"),
        (
            "Versions",
            escape(", ".join(f"{name} {version}" for name, version in manifest["versions"].items())),
        ),
    ]
    for name, split in manifest["splits"].items():
        filled = split["tokens"] / max(split["sequences"] * manifest["sequence_length"], 1)
        text = f"{split['sequences']:,} sequences, {split['tokens']:,} document tokens ({filled:.1%} of all places)"
        rows.append((name.capitalize(), text))
    if manifest["limit"] is not None:
        rows.append(("Limit", f"built with --limit {manifest['limit']:,}: not the whole of its sources"))
    return _table("", [], rows, kind="wide")


def _sources(sources: Sequence[Mapping[str, Any]]) -> str:
    total = sum(source["kept"]["tokens"] for source in sources)
    rows = []
    for source in sources:
        documents, tokens = source["kept"]["documents"], source["kept"]["tokens"]
        paper = SOURCES[source["kind"]].paper
        expected = (
            (f"{paper.tokens / 1e9:.1f} B", f"{paper.mean_length:,.0f}", f"{paper.share:.1%}")
            if paper
            else ()
        )
        rows.append(
            (
                escape(source["name"]),
                f"{source['read']:,}",
                f"{documents:,}",
                f"{tokens:,}",
                f"{tokens / max(documents, 1):,.0f}",
                f"{tokens / max(total, 1):.1%}",
                *(expected or ("–",) * 3),
            )
        )
    head = [
        "Source",
        "Read",
        "Kept",
        "Tokens",
        "Mean length",
        "Share",
        "Paper: tokens",
        "mean length",
        "share",
    ]
    caption = "Documents and tokens, beside the Longformer paper's corpus (appendix C)."
    return "<h2>Sources</h2>" + _table(caption, head, rows)


def _dropped(sources: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for source in sources:
        name = escape(source["name"])
        rows.append((name, "read", f"{source['read']:,}", ""))
        rows += [
            (name, f"in quarantine: {escape(reason)}", f"{count:,}", "")
            for reason, count in source["quarantined"].items()
        ]
        rows += [
            (name, f"dropped: {escape(reason)}", f"{tally['documents']:,}", _number(tally.get("tokens")))
            for reason, tally in source["dropped"].items()
        ]
        rows += [
            (name, f"kept in {split}", f"{tally['documents']:,}", f"{tally['tokens']:,}")
            for split, tally in source["splits"].items()
        ]
    caption = "Read = kept + dropped + in quarantine, for every source; checked when the corpus was sealed. "
    caption += "No tokens where documents were dropped before they were tokenised."
    return "<h2>Where every document went</h2>" + _table(
        caption, ["Source", "Fate", "Documents", "Tokens"], rows
    )


def _histogram(source: Mapping[str, Any]) -> str:
    counts = source["length_histogram"]
    first = next(index for index, count in enumerate(counts) if count)
    shown = list(enumerate(counts))[first:]
    step, height = 700 / max(len(shown), 8), 120
    bars = []
    for place, (exponent, count) in enumerate(shown):
        size = height * count / max(counts)
        x, middle = place * step, place * step + step / 2
        bars.append(
            f'<rect x="{x + 2:.1f}" y="{height - size + 15:.1f}" width="{step - 4:.1f}" height="{size:.1f}" '
            f'fill="#4878a8"><title>{count:,} documents of {1 << exponent:,} to {(2 << exponent) - 1:,} tokens'
            f'</title></rect><text x="{middle:.1f}" y="{height - size + 11:.1f}" text-anchor="middle">{count:,}</text>'
            f'<text x="{middle:.1f}" y="{height + 30}" text-anchor="middle">{_short(1 << exponent)}</text>'
        )
    title = f"Document lengths in tokens, {escape(source['name'])}"
    return f'<h2>{title}</h2><svg viewBox="0 0 700 {height + 40}" role="img" aria-label="{title}">{"".join(bars)}</svg>'


def _licences(sources: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (escape(s["name"]), escape(s["licence"] or "not stated"), escape(s["terms"] or "–")) for s in sources
    ]
    return "<h2>Licences and terms</h2>" + _table("", ["Source", "Licence", "Terms"], rows, kind="wide")


def _timings(seconds: Mapping[str, float]) -> str:
    rows = [(stage, f"{value:,.1f}") for stage, value in seconds.items()]
    return "<h2>Processor time</h2>" + _table("Of all workers together.", ["Stage", "Seconds"], rows)


def _shards(manifest: Mapping[str, Any]) -> str:
    rows = [
        (f"<code>{s['path']}</code>", f"{s['sequences']:,}", f"{s['bytes']:,}", f"<code>{s['sha256']}</code>")
        for split in manifest["splits"].values()
        for s in split["shards"]
    ]
    return "<h2>Shards</h2>" + _table("", ["Shard", "Sequences", "Bytes", "sha256"], rows)


def _inputs(inputs: Sequence[Mapping[str, Any]]) -> str:
    shown = inputs[:1000]
    rows = [
        (escape(i["source"]), escape(i["name"]), f"{i['bytes']:,}", f"<code>{escape(i['version'])}</code>")
        for i in shown
    ]
    caption = (
        f"The first {len(shown):,} of {len(inputs):,}; all are in manifest.json."
        if len(inputs) > len(shown)
        else ""
    )
    return "<h2>Inputs</h2>" + _table(caption, ["Source", "File", "Bytes", "Version"], rows)


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    header = "<thead><tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr></thead>" if head else ""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    title = f"<caption>{caption}</caption>" if caption else ""
    return f'<table class="{kind}">{title}{header}<tbody>\n{body}</tbody></table>'


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _short(value: int) -> str:
    return f"{value >> 20}M" if value >= 1 << 20 else f"{value >> 10}K" if value >= 1024 else str(value)
