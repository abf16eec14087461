"""Prints the exact version of everything that this environment would run on a cluster: `make constraints`.

    python -m cluster.constraints > cluster/constraints.txt

pyproject.toml says what may be used; `constraints.txt` says what was tested. `pip install -c` takes the latter, in the
image and on hosts without one, so that all machines of a cluster have the same. Named is what the project requires with
its extras for storage and clouds, and what that requires in turn, as installed here.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("s3", "gcs", "aws", "gcp")
LEFT_OUT = {
    "triton": "each build of torch names its own",
    "setuptools": "what builds packages brings its own",
}


def requirements(extras: tuple[str, ...] = EXTRAS) -> list[Requirement]:
    """What pyproject.toml names, with these extras."""
    file = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    return [
        Requirement(text)
        for text in [*project["dependencies"], *(t for extra in extras for t in optional[extra])]
    ]


def pinned(wanted: list[Requirement]) -> dict[str, str]:
    """Name and version of all that is wanted, directly or not, as installed here; PackageNotFoundError where it is not.

    Local parts of versions (`+cpu`) are dropped: another index has another build of the same release.
    """
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = list(wanted)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            distribution = importlib.metadata.distribution(name)
            if name not in LEFT_OUT:
                versions[name] = distribution.version.partition("+")[0]
            for inner in map(Requirement, distribution.requires or ()):
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    waiting.append(inner)
    return dict(sorted(versions.items()))


def main() -> int:
    try:
        versions = pinned(requirements())
    except importlib.metadata.PackageNotFoundError as error:
        print(f"{error.name}: not installed; pip install -e '.[{','.join(EXTRAS)}]'", file=sys.stderr)
        return 2
    print(f"# What was tested under Python {platform.python_version()}, by `make constraints`. Not here:")
    for name, reason in LEFT_OUT.items():
        print(f"# {name}: {reason}.")
    for name, version in versions.items():
        print(f"{name}=={version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
