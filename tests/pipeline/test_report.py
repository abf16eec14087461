"""The data card: well-formed, inert, complete, bounded; and in a real browser without a network."""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Self

import pytest

from pipeline.progress import SlowUnit
from pipeline.report import (
    BuildFacts,
    DuplicatePair,
    Example,
    LostDocument,
    PackedSplit,
    StageFacts,
    render_report,
)
from pipeline.report.html import excerpt, short, shortened, text
from pipeline.report.page import LISTED, _differs
from pipeline.sources import SOURCES

HOSTILE = (
    "</pre></section><script>document.title='owned'</script><img src='https://evil.example/x.png' "
    "onerror=\"document.title='owned'\"><style>main{display:none}</style><svg onload=document.title='owned'>"
    "' \" & &lt; \u202e\x00\x1b\ud800 end"
)
VOID = {"meta", "link", "br", "img", "input", "hr"}
SVG_LEAVES = {"path", "rect", "line"}


@pytest.fixture(scope="session")
def manifest(built: tuple[dict[str, Any], Path]) -> dict[str, Any]:
    return json.loads((built[1] / "manifest.json").read_text())


@pytest.fixture(scope="session")
def facts(manifest: dict[str, Any]) -> BuildFacts:
    """Every fact there is, with hostile text wherever text comes from documents."""
    return BuildFacts(
        stages=[
            StageFacts("split", 12.5, 7.25, 480_000_000, 12),
            StageFacts(
                "encode", 402.0, None, None, 9, [SlowUnit(60.5, "a1b2", 64_000_000, f"x{HOSTILE}.gz")]
            ),
        ],
        examples=[
            Example("books", "books/0.txt", "A kept one. " * 200),
            Example("wikipedia", f"wikipedia/{HOSTILE}", HOSTILE, "too_few_bytes"),
        ],
        duplicates=[
            DuplicatePair("books/0.txt", f"text/{HOSTILE}", 0.914, "One.", HOSTILE),
            DuplicatePair("text/a.txt", "text/b.txt"),
        ],
        lost=[LostDocument("wikipedia", "invalid_json", f"{HOSTILE}, line 61", HOSTILE)],
        lengths_before={source["name"]: source["length_histogram"] for source in manifest["sources"]},
        packed={"train": PackedSplit(400, 123, 77)},
    )


class Structure(HTMLParser):
    """Checks that every element is closed where it must be, and gathers what there is."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_LEAVES
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def parse(page: str) -> Structure:
    structure = Structure()
    structure.feed(page)
    structure.close()
    assert structure.open == []
    return structure


def test_the_page_is_well_formed_and_asks_for_nothing(manifest: dict[str, Any], facts: BuildFacts) -> None:
    for build in (None, BuildFacts(), facts):
        structure = parse(render_report(manifest, build))
        tags = {tag for tag, _ in structure.elements}
        assert not tags & {"script", "img", "iframe", "link", "object", "embed", "form", "base"}
        for tag, attributes in structure.elements:
            assert tag == "a" or "href" not in attributes
            assert "src" not in attributes
        policies = [a["content"] for t, a in structure.elements if a.get("http-equiv")]
        assert policies == [
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
        ]
        targets = {attributes["id"] for tag, attributes in structure.elements if tag == "section"}
        links = {str(a["href"]) for t, a in structure.elements if t == "a"}
        assert {f"#{name}" for name in targets} == links
        style = "".join(structure.said)
        assert "url(" not in style
        assert "@import" not in style


def test_the_page_is_the_same_for_the_same_facts(manifest: dict[str, Any], facts: BuildFacts) -> None:
    page = render_report(manifest, facts)
    assert page == render_report(json.loads(json.dumps(manifest)), replace(facts))
    page.encode("utf-8")  # half surrogate pairs among the examples would not do


def test_what_is_told(manifest: dict[str, Any], facts: BuildFacts) -> None:
    said = " ".join(" ".join(parse(render_report(manifest, facts)).said).split())
    assert manifest["fingerprint"] in said
    for source in manifest["sources"]:
        assert f"{source['kept']['tokens']:,}" in said
        for reason, tally in source["dropped"].items():
            assert f"dropped: {reason} {tally['documents']:,}" in said
        for reason, number in source["quarantined"].items():
            assert f"in quarantine: {reason} {number:,}" in said
    for shard in (shard for split in manifest["splits"].values() for shard in split["shards"]):
        assert shard["sha256"] in said
    for item in manifest["inputs"]:
        assert item["version"] in said
    for word in (
        "95,900",
        "similarity 0.91",
        "(1,700 more characters)",
        "38.4",
        "123 documents lie in more than one",
    ):
        assert word in said, word
    for name, version in manifest["versions"].items():
        assert f"{name} {version}" in said


def test_sections_without_facts_are_left_out(manifest: dict[str, Any], facts: BuildFacts) -> None:
    bare = render_report(manifest, BuildFacts())
    for title in ("Examples", "Time"):
        assert f"<h2>{title}</h2>" not in bare
        assert f"<h2>{title}</h2>" in render_report(manifest, facts)
    clean = json.loads(json.dumps(manifest))
    for source in clean["sources"]:
        source["quarantined"] = {}
    assert "<h2>Quarantine</h2>" not in render_report(clean)


def test_an_unknown_kind_and_an_empty_source_have_a_row(manifest: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(manifest))
    first, second = changed["sources"][:2]
    first["kind"] = "letters"
    none = {"documents": 0, "tokens": 0}
    second |= {"read": 0, "kept": none, "splits": {"train": none, "validation": none}, "length_histogram": []}
    second |= {"dropped": {}, "quarantined": {}}
    page = render_report(changed)
    parse(page)
    assert "not one of its sources" in page
    assert "nothing is left of it" in page


def test_large_corpora_are_folded_and_cut(manifest: dict[str, Any]) -> None:
    large = json.loads(json.dumps(manifest))
    large["inputs"] = [
        {"source": "books", "name": f"{i}.txt", "bytes": i, "version": f"v{i}"} for i in range(5000)
    ]
    [shard, *_] = large["splits"]["train"]["shards"]
    large["splits"]["train"]["shards"] = [{**shard, "path": f"train/{i:05d}.arrow"} for i in range(5000)]
    page = render_report(large)
    assert "5,000 inputs; the first 1,000 of them" in page
    assert f"{LISTED - 1}.txt" in page
    assert f">{LISTED}.txt" not in page
    assert f"train/{LISTED:05d}.arrow" not in page
    assert len(page) < 1_000_000


def test_best_fit_packing_is_named(manifest: dict[str, Any]) -> None:
    packed = {**manifest, "packing": "best_fit"}
    assert "none is cut that fits a sequence" in render_report(packed)
    assert "&lt;s&gt;, &lt;/s&gt; and &lt;pad&gt;" in render_report(packed)


def test_text_is_inert() -> None:
    assert (
        text("<b>&\"'\x00\u202e\ud800\r\n\tx\xa0")
        == "&lt;b&gt;&amp;&quot;&#x27;\ufffd\ufffd\ufffd\ufffd\n\tx\xa0"
    )
    assert shortened("a" * 10, 10) == "a" * 10
    assert shortened("a" * 11, 10) == f"{'a' * 10} … (1 more characters)"
    assert [short(n) for n in (0, 9999, 12_345, 1_234_567, 6.5e9)] == [
        "0",
        "9,999",
        "12.3 K",
        "1.23 M",
        "6.50 B",
    ]


@pytest.mark.parametrize(
    ("tokens", "documents", "said"),
    [
        (2_100_000_000, 4_150_000, "100% of its tokens; documents as long; the same share"),
        (21_000_000, 50_000, "1.0% of its tokens; documents 17% shorter; the same share"),
        (5_060, 4, "under 0.01% of its tokens; documents 2.5 × as long; share +67.7 points"),
    ],
)
def test_a_source_is_told_from_the_papers(tokens: int, documents: int, said: str) -> None:
    """Of Wikipedia: 2.1 B tokens, 506 a document, 32.3 % of the corpus."""
    paper = SOURCES["wikipedia"].paper
    assert paper is not None
    total = tokens if tokens < 1e6 else round(tokens / paper.share)
    assert _differs(tokens, documents, total, paper) == said


def test_empty_lines_of_an_example_are_folded() -> None:
    assert excerpt("\n\nTITLE\n\n  \n\n\nBy someone\n") == '<pre class="excerpt">TITLE\n\nBy someone</pre>'


class Browser:
    """Headless Chromium, spoken to through a pipe in its own protocol. It has no network."""

    def __init__(self, program: str, folder: Path) -> None:
        reading, self._write = os.pipe()
        self._read, writing = os.pipe()
        # It reads from 3 and writes to 4: numbers that this process may have in use, so aside with ours first.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (reading, writing)]
        command = [
            *(program, "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"),
            *("--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"),
            *(f"--user-data-dir={folder}", "about:blank"),
        ]
        self._process = subprocess.Popen(
            command,
            pass_fds=(3, 4),
            preexec_fn=lambda: [os.dup2(end, number) for end, number in zip(ends, (3, 4))] and None,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (reading, writing, *ends):
            os.close(end)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.ask(f"{domain}.enable")
        nothing = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.ask("Network.emulateNetworkConditions", offline=True, **nothing)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, page: Path) -> None:
        self.events.clear()
        self.ask("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """Of an expression in the page; the page's own policy does not hold for it."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"]
        assert result.get("subtype") != "error", result
        return result.get("value")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._read, 1 << 20)
            assert read, "the browser ended"
            self._buffer += read
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._write)  # it ends with its pipe
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            os.close(self._read)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with Browser(program, tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(
    browser: Browser, manifest: dict[str, Any], facts: BuildFacts, tmp_path: Path, scheme: str
) -> None:
    page = tmp_path / "report.html"
    page.write_text(render_report(manifest, facts), encoding="utf-8")
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    for width, mobile in ((1280, False), (390, True)):
        browser.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=mobile
        )
        browser.open(page)
        browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
        wide = "[...document.querySelectorAll('*')].filter(e => !e.closest('.wide, svg') && "
        wide += "e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)"
        wide += ".map(e => e.outerHTML.slice(0, 200))"
        assert browser.value("innerWidth") == width
        sides = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        scrolled, shown = browser.value(sides)
        assert scrolled == shown
        assert browser.value(wide) == []
        # The hostile example is text: it named nothing, hid nothing, loaded nothing.
        assert browser.value("document.title") == "Corpus report"
        assert browser.value("getComputedStyle(document.querySelector('main')).display") == "block"
        assert browser.value("document.querySelectorAll('img, script').length") == 0
        assert "onerror=" in browser.value("document.querySelector('#examples').innerText")
        asked = [
            e["params"]["request"]["url"]
            for e in browser.events
            if e["method"] == "Network.requestWillBeSent"
        ]
        assert asked == [page.as_uri()]
        complaints = {
            "Log.entryAdded",
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Network.loadingFailed",
        }
        assert [event for event in browser.events if event["method"] in complaints] == []
    dark = "getComputedStyle(document.body).backgroundColor"
    assert browser.value(dark) == {"light": "rgb(247, 246, 243)", "dark": "rgb(19, 22, 27)"}[scheme]


def test_the_browser_check_can_fail(browser: Browser, tmp_path: Path) -> None:
    """What the check above finds absent, this page has: an error, a request, an overflow."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<title>x</title><img src='https://evil.example/x.png'><script>document.title = 'owned'; fail()</script>"
        "<div style='width: 3000px'>wide</div>"
    )
    browser.ask(
        "Emulation.setDeviceMetricsOverride", width=390, height=900, deviceScaleFactor=1, mobile=False
    )
    browser.open(page)
    assert browser.value("document.documentElement.scrollWidth") == 3008
    assert browser.value("document.title") == "owned"
    methods = {event["method"] for event in browser.events}
    assert {"Network.requestWillBeSent", "Network.loadingFailed", "Runtime.exceptionThrown"} <= methods
