"""The command: `python -m pipeline.verify --help`."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from pipeline.errors import BuildError
from pipeline.shards import CorpusError
from pipeline.storage import open_storage
from pipeline.verify.corpus import Verdict, verify_corpus

_HELP = """\
Checks a sealed corpus again, from its bytes: after a copy, before a long training, or whenever in doubt.

  python -m pipeline.verify corpus             everything
  python -m pipeline.verify corpus --quick     sizes, formats and counts; seconds for any size
  python -m pipeline.verify s3://bucket/corpus --json > verdict.json

What is checked:
  manifest    its form and version; read = kept + dropped + in quarantine, for each source; its fingerprint,
              recomputed from the checksums of the shards
  tokenizer   the saved one is the one that the shards were made with
  shards      each is there, with its size, sha256 and schema; no other one is
  rows        <s>, </s> and <pad> stand where documents begin and end and nowhere else; every id is one that text
              can give; pieces, offsets, documents and sources agree
  documents   each is there once, in one split, whole and without overlap; documents and tokens of each source are
              as many as the manifest says
  quarantine  as many lines for each reason as the manifest says

Nothing is changed or repaired. Exit code 0: the corpus is whole; 1: it is damaged, up to 20 problems are named by
file and row; 2: there is no corpus.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="pipeline.verify", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "corpus", metavar="DIR_OR_URI", help="the folder of the corpus, or its s3:// or gs:// URI"
    )
    parser.add_argument("--quick", action="store_true", help="do not read the rows")
    parser.add_argument("--json", action="store_true", help="print the verdict as one JSON object")
    options = parser.parse_args(arguments)
    try:
        storage = open_storage(options.corpus)
        verdict = verify_corpus(storage, options.quick, sys.stderr)
    except (BuildError, CorpusError) as error:
        return _complain(str(error), 2)
    except OSError as error:
        return _complain(f"{error.filename or options.corpus}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        return _complain("stopped", 130)
    if options.json:
        print(json.dumps(_plain(verdict, storage.uri, options.quick), indent=1, ensure_ascii=False))
    else:
        _print(verdict, storage.uri, options.quick)
    return 1 if verdict.problems.count else 0


def _plain(verdict: Verdict, uri: str, quick: bool) -> dict[str, object]:
    found = verdict.problems
    return {
        "corpus": uri,
        "whole": not found.count,
        "quick": quick,
        "fingerprint": verdict.fingerprint,
        "shards": verdict.shards,
        "bytes": verdict.bytes,
        "sequences": verdict.sequences,
        "tokens": verdict.tokens,
        "problem_count": found.count,
        "problems": [asdict(problem) for problem in found.shown],
    }


def _print(verdict: Verdict, uri: str, quick: bool) -> None:
    found = verdict.problems
    for problem in found.shown:
        print(problem)
    if found.count > len(found.shown):
        print(f"... and {found.count - len(found.shown):,} more")
    if found.count:
        count = "one problem" if found.count == 1 else f"{found.count:,} problems"
        print(f"{uri}: damaged, {count}")
        return
    print(
        f"{uri}: {'sizes, formats and counts are right' if quick else 'whole'}; {verdict.sequences:,} sequences, "
        f"{verdict.tokens:,} tokens in {verdict.shards:,} shards, {verdict.bytes / 1e6:,.1f} MB; fingerprint "
        f"{verdict.fingerprint[:16]}"
    )


def _complain(message: str, code: int) -> int:
    print(f"verify: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
