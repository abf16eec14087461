"""Every command of trainer/tasks/README.md, run in its order on small official files and small models."""

import json
import re
from pathlib import Path

import pytest

from tests.end_to_end.test_readme import ROOT, commands, run
from tests.trainer.finetuned import write_small_model
from tests.trainer.official_files import write_official_files
from tests.trainer.test_led import bart

PAGE = (ROOT / "trainer" / "tasks" / "README.md").read_text(encoding="utf-8")
COMMANDS = commands(PAGE)
FEW = "--steps 2 --batch_size 2 --sequence_length 64 --precision fp32 --cache_dir cache"


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "trainer").symlink_to(ROOT / "trainer")
    write_official_files(folder)
    (folder / "runs" / "longformer-base").mkdir(parents=True)
    write_small_model(folder / "runs" / "longformer-base" / "export", tokens=4096)
    bart(folder / "facebook" / "bart-large")
    for name in ("documents", "papers"):
        rows = [{"text": "One of my own."}, {"text": "Another.", "id": "second"}]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_every_command_does_what_it_says(stand_ins: Path) -> None:
    assert len(COMMANDS) == 8
    for command in COMMANDS:
        summaries = "summar" in command
        output = stand_ins / ("summaries.jsonl" if summaries else "predictions.txt")
        output.unlink(missing_ok=True)
        if "trainer.convert" in command:
            run(command, stand_ins, {})
        elif "trainer/finetune.py" in command:
            few = f"{FEW} --task.longest_summary 20 --optimizer.warmup_steps 0" if summaries else FEW
            done = run(f"{command} {few} --micro_batch_size 1", stand_ins, {})
            assert "(table 6)" in done.stdout
            task = "summarization" if summaries else "hyperpartisan"
            assert (stand_ins / "runs" / task / "export").exists() == ("--dry-run" not in command)
        else:
            done = run(command, stand_ins, {})
            scored = "--score" in command
            assert output.read_text().count("\n") == (2 if not scored else 5 if summaries else 3)
            assert not scored or json.loads(done.stdout)["rougeLsum" if summaries else "accuracy"] >= 0


def test_the_readme_shows_the_same_commands() -> None:
    assert set(COMMANDS) <= set(commands((ROOT / "README.md").read_text(encoding="utf-8")))


def test_the_page_names_every_task_and_what_it_links() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert rows == {
        "hyperpartisan",
        "imdb",
        "classification",
        "wikihop",
        "triviaqa",
        "hotpotqa",
        "coreference",
        "summarization",
    }
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "trainer" / "tasks" / link).exists(), link
