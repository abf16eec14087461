"""Hosts with ssh, made of this machine's namespaces: a network, processes, mounts and a name of their own each.

They exist in here alone: nothing outside can reach them, they reach nothing outside, and they end with the process that
started them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from attention import cache

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("machine.sh")
HOME = "/tmp/home"  # noqa: S108  # root's on every machine, in a /tmp of its own
NETWORK = "10.77.0"
PROGRAMS = ("unshare", "nsenter", "ip", "pivot_root", "sshd", "ssh", "ssh-keygen", "rsync")
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")
ENVIRONMENT = Path(sys.executable).parent  # where this environment's programs are


def missing() -> str:
    """Why there can be no hosts here, or nothing."""
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    lacking = [
        name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    ]
    if lacking:
        return f"needs {', '.join(lacking)} (on Debian: apt-get install openssh-server rsync iproute2)"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False
    )
    return "" if tried.returncode == 0 else f"may not make namespaces: {tried.stderr.decode().strip()}"


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


class Machine:
    """A host, or the machine of whoever brings a cluster up."""

    def __init__(self, folder: Path, name: str, address: str) -> None:
        self.folder, self.name, self.address = folder, name, address
        self.home = folder / name / "home"
        self._unshare: subprocess.Popen[bytes] | None = None
        self.pid = 0  # its first process, as this machine numbers it

    def start(self) -> None:
        """Switch it on; what was in its home before is there again."""
        visible = {str(path) for path in (ROOT, sys.prefix, sys.base_prefix)}
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self._unshare = subprocess.Popen(
                [
                    "unshare",
                    *NAMESPACES,
                    "--fork",
                    "--kill-child",
                    "bash",
                    SCRIPT,
                    self.folder,
                    self.name,
                    *visible,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,
            )
        deadline = time.monotonic() + 20
        while not (children := psutil.Process(self._unshare.pid).children()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.pid = children[0].pid
        while self.run(f"test ! -e /old -a -d /shared -a $(hostname) = {self.name}").returncode:
            log_text = (self.folder / f"{self.name}.log").read_text()
            assert self._unshare.poll() is None, log_text
            assert time.monotonic() < deadline, log_text
            time.sleep(0.05)

    @property
    def alive(self) -> bool:
        return self._unshare is not None and self._unshare.poll() is None

    def kill(self) -> None:
        """The power fails: every process ends at once, and its network card is gone."""
        assert self._unshare is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._unshare.wait()

    def command(self, text: str, **variables: str) -> list[str]:
        """What runs `text` in a shell there, in the repository's root."""
        given = {
            "HOME": HOME,
            "PATH": f"{ENVIRONMENT}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "NO_COLOR": "1",
            **variables,
        }
        pairs = [f"{name}={value}" for name, value in given.items()]
        inside = f"cd {shlex.quote(str(ROOT))} 2>/dev/null; {text}"
        return ["nsenter", "-t", str(self.pid), *NAMESPACES, "env", "-i", *pairs, "bash", "-c", inside]

    def run(self, text: str, timeout: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a shell's line there; both streams are its stdout."""
        return subprocess.run(
            self.command(text, **variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )

    def processes(self) -> list[str]:
        """The command lines of what runs there."""
        found = []
        space = Path(f"/proc/{self.pid}/ns/pid").readlink()
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if (
                    Path(f"/proc/{each.pid}/ns/pid").readlink() == space
                    and each.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(" ".join(each.cmdline()))
        return found


class Hosts:
    """A network: `you`, whose machine brings the cluster up, and hosts with sshd that `you` has the key of."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.shared = folder / "shared"
        self.you = Machine(folder, "you", f"{NETWORK}.1")
        self.named = {name: Machine(folder, name, f"{NETWORK}.{n}") for n, name in enumerate(names, start=2)}

    def start(self) -> None:
        self.shared.mkdir(parents=True)
        ssh = self.you.home / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        _key(ssh / "id_ed25519")
        for host in self.named.values():
            (host.home / ".ssh").mkdir(parents=True, mode=0o700)
            shutil.copy(ssh / "id_ed25519.pub", host.home / ".ssh" / "authorized_keys")
            _key(host.home / ".ssh" / "host_key")
            # The attention's kernel, compiled, which would take each of them a minute.
            shutil.copytree(cache.folder(), host.home / ".cache" / "longspan", dirs_exist_ok=True)
        self.you.start()
        # With an address of its own. It would take that of one of its ports, and another's when that host is killed,
        # without a word to the rest: whatever they sent to `you` was lost for half a minute.
        self._outside(
            "ip link add br0 address 02:00:00:00:00:01 type bridge; "
            f"ip addr add {self.you.address}/24 dev br0; ip link set br0 up"
        )
        for name in self.named:
            self.switch_on(name)

    def switch_on(self, name: str) -> None:
        """Start a host, and plug it in."""
        host = self.named[name]
        host.start()
        card = f"to-{name}"
        # Where it was killed: a network goes some time after its last process.
        self._outside(f"ip link del {card} 2>/dev/null || true")
        self._outside(
            f"ip link add {card} type veth peer name eth0 netns {host.pid}; ip link set {card} master br0 up"
        )
        # By its default route a host knows which of its addresses others reach, though nothing is beyond this one.
        done = host.run(
            f"ip addr add {host.address}/24 dev eth0; ip link set eth0 up; ip route add default via {self.you.address}"
        )
        assert done.returncode == 0, done.stdout
        deadline = time.monotonic() + 20
        while self.you.run(f"exec 3<>/dev/tcp/{host.address}/22").returncode:
            assert time.monotonic() < deadline, (host.home / "sshd.log").read_text()
            time.sleep(0.2)

    def _outside(self, text: str) -> None:
        """In the network of `you`, but with this machine's process numbers, by which `ip` knows the others."""
        command = ["nsenter", "-t", str(self.you.pid), "--net", "bash", "-euc", text]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def stop(self) -> None:
        for machine in (*self.named.values(), self.you):
            if machine.alive:
                machine.kill()


def _key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


@contextlib.contextmanager
def hosts(folder: Path, *names: str) -> Iterator[Hosts]:
    found = Hosts(folder, names)
    try:
        found.start()
        yield found
    finally:
        found.stop()
