"""Every command of trainer/tasks/README.md, run in its order on small official files and a small model."""

import json
import re
from pathlib import Path

import pytest

from tests.end_to_end.test_readme import ROOT, commands, run
from tests.trainer.finetuned import write_small_model
from tests.trainer.official_files import write_official_files

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
    rows = [{"text": "One of my own."}, {"text": "Another.", "id": "second"}]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_every_command_does_what_it_says(stand_ins: Path) -> None:
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        output = stand_ins / "predictions.txt"
        output.unlink(missing_ok=True)
        if "trainer/finetune.py" in command:
            done = run(f"{command} {FEW} --micro_batch_size 1", stand_ins, {})
            assert "(table 6)" in done.stdout
            assert (stand_ins / "runs" / "hyperpartisan" / "export").exists() == ("--dry-run" not in command)
        else:
            done = run(command, stand_ins, {})
            assert output.read_text().count("\n") == (3 if "--score" in command else 2)
            assert "--score" not in command or json.loads(done.stdout)["accuracy"] >= 0


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
