"""Inputs: finding the files that a path names, what version each is of, and opening them.

A path is a local file, folder or glob; an https://, s3:// or gs:// URI of one file; or
`hf://datasets/ORG/NAME[@REVISION][/PATTERN]`, files of a dataset on the Hugging Face hub.
"""

import glob
import io
import os
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import unquote, urlsplit

from pipeline.documents import readable_name
from pipeline.errors import InputError
from pipeline.shards import file_sha256
from pipeline.storage import Storage

_HUB = "hf://datasets/"
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
    """`item` with its size and version as they are now. InputError where it is gone."""
    scheme = _scheme(item.uri)
    if scheme == "":
        return replace(item, version="sha256:" + _local(lambda: file_sha256(Path(item.uri)), item.uri))
    if scheme == "hf" or item.version:
        return item  # the listing already said it
    size, version = _remote_version(item.uri)
    return replace(item, bytes=size, version=version)


def open_input(item: Input, work: Storage | None = None) -> BinaryIO:
    """A binary stream of the input's bytes as they are stored: no decompression."""
    scheme = _scheme(item.uri)
    if scheme == "":
        return _local(lambda: Path(item.uri).open("rb"), item.uri)
    try:
        if scheme == "hf":
            from huggingface_hub import HfFileSystem

            return HfFileSystem().open(item.uri, "rb")
        import smart_open

        return smart_open.open(item.uri, "rb", compression="disable")
    except Exception as error:  # each transport has its own family of errors
        raise InputError(f"{item.uri}: cannot be read: {_first_line(error)}") from error


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
        except Exception as error:  # each transport has its own family of errors
            read = f"after {self._read:,} of {self._item.bytes:,} bytes"
            raise InputError(f"{self._item.uri}: cannot be read {read}: {_first_line(error)}") from error
        buffer[: len(content)] = content
        self._read += len(content)
        if not content and self._read != self._item.bytes:
            raise InputError(
                f"{self._item.uri}: ended after {self._read:,} bytes, {self._item.bytes:,} were expected"
            )
        return len(content)


def sequential(stream: BinaryIO, item: Input, offset: int = 0) -> BinaryIO:
    """`stream` from a byte of it on, buffered and checked against the input's size."""
    return cast(BinaryIO, io.BufferedReader(SizedStream(stream, item, offset), buffer_size=1 << 20))


def _scheme(uri: str) -> str:
    scheme, separator, _ = uri.partition("://")
    return scheme if separator else ""


def _find(path: str, accepts: Callable[[str], bool], folder: Path) -> list[Input]:
    scheme = _scheme(path)
    if scheme == "":
        return _find_local(path, accepts, folder)
    if scheme == "hf":
        return _find_on_hub(path, accepts)
    if scheme not in ("https", "http", "s3", "gs"):
        raise InputError(f"{path}: unknown scheme; expected a local path, https, s3, gs or hf://datasets/…")
    name = unquote(urlsplit(path).path).rsplit("/", 1)[-1]
    if not accepts(name):
        raise InputError(f"{path}: {name!r} is not of a format this source reads")
    size, version = _remote_version(path)
    return [Input(path, name, size, version)]


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
        # Path.glob refuses absolute patterns.
        fitting = glob.glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207
        files = (p for p in (folder / name for name in fitting) if p.is_file())
        what = "no file of a format this source reads fits this pattern"
    hidden = (p for p in files if not any(part.startswith(".") for part in p.relative_to(base).parts))
    inputs = [_local_input(p, base) for p in sorted(hidden) if accepts(p.name)]
    if not inputs:
        raise InputError(f"{path}: {what}")
    return inputs


def _files_below(folder: Path) -> Iterator[Path]:
    """All but hidden ones. InputError where a folder cannot be listed: what is in it would be missing, unsaid."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror or error}") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
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
    from huggingface_hub import HfFileSystem

    if not path.startswith(_HUB) or path.count("/", len(_HUB)) < 1:
        raise InputError(f"{path}: expected hf://datasets/ORG/NAME, then perhaps a pattern of files in it")
    organisation, name, *rest = path[len(_HUB) :].split("/")
    repository = f"datasets/{organisation}/{name}"
    try:
        files = cast(
            dict[str, Any], HfFileSystem().glob("/".join([repository, *(rest or ["**"])]), detail=True)
        )
    except Exception as error:
        raise InputError(f"{path}: the hub did not list it: {_first_line(error)}") from error
    inputs = []
    for file, details in files.items():
        if details["type"] == "file" and accepts(file.rsplit("/", 1)[-1]):
            version = (details.get("lfs") or {}).get("sha256") or details["blob_id"]
            inputs.append(Input(f"hf://{file}", file[len(repository) + 1 :], details["size"], version))
    if not inputs:
        raise InputError(f"{path}: no file of a format this source reads there")
    return inputs


def _remote_version(uri: str) -> tuple[int, str]:
    """(bytes, version) as the server states them."""
    try:
        parts = urlsplit(uri)
        if parts.scheme in ("http", "https"):
            request = urllib.request.Request(uri, method="HEAD")  # noqa: S310 - the scheme was checked
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                headers = answer.headers
            version = headers.get("ETag") or headers.get("Last-Modified") or "unversioned"
            return int(headers["Content-Length"]), version
        key = parts.path.lstrip("/")
        if parts.scheme == "s3":
            import boto3  # type: ignore[import-not-found, import-untyped, unused-ignore]

            answer = boto3.client("s3").head_object(Bucket=parts.netloc, Key=key)
            return answer["ContentLength"], answer["ETag"]
        from google.cloud import storage  # type: ignore[import-untyped, unused-ignore]

        blob = storage.Client().bucket(parts.netloc).blob(key)
        blob.reload()
        return blob.size, blob.etag
    except ImportError as error:
        extra = "s3" if _scheme(uri) == "s3" else "gcs"
        raise InputError(f"{uri}: needs `pip install 'longspan[{extra}]'`: {error}") from error
    except Exception as error:
        raise InputError(f"{uri}: cannot be reached: {_first_line(error)}") from error


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
            names = " and ".join(repr(inputs[index].uri) for index in clashes[:2])
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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
