"""seal: checks the whole build, then writes what makes a folder of shards a corpus; the manifest last.

Checked: every shard's bytes against the checksum of the unit that wrote it; for each source, that every
document read is kept, dropped for a reason or in quarantine, and that the shards hold exactly the kept tokens.
Records are read one after the other: what is held is the manifest, which grows with inputs and shards alone.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipeline.config import LoadedConfig
from pipeline.decisions import content_id
from pipeline.ledger import Ledger
from pipeline.report import LostDocument, render_report
from pipeline.shards import FORMAT_VERSION, MANIFEST
from pipeline.stages.facts import gather_facts
from pipeline.stages.pack import PACKING_FACTS
from pipeline.stages.plan import Plan, split_records
from pipeline.stages.run import Stages
from pipeline.stages.select import SPLITS, Selection
from pipeline.storage import Lock, Stores
from pipeline.tokenizer import TOKENIZER_FILES
from pipeline.units import VERSIONS, PublishedFile, Record

REPORT = "report.html"
QUARANTINED_SHOWN = 3
"""Documents of each source and reason that the report names."""
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
    name: str, split: Iterable[Record], encoded: Iterable[Record], selected: Mapping[str, Any], packed: int
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
    plan: Plan,
    selection: Selection,
    stages: Stages,
    lock: Lock,
) -> dict[str, Any]:
    """Seals the output and gives its manifest. BuildError where the `lock` on the output was lost."""
    stores, ledger, tokenizer = stages.stores, stages.ledger, loaded.tokenizer
    shards = [record.files[0] for record in ledger.records("pack")]
    stages.run("verify", (VerifyUnit(shard) for shard in shards), len(shards), again=True)
    _remove_leftovers(shards, stores)
    tokens: Counter[str] = Counter()
    for record in ledger.records("pack"):
        tokens.update(record.facts["tokens"])
    sources = []
    lost: list[LostDocument] = []
    for own in plan.sources:
        name = own.source.name
        encoded = (record for record in ledger.records("encode") if record.facts["source"] == name)
        split = (record for record, _ in split_records(own, limit, ledger))
        about = {
            "name": name,
            "kind": own.source.kind,
            "licence": own.source.licence,
            "terms": own.source.terms,
        }
        sources.append({**about, **balance(name, split, encoded, selection.sources[name], tokens[name])})
        split = (record for record, _ in split_records(own, limit, ledger))
        lost += _publish_quarantine(name, split, stores)
    manifest = {
        "version": FORMAT_VERSION,
        "fingerprint": corpus_fingerprint(shards, tokenizer.fingerprint),
        "sequence_length": loaded.config.sequence_length,
        "packing": loaded.config.packing,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "vocabulary_size": tokenizer.vocabulary_size,
            "special_ids": tokenizer.named_special_ids(),
        },
        "splits": {name: _split_entry(name, ledger) for name in SPLITS},
        "sources": sources,
        "inputs": describe_inputs(plan),
        "config": loaded.config.plain(),
        "limit": limit,
        "versions": VERSIONS,
    }
    for name, content in tokenizer.files().items():
        stores.output.publish(name, content)
    lock.check()  # a manifest cannot be taken back
    stores.output.publish(REPORT, render_report(manifest, gather_facts(stages, lost, manifest)).encode())
    stores.output.publish(MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
    return manifest


@dataclass(frozen=True)
class VerifyUnit:
    """Reads a shard once more: it must be what the unit that packed it wrote."""

    stage: ClassVar[str] = "verify"
    shard: PublishedFile

    @property
    def id(self) -> str:
        return content_id(self.stage, self.shard)

    @property
    def size(self) -> int:
        return self.shard.bytes

    def run(self, stores: Stores) -> Record:
        stores.output.verify(self.shard.name, self.shard.sha256)
        return Record([])


def sealed_beside_shards(sources: Iterable[str]) -> list[str]:
    """The other files of a sealed corpus of these sources."""
    return [*TOKENIZER_FILES, REPORT, *map(_quarantine, sources)]


def _quarantine(source: str) -> str:
    return f"quarantine/{source}.jsonl"


def describe_inputs(plan: Plan) -> list[dict[str, Any]]:
    """What was read, in which version: the manifest's `inputs`. Evaluation files have no source."""
    named = [(own.source.name, item) for own in plan.sources for item in own.inputs]
    named += [("", item) for item in plan.evaluation]
    return [
        {"source": source, "name": item.key, "bytes": item.bytes, "version": item.version}
        for source, item in named
    ]


def corpus_fingerprint(shards: Sequence[PublishedFile], tokenizer_fingerprint: str) -> str:
    """64 hexadecimal digits over the content of all shards."""
    digest = hashlib.sha256(f"{FORMAT_VERSION} {tokenizer_fingerprint}\n".encode())
    for shard in sorted(shards, key=lambda file: file.name):
        digest.update(f"{shard.name} {shard.sha256}\n".encode())
    return digest.hexdigest()


def _split_entry(split: str, ledger: Ledger) -> dict[str, Any]:
    shards = []
    counts: Counter[str] = Counter()
    for record in ledger.records("pack"):
        if record.facts["split"] == split:
            [file] = record.files
            sequences = record.facts["sequences"]
            shards.append(
                {"path": file.name, "sha256": file.sha256, "bytes": file.bytes, "sequences": sequences}
            )
            counts["sequences"] += sequences
            counts["tokens"] += sum(record.facts["tokens"].values())
            counts.update({fact: record.facts[fact] for fact in PACKING_FACTS})
    return {fact: counts[fact] for fact in ("sequences", "tokens", *PACKING_FACTS)} | {"shards": shards}


def _remove_leftovers(shards: Sequence[PublishedFile], stores: Stores) -> None:
    """Removes what killed runs have left: temporary files, and shards of an unfinished build of more inputs."""
    stores.output.remove_leftovers()
    names = {shard.name for shard in shards}
    for split in SPLITS:
        for name in stores.output.list(split):
            if name not in names and _SHARD.fullmatch(name):
                stores.output.remove(name)


def _publish_quarantine(source: str, records: Iterable[Record], stores: Stores) -> list[LostDocument]:
    """Joins a source's quarantine files; gives the first documents of each reason, for the report."""
    shown: dict[str, list[LostDocument]] = {}
    with stores.output.create(_quarantine(source)) as file:
        for record in records:
            for name in record.facts["quarantine"]:
                content = stores.work.read(name)
                file.write(content)
                for line in content.splitlines():
                    entry = json.loads(line)
                    if len(own := shown.setdefault(entry["reason"], [])) < QUARANTINED_SHOWN:
                        own.append(LostDocument(source, entry["reason"], entry["position"], entry["detail"]))
    return [document for own in shown.values() for document in own]
