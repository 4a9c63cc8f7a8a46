"""What recipes give on a model: the table of steps and formats that the pages show."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from m2xfp.models.arithmetic import FLOAT, Arithmetic
from m2xfp.models.cases import FP, Case
from m2xfp.models.checkpoints import Checkpoint
from m2xfp.models.evaluate import quantized, window_nats
from m2xfp.models.layers import head_layers
from m2xfp.models.quantized import coverage, set_arithmetic
from m2xfp.models.recipes.calibration import read_windows
from m2xfp.models.recipes.recipe import Calibration, Recipe, parse_steps
from m2xfp.models.results import Outcome, figures
from m2xfp.models.texts import read_text
from m2xfp.models.windows import cut

__all__ = ["BEST", "BEST_ATTENTION", "recipe_cases", "recipe_figures"]

BEST = "rotate:mode=online,awq,gptq"
"""Steps that are good on both models."""

BEST_ATTENTION = "rotate:mode=online,awq,renormalize,gptq"
"""The same where the attention is quantized, which ``gptq`` sees."""

_M2XFP, _NVFP4 = ("m2xfp-weight", "m2xfp-act"), ("nvfp4", "nvfp4")
_NO_ATTENTION = ("none", "none")
_ELEM_EM, _FP8 = ("m2xfp-weight", "m2xfp-act"), ("m2xfp-weight", "mxfp8-e4m3")
# Formats of weights and activations, steps, and the formats of cache and operands with which the
# same bits are evaluated; True: also as the hardware computes.
_Row = tuple[tuple[str, str], str, tuple[tuple[tuple[str, str], bool], ...]]
_ONCE = ((_NO_ATTENTION, False),)
_ROWS: tuple[_Row, ...] = (
    (_NVFP4, "", (*_ONCE, (_NVFP4, False))),
    (_M2XFP, "", (*_ONCE, (_ELEM_EM, False))),
    *(((w, a), "", _ONCE) for w, a in (("none", "m2xfp-act"), ("none", "nvfp4"))),
    *(
        (("none", "m2xfp-act"), steps, _ONCE)
        for steps in ("rotate", "rotate:mode=online", "awq", "rotate:mode=online,awq")
    ),
    *((("none", "nvfp4"), steps, _ONCE) for steps in ("rotate:mode=online,awq",)),
    (("m2xfp-weight", "none"), "", _ONCE),
    (_M2XFP, BEST, ((_NO_ATTENTION, True), (_ELEM_EM, False), (_FP8, True))),
    (_M2XFP, BEST_ATTENTION, ((_ELEM_EM, True),)),
    (("m2xfp-weight", "none"), "gptq", _ONCE),
    (_NVFP4, BEST, (*_ONCE, (_NVFP4, False))),
    (_NVFP4, BEST_ATTENTION, ((_NVFP4, False),)),
)


def recipe_cases(calibration: Calibration) -> list[list[Case]]:
    """Return the cases of the table; those that are listed together have the bits of the first."""
    groups = []
    for formats, steps, attentions in _ROWS:
        recipe = Recipe(parse_steps(steps), calibration) if steps else None
        group: list[Case] = []
        for attention, also in attentions:
            for how in (FLOAT, Arithmetic("hardware")) if also else (FLOAT,):
                case = Case.parse(*formats, attention[0], attention[1], how)
                group.append(replace(case, recipe=recipe))
        groups.append(group)
    return groups


def recipe_figures(
    checkpoint: Checkpoint,
    device: torch.device,
    calibration: Calibration,
    context: int | None = None,
    windows: int | None = None,
    batch: int = 4,
    report: Callable[[Case, Tensor], Any] = lambda case, nats: None,
) -> dict[str, Any]:
    """Measure the table on a model.

    Parameters
    ----------
    checkpoint, device
        The model, and where to compute.
    calibration
        Of all steps.
    context, windows, batch
        Tokens of a window of the held-out text, windows (all), and windows a pass.
    report
        Called with each case and its losses.
    """
    recipe, seen = read_windows(
        Recipe(parse_steps(BEST), calibration), checkpoint.tokenize, not checkpoint.tokenizer
    )
    told = checkpoint.tokenize(read_text())
    sample = cut(told, checkpoint.window(context)).some(windows)
    model = checkpoint.load().to(device)
    skip = head_layers(model)
    outcomes = []

    def measure(case: Case, ready: nn.Module) -> None:
        nats = window_nats(ready, sample.tokens, batch)
        report(case, nats)
        covered = coverage(ready, skip) if case.quantizes else None
        outcomes.append(Outcome(case, nats, coverage=covered))

    measure(FP, model)
    for first, *others in recipe_cases(recipe.calibration):
        with quantized(first, copy.deepcopy(model), skip, calibration=seen) as ready:
            measure(first, ready)
        for case in others:
            set_arithmetic(ready, case.arithmetic)
            with case.attention() if case.cache is not None else nullcontext():
                measure(case, ready)
    protocol = {
        "model": checkpoint.name,
        "text": "bundled held-out text",
        **sample.facts(checkpoint.tokenizer),
        "skipped": skip,
        "calibration": recipe.facts["calibration"],
    }
    return figures(outcomes, protocol)
