"""Inputs: finding the files that a path names, what version each is of, and opening them.

A path is a local file, folder or glob; an http(s):// URI of one file; an s3:// or gs:// URI of a file, of a folder
(with a slash at its end) or a pattern; or `hf://datasets/ORG/NAME[@REVISION][/PATTERN]`, files of a dataset on the
Hugging Face hub. What is on the web or the hub is fetched in parts by the stage of that name; a build with `--limit`
streams it.
"""

import glob
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TypeVar, cast
from urllib.parse import unquote, urlsplit

from pipeline.documents import readable_name
from pipeline.errors import BuildError, InputError
from pipeline.remote.buckets import BucketStream, glob_regex, list_bucket
from pipeline.remote.hub import list_hub, open_hub
from pipeline.remote.patience import reason_of, without_secrets
from pipeline.remote.ranged import RangedFile
from pipeline.remote.web import WebFile, look
from pipeline.shards import file_sha256
from pipeline.storage import Storage

PART_BYTES = 128_000_000
"""Of a remote file that one unit of work fetches."""
_BUCKET_BUFFER = 8 << 20
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Input:
    """One file that documents come from."""

    uri: str
    key: str
    """Its name in document ids: the path below what the configuration names, unique in its source."""
    bytes: int
    version: str = ""
    """Names the content: a sha256 for a local file, what the server says for others."""
    sha256: str = ""
    """What its content must have, where the configuration or the hub says so."""
    ranges: bool = True
    """Whether it can be read from the middle; some web servers cannot."""
    parts: tuple[str, ...] = ()
    """Where it was fetched: the names of its parts in the work storage, each but the last of PART_BYTES."""

    @property
    def name(self) -> str:
        """Its URI without secrets, for messages."""
        return without_secrets(self.uri) if "://" in self.uri else self.uri


def find_inputs(paths: Iterable[str], accepts: Callable[[str], bool], folder: str | Path = "") -> list[Input]:
    """The files that `paths` name, sorted by key; without versions, see `with_version`. Relative ones start at
    `folder`, whose own name is never a pattern.

    A folder or a pattern gives the files in it whose name the source `accepts`; a file named by itself must
    be accepted. Raises InputError, naming the path, where there is no such file.
    """
    found: dict[str, list[Input]] = {}
    for path in paths:
        for item in _find(path, accepts, Path(folder)):
            found.setdefault(item.uri, []).append(item)
    # The same file named twice is read once.
    return _unique_keys([items[0] for _, items in sorted(found.items())])


def with_version(item: Input) -> Input:
    """`item` with its size and version as they are now. InputError where it is gone, or is a local file of another
    sha256 than it must have."""
    if scheme_of(item.uri) != "":
        return item  # finding it has already said so
    found = _local(lambda: file_sha256(Path(item.uri)), item.uri)
    if item.sha256 not in ("", found):
        raise wrong_checksum(item, found)
    return replace(item, version="sha256:" + found)


def wrong_checksum(item: Input, found: str) -> InputError:
    return InputError(f"{item.name}: its sha256 is {found}; expected {item.sha256} (key checksums)")


def with_checksums(inputs: Iterable[Input], checksums: "str | Mapping[str, str]") -> list[Input]:
    """The inputs with what their content must be: one sha256 for the only file, or some by name. InputError where
    a name is none of theirs."""
    inputs = list(inputs)
    if isinstance(checksums, str):
        if len(inputs) > 1:
            raise InputError(
                f"one sha256 for {len(inputs):,} files; expected a mapping of file names to sha256"
            )
        checksums = {inputs[0].key: checksums}
    unknown = sorted(set(checksums) - {item.key for item in inputs})
    if unknown:
        known = ", ".join(item.key for item in inputs[:5])
        raise InputError(f"{unknown[0]!r} is no file of this source; its files are named {known}")
    return [replace(item, sha256=checksums.get(item.key, item.sha256).lower()) for item in inputs]


def open_input(item: Input, work: Storage | None = None) -> BinaryIO:
    """A binary stream of the input's bytes as they are stored, which can seek: no decompression. Of parts that were
    fetched into `work`, else directly."""
    if item.parts:
        assert work is not None
        return _buffered(_Parts(item, work), 1 << 20)
    scheme = scheme_of(item.uri)
    if scheme == "":
        return _local(lambda: Path(item.uri).open("rb"), item.uri)
    if scheme in ("s3", "gs"):
        return _buffered(BucketStream(item.uri, item.bytes, item.version), _BUCKET_BUFFER)
    return _buffered(open_remote(item), 1 << 20)


def open_remote(item: Input, end: int | None = None) -> WebFile:
    """A stream of a file on the web or the hub, which will not be read behind `end`."""
    if scheme_of(item.uri) == "hf":
        return open_hub(item.uri, item.bytes, end)
    return WebFile(item.uri, item.bytes, item.version, end=end)


def _buffered(stream: RangedFile, size: int) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(stream, size))


class _Parts(RangedFile):
    """The parts of a file that was fetched, as the one file that they are."""

    def __init__(self, item: Input, work: Storage) -> None:
        super().__init__(item.bytes)
        self._item = item
        self._work = work
        self._number = -1
        self._part: BinaryIO | None = None

    def read_at(self, position: int, count: int) -> bytes:
        number = min(position // PART_BYTES, len(self._item.parts) - 1)
        if number != self._number or self._part is None:
            if self._part is not None:
                self._part.close()
            self._part, self._number = self._work.open(self._item.parts[number]), number
        self._part.seek(position - number * PART_BYTES)
        content = self._part.read(count)
        if not content:
            where = self._work.where(self._item.parts[number])
            raise BuildError(
                f"{where}: shorter than when it was fetched; remove it, and the same command goes on"
            )
        return content

    def close(self) -> None:
        if self._part is not None:
            self._part.close()
        super().close()


class SizedStream(io.RawIOBase):
    """A sequential stream that knows how long it must be: a connection that ends early is an error, not the
    end of the file."""

    def __init__(self, stream: BinaryIO, item: Input, offset: int) -> None:
        self._stream = stream
        self._item = item
        self._read = offset
        if offset:
            stream.seek(offset)

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._read

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        try:
            content = self._stream.read(len(buffer))
        except BuildError:
            raise
        except Exception as error:
            read = f"after {self._read:,} of {self._item.bytes:,} bytes"
            raise InputError(f"{self._item.name}: cannot be read {read}: {reason_of(error)}") from error
        buffer[: len(content)] = content
        self._read += len(content)
        if not content and self._read != self._item.bytes:
            raise InputError(
                f"{self._item.name}: ended after {self._read:,} bytes, {self._item.bytes:,} were expected"
            )
        return len(content)


def sequential(stream: BinaryIO, item: Input, offset: int = 0) -> BinaryIO:
    """`stream` from a byte of it on, buffered and checked against the input's size."""
    return cast(BinaryIO, io.BufferedReader(SizedStream(stream, item, offset), buffer_size=1 << 20))


def scheme_of(uri: str) -> str:
    scheme, separator, _ = uri.partition("://")
    return scheme if separator else ""


def _find(path: str, accepts: Callable[[str], bool], folder: Path) -> list[Input]:
    scheme = scheme_of(path)
    if scheme == "":
        return _find_local(path, accepts, folder)
    if scheme == "hf":
        return _find_on_hub(path, accepts)
    if scheme in ("s3", "gs"):
        return _find_in_bucket(path, accepts)
    if scheme not in ("https", "http"):
        known = "expected a local path, http(s)://, s3://, gs:// or hf://datasets/…"
        raise InputError(f"{without_secrets(path)}: unknown scheme; {known}")
    name = unquote(urlsplit(path).path).rsplit("/", 1)[-1]
    if not accepts(name):
        raise InputError(f"{without_secrets(path)}: {name!r} is not of a format this source reads")
    seen = look(path)
    return [Input(path, readable_name(name), seen.size, seen.version, ranges=seen.ranges)]


def _find_in_bucket(path: str, accepts: Callable[[str], bool]) -> list[Input]:
    folder, files = list_bucket(path)
    named = not path.endswith("/") and not glob.has_magic(path)
    inputs = []
    for file in files:
        key = file.uri[len(folder) + 1 :]
        hidden = not named and any(part.startswith(".") for part in key.split("/"))
        if file.uri.endswith("/") or hidden:
            continue
        if accepts(key.rsplit("/", 1)[-1]):
            inputs.append(Input(file.uri, key, file.size, file.version))
        elif named:
            raise InputError(f"{path}: {key!r} is not of a format this source reads")
    if not inputs:
        raise InputError(f"{path}: no object of a format this source reads there")
    return sorted(inputs, key=lambda item: item.uri)


def _find_local(pattern: str, accepts: Callable[[str], bool], folder: Path) -> list[Input]:
    path = folder / pattern
    if path.is_file():
        if not accepts(path.name):
            raise InputError(f"{path}: {path.name!r} is not of a format this source reads")
        return [_local_input(path, path.parent)]
    if path.is_dir():
        files, base = _files_below(path), path
        what = "no file of a format this source reads in this folder"
    else:
        if not glob.has_magic(pattern):
            raise InputError(f"{path}: no such file or folder")
        base = folder / Path(*_parts_before_magic(Path(pattern)))
        # Not `glob`, which passes over folders that may not be read.
        wanted = path.relative_to(base)
        fits = re.compile(glob_regex(wanted.as_posix()))
        levels = (
            None if "**" in wanted.as_posix() else [re.compile(glob_regex(part)) for part in wanted.parts]
        )
        files = (p for p in _files_below(base, levels) if fits.fullmatch(p.relative_to(base).as_posix()))
        what = "no file of a format this source reads fits this pattern"
    hidden = (p for p in files if not any(part.startswith(".") for part in p.relative_to(base).parts))
    inputs = [_local_input(p, base) for p in sorted(hidden) if accepts(p.name)]
    if not inputs:
        raise InputError(f"{path}: {what}")
    return inputs


def _files_below(folder: Path, levels: Sequence[re.Pattern[str]] | None = None) -> Iterator[Path]:
    """All but hidden ones; with `levels` only in folders whose names fit them. InputError where a folder cannot be
    listed: what is in it would be missing, unsaid."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror or error}") from error

    # A link that leads back up would be followed for ever; a pattern of so many levels ends.
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=levels is not None):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if levels is not None:
            level = len(Path(parent).relative_to(folder).parts)
            folders[:] = [
                name for name in folders if level + 1 < len(levels) and levels[level].fullmatch(name)
            ]
        yield from (path for path in (Path(parent, name) for name in names) if path.is_file())


def _parts_before_magic(path: Path) -> list[str]:
    parts = []
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts


def _local_input(path: Path, base: Path) -> Input:
    return Input(str(path), readable_name(path.relative_to(base).as_posix()), path.stat().st_size)


def _find_on_hub(path: str, accepts: Callable[[str], bool]) -> list[Input]:
    inputs = [
        Input(file.uri, file.path, file.size, file.version, sha256=file.sha256)
        for file in list_hub(path)
        if accepts(file.path.rsplit("/", 1)[-1])
    ]
    if not inputs:
        raise InputError(f"{path}: no file of a format this source reads there")
    return inputs


def _unique_keys(inputs: list[Input]) -> list[Input]:
    """Where two files have the same key, both take their folder's name before it, until they differ. InputError
    where they never do."""
    depth = dict.fromkeys(range(len(inputs)), 0)
    while True:
        keys: dict[str, list[int]] = {}
        for index, item in enumerate(inputs):
            keys.setdefault(_longer_key(item, depth[index]), []).append(index)
        clashes = [index for indices in keys.values() if len(indices) > 1 for index in indices]
        if not clashes:
            named = [replace(item, key=_longer_key(item, depth[i])) for i, item in enumerate(inputs)]
            return sorted(named, key=lambda item: item.key)
        growing = [index for index in clashes if depth[index] < len(_folders(inputs[index]))]
        if not growing:
            names = " and ".join(repr(inputs[index].name) for index in clashes[:2])
            raise InputError(f"{names}: cannot be told apart by name; expected names that differ")
        for index in growing:
            depth[index] += 1


def _longer_key(item: Input, folders: int) -> str:
    before = _folders(item)
    return "/".join([*before[len(before) - folders :], item.key])


def _folders(item: Input) -> list[str]:
    return readable_name(item.uri).removesuffix(item.key).removesuffix("/").split("/")


def _local(action: Callable[[], _Result], path: str) -> _Result:
    try:
        return action()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
