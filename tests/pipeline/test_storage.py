"""One contract for a local folder, two S3 servers and Google's interface; then what each has of its own."""

import hashlib
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import BuildError
from pipeline.storage import LocalStorage, Storage, cache, connection, lease, objects, open_storage
from pipeline.storage.objects import ObjectStorage
from tests.pipeline.object_store import STORES, ObjectStore, Servers, object_stores, serve, use

__all__ = ["object_stores"]  # a fixture

_names = st.lists(
    st.text(
        st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\"), min_size=1, max_size=12
    ).filter(lambda part: part not in (".", "..")),
    min_size=1,
    max_size=3,
).map("/".join)
_sizes = st.integers(0, 3 << 20)
_contents = st.one_of(st.binary(max_size=40), _sizes.map(lambda size: random.Random(size).randbytes(size)))


@pytest.fixture(params=("local", *STORES))
def storage(
    request: pytest.FixtureRequest, object_stores: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Storage:
    """An empty storage of each kind."""
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    if request.param == "local":
        return open_storage(str(tmp_path / "store/a b#c"))
    store = object_stores.get(request.param)
    use(store, monkeypatch)
    return open_storage(f"{store.uri}/{tmp_path.name}/a b#c")


@pytest.fixture(params=STORES)
def remote(
    request: pytest.FixtureRequest, object_stores: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ObjectStorage:
    """An empty storage in each object store."""
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    store = object_stores.get(request.param)
    use(store, monkeypatch)
    opened = open_storage(f"{store.uri}/{tmp_path.name}")
    assert isinstance(opened, ObjectStorage)
    return opened


@contextmanager
def process(program: str, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A Python program beside this one, with the storage at its first argument; killed at the end of the block."""
    opening = "import sys\nfrom pipeline.storage import open_storage\nstorage = open_storage(sys.argv[1])\n"
    child = subprocess.Popen(
        [sys.executable, "-c", opening + program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            pipe.close()


def says(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def damage(storage: Storage, name: str, content: bytes) -> None:
    """Changes a file behind the storage's back: what is said of it stays what it was."""
    if isinstance(storage, ObjectStorage):
        import obstore

        version = storage._version(name)
        assert version is not None
        attributes = {"sha256": str(version.sha256)}
        obstore.put(storage._store, storage._key(name), content, attributes=attributes, use_multipart=False)
    else:
        Path(storage.where(name)).write_bytes(content)


def arrow_file(batches: int, rows: int) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, pa.schema([("x", pa.int64())])) as writer:
        for i in range(batches):
            writer.write_batch(pa.record_batch({"x": pa.array(range(i * rows, (i + 1) * rows))}))
    return sink.getvalue()


def test_a_file_is_what_was_published_last(storage: Storage) -> None:
    assert storage.is_empty()
    assert storage.size("a/x") is None
    assert storage.list("a") == []
    for content in (b"first", b"second", b"second", b""):
        written = storage.publish("a/x", content)
        assert written.sha256 == hashlib.sha256(content).hexdigest()
        assert written.bytes == len(content) == storage.size("a/x")
        assert storage.read("a/x") == content
        assert storage.holds("a/x", len(content), written.sha256)
    assert not storage.holds("a/x", 1, written.sha256)
    assert not storage.holds("a/y", 0, written.sha256)
    assert not storage.is_empty()
    storage.remove("a/x")
    storage.remove("a/x")
    assert storage.is_empty()
    for missing in (storage.read, storage.open):
        with pytest.raises(FileNotFoundError, match="a/x"):
            missing("a/x")
    for look in (storage.local_copy, storage.open_arrow, storage.open_arrow_ranged, storage.verify):
        with pytest.raises(FileNotFoundError, match="a/x"):
            look("a/x", written.sha256)


def test_a_list_has_the_files_of_one_folder(storage: Storage) -> None:
    names = [f"many/{number}" for number in range(120)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.publish(name, b""), names))
    storage.publish("many/folder/x", b"")
    storage.publish("many2", b"")
    with storage.locked():
        assert storage.list("many") == sorted(names)
        assert storage.list("") == ["many2"]
        assert storage.under("many").list("folder") == ["folder/x"]
    assert storage.list("man") == []


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(_names, _contents, min_size=1, max_size=4))
def test_any_name_takes_any_content(storage: Storage, files: dict[str, bytes]) -> None:
    folders = {name[:end] for name in files for end in range(len(name)) if name[end] == "/"}
    files = {name: content for name, content in files.items() if name not in folders}
    try:
        for name, content in files.items():
            storage.publish(name, content)
        for name, content in files.items():
            assert storage.read(name) == content
            assert storage.local_copy(name, hashlib.sha256(content).hexdigest()).read_bytes() == content
            assert name in storage.list(name.rpartition("/")[0])
    finally:
        storage.destroy()
    assert storage.is_empty()


@pytest.mark.parametrize("name", ["", "/x", "x/", "a//b", "../x", "a/../../x", ".", "a\0b", "a\nb", "a\\b"])
def test_a_name_outside_of_the_storage_is_refused(name: str, tmp_path: Path) -> None:
    for storage in (open_storage(str(tmp_path)), open_storage("s3://bucket/folder")):
        publish = partial(storage.publish, content=b"")
        for action in (storage.read, storage.size, storage.remove, storage.under, storage.where, publish):
            with pytest.raises(ValueError, match="relative to the storage"):
                action(name)  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 1000, 5 << 20, 20 << 20])
def test_a_stream_is_published_at_its_clean_end(
    size: int, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "SINGLE", 1 << 20)
    content = random.Random(size).randbytes(size)

    def fail() -> None:
        with storage.create("x") as writer:
            writer.write(content or b"1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert storage.is_empty()
    for _ in range(2):  # again: it is there already
        with storage.create("x") as writer:
            for start in range(0, size, 1 << 20):
                writer.write(memoryview(content)[start : start + (1 << 20)])
            assert storage.size("x") in (None, size)
        assert writer.written == storage.publish("y", content)
        assert storage.size("x") == size
    storage.verify("x", writer.written.sha256)
    storage.verify("y", writer.written.sha256)
    assert storage.list("") == ["x", "y"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reads=st.lists(st.tuples(st.integers(0, 320_000), st.integers(-1, 320_000)), max_size=5))
def test_ranges_are_those_of_the_content(storage: Storage, reads: list[tuple[int, int]]) -> None:
    content = random.Random(1).randbytes(300_000)
    storage.publish("x", content)
    expected = io.BytesIO(content)
    with storage.open("x") as file:
        for position, length in reads:
            assert file.seek(position) == expected.seek(position)
            assert file.read(length) == expected.read(length)
            assert file.tell() == expected.tell()
        assert file.seek(-5, os.SEEK_END) == len(content) - 5
        assert file.read() == content[-5:]


def test_arrow_files_are_read_mapped_or_by_batches(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    content = arrow_file(batches=20, rows=50_000)
    with storage.create("x.arrow") as sink, pa.ipc.new_file(sink, pa.schema([("x", pa.int64())])) as writer:
        with pa.ipc.open_file(content) as source:
            for i in range(source.num_record_batches):
                writer.write_batch(source.get_batch(i))
    assert storage.read("x.arrow") == content.to_pybytes()
    sha256 = sink.written.sha256
    expected = pa.ipc.open_file(content)
    ranges = []
    by_range = objects.ObjectFile._range
    monkeypatch.setattr(
        objects.ObjectFile, "_range", lambda self, a, b: ranges.append(b - a) or by_range(self, a, b)
    )
    few = storage.open_arrow_ranged("x.arrow", sha256)
    assert few.num_record_batches == 20
    assert few.get_batch(7) == expected.get_batch(7)
    if isinstance(storage, ObjectStorage):
        assert 0 < sum(ranges) < content.size / 8
        assert len(ranges) <= 4
    assert storage.open_arrow("x.arrow", sha256).read_all() == expected.read_all()


@pytest.mark.parametrize("reader", ["local_copy", "open_arrow", "verify"])
def test_a_damaged_file_is_named_and_removed(reader: str, storage: Storage) -> None:
    content = arrow_file(2, 1000).to_pybytes()
    written = storage.publish("f/x.arrow", content)
    damage(storage, "f/x.arrow", content[:-20] + b"?" + content[-19:])
    assert storage.holds("f/x.arrow", written.bytes, written.sha256)
    with pytest.raises(BuildError, match=rf"f/x\.arrow: its sha256 is .*, written was {written.sha256}"):
        getattr(storage, reader)("f/x.arrow", written.sha256)
    assert storage.is_empty()
    storage.publish("f/x.arrow", content)
    getattr(storage, reader)("f/x.arrow", written.sha256)


def test_another_content_than_asked_for_is_refused_by_ranged_readers(storage: Storage) -> None:
    storage.publish("x.arrow", arrow_file(1, 10))
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(BuildError, match=other):
        storage.open_arrow_ranged("x.arrow", other)
    assert storage.is_empty()


def test_a_small_damaged_object_is_not_read(remote: ObjectStorage) -> None:
    remote.publish("x.json", b"{}")
    damage(remote, "x.json", b"[]")
    with pytest.raises(BuildError, match=r"x\.json: its sha256 is"):
        remote.read("x.json")


def test_an_object_without_its_checksum_is_held_by_its_size(remote: ObjectStorage) -> None:
    """Other tools that copy a corpus may lose metadata."""
    import obstore

    obstore.put(remote._store, remote._key("x"), b"12345")
    assert remote.holds("x", 5, hashlib.sha256(b"12345").hexdigest())
    assert not remote.holds("x", 4, hashlib.sha256(b"1234").hexdigest())
    remote.publish("x", b"12345")
    assert not remote.holds("x", 5, hashlib.sha256(b"abcde").hexdigest())


def test_processes_publish_one_name_at_one_time(storage: Storage) -> None:
    """Four processes, each unit a hundred times over: the same bytes, whole at any moment."""
    program = """
sys.stdin.readline()
for round in range(25):
    for number in range(4):
        storage.publish(f"unit/{number}", bytes([number]) * (1000 + number))
print("done")
"""
    children = [process(program, storage.uri) for _ in range(4)]
    with children[0] as a, children[1] as b, children[2] as c, children[3] as d:
        for child in (a, b, c, d):
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        while any(child.poll() is None for child in (a, b, c, d)):
            for name in storage.list("unit"):
                number = int(name[-1])
                assert storage.read(name) == bytes([number]) * (1000 + number)
        assert [says(child) for child in (a, b, c, d)] == ["done"] * 4
    assert storage.list("unit") == [f"unit/{number}" for number in range(4)]


def test_two_builds_that_write_different_content_are_told(
    remote: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that one looks at the object, the other replaces it."""
    import obstore

    remote.publish("x", b"0")
    look = ObjectStorage._version

    def racing(storage: ObjectStorage, name: str) -> Any:
        seen = look(storage, name)
        obstore.put(storage._store, storage._key(name), os.urandom(8))
        return seen

    monkeypatch.setattr(ObjectStorage, "_version", racing)
    with pytest.raises(BuildError, match="somebody else is writing other content here"):
        remote.publish("x", b"1")


_HOLD = """
if "://" in storage.uri:
    from pipeline.storage import lease
    lease.PERIOD = float(sys.argv[2])
with storage.locked() as lock:
    print("held", flush=True)
    for line in sys.stdin:
        lock.check()
        print("still held", flush=True)
"""


def test_one_build_at_a_time(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "PERIOD", 5.0)
    with process(_HOLD, storage.uri, "5") as holder:
        assert says(holder) == "held"
        with pytest.raises(BuildError, match="another build is writing here"), storage.locked():
            pass
        assert holder.stdin is not None
        holder.stdin.write("?\n")
        holder.stdin.flush()
        assert says(holder) == "still held"
        holder.stdin.close()
        assert holder.wait() == 0
    with storage.locked() as lock:
        lock.check()
    with pytest.raises(ZeroDivisionError), storage.locked():
        _ = 1 / 0
    assert _everything(storage) == []


def test_a_lock_ends_with_its_killed_holder(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "PERIOD", 3.0)
    with process(_HOLD, storage.uri, "3") as holder:
        assert says(holder) == "held"
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with storage.locked() as lock:
            lock.check()
        if isinstance(storage, ObjectStorage):
            assert f"took over from process {holder.pid}" in capsys.readouterr().out
    assert _everything(storage) == []


def test_a_holder_that_stood_still_finds_its_lease_lost(
    remote: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PERIOD", 3.0)
    with process(_HOLD, remote.uri, "3") as holder:
        assert says(holder) == "held"
        os.kill(holder.pid, signal.SIGSTOP)
        with remote.locked() as lock:
            os.kill(holder.pid, signal.SIGCONT)
            assert holder.stdin is not None
            holder.stdin.write("?\n")
            holder.stdin.flush()
            assert says(holder) == ""
            assert holder.wait() == 1
            lock.check()
    assert _everything(remote) == []


def test_a_lost_lease_is_said_at_the_end_of_the_block(
    remote: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore

    monkeypatch.setattr(lease, "PERIOD", 3.0)
    with pytest.raises(BuildError, match="another one began to write here"), remote.locked():
        obstore.put(remote._store, remote._key(".lock"), b"another's")
    with pytest.raises(ZeroDivisionError), remote.locked():
        raise ZeroDivisionError


def test_a_removed_lock_file_is_noticed(tmp_path: Path) -> None:
    with LocalStorage(tmp_path).locked() as lock:
        lock.check()
        (tmp_path / ".lock").unlink()
        with pytest.raises(BuildError, match="was removed while a build was writing here"):
            lock.check()
        (tmp_path / ".lock").write_text("another's")
        with pytest.raises(BuildError, match="was removed"):
            lock.check()
    assert (tmp_path / ".lock").read_text() == "another's"


def _everything(storage: Storage) -> list[str]:
    if isinstance(storage, ObjectStorage):
        return [key for page in storage._below(1000) for key in page]
    return [str(path) for path in Path(storage.uri).rglob("*")]


def test_a_store_without_conditions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve("gcs", tmp_path, "unconditional") as store:
        use(store, monkeypatch)
        storage = open_storage(f"{store.uri}/x")
        with pytest.raises(BuildError, match="does not honour conditional writes"), storage.locked():
            pass
        assert _everything(storage) == []


def test_passing_failures_are_overcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers every third request with 503."""
    monkeypatch.setattr(objects, "SINGLE", 1 << 20)
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    with serve("gcs", tmp_path, "failing") as store:
        use(store, monkeypatch)
        storage = open_storage(f"{store.uri}/x")
        with storage.locked():
            for number in range(10):
                content = random.Random(number).randbytes(number << 20)
                written = storage.publish(str(number), content)
                assert storage.local_copy(str(number), written.sha256).read_bytes() == content
            assert len(storage.list("")) == 10
            storage.destroy()
        assert _everything(storage) == []


@pytest.mark.parametrize("how", ["hanging", "deaf"])
def test_writes_without_an_answer_are_made_again(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that leaves the first request to write or remove each object unanswered, done or not. A build failed
    where a switch lost one packet: obstore does not repeat conditional writes whose answer is lost."""
    monkeypatch.setattr(connection, "REQUEST", 0.5)
    monkeypatch.setattr(objects, "SINGLE", 1 << 20)
    with serve("gcs", tmp_path, how) as store:
        use(store, monkeypatch)
        storage = open_storage(f"{store.uri}/x")
        with storage.locked() as lock:
            for content in (b"first", b"second", random.Random(0).randbytes(9 << 20)):
                written = storage.publish("x", content)
                assert storage.holds("x", len(content), written.sha256)
                storage.verify("x", written.sha256)
            lock.check()
            storage.remove("x")
            storage.publish("y", b"1")
            storage.destroy()
        assert _everything(storage) == []


def test_a_store_that_answers_no_write_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REQUEST", 0.2)
    monkeypatch.setattr(connection, "PATIENCE", 1.0)
    with serve("gcs", tmp_path, "silent") as store:
        use(store, monkeypatch)
        storage = open_storage(f"{store.uri}/x")
        with pytest.raises(BuildError, match=r"x/y: .*error sending request"):
            storage.publish("y", b"1")
        assert _everything(storage) == []


def test_an_object_may_take_longer_to_read_than_a_request(
    object_stores: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read by one request, which was cut off at its end of time, although bytes came all the while."""
    store = object_stores.get("gcs")
    use(store, monkeypatch)
    monkeypatch.setattr(connection.connect.__wrapped__, "__defaults__", (2.0,))
    storage = open_storage(f"{store.uri}/{tmp_path.name}")
    assert isinstance(storage, ObjectStorage)
    monkeypatch.setattr(objects, "STREAMED", 4 << 20)
    written = storage.publish("x", random.Random(0).randbytes(31 << 20))
    digest = hashlib.sha256()
    for chunk in storage._stream("x"):
        digest.update(chunk)
        time.sleep(0.4)
    assert digest.hexdigest() == written.sha256


def test_a_kill_in_the_middle_of_a_write_leaves_nothing_under_the_name(storage: Storage) -> None:
    program = """
import time
from pipeline.shards import WrittenFile
def parts():
    for _ in range(3):
        yield bytes(8 << 20)
    print("in the middle", flush=True)
    time.sleep(1000)
if sys.argv[2] == "local":
    with storage.create("x") as writer:
        for part in parts():
            writer.write(part)
else:
    storage._put_parts("x", parts, WrittenFile(64 << 20, "0" * 64))
"""
    with process(program, storage.uri, "local" if isinstance(storage, LocalStorage) else "remote") as writer:
        assert says(writer) == "in the middle"
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    assert storage.size("x") is None
    assert storage.list("") == []
    assert storage.is_empty()
    storage.remove_leftovers()
    assert _everything(storage) == []


def test_destroy_removes_what_is_its_own(storage: Storage) -> None:
    for folder in ("work", "work2"):
        for name in ("a/b/c", "a/b2", "x"):
            storage.under(folder).publish(name, b"1")
    with storage.under("work").locked():
        storage.under("work").destroy()
    assert storage.list("work") == []
    assert storage.under("work").is_empty()
    assert sorted(storage.list("work2") + storage.list("work2/a")) == ["work2/a/b2", "work2/x"]
    assert len(_everything(storage.under("work2"))) >= 3


def test_a_worker_that_outlives_its_build_does_no_harm(tmp_path: Path) -> None:
    """It writes while the folder is removed, and after: neither fails the removal, nor brings the folder back."""
    storage = open_storage(str(tmp_path / "work"))
    storage.publish("x", b"1")
    program = """
from itertools import count
storage = storage.only_while_there()
try:
    for number in count():
        storage.publish(f"{number % 7}/{number % 3}/{number}", b"1")
        if number == 100:
            print("writing", flush=True)
except OSError as error:
    print(error, flush=True)
"""
    with process(program, storage.uri) as writer:
        assert says(writer) == "writing"
        storage.destroy()
        assert "work" in says(writer)
        assert writer.wait(timeout=60) == 0
    assert not (tmp_path / "work").exists()


def test_a_bucket_is_not_destroyed(remote: ObjectStorage) -> None:
    remote.publish("x", b"1")
    bucket = open_storage(f"{remote.scheme}://{remote.bucket}/")
    with pytest.raises(BuildError, match="a whole bucket will not be removed"):
        bucket.destroy()
    with pytest.raises(BuildError, match="will not be removed"):
        open_storage("/").destroy()
    assert remote.read("x") == b"1"


def test_a_storage_travels_without_secrets(storage: Storage) -> None:
    storage.publish("x", b"1")
    pickled = pickle.dumps(storage)
    assert b"secret" not in pickled
    assert len(pickled) < 500
    again = pickle.loads(pickled)  # noqa: S301
    assert again == storage == open_storage(storage.uri)
    assert again.read("x") == b"1"
    with process("print(storage.read('x').decode())", storage.uri) as child:
        assert says(child) == "1"


def test_the_cache_keeps_what_was_used_last(remote: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSPAN_CACHE_GB", "0.0025")
    monkeypatch.setattr(cache, "GRACE", -1.0)
    written = {name: remote.publish(name, random.Random(name).randbytes(1_000_000)) for name in "abc"}
    copies = {name: remote.local_copy(name, written[name].sha256) for name in "ab"}
    remote.local_copy("a", written["a"].sha256)
    copies["c"] = remote.local_copy("c", written["c"].sha256)
    assert [name for name in "abc" if copies[name].exists()] == ["a", "c"]
    assert {path.name for path in cache.folder().iterdir()} == {
        written["a"].sha256,
        written["c"].sha256,
        "locks",
    }
    assert remote.local_copy("b", written["b"].sha256).read_bytes() == remote.read("b")
    monkeypatch.setenv("LONGSPAN_CACHE_GB", "much")
    remote.publish("d", b"d")
    with pytest.raises(BuildError, match="LONGSPAN_CACHE_GB: expected a number"):
        remote.local_copy("d", hashlib.sha256(b"d").hexdigest())


def test_a_damaged_copy_is_fetched_again(remote: ObjectStorage) -> None:
    written = remote.publish("x", b"right")
    copy = remote.local_copy("x", written.sha256)
    copy.write_bytes(b"wrong")
    assert remote.local_copy("x", written.sha256) == copy
    assert copy.read_bytes() == b"right"


def test_processes_share_one_copy(remote: ObjectStorage) -> None:
    """All ask at one time; a copy is whole before it has its name, and a dead process's part is in nobody's way."""
    content = random.Random(0).randbytes(20 << 20)
    written = remote.publish("x", content)
    (cache.folder() / f"{written.sha256}.part").write_bytes(b"left by a killed process")
    program = "print(storage.local_copy('x', sys.argv[2]).stat().st_ino)"
    with process(program, remote.uri, written.sha256) as a, process(program, remote.uri, written.sha256) as b:
        inodes = {says(a), says(b)}
    copy = remote.local_copy("x", written.sha256)
    assert inodes == {str(copy.stat().st_ino)}
    assert copy.read_bytes() == content
    assert {path.name for path in cache.folder().iterdir()} == {written.sha256, "locks"}


def test_an_object_replaced_while_it_is_read_is_said(remote: ObjectStorage) -> None:
    remote.publish("x", bytes(20 << 20))
    with remote.open("x") as file:
        assert file.read(1) == b"\0"
        remote.publish("x", bytes(21 << 20))
        file.seek(15 << 20)
        with pytest.raises(BuildError, match="was replaced while it was being read"):
            file.read(1)


def test_a_stream_needs_little_memory(storage: Storage) -> None:
    """300 MB; in addition to what the process has before, parts on their way and a write's buffers."""
    program = """
import resource
with storage.create("warm") as writer:
    writer.write(bytes(1 << 20))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
block = bytes(1 << 20)
with storage.create("x") as writer:
    for _ in range(300):
        writer.write(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    with process(program, storage.uri) as child:
        grown = int(says(child)) * 1024
    assert storage.size("x") == 300 << 20
    assert grown < 150e6
    storage.destroy()


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files is refused by the kernel at the same place as a full disk's."""
    program = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for write in (lambda: storage.publish("x", bytes(2 << 20)), lambda: storage.publish("x", bytes((1 << 20) + 10))):
    try:
        write()
    except OSError as error:
        print(error.filename, flush=True)
"""
    with process(program, str(tmp_path)) as child:
        assert says(child) == str(tmp_path / "x")
        assert says(child) == str(tmp_path / "x")
        assert child.wait() == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "package", "extra"),
    [
        ("s3://bucket/x", "obstore", "s3"),
        ("gs://bucket/x", "obstore", "gcs"),
        ("s3://bucket/x", "boto3", "s3"),
        ("gs://bucket/x", "google.auth", "gcs"),
    ],
)
def test_a_missing_package_is_told_with_its_remedy(uri: str, package: str, extra: str) -> None:
    program = f"""
import sys
sys.modules[{package!r}] = None
from pipeline.errors import BuildError
from pipeline.storage import open_storage
try:
    open_storage({uri!r}).size("x")
except BuildError as error:
    print(error)
"""
    said = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    assert f"{package}; `pip install 'longspan[{extra}]'`" in said


def test_without_object_stores_nothing_of_theirs_is_needed(tmp_path: Path) -> None:
    """The command once could not start without the extras: a module imported one of theirs at its top."""
    program = f"""
import sys
sys.modules.update(dict.fromkeys(("obstore", "boto3", "google.auth")))
import pipeline.build_corpus, pipeline.fetch, pipeline.shards, pipeline.verify.__main__, pipeline.show
from pipeline.storage import open_storage
open_storage({str(tmp_path)!r}).publish("x", b"1")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (tmp_path / "x").read_bytes() == b"1"


def test_a_bucket_that_is_not_there_is_named(remote: ObjectStorage) -> None:
    other = ObjectStorage(remote.scheme, "longspan-nowhere", "x")
    with pytest.raises(BuildError, match="longspan-nowhere"):
        other.publish("x", b"1")


def test_what_names_and_passwords_find_there(
    object_stores: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SeaweedFS checks them: a profile's are as good as the environment's, wrong ones are refused and not printed."""
    store = object_stores.get("seaweedfs")
    config = "".join(
        f"[profile {name}]\nregion = eu-north-1\nendpoint_url = {store.environment['AWS_ENDPOINT_URL']}\n"
        f"aws_access_key_id = key\naws_secret_access_key = {secret}\n"
        for name, secret in (("good", "secret"), ("bad", "s3cr3t"))
    )
    (tmp_path / "config").write_text(config)
    clean = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": str(tmp_path / "config")}
    clean["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    use(ObjectStore("", "", {**clean, "AWS_PROFILE": "good"}), monkeypatch)
    storage = open_storage(f"{store.uri}/{tmp_path.name}")
    storage.publish("x", b"1")
    assert storage.read("x") == b"1"
    use(ObjectStore("", "", {**clean, "AWS_PROFILE": "bad"}), monkeypatch)
    with pytest.raises(BuildError, match="refuses access") as refused:
        storage.read("x")
    assert "s3cr3t" not in str(refused.value)
    use(ObjectStore("", "", clean), monkeypatch)
    with pytest.raises(BuildError, match="no credentials; expected AWS_ACCESS_KEY_ID"):
        storage.read("x")


def test_a_store_that_is_not_reached_is_named(remote: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "STORAGE_EMULATOR_HOST" if remote.scheme == "gs" else "AWS_ENDPOINT_URL"
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    connection.connect.cache_clear()
    monkeypatch.setattr(connection.connect.__wrapped__, "__defaults__", (1.0,))
    monkeypatch.setattr(connection, "PATIENCE", 1.0)
    with pytest.raises(BuildError, match=remote.bucket):
        remote.read("x")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("gs://bucket/a b", "gs://bucket/a b"),
        ("file:///data/a%20b", "/data/a b"),
        ("/data/a", "/data/a"),
    ],
)
def test_uris(uri: str, expected: str) -> None:
    assert open_storage(uri).uri == expected
    assert open_storage(uri).where("x/y") == f"{expected}/x/y"


@pytest.mark.parametrize("uri", ["s3://", "gs:///x", "ftp://host/x", "file://host/x", "s3://bucket/a//b"])
def test_uris_that_are_refused(uri: str) -> None:
    with pytest.raises(BuildError, match="expected"):
        open_storage(uri)


def test_a_lease_says_who_holds_it(remote: ObjectStorage) -> None:
    with remote.locked():
        content = json.loads(remote.read(".lock"))
        assert f"process {os.getpid()} on " in content["holder"]
