"""Files in object stores, s3:// and gs://: listed, and read by ranges of one version."""

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.errors import BuildError, InputError
from pipeline.remote.ranged import RangedFile
from pipeline.storage.connection import connect, errors_named, repeated

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class BucketFile:
    uri: str
    size: int
    version: str


def list_bucket(path: str) -> tuple[str, Iterator[BucketFile]]:
    """(folder, files) that `path` names: the URI of a file; of a folder, with a slash at its end; or a pattern,
    in which `**` is any number of folders. The folder is what the files' names are relative to."""
    import obstore

    scheme, bucket, key = _parts(path)
    magic = _MAGIC.search(key)
    prefix = key[: magic.start()].rpartition("/")[0] if magic else key.rstrip("/")
    folder = prefix if magic or key.endswith("/") or not key else prefix.rpartition("/")[0]
    fits = re.compile(glob_regex(key)) if magic else None

    def files() -> Iterator[BucketFile]:
        store = connect(scheme, bucket)
        with errors_named(path):
            if not magic and not key.endswith("/") and key:
                meta: Any = obstore.head(store, key)
                yield BucketFile(path, meta["size"], _version(meta))
                return
            for page in obstore.list(store, prefix=prefix or None):
                for entry in page:
                    name = entry["path"]
                    if fits is None or fits.fullmatch(name):
                        yield BucketFile(f"{scheme}://{bucket}/{name}", entry["size"], _version(entry))

    return (f"{scheme}://{bucket}/{folder}".rstrip("/"), _as_inputs(path, files()))


def _as_inputs(path: str, files: Iterator[BucketFile]) -> Iterator[BucketFile]:
    try:
        yield from files
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such object; a folder's name ends with a slash") from error
    except InputError:
        raise
    except BuildError as error:
        raise InputError(str(error)) from error


class BucketStream(RangedFile):
    """A stream of one version of an object."""

    def __init__(self, uri: str, size: int, version: str) -> None:
        super().__init__(size)
        self._uri = uri
        self._version = version
        self._scheme, self._bucket, self._key = _parts(uri)

    def read_at(self, position: int, count: int) -> bytes:
        import obstore
        from obstore.exceptions import PreconditionError

        options: Any = {"range": (position, position + count)}
        if self._version:
            options["if_match"] = self._version
        store = connect(self._scheme, self._bucket)

        def get() -> tuple[int, bytes]:
            answer = obstore.get(store, self._key, options=options)
            return answer.meta["size"], bytes(answer.bytes())

        try:
            size, content = repeated(self._uri, get)
        except PreconditionError as error:
            raise self._changed(f"its version is not {self._version} any more") from error
        except FileNotFoundError as error:
            raise self._changed("it is gone") from error
        except InputError:
            raise
        except BuildError as error:
            raise InputError(str(error)) from error
        if size != self._size:
            raise self._changed(f"it had {self._size:,} bytes and has {size:,}")
        if not content:
            raise InputError(f"{self._uri}: ended at byte {position:,} of {self._size:,}")
        return content

    def _changed(self, how: str) -> InputError:
        return InputError(
            f"{self._uri}: changed while the corpus was built: {how}; the same command reads it anew"
        )


def _parts(uri: str) -> tuple[str, str, str]:
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise InputError(f"{uri}: expected {scheme}://BUCKET/…")
    return scheme, bucket, key


def _version(meta: Any) -> str:
    return meta["e_tag"] or meta["version"] or ""


def glob_regex(pattern: str) -> str:
    """Of a glob in which `*` stays in a folder and `**/` crosses them."""
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def spelt(part: str) -> str:
        if part.startswith("["):
            return fnmatch.translate(part).removeprefix("(?s:").removesuffix(")\\Z")
        return known.get(part) or re.escape(part)

    return "".join(map(spelt, re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)))
