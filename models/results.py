"""Reports of evaluations: figures with their intervals, tables and plots."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from m2xfp.files import atomic_path
from m2xfp.models.cases import Case
from m2xfp.models.evaluate import bootstrap
from m2xfp.models.layers import Coverage
from m2xfp.tables import aligned_table

__all__ = [
    "Interval",
    "Outcome",
    "case_of",
    "change_of",
    "figures",
    "markdown",
    "new_figure",
    "plot",
    "ratio_of",
    "save_figure",
]


@dataclass(frozen=True)
class Outcome:
    """A case with what came out.

    Members
    -------
    case
        What was quantized.
    nats
        Loss of each window, float64 [n], nats a token.
    tasks
        Results of the evaluation harness by task and metric.
    coverage
        How much of what multiplies was quantized, where anything was.
    stored
        Formats of ``weights`` and ``activations`` of a model that was quantized already.
    """

    case: Case
    nats: Tensor
    tasks: dict[str, dict[str, float]] | None = None
    coverage: Coverage | None = None
    stored: Case | None = None


Interval = Mapping[str, float]
"""A figure of a record, with its 95 % interval: ``value``, ``low``, ``high``."""


def change_of(ratio: Interval) -> tuple[str, str]:
    """Return a change of perplexity and its interval, in percent."""
    change, low, high = (100 * (ratio[name] - 1) for name in ("value", "low", "high"))
    return f"{change:+.2f} %", f"{low:+.2f} .. {high:+.2f} %"


def ratio_of(nats: Tensor, reference: Tensor) -> dict[str, float]:
    """Return the perplexity of losses over that of others on the same windows."""
    return asdict(bootstrap(nats, reference))


_USUAL = {"steps": "", "arithmetic": "float"}


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of perplexities; changes are against the case without quantization.

    Parameters
    ----------
    records
        ``results`` of ``figures``.
    """
    names = ["weights", "activations"]
    if any(record["cache"] != "none" for record in records):
        names += ["cache", "operands"]
    names += [extra for extra in ("steps", "arithmetic") if any(extra in r for r in records)]
    metrics = [
        (task, metric)
        for task, values in next((r["tasks"] for r in records if "tasks" in r), {}).items()
        for metric in values
    ]
    covered = any("coverage" in record for record in records)
    shares = ["of the weights"] if covered else []
    lengths = any("byte_perplexity" in record for record in records)
    units = ["a word", "a byte"] if lengths else []
    figures = ["perplexity", *units, "change", "95 % interval"]
    titles = [*names, "bits a value", *shares, *figures]
    rows = [[*titles, *(f"{task} {metric}" for task, metric in metrics)]]
    for record in records:
        bits, ratio = record["bits_per_value"], record.get("over_unquantized")
        tasks = record.get("tasks")
        rows.append(
            [
                *(record.get(name, _USUAL.get(name)) for name in names),
                "" if bits is None else f"{bits:g}",
                *([_share(record)] if covered else []),
                f"{record['perplexity']['value']:.4f}",
                *(_units(record) if lengths else []),
                *(("", "") if ratio is None else change_of(ratio)),
                *(f"{tasks[task][metric]:.4f}" if tasks else "" for task, metric in metrics),
            ]
        )
    return aligned_table(rows)


def _exp(nats: float) -> float:
    """Return exp, infinite where float64 is too small: a word has many tokens."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def _units(record: Mapping[str, Any]) -> list[str]:
    """Return the perplexities a word and a byte, where they are known."""
    found = (record.get(f"{unit}_perplexity") for unit in ("word", "byte"))
    return ["" if value is None else f"{value:.5g}" for value in found]


def _share(record: Mapping[str, Any]) -> str:
    """Return the share of the weights that is quantized, rounded down so that 100 % is all."""
    if "coverage" not in record:
        return ""
    return f"{math.floor(1000 * record['coverage']['share']) / 10:.1f} %"


def _record(
    outcome: Outcome, reference: Tensor | None, windows: bool, protocol: Mapping[str, Any]
) -> dict[str, Any]:
    case = outcome.case
    if outcome.stored is not None:
        case = replace(case, weights=outcome.stored.weights, activations=outcome.stored.activations)
    bits = case.bits_per_value
    record: dict[str, Any] = {
        **case.facts,
        "bits_per_value": None if bits is None else float(bits),
        "perplexity": asdict(bootstrap(outcome.nats)),
    }
    if "predicted_tokens_a_window" in protocol:
        total = outcome.nats.sum().item() * protocol["predicted_tokens_a_window"]
        for unit in ("word", "byte"):
            count = protocol[f"{unit}s"]
            record[f"{unit}_perplexity"] = _exp(total / count) if count else None
    if reference is not None and outcome.case.quantizes:
        record["over_unquantized"] = ratio_of(outcome.nats, reference)
    if outcome.coverage is not None:
        record["coverage"] = outcome.coverage.facts
    if outcome.tasks:
        record["tasks"] = outcome.tasks
    if windows:
        record["window_nats"] = outcome.nats.tolist()
    return record


def figures(
    outcomes: Sequence[Outcome], protocol: Mapping[str, Any], windows: bool = True
) -> dict[str, Any]:
    """Return everything as figures, with their 95 % intervals.

    Parameters
    ----------
    outcomes
        All on the same windows; changes are left out where none of them is ``FP``.
    protocol
        How it was measured; with ``Windows.facts`` in it records have the perplexity a word and a
        byte too.
    windows
        Give the loss of each window too, in nats a token.
    """
    reference = next((o.nats for o in outcomes if not o.case.quantizes), None)
    records = [_record(outcome, reference, windows, protocol) for outcome in outcomes]
    return {"protocol": dict(protocol), "results": records}


def save_figure(path: Path, figure: Any) -> None:
    """Write a figure as a PNG, the same bytes every time."""
    with atomic_path(path) as temporary:
        # No date and no version inside, so that the same figures give the same bytes.
        figure.savefig(temporary, dpi=120, bbox_inches="tight", metadata={"Software": None})


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure of that size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plot(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draw the change of perplexity of every quantized case, with its interval, as a PNG.

    Parameters
    ----------
    path
        The PNG file.
    records
        As for ``markdown``; perplexities themselves where none of them is quantized.
    """
    changes = any("over_unquantized" in record for record in records)
    name = "over_unquantized" if changes else "perplexity"
    shown = [record for record in records if name in record]
    figure = new_figure(7, 1.2 + 0.35 * len(shown))
    axes = figure.subplots()
    for place, record in enumerate(shown):
        found = record[name]
        spread = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
        axes.errorbar(found["value"], place, xerr=spread, fmt="o", capsize=3, color="tab:blue")
    axes.set_yticks(
        range(len(shown)), [record.get("label") or case_of(record).label for record in shown]
    )
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("perplexity over that without quantization" if changes else "perplexity")
    save_figure(path, figure)


def case_of(record: Mapping[str, Any]) -> Case:
    """Return the case that a record is of."""
    return Case.parse(*(record[name] for name in ("weights", "activations", "cache", "operands")))
