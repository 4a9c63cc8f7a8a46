"""The table of formats that the pages show of a real model: plain rounding, no steps."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from m2xfp.models.arithmetic import Arithmetic
from m2xfp.models.cases import FP, Case
from m2xfp.models.checkpoints import Checkpoint
from m2xfp.models.evaluate import quantized, window_nats
from m2xfp.models.layers import head_layers
from m2xfp.models.quantized import coverage
from m2xfp.models.results import Outcome, figures
from m2xfp.models.texts import read_text
from m2xfp.models.windows import cut

__all__ = ["model_cases", "model_figures"]

_FLOAT = (
    *(("mxfp4", "mxfp4"), ("mxfp4:scale_rule=even", "mxfp4:scale_rule=even")),
    *(("nvfp4:tensor_scale=none", "nvfp4"), ("nvfp4", "nvfp4"), ("m2xfp-weight", "m2xfp-act")),
    *(("amxfp4", "amxfp4"), ("m2nvfp4-weight", "m2nvfp4-act"), ("m2xfp-weight", "none")),
    *(("nvfp4", "none"), ("none", "m2xfp-act"), ("none", "nvfp4"), ("none", "mxfp4")),
)
_HARDWARE = (
    ("m2xfp-weight", "m2xfp-act"),
    ("nvfp4:tensor_scale=none", "nvfp4"),
    ("mxfp4", "mxfp4"),
)


def model_cases(hardware: bool) -> list[Case]:
    """Return the rows of the table: as floating point multiplies, or fewer as the chip does."""
    how = Arithmetic("hardware" if hardware else "float")
    pairs = _HARDWARE if hardware else _FLOAT
    return [FP, *(Case.parse(*pair, arithmetic=how) for pair in pairs)]


def model_figures(
    checkpoint: Checkpoint,
    device: torch.device,
    hardware: bool = False,
    context: int | None = None,
    windows: int | None = None,
    batch: int = 4,
    report: Callable[[Case, Tensor], Any] = lambda case, nats: None,
) -> dict[str, Any]:
    """Measure the table on a model that is not quantized.

    Parameters
    ----------
    checkpoint, device
        The model, and where to compute.
    hardware
        In the arithmetic of the chip.
    context, windows, batch
        Tokens of a window of the held-out text, windows (all), and windows a pass.
    report
        Called with each case and its losses.
    """
    told = checkpoint.tokenize(read_text())
    sample = cut(told, checkpoint.window(context)).some(windows)
    model = checkpoint.load().to(device)
    skip = head_layers(model)
    outcomes = []
    for case in model_cases(hardware):
        with quantized(case, copy.deepcopy(model), skip) as ready:
            nats = window_nats(ready, sample.tokens, batch)
            covered = coverage(ready, skip) if case.quantizes else None
        report(case, nats)
        outcomes.append(Outcome(case, nats, coverage=covered))
    facts = sample.facts(checkpoint.tokenizer)
    protocol = {"model": checkpoint.name, "text": "bundled held-out text", **facts, "skipped": skip}
    return figures(outcomes, protocol)
