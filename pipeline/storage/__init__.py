"""Where a build keeps its work and its output: everything that the stages do with files goes through `Storage`."""

from pathlib import Path

from pipeline.errors import BuildError
from pipeline.storage.interface import LOCK, Lock, Storage, Stores, Writer, changed
from pipeline.storage.local import LocalStorage

__all__ = ["LOCK", "LocalStorage", "Lock", "Storage", "Stores", "Writer", "changed", "open_storage"]


def open_storage(uri: str) -> Storage:
    """The storage at a local path. BuildError for schemes this version does not write to."""
    scheme, separator, _ = uri.partition("://")
    if separator and scheme != "file":
        raise BuildError(
            f"{uri}: cannot write to {scheme}:// yet; expected a local path, or one on a file system that all "
            "machines of the cluster mount (inputs can be read from s3, gs, https and the hub)"
        )
    return LocalStorage(Path(uri.removeprefix("file://")).expanduser().absolute())
