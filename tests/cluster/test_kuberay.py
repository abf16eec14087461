"""The files for KubeRay: the RayJob's own fields against a strict schema of those that are used, which KubeRay's API
reference (1.6) describes; pods, the claim and the policy against Kubernetes' own schemas; and what they promise."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cluster.check import problems
from cluster.launch import make_parser as make_launch_parser
from pipeline.build_corpus import make_parser
from tests.cluster.filled import filled

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster" / "kuberay"
JOBS = ("rayjob-corpus", "rayjob-pretrain")
KUBERNETES = "1.31"
NO_RIGHTS = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
POD = {"type": "object", "required": ["spec"]}  # Kubernetes' schema says the rest
FLAGS = {"type": "object", "additionalProperties": {"type": "string"}}  # of `ray start`
RAYJOB = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed(
        ["name"], name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
    ),
    spec=closed(
        ["entrypoint", "rayClusterSpec", "backoffLimit", "activeDeadlineSeconds", "shutdownAfterJobFinishes"],
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
        submitterPodTemplate=POD,
        backoffLimit=COUNT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=closed(
            ["rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"],
            rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
            authOptions=closed(["mode", "secretName"], mode={"enum": ["token", "disabled"]}, secretName=TEXT),
            enableInTreeAutoscaling={"type": "boolean"},
            autoscalerOptions=closed([], idleTimeoutSeconds=COUNT, securityContext={"type": "object"}),
            headGroupSpec=closed(
                ["rayStartParams", "template"],
                serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
                rayStartParams=FLAGS,
                template=POD,
            ),
            workerGroupSpecs={
                "type": "array",
                "minItems": 1,
                "items": closed(
                    ["groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"],
                    groupName={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=FLAGS,
                    template=POD,
                ),
            },
        ),
    ),
)


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def job(name: str) -> dict[str, Any]:
    (only,) = documents(name)
    # Aliases are one object; what is changed here must not change elsewhere.
    return copy.deepcopy(filled(only))


def pods(name: str) -> dict[str, dict[str, Any]]:
    spec = job(name)["spec"]
    cluster = spec["rayClusterSpec"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"submitter": spec["submitterPodTemplate"], "head": cluster["headGroupSpec"]["template"], **groups}


def as_pod(template: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": "pod"} | template.get("metadata", {})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


@pytest.mark.parametrize("name", JOBS)
def test_the_job_fits_its_schema(name: str) -> None:
    jsonschema.validate(job(name), RAYJOB)


@pytest.mark.parametrize("name", JOBS)
def test_the_schema_is_strict(name: str) -> None:
    """A key that is mistyped, anywhere, is refused."""

    def sections(value: Any) -> list[dict[str, Any]]:
        inner = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        own = [value] if isinstance(value, dict) else []
        free = ("template", "submitterPodTemplate", "rayStartParams", "securityContext")
        return own + [found for key, each in inner if key not in free for found in sections(each)]

    changed = job(name)
    found = sections(changed)
    assert len(found) > 6
    for section in found:
        section["mistyped"] = 1
        with pytest.raises(jsonschema.ValidationError, match="mistyped"):
            jsonschema.validate(changed, RAYJOB)
        del section["mistyped"]
    jsonschema.validate(changed, RAYJOB)


@pytest.mark.parametrize("name", JOBS)
def test_its_pods_are_what_kubernetes_accepts(name: str) -> None:
    for template in pods(name).values():
        kubernetes_validate.validate(as_pod(template), KUBERNETES, strict=True)


def test_a_mistyped_pod_and_an_unset_image_are_refused() -> None:
    pod = as_pod(pods(JOBS[0])["head"])
    pod["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagee"):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    for name in JOBS:
        (unset,) = documents(name)
        template = unset["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
        with pytest.raises(kubernetes_validate.ValidationError, match="FILL_IN"):
            kubernetes_validate.validate(as_pod(template), KUBERNETES, strict=True)


def test_the_storage_and_the_policy_are_what_kubernetes_accepts() -> None:
    found = documents("shared")
    assert [each["kind"] for each in found] == ["PersistentVolumeClaim", "NetworkPolicy"]
    for each in found:
        kubernetes_validate.validate(filled(each), KUBERNETES, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError, match="FILL_IN"):
        kubernetes_validate.validate(found[0], KUBERNETES, strict=True)


def test_check_names_each_placeholder_once() -> None:
    assert ["REGISTRY/longspan" in line for line in problems(FOLDER / "rayjob-corpus.yaml")] == [True]
    assert ["REGISTRY/longspan" in line for line in problems(FOLDER / "rayjob-pretrain.yaml")] == [True]
    (line,) = problems(FOLDER / "shared.yaml")
    assert line.startswith("spec.storageClassName: ")


@pytest.mark.parametrize("name", JOBS)
def test_all_pods_of_ray_share_storage_and_have_shared_memory(name: str) -> None:
    claim = documents("shared")[0]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for kind, template in pods(name).items():
        if kind == "submitter":
            continue
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        (container,) = template["spec"]["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) == set(volumes)
        assert volumes[mounts["/shared"]]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"  # noqa: S108
        assert "emptyDir" in volumes[mounts["/cache"]]


@pytest.mark.parametrize("name", JOBS)
def test_no_pod_has_more_rights_than_it_needs(name: str) -> None:
    for kind, template in pods(name).items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is (kind == "head")  # for the autoscaler
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        for container in spec["containers"]:
            assert container["securityContext"] == NO_RIGHTS
    autoscaler = job(name)["spec"]["rayClusterSpec"]["autoscalerOptions"]
    assert autoscaler["securityContext"] == NO_RIGHTS


@pytest.mark.parametrize("name", JOBS)
def test_nobody_reaches_ray_without_the_token_or_from_outside(name: str) -> None:
    cluster = job(name)["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    policy = documents("shared")[1]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    wanted = policy["podSelector"]["matchLabels"].items()
    for template in pods(name).values():
        assert wanted <= template["metadata"]["labels"].items()
    written = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml"))
    assert "kind: Secret" not in written
    assert "0.0.0.0" not in written  # noqa: S104
    secret = cluster["authOptions"]["secretName"]
    assert f"kubectl create secret generic {secret} --from-file=auth_token=" in written


@pytest.mark.parametrize("name", JOBS)
def test_groups_fit_their_machines(name: str) -> None:
    cluster = job(name)["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == ({"cpu"} if name == "rayjob-corpus" else {"cpu", "gpu"})
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for template in pods(name).values():
        for container in template["spec"]["containers"]:
            resources = container["resources"]
            if container["name"] != "ray-job-submitter":
                assert resources["requests"] == resources["limits"]
    # The head works on nothing, so that a build must find CPUs in a group at once.
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    if name == "rayjob-corpus":
        assert groups["cpu"]["minReplicas"] > 0


def test_a_training_asks_for_what_a_machine_has() -> None:
    options = arguments(job("rayjob-pretrain")["spec"]["entrypoint"], "cluster.launch")
    template = pods("rayjob-pretrain")["gpu"]["spec"]
    (container,) = template["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(options[options.index("--gpus") + 1])
    assert any(toleration["key"] == "nvidia.com/gpu" for toleration in template["tolerations"])


def arguments(entrypoint: str, module: str) -> list[str]:
    """Of `python -m module …`."""
    words = shlex.split(entrypoint)
    assert words[:3] == ["python", "-m", module]
    return words[3:]


def test_the_corpus_command_is_one() -> None:
    options = make_parser().parse_args(
        arguments(job("rayjob-corpus")["spec"]["entrypoint"], "pipeline.build_corpus")
    )
    assert str(options.config) == "/shared/corpus.yaml"


def test_the_training_command_is_one() -> None:
    parser = make_launch_parser()
    entrypoint = job("rayjob-pretrain")["spec"]["entrypoint"]
    options, rest = parser.parse_known_args(arguments(entrypoint, "cluster.launch"))
    assert options.gpus == 8
    assert rest == ["--data.cache_dir", "/cache"]


@pytest.mark.parametrize("name", JOBS)
def test_a_job_brings_the_same_variables_as_elsewhere(name: str) -> None:
    elsewhere = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text(encoding="utf-8"))
    own = yaml.safe_load(job(name)["spec"]["runtimeEnvYAML"])
    assert own == {"env_vars": elsewhere["env_vars"]}
