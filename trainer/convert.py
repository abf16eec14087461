"""RoBERTa to Longformer, and back.

    python -m trainer.convert --from roberta-base --to longformer-base-4096 --max-positions 4096 --window 512
    python -m trainer.convert --from longformer-base-4096 --to roberta-base-again

A RoBERTa folder or hub id becomes a Longformer that `transformers.LongformerForMaskedLM.from_pretrained` loads: its
position rows are tiled to --max-positions, every layer gets --window (total width, both sides), and the `*_global`
projections start as copies of query, key and value. A Longformer becomes a RoBERTa with its first 512 positions.

--no-copy-positions draws the rows beyond RoBERTa's own at random, as a new model would have them: the first row of
the paper's table 5.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from trainer.engine.config import InputError
from trainer.engine.randomness import as_seed
from trainer.model.folder import (
    body_and_head,
    locate_model,
    read_config,
    read_weights,
    with_global_projections,
    without_global_projections,
    write_model,
)
from trainer.model.longformer import EncoderConfig

POSITIONS = "embeddings.position_embeddings.weight"
ROBERTA_TOKENS = 512


def tile_positions(table: Tensor, first: int, tokens: int) -> Tensor:
    """A position table (first + tokens, hidden) whose rows from `first` repeat the learned ones of `table`.

    Rows below `first` (up to and including padding) keep their values. The learned rows are laid end to end, the
    last copy cut where `tokens` is no multiple of them (section 5: RoBERTa's 512 rows, eight times for 4,096).
    """
    learned = table[first:]
    copies = -(-tokens // len(learned))
    return torch.cat([table[:first], learned.repeat(copies, 1)[:tokens]])


def untiled_positions(table: Tensor, first: int, tokens: int, deviation: float, seed: int) -> Tensor:
    """As tile_positions, but rows beyond the learned ones are drawn as a new model's are."""
    new = tokens + first - len(table)
    generator = torch.Generator().manual_seed(as_seed("untiled positions", seed))
    return torch.cat([table, torch.randn(max(0, new), table.shape[1], generator=generator) * deviation])[
        : first + tokens
    ]


def lengthen(
    config: EncoderConfig,
    tensors: dict[str, Tensor],
    tokens: int,
    window: int,
    copy_positions: bool,
    seed: int,
) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """A RoBERTa's configuration and prefix-free tensors as a Longformer's."""
    first = config.pad_token_id + 1
    table = tensors[POSITIONS].float()
    if copy_positions:
        positions = tile_positions(table, first, tokens)
    else:
        positions = untiled_positions(table, first, tokens, config.initializer_range, seed)
    longer = replace(
        config,
        architecture="longformer",
        max_position_embeddings=first + tokens,
        attention_window=[window] * config.num_hidden_layers,
        original_max_position_embeddings=min(len(table), first + tokens),
    )
    return longer, with_global_projections({**tensors, POSITIONS: positions})


def shorten(config: EncoderConfig, tensors: dict[str, Tensor]) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """A Longformer's configuration and prefix-free tensors as a RoBERTa's, with its first positions."""
    rows = config.original_max_position_embeddings or config.pad_token_id + 1 + ROBERTA_TOKENS
    rows = min(rows, config.max_position_embeddings)
    shorter = replace(
        config,
        architecture="roberta",
        max_position_embeddings=rows,
        attention_window=[],
        original_max_position_embeddings=0,
    )
    kept = without_global_projections(tensors)
    return shorter, {**kept, POSITIONS: kept[POSITIONS][:rows].clone()}


def convert(
    source: str | Path, to: Path, tokens: int, window: int, copy_positions: bool = True, seed: int = 0
) -> EncoderConfig:
    """Convert a folder or hub id into the folder `to`; returns the written configuration."""
    folder = locate_model(source)
    if to.resolve() == folder.resolve():
        raise InputError(f"--to: found {to}, the folder of --from; expected another")
    config = read_config(folder)
    tensors = body_and_head(read_weights(folder), folder)
    missing = [name for name in (POSITIONS, "embeddings.word_embeddings.weight") if name not in tensors]
    missing += [name for name in ("lm_head.dense.weight", "lm_head.bias") if name not in tensors]
    if missing:
        raise InputError(f"{folder}: its weights lack {', '.join(missing)}; expected a masked-language model")
    if len(tensors[POSITIONS]) != config.max_position_embeddings:
        raise InputError(
            f"{folder}: {POSITIONS} has {len(tensors[POSITIONS])} rows, "
            f"expected max_position_embeddings {config.max_position_embeddings}"
        )
    if config.architecture == "longformer":
        converted, named = shorten(config, tensors)
    else:
        if tokens < config.max_tokens:
            raise InputError(
                f"--max-positions: found {tokens}, expected at least the model's {config.max_tokens}"
            )
        converted, named = lengthen(config, tensors, tokens, window, copy_positions, seed)
    write_model(to, converted, named, tokenizer_from=folder)
    return converted


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--from", dest="source", required=True, metavar="DIR_OR_HUB_ID")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--max-positions", type=int, default=4096, help="tokens of the Longformer (default 4096)"
    )
    parser.add_argument(
        "--window", type=int, default=512, help="total width of every layer's window (default 512)"
    )
    parser.add_argument(
        "--no-copy-positions", action="store_true", help="draw new positions at random (table 5)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of --no-copy-positions")
    options = parser.parse_args(arguments)
    try:
        if options.max_positions < 1:
            raise InputError(f"--max-positions: found {options.max_positions}, expected at least 1")
        if options.window < 2 or options.window % 2:
            raise InputError(
                f"--window: found {options.window}, expected an even number >= 2 (the total width)"
            )
        config = convert(
            options.source,
            options.to,
            options.max_positions,
            options.window,
            not options.no_copy_positions,
            options.seed,
        )
    except (InputError, OSError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.to}: {config.architecture}, {config.max_tokens} positions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
