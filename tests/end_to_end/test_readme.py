"""Every command and every Python snippet of the README, run: for real where it can be, on small stand-ins elsewhere.

The stand-ins have the names that the README uses: small models in folders `FacebookAI/roberta-base` and
`allenai/longformer-base-4096` in place of the hub's, text in `documents`, three small sources in place of the paper's.
Trainings that are the paper's size run one update.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from deepspeed.launcher.runner import parse_args

from demo.commands import free_port
from demo.sources import train_tokenizer
from tests.attention.test_transformers import a_longformer
from tests.corpora import build_small_corpus, made_up_documents
from tests.pipeline.conftest import environment, write_jsonl, write_tar
from tests.pipeline.test_ray import Cluster, cluster  # noqa: F401
from tests.trainer.models import roberta_folder
from trainer.convert import convert

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    """The lines of the sh blocks, without comments."""
    return [
        line.partition("  #")[0].strip()
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
        if line.strip()
    ]


CORPUS_PAGE = (ROOT / "pipeline" / "README.md").read_text(encoding="utf-8")
COMMANDS = commands(README) + commands(CORPUS_PAGE)
# test_finetuning_page.py runs these.
FINETUNING = commands((ROOT / "trainer" / "tasks" / "README.md").read_text(encoding="utf-8"))
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
ONE_UPDATE = "--steps 1 --batch_size 2 --micro_batch_size 1 --optimizer.warmup_steps 0 --precision fp32"


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the README's relative paths, and its /shared, mean something small."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("pipeline", "trainer", "cluster"):
        (folder / name).symlink_to(ROOT / name)
    texts = made_up_documents(400, seed=7)
    model = roberta_folder(folder / "FacebookAI" / "roberta-base", tokens=512, vocab_size=300)
    train_tokenizer(texts, 300, model / "tokenizer.json")
    a_longformer().save_pretrained(folder / "allenai" / "longformer-base-4096")
    documents = folder / "documents"
    documents.mkdir()
    for number, text in enumerate(texts):
        (documents / f"{number}.txt").write_text(text, encoding="utf-8")
    rows = [{"id": str(i), "url": "u", "title": "t", "text": text} for i, text in enumerate(texts)]
    lines = write_jsonl(folder / "shared" / "rows.jsonl", rows).read_bytes()
    write_tar(folder / "shared" / "realnews.tar.gz", {"realnews/realnews.jsonl": lines})
    with zipfile.ZipFile(folder / "enwik8.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("enwik8", "\n".join(texts))
    (folder / "book.txt").write_text("\n".join(texts[:20]))
    books = {f"books1/{number}.txt": text.encode() for number, text in enumerate(texts[:50])}
    write_tar(folder / "shared" / "books1.tar.gz", books)
    return folder


def adapt(config: Path, folder: Path) -> None:
    """What the README asks the reader to change in a copied configuration, and local files in place of the hub's."""
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    values["tokenizer"] = str(folder / values["tokenizer"])
    for source in values["sources"]:
        source["accept_terms"] = True
        if source["path"].startswith("hf://"):
            source["path"] = str(folder / "shared" / "rows.jsonl")
    values["validation_fraction"] = 0.2
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    if config.name == "my.yaml":
        values["sources"][0]["path"] = str(folder / "documents")
        (folder / "shared" / "my.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def run(command: str, folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A command as the reader types it, but for the launcher's port, which another test may have at the same time."""
    command = re.sub(
        r"\bdeepspeed (?=--num_gpus|trainer/)", f"deepspeed --master_port {free_port()} ", command
    )
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(DS_ACCELERATOR="cpu", **variables),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done


@pytest.mark.timeout(1800)  # two dozen commands, a launch or a build each
def test_every_command_does_what_it_says(stand_ins: Path, cluster: Cluster) -> None:  # noqa: F811
    folder, variables = stand_ins, {"RAY_API_SERVER_ADDRESS": cluster.dashboard}
    done = []
    for command in COMMANDS:
        command = command.replace("/shared", str(folder / "shared")).replace("step-00065000", "step-00000001")
        if command in ("make demo", "make test"):
            # test_demo.py runs the one, and this is the other; here, that the targets stand.
            subprocess.run(["make", "-n", command.split()[1]], cwd=ROOT, check=True, capture_output=True)
        elif command.startswith(". .venv") or command in FINETUNING:
            pass
        elif command.startswith("cp "):
            run(command, folder, variables)
            adapt(folder / command.split()[-1], folder)
        elif command.startswith("export "):
            variables |= dict(part.split("=", 1) for part in shlex.split(command)[1:])
        elif command.startswith("ray job submit"):
            # The upload is the repository, as for the reader; each spelling builds anew.
            shutil.rmtree(folder / "shared" / "corpus", ignore_errors=True)
            run(f"cd {shlex.quote(str(ROOT))} && {command}", folder, variables)
            assert (folder / "shared" / "corpus" / "manifest.json").exists()
        elif "trainer/pretrain.py" in command:
            # Their files name eight GPUs' precision and batch; each run is another one.
            shutil.rmtree(folder / "runs", ignore_errors=True)
            dry = run(command + ("" if "--dry-run" in command else " --dry-run"), folder, variables)
            assert "steps     65,000 = 17,039,360,000 tokens" in dry.stdout
            assert not (folder / "runs").exists()
            if "--dry-run" not in command:
                run(f"{command} {ONE_UPDATE}", folder, variables)
        elif "charlm" in command:
            run_characters(command, folder, variables)
        elif command.startswith("python -m attention."):
            run_attention(command, folder, variables)
        elif command.startswith(("python -m pipeline.", "python -m trainer.")):
            out = run(command, folder, variables)
            if "trainer.evaluate" in command:
                assert json.loads(out.stdout)["bpc"] > 0
        else:
            pytest.fail(f"the README has a command that nothing here runs: {command}")
        done.append(command)
    assert len(done) == len(COMMANDS) > 12
    assert (folder / "models" / "longformer-base" / "model.safetensors").exists()
    run_snippets(folder)


def run_characters(command: str, folder: Path, variables: dict[str, str]) -> None:
    """The plan over texts of ours, and one update of each phase, of few characters."""
    command = command.replace("http://mattmahoney.net/dc/enwik8.zip", "enwik8.zip")
    if "trainer/charlm.py" not in command:
        few = "--characters 40" if "trainer.generate" in command else "--sequence-length 512 --windows 2"
        out = run(f"{command} {few}", folder, variables).stdout
        assert 0 < len(out) <= 40 if "trainer.generate" in command else 0 < json.loads(out)["bpc"] < 16
        return
    if "charlm_small" in command:
        command += " --text.path enwik8.zip"
    if "--dry-run" in command:
        assert "steps     570,000 in 5 phases" in run(command, folder, variables).stdout
        return
    config = Path(shlex.split(command)[shlex.split(command).index("--config") + 1])
    for number in range(len(yaml.safe_load((ROOT / config).read_text())["phases"])):
        shape = {"steps": 1, "sequence_length": 32, "batch_size": 2, "micro_batch_size": 1, "warmup_steps": 0}
        command += "".join(f" --phases.{number}.{key} {value}" for key, value in shape.items())
    run(f"{command} --precision fp32 --evaluation.characters 40", folder, variables)


def test_every_command_of_the_attention_page(tmp_path: Path) -> None:
    found = commands((ROOT / "attention" / "README.md").read_text(encoding="utf-8"))
    for command in found:
        run_attention(command, tmp_path, {})
    assert len(found) > 2


def test_the_attention_page_shows_the_same_models() -> None:
    page = (ROOT / "attention" / "README.md").read_text(encoding="utf-8")
    shown = [snippet for snippet in SNIPPETS if "attention.huggingface" in snippet]
    assert len(shown) == 2
    assert shown == re.findall(r"```python\n(.*?)```", page.partition("## In transformers")[2], re.DOTALL)[:2]


def test_every_command_of_the_trainer_page(tmp_path: Path) -> None:
    """One update trained for real; several machines as far as their plan, as one machine has no others."""
    (tmp_path / "trainer").symlink_to(ROOT / "trainer")
    roberta = roberta_folder(tmp_path / "roberta", tokens=512, vocab_size=300)
    corpus = build_small_corpus(tmp_path / "built", sequence_length=4096)
    shutil.copy(corpus / "tokenizer.json", roberta / "tokenizer.json")
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "longformer").symlink_to(corpus)
    convert(roberta, tmp_path / "models" / "longformer-base-start", tokens=4096, window=512)
    (tmp_path / "hosts").write_text("node-a slots=8\nnode-b slots=8\n")
    found = commands((ROOT / "trainer" / "README.md").read_text(encoding="utf-8"))
    several = []
    for command in found:
        if "--hostfile" in command:
            several.append(command)
        elif "trainer/pretrain.py" in command:
            out = run(command if "--dry-run" in command else f"{command} {ONE_UPDATE}", tmp_path, {})
            assert "batch     " in out.stdout
        else:
            assert command.startswith("python -m trainer.plot runs/longformer-base"), command
            run(command, tmp_path, {})
    assert (tmp_path / "runs" / "longformer-base" / "plot.png").stat().st_size > 1000
    assert (tmp_path / "compare.svg").stat().st_size > 1000
    # By ssh, and without it on each of two machines: the launcher understands all, and one plans for both machines.
    understood = [parse_args(shlex.split(command)[1:]) for command in several]
    assert [(found.hostfile, found.no_ssh, found.node_rank) for found in understood] == [
        ("hosts", False, -1),
        ("hosts", True, 0),
        ("hosts", True, 1),
    ]
    assert {found.user_script for found in understood} == {"trainer/pretrain.py"}
    plan = run(f"{several[1]} --dry-run", tmp_path, {})
    assert "16 micro-batches of 4, 1 on each of 16 processes" in plan.stdout


def run_attention(command: str, folder: Path, variables: dict[str, str]) -> None:
    """Pictures as they are, the benchmark and the compiler at sizes that take no time, and no GPU refused."""
    if "--device cuda" in command:
        if not torch.cuda.is_available():
            assert "found no GPU" in run(f"{command} 2>&1 || [ $? = 2 ]", folder, variables).stdout
        return
    command = command.replace(
        "--tokens 1024 4096", "--tokens 32 64 --window 16 --rounds 1 --allocator default"
    )
    if "attention.cuda.compiled" in command:
        few = "--dtype float16 --head-dim 32 --features plain --capability 8.0"
        assert "0 with a breach" in run(f"{command} {few}", folder, variables).stdout
        return
    run(command, folder, variables)
    assert (folder / command.split()[-1]).stat().st_size > 1000


def run_snippets(folder: Path) -> None:
    """The Python blocks, in the same folder, each in an interpreter of its own."""
    assert len(SNIPPETS) == 4
    for snippet in SNIPPETS:
        done = subprocess.run(
            [sys.executable, "-c", snippet],
            cwd=folder,
            env={**os.environ, "HF_DATASETS_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{snippet}\n{done.stderr}"


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
