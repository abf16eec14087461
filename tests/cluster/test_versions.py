"""The image, the cluster's files and pyproject.toml name the same versions; and a job brings what it needs."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from ray.runtime_env import RuntimeEnv

from cluster.constraints import EXTRAS, LEFT_OUT, pinned, requirements

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
LINES = (ROOT / "cluster" / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = dict(line.split("==") for line in LINES if not line.startswith("#"))
WITH_A_TAG = [
    "Dockerfile",
    "README.md",
    "aws.yaml",
    "gcp.yaml",
    "kuberay/rayjob-corpus.yaml",
    "kuberay/rayjob-pretrain.yaml",
]


def test_all_that_the_project_requires_is_pinned_within_its_bounds() -> None:
    wanted = requirements()
    assert len(wanted) > 20
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(PINS[name], prereleases=True), (requirement, PINS[name])


def test_pins_are_versions_that_every_index_has() -> None:
    assert sorted(PINS) == list(PINS)
    for name, version in PINS.items():
        assert Version(version).local is None, name
        assert name not in LEFT_OUT, LEFT_OUT.get(name)


def test_pins_are_what_is_installed_with_all_that_it_requires() -> None:
    found = pinned([Requirement("datasets"), Requirement("torch"), Requirement("ray[default]")])
    assert {"datasets", "torch", "ray", "pyarrow", "numpy", "aiohttp", "sympy"} <= found.keys()
    assert found["torch"] == importlib.metadata.version("torch").partition("+")[0]
    assert found["datasets"] == importlib.metadata.version("datasets")
    assert not found.keys() & LEFT_OUT.keys()
    assert "aiohttp-cors" not in pinned([Requirement("ray")])  # of the extra alone
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        pinned([Requirement("no-such-package-anywhere")])


@pytest.mark.parametrize("name", WITH_A_TAG)
def test_tags_name_the_projects_version_and_rays(name: str) -> None:
    text = (ROOT / "cluster" / name).read_text(encoding="utf-8")
    tags = set(re.findall(r"longspan:(\S+?-ray[\d.]*\d)", text))
    assert tags == {f"{PROJECT['version']}-ray{PINS['ray']}"}


@pytest.mark.parametrize("name", ["rayjob-corpus", "rayjob-pretrain"])
def test_kubernetes_is_told_rays_version(name: str) -> None:
    job = yaml.safe_load((ROOT / "cluster" / "kuberay" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == PINS["ray"]


def test_the_image_has_the_python_that_was_tested() -> None:
    (python,) = re.findall(r"^ARG BASE=python:([\d.]+)-slim", DOCKERFILE, re.MULTILINE)
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert re.search(rf"under Python {re.escape(python)}\.\d+", LINES[0])


def test_the_image_installs_the_project_with_its_pins_and_extras() -> None:
    (install,) = re.findall(r"^RUN pip install (.*)", DOCKERFILE, re.MULTILINE)
    assert "--constraint /opt/longspan/cluster/constraints.txt" in install
    assert f'"/opt/longspan[{",".join(EXTRAS)}]"' in install
    copied = re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert {name.removesuffix("*") for name in found["include"]} < sources
    ignored = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == sources
    assert all((ROOT / source).exists() for source in sources)


def test_the_image_runs_as_nobody_special_and_holds_no_secret() -> None:
    user = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)
    assert user == ["ray"]
    assert (
        "useradd --create-home --uid 1000" in DOCKERFILE
    )  # the number that the pods and `ray up`'s hosts use
    assert "HOME=/home/ray" in DOCKERFILE
    assert "RAY_AUTH_MODE=token" in DOCKERFILE
    assert not re.search(r"(TOKEN|SECRET|PASSWORD|KEY)\w*=", DOCKERFILE)
    for command in ("rsync", "openssh-client", "wget", "build-essential"):
        assert command in DOCKERFILE


def test_hosts_without_the_image_install_the_same() -> None:
    config = yaml.safe_load((ROOT / "cluster" / "onprem.yaml").read_text(encoding="utf-8"))
    (install,) = [command for command in config["setup_commands"] if "pip install" in command]
    assert "-c ~/longspan/cluster/constraints.txt" in install
    assert config["file_mounts"]["~/longspan/cluster"] == "cluster"


def test_a_job_has_time_to_save_and_uploads_no_data() -> None:
    values = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text(encoding="utf-8"))
    assert RuntimeEnv(**values).env_vars() == values["env_vars"]
    assert int(values["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 120
    assert {"/corpora/", "/runs/", "/models/", "/.venv/"} <= set(values["excludes"])
