"""The table of figures: what each board holds, how fast, and what that means in groups and MACs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from m2xfp.files import write_atomic
from m2xfp.fpga.boards import BOARDS
from m2xfp.fpga.build import BuildReport, build
from m2xfp.fpga.design import UNITS
from m2xfp.fpga.gateway import sinks
from m2xfp.rtl.component import Component

__all__ = ["markdown_table", "unit_rates", "write_results"]

GROUP = 32
"""Values in a group: multiplications that a pair of groups takes."""

BITS_PER_BYTE = 10
"""On the line: start bit, 8 data bits, stop bit."""


def _clocks_per_group(unit: Component) -> float:
    """Return the clocks that a unit takes for a group, or for a pair of groups."""
    if hasattr(unit, "rows"):
        return 1 / (unit.rows * unit.columns)
    clocks: float = getattr(unit, "clocks_per_group", None) or unit.beats_per_group
    return clocks


def _line_bytes(name: str, unit: Component) -> int | None:
    """Return the bytes that a group takes on the line; None where operands are used again."""
    if name == "gemm":
        return None
    (sink,) = sinks(unit)
    return unit.beats_per_group * (1 + -(-sink.data_width // 8))


def unit_rates(report: BuildReport) -> Iterator[tuple[str, float, float, float | None]]:
    """Yield (unit, groups/s at fmax, at the board's clock, over the line) for a build.

    A pair of groups counts as one where the unit multiplies. Over the line, what is sent bounds the
    rate: each beat goes with a tag, and frames add 1 %, which is left out.
    """
    for name in report.units:
        unit = UNITS[name].build()
        clocks, size = _clocks_per_group(unit), _line_bytes(name, unit)
        yield (
            name,
            report.fmax_mhz * 1e6 / clocks,
            report.clock_hz / clocks,
            report.baud / BITS_PER_BYTE / size if size else None,
        )


def _multiplies(unit: str) -> bool:
    return unit in ("dot", "gemm")


def markdown_table(reports: Sequence[BuildReport]) -> str:
    """Return the two tables: builds, and rates of their units."""
    lines = [
        "Written by `m2xfp fpga table`: nextpnr's figures for routed designs, link included.",
        "",
        "| board | units | LUTs | flip-flops | block RAM | fmax MHz | clock MHz | seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        cells = [
            f"{report.cells[kind].used} of {report.cells[kind].available}"
            for kind in ("luts", "flip_flops", "block_ram")
        ]
        lines.append(
            f"| {report.board} | {', '.join(report.units)} | {' | '.join(cells)} | "
            f"{report.fmax_mhz:.1f} | {report.constraint_mhz:.0f} | {report.seed} |"
        )
    lines += [
        "",
        "Rates of the units alone; dot and gemm count pairs of groups.",
        "",
        "| board | unit | Mgroups/s at fmax | at the clock | over the link | GMAC/s at fmax |",
        "|---|---|---|---|---|---|",
    ]
    for report in reports:
        for unit, fastest, clocked, line in unit_rates(report):
            over = f"{line:,.0f} groups/s" if line else "reuses operands"
            macs = f"{fastest * GROUP / 1e9:.2f}" if _multiplies(unit) else ""
            lines.append(
                f"| {report.board} | {unit} | {fastest / 1e6:.2f} | {clocked / 1e6:.2f} | {over} | "
                f"{macs} |"
            )
    tools = sorted({f"{tool} {version}" for r in reports for tool, version in r.tools.items()})
    return "\n".join([*lines, "", f"Tools: {', '.join(tools)}.", ""])


def write_results(folder: Path) -> tuple[Path, Path]:
    """Build each board's default units and write ``fpga.md`` and ``fpga.json``; return their paths.

    Raises what `m2xfp.fpga.build.build` does.
    """
    reports = [build(name)[0] for name in BOARDS]
    facts = [{k: v for k, v in asdict(report).items() if k != "key"} for report in reports]
    return (
        write_atomic(folder / "fpga.md", markdown_table(reports)),
        write_atomic(folder / "fpga.json", json.dumps(facts, indent=1) + "\n"),
    )
