"""An environment like this one, but for transformers, which is the oldest that pyproject.toml allows.

`python -m tests.oldest_transformers` makes it, anew. It sees all that is installed here and has of its own only that
version and what pip finds to be missing for it: an older huggingface-hub and tokenizers, say.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from cluster.constraints import requirements

FOLDER = Path(sys.prefix) / "oldest-transformers"
PYTHON = FOLDER / "bin" / "python"
PACKAGES = Path(sysconfig.get_path("purelib", "venv", {"base": str(FOLDER)}))


def allowed() -> SpecifierSet:
    """The versions of transformers that pyproject.toml allows."""
    (found,) = (wanted.specifier for wanted in requirements() if wanted.name == "transformers")
    return found


def oldest() -> Version:
    (lowest,) = (Version(bound.version) for bound in allowed() if bound.operator == ">=")
    return lowest


def installed() -> Version | None:
    """The version that the environment has of its own; None where it has not been made, or could not be."""
    own = importlib.metadata.distributions(name="transformers", path=[str(PACKAGES)])
    return next((Version(found.version) for found in own), None)


def main() -> int:
    venv.create(FOLDER, clear=True, symlinks=True)
    here = sysconfig.get_path("purelib")
    (PACKAGES / "inherited.pth").write_text(f"import site; site.addsitedir({here!r})\n", encoding="utf-8")
    install = ["-m", "pip", "--python", str(PYTHON), "install", f"transformers=={oldest()}"]
    return subprocess.run([sys.executable, *install], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
