"""Reports of evaluations, and the study of the bundled model that docs/results has figures of."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from m2xfp.files import atomic_path
from m2xfp.models.cases import FP, Case
from m2xfp.models.evaluate import bootstrap
from m2xfp.models.layers import Coverage
from m2xfp.results import read_figures
from m2xfp.tables import aligned_table

__all__ = [
    "CLAIMS",
    "FILE",
    "TABLES",
    "Claim",
    "Outcome",
    "StudyTable",
    "figures",
    "markdown",
    "ordering_table",
    "plot",
    "plots",
    "study_cases",
    "study_figures",
    "study_tables",
    "tables",
]

FILE = "perplexity.json"
"""Where the accepted study stands, in docs/results."""


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


def _change(ratio: Interval) -> tuple[str, str]:
    """Return a change of perplexity and its interval, in percent."""
    change, low, high = (100 * (ratio[name] - 1) for name in ("value", "low", "high"))
    return f"{change:+.2f} %", f"{low:+.2f} .. {high:+.2f} %"


def _ratio(nats: Tensor, reference: Tensor) -> dict[str, float]:
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
                *(("", "") if ratio is None else _change(ratio)),
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
        record["over_unquantized"] = _ratio(outcome.nats, reference)
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


def _save_figure(path: Path, figure: Any) -> None:
    with atomic_path(path) as temporary:
        # No date and no version inside, so that the same figures give the same bytes.
        figure.savefig(temporary, dpi=120, bbox_inches="tight", metadata={"Software": None})


def _new_figure(width: float, height: float) -> Any:
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
    figure = _new_figure(7, 1.2 + 0.35 * len(shown))
    axes = figure.subplots()
    for place, record in enumerate(shown):
        found = record[name]
        spread = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
        axes.errorbar(found["value"], place, xerr=spread, fmt="o", capsize=3, color="tab:blue")
    axes.set_yticks(
        range(len(shown)), [record.get("label") or _case(record).label for record in shown]
    )
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("perplexity over that without quantization" if changes else "perplexity")
    _save_figure(path, figure)


def _case(record: Mapping[str, Any]) -> Case:
    """Return the case that a record is of."""
    return Case.parse(*(record[name] for name in ("weights", "activations", "cache", "operands")))


@dataclass(frozen=True)
class StudyTable:
    """A table of the study.

    Members
    -------
    title, text
        Heading, and what the table shows.
    cases
        Its rows.
    compared
        M2XFP's row and NVFP4's, where both spend the same bits; compared directly below the table.
    """

    title: str
    text: str
    cases: tuple[Case, ...]
    compared: tuple[Case, Case] | None = None

    @property
    def name(self) -> str:
        """What pages call it."""
        return "perplexity-" + self.title.lower().replace(" ", "-")


def _both(weights: str, activations: str | None = None) -> Case:
    return Case.parse(weights, weights if activations is None else activations)


def _name(name: str, **options: str | int | bool) -> str:
    """Return a name for ``parse_format``, without options that have their default anyway."""
    defaults = {"scale_rule": "floor", "subgroup": 8, "adaptive": True}
    given = [
        f"{option}={str(value).lower()}"
        for option, value in options.items()
        if defaults.get(option) != value
    ]
    return f"{name}:{','.join(given)}".rstrip(":")


def _m2xfp(rule: str = "floor", adaptive: bool = True) -> Case:
    return _both(
        _name("m2xfp-weight", scale_rule=rule, adaptive=adaptive),
        _name("m2xfp-act", scale_rule=rule),
    )


def _mxfp4(rule: str = "floor") -> Case:
    return _both(_name("mxfp4", scale_rule=rule))


_RULES = ("floor", "ceil", "rtn1", "rtn2", "even")
_SUBGROUPS = (4, 8, 16, 32)
_M2XFP = _m2xfp()
_M2NVFP4 = _both("m2nvfp4-weight", "m2nvfp4-act")
_M2NVFP4_8 = _both("m2nvfp4-weight:subgroup=8", "m2nvfp4-act:subgroup=8")
_WEIGHTS_NVFP4 = Case.parse("nvfp4"), Case.parse("nvfp4:tensor_scale=none")
_NVFP4_ONE = _both("nvfp4:tensor_scale=none", "nvfp4")
_NVFP4_TWO = _both("nvfp4", "nvfp4:tensor_scale=token")


def _elem_em(subgroup: int) -> Case:
    return Case.parse(activations=_name("m2xfp-act", subgroup=subgroup))


def _elem_em_weights(subgroup: int) -> Case:
    return Case.parse(weights=_name("m2xfp-act", subgroup=subgroup))


def _sg_em(subgroup: int, adaptive: bool) -> Case:
    return Case.parse(weights=_name("m2xfp-weight", subgroup=subgroup, adaptive=adaptive))


SUBGROUP_CURVES: dict[str, tuple[Case, tuple[Case, ...]]] = {
    "activations, Elem-EM": (
        Case.parse(activations="mxfp4"),
        tuple(_elem_em(n) for n in _SUBGROUPS),
    ),
    "weights, Elem-EM": (
        Case.parse(weights="mxfp4"),
        tuple(_elem_em_weights(n) for n in _SUBGROUPS),
    ),
    "weights, Sg-EM fixed": (
        Case.parse(weights="mxfp4"),
        tuple(_sg_em(n, adaptive=False) for n in _SUBGROUPS),
    ),
    "weights, Sg-EM adaptive": (
        Case.parse(weights="mxfp4"),
        tuple(_sg_em(n, adaptive=True) for n in _SUBGROUPS),
    ),
}
"""Curve -> the format without metadata, and the subgroup sizes 4, 8, 16, 32."""

TABLES = (
    StudyTable(
        "Formats",
        "Weights and activations of all linear layers (the paper's Table 3 in small).",
        (
            FP,
            _mxfp4(),
            _both("smx4"),
            _both("nvfp4"),
            _M2XFP,
            _both("amxfp4"),
            _both("mxfp6-e2m3"),
            _both("mxfp8-e4m3"),
        ),
        (_M2XFP, _both("nvfp4")),
    ),
    StudyTable(
        "Activations only",
        "Weights as they are. Of equally large codes Elem-EM refines the first, by rule; "
        "`choice=highest` is the last, as another implementation may choose.",
        (
            FP,
            *(Case.parse(activations=name) for name in ("mxfp4", "smx4", "nvfp4")),
            Case.parse(activations="nvfp4:tensor_scale=token"),
            *(Case.parse(activations=name) for name in ("m2xfp-act", "m2xfp-act:choice=highest")),
        ),
        (Case.parse(activations="m2xfp-act"), Case.parse(activations="nvfp4")),
    ),
    StudyTable(
        "Weights only",
        "Activations as they are; NVFP4 with one level of scales and with two, Sg-EM with the "
        "shared scale fixed and adaptive.",
        (
            FP,
            *(Case.parse(weights=name) for name in ("mxfp4", "smx4", "nvfp4:tensor_scale=none")),
            *(Case.parse(weights=name) for name in ("nvfp4", "m2xfp-act")),
            Case.parse(weights="m2xfp-weight:adaptive=false"),
            Case.parse(weights="m2xfp-weight"),
        ),
        (Case.parse(weights="m2xfp-weight"), Case.parse(weights="nvfp4")),
    ),
    StudyTable(
        "Fixed and adaptive Sg-EM",
        "Weights and activations; the shared scale of the weights fixed or adaptive.",
        (FP, _m2xfp(adaptive=False), _M2XFP),
    ),
    StudyTable(
        "Scale rules",
        "Weights and activations under each rule for the shared scale; floor is the default (the "
        "paper's Table 8).",
        (
            FP,
            *(_mxfp4(rule) for rule in _RULES),
            *(_m2xfp(rule) for rule in _RULES),
        ),
    ),
    StudyTable(
        "Metadata on NVFP4",
        "Weights and activations (the paper's Table 6): one level of scales, two for the weights, "
        "and two for the activations of each token too.",
        (
            FP,
            _NVFP4_ONE,
            _both("nvfp4"),
            _NVFP4_TWO,
            _M2NVFP4_8,
            _M2NVFP4,
            _both("m2nvfp4-weight:candidates=octaves", "m2nvfp4-act"),
            _both("m2nvfp4-weight", "m2nvfp4-act:tensor_scale=token"),
        ),
    ),
    StudyTable(
        "Quantized attention",
        "Sg-EM for keys and values, Elem-EM for queries and probabilities, with and without "
        "quantized layers (the paper's Sec. 6.4).",
        (
            FP,
            Case.parse(cache="mxfp4", operands="mxfp4"),
            Case.parse(cache="m2xfp-weight"),
            Case.parse("mxfp4", "mxfp4", "mxfp4", "mxfp4"),
            Case.parse("m2xfp-weight", "m2xfp-act", "m2xfp-weight"),
        ),
    ),
    StudyTable(
        "Subgroup sizes",
        "2 bits a subgroup of 4, 8, 16 or 32 values (the paper's Figs. 6 and 7).",
        (FP, *dict.fromkeys(c for base, cases in SUBGROUP_CURVES.values() for c in (base, *cases))),
    ),
)


@dataclass(frozen=True)
class Claim:
    """An ordering that the paper reports or leads to expect.

    Members
    -------
    text
        In words.
    better, worse
        The case with the lower perplexity, and the other.
    """

    text: str
    better: Case
    worse: Case


CLAIMS = (
    Claim("M2XFP is better than MXFP4", _M2XFP, _mxfp4()),
    Claim("M2XFP is better than NVFP4", _M2XFP, _both("nvfp4")),
    Claim("M2XFP is better than SMX4", _M2XFP, _both("smx4")),
    Claim("NVFP4 is better than MXFP4", _both("nvfp4"), _mxfp4()),
    Claim("MXFP4 is better than SMX4", _mxfp4(), _both("smx4")),
    Claim(
        "activations: Elem-EM is better than MXFP4",
        Case.parse(activations="m2xfp-act"),
        Case.parse(activations="mxfp4"),
    ),
    Claim(
        "activations: Elem-EM is better with the last of equal codes than with the first",
        Case.parse(activations="m2xfp-act:choice=highest"),
        Case.parse(activations="m2xfp-act"),
    ),
    Claim("two levels of scales are better for NVFP4 weights than one", *_WEIGHTS_NVFP4),
    Claim(
        "activations: Elem-EM is better than NVFP4",
        Case.parse(activations="m2xfp-act"),
        Case.parse(activations="nvfp4"),
    ),
    Claim(
        "weights: adaptive Sg-EM is better than fixed Sg-EM",
        Case.parse(weights="m2xfp-weight"),
        Case.parse(weights="m2xfp-weight:adaptive=false"),
    ),
    Claim(
        "weights: adaptive Sg-EM is better than Elem-EM",
        Case.parse(weights="m2xfp-weight"),
        Case.parse(weights="m2xfp-act"),
    ),
    Claim(
        "weights: adaptive Sg-EM is better than NVFP4",
        Case.parse(weights="m2xfp-weight"),
        Case.parse(weights="nvfp4"),
    ),
    *(
        Claim(
            f"rule {rule}: M2XFP is better than MXFP4",
            _m2xfp(rule),
            _mxfp4(rule),
        )
        for rule in _RULES
    ),
    Claim("M2-NVFP4, subgroups of 4, is better than NVFP4", _M2NVFP4, _both("nvfp4")),
    Claim("M2-NVFP4, subgroups of 8, is better than NVFP4", _M2NVFP4_8, _both("nvfp4")),
    Claim(
        "attention: M2XFP is better than MXFP4",
        Case.parse(cache="m2xfp-weight"),
        Case.parse(cache="mxfp4", operands="mxfp4"),
    ),
    *(
        Claim(f"{name}: subgroups of {small} are better than of {2 * small}", better, worse)
        for name, (_, cases) in SUBGROUP_CURVES.items()
        for small, better, worse in zip(_SUBGROUPS, cases, cases[1:], strict=False)
    ),
)


def study_cases() -> list[Case]:
    """Return every case of the study once, the one without quantization first."""
    return list(dict.fromkeys(case for table in TABLES for case in table.cases))


def _orderings(nats: Mapping[Case, Tensor]) -> list[dict[str, Any]]:
    """Return how the two cases of each claim compare, window by window."""
    return [
        {"ordering": claim.text, "ratio": _ratio(nats[claim.better], nats[claim.worse])}
        for claim in CLAIMS
    ]


def ordering_table(orderings: Sequence[Mapping[str, Any]]) -> str:
    """Return the orderings with what this text says of each, as markdown."""
    rows = [["ordering", "perplexity of the first over the second", "95 % interval", "verdict"]]
    for row in orderings:
        ratio = row["ratio"]
        if ratio["high"] < 1:
            verdict = "holds"
        elif ratio["low"] > 1:
            verdict = "does not hold"
        else:
            verdict = "within the noise"
        rows.append([row["ordering"], *_change(ratio), verdict])
    return aligned_table(rows)


def study_figures(
    losses: Callable[[Case], Tensor],
    protocol: Mapping[str, Any],
    progress: Callable[[Sequence[Case]], Any] = lambda cases: cases,
) -> dict[str, Any]:
    """Measure every case of the study, and how the claims' cases compare window by window.

    Parameters
    ----------
    losses
        Gives the losses of a case.
    protocol
        How it was measured.
    progress
        Wraps the sequence of cases, such as ``track``.
    """
    nats = {case: losses(case) for case in progress(study_cases())}
    outcomes = [Outcome(case, found) for case, found in nats.items()]
    return {**figures(outcomes, protocol, windows=False), "orderings": _orderings(nats)}


def study_tables(study: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of the study by name: ``perplexity-formats``, ... ``-orderings``."""
    records = {_case(record): record for record in study["results"]}
    ratios = {
        (claim.better, claim.worse): row["ratio"]
        for claim, row in zip(CLAIMS, study["orderings"], strict=True)
    }
    found = {}
    for table in TABLES:
        text = markdown([records[case] for case in table.cases])
        if table.compared is not None:
            change, interval = _change(ratios[table.compared])
            text += f"\nm2xfp against nvfp4: {change} (95 % interval {interval})\n"
        found[table.name] = f"{table.text}\n\n{text}"
    found["perplexity-orderings"] = ordering_table(study["orderings"])
    return found


def plot_subgroups(path: Path, study: Mapping[str, Any]) -> None:
    """Draw the change of perplexity over bits a value for each curve of subgroup sizes."""
    records = {_case(record): record for record in study["results"]}
    figure = _new_figure(7, 4)
    axes = figure.subplots()
    for name, (base, cases) in SUBGROUP_CURVES.items():
        points = [records[case] for case in (base, *reversed(cases))]
        found = [record["over_unquantized"] for record in points]
        spread = [
            [f["value"] - f["low"] for f in found],
            [f["high"] - f["value"] for f in found],
        ]
        axes.errorbar(
            [record["bits_per_value"] for record in points],
            [f["value"] for f in found],
            yerr=spread,
            marker="o",
            capsize=3,
            label=name,
        )
    axes.set_xlabel("bits a value (4.25: MXFP4; then subgroups of 32, 16, 8, 4)")
    axes.set_ylabel("perplexity over that without quantization")
    axes.grid(alpha=0.3)
    axes.legend()
    _save_figure(path, figure)


def tables(results: Path) -> dict[str, str]:
    """Return the tables of the accepted study, and of accepted files ``perplexity-NAME.json``."""
    path = results / FILE
    found = study_tables(read_figures(path)) if path.exists() else {}
    for other in sorted(results.glob("perplexity-*.json")):
        figures = read_figures(other)
        told = figures["protocol"]
        windows = f"{told['windows']} windows of {told['context']} tokens"
        found[other.stem] = f"{told['model']}, {windows}.\n\n{markdown(figures['results'])}"
    return found


def plots(results: Path, output: Path) -> list[Path]:
    """Draw the formats, and the curves of subgroup sizes, of the accepted study."""
    if not (results / FILE).exists():
        return []
    study = read_figures(results / FILE)
    records = {_case(record): record for record in study["results"]}
    images = [output / "perplexity.png", output / "subgroups.png"]
    plot(images[0], [records[case] for case in TABLES[0].cases])
    plot_subgroups(images[1], study)
    return images
