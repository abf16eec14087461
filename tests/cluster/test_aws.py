"""Ray's own provider starts the machines of aws.yaml, on moto's EC2: they get what the file names, and Ray makes no
roles and security groups of its own, which would be wider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.util import prepare_config

from tests.cluster.filled import filled

AWS = Path(__file__).parents[2] / "cluster" / "aws.yaml"
REGION = "us-west-2"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """aws.yaml, filled in with what an account on moto has, as Ray's bootstrap leaves it."""
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray keeps the key there that it makes
    (tmp_path / ".ssh").mkdir()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "made-up")
    with mock_aws():
        ec2, iam = boto3.client("ec2", region_name=REGION), boto3.client("iam")
        subnet = ec2.describe_subnets()["Subnets"][0]
        group = ec2.create_security_group(GroupName="own", Description="own", VpcId=subnet["VpcId"])
        found = filled(yaml.safe_load(AWS.read_text(encoding="utf-8")))
        found["provider"] |= {"region": REGION, "availability_zone": subnet["AvailabilityZone"]}
        profiles = {
            kind: iam.create_instance_profile(InstanceProfileName=kind)["InstanceProfile"]["Arn"]
            for kind in ("head", "worker")
        }
        for name, node_type in found["available_node_types"].items():
            node_type["node_config"] |= {
                "ImageId": ec2.describe_images()["Images"][0]["ImageId"],
                "SecurityGroupIds": [group["GroupId"]],
                "SubnetIds": [subnet["SubnetId"]],
                "IamInstanceProfile": {"Arn": profiles["head" if name == "head" else "worker"]},
            }
        from ray.autoscaler._private.aws.config import bootstrap_aws

        yield bootstrap_aws(prepare_config(found))


def test_machines_are_started_as_the_file_says(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, node_type in config["available_node_types"].items():
        provider.create_node(node_type["node_config"], {"ray-user-node-type": name}, 1)
    ec2 = boto3.client("ec2", region_name=REGION)
    started = {
        tag["Value"]: instance
        for reservation in ec2.describe_instances()["Reservations"]
        for instance in reservation["Instances"]
        for tag in instance["Tags"]
        if tag["Key"] == "ray-user-node-type"
    }
    assert set(started) == {"head", "cpu", "cpu_spot", "gpu", "gpu_spot"}
    for name, instance in started.items():
        assert instance["InstanceType"] == config["available_node_types"][name]["node_config"]["InstanceType"]
        assert instance.get("InstanceLifecycle") == ("spot" if name.endswith("spot") else None)
        assert [group["GroupName"] for group in instance["SecurityGroups"]] == ["own"]
        assert instance["IamInstanceProfile"]["Arn"].endswith("head" if name == "head" else "worker")
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert boto3.client("iam").list_roles()["Roles"] == []
    groups = {group["GroupName"] for group in ec2.describe_security_groups()["SecurityGroups"]}
    assert groups == {"default", "own"}
