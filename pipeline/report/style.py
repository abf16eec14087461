"""How the page looks: in the light and in the dark, on a phone and on paper."""

STYLE = """
:root { color-scheme: light dark; --page: #f7f6f3; --card: #fff; --ink: #1c2230; --muted: #69707f; --line: #e4e1da;
  --soft: #f0eee9; --accent: #2c5c8f; --train: #2f7f73; --validation: #7cb9a8; --dropped: #dd9c3c; --duplicate: #8a76b8;
  --lost: #b9503f; --special: #9aa7b8; --padding: #d9d5cc; --ribbon: .38; }
@media (prefers-color-scheme: dark) { :root { --page: #13161b; --card: #1b1f26; --ink: #e6e8ec; --muted: #959dab;
  --line: #2d333d; --soft: #232831; --accent: #7fb0e3; --train: #4aa899; --validation: #2f6d63; --dropped: #d3963f;
  --duplicate: #9d8acb; --lost: #d0705f; --special: #6c788a; --padding: #3a404a; --ribbon: .5; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: anywhere;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header, main, footer { max-width: 68rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.6rem; } h1 { font-size: 2rem; line-height: 1.15; letter-spacing: -.02em; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; letter-spacing: -.01em; margin: 0 0 .3rem; } h3 { font-size: .98rem; margin: 1.3rem 0 .4rem; }
.lead { color: var(--muted); margin: 0 0 1rem; max-width: 46rem; } .muted, caption { color: var(--muted); }
.muted { fill: var(--muted); font-weight: 400; }
nav { margin: 1.2rem 0 0; font-size: .88rem; line-height: 1.9; } nav a { margin-right: 1rem; white-space: nowrap; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
section, .tiles > div { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
section { padding: 1.3rem 1.4rem 1.4rem; margin: 1.1rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin-top: 1.5rem; }
.tiles > div { padding: .85rem 1rem; } .tiles b { display: block; font-size: 1.55rem; line-height: 1.25;
  letter-spacing: -.02em; font-weight: 650; font-variant-numeric: tabular-nums; } .tiles span { color: var(--muted);
  font-size: .85rem; }
.notice { border-left: 4px solid var(--dropped); background: var(--card); padding: .6rem 1rem; border-radius: 6px;
  margin: 1rem 0 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; padding-bottom: .4rem; font-size: .88rem; }
th, td { padding: .38rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; text-align: left; }
th { font-weight: 600; font-size: .82rem; color: var(--muted); vertical-align: bottom; }
tr:last-child td { border-bottom: 0; } th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; } td { overflow-wrap: normal; } td.t:last-child { min-width: 13rem; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.mono, code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: .86em; } td code { overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .35rem 0 0; background: var(--soft); border-radius: 8px;
  padding: .7rem .85rem; font-size: .82rem; line-height: 1.5; } pre.excerpt { max-height: 15rem; overflow: auto; }
details { border-top: 1px solid var(--line); padding: .55rem 0; } details:last-child { padding-bottom: 0; }
summary { cursor: pointer; font-weight: 550; } summary::marker { color: var(--muted); }
details > .wide, details > figure { margin-top: .6rem; }
figure { margin: .8rem 0 0; } figcaption { font-size: .86rem; color: var(--muted); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1.2rem 1.8rem; }
.grid figure { margin: 0; } .grid figcaption b { color: var(--ink); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: .8rem; }
svg { display: block; width: 100%; height: auto; } svg.flow { min-width: 46rem; }
svg text { font: 13px system-ui, sans-serif; fill: var(--ink); } svg text.small { font-size: 11px; fill: var(--muted); }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.axis { stroke: var(--line); } .mark { stroke: var(--muted); stroke-dasharray: 3 3; }
rect.node { fill: var(--muted); } rect.kept { fill: var(--accent); }
rect.before { fill: var(--accent); opacity: .22; } .ribbon { opacity: var(--ribbon); }
.train { fill: var(--train); background: var(--train); } .validation { fill: var(--validation);
  background: var(--validation); } .dropped { fill: var(--dropped); background: var(--dropped); }
.duplicate { fill: var(--duplicate); background: var(--duplicate); } .lost { fill: var(--lost);
  background: var(--lost); }
.special { background: var(--special); } .padding { background: var(--padding); }
rect.node.train { fill: var(--train); } rect.node.validation { fill: var(--validation); }
rect.node.dropped { fill: var(--dropped); } rect.node.duplicate { fill: var(--duplicate); }
rect.node.lost { fill: var(--lost); }
.share { display: inline-flex; align-items: center; gap: .5rem; } .share > span:last-child { min-width: 3.7em;
  text-align: right; } .track { display: inline-block; width: 5rem; height: .5rem; border-radius: 3px;
  background: var(--soft); overflow: hidden; } .fill { display: block; height: 100%; background: var(--accent); }
.fill.paper { background: var(--muted); } .fill.dropped { background: var(--dropped); }
.fill.duplicate { background: var(--duplicate); } .fill.lost { background: var(--lost); }
.fill.train { background: var(--train); } .fill.validation { background: var(--validation); }
.stacked { display: flex; gap: 1px; height: 1.1rem; border-radius: 6px; overflow: hidden; margin: .5rem 0 .45rem; }
.key { list-style: none; display: flex; flex-wrap: wrap; gap: .15rem 1.2rem; margin: 0; padding: 0; font-size: .88rem; }
.dot { display: inline-block; width: .65rem; height: .65rem; border-radius: 3px; margin-right: .3rem; }
footer { color: var(--muted); font-size: .86rem; padding-top: .3rem; padding-bottom: 2.5rem; }
@media (max-width: 40rem) { section { padding: 1rem; } h1 { font-size: 1.6rem; } header { padding-top: 1.6rem; } }
@media print { :root { --page: #fff; --card: #fff; } body { font-size: 10.5pt; } nav { display: none; }
  section { border: 0; padding: 0; break-inside: avoid-page; } header, main, footer { max-width: none; padding: 0; }
  pre.excerpt { max-height: none; } .wide { overflow: visible; } svg.flow { min-width: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""
