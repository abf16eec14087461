"""RoBERTa to Longformer, and back; BART to LED.

    python -m trainer.convert --from roberta-base --to longformer-base-4096 --max-positions 4096 --window 512
    python -m trainer.convert --from longformer-base-4096 --to roberta-base-again
    python -m trainer.convert --from allenai/longformer-base-4096 --to 16k --as longformer --max-positions 16384
    python -m trainer.convert --from facebook/bart-base --to led-base-16384 --max-positions 16384 --window 1024

--from is a folder or a hub id, `owner/name` or `owner/name@revision`, with the weights in safetensors or in
pytorch_model.bin (read without running pickled code), in one file or many. RoBERTa, DistilRoBERTa, CamemBERT,
XLM-RoBERTa and BERT become a Longformer that `transformers.LongformerForMaskedLM.from_pretrained` loads:

- the learned position rows are laid end to end up to --max-positions, the last copy cut; rows below the first
  position (the padding's) keep their values, and a BERT, whose positions begin at row 0, gets such rows, of zeros;
- every layer gets its --window, counted over both sides: a token sees window/2 tokens to each side and itself;
- the `*_global` projections start as copies of query, key and value.

Where the windows cover the text (window/2 at least its tokens less one) the converted model gives the original's
logits; a BERT's with padding at the end only, as Longformer counts positions over real tokens. What Longformer does
not have is refused: another activation than GELU, relative positions, decoders, a decoder not tied to the word
embeddings.

A Longformer becomes a RoBERTa with the positions it was made from, else its first 512: also one that was a BERT
or a CamemBERT. With `--as longformer` it stays one, and gets more positions or other windows.

An encoder without a masked-language-model head becomes a folder for `transformers.LongformerModel`. --new-head gives
it a head to pretrain with, drawn at random over its word embeddings.

A BART becomes the encoder-decoder that `transformers.LEDForConditionalGeneration.from_pretrained` loads: its encoder
gets windows (1,024 by default), global projections and positions laid end to end (16,384), its decoder stays.

--no-copy-positions draws the rows beyond the learned ones at random, as a new model would have them: the first row of
the paper's table 5.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.engine.config import InputError
from trainer.model.card import converted_card
from trainer.model.configuration import MOST
from trainer.model.conversion import lengthen, new_head, shorten
from trainer.model.folder import has_tokenizer, locate_model, read_model, write_model
from trainer.model.led import is_bart, led_card, led_of_bart, read_bart, write_led
from trainer.model.longformer import Architecture, EncoderConfig

WINDOW = 512
LED_TOKENS, LED_WINDOW = 16_384, 1024


def convert(
    source: str | Path,
    to: Path,
    tokens: int | None = None,
    window: int | Sequence[int] = (),
    copy_positions: bool = True,
    seed: int = 0,
    *,
    into: Architecture | None = None,
    with_new_head: bool = False,
) -> list[str]:
    """Convert a folder or hub id into the folder `to`; returns what there is to tell about it, line by line.

    tokens is at least the model's own, None 4,096 or its own where that is more. window is one width or one a layer,
    empty what a Longformer has, and 512 for others. into None makes a Longformer of a RoBERTa and the reverse.
    """
    folder = locate_model(source)
    if to.resolve() == folder.resolve():
        raise InputError(f"--to: found {to}, the folder of --from; expected another")
    if is_bart(folder):
        given = {"--as": into, "--new-head": with_new_head, "--no-copy-positions": not copy_positions}
        if ignored := [option for option, is_given in given.items() if is_given]:
            raise InputError(f"{' and '.join(ignored)}: found, but {folder} is a BART, of which LED is made")
        return convert_bart(folder, to, tokens, [window] if isinstance(window, int) else list(window))
    stored = read_model(folder)
    config, tensors = stored.config, stored.tensors
    into = into or ("roberta" if config.architecture == "longformer" else "longformer")
    told = []
    if stored.left_out:
        shown = sorted({name.split(".")[0] for name in stored.left_out})
        told.append(
            f"left out, as no part of the encoder or its masked-language model: {', '.join(shown[:10])}"
        )
    if with_new_head:
        if stored.has_head:
            raise InputError(f"--new-head: found a head in {folder} already, expected an encoder without")
        tensors = new_head(config, tensors, seed)
    if into == "longformer":
        tokens = max(4096, config.max_tokens) if tokens is None else tokens
        if not config.max_tokens <= tokens <= MOST:
            raise InputError(
                f"--max-positions: found {tokens}, expected at least the model's {config.max_tokens} "
                f"and at most {MOST}"
            )
        windows = window_of_each_layer(config, window)
        converted, named = lengthen(config, tensors, tokens, windows, copy_positions, seed)
        uneven = [width for width in windows if width and max(windows) % width]
        if uneven:
            told.append(
                f"transformers takes only lengths that every window divides, and pads to the widest: {max(windows)} "
                f"is no multiple of {min(uneven)}"
            )
    else:
        given = {"--max-positions": tokens is not None, "--window": window not in ([], ())}
        if ignored := [option for option, is_given in given.items() if is_given]:
            raise InputError(
                f"{' and '.join(ignored)}: found, but a RoBERTa is what is made of {folder}; "
                f"`--as longformer` makes a Longformer of it"
            )
        converted, named = shorten(config, tensors)
    headless = "lm_head.bias" not in named
    if headless:
        told.append(
            "no masked-language-model head (lm_head) there: wrote an encoder; --new-head gives one to pretrain with"
        )
    parameters = sum(tensor.numel() for tensor in named.values())
    original = f"{stored.family} for {config.max_tokens:,} tokens"
    card = converted_card(converted, original, parameters, has_tokenizer(folder), headless)
    write_model(to, converted, named, tokenizer_from=folder, card=card)
    told.append(f"wrote {to}: {converted.architecture}, {converted.max_tokens} positions")
    return told


def convert_bart(folder: Path, to: Path, tokens: int | None, window: Sequence[int]) -> list[str]:
    """A BART's folder as LED; returns what there is to tell."""
    config, generation, tensors = read_bart(folder)
    own = config.max_position_embeddings
    tokens = max(LED_TOKENS, own) if tokens is None else tokens
    if not own <= tokens <= MOST:
        raise InputError(
            f"--max-positions: found {tokens}, expected at least the model's {own} and at most {MOST}"
        )
    windows = checked_windows(window or [LED_WINDOW], config.encoder_layers)
    led = led_of_bart(config, generation, tensors, tokens, windows)
    parameters = sum(tensor.numel() for tensor in led.tensors.values())
    write_led(to, led, folder, led_card(led, parameters))
    return [f"wrote {to}: led, {tokens} positions of the encoder, {own} of the decoder"]


def window_of_each_layer(config: EncoderConfig, window: int | Sequence[int]) -> list[int]:
    """One width a layer from one for all, one for each, or none; InputError where they do not fit the layers."""
    widths = [window] if isinstance(window, int) else list(window)
    layers = config.num_hidden_layers
    if not widths:
        return config.attention_window or [WINDOW] * layers
    return checked_windows(widths, layers)


def checked_windows(widths: Sequence[int], layers: int) -> list[int]:
    """One width a layer from one for all or one for each; InputError where they do not fit."""
    if len(widths) not in (1, layers):
        raise InputError(
            f"--window: found {len(widths)} widths, expected one, or one for each of {layers} layers"
        )
    for width in widths:
        if not 2 <= width <= MOST or width % 2:
            raise InputError(
                f"--window: found {width}, expected an even number >= 2 (the total width), at most {MOST}"
            )
    return list(widths) * layers if len(widths) == 1 else list(widths)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--from", dest="source", required=True, metavar="DIR_OR_HUB_ID", help="the model to convert"
    )
    parser.add_argument(
        "--to", type=Path, required=True, metavar="DIR", help="the folder to write: new, empty or a model's"
    )
    parser.add_argument(
        "--max-positions",
        type=int,
        metavar="N",
        help="tokens of the Longformer, any number from the model's own on (default 4096)",
    )
    parser.add_argument(
        "--window",
        type=int,
        nargs="+",
        default=[],
        metavar="W",
        help=f"total width of every layer's window, or a width a layer from the first on (default {WINDOW})",
    )
    parser.add_argument(
        "--as",
        dest="into",
        choices=("longformer", "roberta"),
        help="what to make (default: of a Longformer a RoBERTa, of others a Longformer)",
    )
    parser.add_argument(
        "--no-copy-positions", action="store_true", help="draw new positions at random (table 5)"
    )
    parser.add_argument("--new-head", action="store_true", help="give an encoder without a head one")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random (default 0)")
    options = parser.parse_args(arguments)
    try:
        told = convert(
            options.source,
            options.to,
            options.max_positions,
            options.window,
            not options.no_copy_positions,
            options.seed,
            into=options.into,
            with_new_head=options.new_head,
        )
    except (InputError, OSError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    print("\n".join(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
