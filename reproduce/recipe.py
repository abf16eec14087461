"""What is trained, on what, for how long: the recipe of table 5, and the trainings that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from reproduce.command import RecipeSection
from reproduce.tables import Row
from reproduce.trainings import Training, merged

DEFAULT = Path(__file__).with_name("recipe.yaml")


class CorpusSizes(RecipeSection):
    """What of a recipe decides its corpus."""

    vocabulary: Annotated[int, Field(ge=261)]
    longformer_tokens: Annotated[int, Field(ge=8)]
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]


class Recipe(CorpusSizes):
    """Keys of a recipe; recipe.yaml explains them. `roberta` … `effects` hold keys of trainer/pretrain.py."""

    roberta_tokens: Annotated[int, Field(ge=8)]
    window: Annotated[int, Field(ge=2, multiple_of=2)]
    windows: tuple[Annotated[int, Field(ge=2, multiple_of=2)], ...]
    evaluated_sequences: Annotated[int, Field(ge=1)]
    curve_sequences: Annotated[int, Field(ge=1)]
    common: dict[str, Any]
    roberta: dict[str, Any]
    longformer: dict[str, Any]
    few_updates: dict[str, Any]
    many_updates: dict[str, Any]
    positions: dict[str, Any]
    effects: dict[str, Any]


@dataclass(frozen=True)
class Conversion:
    """A Longformer made from a seed's RoBERTa."""

    name: str
    window: int
    copy_positions: bool = True


class Plan:
    """The steps of one seed, in their order, and the tables' rows."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        few, many = recipe.few_updates["steps"], recipe.many_updates["steps"]
        self.rows = (
            Row("roberta", f"RoBERTa, in pieces of {recipe.roberta_tokens}", 1.846),
            Row("uncopied", "Longformer, positions not copied", 10.299),
            Row("copied", "Longformer, positions copied", 1.957),
            Row("few", f"  + {few:,} updates (the paper's 2K)", 1.753),
            Row("many", f"  + {many:,} updates (the paper's 65K)", 1.705),
            Row("positions", "  only the added positions trained", 1.850),
        )
        # The paper's order, best first.
        self.order = ("many", "few", "roberta", "positions", "copied", "uncopied")
        self.control = Row("longer", f"RoBERTa + {many:,} updates in its own pieces")
        self.documents = Row("documents", f"  + {recipe.effects['steps']:,} updates, documents kept apart")
        self.windows = tuple(sorted({*recipe.windows, recipe.window}))

    def _common(self, *layers: Mapping[str, Any]) -> dict[str, Any]:
        """Keys of every training, under those of `layers`."""
        curves = {"evaluation": {"sequences": self.recipe.curve_sequences}}
        return merged(self.recipe.common, curves, *layers)

    def conversions(self) -> tuple[Conversion, ...]:
        window = self.recipe.window
        return (
            Conversion("copied", window),
            Conversion("uncopied", window, copy_positions=False),
            *(Conversion(f"copied-{w}", w) for w in self.windows if w != window),
        )

    def first(self) -> Training:
        """The RoBERTa everything starts from."""
        length = {"sequence_length": self.recipe.roberta_tokens}
        return Training("roberta", "", self._common(self.recipe.roberta, length))

    def continued(self) -> tuple[Training, ...]:
        """What follows the conversions."""
        recipe = self.recipe
        common = self._common(recipe.longformer, {"sequence_length": recipe.longformer_tokens})
        few, many = merged(common, recipe.few_updates), merged(common, recipe.many_updates)
        # The same tokens an update, by the same schedule, in RoBERTa's pieces.
        pieces = recipe.longformer_tokens // recipe.roberta_tokens
        own_length = {
            "sequence_length": recipe.roberta_tokens,
            "batch_size": many["batch_size"] * pieces,
            "micro_batch_size": many["micro_batch_size"] * pieces,
        }
        effects = merged(common, recipe.effects)
        return (
            Training("few", "copied", few),
            Training("many", "copied", many),
            Training("positions", "copied", merged(common, recipe.positions, {"extra_positions_only": True})),
            Training("longer", "roberta", merged(many, own_length)),
            Training("documents", "copied", merged(effects, {"mask_documents": True})),
            *(Training(self.at_window(w)[1], self.at_window(w)[0], effects) for w in self.windows),
        )

    def trainings(self) -> tuple[Training, ...]:
        return self.first(), *self.continued()

    def evaluated(self) -> tuple[str, ...]:
        """The names of all models that are scored."""
        return (
            *(training.name for training in self.trainings()),
            *(conversion.name for conversion in self.conversions()),
        )

    def at_window(self, window: int) -> tuple[str, str]:
        """The names of the model of this window before and after the updates for its effect."""
        return "copied" if window == self.recipe.window else f"copied-{window}", f"window-{window}"
