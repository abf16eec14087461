"""The README.md of a finetuned model's folder, and the facts that travel with its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trainer.model.led_model import LedSizes, encoder_sizes
from trainer.model.longformer import EncoderConfig
from trainer.model.markdown import fenced, table
from trainer.model.provenance import metrics_rows, spread, versions
from trainer.model.task_folder import FINETUNED
from trainer.tasks.registry import settings_class

_COURSE = ("step", "loss", "learning_rate", "epoch")
_KINDS = {"longformer": "Longformer", "roberta": "RoBERTa"}
_PROGRAM = """\
import torch
from transformers import AutoTokenizer, LEDForConditionalGeneration

tokenizer = AutoTokenizer.from_pretrained(".")
model = LEDForConditionalGeneration.from_pretrained(".").eval()
document = "A long document, of which this is the beginning."
inputs = tokenizer(document, truncation=True, max_length={tokens}, return_tensors="pt")
is_global = torch.zeros_like(inputs.input_ids)
is_global[:, 0] = 1
with torch.no_grad():  # by the search that generation_config.json has of the run
    summary = model.generate(
        inputs.input_ids, attention_mask=inputs.attention_mask, global_attention_mask=is_global
    )
print(tokenizer.decode(summary[0], skip_special_tokens=True).strip())
"""


def finetuning_facts(metrics: Path, task: str) -> dict[str, Any]:
    """What a card tells of a run, as far as its metrics.jsonl goes; of bounded size, and without paths."""
    rows = metrics_rows(metrics)
    trained = [{key: row[key] for key in _COURSE if key in row} for row in rows if "loss" in row]
    scored = [
        {key: value for key, value in row.items() if key == "step" or key.startswith("validation_")}
        for row in rows
        if any(key.startswith("validation_") for key in row)
    ]
    return {"task": task, "course": spread(trained), "validation": spread(scored), "versions": versions()}


def finetuned_card(
    model: EncoderConfig | LedSizes,
    parameters: int,
    state: Mapping[str, Any],
    about: Mapping[str, Any],
    description: Mapping[str, Any],
    architecture: str,
) -> str:
    """The card of a model exported from a finetuning's checkpoint."""
    settings, step, task = state["config"], state["step"], about["task"]
    if isinstance(model, LedSizes):
        config, kind, section = encoder_sizes(model), "LED", "section 7"
        decoder = [("decoder layers, heads", f"{model.decoder_layers}, {model.decoder_attention_heads}")]
        front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "summarization"}
    else:
        config, kind, section = model, _KINDS[model.architecture], "section 6 and appendix D"
        decoder, front = [], {}
    sizes = [
        ("parameters", f"{parameters:,}"),
        (
            "layers × width, heads",
            f"{config.num_hidden_layers} × {config.hidden_size}, {config.num_attention_heads}",
        ),
        *decoder,
        ("tokens of a row", f"{description['sequence_length']:,}, longer contexts: {description['longer']}"),
        ("global tokens", "as the task's" if description["global_attention"] else "none"),
        ("updates", f"{step:,}"),
        ("examples", f"{state['training examples']['examples']:,}"),
    ]
    front["tags"] = [kind.lower(), task, "longspan"]
    if config.base_model:
        front["base_model"] = config.base_model.partition("@")[0]
    parts = [
        "---\n" + yaml.safe_dump(front) + "---",
        f"# {kind} finetuned on {task}",
        f"After the Longformer paper's {section}. Made with Longspan.",
        table(("", ""), sizes),
        _table(about.get("course", [])),
        _table(about.get("validation", [])),
        "## Use",
        fenced("python -m trainer.predict --model . --data FILE --output FILE", "sh"),
        *([fenced(_PROGRAM.format(tokens=int(description["sequence_length"])), "python")] if decoder else []),
        f"transformers loads it as {architecture}."
        + ("" if "For" in architecture else " The heads lie beside the encoder in model.safetensors."),
        "## Again",
        fenced(
            "deepspeed trainer/finetune.py --config config.yaml --run RUN --model MODEL"
            + _files(description["task"]["name"]),
            "sh",
        ),
        "with this config.yaml, and others of the task's files that it had:",
        fenced(yaml.safe_dump({"task": description["task"], **settings}, sort_keys=False), "yaml"),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _files(task: str) -> str:
    """Arguments for the files that a task must have: the configuration of a card names none."""
    fields = settings_class(task, Path(FINETUNED)).model_fields
    return "".join(
        f" --task.{name} {name.upper()}"
        for name, field in fields.items()
        if field.is_required() and field.annotation is Path
    )


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    # A figure that was not finite is null in metrics.jsonl.
    shown = [["" if row.get(name) is None else f"{row[name]:.5g}" for name in names] for row in rows]
    return table(names, map(tuple, shown))
