"""Options that prepare a model by steps before it is quantized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2xfp.commands.options import COUNT, InputPath

if TYPE_CHECKING:
    from m2xfp.models.recipes.recipe import Recipe

__all__ = ["asked_recipe", "recipe_options"]

_FILE = InputPath(exists=True, dir_okay=False, path_type=Path)


def recipe_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; it takes them all as ``preparation``, for ``asked_recipe``."""
    options = (
        click.option(
            "--steps",
            metavar="A,B,...",
            help="Prepare the model before it is quantized, in this order: rotate, awq, smooth, "
            "gptq, with settings as in rotate:mode=online:seed=3,gptq:damping=0.02.",
        ),
        click.option(
            "--rotate",
            type=click.Choice(("hadamard",)),
            help="Rotate what every layer reads, its weights, and queries and keys: "
            "--steps rotate:mode=online.",
        ),
        click.option(
            "--recipe",
            type=_FILE,
            help="Steps, calibration and formats of a file, as -o writes it (recipe.json).",
        ),
        click.option(
            "--calibration",
            metavar="FILE",
            help="Text that steps and --mixed look at; for steps by default what every "
            "installation carries, without the held-out text.",
        ),
        click.option(
            "--calibration-windows",
            type=COUNT,
            help="Pieces of it: of 512 tokens for steps (32), windows for --mixed (8).",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, (1 << 63) - 1),
            help="Of the choice of these pieces (0).",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def asked_recipe(
    steps: str | None,
    rotate: str | None,
    recipe: Path | None,
    calibration: str | None,
    calibration_windows: int | None,
    seed: int | None,
) -> Recipe | None:
    """Return the recipe that the options ask for; None for no steps."""
    from m2xfp.models.recipes.recipe import Calibration, Recipe, parse_steps, read_recipe

    ways = {"--steps": steps, "--rotate": rotate, "--recipe": recipe}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other; give one of them")
    settings: dict[str, Any] = {"text": calibration, "windows": calibration_windows, "seed": seed}
    chosen = {name: value for name, value in settings.items() if value is not None}
    if not given:
        if chosen:
            raise click.UsageError(
                "--calibration, --calibration-windows and --seed go with --steps, or --mixed"
            )
        return None
    if recipe is not None:
        if chosen:
            raise click.UsageError("--recipe names its calibration; change it in the file")
        return read_recipe(recipe)
    asked = steps if steps is not None else "rotate:mode=online"
    return Recipe(parse_steps(asked), replace(Calibration(), **chosen))
