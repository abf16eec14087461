"""Wikipedia from a MediaWiki XML dump: pages cut out of it, and markup removed."""

import bz2
import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.documents import Document, Dropped, Position, Quarantined
from pipeline.errors import InputError
from pipeline.fetch import Input, find_inputs
from pipeline.sources import SOURCES
from pipeline.sources.formats import accepts
from pipeline.sources.reading import read_documents
from pipeline.sources.wikipedia import Wikipedia
from pipeline.sources.wikitext import plain_text
from tests.pipeline.conftest import command, write_config

HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">\n'
HEAD += "  <siteinfo>\n    <dbname>enwiki</dbname>\n  </siteinfo>\n"


def page(number: object, text: str, namespace: int = 0, more: str = "", model: str = "wikitext") -> str:
    return (
        f"  <page>\n    <title>T</title>\n    <ns>{namespace}</ns>\n    <id>{number}</id>\n{more}"
        f"    <revision>\n      <id>9{number}</id>\n      <contributor>\n        <id>7</id>\n      </contributor>\n"
        f'      <model>{model}</model>\n      <text xml:space="preserve">{escape(text)}</text>\n'
        "    </revision>\n  </page>\n"
    )


def dump(*pages: str) -> bytes:
    return (HEAD + "".join(pages) + "</mediawiki>\n").encode()


def read(path: Path, start: Position = Position(), **options: Any) -> list[tuple[Any, Position]]:  # noqa: B008
    item = Input(str(path), path.name, path.stat().st_size)
    return list(read_documents(Wikipedia(**options), item, start=start))


PAGES = [
    page(10, "#REDIRECT [[Elsewhere]]", more='    <redirect title="Elsewhere" />\n'),
    page(12, "'''Tea''' is a [[drink|hot drink]]."),
    page(13, "{{Template}}", namespace=10),
    page(14, "body { color: red }", model="css"),
    page("x", "no number"),
    page(15, "broken &").replace("&amp;", "&"),
    page(16, "deleted").replace(">deleted</text>", ' deleted="deleted" />').replace("<text", "<texx"),
    page(17, "x" * 3000),
    page(18, "</page> &lt; <nowiki>[[x]]</nowiki>"),
    page(19, "deep " * 3, more="    " + "<a>" * 9 + "</a>" * 9 + "\n"),
]


@pytest.mark.parametrize("name", ["w.xml", "w.xml.bz2", "w.xml.gz", "w.xml-p10p19.bz2"])
def test_pages_of_a_dump(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pack = {".bz2": bz2.compress, ".gz": gzip.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(dump(*PAGES)))
    found = read(path, maximum_document_bytes=2000)
    assert [d.id for d, _ in found if isinstance(d, Document)] == ["10", "12", "13", "14", "18"]
    bad = [(d.position, d.reason) for d, _ in found if isinstance(d, Quarantined)]
    lines = [number for number, line in enumerate(dump(*PAGES).decode().split("\n"), 1) if line == "  <page>"]
    reasons = {4: "invalid_xml", 5: "invalid_xml", 6: "no_text", 7: "too_large", 9: "invalid_xml"}
    assert bad == [(f"{name}, page at line {lines[index]}", reason) for index, reason in reasons.items()]
    cleaned = []
    for document, _ in found:
        if isinstance(document, Document):
            try:
                cleaned.append(Wikipedia().clean(document.text))
            except Dropped as dropped:
                cleaned.append(str(dropped))
    assert cleaned == [
        "redirect",
        "Tea is a hot drink.",
        "other_namespace",
        "not_wikitext",
        "</page> < [[x]]",
    ]
    for number, (_, position) in enumerate(found):
        assert read(path, position, maximum_document_bytes=2000) == found[number + 1 :]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (dump(page(1, "a"))[:-15], "last line is not </mediawiki>"),
        (dump(page(1, "a"), page(2, "b"))[:-200], "last line is not </mediawiki>"),
        (b"<html>\n</html>\n", "no MediaWiki dump"),
        (b"", "last line is not"),
    ],
)
def test_what_is_no_whole_dump_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "w.xml").write_bytes(content)
    with pytest.raises(InputError, match=rf"w\.xml: truncated or damaged: .*{reason}"):
        read(tmp_path / "w.xml")


def test_entities_neither_expand_nor_name_files(tmp_path: Path) -> None:
    """Billion laughs, and a file of this machine: a page's parser knows no document type."""
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    doctype = f'<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;"><!ENTITY c SYSTEM "{secret}">]>\n'
    pages = [page(n, "TEXT").replace("TEXT", text) for n, text in enumerate(["&b;", "&c;", "fine"], 1)]
    pages.append(page(4, "x").replace("  <page>\n", "  <page>\n" + doctype))
    content = b'<?xml version="1.0"?>\n' + doctype.encode() + dump(*pages)
    (tmp_path / "w.xml").write_bytes(content)
    found = [document for document, _ in read(tmp_path / "w.xml")]
    assert [d.reason if isinstance(d, Quarantined) else d.id for d in found] == [
        *["invalid_xml"] * 2,
        "3",
        "invalid_xml",
    ]
    assert "undefined entity" in found[0].detail


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("''a'' '''b''' [[c]] [[d|e]] [[:Category:f]]", "a b c e Category:f"),
        ("a<ref name=x>{{cite|b}}</ref> b<ref name=y/> c<!-- d <ref> -->.", "a b c."),
        ("{{Infobox|a={{b|c}}\n|d=e}}Text {{unknown|x}}here.", "Text here."),
        ("{| class=x\n| a || {{b|}}\n{|\n| c\n|}\n|}\nText", "Text"),
        ("Greek {{lang|grc|λόγος}}, {{lang-la|verbum}}; {{convert|5|km|mi}}.", "Greek λόγος, verbum; 5 km."),
        ("{{nowrap|a {{nowrap|b}} [[c|d]]}} {{quote|text=x|e}} 1{{ndash}}2", "a b d e 1–2"),
        ("A ({{IPA|x}}; b) and ({{IPA|x}}) [[File:x.jpg|thumb|a [[b]] c]]end", "A (b) and end"),
        (
            "== Head ==\nOne\n* two\n* three\n----\n__NOTOC__\n[[Kategorie:x]] [[de:x]]",
            "Head\n\nOne\ntwo\nthree",
        ),
        ("a&nbsp;b &lt; &amp; &#x20AC; &#xD800; &#x110000;", "a b < & € &#xD800; &#x110000;"),
        ("[http://x y z] [http://x] http://x/", "y z http://x/"),
        ("<math>{{a}}</math>b <nowiki>{{c}} ''d''</nowiki> <b>e</b><br/>f", "b {{c}} d e\nf"),
        ("unclosed {{a and <ref>b", "unclosed a and b"),
        ("}} |} --> </ref> end", "}} |} end"),
        ("{| never closed\n| a", ""),
    ],
)
def test_markup(markup: str, text: str) -> None:
    assert plain_text(markup) == text


@given(st.text(alphabet="{}[]|<>/'=*-! \nabref#;:&", max_size=60))
def test_no_markup_is_too_odd(markup: str) -> None:
    plain_text(markup).encode()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "part", ["{{", "[[", "<ref>", "{{a|", "[[a|", "<b>", "''", "{|\n|", "<!--", "http://["]
)
def test_hostile_markup_takes_time_in_proportion(part: str) -> None:
    """A parser that tries every way to close what is open would not end: the test's own limit says so."""
    plain_text(part * (60_000 // len(part)))


def test_the_real_dump_against_its_published_text(shared_data: Path) -> None:
    """The articles' words are those that another cleaner found, but for what it lost."""
    [path] = (shared_data / "wikipedia").glob("*.bz2")
    [item] = find_inputs([str(path)], lambda name: accepts(SOURCES["wikipedia"], name))
    dropped: Counter[str] = Counter()
    texts = {}
    for document, _ in read_documents(Wikipedia(), item):
        assert isinstance(document, Document)
        try:
            texts[document.id] = Wikipedia().clean(document.text)
        except Dropped as reason:
            dropped[str(reason)] += 1
    assert dropped == {"redirect": 99, "other_namespace": 1}
    with gzip.open(shared_data / "wikipedia/enwiki_106_articles_plain.jsonl.gz") as file:
        published = {row["id"]: row["text"] for row in map(json.loads, file)}
    assert texts.keys() == published.keys()
    found, expected, common = 0, 0, 0
    for identifier, text in texts.items():
        mine, theirs = (Counter(re.findall(r"\w+", t)) for t in (text, published[identifier]))
        found, expected = found + mine.total(), expected + theirs.total()
        common += (mine & theirs).total()
        assert not re.search(r"\[\[|\{\{|''|<ref|\]\]", text), identifier
    assert common > 0.995 * expected
    assert common > 0.95 * found


def test_a_corpus_from_a_dump_counts_what_is_no_article(small_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "w.xml.bz2").write_bytes(bz2.compress(dump(*PAGES)))
    config = {
        "tokenizer": str(small_tokenizer),
        "sequence_length": 64,
        "sources": [{"kind": "wikipedia", "path": "w.xml.bz2"}],
    }
    done = command(write_config(tmp_path / "c.yaml", config), tmp_path / "out", "--local")
    assert done.returncode == 0, done.stderr
    [source] = json.loads((tmp_path / "out/manifest.json").read_text())["sources"]
    assert source["kept"]["documents"] == 3
    assert {reason: count["documents"] for reason, count in source["dropped"].items()} == {
        "not_wikitext": 1,
        "other_namespace": 1,
        "redirect": 1,
    }
    assert sum(source["quarantined"].values()) == 4
