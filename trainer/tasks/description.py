"""What a finetuned model's folder says of its task: enough to make its input again without the data it had."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter, ValidationError

from trainer.engine.config import InputError, problems
from trainer.model.json_files import read_json
from trainer.tasks.config import Finetuning
from trainer.tasks.registry import settings_class
from trainer.tasks.task import DownstreamTask, Lengths


@dataclass(frozen=True)
class TaskDescription:
    """The content of finetuned.json."""

    task: dict[str, Any]
    """The settings of the task's section that are no paths, with what it learned from its data, such as labels."""
    sequence_length: int
    longer: Literal["truncate", "chunk"]
    global_attention: bool
    shared_projections: bool

    @property
    def lengths(self) -> Lengths:
        return Lengths(self.sequence_length, self.longer)

    @staticmethod
    def of(config: Finetuning, task: DownstreamTask, global_attention: bool) -> TaskDescription:
        settings = config.task
        chosen = {
            name: value
            for name, value in settings.model_dump(mode="json").items()
            if not _holds_paths(getattr(settings, name))
        }
        learned = {
            name: value for name, value in task.describe().items() if name in type(settings).model_fields
        }
        return TaskDescription(
            {**chosen, **learned, "name": task.name},
            config.sequence_length,
            config.longer,
            global_attention,
            config.global_projections == "shared",
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def make_task(self, source: Path, given: Mapping[str, Any] | None = None) -> DownstreamTask:
        """The task, to encode and predict with: it has no files but those `given`, by the keys of its section.

        InputError where `source`, whose description this is, is damaged, or a key or value is none of the task's.
        """
        kind = settings_class(self.task.get("name"), source)
        chosen = {**self.task, **(given or {})}
        unknown = chosen.keys() - kind.model_fields.keys()
        if unknown:
            raise InputError(
                f"{source}: task: found {', '.join(sorted(unknown))}, expected keys of {kind.__name__}"
            )
        wrong = []
        values: dict[str, Any] = {
            name: None for name, field in kind.model_fields.items() if field.is_required()
        }
        for name, value in chosen.items():
            field = kind.model_fields[name]
            try:
                # With the field's bounds: what is read here is a size of something.
                values[name] = TypeAdapter[Any](Annotated[field.annotation, field]).validate_python(  # type: ignore[arg-type]
                    value
                )
            except ValidationError as error:
                wrong += [f"{source}: task.{name}{_placed(line)}" for line in problems(error)]
                continue
            if name not in (given or {}) and _holds_paths(values[name]):
                wrong.append(f"{source}: task.{name}: found a path, expected none: a model brings no data")
        if wrong:
            raise InputError("\n".join(wrong))
        return kind.model_construct(**values).task()


def read_description(path: Path) -> TaskDescription:
    """The description in a finetuned model's folder; InputError where it is not one."""
    try:
        return TypeAdapter(TaskDescription).validate_python(read_json(path))
    except ValidationError as error:
        raise InputError("\n".join(f"{path}: {line}" for line in problems(error))) from error


def _placed(problem: str) -> str:
    """A problem of a value, or of an entry in it ("0: found …"), behind the value's own key."""
    return problem if problem.startswith(":") else f".{problem}"


def _holds_paths(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_paths, value))
    return isinstance(value, Path)
