"""Text from a character model, as it is drawn.

    python -m trainer.generate --model RUN/export --prompt 'The history of ' [--characters N] [--temperature T]
    tail -c 5000 notes.txt | python -m trainer.generate --model RUN/export --prompt-file - > more.txt

What follows the prompt goes to stdout, character by character, and nothing else does, but for a heading a text where
--count asks for several; speed and memory go to stderr. Each layer remembers its window alone, so that a character
costs the same memory, and once the windows are full the same time, however many came before: N may be millions. Of a
prompt only the end is read, as far back as the model can see.

The same model, prompt, options and seed give the same text, on the same machine and library versions; text i of a
seed does not depend on --count. --temperature below 1 makes it safer, at 0 it takes the likeliest character always;
--top-k 20 or --top-p 0.9 leave out what is unlikely. From a byte model bytes that are no UTF-8 show as U+FFFD.
"""

from __future__ import annotations

import argparse
import codecs
import io
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from trainer.batches.cache import gigabytes
from trainer.batches.text import Alphabet
from trainer.engine.config import InputError
from trainer.engine.randomness import as_seed
from trainer.model.charlm_cache import WindowCache, cache_bytes
from trainer.model.charlm_folder import load_character_model
from trainer.model.sampling import Sampling

# What a terminal would obey; a model of bytes can draw any.
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {*map(ord, "\t\n\r")}, "\N{REPLACEMENT CHARACTER}")


def continuation(cache: WindowCache, logits: Tensor, sampling: Sampling, seed: int) -> Iterator[int]:
    """The characters that follow what the cache has read, whose last gave logits (1, vocab_size), without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        character = sampling.choose(logits, torch.rand(1, dtype=torch.float64, generator=generator))
        yield int(character)
        logits = cache.append(character[:, None])


def first_characters(options: argparse.Namespace, alphabet: Alphabet) -> np.ndarray:
    """The prompt's ids; without one, those of the newline or space that a text follows."""
    if options.prompt is None and options.prompt_file is None:
        for text in (b"\n", b" "):
            try:
                return alphabet.encode(text)
            except InputError:  # as text8, which has no newline
                continue
        raise InputError("--prompt: found none, expected one: the model knows neither newline nor space")
    if options.prompt is not None:
        name, text = "--prompt", os.fsencode(options.prompt)
    else:
        name = "standard input" if options.prompt_file == Path("-") else str(options.prompt_file)
        try:
            text = (
                sys.stdin.buffer.read()
                if options.prompt_file == Path("-")
                else options.prompt_file.read_bytes()
            )
        except OSError as error:
            raise InputError(f"--prompt-file: {name}: {error.strerror or error}") from error
    if not text:
        raise InputError(
            f"{name}: found nothing, expected a character or more; without --prompt and --prompt-file a text starts "
            "as after a newline"
        )
    try:
        return alphabet.encode(text)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def generate(options: argparse.Namespace) -> None:
    """Write the texts to stdout, and how it went to stderr."""
    loaded = load_character_model(options.model)
    prompt = first_characters(options, loaded.alphabet)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = _memory(device)
    if cache_bytes(loaded.model.config, loaded.lookback) > there:
        raise InputError(
            f"{options.model}: found windows that take more than the {gigabytes(there)} of memory here, "
            "expected smaller ones"
        )
    start = time.perf_counter()
    cache = WindowCache(loaded.model.to(device), loaded.lookback)
    seen = prompt[-(cache.reach + 1) :]  # before it is made eight times as large
    logits = cache.append(torch.from_numpy(seen.astype(np.int64))[None])
    if not bool(logits.isfinite().all()):
        raise InputError(
            f"{options.model}: found logits that are not finite, expected a model that can be used"
        )
    prompted = time.perf_counter()
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    live = sys.stdout.isatty()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a stdout that is no UTF-8 shows what it cannot as "?"
        sys.stdout.reconfigure(errors="replace")
    with tqdm(
        desc="generating",
        total=options.characters * options.count,
        unit=" characters",
        disable=live or not sys.stderr.isatty(),
    ) as bar:
        for number in range(options.count):
            if options.count > 1:
                sys.stdout.write("\n" * (number > 0) + f"=== {number + 1} of {options.count} ===\n")
            decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
            text = cache if number + 1 == options.count else cache.fork()
            seed = as_seed("generated text", options.seed, number)
            drawn = continuation(text, logits, sampling, seed)
            for character in islice(drawn, options.characters):
                _write(decoder.decode(loaded.alphabet.decode(np.array([character]))), live)
                bar.update()
            _write(decoder.decode(b"", final=True) + "\n" * live, live)
    seconds = time.perf_counter() - prompted
    count = options.characters * options.count
    print(
        f"generate: {count:,} characters in {seconds:.1f} s, {count / seconds:,.0f} a second, after a prompt of "
        f"{len(prompt):,} in {prompted - start:.1f} s, on {device.type}; {cache.nbytes / 1e6:,.1f} MB hold what the "
        f"model looks back to, {cache.reach:,} characters; seed {options.seed}",
        file=sys.stderr,
    )


def _memory(device: torch.device) -> int:
    """Bytes that the device has, in use or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _write(text: str, live: bool) -> None:
    if text:
        sys.stdout.write(text.translate(_CONTROLS) if live else text)
        sys.stdout.flush()


def check_options(options: argparse.Namespace) -> None:
    """InputError with all that is out of its bounds."""
    problems = [
        f"--{name.replace('_', '-')}: found {getattr(options, name)}, expected {expected}"
        for name, fits, expected in (
            ("characters", options.characters >= 1, "at least 1"),
            ("temperature", 0 <= options.temperature < math.inf, "a number from 0 on"),
            ("top_k", options.top_k is None or options.top_k >= 1, "at least 1"),
            ("top_p", 0 < options.top_p <= 1, "a share above 0 and at most 1"),
            ("seed", options.seed >= 0, "at least 0"),
            ("count", options.count >= 1, "at least 1"),
            (
                "count",
                options.count <= 1 or options.temperature != 0,
                "1: at --temperature 0 all are the same",
            ),
        )
        if not fits
    ]
    if problems:
        raise InputError("\n".join(problems))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="DIR",
        help="of trainer/charlm.py: RUN/export or RUN/checkpoints/step-…",
    )
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt",
        metavar="TEXT",
        help="what the text goes on from (default: a newline, or a space where the model knows none)",
    )
    prompt.add_argument(
        "--prompt-file",
        type=Path,
        metavar="FILE",
        help="the same from a file, to its last newline included; - is standard input",
    )
    parser.add_argument(
        "--characters", type=int, default=500, metavar="N", help="how many, a text (default 500)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0 on (default 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="of the K likeliest characters only")
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="of the fewest that make up a share of P (default 1: all)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the choices (default 0)")
    parser.add_argument(
        "--count", type=int, default=1, metavar="M", help="texts, one after the other (default 1)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0, or 2 with one message where it cannot do what was asked for."""
    options = _parser().parse_args(arguments)
    try:
        check_options(options)
        generate(options)
    except BrokenPipeError:  # `| head` has seen enough; what Python flushes at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        print(f"generate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("generate: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
