"""Model cards: the README.md of a model folder, with the front matter that the Hugging Face hub reads.

Whatever is not ours (names of sources, licences, keys of a configuration) is taken as text: it cannot end a table's
cell, a block of code or the front matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from trainer.model.longformer import EncoderConfig
from trainer.model.markdown import code, fenced, table, text

# Licences that the hub knows by id, and that sources are likely to state.
_LICENCES = {
    "apache-2.0", "mit", "odc-by", "pddl", "gfdl", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
}  # fmt: skip
_MOST_YAML = 8_000


def trained_card(
    config: EncoderConfig,
    parameters: int,
    state: Mapping[str, Any],
    about: Mapping[str, Any],
    has_tokenizer: bool,
) -> str:
    """The card of a model exported from a checkpoint, from its state.json and its run_facts."""
    settings, step = state.get("config", {}), state["step"]
    corpus = about.get("corpus", {})
    return _card(
        _front_matter(config, "fill-mask", corpus.get("sources", [])),
        f"# {_kind(config)} for {config.max_tokens:,} tokens",
        _made_of(config, f"trained for {step:,} updates of masked-language modelling"),
        _sizes(config, parameters),
        "## Training",
        _training(settings, step),
        course(about),
        "## Corpus",
        _corpus(corpus),
        *_use(config, has_tokenizer, headless=False),
        "## Limits",
        _limits(config, trained=True),
        "## Again",
        _again(config, settings, about, corpus),
    )


def converted_card(
    config: EncoderConfig, original: str, parameters: int, has_tokenizer: bool, headless: bool
) -> str:
    """The card of a model that was converted and not trained since; `original` is of what kind it was."""
    return _card(
        _front_matter(config, "feature-extraction" if headless else "fill-mask", []),
        f"# {_kind(config)} for {config.max_tokens:,} tokens, converted",
        _made_of(config, f"made from a {original} by conversion, and not trained since"),
        _sizes(config, parameters),
        *_use(config, has_tokenizer, headless),
        "## Limits",
        _limits(config, trained=False),
    )


def _card(*parts: str) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _kind(config: EncoderConfig) -> str:
    return "Longformer" if config.architecture == "longformer" else "RoBERTa"


def _one_window(config: EncoderConfig) -> bool:
    return len(set(config.attention_window)) == 1


def _front_matter(config: EncoderConfig, task: str, sources: Iterable[Mapping[str, Any]]) -> str:
    licences = {str(source.get("licence", "")).strip() for source in sources}
    ids = {re.sub(r"[\s_]+", "-", text.lower()) for text in licences}
    matter: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": task}
    if len(ids) == 1 and ids <= _LICENCES:
        matter["license"] = ids.pop()
    elif licences - {""}:
        # Which licence a model has whose texts have several, or one of them none, is not for a program to say.
        matter |= {"license": "other", "license_name": "see-the-corpus-sources"}
    if config.base_model:
        matter["base_model"] = config.base_model.partition("@")[0]
    long = ["long-documents"] if config.architecture == "longformer" else []
    matter["tags"] = [config.architecture, *long, "longspan"]
    return "---\n" + yaml.safe_dump(matter, sort_keys=False, allow_unicode=False) + "---"


def _made_of(config: EncoderConfig, what: str) -> str:
    start = f" It continues {code(config.base_model)}." if config.base_model else ""
    return f"A {_kind(config)} {what}.{start} Made with Longspan."


def _sizes(config: EncoderConfig, parameters: int) -> str:
    rows = [
        ("parameters", f"{parameters:,}"),
        (
            "layers × width, heads",
            f"{config.num_hidden_layers} × {config.hidden_size}, {config.num_attention_heads}",
        ),
        ("positions", f"{config.max_tokens:,} tokens"),
        ("vocabulary", f"{config.vocab_size:,}"),
    ]
    if config.architecture == "longformer":
        widths = config.attention_window
        shown = f"{widths[0]} in every layer" if _one_window(config) else ", ".join(map(str, widths[:48]))
        rows.insert(3, ("window, both sides together", shown))
    return table(("", ""), rows)


def _training(settings: Mapping[str, Any], step: int) -> str:
    optimizer = settings.get("optimizer", {})
    batch, length = settings.get("batch_size"), settings.get("sequence_length")
    rows = [("updates", f"{step:,} of {settings.get('steps', step):,}")]
    if batch and length:
        rows.append(("batch", f"{batch} sequences of {length:,} tokens"))
        rows.append(("tokens", f"{step * batch * length:,}"))
    if optimizer:
        rows.append(
            (
                "learning rate",
                f"{optimizer['learning_rate']:g} at its peak, {optimizer['warmup_steps']:,} updates of warm-up, "
                f"{optimizer['decay']} decay",
            )
        )
        rows.append(
            (
                "AdamW",
                f"betas {optimizer['beta1']:g} and {optimizer['beta2']:g}, epsilon {optimizer['epsilon']:g}, "
                f"weight decay {optimizer['weight_decay']:g}",
            )
        )
    for key in ("masked_fraction", "precision", "mask_documents", "extra_positions_only", "seed"):
        if key in settings:
            rows.append((key.replace("_", " "), str(settings[key])))
    return table(("", ""), rows)


def course(about: Mapping[str, Any], unit: str = "masked token", over: str = "a fixed masked set") -> str:
    """The run's figures: bits a unit while it ran, and on held-out text where it was evaluated."""
    course, validation = about.get("course", []), about.get("validation", [])
    parts = []
    if course:
        rows = [(f"{row['step']:,}", f"{row['bpc']:.4f}", f"{row['learning_rate']:.3g}") for row in course]
        parts.append(f"Bits per {unit} (cross-entropy / ln 2) of single batches:")
        parts.append(table(("update", "bits", "learning rate"), rows))
    if validation:
        scores = [(f"{row['step']:,}", f"{row['validation_bpc']:.4f}") for row in validation]
        parts.append(f"Of held-out text, over {over}:")
        parts.append(table(("update", "bits"), scores))
    return "\n\n".join(parts)


def _corpus(corpus: Mapping[str, Any]) -> str:
    if not corpus:
        return "The checkpoint does not say."
    rows = [
        (
            s["name"],
            s["kind"],
            f"{s['documents']:,}",
            f"{s['tokens']:,}",
            s["licence"] or "not stated",
            s["terms"],
        )
        for s in corpus["sources"]
    ]
    listed = table(("source", "kind", "documents", "tokens", "licence", "terms"), rows)
    more = f"\n\n... and {corpus['sources_not_shown']} more sources." if corpus["sources_not_shown"] else ""
    splits = "; ".join(
        f"{text(name)}: {split['sequences']:,} sequences, {split['tokens']:,} tokens"
        for name, split in corpus["splits"].items()
    )
    return (
        f"{listed}{more}\n\nDocuments and tokens are those kept after filters and duplicates, both splits together. "
        f"{splits}. Fingerprint {code(corpus['fingerprint'])}."
    )


def _use(config: EncoderConfig, has_tokenizer: bool, headless: bool) -> list[str]:
    """The section on loading it, with a block of Python that runs as it is in the folder."""
    kind = _kind(config)
    name = f"{kind}Model" if headless else f"{kind}ForMaskedLM"
    opened = 'name = "."  # this folder; on the hub, its id there\n'
    loaded = f"model = {name}.from_pretrained(name).eval()\n"
    if not has_tokenizer:
        program = f"from transformers import {name}\n\n{opened}{loaded}"
        return ["## Use", fenced(program, "python"), "The tokenizer is that of the model it was made from."]
    program = f"import torch\nfrom transformers import AutoTokenizer, {name}\n\n{opened}"
    program += f"tokenizer = AutoTokenizer.from_pretrained(name)\n{loaded}"
    if headless:
        program += 'inputs = tokenizer("A long document.", truncation=True, return_tensors="pt")\n'
        program += (
            "with torch.no_grad():\n    hidden = model(**inputs).last_hidden_state\nprint(hidden.shape)\n"
        )
    else:
        program += (
            'text = f"A long document with a {tokenizer.mask_token} in it."\n'
            'inputs = tokenizer(text, truncation=True, return_tensors="pt")\n'
            "with torch.no_grad():\n"
            "    logits = model(**inputs).logits[0]\n"
            "place = (inputs.input_ids[0] == tokenizer.mask_token_id).nonzero()[0, 0]\n"
            "print([tokenizer.decode([token]) for token in logits[place].topk(5).indices.tolist()])\n"
        )
    return ["## Use", fenced(program, "python")]


def _limits(config: EncoderConfig, trained: bool) -> str:
    lines = [
        f"Texts beyond {config.max_tokens:,} tokens have no positions: cut them, or read them in pieces.",
        "It predicts masked tokens. For other tasks it wants finetuning, and its biases are those of its texts.",
    ]
    if config.architecture == "longformer":
        lines.insert(
            1,
            "Its global projections are copies of the local ones: masked-language modelling trains none. Give the "
            "tokens that a task is about global attention when finetuning.",
        )
        if not trained:
            lines.insert(
                1, "Beyond the original's length it has not been trained: continue pretraining first."
            )
    return "\n".join(f"- {line}" for line in lines)


def _again(
    config: EncoderConfig, settings: Mapping[str, Any], about: Mapping[str, Any], corpus: Mapping[str, Any]
) -> str:
    shown = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=False)
    if len(shown) > _MOST_YAML:
        shown = shown[:_MOST_YAML] + "\n# ... cut: RUN/config.yaml has all of it\n"
    command = "deepspeed trainer/pretrain.py --config config.yaml --run RUN --corpus CORPUS"
    said = f"CORPUS has the fingerprint {code(corpus['fingerprint'])}" if corpus else "CORPUS is the corpus"
    if "model" not in settings:  # one that was continued, wherever it lay
        if config.original_max_position_embeddings and config.base_model:
            widths = " ".join(map(str, config.attention_window[: 1 if _one_window(config) else None]))
            convert = f"python -m trainer.convert --from {config.base_model} --to MODEL"
            sizes = f"--as longformer --max-positions {config.max_tokens} --window {widths}"
            command = f"{convert} {sizes}\n{command} --model MODEL"
        else:
            command += f" --model {config.base_model or 'MODEL'}"
            said += "" if config.base_model else " and MODEL is the model that was continued"
    versions = ", ".join(f"{name} {number}" for name, number in about.get("versions", {}).items())
    return "\n\n".join(
        [
            f"The command that makes it again, and that resumes it where RUN holds its checkpoints; {said}:",
            fenced(command, "sh"),
            f"with this config.yaml{f' under {versions}' if versions else ''}:",
            fenced(shown, "yaml"),
        ]
    )
