"""The corpus job on a Ray cluster of several nodes on this machine, of which one is killed.

`make test` has it of hosts, in test_hosts.py, where there is root.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from ray.cluster_utils import Cluster

from demo.sources import train_tokenizer
from tests.cluster.drills import in_drills
from tests.corpora import lasting_build, made_up_documents
from tests.pipeline.conftest import contents

ROOT = Path(__file__).parents[2]
SEED = 20041122
KILLS = int(os.environ.get("LONGSPAN_KILLS", "0"))


@pytest.mark.drill
@in_drills
def test_a_lost_node_changes_no_byte(tmp_path: Path) -> None:
    documents = made_up_documents(2500, SEED)
    train_tokenizer(documents[:200], 300, tmp_path / "tokenizer.json")
    (tmp_path / "raw.txt").write_text("".join(f"{document}\n" for document in documents), encoding="utf-8")
    config = lasting_build(str(tmp_path / "tokenizer.json"), str(tmp_path / "raw.txt"), SEED)
    (tmp_path / "corpus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pipeline.build_corpus",
        "--config",
        str(tmp_path / "corpus.yaml"),
        "--output",
    ]
    done = subprocess.run(
        [*command, str(tmp_path / "expected"), "--local"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = contents(tmp_path / "expected")

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
    generator = random.Random(SEED)
    try:
        for kill in range(min(KILLS, 3)):
            node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
            output, files = tmp_path / f"corpus-{kill}", generator.randrange(20, 120)
            environment = {**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(
                [*command, str(output)],
                cwd=ROOT,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            deadline = time.monotonic() + 240
            while sum(len(names) for _, _, names in os.walk(output / ".work")) <= files:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            cluster.remove_node(node, allow_graceful=False)
            assert process.poll() is None, "it ended before"
            printed, _ = process.communicate(timeout=300)
            assert process.returncode == 0, printed
            assert contents(output) == expected
    finally:
        cluster.shutdown()
