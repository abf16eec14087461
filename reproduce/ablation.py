"""The recipe of table 4, and the trainings that follow from it: one model, whose layers look back differently far."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from reproduce.command import RecipeSection
from reproduce.curves import Curve, curve
from reproduce.tables import Found, Row
from reproduce.trainings import Launches, Seed, Training, merged, read_metrics, tokens_of

DEFAULT = Path(__file__).with_name("ablation.yaml")


class AblationRecipe(RecipeSection):
    """Keys of a recipe; ablation.yaml explains them."""

    lookback: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    dilation: tuple[Annotated[int, Field(ge=1)], ...]
    training: dict[str, Any]

    @model_validator(mode="after")
    def _fits(self) -> AblationRecipe:
        layers = len(self.lookback)
        if list(self.lookback) != sorted(self.lookback):
            raise ValueError(f"lookback: found {list(self.lookback)}, expected them to increase")
        if sum(self.lookback) % layers:
            raise ValueError(
                f"lookback: found {list(self.lookback)}, whose average is no whole number; expected a sum that the "
                f"{layers} layers divide, so that every row looks back equally far on average"
            )
        if len(self.dilation) != layers:
            raise ValueError(f"dilation: found {len(self.dilation)} entries, expected one a layer, {layers}")
        return self


class Ablation:
    """The trainings of one seed on one text, and the table's rows in the paper's order."""

    def __init__(self, recipe: AblationRecipe) -> None:
        increasing = recipe.lookback
        average = sum(increasing) // len(increasing)
        low, high = increasing[0], increasing[-1]
        heads = recipe.training["model"]["dilated_heads"]
        self.rows = (
            Row("decreasing", f"decreasing, from {high} to {low}", 1.24),
            Row("fixed", f"fixed, {average}", 1.23),
            Row("increasing", f"increasing, from {low} to {high}", 1.21),
            Row("dilated", f"increasing, {heads} heads dilated", 1.20),
        )
        self.order = tuple(row.name for row in reversed(self.rows))
        lookback = {
            "decreasing": increasing[::-1],
            "fixed": (average,) * len(increasing),
            "increasing": increasing,
            "dilated": increasing,
        }
        self.trainings = tuple(
            Training(
                name,
                "",
                merged(
                    recipe.training,
                    {
                        "model": {"dilation": list(recipe.dilation) if name == "dilated" else []},
                        "phases": [{**phase, "lookback": list(back)} for phase in recipe.training["phases"]],
                    },
                ),
            )
            for name, back in lookback.items()
        )


class TextAblation:
    """All seeds of an ablation on one text."""

    def __init__(self, folder: Path, name: str, ablation: Ablation, seeds: int) -> None:
        self.name, self.ablation = name, ablation
        self.file = folder / "texts" / name
        self.seeds = [Seed(folder / name, number, of=name) for number in range(seeds)]

    def train(self, launches: Launches, seed: Seed) -> None:
        text = {"path": str(self.file)}
        launches.train("charlm", seed, self.ablation.trainings, lambda _: {"text": text})

    def curves(self, row: str) -> list[Curve]:
        return [curve(read_metrics(seed.run(row))) for seed in self.seeds]

    def found(self) -> Found:
        """The BPC of the validation split after each training's last update."""
        return {
            row.name: {
                seed.number: values[-1][1]
                for seed, values in zip(self.seeds, self.curves(row.name), strict=True)
            }
            for row in self.ablation.rows
        }

    def tokens(self) -> tuple[int, int]:
        """Characters trained on, and to be trained on in all."""
        return tokens_of(self.seeds, self.ablation.trainings)
