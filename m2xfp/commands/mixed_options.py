"""Options of ``m2xfp eval`` for mixed formats, as one argument of the command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m2xfp.commands.options import OUTPUT_FILE, InputPath

if TYPE_CHECKING:
    from torch import Tensor, nn

    from m2xfp.models.arithmetic import Arithmetic
    from m2xfp.models.mixed import MixedCase

__all__ = ["Mixed", "mixed_options"]


@dataclass(frozen=True)
class Mixed:
    """What was asked for.

    Members
    -------
    rules
        Texts of rules.
    calibration, windows
        Text to calibrate on, and how many windows of it.
    splits, save
        Files with splits, to read and to write.
    """

    rules: tuple[str, ...]
    calibration: str | None
    windows: int
    splits: Path | None
    save: Path | None

    def check(self, formats: bool, whole: bool) -> None:
        """Raise what does not go together, before a model is loaded."""
        from m2xfp.models.mixed import Rule

        if formats:
            raise click.UsageError("--mixed goes without formats of weights, activations, cache")
        if whole:
            raise click.UsageError("--mixed goes without --split, --device-map and --save")
        if self.splits is not None and self.rules:
            raise click.UsageError("--splits has its rule; leave --mixed out")
        if self.rules and self.calibration is None:
            raise click.UsageError(
                "--mixed needs --calibration FILE, a text like the model's that is not measured"
            )
        if self.save is not None and len(self.rules) != 1:
            raise click.UsageError("--save-splits goes with one --mixed")
        for text in self.rules:
            Rule.parse(text)

    def cases(
        self,
        model: nn.Module,
        skip: tuple[str, ...],
        how: Arithmetic,
        windows_of: Callable[[bytes], Tensor],
    ) -> list[MixedCase]:
        """Return the cases; channels and the length of the text are looked at first."""
        from m2xfp.errors import InputError
        from m2xfp.files import write_atomic
        from m2xfp.models.mixed import MixedCase, Rule, calibrate, check_channels, load_plan
        from m2xfp.models.texts import read_text

        if self.splits is not None:
            plan = load_plan(self.splits)
            layers = check_channels(model, skip, plan.rule.tile)
            return [MixedCase.of(plan, layers, how)]
        rules = [Rule.parse(text) for text in self.rules]
        found = [(rule, check_channels(model, skip, rule.tile)) for rule in rules]
        windows = windows_of(read_text(self.calibration))
        if len(windows) < self.windows:
            raise InputError(
                f"calibration {self.calibration}: the text has {len(windows)} windows of "
                f"{windows.shape[1]} tokens, {self.windows} are wanted; give a longer text or "
                "--calibration-windows"
            )
        cases = []
        for rule, layers in found:
            plan = calibrate(model, layers, rule, windows[: self.windows])
            record = {"text": self.calibration, "windows": self.windows}
            plan = type(plan)(rule, plan.splits, record | {"context": windows.shape[1]})
            cases.append(MixedCase.of(plan, layers, how))
            if self.save is not None:
                write_atomic(self.save, plan.as_json())
        return cases


_WINDOWS = 8
"""Windows of the calibration text, if none are asked for."""

_OPTIONS = (
    click.option(
        "--mixed",
        multiple=True,
        metavar="RULE",
        help="Split the channels of every linear layer into MXFP4, MXFP6 and MXFP8 by micromix or "
        "mxquant, with options as in micromix:strength=2,tile=64; repeat to sweep.",
    ),
    click.option(
        "--splits",
        type=InputPath(exists=True, dir_okay=False, path_type=Path),
        help="Splits of an earlier run (--save-splits), in place of --mixed.",
    ),
    click.option(
        "--save-splits", type=OUTPUT_FILE, help="With --mixed: file for the splits, JSON."
    ),
)


def mixed_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as ``mixed``: a `Mixed`, or None.

    The calibration's own options are those of `recipe_options`, which stands above this.
    """

    @functools.wraps(function)
    def called(*args: Any, **given: Any) -> Any:
        rules, splits, save = (given.pop(name) for name in ("mixed", "splits", "save_splits"))
        if not rules and splits is None:
            if save is not None:
                raise click.UsageError("--save-splits goes with --mixed")
            return function(*args, mixed=None, **given)
        calibration, windows = given["calibration"], given["calibration_windows"]
        given |= {"calibration": None, "calibration_windows": None}  # not for steps
        asked = Mixed(rules, calibration, windows or _WINDOWS, splits, save)
        return function(*args, mixed=asked, **given)

    for option in reversed(_OPTIONS):
        called = option(called)
    return called
