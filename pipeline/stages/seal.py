"""seal: checks the whole build, then writes what makes a folder of shards a corpus; the manifest last.

Checked: every shard's bytes against the checksum of the unit that wrote it; for each source, that every
document read is kept, dropped for a reason or in quarantine, and that the shards hold exactly the kept tokens.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import LoadedConfig
from pipeline.report import BuildFacts, StageFacts, render_report
from pipeline.shards import FORMAT_VERSION, MANIFEST
from pipeline.stages.plan import SourcePlan
from pipeline.stages.select import SPLITS
from pipeline.storage import Stores
from pipeline.tokenizer import TOKENIZER_FILES
from pipeline.units import VERSIONS, PublishedFile, Record

REPORT = "report.html"
_SHARD = re.compile(rf"({'|'.join(SPLITS)})/\d{{5,}}\.arrow")


@dataclass
class Counts:
    """One source's balance: read = kept + dropped + quarantined."""

    read: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)

    def drop(self, reason: str, documents: int, tokens: int | None) -> None:
        tally = self.dropped.setdefault(reason, {"documents": 0})
        tally["documents"] += documents
        if tokens is not None:
            tally["tokens"] = tally.get("tokens", 0) + tokens


def balance(
    name: str, split: Sequence[Record], encoded: Sequence[Record], selected: dict[str, Any], packed: int
) -> dict[str, Any]:
    """The counts of source `name`, checked; `packed` are its tokens in the shards.

    AssertionError where anything was lost or made up: then this program is wrong, and must not seal.
    """
    counts = Counts()
    kept = 0
    for record in split:
        counts.quarantined.update(record.facts["quarantined"])
    for record in encoded:
        counts.read += record.facts["read"]
        kept += record.facts["kept"]["documents"]
        for reason, tally in record.facts["dropped"].items():
            known = tally["tokens"] if tally["tokenised"] == tally["documents"] else None
            counts.drop(reason, tally["documents"], known)
    for reason, tally in selected["dropped"].items():
        counts.drop(reason, tally["documents"], tally["tokens"])
        kept -= tally["documents"]
    counts.read += counts.quarantined.total()

    splits = selected["splits"]
    documents = sum(tally["documents"] for tally in splits.values())
    tokens = sum(tally["tokens"] for tally in splits.values())
    lost = counts.quarantined.total() + sum(tally["documents"] for tally in counts.dropped.values())
    assert documents == kept, f"{name}: {kept} documents should be left, the keep-lists have {documents}"
    assert counts.read == documents + lost, f"{name}: read {counts.read}, kept {documents}, lost {lost}"
    assert tokens == packed, f"{name}: {tokens} tokens were kept, the shards hold {packed}"
    return {
        "read": counts.read,
        "quarantined": dict(sorted(counts.quarantined.items())),
        "dropped": dict(sorted(counts.dropped.items())),
        "kept": {"documents": documents, "tokens": tokens},
        "splits": splits,
        "length_histogram": selected["length_histogram"],
    }


def seal(
    loaded: LoadedConfig,
    limit: int | None,
    plans: Sequence[SourcePlan],
    split: Sequence[Sequence[Record]],
    encoded: Sequence[Record],
    selected: Record,
    packed: Sequence[Record],
    stores: Stores,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Seals the output and gives its manifest. `split` has the records of each source, in the order of
    `plans`; `seconds` of processor time a stage go into the report alone."""
    tokens: Counter[str] = Counter()
    for record in packed:
        tokens.update(record.facts["tokens"])
    sources = []
    for plan, records in zip(plans, split, strict=True):
        name = plan.source.name
        own = [record for record in encoded if record.facts["source"] == name]
        counts = balance(name, records, own, selected.facts["sources"][name], tokens[name])
        about = {
            "name": name,
            "kind": plan.source.kind,
            "licence": plan.source.licence,
            "terms": plan.source.terms,
        }
        sources.append({**about, **counts})
        _publish_quarantine(name, records, stores)

    shards = [record.files[0] for record in packed]
    _check_shards(shards, stores)
    _remove_leftovers(shards, stores)
    tokenizer = loaded.tokenizer
    manifest = {
        "version": FORMAT_VERSION,
        "fingerprint": corpus_fingerprint(shards, tokenizer.fingerprint),
        "sequence_length": loaded.config.sequence_length,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "vocabulary_size": tokenizer.vocabulary_size,
            "special_ids": tokenizer.named_special_ids(),
        },
        "splits": {name: _split_entry(name, packed) for name in SPLITS},
        "sources": sources,
        "inputs": describe_inputs(plans),
        "config": loaded.config.plain(),
        "limit": limit,
        "versions": VERSIONS,
    }
    tokenizer.save(stores.output.uri)
    facts = BuildFacts(stages=[StageFacts(stage, spent) for stage, spent in seconds.items()])
    stores.output.publish(REPORT, render_report(manifest, facts).encode())
    stores.output.publish(MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    return manifest


def sealed_beside_shards(sources: Iterable[str]) -> list[str]:
    """The other files of a sealed corpus of these sources."""
    return [*TOKENIZER_FILES, REPORT, *map(_quarantine, sources)]


def _quarantine(source: str) -> str:
    return f"quarantine/{source}.jsonl"


def describe_inputs(plans: Sequence[SourcePlan]) -> list[dict[str, Any]]:
    """What was read, in which version: the manifest's `inputs`."""
    return [
        {"source": plan.source.name, "name": item.key, "bytes": item.bytes, "version": item.version}
        for plan in plans
        for item in plan.inputs
    ]


def corpus_fingerprint(shards: Sequence[PublishedFile], tokenizer_fingerprint: str) -> str:
    """64 hexadecimal digits over the content of all shards."""
    digest = hashlib.sha256(f"{FORMAT_VERSION} {tokenizer_fingerprint}\n".encode())
    for shard in sorted(shards, key=lambda file: file.name):
        digest.update(f"{shard.name} {shard.sha256}\n".encode())
    return digest.hexdigest()


def _split_entry(split: str, packed: Sequence[Record]) -> dict[str, Any]:
    records = [record for record in packed if record.facts["split"] == split]
    shards = [
        {"path": f.name, "sha256": f.sha256, "bytes": f.bytes, "sequences": record.facts["sequences"]}
        for record in records
        for f in record.files
    ]
    return {
        "sequences": sum(record.facts["sequences"] for record in records),
        "tokens": sum(sum(record.facts["tokens"].values()) for record in records),
        "shards": shards,
    }


def _check_shards(shards: Sequence[PublishedFile], stores: Stores) -> None:
    for shard in shards:
        stores.output.verify(shard.name, shard.sha256)


def _remove_leftovers(shards: Sequence[PublishedFile], stores: Stores) -> None:
    """Removes what killed runs have left: temporary files, and shards of an unfinished build of more inputs."""
    stores.output.remove_leftovers()
    names = {shard.name for shard in shards}
    for split in SPLITS:
        for name in stores.output.list(split):
            if name not in names and _SHARD.fullmatch(name):
                stores.output.remove(name)


def _publish_quarantine(source: str, records: Sequence[Record], stores: Stores) -> None:
    lines = b"".join(stores.work.read(record.facts["quarantine"]) for record in records)
    stores.output.publish(_quarantine(source), lines)
