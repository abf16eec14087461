"""Measures how much text a CPU second turns into sealed shards, beside what one would use instead, in one run.

    python -m pipeline.benchmark                       # everything: some minutes
    python -m pipeline.benchmark --quick               # everything, at sizes that say nothing about speed
    python -m pipeline.benchmark --sections compare --megabytes 32

compare   jsonl to shards with the length filter only: ours with each engine; datatrove, JsonlReader to
          DocumentTokenizer, one worker; datasets' map with a tokenizer, then group_texts, as transformers' run_mlm.py.
          Every round runs each method once, each in a process of its own with one thread, on a small file first, for
          imports; then its CPU time counts, from the name of the file to written sequences. All must give the ids of
          the same text, checked by a digest over how often each id occurs. Bounds are the engines alone, on texts
          already read, with nothing written: with an engine nothing that tokenises is faster.
filters   what each filter, and signing for near-duplicates, costs beside tokenising.
scaling   Ray beside --local, and two workers beside one. CPU time is of all processes of a build, Ray's own included.
          A build of next to no text is measured as well: it is what starting and stopping costs. Beside it stands
          what the machine gives for two processes that only tokenise.
driver    memory of the process that plans, follows and catalogues units, for 100 and for 100,000 that nobody runs.
cost      what the paper's corpus would cost in CPU hours, from the rates of `compare`.

The text is real where LONGSPAN_DATA, or ../shared/data, holds some, about 12 MB; what is wanted beyond that is the same
again with one word in ten exchanged, since engines keep the words they met. Elsewhere it is made-up words, some
frequent and most rare, and a byte-level BPE trained on them, unless --tokenizer names another.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tokenizers

from pipeline.benchmark.cost import paper_costs
from pipeline.benchmark.driver import measure_driver
from pipeline.benchmark.filters import measure_filters
from pipeline.benchmark.methods import ENGINES, SEQUENCE_LENGTH, Result, methods, run_alone
from pipeline.benchmark.scaling import measure_ways
from pipeline.benchmark.text import read_texts, write_text
from pipeline.tokenizer import SPECIAL_TOKENS, load_tokenizer
from pipeline.tokenizer.engines import REFERENCE

SECTIONS = ("compare", "filters", "scaling", "driver", "cost")
SLOW, SLOW_ROUNDS = ("longspan, tokenizers", "bound: tokenizers alone"), 2
"""These take as long as the peers, and nothing is decided by them: they are in so many rounds only."""
STEADY = "tiktoken" if "tiktoken" in ENGINES else ENGINES[0]
"""The engine of `scaling`: with the fastest, 200 MB take less than starting Ray, whose noise would hide the rest."""
FILES = 4
"""The text of `scaling` is in so many files, so that workers have units to share."""


def train_tokenizer(text: Path, file: Path, vocabulary: int) -> None:
    """A byte-level BPE in RoBERTa's manner, trained on the rows of a .jsonl file."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(read_texts(text), trainer)
    tokenizer.save(str(file))


# compare


def compare(folder: Path, size: int, rounds: int) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each method, ours with the fastest engine first, and a line for each peer that is missing."""
    spawn = multiprocessing.get_context("spawn")
    named, missing = methods()
    results: dict[str, list[Result]] = {name: [] for name in named}
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as alone:
        for number in range(rounds):
            for name, method in named.items():
                if number < SLOW_ROUNDS or not name.endswith(SLOW):
                    results[name].append(alone.submit(run_alone, method, folder, "text.jsonl").result())
    ours = [result.seconds for result in next(iter(results.values()))]
    rows = []
    for name, found in results.items():
        seconds = [result.seconds for result in found]
        # Ours with an engine against that engine; the peers tokenise with the reference.
        engine = next((e for e in ENGINES if name == f"longspan, {e}"), REFERENCE)
        bounds = results[name if name.startswith("bound") else f"bound: {engine} alone"]
        row: dict[str, Any] = {"method": name, "rate": size / 1e6 / statistics.median(seconds)}
        row |= {"seconds": seconds, "ids": found[0].ids, "digests": sorted({r.digest for r in found})}
        row["ratio"] = statistics.median(a / b for a, b in zip(seconds, ours))  # of the rounds that it was in
        row["of_bound"] = statistics.median(b.seconds / a for a, b in zip(seconds, bounds))
        row["start"] = statistics.median(result.start for result in found)
        row["rate_of_work"] = size / 1e6 / _above(statistics.median(r.seconds - r.start for r in found))
        row["peak_bytes"] = max(result.peak_bytes for result in found)
        row["parts"] = {
            part: statistics.median(r.parts.get(part, 0.0) - r.start_parts.get(part, 0.0) for r in found)
            for part in found[0].parts
        }
        rows.append(row)
    return rows, missing


def _above(seconds: float) -> float:
    """Of the tiny sizes of a test, differences can come out as nothing or less."""
    return max(seconds, 1e-3)


def print_compare(rows: Sequence[dict[str, Any]], missing: Sequence[str]) -> None:
    print(f"{'method':44}  MB/cpu s  ratio  start s  beyond it  tokenising  of bound  peak MB  ids of text")
    for row in rows:
        work = _above(statistics.median(row["seconds"]) - row["start"])
        tokenising = f"{row['parts']['tokenising'] / work:10.0%}" if row["parts"] else " " * 9 + "-"
        print(
            f"{row['method']:44}  {row['rate']:8.2f}  {row['ratio']:5.1f}  {row['start']:7.2f}  "
            f"{row['rate_of_work']:9.2f}  {tokenising}  {row['of_bound']:8.0%}  {row['peak_bytes'] / 1e6:7.0f}  "
            f"{row['ids']:11,}"
        )
    print(
        "\nratio: CPU time as a multiple of the first row's. start: CPU seconds that next to no text takes, such as "
        "trying\nthe engine; beyond it: MB a CPU second without them, and the share of tokenising in that."
    )
    for line in missing:
        print(line)
    peers = [row for row in rows if row["method"].startswith("data")]
    for row in rows:
        if row["method"].startswith("longspan"):
            whole, beyond = (_times(row, peers, rate) for rate in ("rate", "rate_of_work"))
            parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in row["parts"].items())
            print(f"{row['method']}: {whole}; beyond the start {beyond}\n  of its CPU seconds: {parts}")


def _times(row: dict[str, Any], peers: Sequence[dict[str, Any]], rate: str) -> str:
    return ", ".join(f"{row[rate] / peer[rate]:.1f} × {peer['method'].split(',')[0]}" for peer in peers)


# filters, scaling, driver, cost


def print_filters(rows: Sequence[dict[str, Any]]) -> None:
    print(f"{'step':44}  MB/cpu s  of tokenising")
    for row in rows:
        print(f"{row['method']:44}  {row['rate']:8.1f}  {rows[0]['rate'] / row['rate']:13.1%}")


def print_scaling(found: dict[str, Any]) -> None:
    print(f"{found['bytes'] / 1e6:,.0f} MB in {FILES} files, {found['engine']}; seconds (of next to no text)")
    print(f"{'way':20}  cpu (start)       wall (start)      MB/cpu s  peak MB: driver, worker, Ray's largest")
    for name, row in found["rows"].items():
        peaks = (row["peak_bytes"].get(kind, 0) / 1e6 for kind in ("driver", "worker", "other"))
        print(
            f"{name:20}  {row['cpu']:6.1f} ({row['start_cpu']:5.1f})  {row['wall']:8.1f} "
            f"({row['start_wall']:5.1f})  {row['rate']:10.1f}  {', '.join(f'{peak:.0f}' for peak in peaks)}"
        )
    print(
        f"Ray's overhead, one worker: {found['overhead_seconds']:.1f} CPU seconds, {found['overhead']:.0%} of this "
        f"build; without starting and stopping {found['overhead_of_work']:.1%}, of which Ray's own processes "
        f"{found['rays_own_seconds']:.1f} s"
    )
    print(
        f"two workers: {found['two_against_one']:.2f} × one, starting and stopping left out; the machine's own two "
        f"processes: {found['machine']:.2f} ×"
    )


def print_driver(rows: Sequence[dict[str, Any]]) -> None:
    print(f"{'units':>9}  peak MB  cpu s")
    for row in rows:
        print(f"{row['units']:9,}  {row['peak_bytes'] / 1e6:7.0f}  {row['seconds']:5.1f}")


def costs_of(rows: Sequence[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    ours = rows[0]
    parts = ours["parts"]
    split = _above(parts["split"])
    rest = _above(size / 1e6 / ours["rate_of_work"] - split - parts["tokenising"])
    rates = {row["method"].split()[1]: row["rate"] for row in rows if row["method"].startswith("bound")}
    return paper_costs(rates, size / 1e6 / split, size / 1e6 / rest)


def print_costs(rows: Sequence[dict[str, Any]]) -> None:
    engines = list(rows[0]["tokenising"])
    print(
        f"{'source':10}  GB raw  GB tokenised  reading   rest  "
        + "  ".join(f"{e:>10}" for e in engines)
        + "  tokenised is"
    )
    for row in [*rows, _sum(rows)]:
        hours = "  ".join(f"{row['tokenising'][engine]:10.2f}" for engine in engines)
        print(
            f"{row['source']:10}  {row['raw']:6.1f}  {row['tokenised']:12.1f}  {row['reading']:7.2f}  "
            f"{row['rest']:5.2f}  {hours}  {row['how']}"
        )
    total = _sum(rows)
    for engine in engines:
        hours = total["reading"] + total["rest"] + total["tokenising"][engine]
        print(
            f"with {engine}: {hours:.1f} CPU hours, {total['tokenising'][engine] / hours:.0%} of them tokenising"
        )


def _sum(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {"source": "in all", "how": ""}
    for key in ("raw", "tokenised", "reading", "rest"):
        total[key] = sum(row[key] for row in rows)
    total["tokenising"] = {
        engine: sum(row["tokenising"][engine] for row in rows) for engine in rows[0]["tokenising"]
    }
    return total


# The command.


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at least 1")
    return int(text)


def _size(text: str) -> float:
    try:
        if float(text) > 0:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"found {text!r}, expected a number above 0")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="(default all)")
    add("--quick", action="store_true", help="0.1 MB and 2 rounds each, to see it run")
    add("--megabytes", type=_size, default=24, help="of text in compare and filters (default 24)")
    add("--scaling-megabytes", type=_size, default=200, help="of text in scaling (default 200)")
    add(
        "--rounds",
        type=_positive,
        default=5,
        help="how often each is measured (default 5; half of it in scaling)",
    )
    add("--engine", choices=ENGINES, default=STEADY, help=f"in scaling (default {STEADY})")
    add("--tokenizer", metavar="WHERE", help="as in a corpus's configuration")
    add(
        "--vocabulary",
        type=_positive,
        default=16_384,
        help="of a tokenizer that is trained here (default 16384)",
    )
    add("--made-up", action="store_true", help="made-up words even where real text is at hand")
    add("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    return parser


def _data_folder(options: argparse.Namespace) -> Path | None:
    folder = Path(os.environ.get("LONGSPAN_DATA", Path(__file__).parents[3] / "shared" / "data"))
    return folder if folder.is_dir() and not options.made_up else None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.quick:
        options.megabytes, options.scaling_megabytes = 0.1, 0.2
        options.rounds = min(options.rounds, 2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a section takes minutes, in a log as well
    # For the processes started below; datasets would else ask the hub about its readers.
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    data = _data_folder(options)
    with tempfile.TemporaryDirectory(prefix="longspan-benchmark-") as temporary:
        folder = Path(temporary)
        write_text(folder / "first.jsonl", 0.05, seed=1)
        size = write_text(folder / "text.jsonl", options.megabytes, data)
        where = options.tokenizer or (data and data / "tokenizer")
        if not where:
            train_tokenizer(folder / "text.jsonl", folder / "trained.json", options.vocabulary)
        try:
            tokenizer = load_tokenizer(where or folder / "trained.json")
        except ValueError as error:
            parser.error(str(error))
        tokenizer.save(folder / "tokenizer")
        found = _measure(options, folder, data, size, _about(size, data, tokenizer.vocabulary_size))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    same = len({digest for row in found.get("rows", []) for digest in row["digests"]}) <= 1
    return 0 if same else 1


def _about(size: int, data: Path | None, vocabulary: int) -> str:
    return (
        f"corpus, {size / 1e6:,.1f} MB of {'real text' if data else 'made-up words'}, byte-level BPE of "
        f"{vocabulary:,}, sequences of {SEQUENCE_LENGTH:,}"
    )


def _measure(
    options: argparse.Namespace, folder: Path, data: Path | None, size: int, about: str
) -> dict[str, Any]:
    found: dict[str, Any] = {"about": about, "conditions": _conditions(options.rounds), "bytes": size}
    print(f"{about}\n{found['conditions']}")
    if "compare" in options.sections or "cost" in options.sections:
        rows, missing = compare(folder, size, options.rounds)
        print("\n== compare: jsonl to shards ==")
        print_compare(rows, missing)
        same = len({digest for row in rows for digest in row["digests"]}) == 1
        print(f"the ids are {'the same in all' if same else 'NOT the same'}")
        found["rows"] = rows
    if "filters" in options.sections:
        print("\n== filters: what each adds ==")
        found["filters"] = measure_filters(folder, folder / "text.jsonl", options.rounds)
        print_filters(found["filters"])
    if "scaling" in options.sections:
        print("\n== scaling: Ray and workers ==")
        texts = [folder / f"part{number}.jsonl" for number in range(FILES)]
        for number, text in enumerate(texts):
            write_text(text, options.scaling_megabytes / FILES, data, seed=number)
        found["scaling"] = measure_ways(folder, texts, options.engine, max(1, options.rounds // 2))
        print_scaling(found["scaling"])
    if "driver" in options.sections:
        print("\n== driver: its memory by units ==")
        found["driver"] = measure_driver(folder, [100, 1_000 if options.quick else 100_000])
        print_driver(found["driver"])
    if "cost" in options.sections:
        print("\n== cost: the paper's corpus, CPU hours ==")
        found["cost"] = costs_of(found["rows"], size)
        print_costs(found["cost"])
    return found


def _conditions(rounds: int) -> str:
    text = (
        f"median of {rounds} interleaved rounds ({min(rounds, SLOW_ROUNDS)} for {' and '.join(SLOW)}), "
        "CPU time, one process of one thread each; "
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    )
    for package in (
        "tokenizers",
        "fastokens",
        "tiktoken",
        "datatrove",
        "datasets",
        "transformers",
        "pyarrow",
        "ray",
    ):
        try:
            text += f", {package} {version(package)}"
        except PackageNotFoundError:
            continue
    return text


if __name__ == "__main__":
    sys.exit(main())
