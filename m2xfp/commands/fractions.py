"""``m2xfp fractions``: what the fraction bits of the weight encoder cost and what they buy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from torch import Tensor

    from m2xfp.rtl.catalog import Unit
    from m2xfp.synth.flow.pdk import Pdk
    from m2xfp.synth.report.figures import Row

__all__ = ["Excess", "command", "excess"]

UNIT, CLOCKS = "weight_encoder", 4
WEIGHTS = "model weights"
STEM = "weight-encoder-fractions"


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


def _unit(fraction_bits: Sequence[int]) -> Unit:
    """Return the encoder with one configuration for each F."""
    from m2xfp.formats import BF16
    from m2xfp.rtl.catalog import find_unit

    return replace(
        find_unit(UNIT),
        configs={
            f"bf16-adaptive-{CLOCKS}-f{bits}": {
                "input_type": BF16,
                "clocks_per_group": CLOCKS,
                "fraction_bits": bits,
            }
            for bits in fraction_bits
        },
    )


def _searches(pdk: Pdk, build: Path) -> list[tuple[str, float]]:
    """Return ways to search a subgroup of bfloat16, and the area of their logic in um2."""
    from tqdm import tqdm

    from m2xfp.files import write_atomic
    from m2xfp.formats import BF16, M2XFP_WEIGHT
    from m2xfp.rtl.parts.code_ladder import Ladder
    from m2xfp.rtl.parts.search_study import GainSearch, SquareSearch
    from m2xfp.rtl.units.weight_encoder import FRACTION_BITS, OFFSETS
    from m2xfp.rtl.verilog.emit import verilog_text
    from m2xfp.synth.flow.yosys import synthesize

    bits = FRACTION_BITS[BF16.name]
    together = Ladder(M2XFP_WEIGHT, bits + 1, 2, len(OFFSETS))
    apart = [Ladder(M2XFP_WEIGHT, bits + offset, 3 - offset) for offset in OFFSETS]
    ways = {
        "squared differences": [SquareSearch(together)],
        "gains, each offset by itself": [GainSearch(ladder) for ladder in apart],
        "gains, all offsets at once": [GainSearch(together)],
    }
    areas = []
    for number, (name, parts) in enumerate(tqdm(ways.items(), desc="searches", unit="way")):
        area = 0.0
        for index, part in enumerate(parts):
            top = f"search_{number}_{index}"
            verilog = write_atomic(build / "verilog" / f"{top}.v", verilog_text(part, top))
            area += synthesize(verilog, top, pdk, build=build).logic_area_um2
        areas.append((name, area))
    return areas


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of text, the titles first, as lines of a markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _text(
    bits: Sequence[int],
    rows: Sequence[Row],
    excesses: dict[str, list[Excess]],
    searches: Sequence[tuple[str, float]],
    pdk: Pdk,
) -> str:
    """Return the page: tables of costs, of errors and of ways to search."""
    costs = [["F", "area um2", "GE", "flip-flops", "path ns", "pJ a group"]]
    for f, row in zip(bits, rows, strict=True):
        energy = row.energy_pj_per_group
        costs.append(
            [
                str(f),
                f"{row.area_um2:.0f}",
                f"{row.gate_equivalents:.0f}",
                str(row.flops),
                f"{row.critical_path_ns:.2f}",
                "" if energy is None else f"{energy:.0f}",
            ]
        )
    errors = [["F", *excesses]]
    for index, f in enumerate(bits):
        cells = [row[index] for row in excesses.values()]
        errors.append([str(f), *(f"{1e6 * c.over:.3g} ({100 * c.changed:.3g} %)" for c in cells)])
    most = searches[0][1]
    ways = [["search", "area um2", "of the first"]]
    ways += [[name, f"{area:.0f}", f"{100 * area / most:.0f} %"] for name, area in searches]
    return "\n".join(
        [
            "# Fraction bits of the weight encoder",
            "",
            "Generated by `m2xfp fractions`: bfloat16, adaptive, one group in "
            f"{CLOCKS} clocks. {pdk.title}; energy on weights of the bundled model.",
            "",
            *_table(costs),
            "",
            "Squared error over that of the exact search, in parts per million, and the share of "
            "the groups that are encoded differently.",
            "",
            *_table(errors),
            "",
            f"![area, energy and error against F]({STEM}.svg)",
            "",
            "The search of one subgroup, 12 candidates, in three ways; area less that of the "
            "registers between its stages:",
            "",
            *_table(ways),
            "",
        ]
    )


def _plot(
    path: Path, bits: Sequence[int], rows: Sequence[Row], excesses: dict[str, list[Excess]]
) -> None:
    """Plot area and energy against those of the largest F, and the excess errors."""
    from m2xfp.synth.report.plots import draw

    def paint(axes: Any) -> None:
        costs = {
            "area": [row.area_um2 for row in rows],
            "energy a group": [row.energy_pj_per_group or 0.0 for row in rows],
        }
        for name, values in costs.items():
            axes.plot(bits, [v / values[-1] for v in values], marker="o", label=name)
        axes.set_xlabel("fraction bits F")
        axes.set_ylabel(f"cost over that of F = {bits[-1]}")
        axes.set_ylim(0, 1.05)
        axes.legend(loc="lower right")
        right = axes.twinx()
        for name, found in excesses.items():
            shown = [(f, 1e6 * e.over) for f, e in zip(bits, found, strict=True) if e.over > 0]
            right.plot(*zip(*shown, strict=True), linestyle="--", marker=".", label=name)
        right.set_yscale("log")
        right.set_ylabel("excess squared error, ppm")
        right.legend(loc="upper right")

    draw(path, (7, 4.5), paint)


@click.command()
@click.option("--pdk", metavar="NAME", help="Cell library (default: osu018).")
@click.option(
    "--liberty",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Cell library by its Liberty file; repeat for one in several files.",
)
@click.option("--lowest", default=5, show_default=True, type=click.IntRange(5, 32))
@click.option("--highest", default=14, show_default=True, type=click.IntRange(5, 32))
@click.option(
    "--groups",
    default=10_000,
    show_default=True,
    type=click.IntRange(1),
    help="Groups of each distribution.",
)
@click.option("--power/--no-power", default=True, show_default=True, help="Measure energy.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("docs/results"),
    show_default=True,
    help=f"Folder for {STEM}.md and {STEM}.svg.",
)
def command(
    pdk: str | None,
    liberty: tuple[Path, ...],
    lowest: int,
    highest: int,
    groups: int,
    power: bool,
    output: Path,
) -> None:
    r"""Study the fraction bits F of the weight encoder: area, energy, error.

    The encoder compares squared errors in fixed point. With F from 10 on its bfloat16 search equals
    the exact one; fewer bits make it smaller and now and then choose second best. Each F is mapped
    onto a cell library and run at gate level, and its search is held against the exact one on known
    distributions and on the bundled model's weights.

    \b
    m2xfp fractions
    m2xfp fractions --lowest 8 --highest 10 --no-power -o build
    """
    from tqdm import tqdm

    from m2xfp.files import write_atomic
    from m2xfp.synth.flow.pdk import DEFAULT_PDK, find_pdk, pdk_from_liberty
    from m2xfp.synth.flow.yosys import BUILD, FlowOptions
    from m2xfp.synth.report.figures import measure_all

    if lowest > highest:
        raise click.UsageError(f"--lowest {lowest} is above --highest {highest}")
    if pdk and liberty:
        raise click.UsageError("--pdk and --liberty exclude each other; give one of them")
    library = pdk_from_liberty(liberty) if liberty else find_pdk(pdk or DEFAULT_PDK)
    bits = list(range(lowest, highest + 1))
    samples = tqdm(_samples(groups).items(), desc="search", unit="tensor")
    excesses = {name: excess(x, bits) for name, x in samples}
    unit = _unit(bits)
    chosen = [(unit, config) for config in unit.configs]
    rows = measure_all(chosen, library, FlowOptions(), power=power)
    text = _text(bits, rows, excesses, _searches(library, BUILD), library)
    _plot(output / f"{STEM}.svg", bits, rows, excesses)
    write_atomic(output / f"{STEM}.md", text)
    click.echo(text, nl=False)
