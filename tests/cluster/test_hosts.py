"""`ray up` on hosts reached over ssh, both jobs through the head, and hosts whose power fails, the head's too.

The hosts are namespaces of this machine (`hosts`), the cluster is onprem.yaml with its placeholders filled in; only
what would need the internet, installing the project, is replaced: by this environment.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen

import psutil
import pytest
import yaml

from tests.cluster.drills import in_drills
from tests.cluster.hosts import HOME, ROOT, Hosts, Machine, hosts, missing
from tests.corpora import build_small_corpus, lasting_build, made_up_documents
from tests.pipeline.conftest import contents
from tests.trainer.launcher import run_config

SEED = 20041120
STEPS = 1000
PATIENCE = 180  # seconds for what takes twenty on an idle machine
HEAD, WORKERS = "head", ("one", "two")
INSTALLING = "~/longspan/.venv/bin/pip install"
# As the runbook exports them.
VARIABLES = {
    "CLUSTER": f"{HOME}/onprem.yaml",
    "RAY_AUTH_MODE": "token",
    "RAY_UP_enable_autoscaler_v2": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
IN_THE_ENVIRONMENT = "export PATH=~/longspan/.venv/bin:$PATH RAY_AUTH_MODE=token"
SUBMIT = "ray job submit --no-wait --runtime-env ~/runtime_env.yaml --working-dir . --submission-id"
BUCKET, S3_PORT, SECRET = "longspan", 5000, "a-secret-of-the-bucket"
# In and out of the bucket, on your machine.
COPY_IN = """
import boto3, pathlib
bucket = boto3.resource("s3").Bucket("{bucket}")
for path in pathlib.Path("{folder}").rglob("*"):
    if path.is_file():
        bucket.upload_file(str(path), f"{prefix}/{{path.relative_to('{folder}').as_posix()}}")
"""
COPY_OUT = """
import boto3, pathlib
for found in boto3.resource("s3").Bucket("{bucket}").objects.filter(Prefix="{prefix}/"):
    path = pathlib.Path("{folder}") / found.key.removeprefix("{prefix}/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(found.get()["Body"].read())
"""

pytestmark = [
    pytest.mark.drill,
    pytest.mark.skipif(bool(missing()), reason=f"hosts of namespaces: {missing()}"),
    pytest.mark.timeout(1200),
]


def cluster_file(made: Hosts) -> str:
    """onprem.yaml for these hosts."""
    text = (ROOT / "cluster" / "onprem.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    config["provider"]["head_ip"] = made.named[HEAD].address
    config["provider"]["worker_ips"] = [made.named[name].address for name in WORKERS]
    config["auth"]["ssh_user"] = "root"
    making, installing = config["setup_commands"][-2:]
    assert "-m venv" in making
    assert installing.startswith(INSTALLING)
    config["setup_commands"][-2:] = [f"ln -sfn {sys.prefix} ~/longspan/.venv"]
    for role in ("head", "worker"):
        # Three hosts have this machine's cores and memory between them.
        start = config[f"{role}_start_ray_commands"]
        start[-1] = start[-1].replace("ray start", "ray start --num-cpus=1 --object-store-memory=100000000")
        # Ray stands its own workers down where the machine's memory is nearly full, which is not the hosts' doing.
        start[-1] = "export RAY_memory_monitor_refresh_ms=0; " + start[-1]
    return yaml.safe_dump(config, sort_keys=False)


class OnPremises:
    """The cluster, as whoever brought it up sees it: everything goes through commands of the runbook."""

    def __init__(self, made: Hosts) -> None:
        self.hosts, self.you, self.shared = made, made.you, made.shared
        self.forward: Popen[bytes] | None = None
        self.store: Popen[bytes] | None = None
        self.endpoint = f"http://{made.you.address}:{S3_PORT}"
        self.submitted: list[str] = []

    def sh(self, command: str, timeout: float = PATIENCE, check: bool = True, **variables: str) -> str:
        """Run a command on your machine, with the runbook's variables."""
        done = self.you.run(command, timeout, **{**VARIABLES, **variables})
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def up(self) -> None:
        """`ray up`, and the dashboard's port forwarded."""
        self.sh("ray up -y $CLUSTER")
        self.close()
        command = self.you.command("exec ray dashboard $CLUSTER", **VARIABLES)
        self.forward = Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
        self.wait(lambda: self.you.run("exec 3<>/dev/tcp/127.0.0.1/8265").returncode == 0, "the dashboard")

    def keep_objects(self) -> None:
        """An S3 server on your machine: its credentials lie in the hosts' account, its address in jobs' variables."""
        server = f"exec {sys.executable} -m moto.server -H {self.you.address} -p {S3_PORT}"
        self.store = Popen(self.you.command(server), stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
        for machine in (self.you, *self.hosts.named.values()):
            (machine.home / ".aws").mkdir()
            text = (
                f"[default]\naws_access_key_id = key\naws_secret_access_key = {SECRET}\nregion = us-east-1\n"
            )
            (machine.home / ".aws" / "credentials").write_text(text)
        environment = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text(encoding="utf-8"))
        environment["env_vars"]["AWS_ENDPOINT_URL"] = self.endpoint
        (self.you.home / "runtime_env.yaml").write_text(yaml.safe_dump(environment))
        make = f"import boto3; boto3.client('s3').create_bucket(Bucket='{BUCKET}')"
        self.wait(
            lambda: self.you.run(f"exec 3<>/dev/tcp/{self.you.address}/{S3_PORT}").returncode == 0,
            "the S3 server",
        )
        self.python(make)

    def python(self, program: str) -> None:
        self.sh(f"python -c {shlex.quote(program)}", AWS_ENDPOINT_URL=self.endpoint)

    def close(self) -> None:
        if self.forward is not None:
            self.forward.kill()
            self.forward.wait()
            self.you.run("kill $(ps -eo pid,args | awk '/8265:/ && /ssh/ {print $1}')")

    def wait(
        self, condition: Callable[[], object], what: str, job: str = "", patience: float = PATIENCE
    ) -> None:
        """Wait for something to come true, while `job` runs."""
        began = asked = time.monotonic()
        while not condition():
            now = time.monotonic()
            if job and now - asked > 5 and (asked := now) and self.status(job) not in ("PENDING", "RUNNING"):
                raise AssertionError(f"{what}: {job} ended before\n{self.job(f'ray job logs {job}')}")
            if now - began > patience:
                log = self.job(f"ray job logs {job}", check=False) if job else ""
                raise AssertionError(f"still waiting for {what} after {patience:.0f} s\n{log}")
            time.sleep(0.1)

    def nodes(self) -> int:
        """How many hosts Ray's autoscaler counts as alive."""
        status = self.you.run(f"ray exec $CLUSTER '{IN_THE_ENVIRONMENT}; ray status'", **VARIABLES).stdout
        active = status.partition("Active:")[2].partition("Pending:")[0]
        return sum(map(int, re.findall(r"^ (\d+) \S", active, re.MULTILINE)))

    def whole(self) -> None:
        """Switch on again what was killed, and wait until all hosts serve."""
        for name, host in self.hosts.named.items():
            if not host.alive:
                self.hosts.switch_on(name)
        # A host that failed a moment ago counts as alive until its heartbeats are missed.
        every = self.hosts.named.values()
        self.wait(lambda: all("raylet" in " ".join(host.processes()) for host in every), "Ray on every host")
        self.wait(lambda: self.nodes() == len(every), "all hosts")

    def submit(self, name: str, command: str, check: bool = True) -> str:
        self.submitted.append(name)
        return self.job(f"{SUBMIT} {name} -- {command}", check)

    def job(self, command: str, check: bool = True) -> str:
        return self.sh(command, check=check, RAY_ADDRESS="http://127.0.0.1:8265")

    def status(self, name: str) -> str:
        found = self.job(f"ray job status {name}", check=False).upper()
        return next(
            (each for each in ("PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED") if each in found),
            found,
        )

    def finish(self, name: str, expected: str = "SUCCEEDED") -> str:
        """Wait for a job's end; returns what it printed."""
        self.wait(lambda: self.status(name) not in ("PENDING", "RUNNING"), name, patience=2 * PATIENCE)
        log = self.job(f"ray job logs {name}")
        assert self.status(name) == expected, log
        return log

    def losses(self, run: str) -> dict[int, float]:
        """By step; a step that was run again has its last."""
        path = self.shared / run / "metrics.jsonl"
        found = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            if line.endswith("}") and "loss" in (row := json.loads(line)):
                found[row["step"]] = row["loss"]
        return found


def state_of_this_machine() -> dict[str, object]:
    """What hosts could leave behind."""
    return {
        "mounts": Path("/proc/self/mounts").read_text(),
        "networks": sorted(psutil.net_if_addrs()),
        "folders": sorted(
            path for name in ("/", "/run", "/var/log", "/etc") for path in Path(name).iterdir()
        ),
        "name": os.uname().nodename,
    }


def test_hosts_leave_nothing_behind(tmp_path: Path) -> None:
    before = state_of_this_machine()
    with hosts(tmp_path, HEAD) as made:
        assert state_of_this_machine() == before
        pids = [made.you.pid, made.named[HEAD].pid]
        assert made.named[HEAD].run("touch /etc/x /usr/x").returncode != 0
    assert state_of_this_machine() == before
    assert not any(map(psutil.pid_exists, pids))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnPremises]:
    """Three hosts with Ray, and everything taken down again."""
    with hosts(tmp_path_factory.mktemp("hosts"), HEAD, *WORKERS) as made:
        found = OnPremises(made)
        (made.you.home / "onprem.yaml").write_text(cluster_file(made), encoding="utf-8")
        found.sh("ray get-auth-token --generate")
        try:
            found.keep_objects()
            found.up()
            found.whole()
            yield found
        finally:
            found.close()
            if found.store is not None:
                found.store.kill()
                found.store.wait()


@pytest.fixture(scope="module")
def corpus(cluster: OnPremises) -> str:
    """Where all hosts see a small corpus."""
    made = build_small_corpus(cluster.hosts.folder / "made")
    shutil.copytree(made, cluster.shared / "small")
    shutil.copy(made.parent / "tokenizer.json", cluster.shared / "tokenizer.json")
    return "/shared/small"


def training(cluster: OnPremises, corpus: str, name: str) -> str:
    """A run's configuration on the hosts, as the command names it; its steps take a while."""
    path = run_config(
        cluster.shared,
        Path(),
        name,
        corpus=corpus,
        steps=STEPS,
        run=f"/shared/{name}",
        checkpoint={"every": 30, "keep_last": 2},
    )
    return f"/shared/{path.name}"


def told_to_prometheus(cluster: OnPremises) -> str:
    """What the head's ports show to whoever asks without a token."""
    head, other = cluster.hosts.named[HEAD], cluster.you
    return "".join(http(other, f"{head.address}:{port}")[1] for port in ports_of(head))


def ports_of(machine: Machine) -> set[int]:
    """Where it listens, but for ssh."""
    listening = machine.run("ss -Hltn").stdout.splitlines()
    return {int(line.split()[3].rpartition(":")[2]) for line in listening} - {22}


def http(machine: Machine, address: str, token: str = "") -> tuple[str, str]:
    """The status of an answer, 000 for none, and the answer."""
    header = f"-H 'Authorization: Bearer {token}' " if token else ""
    done = machine.run(f"curl -s -m 3 -w '\\n%{{http_code}}' {header}http://{address}")
    text, _, status = done.stdout.rpartition("\n")
    return status, text


def test_the_dashboard_answers_nobody_without_the_token_and_nobody_else_at_all(cluster: OnPremises) -> None:
    head, worker = (cluster.hosts.named[name] for name in (HEAD, WORKERS[0]))
    token = (cluster.you.home / ".ray" / "auth_token").read_text()
    jobs = "8265/api/jobs/"
    assert http(head, f"127.0.0.1:{jobs}")[0] == "401"
    assert http(head, f"127.0.0.1:{jobs}", token)[0] == "200"
    for machine in (worker, cluster.you):  # not even with the token
        assert http(machine, f"{head.address}:{jobs}", token)[0] == "000"

    without = {**VARIABLES, "HOME": "/shared"}
    refused = cluster.you.run(f"{SUBMIT} stranger -- true", **without, RAY_ADDRESS="http://127.0.0.1:8265")
    assert refused.returncode != 0
    assert "couldn't find an authentication token" in refused.stdout
    refused = worker.run(
        f"ray status --address {head.address}:6379", **without | {"RAY_AUTH_MODE": "disabled"}
    )
    assert refused.returncode != 0
    assert "InvalidAuthToken" in refused.stdout

    # What else listens beyond its own loopback speaks gRPC, wants the token, or tells Prometheus how the host does.
    for machine, other in ((head, worker), (worker, head)):
        assert len(ports_of(machine)) > 5
        for port in ports_of(machine):
            status, text = http(other, f"{machine.address}:{port}")
            assert status in ("000", "401") or (status == "200" and text.startswith("# HELP")), port


def test_the_corpus_is_the_same_where_a_host_fails_in_the_middle(cluster: OnPremises, corpus: str) -> None:
    cluster.whole()
    raw = cluster.shared / "raw"
    raw.mkdir()
    for number, document in enumerate(made_up_documents(4000, SEED)):
        with (raw / f"{number % 40:02}.txt").open("a", encoding="utf-8") as file:
            file.write(document + "\n")
    config = lasting_build("/shared/tokenizer.json", "/shared/raw", SEED)
    (cluster.shared / "corpus.yaml").write_text(yaml.safe_dump(config))
    cluster.sh(
        "python -m pipeline.build_corpus --local --config /shared/corpus.yaml --output /shared/expected"
    )

    build = f"python -m pipeline.build_corpus --config /shared/corpus.yaml --output s3://{BUCKET}/corpus"
    cluster.submit("corpus-1", build)
    generator = random.Random(SEED)
    victim, delay = cluster.hosts.named[generator.choice(WORKERS)], generator.uniform(0, 5)
    cluster.wait(
        lambda: any(each.startswith("ray::_execute") for each in victim.processes()),
        "a unit there",
        "corpus-1",
    )
    time.sleep(delay)
    victim.kill()
    assert cluster.status("corpus-1") == "RUNNING", "it ended before"
    cluster.finish("corpus-1")
    cluster.python(COPY_OUT.format(bucket=BUCKET, prefix="corpus", folder="/shared/corpus"))
    assert contents(cluster.shared / "corpus") == contents(cluster.shared / "expected")


@in_drills
def test_the_training_is_the_same_where_it_is_stopped_and_hosts_fail_the_head_too(
    cluster: OnPremises, corpus: str
) -> None:
    cluster.whole()
    cluster.python(COPY_IN.format(bucket=BUCKET, prefix="small", folder=corpus))
    alone, run = training(cluster, corpus, "alone"), training(cluster, f"s3://{BUCKET}/small", "run")
    launch = f"python -m cluster.launch --config {run} --gpus 0 --min-nodes 1 --wait-minutes 5"

    # Stopped by its user: it saves before.
    cluster.submit("train-1", launch)
    cluster.wait(lambda: len(cluster.losses("run")) >= 15, "steps", "train-1")
    assert "already" in cluster.submit("train-1", launch, check=False)
    cluster.job("ray job stop train-1", check=False)
    stopped = cluster.finish("train-1", "STOPPED")
    assert "training on 3 machines" in stopped
    saved = max(path.name for path in (cluster.shared / "run" / "checkpoints").glob("step-*"))
    assert int(saved.removeprefix("step-")) == max(cluster.losses("run"))

    # Resumed; a host fails.
    cluster.submit("train-2", launch)
    began = max(cluster.losses("run"))
    cluster.wait(lambda: max(cluster.losses("run")) >= began + 15, "more steps", "train-2")
    victim = random.Random(SEED + 1).choice(WORKERS)
    cluster.hosts.named[victim].kill()
    cluster.wait(
        lambda: "training on 2 machines" in cluster.job("ray job logs train-2", check=False), "a new attempt"
    )
    began = max(cluster.losses("run"))
    cluster.wait(lambda: max(cluster.losses("run")) >= began + 12, "steps without it", "train-2")
    cluster.wait(lambda: "ray_longspan_step" in told_to_prometheus(cluster), "the gauges", "train-2")

    # The head fails, and with it the job; what was saved stays. The same commands bring both back, once the host that
    # was lost before is there again.
    cluster.hosts.named[HEAD].kill()
    cluster.hosts.switch_on(HEAD)
    cluster.up()
    cluster.submit("train-3", launch.replace("--min-nodes 1", "--min-nodes 3"))
    waiting = "waiting: 3 machines with 1 CPUs each are needed; "
    cluster.wait(lambda: waiting in cluster.job("ray job logs train-3", check=False), "it to wait", "train-3")
    cluster.hosts.switch_on(victim)
    log = cluster.finish("train-3")
    assert "training on 3 machines" in log
    assert f"start     step 0 of {STEPS}" not in log
    assert "launch: done" in log

    undisturbed = cluster.sh(
        f"DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 deepspeed --num_gpus 1 trainer/pretrain.py --config {alone}",
        600,
    )
    expected = cluster.losses("alone")
    assert len(expected) == STEPS, undisturbed
    found = cluster.losses("run")
    assert found.keys() == expected.keys()
    # A batch, a mask or a dropout of another step would show in the third digit.
    assert found == pytest.approx(expected, abs=1e-4)


def test_nothing_that_was_written_has_a_secret(cluster: OnPremises) -> None:
    cluster.whole()
    token = (cluster.you.home / ".ray" / "auth_token").read_text().strip()
    assert len(token) >= 32
    (cluster.shared / "secrets").write_text(f"{token}\n{SECRET}\n")
    for host in cluster.hosts.named.values():
        assert host.run("grep -q -F -f /shared/secrets ~/.ray/auth_token").returncode == 0, "grep finds it"
        found = host.run(
            "grep -r -l -F -f /shared/secrets /tmp/ray /shared; ls /tmp/ray/session_latest/logs | wc -l"
        )
        *files, logs = found.stdout.split()
        assert files == ["/shared/secrets"]
        assert int(logs) > 5
    for name in cluster.submitted:
        log = cluster.job(f"ray job logs {name}", check=False)
        assert token not in log
        assert SECRET not in log


def test_down_ends_ray_on_every_host(cluster: OnPremises) -> None:
    cluster.whole()
    cluster.close()
    cluster.sh("ray down -y $CLUSTER")

    def left() -> list[str]:
        found = [each for host in cluster.hosts.named.values() for each in host.processes() if "ray" in each]
        # Ray forgets its workers' log monitors, which do nothing any more: the next `ray up` ends them.
        return [each for each in found if "/log_monitor.py" not in each]

    deadline = time.monotonic() + PATIENCE
    while left() and time.monotonic() < deadline:
        time.sleep(1)
    assert left() == []
