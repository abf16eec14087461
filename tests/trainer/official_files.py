"""Every task's official files, small, with invented content, where the committed configurations look for them."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

from tests.corpora import made_up_documents

PEOPLE = ("Ada Lovelace", "Émilie du Châtelet", "Srinivasa Ramanujan", "Sofja Kowalewskaja")


def write_official_files(folder: Path) -> None:
    """FOLDER/data/… as the configurations in trainer/configs name it."""
    for write in (
        write_hyperpartisan,
        write_imdb,
        write_wikihop,
        write_triviaqa,
        write_hotpotqa,
        write_conll,
        write_arxiv,
    ):
        write(folder / "data")


def _texts(count: int, seed: int = 3) -> list[str]:
    return [" ".join(document.split()[:60]) for document in made_up_documents(count, seed)]


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_hyperpartisan(data: Path) -> None:
    folder = data / "hyperpartisan"
    folder.mkdir(parents=True)
    texts = _texts(30)
    for kind, line in _xml_lines(texts).items():
        name = f"{kind}-training-byarticle-20181122.xml.gz"
        with gzip.open(folder / name, "wt", encoding="utf-8") as file:
            file.write(f'<?xml version="1.0" encoding="UTF-8"?>\n<articles>\n{line}\n</articles>\n')


def _xml_lines(texts: list[str]) -> dict[str, str]:
    articles = "\n".join(
        f'<article id="{number:07}" published-at="2018-01-01" title="On {number}"><p>{text}</p></article>'
        for number, text in enumerate(texts)
    )
    truth = "\n".join(
        f'<article id="{number:07}" hyperpartisan="{"true" if number % 3 == 0 else "false"}" '
        'labeled-by="article" url="http://localhost/"/>'
        for number in range(len(texts))
    )
    return {"articles": articles, "ground-truth": truth}


def write_imdb(data: Path) -> None:
    for part in ("train", "test"):
        for label, word in (("neg", "dull"), ("pos", "fine")):
            folder = data / "aclImdb" / part / label
            folder.mkdir(parents=True)
            for number, text in enumerate(_texts(20)):
                (folder / f"{number}_{number % 10}.txt").write_text(f"{word}<br /><br />{text}")


def write_wikihop(data: Path) -> None:
    for split, count in (("train", 8), ("dev", 4)):
        rows = [
            {
                "id": f"WH_{split}_{number}",
                "query": "country_of_citizenship ada lovelace",
                "answer": PEOPLE[number % 4].lower(),
                "candidates": [person.lower() for person in PEOPLE],
                "supports": [f"{PEOPLE[number % 4]} . {text}" for text in _texts(3)],
            }
            for number in range(count)
        ]
        _json(data / "wikihop" / f"{split}.json", rows)


def write_triviaqa(data: Path) -> None:
    folder = data / "triviaqa"
    (folder / "evidence" / "wikipedia").mkdir(parents=True)
    for number, text in enumerate(_texts(4)):
        page = f"{PEOPLE[number]} lived here. {text} {PEOPLE[number]}"
        (folder / "evidence" / "wikipedia" / f"Page_{number}.txt").write_text(page, encoding="utf-8")
    for split, count in (("train", 6), ("dev", 3)):
        rows = [
            {
                "Question": f"Who lived in house {number}?",
                "QuestionId": f"{split}_{number}",
                "QuestionSource": "http://localhost/",
                "Answer": {
                    "Aliases": [PEOPLE[number % 4]],
                    "NormalizedAliases": [PEOPLE[number % 4].lower()],
                    "NormalizedValue": PEOPLE[number % 4].lower(),
                    "Type": "FreeForm",
                    "Value": PEOPLE[number % 4],
                },
                "EntityPages": [
                    {
                        "DocSource": "Search",
                        "Filename": f"Page_{number % 4}.txt",
                        "Title": f"Page {number % 4}",
                    }
                ],
            }
            for number in range(count)
        ]
        about = {"Domain": "Wikipedia", "Split": split, "VerifiedEval": False, "Version": 1.0}
        _json(folder / "qa" / f"wikipedia-{split}.json", {"Data": rows, **about})


def write_hotpotqa(data: Path) -> None:
    for name, count in (("hotpot_train_v1.1", 6), ("hotpot_dev_distractor_v1", 3)):
        rows = [
            {
                "_id": f"{name}-{number}",
                "question": f"Was {PEOPLE[0]} older than {PEOPLE[number % 4]}?",
                "answer": ("yes", "no", PEOPLE[number % 4])[number % 3],
                "type": "comparison",
                "level": "easy",
                "supporting_facts": [[PEOPLE[0], 0], [PEOPLE[number % 4], 0]],
                "context": [[person, [f"{person} was born. ", f"So says {text[:60]}."]] for person, text in
                            zip(PEOPLE, _texts(4), strict=True)],
            }
            for number in range(count)
        ]  # fmt: skip
        _json(data / "hotpotqa" / f"{name}.json", rows)


def write_arxiv(data: Path) -> None:
    folder = data / "arxiv"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = [{"article": text, "abstract": text[:40]} for text in _texts(5)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_conll(data: Path) -> None:
    """Four parts a file; `she` and the name before it are one."""
    drawn = random.Random(0)
    for split in ("train", "development", "test"):
        folder = data / "conll-2012" / split / "nw"
        folder.mkdir(parents=True)
        lines = []
        for part in range(4):
            lines.append(f"#begin document (nw/{split}/00); part {part:03}")
            for sentence in range(4):
                name = PEOPLE[(part + sentence) % 4].split()[0]
                words = [
                    name,
                    "said",
                    "that",
                    "she",
                    "sees",
                    *drawn.choices(["a", "long", "house"], k=3),
                    ".",
                ]
                for number, word in enumerate(words):
                    cluster = f"({sentence})" if number in (0, 3) else "-"
                    lines.append(f"nw/{split}/00 {part} {number} {word} X * - - - Speaker#1 * {cluster}")
                lines.append("")
            lines.append("#end document")
        (folder / "00.v4_gold_conll").write_text("\n".join(lines) + "\n", encoding="utf-8")
