"""What the commands of the tables share: their options, a recipe, a folder of their own, and an exit status."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from attention.figure import picture_path
from demo.commands import StepFailed
from pipeline.errors import BuildError
from pipeline.shards import write_atomically
from reproduce.intervals import MOST_SEEDS
from trainer.engine.config import InputError, problems
from trainer.engine.one_writer import lock_folder


class RecipeSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Kind = TypeVar("Kind", bound=RecipeSection)


def load_recipe(path: Path, kind: type[Kind]) -> Kind:
    """Read a recipe; InputError lists every problem."""
    try:
        return kind.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    except ValidationError as error:
        raise InputError(f"{path}:\n" + "\n".join(f"  {line}" for line in problems(error))) from error


def table_parser(
    table: str, description: str, *, recipe: Path, output: str, seeds: int
) -> argparse.ArgumentParser:
    """The parser of reproduce/TABLE.py with the options that every table has, and its own defaults of them."""
    parser = argparse.ArgumentParser(
        prog=f"python -m reproduce.{table}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", type=Path, default=recipe, metavar="FILE", help="(%(default)s)")
    parser.add_argument(
        "--output", "--to", type=Path, default=Path(output), metavar="DIR", help="(%(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=seeds, help=f"1 to {MOST_SEEDS} (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, a core each (2)")
    parser.add_argument("--plot", type=picture_path, metavar="FILE", help=f"the curves (OUTPUT/{table}.svg)")
    return parser


def run(
    parser: argparse.ArgumentParser,
    reproduce: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None,
) -> int:
    """Parse, check and reproduce; says how long it took or what stopped it, and returns the exit status."""
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        if not 1 <= options.seeds <= MOST_SEEDS:
            raise InputError(f"--seeds: found {options.seeds}, expected 1 to {MOST_SEEDS}")
        if options.jobs < 1:
            raise InputError(f"--jobs: found {options.jobs}, expected at least 1")
        reproduce(options)
    except (InputError, BuildError) as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 2
    except (StepFailed, OSError) as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("reproduce: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")
    return 0


def claim_folder(
    folder: Path, wanted: Mapping[str, Mapping[str, Any]], trained: str, made: Sequence[str]
) -> TextIO:
    """Hold the folder against a second writer, and against other settings than those it was begun with.

    Until there is a path that matches `trained`, other settings are taken, and what was `made` under the first goes.
    """
    lock = lock_folder(folder, "reproduction")
    begun = folder / "recipe.json"
    if begun.exists():
        found = json.loads(begun.read_text(encoding="utf-8"))
        differing = [
            f"  {section}.{key}: now {wanted[section].get(key)!r}, begun with {found[section].get(key)!r}"
            for section in wanted
            for key in sorted(wanted[section].keys() | found[section].keys())
            if wanted[section].get(key) != found[section].get(key)
        ]
        if differing and any(folder.glob(trained)):
            raise InputError(
                f"{folder}: begun with other settings; give another --output:\n" + "\n".join(differing)
            )
        if differing:  # nothing is trained yet: a text that could not be read may be mended
            for name in made:
                shutil.rmtree(folder / name, ignore_errors=True)
    elif any(path.name != ".lock" for path in folder.iterdir()):
        raise InputError(f"{folder}: holds something else (no recipe.json), expected a new folder")
    write_atomically(begun, (json.dumps(wanted, indent=2) + "\n").encode())
    return lock
