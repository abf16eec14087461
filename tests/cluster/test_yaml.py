"""onprem.yaml is what Ray accepts, and starts Ray as its comments promise."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
ONPREM = ROOT / "cluster" / "onprem.yaml"


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load(ONPREM.read_text())


def start_commands(config: dict[str, Any]) -> list[str]:
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    return [command for command in commands if "ray start" in command]


def test_matches_rays_schema_as_written(config: dict[str, Any]) -> None:
    validate_config(config)


def test_ray_prepares_and_validates_it(config: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    node_type = prepared["available_node_types"][prepared["head_node_type"]]
    workers = len(config["provider"]["worker_ips"])
    assert (node_type["min_workers"], node_type["max_workers"]) == (workers, workers)
    assert prepared["head_start_ray_commands"] == config["head_start_ray_commands"], "Ray's defaults won"
    assert prepared["worker_start_ray_commands"] == config["worker_start_ray_commands"], "Ray's defaults won"


@pytest.mark.parametrize("key", ["max_worker", "worker_start_commands", "head_setup_command"])
def test_a_mistyped_key_is_refused(config: dict[str, Any], key: str) -> None:
    config[key] = []
    with pytest.raises(Exception, match=f"{key}.* unexpected"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("key", ["head_ip", "worker_ips"])
def test_a_missing_address_is_refused(config: dict[str, Any], key: str) -> None:
    del config["provider"][key]
    with pytest.raises(
        BaseException, match="head_ip"
    ):  # Ray's cli_logger.abort raises a SystemExit's sibling
        prepare_config(config)


def test_every_start_is_authenticated_silent_and_in_the_environment(config: dict[str, Any]) -> None:
    commands = start_commands(config)
    assert len(commands) == 2
    for command in commands:
        assert "RAY_AUTH_MODE=token" in command
        assert "RAY_USAGE_STATS_ENABLED=0" in command
        assert command.index("PATH=~/longspan/.venv/bin:$PATH") < command.index("ray start")
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"  # noqa: S105


def test_the_dashboard_listens_on_loopback_only(config: dict[str, Any]) -> None:
    (head,) = [command for command in start_commands(config) if "--head" in command]
    assert re.findall(r"--dashboard-host=(\S+)", head) == ["127.0.0.1"]
    assert "0.0.0.0" not in ONPREM.read_text()  # noqa: S104


def test_placeholders_are_explained_and_name_no_host(config: dict[str, Any]) -> None:
    placeholders = {
        config["provider"]["head_ip"],
        *config["provider"]["worker_ips"],
        config["auth"]["ssh_user"],
    }
    explanation = ONPREM.read_text().partition("cluster_name:")[0]
    for placeholder in placeholders:
        assert re.fullmatch(r"[A-Z0-9_]+", placeholder), placeholder
        assert placeholder in explanation


def test_mounted_files_exist_from_the_repositorys_root(config: dict[str, Any]) -> None:
    for local in config["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).exists(), local


def test_every_key_has_a_comment() -> None:
    """Right above it; a section's entries carry their own, and one file mount may speak for the next."""
    previous = ""
    for line in ONPREM.read_text().splitlines():
        is_section = line in ("provider:", "auth:")
        if re.match(r" {0,2}[a-z_]+:", line) and not is_section:
            assert previous.lstrip().startswith("#"), line
        previous = line
