"""Says what a cluster's file still lacks, before anything is started or paid for.

    python -m cluster.check cluster/aws.yaml

What only its user knows is a placeholder in these files: a value `{FILL_IN: what belongs there}`, or the word
FILL_IN_SOMETHING inside a longer text. Every one is named here, with whatever Ray's own schema refuses and local files
that are not there. Ray and Kubernetes refuse the first kind by themselves, as a value of the wrong type.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILL_IN = "FILL_IN"


def placeholders(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """The key and the wanted content of each value that is still to be filled in."""
    if isinstance(value, dict):
        if set(value) == {FILL_IN}:
            yield key, str(value[FILL_IN])
            return
        for name, inner in value.items():
            yield from placeholders(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from placeholders(inner, f"{key}[{number}]")
    elif isinstance(value, str):
        for word in re.findall(rf"{FILL_IN}\w*", value):
            yield key, f"{word} in {value!r}"


def problems(path: Path) -> list[str]:
    """All that stands in the way of using this file, a line each; none where it is ready."""
    try:
        documents = [
            each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each is not None
        ]
    except OSError as error:
        return [f"{error.strerror}; expected a cluster's YAML"]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return [f"not YAML ({' '.join(str(error).split())})"]
    if not documents or not all(isinstance(each, dict) for each in documents):
        return ["found no mapping of keys, expected a cluster's YAML"]
    found = []
    seen = set()  # what an anchor (&image) holds is one thing to fill in
    for document in documents:
        for key, wanted in placeholders(document):
            if wanted not in seen:
                found.append(f"{key}: to be filled in: {wanted}")
                seen.add(wanted)
        if "kind" in document:
            continue  # Kubernetes checks the rest when it is applied
        found += _not_rays(document) or ([] if seen else _unprepared(document))
        found += _missing_mounts(document)
    return found


def _not_rays(config: dict[str, Any]) -> Iterator[str] | list[str]:
    """What Ray's schema refuses, placeholders left out."""
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    # Ray lets any key of `provider` pass, because it has providers that are not in its schema.
    provider = schema["properties"]["provider"]
    provider["additionalProperties"] = False
    provider["properties"]["coordinator_address"] = {"type": "string"}
    found = []
    for error in jsonschema.Draft7Validator(schema).iter_errors(config):
        if not list(placeholders(error.instance)) or error.validator == "additionalProperties":
            where = ".".join(map(str, error.absolute_path))
            found.append(f"{where}: {error.message}" if where else error.message)
    return found


def _unprepared(config: dict[str, Any]) -> list[str]:
    """What `ray up` refuses beyond the schema."""
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except Exception as error:
        return [" ".join(str(error).split()) or type(error).__name__]
    return []


def _missing_mounts(config: dict[str, Any]) -> Iterator[str]:
    mounts = config.get("file_mounts")
    for remote, local in (mounts if isinstance(mounts, dict) else {}).items():
        if isinstance(local, str) and not Path(local).expanduser().exists():
            how = "; `ray get-auth-token --generate` makes it" if local.endswith("auth_token") else ""
            yield f"file_mounts.{remote}: found no {local}, expected it (from the repository's root){how}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    status = 0
    for path in parser.parse_args(arguments).files:
        if found := problems(path):
            print(f"{path}:\n" + "\n".join(f"  {line}" for line in found), file=sys.stderr)
            status = 2
        else:
            print(f"{path}: nothing left to fill in, and nothing that is refused")
    return status


if __name__ == "__main__":
    sys.exit(main())
