"""What each filter, decontamination and signing cost, alone in this process, one thread."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.benchmark.methods import ENGINES
from pipeline.benchmark.text import read_texts
from pipeline.decontaminate import Decontaminate, accepts, build_index, contaminated
from pipeline.deduplicate import NearDuplicates, signatures
from pipeline.documents import Document
from pipeline.fetch import find_inputs
from pipeline.filters import FILTERS
from pipeline.filters.filter import BaseFilter
from pipeline.tokenizer import load_tokenizer


def measure_filters(folder: Path, text: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for tokenising by the fastest engine, each filter with its defaults, decontamination, and signing for
    near-duplicates: MB of text a CPU second, and the seconds of each round."""
    texts = read_texts(text)
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    size = sum(len(text.encode()) for text in texts)
    tokenizer = load_tokenizer(folder / "tokenizer", ENGINES[0])
    ids, offsets = tokenizer.encode(texts)
    runs: dict[str, Callable[[], Any]] = {f"tokenising, {ENGINES[0]}": lambda: tokenizer.encode(texts)}
    for name, kind in FILTERS.items():
        runs[f"filter {name}"] = _asked(kind(), documents)
    settings = Decontaminate(paths=(str(folder / "first.jsonl"),))
    index = build_index(find_inputs(settings.paths, accepts), settings)
    runs["decontamination"] = lambda: [contaminated(text, index, settings) for text in texts]
    runs["near-duplicates, signing"] = lambda: signatures(ids, offsets, NearDuplicates())
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return [
        {"method": name, "rate": size / 1e6 / max(statistics.median(taken), 1e-9), "seconds": taken}
        for name, taken in seconds.items()
    ]


def _asked(item: BaseFilter, documents: Sequence[Document]) -> Callable[[], Any]:
    return lambda: [item.reason(document) for document in documents]
