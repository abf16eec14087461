"""What a checkpoint carries for the card of the model that may be exported from it: the run's course, the corpus.

Plain JSON of bounded size, in about.json beside the weights. It decides nothing, and names no path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

POINTS = 8
"""Rows of the run's course that are kept."""
SOURCES = 50
"""Sources of the corpus that are named."""
LONGEST = 300
"""Characters of any text that is kept."""
ABOUT = "about.json"
_FIGURES = ("step", "loss", "bpc", "learning_rate", "grad_norm", "epoch")
_VALIDATION = "validation_bpc"
_VERSIONS = ("longspan", "torch", "deepspeed")


def run_facts(metrics: Path, corpus: Mapping[str, Any]) -> dict[str, Any]:
    """The facts about a run as far as its metrics.jsonl goes, and its `corpus_facts`."""
    rows = metrics_rows(metrics)
    trained = [row for row in rows if "bpc" in row]
    scored = [row for row in rows if _VALIDATION in row]
    return {
        "course": [{key: row[key] for key in _FIGURES if key in row} for row in spread(trained)],
        "validation": [{key: row[key] for key in ("step", _VALIDATION)} for row in spread(scored)],
        "corpus": dict(corpus),
        "versions": versions(),
    }


def corpus_facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a card says of a corpus: its sources with licences and counts, never a path."""
    sources = [
        {
            **{key: str(source.get(key, ""))[:LONGEST] for key in ("name", "kind", "licence", "terms")},
            "documents": source["kept"]["documents"],
            "tokens": source["kept"]["tokens"],
        }
        for source in manifest["sources"]
    ]
    splits = {
        name: {key: split[key] for key in ("sequences", "tokens")}
        for name, split in manifest["splits"].items()
    }
    return {
        "fingerprint": manifest["fingerprint"],
        "sequence_length": manifest["sequence_length"],
        "packing": manifest.get("packing", ""),
        "splits": splits,
        "sources": sources[:SOURCES],
        "sources_not_shown": max(0, len(sources) - SOURCES),
    }


def metrics_rows(metrics: Path) -> list[dict[str, Any]]:
    """The rows; one that a kill cut short is passed over."""
    rows = []
    if metrics.is_file():
        for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


def spread(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most POINTS rows, the first and the last among them, evenly between."""
    if len(rows) <= POINTS:
        return rows
    return [rows[round(number * (len(rows) - 1) / (POINTS - 1))] for number in range(POINTS)]


def versions() -> dict[str, str]:
    """Of the packages that decide what is computed."""
    return {name: found for name in _VERSIONS if (found := _version(name))}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return ""
