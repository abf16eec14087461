"""Where a build keeps its work and its output: everything that the stages do with files goes through `Storage`."""

from pathlib import Path
from urllib.parse import unquote

from pipeline.errors import BuildError
from pipeline.storage.interface import LOCK, Lock, Storage, Stores, Writer, changed
from pipeline.storage.local import LocalStorage

__all__ = [
    "LOCK",
    "LocalStorage",
    "Lock",
    "Storage",
    "Stores",
    "Writer",
    "changed",
    "open_storage",
]


def open_storage(uri: str) -> Storage:
    """The storage at a local path, at file://, or in an object store at s3:// or gs://. Nothing is read or written.
    BuildError for other schemes, where no bucket is named, and where a package is missing."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return LocalStorage(Path(uri).expanduser().absolute())
    if scheme == "file":
        path = rest.removeprefix("localhost")
        if not path.startswith("/"):
            raise BuildError(f"{uri}: expected file:// and an absolute path, file:///data/corpus")
        return LocalStorage(Path(unquote(path)).absolute())
    if scheme not in ("s3", "gs"):
        raise BuildError(f"{uri}: unknown scheme {scheme}://; expected a local path, file://, s3:// or gs://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if not bucket or "//" in prefix:
        raise BuildError(f"{uri}: expected {scheme}://BUCKET/FOLDER")
    try:
        from pipeline.storage.objects import ObjectStorage
    except ImportError as error:
        extra = {"s3": "s3", "gs": "gcs"}[scheme]
        raise BuildError(f"{uri}: needs {error.name}; `pip install 'longspan[{extra}]'` brings it") from error
    return ObjectStorage(scheme, bucket, prefix)
