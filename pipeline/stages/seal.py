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
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.config import Config, LoadedConfig
from pipeline.decisions import content_id
from pipeline.ledger import Ledger
from pipeline.report import LostDocument, render_report
from pipeline.shards import FORMAT_VERSION, MANIFEST
from pipeline.sources import SOURCES
from pipeline.stages.facts import gather_facts
from pipeline.stages.pack import PACKING_FACTS
from pipeline.stages.plan import Plan, split_records
from pipeline.stages.run import Stages
from pipeline.stages.select import SPLITS, Selection
from pipeline.stages.split import Chunk
from pipeline.storage import Lock, Stores
from pipeline.tokenizer import TOKENIZER_FILES
from pipeline.units import VERSIONS, PublishedFile, Record

REPORT = "report.html"
QUARANTINED_SHOWN = 3
"""Documents of each source and reason that the report names."""
_SHARD = re.compile(rf"({'|'.join(SPLITS)})/\d{{5,}}\.arrow")


def balance(
    name: str,
    split: Iterable[tuple[Record, list[tuple[Chunk, int]]]],
    encoded: Iterable[Record],
    selected: Mapping[str, Any],
    packed: int,
) -> dict[str, Any]:
    """The counts of source `name`, checked: read = kept + dropped + quarantined. `split` is as `split_records` gives
    it, `packed` are the source's tokens in the shards.

    AssertionError where anything was lost or made up: then this program is wrong, and must not seal.
    """
    taken = looked_at = kept = 0
    quarantined: Counter[str] = Counter()
    dropped: dict[str, Counter[str]] = {}
    for record, chunks in split:
        quarantined.update(record.facts["quarantined"])
        taken += sum(take for _, take in chunks)
    for record in encoded:
        looked_at += record.facts["read"]
        kept += record.facts["kept"]["documents"]
        for reason, tally in record.facts["dropped"].items():
            dropped.setdefault(reason, Counter()).update(tally)
    for reason, tally in selected["dropped"].items():
        dropped.setdefault(reason, Counter()).update({**tally, "tokenised": tally["documents"]})
        kept -= tally["documents"]

    splits = selected["splits"]
    documents = sum(tally["documents"] for tally in splits.values())
    tokens = sum(tally["tokens"] for tally in splits.values())
    lost = sum(tally["documents"] for tally in dropped.values())
    assert looked_at == taken, f"{name}: {taken} documents were read, {looked_at} were looked at"
    assert documents == kept, f"{name}: {kept} documents should be left, the keep-lists have {documents}"
    assert taken == documents + lost, f"{name}: read {taken}, kept {documents}, dropped {lost}"
    assert tokens == packed, f"{name}: {tokens} tokens were kept, the shards hold {packed}"
    return {
        "read": taken + quarantined.total(),
        "quarantined": dict(sorted(quarantined.items())),
        "dropped": {reason: _tally(dropped[reason]) for reason in sorted(dropped)},
        "kept": {"documents": documents, "tokens": tokens},
        "splits": splits,
        "length_histogram": selected["length_histogram"],
    }


def _tally(dropped: Counter[str]) -> dict[str, int]:
    """The tokens only where they are known of all documents: some are dropped before they are tokenised."""
    known = dropped["tokenised"] == dropped["documents"]
    return {what: dropped[what] for what in (("documents", "tokens") if known else ("documents",))}


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
    shards = [shard for record in ledger.records("pack") for shard in record.files]
    stages.run("verify", (VerifyUnit(shard) for shard in shards), len(shards), again=True)
    lock.check()  # else they may be another build's
    _remove_leftovers(shards, stores)
    tokens: Counter[str] = Counter()
    for record in ledger.records("pack"):
        tokens.update(record.facts["tokens"])
    sources = []
    lost: list[LostDocument] = []
    for own in plan.sources:
        name = own.source.name
        encoded = (record for record in ledger.records("encode") if record.facts["source"] == name)
        about = {
            "name": name,
            "kind": own.source.kind,
            "licence": own.source.licence,
            "terms": own.source.terms,
        }
        split = split_records(own, limit, ledger)
        sources.append({**about, **balance(name, split, encoded, selection.sources[name], tokens[name])})
        records = (record for record, _ in split_records(own, limit, ledger))
        lost += _publish_quarantine(name, records, stores)
    versions = _versions(loaded.config)
    manifest = {
        "version": FORMAT_VERSION,
        "fingerprint": corpus_fingerprint(shards, tokenizer.fingerprint, versions),
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
        "versions": versions,
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

    @property
    def about(self) -> str:
        return self.shard.name

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


def _versions(config: Config) -> dict[str, str]:
    """Everything outside of this program that decides a corpus's bytes, with its version."""
    cleaning = {source.kind: SOURCES[source.kind].cleaning for source in config.sources}
    found = VERSIONS | {f"cleaning of {kind}": name for kind, name in cleaning.items() if name}
    for item in config.filters:
        found |= item.libraries
    return dict(sorted(found.items()))


def corpus_fingerprint(
    shards: Sequence[PublishedFile], tokenizer_fingerprint: str, versions: Mapping[str, str]
) -> str:
    """64 hexadecimal digits over the content of all shards, and the versions of what decided it."""
    digest = hashlib.sha256(f"{FORMAT_VERSION} {tokenizer_fingerprint}\n".encode())
    for library, version in sorted(versions.items()):
        digest.update(f"{library} {version}\n".encode())
    for shard in sorted(shards, key=lambda file: file.name):
        digest.update(f"{shard.name} {shard.sha256}\n".encode())
    return digest.hexdigest()


def _split_entry(split: str, ledger: Ledger) -> dict[str, Any]:
    shards: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    for record in ledger.records("pack"):
        if record.facts["split"] == split:
            sequences = record.facts["sequences"]
            shards += [
                {"path": file.name, "sha256": file.sha256, "bytes": file.bytes, "sequences": sequences}
                for file in record.files
            ]
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
            names = set(record.facts["quarantine"])
            for published in (f for f in record.files if f.name in names and f.bytes):
                content = stores.work.local_copy(published.name, published.sha256).read_bytes()
                file.write(content)
                for line in content.splitlines():
                    entry = json.loads(line)
                    if len(own := shown.setdefault(entry["reason"], [])) < QUARANTINED_SHOWN:
                        own.append(LostDocument(source, entry["reason"], entry["position"], entry["detail"]))
    return [document for own in shown.values() for document in own]
