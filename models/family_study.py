"""What the systems that this project was made from offer, row by row, on the bundled model.

A row is a scale mode, an element or a step by the name that its system gives it, and the command
of ours that does the same. The figures are those of that command.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2xfp.models.cases import FP, Case, sweep_cases
from m2xfp.models.checkpoints import Checkpoint
from m2xfp.models.evaluate import window_nats
from m2xfp.models.layers import head_layers
from m2xfp.models.mixed import MixedCase, Rule, calibrate, check_channels, prepared
from m2xfp.models.recipes.calibration import read_windows
from m2xfp.models.recipes.recipe import Recipe, parse_steps
from m2xfp.models.results import Outcome, change_of, figures
from m2xfp.models.texts import read_text
from m2xfp.models.windows import cut, cut_windows
from m2xfp.results import read_figures
from m2xfp.tables import aligned_table

__all__ = ["FILE", "ROWS", "Row", "family_figures", "family_tables", "tables"]

FILE = "family.json"
"""Where the accepted figures stand, in docs/results."""

WINDOWS = 16
"""Windows of the held-out text."""

CALIBRATION_WINDOWS = 8
"""Windows of the calibration text that splits are made from."""

CALIBRATION = "/usr/share/common-licenses/GPL-3"
"""The calibration text, which every Debian has and the held-out text has not."""


@dataclass(frozen=True)
class Row:
    """A row of a system.

    Members
    -------
    system
        Whose it is.
    name
        What it is there.
    weights, activations
        Formats; or neither, and ``mixed``.
    cache
        Format of keys, values, queries and probabilities, or "".
    rotated
        Whether the model is rotated first.
    mixed
        Rule of mixed formats, or "".
    """

    system: str
    name: str
    weights: str = ""
    activations: str = ""
    cache: str = ""
    rotated: bool = False
    mixed: str = ""

    def command(self, windows: int) -> str:
        """Return the command that gives the row."""
        options = {
            "--windows": str(windows),
            "--rotate": "hadamard" if self.rotated else "",
            "--weights": self.weights,
            "--activations": self.activations,
            "--cache": self.cache,
            "--operands": self.cache,
            "--mixed": self.mixed,
            "--calibration": CALIBRATION if self.mixed else "",
        }
        given = (f"{option} {value}" for option, value in options.items() if value)
        return " ".join(["m2xfp eval", *given])


def _both(system: str, name: str, block: str, **more: Any) -> Row:
    """Return the row of one format for weights and activations."""
    return Row(system, name, block, block, **more)


_QLLM, _MICROMIX, _MXQUANT, _M2XFP = "MX-QLLM", "MicroMix", "MXQuant", "M2XFP"
_AMXFP4 = "amxfp4"

ROWS = (
    _both(_QLLM, "MXFP4, PoT scales", "mxfp4:scale_mode=pot,ties=away"),
    _both(_QLLM, "MXFP4, PoT-R scales", "mxfp4:scale_mode=pot-r,ties=away"),
    _both(_QLLM, "MXFP4, FP16 scales", "mxfp4:scale_mode=float,ties=away"),
    _both(_QLLM, "MXFP4, FP8 scales, E4M3", "mxfp4:scale_mode=e4m3,ties=away"),
    _both(_QLLM, "MXFP4, FP8 scales, E5M2", "mxfp4:scale_mode=e5m2,ties=away"),
    _both(_QLLM, "AMXFP4, PoT scales", f"{_AMXFP4}:scale_mode=pot"),
    _both(_QLLM, "AMXFP4, FP16 scales", f"{_AMXFP4}:scale_mode=float"),
    _both(_QLLM, "AMXFP4, FP8 scales, E4M3", f"{_AMXFP4}:scale_mode=e4m3"),
    _both(_QLLM, "AMXFP4, FP8 scales, E5M2", _AMXFP4),
    Row(_QLLM, "AMXFP4 activations, MXFP4 weights", "mxfp4:scale_mode=e5m2,ties=away", _AMXFP4),
    _both(_QLLM, "MXINT4", "int4:scale_mode=pot,ties=away"),
    _both(_QLLM, "INT4, asymmetric", "int4-asym"),
    _both(_QLLM, "MXINT8", "mxint8:scale_mode=pot,ties=away"),
    _both(_QLLM, "MXFP6, E2M3", "mxfp6-e2m3:scale_mode=pot,ties=away"),
    _both(_QLLM, "MXFP6, E3M2", "mxfp6-e3m2:scale_mode=pot,ties=away"),
    _both(_QLLM, "MXFP8, E4M3", "mxfp8-e4m3:scale_mode=pot,ties=away"),
    _both(_QLLM, "MXFP8, E5M2", "mxfp8-e5m2:scale_mode=pot,ties=away"),
    _both(_QLLM, "MXFP4, PoT, rotated", "mxfp4:scale_mode=pot,ties=away", rotated=True),
    _both(_QLLM, "INT4, asymmetric, rotated", "int4-asym", rotated=True),
    _both(_QLLM, "AMXFP4, rotated", _AMXFP4, rotated=True),
    _both(_QLLM, "AMXFP4, cache too", _AMXFP4, cache=_AMXFP4),
    _both(_QLLM, "AMXFP4, rotated, cache too", _AMXFP4, cache=_AMXFP4, rotated=True),
    _both(_MICROMIX, "MXFP4 alone", "mxfp4:scale_rule=ceil"),
    _both(_MICROMIX, "MXFP6 alone, E3M2", "mxfp6-e3m2:scale_rule=ceil"),
    _both(_MICROMIX, "MXFP8 alone, E4M3", "mxfp8-e4m3:scale_rule=ceil"),
    Row(_MICROMIX, "reordered and split", mixed="micromix:tile=32,strength=4"),
    Row(
        _MICROMIX,
        "main branch, weights MXFP4",
        mixed="micromix:tile=32,strength=4,weights=mxfp4",
    ),
    Row(_MXQUANT, "5 % MXFP6, its code", mixed="mxquant:tile=32,share=0.05"),
    Row(_MXQUANT, "10 % MXFP6, its README", mixed="mxquant:tile=32,share=0.1"),
    Row(
        _MXQUANT,
        "10 % MXFP6, activations MXFP8",
        mixed="mxquant:tile=32,share=0.1,activations=mxfp8-e4m3",
    ),
    Row(_M2XFP, "Sg-EM weights, Elem-EM activations", "m2xfp-weight", "m2xfp-act"),
    Row(_M2XFP, "the same, subgroups of 4", "m2xfp-weight:subgroup=4", "m2xfp-act:subgroup=4"),
    _both(_M2XFP, "NVFP4", "nvfp4"),
    Row(_M2XFP, "M2-NVFP4, subgroups of 8", "m2nvfp4-weight:subgroup=8", "m2nvfp4-act:subgroup=8"),
    Row(_M2XFP, "M2-NVFP4, subgroups of 4", "m2nvfp4-weight", "m2nvfp4-act"),
)


def family_figures(
    checkpoint: Checkpoint,
    device: torch.device,
    windows: int = WINDOWS,
    batch: int = 4,
    rows: Sequence[Row] = ROWS,
    report: Callable[[Case, Tensor], Any] = lambda case, nats: None,
) -> dict[str, Any]:
    """Measure the rows on a model.

    Parameters
    ----------
    checkpoint, device
        The model, and where to compute.
    windows, batch
        Windows of the held-out text, evenly spread, and windows a pass.
    rows
        What to measure.
    report
        Called with each case and its losses.
    """
    sample = cut(checkpoint.tokenize(read_text()), checkpoint.window(None)).some(windows)
    outcomes = []
    for case, seen in [(FP, None), *(_case(row, checkpoint, sample.tokens) for row in rows)]:
        model = checkpoint.load()
        skip = head_layers(model)
        with prepared(case, model.to(device), skip, calibration=seen) as ready:
            nats = window_nats(ready, sample.tokens, batch)
        report(case, nats)
        outcomes.append(Outcome(case, nats))
    protocol = {
        "model": checkpoint.name,
        "text": "bundled held-out text",
        **sample.facts(checkpoint.tokenizer),
        "calibration": {"text": CALIBRATION, "windows": CALIBRATION_WINDOWS},
    }
    found = figures(outcomes, protocol, windows=False)
    for row, record in zip(rows, found["results"][1:], strict=True):
        record |= {"system": row.system, "name": row.name, "command": row.command(windows)}
    return found


def _case(row: Row, checkpoint: Checkpoint, sample: Tensor) -> tuple[Case, Tensor | None]:
    """Return the case of a row, and the windows that its steps look at."""
    if row.mixed:
        rule, model = Rule.parse(row.mixed), checkpoint.load()
        layers = check_channels(model, head_layers(model), rule.tile)
        seen = cut_windows(checkpoint.tokenize(read_text(CALIBRATION)), sample.shape[1])
        plan = calibrate(model, layers, rule, seen[:CALIBRATION_WINDOWS])
        return MixedCase.of(plan, layers, Case().arithmetic), None
    recipe, windows = None, None
    if row.rotated:
        recipe, windows = read_windows(
            Recipe(parse_steps("rotate:mode=online")),
            checkpoint.tokenize,
            not checkpoint.tokenizer,
        )
    columns = {"weights": row.weights, "activations": row.activations}
    columns |= {"cache": row.cache, "operands": row.cache} if row.cache else {}
    given = {name: [block] for name, block in columns.items()}
    return sweep_cases(given, checkpoint.quantized, recipe=recipe)[-1], windows


def family_tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Return a table of the rows of each system, and its command beside each."""
    told = found["protocol"]
    head = (
        f"{told['model']}, {told['windows']} windows of {told['context']} tokens; change of "
        "perplexity against the model as it is, which each command measures too."
    )
    titles = ["system", "what", "bits a value", "change", "95 % interval", "command"]
    rows = [
        [
            record["system"],
            record["name"],
            f"{record['bits_per_value']:.4g}",
            *change_of(record["over_unquantized"]),
            f"`{record['command']}`",
        ]
        for record in found["results"]
        if "system" in record
    ]
    return {"family": f"{head}\n\n{aligned_table([titles, *rows])}"}


def tables(results: Path) -> dict[str, str]:
    """Return the table of the accepted figures."""
    path = results / FILE
    return family_tables(read_figures(path)) if path.exists() else {}
