"""The study of the bundled model: its tables and claims, which docs/results has figures of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from m2xfp.models.cases import FP, Case
from m2xfp.models.results import (
    Outcome,
    case_of,
    change_of,
    figures,
    markdown,
    new_figure,
    plot,
    ratio_of,
    save_figure,
)
from m2xfp.results import read_figures
from m2xfp.tables import aligned_table

__all__ = [
    "CLAIMS",
    "FILE",
    "TABLES",
    "Claim",
    "StudyTable",
    "ordering_table",
    "plots",
    "study_cases",
    "study_figures",
    "study_tables",
    "tables",
]

FILE = "perplexity.json"
"""Where the accepted study stands, in docs/results."""


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
        {"ordering": claim.text, "ratio": ratio_of(nats[claim.better], nats[claim.worse])}
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
        rows.append([row["ordering"], *change_of(ratio), verdict])
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
    records = {case_of(record): record for record in study["results"]}
    ratios = {
        (claim.better, claim.worse): row["ratio"]
        for claim, row in zip(CLAIMS, study["orderings"], strict=True)
    }
    found = {}
    for table in TABLES:
        text = markdown([records[case] for case in table.cases])
        if table.compared is not None:
            change, interval = change_of(ratios[table.compared])
            text += f"\nm2xfp against nvfp4: {change} (95 % interval {interval})\n"
        found[table.name] = f"{table.text}\n\n{text}"
    found["perplexity-orderings"] = ordering_table(study["orderings"])
    return found


def plot_subgroups(path: Path, study: Mapping[str, Any]) -> None:
    """Draw the change of perplexity over bits a value for each curve of subgroup sizes."""
    records = {case_of(record): record for record in study["results"]}
    figure = new_figure(7, 4)
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
    save_figure(path, figure)


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
    records = {case_of(record): record for record in study["results"]}
    images = [output / "perplexity.png", output / "subgroups.png"]
    plot(images[0], [records[case] for case in TABLES[0].cases])
    plot_subgroups(images[1], study)
    return images
