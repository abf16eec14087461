"""The configuration of a corpus: its keys, their defaults, and one list of everything wrong with it.

    tokenizer: roberta/tokenizer.json   # a file, a folder with vocab.json and merges.txt, or a hub id
    sequence_length: 4096
    seed: 0
    sources:
      - kind: text                      # books, wikipedia, realnews, stories or text
        path: documents                 # a file, folder, glob or URI, or a list of them
    filters:
      - {name: length, minimum_bytes: 200}
    deduplicate: {near: {threshold: 0.8}}
    decontaminate: {paths: squad/dev.json}

Local paths are relative to the configuration file; `~` and `$VARIABLE` are expanded. Under `ray job submit
--working-dir .` the configuration is uploaded but data are not: give absolute paths or URIs there.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.decontaminate import Decontaminate
from pipeline.decontaminate import accepts as is_evaluation_file
from pipeline.deduplicate import Deduplicate, NearDuplicates
from pipeline.errors import ConfigError, InputError
from pipeline.fetch import Input, find_inputs, with_checksums
from pipeline.filters import FILTERS, Filter
from pipeline.shares import Share
from pipeline.sources import SOURCES
from pipeline.sources.formats import accepts
from pipeline.sources.source import Source
from pipeline.tokenizer import Tokenizer, load_tokenizer

_UPLOADED = (
    "; relative paths start at the configuration file, and `ray job submit --working-dir` uploads no data: "
    "give an absolute path or a URI there"
)


def _list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Checksum = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]


class SourceConfig(BaseModel):
    """One entry of `sources`. Its place in the list is its priority: of two documents with the same text the
    one from the earlier source is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["books", "wikipedia", "realnews", "stories", "text"]
    path: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_list), Field(min_length=1)
    ]
    """Where the documents are: files, folders, globs, URIs."""
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = ""
    """Begins the ids of its documents; the kind, if left out."""
    sample: Share | None = None
    """The fraction of its documents to keep, chosen by hash; 1/3 for realnews and stories, else 1."""
    minimum_tokens: Annotated[int, Field(ge=1)] | None = None
    """The shortest document to keep; 1,201 for realnews ("more than 1,200"), else 1."""
    maximum_tokens: Annotated[int, Field(ge=1)] | None = None
    """The longest document to keep; no limit, if left out."""
    budget: Annotated[int, Field(ge=1)] | None = None
    """At most so many tokens of this source, documents chosen by hash; no limit, if left out."""
    separator: Annotated[str, Field(min_length=1)] = "\n"
    """What ends a document in a text file of kind stories: a line end, two (blank lines), or the content of a
    line."""
    text_column: Annotated[str, Field(min_length=1)] | None = None
    """Which column of .jsonl and .parquet rows holds the text; `text`, if left out."""
    id_column: Annotated[str, Field(min_length=1)] | None = None
    """Which column names a document, the same name never twice; `id` (realnews: none, their place does)."""
    maximum_document_bytes: Annotated[int, Field(ge=1)] = Source.maximum_document_bytes
    """A larger document, or row, goes to quarantine as `too_large`; no more of it than this is held in memory."""
    checksums: Checksum | dict[str, Checksum] | None = None
    """The sha256 that its only file must have, or those of some files by their names below `path`. What differs is
    an error, before anything is read of it."""
    licence: str = ""
    """Under which licence the texts are; goes into the manifest and the report."""
    terms: str = ""
    """The terms that using this source means accepting, or where they are stated."""
    accept_terms: bool = False
    """Must be true for a source with `terms`."""

    @property
    def reader(self) -> Source:
        given = {"text_column": self.text_column, "id_column": self.id_column}
        columns = {key: column for key, column in given.items() if column is not None}
        return SOURCES[self.kind](
            separator=self.separator, maximum_document_bytes=self.maximum_document_bytes, **columns
        )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        kind = data.get("kind") if isinstance(data, Mapping) else None
        if not isinstance(kind, str) or kind not in SOURCES:
            return data
        source = SOURCES[kind]
        defaults = {"name": kind, "sample": source.sample, "minimum_tokens": source.minimum_tokens}
        return {**data, **{key: value for key, value in defaults.items() if data.get(key) in (None, "")}}

    @model_validator(mode="after")
    def _terms_are_accepted(self) -> "SourceConfig":
        if self.terms and not self.accept_terms:
            raise ValueError(
                f"accept_terms: this source has terms; set it to true if you accept them: {self.terms}"
            )
        return self


class Config(BaseModel):
    """A whole configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokenizer: Annotated[str, Field(min_length=1)]
    """tokenizer.json, a folder with it or with vocab.json and merges.txt, or the id of a model on the hub."""
    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    sequence_length: Annotated[int, Field(ge=8, le=1_048_576)] = 4096
    """Tokens a sequence, `<s>` and `</s>` included."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides sample, order, budget and split."""
    filters: tuple[Filter, ...] = ()
    deduplicate: Deduplicate = Deduplicate()
    decontaminate: Decontaminate | None = None
    validation_fraction: Share = Fraction(1, 100)
    """The fraction of documents held out as the validation split, by the hash of their text. Unless it is 0
    there is at least one from two kept documents on, and at least one stays in train."""
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    """Documents one after the other, cut wherever a sequence is full, as the paper's; or each whole in a sequence with
    room for it, where it is no longer than one, and some padding."""
    shard_sequences: Annotated[int, Field(ge=1)] = 8192
    """Sequences a shard."""
    examples: bool = True
    """Whether the report shows the beginnings of some documents."""
    chunk_bytes: Annotated[int, Field(ge=1)] = 64_000_000
    """About how much text a unit of work holds. Changes memory and overhead, never the corpus."""

    @model_validator(mode="after")
    def _names_differ(self) -> "Config":
        names = [source.name for source in self.sources]
        for name in sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"sources: {names.count(name)} of them have the name {name!r}; give each its own `name`"
            )
        for item in self.filters:
            unknown = sorted(set(item.sources or ()) - set(names))
            if unknown:
                raise ValueError(f"filters: {item.name}: no source is named {', '.join(unknown)}")
        return self

    def plain(self) -> dict[str, Any]:
        """Every key with its value, of types that JSON has: what the manifest records and a resumed build must
        agree with. `chunk_bytes` and `checksums` are left out, since no byte of the corpus depends on them."""
        return self.model_dump(
            mode="json", exclude={"chunk_bytes": True, "sources": {"__all__": {"checksums"}}}
        )


class LoadedConfig(BaseModel):
    """A configuration that was checked against the world: its tokenizer loads, its paths lead to files."""

    model_config = ConfigDict(arbitrary_types_allowed=True, frozen=True)

    config: Config
    tokenizer: Tokenizer
    inputs: tuple[tuple[Input, ...], ...]
    """For each source, its files, sorted by key; without versions yet."""
    evaluation: tuple[Input, ...] = ()
    """The files of `decontaminate`, likewise."""


def load_config(file: str | Path) -> LoadedConfig:
    """Reads and checks a configuration. Raises ConfigError with all its problems at once."""
    path = Path(file)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            str(file), [f"cannot be read: {getattr(error, 'strerror', None) or error}"]
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(str(file), [f"not YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(data, dict):
        raise ConfigError(str(file), [f"expected keys and values, found {data!r}"])
    problems = []
    config = None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        problems += [_problem(details) for details in error.errors()]
    # Looked at even where other keys are wrong, so that one run tells everything.
    folder = path.absolute().parent
    tokenizer = _load_tokenizer(data.get("tokenizer"), folder, problems)
    inputs = _find_all_inputs(data.get("sources"), folder, problems)
    evaluation = _find_evaluation(data.get("decontaminate"), folder, problems)
    if problems or config is None or tokenizer is None:
        raise ConfigError(str(file), problems)
    return LoadedConfig(config=config, tokenizer=tokenizer, inputs=tuple(inputs), evaluation=evaluation)


def _load_tokenizer(location: object, folder: Path, problems: list[str]) -> Tokenizer | None:
    if not isinstance(location, str) or not location:
        return None
    try:
        expanded = _expand(location)
        beside = folder / expanded
        return load_tokenizer(beside if beside.exists() else expanded)
    except (ValueError, InputError) as error:
        problems.append(f"tokenizer: {str(error).removeprefix('tokenizer ')}")
        return None


def _find_all_inputs(sources: object, folder: Path, problems: list[str]) -> Iterator[tuple[Input, ...]]:
    found = []
    for number, source in enumerate(sources if isinstance(sources, list) else []):
        kind, paths = (
            (source.get("kind"), _list(source.get("path"))) if isinstance(source, dict) else (None, None)
        )
        if not isinstance(kind, str) or kind not in SOURCES or not isinstance(paths, Sequence):
            continue
        accepted = partial(accepts, SOURCES[kind])
        inputs = _find_inputs(paths, accepted, folder, f"sources[{number}].path", problems)
        try:
            checksums = source.get("checksums")
            use = inputs and _are_checksums(checksums)
            found.append(tuple(with_checksums(inputs, checksums)) if use else inputs)
        except InputError as error:
            problems.append(f"sources[{number}].checksums: {error}")
    return iter(found)


def _are_checksums(value: object) -> bool:
    """Whether it is worth looking at; what it is instead is told with the other keys."""
    return isinstance(value, str) or (
        isinstance(value, dict) and all(isinstance(part, str) for item in value.items() for part in item)
    )


def _find_evaluation(section: object, folder: Path, problems: list[str]) -> tuple[Input, ...]:
    paths = _list(section.get("paths")) if isinstance(section, dict) else None
    if not isinstance(paths, Sequence):
        return ()
    return _find_inputs(paths, is_evaluation_file, folder, "decontaminate.paths", problems)


def _find_inputs(
    paths: Sequence[object], accepted: Callable[[str], bool], folder: Path, key: str, problems: list[str]
) -> tuple[Input, ...]:
    try:
        expanded = [_expand(path) for path in paths if isinstance(path, str) and path]
        return tuple(find_inputs(expanded, accepted, folder))
    except InputError as error:
        hint = _UPLOADED if "no such file" in str(error) else ""
        problems.append(f"{key}: {error}{hint}")
        return ()


def _expand(path: str) -> str:
    expanded = os.path.expandvars(str(Path(path).expanduser()) if path.startswith("~") else path)
    unset = re.search(r"\$(\w+|\{\w+\})", expanded)
    if unset:
        raise InputError(f"{path}: the environment variable {unset[1].strip('{}')} is not set")
    return expanded


def _problem(details: Mapping[str, Any]) -> str:
    """One pydantic error as `key: what was expected; found …`."""
    location = list(details["loc"])
    if location[:1] == ["filters"] and len(location) > 2:
        del location[2]  # the filter's name, which pydantic puts where the list has only a number
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    kind, message = details["type"], details["msg"]
    if kind == "missing":
        return f"{key}: missing; this key is needed"
    if kind == "extra_forbidden":
        return f"{key}: unknown key{_did_you_mean(details['loc'])}; found {details['input']!r}"
    if kind == "union_tag_invalid":
        return f"{key}.name: {_choose(details['ctx']['tag'], FILTERS)}; found {details['ctx']['tag']!r}"
    if kind == "union_tag_not_found":
        return f"{key}.name: missing; this key is needed"
    message = message.removeprefix("Value error, ").replace("Input should be", "expected")
    if kind == "value_error" and ("; " in message or ": " in message):
        return f"{key}.{message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]}; found {details['input']!r}"


def _did_you_mean(location: Sequence[Any]) -> str:
    model: type[BaseModel] = Config
    if location[0] == "sources":
        model = SourceConfig
    elif location[0] == "filters" and len(location) > 3:
        model = FILTERS[location[2]]
    elif location[0] == "deduplicate" and len(location) > 1:
        model = NearDuplicates if len(location) > 2 else Deduplicate
    elif location[0] == "decontaminate" and len(location) > 1:
        model = Decontaminate
    close = difflib.get_close_matches(str(location[-1]), model.model_fields, n=1)
    return f", perhaps {close[0]!r} was meant" if close else f"; known are {', '.join(model.model_fields)}"


def _choose(found: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(found), known, n=1)
    return f"expected {', '.join(known)}" + (f", perhaps {close[0]!r}" if close else "")
