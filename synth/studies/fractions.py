"""What the fraction bits F of the weight encoder cost, and what they buy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2xfp.files import write_atomic
from m2xfp.formats import BF16, M2XFP_WEIGHT
from m2xfp.results import read_figures
from m2xfp.rtl.catalog import Instance, find_unit
from m2xfp.rtl.parts.multiplier_search import Ladder
from m2xfp.rtl.parts.search_study import GainSearch, SquareSearch
from m2xfp.rtl.units.weight_encoder import FRACTION_BITS, OFFSETS
from m2xfp.rtl.verilog.emit import verilog_text
from m2xfp.synth.flow.pdk import Pdk
from m2xfp.synth.flow.yosys import BUILD, FlowOptions, synthesize
from m2xfp.synth.report.figures import measure_all
from m2xfp.synth.report.plots import draw
from m2xfp.tables import aligned_table

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FILE",
    "Excess",
    "excess",
    "fraction_tables",
    "measure_fractions",
    "plots",
    "tables",
]

FILE = "fractions.json"
CONFIG = "bf16-adaptive-4"
WEIGHTS = "model weights"


@dataclass(frozen=True)
class Excess:
    """How far a fixed-point search is from the exact one on some groups.

    Members
    -------
    over
        Squared error over that of the exact search, less 1.
    changed
        Share of the groups that are encoded differently.
    """

    over: float
    changed: float


def excess(x: Tensor, fraction_bits: Sequence[int]) -> list[Excess]:
    """Compare the search at several F with the exact one.

    Parameters
    ----------
    x
        bfloat16, float16 or float32 [groups, 32].
    fraction_bits
        The F to try.
    """
    from m2xfp.golden import get_format

    def packed(**options: Any) -> tuple[Tensor, float]:
        groups = get_format("m2xfp-weight", **options).quantize(x)
        error = (groups.dequantize().double() - x.double()).square().sum()
        return groups.groups().flatten(1), float(error)

    exact, least = packed()
    found = [packed(search="fixed", fraction_bits=bits) for bits in fraction_bits]
    return [
        Excess(error / least - 1, float((groups != exact).any(1).double().mean()))
        for groups, error in found
    ]


def _samples(groups: int) -> dict[str, Tensor]:
    """Return the named distributions and the bundled model's weights, bfloat16 [groups, 32]."""
    import torch

    from m2xfp.models.lm import load_model
    from m2xfp.models.quality import DISTRIBUTIONS, sample

    matrices = [p.detach() for p in load_model().parameters() if p.ndim == 2]
    weights = torch.cat([matrix.bfloat16().reshape(-1, 32) for matrix in matrices])
    return {name: sample(name, groups) for name in DISTRIBUTIONS} | {WEIGHTS: weights}


def encoders(fraction_bits: Sequence[int]) -> list[Instance]:
    """Return the encoder with each F."""
    unit = find_unit("weight_encoder")
    return [unit.instance(CONFIG, {"fraction_bits": bits}) for bits in fraction_bits]


def _searches(pdk: Pdk, build: Path) -> list[dict[str, Any]]:
    """Return ways to search a subgroup of bfloat16, and the area of their logic."""
    from m2xfp.progress import track

    bits = FRACTION_BITS[BF16.name]
    together = Ladder(M2XFP_WEIGHT, bits + 1, 2, len(OFFSETS))
    apart = [Ladder(M2XFP_WEIGHT, bits + offset, 3 - offset) for offset in OFFSETS]
    ways: dict[str, list[Any]] = {
        "squared differences": [SquareSearch(together)],
        "gains, each offset by itself": [GainSearch(ladder) for ladder in apart],
        "gains, all offsets at once": [GainSearch(together)],
    }
    found = []
    for number, (name, parts) in enumerate(track(ways.items(), desc="searches", unit="way")):
        area = 0.0
        for index, part in enumerate(parts):
            top = f"search_{number}_{index}"
            verilog = write_atomic(build / "verilog" / f"{top}.v", verilog_text(part, top))
            area += synthesize(verilog, top, pdk, build=build).logic_area_um2
        found.append({"search": name, "logic_area_um2": area})
    return found


def measure_fractions(
    pdk: Pdk, bits: Sequence[int], groups: int, *, power: bool = True, build: Path = BUILD
) -> dict[str, Any]:
    """Map the encoder at each F, hold its search against the exact one; return the figures.

    Parameters
    ----------
    pdk
        The library.
    bits
        The F, in order.
    groups
        Groups of each distribution.
    power
        Whether to measure energy too.
    build
        Folder of what is built.
    """
    from m2xfp.progress import track

    samples = track(_samples(groups).items(), desc="search", unit="tensor")
    errors = {name: excess(x, bits) for name, x in samples}
    rows = measure_all(encoders(bits), pdk, FlowOptions(), power=power, build=build)
    return {
        "pdk_title": pdk.title,
        "groups": groups,
        "costs": [
            {
                "fraction_bits": f,
                "area_um2": row.area_um2,
                "gate_equivalents": row.gate_equivalents,
                "flops": row.flops,
                "critical_path_ns": row.critical_path_ns,
                "energy_pj_per_group": row.energy_pj_per_group,
            }
            for f, row in zip(bits, rows, strict=True)
        ],
        "errors": [
            {
                "fraction_bits": f,
                **{
                    name: {"over": found[index].over, "changed": found[index].changed}
                    for name, found in errors.items()
                },
            }
            for index, f in enumerate(bits)
        ],
        "searches": _searches(pdk, build),
    }


def cost_table(figures: Mapping[str, Any]) -> str:
    """Return area, path and energy at each F."""
    rows = [["F", "area um2", "GE", "flip-flops", "path ns", "pJ a group"]]
    for cost in figures["costs"]:
        energy = cost["energy_pj_per_group"]
        rows.append(
            [
                str(cost["fraction_bits"]),
                f"{cost['area_um2']:.0f}",
                f"{cost['gate_equivalents']:.0f}",
                str(cost["flops"]),
                f"{cost['critical_path_ns']:.2f}",
                "" if energy is None else f"{energy:.0f}",
            ]
        )
    return (
        f"bfloat16, adaptive, one group in 4 clocks. {figures['pdk_title']}; energy on weights of "
        f"the bundled model.\n\n{aligned_table(rows)}"
    )


def _distributions(figures: Mapping[str, Any]) -> list[str]:
    return [name for name in figures["errors"][0] if name != "fraction_bits"]


def error_table(figures: Mapping[str, Any]) -> str:
    """Return what each F loses."""
    names = _distributions(figures)
    rows = [["F", *names]]
    for error in figures["errors"]:
        cells = (
            f"{1e6 * error[name]['over']:.3g} ({100 * error[name]['changed']:.3g} %)"
            for name in names
        )
        rows.append([str(error["fraction_bits"]), *cells])
    return (
        "Squared error over that of the exact search, in parts per million, and the share of the "
        f"groups that are encoded differently.\n\n{aligned_table(rows)}"
    )


def search_table(figures: Mapping[str, Any]) -> str:
    """Return the ways to search."""
    found = figures["searches"]
    most = found[0]["logic_area_um2"]
    rows = [["search", "area um2", "of the first"]]
    for way in found:
        area = way["logic_area_um2"]
        rows.append([way["search"], f"{area:.0f}", f"{100 * area / most:.0f} %"])
    return (
        "The search of one subgroup, 12 candidates, in three ways; area less that of the registers "
        f"between its stages.\n\n{aligned_table(rows)}"
    )


def fraction_tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return the three tables by name."""
    return {
        "fractions-cost": cost_table(figures),
        "fractions-error": error_table(figures),
        "fractions-search": search_table(figures),
    }


def tables(results: Path) -> dict[str, str]:
    """Return the tables of the accepted figures."""
    path = results / FILE
    return fraction_tables(read_figures(path)) if path.exists() else {}


def plots(results: Path, output: Path) -> list[Path]:
    """Plot area and energy against those of the largest F, and the excess errors."""
    if not (results / FILE).exists():
        return []
    figures = read_figures(results / FILE)
    costs = figures["costs"]
    bits = [cost["fraction_bits"] for cost in costs]

    def paint(axes: Any) -> None:
        curves = {
            "area": [cost["area_um2"] for cost in costs],
            "energy a group": [cost["energy_pj_per_group"] or 0.0 for cost in costs],
        }
        for name, values in curves.items():
            if values[-1]:
                axes.plot(bits, [v / values[-1] for v in values], marker="o", label=name)
        axes.set_xlabel("fraction bits F")
        axes.set_ylabel(f"cost over that of F = {bits[-1]}")
        axes.set_ylim(0, 1.05)
        axes.legend(loc="lower right")
        right = axes.twinx()
        for name in _distributions(figures):
            shown = [
                (error["fraction_bits"], 1e6 * error[name]["over"])
                for error in figures["errors"]
                if error[name]["over"] > 0
            ]
            if shown:
                right.plot(*zip(*shown, strict=True), linestyle="--", marker=".", label=name)
        right.set_yscale("log")
        right.set_ylabel("excess squared error, ppm")
        right.legend(loc="upper right")

    path = output / "fractions.svg"
    draw(path, (7, 4.5), paint)
    return [path]
