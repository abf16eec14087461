"""Every command of cluster/README.md is one that its program understands: parsed by the real parsers, where running it
would take a cluster, and run where it would not."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import yaml
from ray.scripts.scripts import cli

from cluster.check import main
from cluster.launch import make_parser as launch_parser
from cluster.progress import GAUGES
from pipeline.build_corpus import make_parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "cluster" / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def parse_ray(words: list[str]) -> click.Context:
    """The context in which Ray would run the command; click's exception where it does not know it."""
    command: click.Command = cli
    context = cli.make_context("ray", words[1:])
    while isinstance(command, click.Group):
        name, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert inner is not None
        command, context = inner, inner.make_context(name, rest, parent=context)
    return context


def expand(commands: list[str]) -> list[str]:
    """With the variables that the page exports in place."""
    variables = {}
    for command in commands:
        if command.startswith("export "):
            variables |= dict(part.split("=", 1) for part in shlex.split(command)[1:])
    return [re.sub(r"\$(\w+)", lambda found: variables.get(found[1], found[0]), each) for each in commands]


def check_job(entrypoint: list[str]) -> None:
    """What a submitted job runs."""
    assert entrypoint[:2] == ["python", "-m"]
    module, arguments = entrypoint[2], entrypoint[3:]
    if module == "pipeline.build_corpus":
        make_parser().parse_args(arguments)
    else:
        assert module == "cluster.launch"
        assert launch_parser().parse_known_args(arguments)[1] == []


def test_every_command_is_understood(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    programs = []
    for command in expand(COMMANDS):
        words = shlex.split(command)
        programs.append(words[0])
        if words[0] == "ray":
            context = parse_ray(words)
            for key in ("cluster_config_file", "runtime_env"):
                if key in context.params:
                    assert (ROOT / context.params[key]).is_file()
            if "entrypoint" in context.params:
                assert context.params["working_dir"] == "."
                check_job(list(context.params["entrypoint"]))
        elif words[:3] == ["python", "-m", "cluster.check"]:
            assert main(words[3:]) == 2  # as they are, they are to be filled in
            assert "to be filled in" in capsys.readouterr().err
        elif words[0] == "docker":
            assert words[1] == "build"
            assert (ROOT / words[words.index("-f") + 1]).is_file()
        elif words[0] == "kubectl":
            check_kubectl(words)
        else:
            assert words[0] == "export", f"nothing here knows {command}"
            subprocess.run(["bash", "-c", command], check=True)
    assert len(programs) > 20
    assert {"ray", "python", "docker", "kubectl", "export"} == set(programs)


def check_kubectl(words: list[str]) -> None:
    """Files that are applied are there, and what is asked for is what they make."""
    if words[1] == "apply":
        assert (ROOT / words[words.index("-f") + 1]).is_file()
    elif words[1] in ("get", "delete"):
        job = yaml.safe_load((ROOT / "cluster" / "kuberay" / "rayjob-pretrain.yaml").read_text())
        assert words[2:] == [job["kind"].lower(), job["metadata"]["name"]]
    else:
        assert words[1:4] == ["create", "secret", "generic"]


def test_a_command_that_ray_does_not_know_is_noticed() -> None:
    for wrong in (["ray", "jobb", "list"], ["ray", "up", "--yess", "x.yaml"], ["ray", "job", "stop"]):
        with pytest.raises(click.ClickException):
            parse_ray(wrong)


def test_gauges_are_those_that_are_set() -> None:
    assert set(re.findall(r"`ray_(longspan_\w+)`", README)) == set(GAUGES)


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / "cluster" / target).exists(), target
