"""onprem.yaml, aws.yaml and gcp.yaml are what Ray accepts, are refused unfilled, and start Ray as they promise."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import googleapiclient
import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.check import main, placeholders, problems
from tests.cluster.filled import filled

ROOT = Path(__file__).parents[2]
NAMES = ("onprem", "aws", "gcp")
CLOUDS = ("aws", "gcp")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load(text(name))


def text(name: str) -> str:
    return (ROOT / "cluster" / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.fixture
def in_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As the README says: called from the root, with a token in the home folder."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("made-up")
    return tmp_path


def commands(config: dict[str, Any]) -> list[str]:
    return [command for key, value in config.items() if key.endswith("commands") for command in value]


def start_commands(config: dict[str, Any]) -> list[str]:
    started = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    return [command for command in started if "ray start" in command]


@pytest.mark.parametrize("name", NAMES)
def test_ray_refuses_it_before_it_is_filled_in(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match="FILL_IN"):
        validate_config(prepare_config(read(name)))


@pytest.mark.parametrize("name", NAMES)
def test_ray_prepares_and_validates_it_filled_in(name: str) -> None:
    config = filled(read(name))
    validate_config(config)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    for key in ("head_start_ray_commands", "worker_start_ray_commands", "initialization_commands"):
        assert prepared[key] == config[key], "Ray's defaults won"
    assert prepared["head_setup_commands"] == config["setup_commands"]
    for key in ("docker", "file_mounts"):
        assert prepared[key] == config.get(key, {}), "Ray's defaults won"


def test_all_hosts_of_ones_own_are_started_and_kept() -> None:
    prepared = prepare_config(filled(read("onprem")))
    node_type = prepared["available_node_types"][prepared["head_node_type"]]
    assert (node_type["min_workers"], node_type["max_workers"], prepared["max_workers"]) == (2, 2, 2)


@pytest.mark.parametrize("key", ["max_worker", "worker_start_commands", "head_setup_command"])
@pytest.mark.parametrize("name", NAMES)
def test_a_mistyped_key_is_refused(name: str, key: str) -> None:
    config = filled(read(name)) | {key: []}
    with pytest.raises(jsonschema.ValidationError, match=f"{key}.* unexpected"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("section", ["provider", "auth", "docker", "available_node_types.gpu"])
@pytest.mark.parametrize("name", CLOUDS)
def test_check_names_a_mistyped_key_in_a_section(name: str, section: str, in_the_repository: Path) -> None:
    """Ray itself lets those of `provider` pass."""
    config = filled(read(name))
    inner = config
    for key in section.split("."):
        inner = inner[key]
    inner["mistyped"] = 1
    file = in_the_repository / "mistyped.yaml"
    file.write_text(yaml.safe_dump(config))
    (line,) = problems(file)
    assert line.startswith(f"{section}: ")
    assert "'mistyped' was unexpected" in line


def test_machines_on_aws_are_what_ec2_accepts() -> None:
    """The fields of a machine, which Ray hands on unseen, against EC2's own description as boto3 has it."""
    service = botocore.session.get_session().get_service_model("ec2")
    shape = service.operation_model("RunInstances").input_shape
    types = filled(read("aws"))["available_node_types"]
    known = service.shape_for("InstanceType").enum
    for node_type in types.values():
        machine = node_type["node_config"]
        assert machine["InstanceType"] in known
        # SubnetIds is Ray's: it starts a machine in one of them.
        given = {key: value for key, value in machine.items() if key != "SubnetIds"}
        report = botocore.validate.ParamValidator().validate(given | {"MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), report.generate_report()
    wrong = {"InstanceTyp": "c7i.8xlarge", "MinCount": 1, "MaxCount": 1}
    assert botocore.validate.ParamValidator().validate(wrong, shape).has_errors()


def test_machines_on_google_cloud_are_what_compute_engine_accepts() -> None:
    """Likewise, against the API's description as Google's client has it."""
    folder = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
    schemas = json.loads((folder / "compute.v1.json").read_text(encoding="utf-8"))["schemas"]
    for node_type in filled(read("gcp"))["available_node_types"].values():
        assert list(misfits(node_type["node_config"], {"$ref": "Instance"}, schemas, "")) == []
    wrong = {"scheduling": {"provisioningModel": "SPOTTY"}, "machinetype": "x", "disks": [{"boot": "yes"}]}
    found = sorted(misfits(wrong, {"$ref": "Instance"}, schemas, ""))
    assert found == [".disks.boot", ".machinetype", ".scheduling.provisioningModel"]


def misfits(value: Any, schema: dict[str, Any], schemas: dict[str, Any], where: str) -> Iterator[str]:
    """Where a value does not fit a schema of Google's discovery format."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": float}
    if schema["type"] == "string" and schema.get("format") == "int64":
        kinds["string"] = int  # JSON numbers will do
    if not isinstance(value, kinds[schema["type"]]) or ("enum" in schema and value not in schema["enum"]):
        yield where
    elif isinstance(value, list):
        for inner in value:
            yield from misfits(inner, schema["items"], schemas, where)
    elif isinstance(value, dict):
        for key, inner in value.items():
            properties = schema.get("properties", {})
            if key not in properties:
                yield f"{where}.{key}"
            else:
                yield from misfits(inner, properties[key], schemas, f"{where}.{key}")


@pytest.mark.parametrize("name", CLOUDS)
def test_a_head_of_no_known_type_and_too_few_machines_are_refused(name: str) -> None:
    config = filled(read(name))
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepare_config(config | {"head_node_type": "haed"}))
    config["available_node_types"]["cpu"]["min_workers"] = config["max_workers"] + 1
    with pytest.raises(ValueError, match="min_workers"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("key", ["head_ip", "worker_ips"])
def test_a_missing_address_is_refused(key: str) -> None:
    config = filled(read("onprem"))
    del config["provider"][key]
    with pytest.raises(BaseException, match="head_ip"):  # Ray aborts with a sibling of SystemExit
        prepare_config(config)


@pytest.mark.parametrize("name", NAMES)
def test_every_start_is_authenticated_and_silent(name: str) -> None:
    config = read(name)
    started = start_commands(config)
    assert len(started) == 2
    for command in started:
        assert "RAY_AUTH_MODE=token" in command
        assert "RAY_USAGE_STATS_ENABLED=0" in command
        assert name != "onprem" or command.index("PATH=~/longspan/.venv/bin:$PATH") < command.index(
            "ray start"
        )
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"  # noqa: S105
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]


@pytest.mark.parametrize("name", NAMES)
def test_the_dashboard_listens_on_loopback_only(name: str) -> None:
    (head,) = [command for command in start_commands(read(name)) if "--head" in command]
    assert re.findall(r"--dashboard-host=(\S+)", head) == ["127.0.0.1"]
    assert "0.0.0.0" not in text(name)  # noqa: S104


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_what_bash_understands(name: str) -> None:
    found = commands(filled(read(name)))
    assert len(found) > 5
    for command in found:
        done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.parametrize("name", NAMES)
def test_the_shared_folder_is_there_before_ray_is(name: str) -> None:
    config = read(name)
    if name == "onprem":
        assert any(command.startswith("test -w /shared ||") for command in config["setup_commands"])
    else:
        assert any("mount -t nfs" in command for command in config["initialization_commands"])
        assert {"-v /shared:/shared", "-v /var/cache/longspan:/cache"} < set(config["docker"]["run_options"])


@pytest.mark.parametrize("name", CLOUDS)
def test_a_machine_whose_files_the_container_could_not_read_is_refused(name: str, tmp_path: Path) -> None:
    """Files that Ray copies belong to the machine's account: the token would be unreadable, and Ray not start."""
    (command,) = [
        each for each in read(name)["initialization_commands"] if "id -u" in each and "1000" in each
    ]
    (user,) = re.findall(r"--uid (\d+)", (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8"))
    for number, status in ((user, 0), ("1001", 1)):
        stand_in = tmp_path / "id"
        stand_in.write_text(f"#!/bin/sh\necho {number}\n")
        stand_in.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(["bash", "-c", command], env={"PATH": path, "USER": "x"}, check=False)
        assert done.returncode == status


@pytest.mark.parametrize("name", CLOUDS)
def test_containers_have_shared_memory_and_limits(name: str) -> None:
    config = read(name)
    options = config["docker"]["run_options"]
    for limit in ("nofile=", "memlock=-1", "stack="):
        assert any(option.startswith(f"--ulimit {limit}") for option in options)
    workers = {key: value for key, value in config["available_node_types"].items() if key != "head"}
    own = [config["docker"]["head_run_options"]]
    own += [node_type["docker"]["worker_run_options"] for node_type in workers.values()]
    for each in own:
        assert sum(option.startswith("--shm-size=") for option in each) == 1
    for key, node_type in workers.items():
        assert ("--gpus all" in node_type["docker"]["worker_run_options"]) == key.startswith("gpu")


@pytest.mark.parametrize("name", CLOUDS)
def test_machines_are_started_for_work_alone_and_within_limits(name: str) -> None:
    config = read(name)
    types = config["available_node_types"]
    assert set(types) == {"head", "cpu", "cpu_spot", "gpu", "gpu_spot"}
    workers = [types[key] for key in types if key != "head"]
    assert [each["min_workers"] for each in workers] == [0] * 4
    assert sum(each["max_workers"] for each in workers) <= config["max_workers"]
    assert types["gpu"]["resources"]["GPU"] == 8
    assert "GPU" not in types["cpu"]["resources"]
    assert types["head"]["resources"]["CPU"] > 0  # a build asks for one before others are started
    assert "max_workers" not in types["head"]  # Ray makes it 0
    for kind in ("cpu", "gpu"):
        spot, plain = types[f"{kind}_spot"], types[kind]
        assert spot["resources"] == plain["resources"]
        assert spot["docker"] == plain["docker"]
        market = {"aws": "InstanceMarketOptions", "gcp": "scheduling"}[name]
        assert "spot" in str(spot["node_config"][market]).lower()
        assert "spot" not in str(plain["node_config"]).lower()
        without = {key: value for key, value in spot["node_config"].items() if key != market}
        assert without == {key: value for key, value in plain["node_config"].items() if key != market}


def test_no_id_of_somebody_elses_account_is_written_down() -> None:
    """Images, networks and roles are their user's to name."""
    for name in CLOUDS:
        written = re.sub(r"\{FILL_IN[^}]*\}", "", text(name))
        assert not re.findall(
            r"\b(?:ami|sg|subnet|fs)-[0-9a-f]{6,}|arn:aws:\S+|iam\.gserviceaccount", written
        )


@pytest.mark.parametrize("name", NAMES)
def test_mounted_files_exist_from_the_repositorys_root(name: str) -> None:
    for local in read(name)["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).exists(), local


@pytest.mark.parametrize("name", NAMES)
def test_every_key_has_a_comment(name: str) -> None:
    """Right above it; a section's entries carry their own, and one file mount may speak for the next."""
    previous = ""
    for line in text(name).splitlines():
        is_section = line in ("provider:", "auth:")
        if re.match(r" {0,2}[a-z_]+:", line) and not is_section:
            assert previous.lstrip().startswith("#"), line
        previous = line


@pytest.mark.parametrize("name", NAMES)
def test_check_names_every_placeholder_and_nothing_once_they_are_filled_in(
    name: str, in_the_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(ROOT / "cluster" / f"{name}.yaml")]) == 2
    told = capsys.readouterr().err
    wanted = {what for _, what in placeholders(read(name))}
    words = re.findall(r"FILL_IN: ?([^}]*)\}|(FILL_IN_[A-Z]\w+)", body(name))
    assert told.count("to be filled in: ") == len(wanted) == len(set(words))
    ready = in_the_repository / "ready.yaml"
    ready.write_text(yaml.safe_dump(filled(read(name))))
    assert main([str(ready)]) == 0
    assert "nothing left" in capsys.readouterr().out


def body(name: str) -> str:
    """Without comments."""
    return "\n".join(line for line in text(name).splitlines() if not line.lstrip().startswith("#"))


def test_check_names_all_problems_at_once(in_the_repository: Path) -> None:
    config = filled(read("aws")) | {"max_worker": 3, "idle_timeout_minutes": "soon"}
    config["file_mounts"]["~/x"] = "no/such/file"
    (in_the_repository / ".ray" / "auth_token").unlink()
    file = in_the_repository / "wrong.yaml"
    file.write_text(yaml.safe_dump(config))
    found = "\n".join(problems(file))
    assert found.count("\n") == 3
    for part in ("max_worker", "idle_timeout_minutes", "no/such/file", "ray get-auth-token --generate"):
        assert part in found


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"a: [", "not YAML"), (b"", "no mapping"), (b"- 1", "no mapping"), (b"\xff\xfe\xfd", "not YAML")],
)
def test_check_refuses_what_is_no_cluster(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "file.yaml"
    file.write_bytes(content)
    (line,) = problems(file)
    assert expected in line
    assert "No such file" in problems(tmp_path / "none.yaml")[0]


@pytest.mark.parametrize("name", ["onprem", "aws"])
def test_ray_up_refuses_it_at_once_before_it_is_filled_in(name: str, in_the_repository: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "ray", "up", "-y", "--no-config-cache", f"cluster/{name}.yaml"],
        env={**os.environ, "RAY_UP_enable_autoscaler_v2": "0", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "FILL_IN" in done.stderr
