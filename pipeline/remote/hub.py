"""Files of datasets on the Hugging Face hub, of one commit.

A dataset is the files that lie in its repository: `datasets` runs no loading scripts any more, so there is nothing
else. They are read as web files, with their ranges and retries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from pipeline.errors import InputError
from pipeline.remote.patience import Passing, patiently, reason_of
from pipeline.remote.web import WebFile

HUB = "hf://datasets/"


@dataclass(frozen=True)
class HubFile:
    uri: str
    path: str
    """In its repository."""
    size: int
    version: str
    sha256: str
    """"" for small files, which the hub has only git's hash of."""


def list_hub(path: str) -> list[HubFile]:
    """The files that `hf://datasets/ORG/NAME[@REVISION][/PATTERN]` names, at the commit that the revision is now.
    Raises InputError."""
    if not path.startswith(HUB) or path.count("/", len(HUB)) < 1:
        raise InputError(f"{path}: expected hf://datasets/ORG/NAME, then perhaps a pattern of files in it")
    organisation, name, *rest = path[len(HUB) :].split("/")
    name, _, revision = name.partition("@")
    repository = f"{organisation}/{name}"
    try:
        return patiently(lambda: _list(repository, revision or "main", "/".join(rest) or "**"))
    except Passing as failure:
        raise InputError(f"{path}: the hub did not list it: {failure}") from failure
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the hub did not list it: {reason_of(error)}{_hint(error)}") from error


def _list(repository: str, revision: str, pattern: str) -> list[HubFile]:
    from huggingface_hub import HfApi, HfFileSystem
    from huggingface_hub.errors import HfHubHTTPError

    try:
        commit = HfApi().dataset_info(repository, revision=revision).sha
        place = f"datasets/{repository}@{commit}"
        found = cast(dict[str, Any], HfFileSystem().glob(f"{place}/{pattern}", detail=True))
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status == 429 or status >= 500:
            raise Passing(f"the hub says {status}") from error
        raise
    except Exception as error:
        if type(error).__module__.startswith(("httpx", "httpcore")):  # the client's own errors of the network
            raise Passing(reason_of(error) or type(error).__name__) from error
        raise
    files = []
    for file, details in found.items():
        if details["type"] == "file":
            sha256 = (details.get("lfs") or {}).get("sha256") or ""
            inside = file[len(place) + 1 :]
            files.append(
                HubFile(f"hf://{file}", inside, details["size"], sha256 or details["blob_id"], sha256)
            )
    return files


def _hint(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", 0)
    gated = "; it may be gated or private: accept its terms on its page and set HF_TOKEN, or `hf auth login`"
    return gated if status in (401, 403) else ""


def open_hub(uri: str, size: int, end: int | None = None) -> WebFile:
    """A stream of a file whose URI names a commit: its address is its version."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    organisation, named, path = uri.removeprefix(HUB).split("/", 2)
    name, _, commit = named.partition("@")
    address = hf_hub_url(f"{organisation}/{name}", path, repo_type="dataset", revision=commit)
    headers = cast(Mapping[str, str], build_hf_headers())
    return WebFile(address, size, "", headers, name=uri, end=end)
