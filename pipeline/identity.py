"""Which corpus an output folder is: the one asked for, finished or begun; another; or none.

While a build is under way the output has a build.json that says for what; when it is sealed, its manifest does.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.config import LoadedConfig
from pipeline.errors import BuildError
from pipeline.shards import MANIFEST, CorpusError, open_corpus, read_manifest
from pipeline.stages.plan import Plan
from pipeline.stages.seal import describe_inputs, sealed_beside_shards
from pipeline.stages.select import SPLITS
from pipeline.storage import Storage

BEGUN = "build.json"
"""In the output from the begin of a build to its end."""


def identify(loaded: LoadedConfig, limit: int | None, plan: Plan) -> dict[str, Any]:
    """What makes this corpus this corpus: two builds into one output must agree in it."""
    return {
        "config": loaded.config.plain(),
        "limit": limit,
        "tokenizer": loaded.tokenizer.fingerprint,
        "inputs": _by_name(describe_inputs(plan)),
    }


def _by_name(inputs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Inputs as names and versions, so that a difference is told with the name of the file."""
    return {f"{item['source']}/{item['name']}": item["version"] for item in inputs}


def is_finished(output: Storage, identity: Mapping[str, Any]) -> bool:
    """Whether the output is this corpus, sealed. BuildError where it is another one, or no corpus at all."""
    if output.size(MANIFEST) is not None:
        with _damage_named(output, MANIFEST):
            manifest = read_manifest(output.uri)
            sealed = {
                "config": manifest["config"],
                "limit": manifest["limit"],
                "tokenizer": manifest["tokenizer"]["fingerprint"],
                "inputs": _by_name(manifest["inputs"]),
            }
        _refuse_other(output, "holds", sealed, identity)
        with _damage_named(output, MANIFEST):
            for split in SPLITS:
                open_corpus(output.uri, split)
            for name in sealed_beside_shards(source["name"] for source in manifest["sources"]):
                if output.size(name) is None:
                    raise CorpusError(f"{output.where(name)}: missing")
        return True
    if output.size(BEGUN) is not None:
        with _damage_named(output, BEGUN):
            # Inputs may have been put right since: unfinished, nothing of the old ones is in the result.
            begun = {**json.loads(output.read(BEGUN)), "inputs": identity["inputs"]}
        _refuse_other(output, "was begun as", begun, identity)
    elif not output.is_empty():
        raise BuildError(f"{output.uri}: exists and is no corpus; expected a new or an empty folder")
    return False


@contextmanager
def _damage_named(output: Storage, name: str) -> Iterator[None]:
    """Whatever is wrong with the content of an output's file, as a BuildError that says what to do."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        found = error if isinstance(error, CorpusError) else f"{output.where(name)}: not readable: {error!r}"
        raise BuildError(f"{found}; {output.uri} was damaged: remove it and build it again") from error


def _refuse_other(output: Storage, verb: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    differences = _differences(there, here)
    if differences:
        listed = "\n".join(f"  {difference}" for difference in differences[:20])
        raise BuildError(
            f"{output.uri} {verb} another corpus; choose another --output, or remove it. There and here:\n{listed}"
        )


def _differences(there: Any, here: Any, key: str = "") -> list[str]:
    """The keys in which two plain values differ, with both values."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        keys = [*there, *(k for k in here if k not in there)]
        return [
            d for k in keys for d in _differences(there.get(k), here.get(k), f"{key}.{k}" if key else str(k))
        ]
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        return [
            d
            for i, (a, b) in enumerate(zip(there, here, strict=True))
            for d in _differences(a, b, f"{key}[{i}]")
        ]
    if there == here:
        return []
    return [f"{key.removeprefix('config.')}: {_brief(there)}, {_brief(here)}"]


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."


def begin(output: Storage, identity: Mapping[str, Any]) -> None:
    """Marks the output as this corpus, begun."""
    output.publish(BEGUN, (json.dumps(identity, indent=1, ensure_ascii=False) + "\n").encode())
