"""The main job, end to end, small: `make demo`.

    python -m demo.run [--to demo_output] [--processes 2]

Makes raw text in the four sources' formats, builds a corpus of 4,096-token shards with Ray, trains a tiny RoBERTa from
scratch, converts it to Longformer, continues masked-language-model pretraining at 4,096 tokens on two processes under
DeepSpeed's launcher, evaluates and exports; every step by the command a user would type, printed before it runs. It
ends with a table like the paper's table 5. Interrupted, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from demo.commands import Commands, StepFailed, free_port
from demo.sources import read_texts, train_tokenizer

VOCABULARY = 320
# A little under twice RoBERTa's 32 positions, so that a token sees the ends of its neighbouring copies: converting
# costs something, as it does in the paper, and the updates have something to repair.
WINDOW = 60
POSITION_UPDATES = {"extra_positions_only": "true", "optimizer.learning_rate": "1e-3", "steps": "100"}

# The rows of the paper's table 5 (base model): name, the paper's BPC, and the demo's model folder.
TABLE_5 = (
    ("RoBERTa, in pieces of its length", 1.846, "runs/roberta/export"),
    ("Longformer, positions not copied", 10.299, "models/longformer-uncopied"),
    ("Longformer, positions copied", 1.957, "models/longformer-start"),
    ("  + updates of everything", 1.753, "runs/longformer/export"),
    ("  + updates of the added positions alone", 1.850, "runs/positions/export"),
)


class Demo:
    """Runs the steps into one folder; each command's whole output goes to FOLDER/logs."""

    def __init__(self, folder: Path, processes: int, updates: int | None = None) -> None:
        self.folder = folder
        self.processes = processes
        self.updates = updates
        self.commands = Commands(folder, {"LONGSPAN_DEMO": str(folder)})

    def title(self, text: str) -> None:
        print(f"\n== {text}", flush=True)

    def pretrain(self, name: str, config: str, **keys: str) -> None:
        """Train under DeepSpeed's launcher with a configuration of trainer/configs and overriding keys."""
        if self.updates is not None:
            keys |= {"steps": str(self.updates), "optimizer.warmup_steps": str(self.updates // 2)}
        flags = [part for key, value in keys.items() for part in (f"--{key}", value)]
        self.commands.run(
            f"pretrain-{name}",
            *("deepspeed", "--num_gpus", str(self.processes), "--master_port", str(free_port())),
            "trainer/pretrain.py",
            *("--config", f"trainer/configs/{config}.yaml", "--run", str(self.folder / "runs" / name)),
            *("--corpus", str(self.folder / "corpus"), *flags),
        )

    def sources(self) -> None:
        self.title("raw text: this machine's own documentation, in the four sources' formats")
        sources = self.folder / "sources"
        self.commands.python("sources", "demo.sources", "--to", str(sources))
        tokenizer = self.folder / "tokenizer" / "tokenizer.json"
        if not tokenizer.exists():
            train_tokenizer(read_texts(sources), VOCABULARY, tokenizer)
        print(f"  tokenizer: byte-level BPE of {VOCABULARY} entries in {tokenizer}")

    def corpus(self) -> None:
        self.title("corpus: 4,096-token sequences, built by Ray on this machine")
        config = "pipeline/configs/demo.yaml"
        self.commands.python(
            "corpus", "pipeline.build_corpus", "--config", config, "--output", str(self.folder / "corpus")
        )

    def train(self) -> None:
        self.title("a tiny RoBERTa from scratch, since nothing is downloaded")
        self.pretrain("roberta", "demo_roberta")
        self.title("RoBERTa to Longformer, with and without copying its positions")
        source = str(self.folder / "runs" / "roberta" / "export")
        for name, flags in (("longformer-start", ()), ("longformer-uncopied", ("--no-copy-positions",))):
            to = str(self.folder / "models" / name)
            size = ("--max-positions", "4096", "--window", str(WINDOW))
            self.commands.python(
                f"convert-{name}", "trainer.convert", "--from", source, "--to", to, *size, *flags
            )
        self.title(
            "masked-language modelling continued at 4,096 tokens: all weights, then the added positions alone"
        )
        start = str(self.folder / "models" / "longformer-start")
        self.pretrain("longformer", "demo_longformer", model=start)
        self.pretrain("positions", "demo_longformer", model=start, **POSITION_UPDATES)

    def evaluate(self) -> dict[str, float]:
        self.title(
            "bits per masked token on held-out documents: the same text and masked places for every model"
        )
        found = {}
        for row, _, model in TABLE_5:
            name = model.replace("/", "-")
            arguments = ("--model", str(self.folder / model), "--corpus", str(self.folder / "corpus"))
            output = self.commands.python(f"evaluate-{name}", "trainer.evaluate", *arguments)
            found[row] = float(json.loads(output.strip().splitlines()[-1])["bpc"])
        return found


def corpus_table(corpus: Path) -> str:
    """Documents and tokens of each source, in, dropped and kept, from the corpus's manifest."""
    manifest = json.loads((corpus / "manifest.json").read_text(encoding="utf-8"))
    lines = [f"{'source':<12}{'documents':>10}{'kept':>8}{'tokens kept':>14}   dropped"]
    for source in manifest["sources"]:
        kept = source["kept"]
        dropped = ", ".join(f"{reason} {counts['documents']}" for reason, counts in source["dropped"].items())
        lines.append(
            f"{source['name']:<12}{source['read']:>10,}{kept['documents']:>8,}{kept['tokens']:>14,}   {dropped}"
        )
    return "\n".join(lines)


def table_5(found: dict[str, float]) -> str:
    lines = [f"{'bits per masked token':<44}{'here':>8}{'paper':>9}"]
    lines += [f"{row:<44}{found[row]:>8.3f}{paper:>9.3f}" for row, paper, _ in TABLE_5]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m demo.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, default=Path("demo_output"), metavar="DIR", help="(demo_output)")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="training processes (2)")
    parser.add_argument(
        "--updates",
        type=int,
        metavar="N",
        help="train for N updates each time: quick, but the table means nothing",
    )
    options = parser.parse_args(arguments)
    started = time.monotonic()
    demo = Demo(options.to.resolve(), options.processes, options.updates)
    try:
        demo.sources()
        demo.corpus()
        demo.train()
        found = demo.evaluate()
    except (StepFailed, OSError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    folder = demo.folder
    demo.title("the corpus")
    print(corpus_table(folder / "corpus"))
    demo.title("table 5, at this size (the paper's column: its base model on its corpus)")
    print(table_5(found))
    export = folder / "runs" / "longformer" / "export"
    demo.title("where everything lies")
    print(f"corpus    {folder / 'corpus'}\nreport    {folder / 'corpus' / 'report.html'}")
    print(f"run       {folder / 'runs' / 'longformer'}  (tensorboard --logdir {folder / 'runs'})")
    print(f"model     {export}\n          LongformerForMaskedLM.from_pretrained({str(export)!r})")
    print(f"logs      {demo.commands.logs}")
    minutes = (time.monotonic() - started) / 60
    print(
        f"\n{minutes:.1f} minutes: "
        + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in demo.commands.times)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
