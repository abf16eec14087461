"""The README.md of a character model's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from trainer.model.card import course
from trainer.model.charlm_folder import CharacterDescription
from trainer.model.markdown import fenced, table


def character_card(
    described: CharacterDescription,
    parameters: int,
    state: Mapping[str, Any],
    about: Mapping[str, Any],
) -> str:
    """The card of a model exported from a checkpoint, from its state.json and its run_facts."""
    settings, step, text = state["config"], state["step"], state["text"]
    config, lookback = described.config, described.lookback
    dilation = config.dilation or (1,) * config.num_hidden_layers
    sizes = [
        ("parameters", f"{parameters:,}"),
        (
            "layers × width, heads",
            f"{config.num_hidden_layers} × {config.hidden_size}, {config.num_attention_heads}",
        ),
        ("symbols", f"{config.vocab_size:,} {described.alphabet.kind}"),
        ("looking back, a layer from the bottom", ", ".join(f"{back:,}" for back in lookback)),
        (f"dilation of the last {config.dilated_heads} heads, a layer", ", ".join(map(str, dilation))),
        ("reach of the top layer", f"{config.reach(lookback):,} characters"),
        ("updates", f"{step:,}"),
        ("text (train, validation, test)", ", ".join(f"{size:,}" for size in text["characters"])),
        ("sha256 of the text", text["sha256"]),
    ]
    _, validation, test = text["characters"]
    # A run goes on by the text's content, so its settings have no word on how that is read.
    read = {"vocabulary": described.alphabet.kind, "validation": validation, "test": test}
    versions = ", ".join(f"{name} {number}" for name, number in about.get("versions", {}).items())
    return (
        "\n\n".join(
            part
            for part in (
                "---\n" + yaml.safe_dump({"tags": ["character-language-model", "longspan"]}) + "---",
                "# A character language model with windows that grow to the top",
                "After the Longformer paper's section 4, with rotary positions. Trained with Longspan.",
                table(("", ""), sizes),
                course(about, "character", "the beginning of the validation split"),
                "## Use",
                fenced('python -m trainer.generate --model . --prompt "The "', "sh"),
                fenced("python -m trainer.evaluate --model . --text FILE", "sh"),
                "## Again",
                fenced("deepspeed trainer/charlm.py --config config.yaml --run RUN --text.path FILE", "sh"),
                f"with this config.yaml{f' under {versions}' if versions else ''}:",
                fenced(yaml.safe_dump({"text": read, **settings}, sort_keys=False), "yaml"),
            )
            if part
        )
        + "\n"
    )
