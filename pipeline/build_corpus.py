"""Builds a corpus: raw sources in, sealed Arrow shards out. `python -m pipeline.build_corpus --help`."""

import argparse
import os
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config, LoadedConfig, load_config
from pipeline.errors import BuildError, DamagedFile
from pipeline.estimate import Estimate, estimate, total
from pipeline.identity import BEGUN, begin, identify, is_finished
from pipeline.ledger import Ledger
from pipeline.progress import say
from pipeline.runner import LocalRunner, RayRunner, Runner
from pipeline.shards import CorpusError, read_manifest, token_dtype
from pipeline.stages.encode import EncodeUnit, tokenizer_folder
from pipeline.stages.evaluation import Evaluation, EvaluationUnit
from pipeline.stages.pack import Layout, plan_shards
from pipeline.stages.plan import Plan, make_plan, split_records
from pipeline.stages.run import Stages
from pipeline.stages.seal import REPORT, seal
from pipeline.stages.select import Selection, select
from pipeline.stages.select.catalogue import write_catalogue
from pipeline.stages.sign import SignUnit
from pipeline.storage import Lock, Stores, open_storage

WORK = "longspan-work"
"""The folder in `--work` that intermediate files go to; the only one there that is written or removed."""

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "open.yaml"

_HELP = """\
Builds a corpus for long-document pretraining: reads books, Wikipedia, news, stories or your own text files,
tokenises them, removes duplicates, and packs them into sequences of one length.

  python -m pipeline.build_corpus --config my.yaml --output corpus            on this machine, with Ray
  python -m pipeline.build_corpus --config my.yaml --output corpus --local    without Ray, in this process
  python -m pipeline.build_corpus --config my.yaml --output corpus --plan     only say what would be done
  ray job submit --working-dir . -- python -m pipeline.build_corpus ...       on a cluster; absolute paths then

The smallest configuration, for a folder of .txt, .jsonl or .parquet files:

  tokenizer: FacebookAI/roberta-base      # or a tokenizer.json, or a folder with vocab.json and merges.txt
  sources:
    - {kind: text, path: /data/documents}

More of them, with every key explained, lie in pipeline/configs. The output is a folder with train/*.arrow and
validation/*.arrow (open them with pipeline.shards.open_corpus or datasets.load_dataset("arrow", ...)),
manifest.json, report.html, the tokenizer, and quarantine/ with what could not be read.

Stopped or killed, at any moment: run the same command again. It goes on where it was, and the shards come out
the same, byte for byte, as they do for any number of workers.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 0 where the corpus is there, 2 where the user has to change something first, 130 where the
    user stopped it."""
    options = make_parser().parse_args(arguments)
    try:
        build(options)
    except (BuildError, CorpusError) as error:
        return _complain(str(error), 2)
    except OSError as error:  # a full disk, a folder that may not be written
        return _complain(f"{error.filename or options.output}: {error.strerror or error}", 2)
    except sqlite3.Error as error:  # such as a full disk under the temporary files
        return _complain(f"{tempfile.gettempdir()}: the build's temporary database: {error}", 2)
    except KeyboardInterrupt:
        return _complain("stopped; the same command goes on from here", 130)
    return 0


def _complain(message: str, code: int) -> int:
    print(f"build_corpus: {message}", file=sys.stderr)
    return code


def build(options: argparse.Namespace) -> None:
    """Builds the corpus that the options ask for, or the part of it that is still missing."""
    _refuse_relative(options)
    output = open_storage(options.output)
    # A folder of the build's own in either case: it is removed at the end, with all that is in it.
    work = open_storage(options.work).under(WORK) if options.work else output.under(".work")
    loaded = load_config(options.config)
    plan = make_plan(loaded, options.limit)
    if options.plan:
        _print_plan(plan, loaded)
        return
    stores = Stores(work=work.only_while_there(), output=output)
    identity = identify(loaded, options.limit, plan)
    if is_finished(output, identity) and output.size(BEGUN) is None:
        say(f"{output.uri} holds this corpus already; nothing to do")
        return
    with output.locked() as lock:
        # Asked again, since another build may have ended by now; or one was killed between manifest and end.
        finished = is_finished(output, identity)
        if not finished:
            begin(output, identity)
        with work.locked() as work_lock:
            if finished:
                manifest = read_manifest(output.uri)
            else:
                manifest = _build_until_whole(loaded, options, plan, stores, lock)
            _end(stores, options.keep_work, work_lock)
    for source in manifest["sources"]:
        if not source["kept"]["documents"]:
            say(f"nothing of source {source['name']} is in it: {_fates(source)}")
    sizes = ", ".join(f"{split['sequences']:,} {name}" for name, split in manifest["splits"].items())
    say(f"sealed  {output.uri}: {sizes} sequences of {manifest['sequence_length']:,} tokens")
    say(f"        see {output.where(REPORT)}")


def _build_until_whole(
    loaded: LoadedConfig, options: argparse.Namespace, plan: Plan, stores: Stores, lock: Lock
) -> dict[str, Any]:
    """Builds, and again where a file of the build's own was found to be damaged: it was removed, and what made it is
    run once more. DamagedFile where that happens to one file twice."""
    stores.work.remove_leftovers()
    runner: Runner = LocalRunner() if options.local else RayRunner(options.max_cpus)
    mended: set[str] = set()
    try:
        while True:
            stages = Stages(stores, runner)
            try:
                return _build(loaded, options.limit, plan, stages, lock)
            except DamagedFile as error:
                if error.where in mended:
                    raise
                mended.add(error.where)
                say(f"mending {error}")
            finally:
                stages.close()
    finally:
        runner.close()


def _build(loaded: LoadedConfig, limit: int | None, plan: Plan, stages: Stages, lock: Lock) -> dict[str, Any]:
    config, tokenizer = loaded.config, loaded.tokenizer
    stores, ledger = stages.stores, stages.ledger
    say(f"tokenizing with {tokenizer.engine}")
    for line in tokenizer.passed_over:
        say(f"  {line}")
    for name, content in tokenizer.files().items():
        stores.work.publish(f"{tokenizer_folder(tokenizer.fingerprint)}/{name}", content)
    if any(True for source in plan.sources for _ in source.fetch_units):
        stages.run("fetch", (unit for source in plan.sources for unit in source.fetch_units))
        stages.run("check", (unit for source in plan.sources for unit in source.check_units))
    stages.run("split", (unit for source in plan.sources for unit in source.units))
    evaluation = _index_evaluation(plan, loaded.config, stages)
    stages.run("encode", _encode_units(loaded, limit, plan, evaluation, ledger))
    if not any(record.facts["kept"]["documents"] for record in ledger.records("encode")):
        raise BuildError(_nothing_left(ledger))
    near = config.deduplicate.near
    if near is not None:
        kept = (record for record in ledger.records("encode") if record.facts["kept"]["documents"])
        stages.run("sign", (SignUnit(record.files[0], near) for record in kept))
    priorities = {source.name: number for number, source in enumerate(config.sources)}
    catalogue = write_catalogue(ledger, priorities, near is not None, stores)
    selection = select(stages, catalogue, config)
    if not selection.documents:
        raise BuildError(_nothing_left(ledger, selection))
    stages.run("pack", plan_shards(catalogue, selection, config, Layout.of(config, tokenizer)))
    return seal(loaded, limit, plan, selection, stages, lock)


def _index_evaluation(plan: Plan, config: Config, stages: Stages) -> Evaluation | None:
    settings = config.decontaminate
    if settings is None:
        return None
    stages.run("evaluation", [EvaluationUnit(plan.evaluation, settings)], 1)
    [record] = stages.ledger.records("evaluation")
    return Evaluation.of(record, settings)


def _encode_units(
    loaded: LoadedConfig,
    limit: int | None,
    plan: Plan,
    evaluation: Evaluation | None,
    ledger: Ledger,
) -> Iterator[EncodeUnit]:
    config, tokenizer = loaded.config, loaded.tokenizer
    for own in plan.sources:
        for _, chunks in split_records(own, limit, ledger):
            for chunk, take in chunks:
                yield EncodeUnit.of(chunk, take, own.source, config, evaluation, tokenizer)


def _end(stores: Stores, keep_work: bool, work_lock: Lock) -> None:
    """Removes what a sealed corpus has no need of; the sign that it was begun last. BuildError where the lock on the
    work was lost: it is another build's now."""
    if not keep_work:
        work_lock.check()
        stores.work.destroy()
    stores.output.remove(BEGUN)


def _refuse_relative(options: argparse.Namespace) -> None:
    """BuildError for a relative output or work folder on a cluster: a job runs in Ray's copy of the working
    directory, which goes with it, and workers elsewhere have other working directories."""
    if os.environ.get("RAY_ADDRESS", "local") in ("", "local"):
        return
    for option, path in (("--output", options.output), ("--work", options.work)):
        if path and "://" not in path and not Path(path).expanduser().is_absolute():
            raise BuildError(
                f"{option} {path}: a relative path, on a Ray cluster (RAY_ADDRESS is "
                f"{os.environ['RAY_ADDRESS']!r}); expected an absolute path that every machine mounts"
            )


def _fates(source: Mapping[str, Any]) -> str:
    """Where the documents of a source went of which none was kept."""
    if not source["read"]:
        return f"its files hold no document that a source of kind {source['kind']} reads"
    lost = {**source["quarantined"], **{reason: t["documents"] for reason, t in source["dropped"].items()}}
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(lost.items()))


def _nothing_left(ledger: Ledger, selection: Selection | None = None) -> str:
    reasons: Counter[str] = Counter()
    for record in ledger.records("split"):
        reasons.update(record.facts["quarantined"])
    for record in ledger.records("encode"):
        reasons.update({reason: tally["documents"] for reason, tally in record.facts["dropped"].items()})
    for source in selection.sources.values() if selection else ():
        reasons.update({reason: tally["documents"] for reason, tally in source["dropped"].items()})
    listed = (
        ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items()))
        or "the inputs are empty"
    )
    return f"of {reasons.total():,} documents none is left: {listed}; expected at least one"


def _print_plan(plan: Plan, loaded: LoadedConfig) -> None:
    """Every unit that reads something, and what the whole will take."""
    tokenizer = loaded.tokenizer
    token_bytes = np.dtype(token_dtype(tokenizer.vocabulary_size)).itemsize
    estimates = []
    for own in plan.sources:
        estimates.append(estimate(own, tokenizer.engine, token_bytes))
        count = 0
        for unit in own.units:
            count += 1
            first = unit.inputs[0].key
            more = f" and {len(unit.inputs) - 1:,} more" if len(unit.inputs) > 1 else ""
            say(f"  {unit.id}  {unit.size / 1e6:10,.1f} MB  {first}{more}")
        say(f"{own.source.name}: {count:,} units read {_estimated(estimates[-1])}")
    say(f"in all: {_estimated(total(estimates))}")
    say(
        f"estimated for {tokenizer.engine} and English text, before filters and duplicates; nothing was written"
    )


def _estimated(found: Estimate) -> str:
    hours = found.cpu_seconds / 3600
    time = f"{hours:,.1f} cpu-hours" if hours >= 1 else f"{found.cpu_seconds:,.1f} cpu-seconds"
    return (
        f"{found.files:,} files, {found.stored_bytes / 1e6:,.1f} MB: about {found.text_bytes / 1e6:,.1f} MB of text, "
        f"{time}, {found.work_bytes / 1e6:,.1f} MB of work, {found.output_bytes / 1e6:,.1f} MB of output"
    )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pipeline.build_corpus", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--config",
        default=str(DEFAULT_CONFIG),
        metavar="FILE",
        help="the corpus's configuration, YAML (default: pipeline/configs/open.yaml, the paper's mixture from "
        "sources that anyone can fetch; it asks you to accept their terms in a copy)",
    )
    add(
        "--output",
        required=True,
        metavar="URI",
        help="the folder of the corpus: a local path, s3://BUCKET/FOLDER or gs://...; new, empty, or begun before",
    )
    add(
        "--work",
        metavar="URI",
        help=f"where intermediate files go, in a folder {WORK} of their own (default: OUTPUT/.work); "
        "every worker must see it",
    )
    add("--local", action="store_true", help="run in this process, without Ray")
    add("--max-cpus", type=_positive, metavar="N", help="use at most N CPUs of Ray's (default: all)")
    add("--plan", action="store_true", help="print the units of work and what they will cost, write nothing")
    add("--limit", type=_positive, metavar="N", help="read only the first N documents of each source")
    add("--keep-work", action="store_true", help="leave the intermediate files for another build")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
