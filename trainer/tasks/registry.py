"""All tasks that a finetuning can be of, by the name in their section of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from trainer.engine.config import InputError
from trainer.tasks.classification import ClassificationSettings, HyperpartisanSettings, ImdbSettings
from trainer.tasks.coreference import CoreferenceSettings
from trainer.tasks.hotpotqa import HotpotQASettings
from trainer.tasks.summarization import SummarizationSettings
from trainer.tasks.task import TaskSettings
from trainer.tasks.triviaqa import TriviaQASettings
from trainer.tasks.wikihop import WikiHopSettings

AnyTask = (
    HyperpartisanSettings
    | ImdbSettings
    | ClassificationSettings
    | WikiHopSettings
    | TriviaQASettings
    | HotpotQASettings
    | CoreferenceSettings
    | SummarizationSettings
)
"""The tasks' sections; a configuration's `task.name` chooses one."""


def settings_class(name: Any, source: Path) -> type[TaskSettings]:
    """The section of a task by its name; InputError, naming `source`, where there is no such task."""
    by_name = {get_args(kind.model_fields["name"].annotation)[0]: kind for kind in get_args(AnyTask)}
    if not isinstance(name, str) or name not in by_name:
        raise InputError(f"{source}: task.name: found {name!r}, expected one of {', '.join(by_name)}")
    found: type[TaskSettings] = by_name[name]
    return found
