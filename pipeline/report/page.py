"""The page, section by section, each a function of the manifest and of the build's facts."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.report.charts import Fate, flow, histogram, stacked
from pipeline.report.facts import BuildFacts, Example
from pipeline.report.html import (
    Column,
    anchor,
    bar,
    code,
    count,
    details,
    excerpt,
    link,
    section,
    share,
    short,
    size,
    table,
    text,
)
from pipeline.report.style import STYLE
from pipeline.sources import SOURCES

LISTED = 1000
"""Inputs and shards on the page; the manifest has all of them."""
EXAMPLES = 5
"""Documents shown for each reason."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

Source = Mapping[str, Any]


def render_report(manifest: Mapping[str, Any], build: BuildFacts | None = None) -> str:
    """The page for a manifest and what its build tells beyond it. Equal arguments give equal bytes."""
    build = build or BuildFacts()
    sources = manifest["sources"]
    sections = [
        _sources(sources),
        _flow(sources),
        _lengths(manifest, build),
        _duplicates(sources, build),
        _packing(manifest, build),
        _examples(build),
        _quarantine(sources, build),
        _timings(build),
        _licences(sources),
        _made_of(manifest),
        _opening(manifest),
    ]
    titles = [part.split("<h2>")[1].split("</h2>")[0] for part in sections if part]
    links = "".join(f'<a href="#{anchor(title)}">{title}</a>' for title in titles)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<title>Corpus report</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{_head(manifest)}\n<nav>{links}</nav>\n</header>\n<main>\n"
        + "\n".join(part for part in sections if part)
        + "\n</main>\n<footer><p>Written by pipeline.build_corpus when it sealed the corpus; all but timings and "
        "examples is in manifest.json.</p></footer>\n</body>\n</html>\n"
    )


def _head(manifest: Mapping[str, Any]) -> str:
    sources = manifest["sources"]
    documents = sum(source["kept"]["documents"] for source in sources)
    tokens = sum(source["kept"]["tokens"] for source in sources)
    read = sum(source["read"] for source in sources)
    sequences = sum(split["sequences"] for split in manifest["splits"].values())
    places = sequences * manifest["sequence_length"]
    tiles = [
        (short(tokens), "tokens of documents"),
        (short(documents), f"documents, of {short(read)} read"),
        (short(sequences), f"sequences of {manifest['sequence_length']:,} tokens"),
        (share(tokens, places), "of all places hold text"),
        (f"{len(sources):,}", "source" if len(sources) == 1 else "sources"),
    ]
    shown = "".join(f"<div><b>{text(value)}</b><span>{text(name)}</span></div>" for value, name in tiles)
    names = ", ".join(source["name"] for source in sources)
    notice = ""
    if manifest.get("limit") is not None:
        notice = (
            f'<p class="notice">Built with --limit {manifest["limit"]:,}: not the whole of its sources.</p>'
        )
    return (
        f"<header>\n<h1>Corpus of {text(names)}</h1>\n"
        f'<div class="muted">Fingerprint {code(manifest["fingerprint"])}</div>\n{notice}'
        f'<div class="tiles">{shown}</div>'
    )


def _sources(sources: Sequence[Source]) -> str:
    total = sum(source["kept"]["tokens"] for source in sources)
    columns = [
        Column("Source"),
        Column("Read", True, "documents"),
        Column("Kept", True, "documents"),
        Column("Tokens", True),
        Column("Mean length", True, "tokens a document"),
        Column("Share of tokens", True),
        Column("Against the paper"),
    ]
    rows = []
    for source in sources:
        documents, tokens = source["kept"]["documents"], source["kept"]["tokens"]
        paper = SOURCES[source["kind"]].paper if source.get("kind") in SOURCES else None
        rows.append(
            (
                text(source["name"]),
                count(source["read"]),
                count(documents),
                count(tokens) + (_paper(short(paper.tokens)) if paper else ""),
                f"{tokens / max(documents, 1):,.0f}" + (_paper(f"{paper.mean_length:,.0f}") if paper else ""),
                bar(tokens, total) + ("<br>" + bar(paper.share, 1, "paper") if paper else ""),
                _differs(tokens, documents, total, paper) if paper else "not one of its sources",
            )
        )
    lead = "What each source gave; in grey the Longformer paper's corpus of 6.5 B tokens (its appendix C)."
    return section("Sources", lead, table(columns, rows))


def _paper(figure: str) -> str:
    return f'<br><span class="muted">{figure}</span>'


def _differs(tokens: int, documents: int, total: int, paper: Any) -> str:
    """In words: how many of the paper's tokens, how much longer or shorter, how many points more or less."""
    if not tokens:
        return "nothing is left of it"
    length = tokens / documents / paper.mean_length
    ratio = tokens / paper.tokens
    points = round(100 * (tokens / total - paper.share), 1)
    much = (
        "under 0.01%" if ratio < 0.0001 else f"{ratio:.{0 if ratio >= 0.1 else 1 if ratio >= 0.001 else 2}%}"
    )
    longer = f"{abs(length - 1):.0%} {'longer' if length > 1 else 'shorter'}"
    if length >= 2:
        longer = f"{length:.1f} × as long"
    elif round(length, 2) == 1:
        longer = "as long"
    part = f"share {points:+.1f} points" if points else "the same share"
    return f"{much} of its tokens; documents {longer}; {part}"


def _fates(sources: Sequence[Source]) -> dict[tuple[str, Fate], tuple[int, int | None]]:
    """What became of the documents of each source: how many they are, and their tokens where they are known."""
    went: dict[tuple[str, Fate], tuple[int, int | None]] = {}
    for source in sources:
        name = source["name"]
        for split, tally in source["splits"].items():
            kind = split if split in ("train", "validation") else "train"
            went[name, Fate(kind, f"kept in {split}")] = tally["documents"], tally["tokens"]
        for reason, tally in source["dropped"].items():
            kind = "duplicate" if "duplicate" in reason else "dropped"
            went[name, Fate(kind, f"dropped: {reason}")] = tally["documents"], tally.get("tokens")
        for reason, number in source["quarantined"].items():
            went[name, Fate("lost", f"in quarantine: {reason}")] = number, None
    return went


def _flow(sources: Sequence[Source]) -> str:
    went = _fates(sources)
    kinds = ["train", "validation", "duplicate", "dropped", "lost"]
    numbers: dict[Fate, int] = {}
    for (_, fate), (documents, _) in went.items():
        numbers[fate] = numbers.get(fate, 0) + documents
    ranked = sorted(numbers, key=lambda fate: (kinds.index(fate.kind), -numbers[fate], fate.name))
    drawn = {(s, fate): went[s, fate][0] for fate in ranked for s, f in went if f == fate and went[s, f][0]}
    picture = flow({source["name"]: source["read"] for source in sources}, drawn)
    read = {source["name"]: source["read"] for source in sources}
    rows = [
        (text(name), text(fate.name), count(documents), bar(documents, read[name], fate.kind), _known(tokens))
        for name in read
        for fate in ranked
        for documents, tokens in [went.get((name, fate), (0, None))]
        if documents
    ]
    columns = [
        Column("Source"),
        Column("Fate"),
        Column("Documents", True),
        Column("of those read", True),
        Column("Tokens", True),
    ]
    lead = (
        "Read = kept + dropped + in quarantine, for every source; checked when the corpus was sealed. No tokens where "
        "documents were dropped before they were tokenised."
    )
    return section(
        "Where every document went",
        lead,
        f'<div class="wide"><figure>{picture}</figure></div>' if picture else "",
        details("The same in figures", table(columns, rows), is_open=len(rows) <= 25),
    )


def _lengths(manifest: Mapping[str, Any], build: BuildFacts) -> str:
    kept = {s["name"]: s["length_histogram"] for s in manifest["sources"] if any(s["length_histogram"])}
    before = {name: counts for name, counts in build.lengths_before.items() if name in kept}
    seen = [i for counts in (*kept.values(), *before.values()) for i, n in enumerate(counts) if n]
    if not seen:
        return ""
    exponents = range(min(seen), max(seen) + 1)
    figures = []
    for source in manifest["sources"]:
        name = source["name"]
        if name not in kept:
            continue
        documents, tokens = source["kept"]["documents"], source["kept"]["tokens"]
        picture = histogram(name, kept[name], before.get(name, ()), exponents, manifest["sequence_length"])
        figures.append(
            f"<figure><figcaption><b>{text(name)}</b> · {short(documents)} documents, mean "
            f"{tokens / max(documents, 1):,.0f}</figcaption>{picture}</figure>"
        )
    lead = "Documents by their tokens, each bar twice as long as the one before; all sources on one scale of lengths."
    if before:
        lead += " Pale: before filtering."
    return section("Document lengths", lead, f'<div class="grid">{"".join(figures)}</div>')


def _duplicates(sources: Sequence[Source], build: BuildFacts) -> str:
    reasons = sorted({reason for source in sources for reason in source["dropped"] if "duplicate" in reason})
    if not reasons and not build.duplicates:
        return ""
    rows = [
        (
            text(source["name"]),
            text(reason),
            count(tally["documents"]),
            bar(tally["documents"], source["read"], "duplicate"),
            _known(tally.get("tokens")),
        )
        for source in sources
        for reason in reasons
        if (tally := source["dropped"].get(reason))
    ]
    columns = [
        Column("Source"),
        Column("Kind"),
        Column("Documents", True),
        Column("of those read", True),
        Column("Tokens", True),
    ]
    pairs = "".join(
        details(
            f"{pair.dropped} was dropped for {pair.kept}"
            + ("" if pair.similarity is None else f", similarity {pair.similarity:.2f}"),
            f'<div class="pair"><div><span class="muted">kept</span>{excerpt(pair.kept_text)}</div>'
            f'<div><span class="muted">dropped</span>{excerpt(pair.dropped_text)}</div></div>'
            if pair.kept_text or pair.dropped_text
            else '<p class="muted">The texts are not shown.</p>',
        )
        for pair in build.duplicates
    )
    lead = "Of documents that say the same, within and across sources, the one of the first source is kept."
    return section("Duplicates", lead, table(columns, rows) if rows else "", pairs)


def _packing(manifest: Mapping[str, Any], build: BuildFacts) -> str:
    parts = []
    packing = manifest.get("packing", "concatenate")
    for name, split in manifest["splits"].items():
        if not split["sequences"]:
            continue
        places = split["sequences"] * manifest["sequence_length"]
        packed = build.packed.get(name)
        special = None
        if packing == "concatenate":
            documents = sum(s["splits"].get(name, {}).get("documents", 0) for s in manifest["sources"])
            special = 2 * split["sequences"] + documents
        elif packed and packed.pieces is not None:
            special = split["sequences"] + packed.pieces
        rest = places - split["tokens"]
        bars = [("train" if name == "train" else "validation", "tokens of documents", split["tokens"])]
        if special is None:
            bars.append(("special", "<s>, </s> and <pad>", rest))
        else:
            bars += [("special", "<s> and </s>", special), ("padding", "<pad>", rest - special)]
        said = f"{split['sequences']:,} sequences, {share(split['tokens'], places)} of their places hold text"
        cut = packed.documents_cut if packed else None
        if cut is not None:
            said += f"; {cut:,} documents lie in more than one"
        needless = packed.documents_cut_needlessly if packed else None
        if needless is not None:
            said += f", {needless:,} of them would fit one"
        parts.append(f'<h3>{text(name)}</h3>\n<div class="muted">{text(said)}</div>\n{stacked(bars)}')
    ways = {
        "concatenate": "Documents follow each other, each with its </s>, cut where a sequence is full, as the paper's.",
        "best_fit": "Documents are put where they fit best, so that none is cut that fits a sequence.",
    }
    return section("Packing", ways.get(packing, packing), *parts)


def _examples(build: BuildFacts) -> str:
    groups: dict[str | None, list[Example]] = {}
    for example in build.examples:
        groups.setdefault(example.reason, []).append(example)
    parts = []
    for reason in sorted(groups, key=lambda reason: (reason is not None, reason or "")):
        shown = groups[reason][:EXAMPLES]
        content = "".join(
            f"<figure><figcaption>{text(e.source)}: {code(e.document)}</figcaption>{excerpt(e.text)}</figure>"
            for e in shown
        )
        title = "Kept" if reason is None else f"Dropped: {reason}"
        parts.append(details(f"{title} ({len(shown):,} shown)", content, is_open=reason is None))
    return section("Examples", "Starts of documents, as they were before tokenising.", *parts)


def _quarantine(sources: Sequence[Source], build: BuildFacts) -> str:
    rows = []
    for source in sources:
        for reason, number in source["quarantined"].items():
            first = [lost for lost in build.lost if lost.source == source["name"] and lost.reason == reason]
            places = "<br>".join(
                f"{text(lost.position)}{' · ' if lost.detail else ''}{text(lost.detail)}"
                for lost in first[:EXAMPLES]
            )
            rows.append((text(source["name"]), text(reason), count(number), places or "–"))
    if not rows:
        return ""
    columns = [Column("Source"), Column("Reason"), Column("Documents", True), Column("First places")]
    lead = "Documents that could not be read, never their text. All of them are listed in quarantine/."
    return section("Quarantine", lead, table(columns, rows))


def _timings(build: BuildFacts) -> str:
    total = sum(stage.seconds for stage in build.stages)
    rows = [
        (
            text(stage.stage),
            count(stage.units),
            f"{stage.seconds:,.1f}",
            bar(stage.seconds, total),
            "–" if stage.wall is None else f"{stage.wall:,.1f}",
            "–" if stage.bytes is None else size(stage.bytes),
            "–" if stage.bytes is None else f"{stage.bytes / 1e6 / max(stage.seconds, 1e-3):,.1f}",
        )
        for stage in build.stages
    ]
    columns = [
        Column("Stage"),
        Column("Units", True, "of work"),
        Column("CPU seconds", True, "of all workers together"),
        Column("of all", True),
        Column("Wall seconds", True, "of the last run"),
        Column("Read", True),
        Column("MB / CPU second", True),
    ]
    slow = [
        (
            text(stage.stage),
            f"{unit.seconds:,.1f}",
            size(unit.size),
            code(unit.unit_id),
            text(unit.note),
        )
        for stage in build.stages
        for unit in stage.slowest
    ]
    slow_columns = [
        Column("Stage"),
        Column("CPU seconds", True),
        Column("Read", True),
        Column("Unit"),
        Column("Of"),
    ]
    slowest = details("The slowest units", table(slow_columns, slow)) if slow else ""
    return section("Time", "", table(columns, rows) if rows else "", slowest)


def _licences(sources: Sequence[Source]) -> str:
    rows = [
        (text(s["name"]), text(s.get("licence") or "not stated"), link(s.get("terms") or "–"))
        for s in sources
    ]
    return section(
        "Licences and terms", "", table([Column("Source"), Column("Licence"), Column("Terms")], rows)
    )


def _made_of(manifest: Mapping[str, Any]) -> str:
    tokenizer = manifest["tokenizer"]
    about = [
        ("Tokenizer", f"{code(tokenizer['fingerprint'])}, {tokenizer['vocabulary_size']:,} entries"),
        ("Versions", text(", ".join(f"{name} {version}" for name, version in manifest["versions"].items()))),
    ]
    inputs = manifest["inputs"]
    listed = [
        (text(i["source"]), text(i["name"]), size(i["bytes"]), code(i["version"])) for i in inputs[:LISTED]
    ]
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
    checksums = [
        (code(s["path"]), count(s["sequences"]), size(s["bytes"]), code(s["sha256"])) for s in shards[:LISTED]
    ]
    plain = json.dumps(manifest.get("config", {}), indent=1, ensure_ascii=False)
    columns = [Column("Source"), Column("File"), Column("Size", True), Column("Version")]
    shard_columns = [Column("Shard"), Column("Sequences", True), Column("Size", True), Column("sha256")]
    return section(
        "What it is made of",
        "",
        table([Column("What"), Column("Which")], about),
        details(f"Configuration{_seed(manifest)}", f"<pre>{text(plain)}</pre>"),
        details(_titled("input", inputs), table(columns, listed)) if inputs else "",
        details(_titled("shard", shards), table(shard_columns, checksums)) if shards else "",
    )


def _titled(name: str, items: Sequence[object]) -> str:
    title = f"{len(items):,} {name}{'' if len(items) == 1 else 's'}"
    return title + (
        f"; the first {LISTED:,} of them, all are in manifest.json" if len(items) > LISTED else ""
    )


def _seed(manifest: Mapping[str, Any]) -> str:
    seed = manifest.get("config", {}).get("seed")
    return "" if seed is None else f", seed {seed}"


def _opening(manifest: Mapping[str, Any]) -> str:
    train = next(iter(manifest["splits"]), "train")
    lines = [
        "from pipeline.shards import open_corpus",
        f'corpus = open_corpus("DIR", "{train}")      # DIR is the folder of this file',
        "corpus.input_ids(0), corpus.documents(0), corpus.document_starts(0)",
    ]
    commands = [
        "python -m pipeline.verify DIR      # is it whole?",
        "python -m pipeline.show DIR        # some sequences, decoded",
    ]
    other = f'datasets.load_dataset("arrow", data_files="DIR/{train}/*.arrow")'
    return section(
        "How to open it",
        "",
        f"<pre>{_lines(lines)}</pre>",
        f"<pre>{_lines(commands)}</pre>",
        f'<p class="muted">Or without Longspan: {code(other)}</p>',
    )


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(map(text, lines))


def _known(tokens: int | None) -> str:
    return "" if tokens is None else f"{tokens:,}"
