"""The figures of boards: what each holds, how fast, and what that means in groups and MACs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from m2xfp.fpga.flow.bitstream import BuildReport, build
from m2xfp.fpga.flow.boards import BOARDS
from m2xfp.fpga.flow.tables import FILE
from m2xfp.fpga.gateware.design import UNITS
from m2xfp.fpga.gateware.gateway import sinks
from m2xfp.results import write_figures
from m2xfp.rtl.verilog.component import Component

__all__ = ["rate_figures", "unit_rates", "write_results"]

OTHERS: Mapping[str, tuple[tuple[str, ...], ...]] = {"ulx3s-85f": (("gemm",),)}
"""Units that a board is tabulated with beside its default ones."""

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


def rate_figures(reports: Sequence[BuildReport]) -> list[dict[str, Any]]:
    """Return the rates of every unit of every build, as the accepted figures hold them."""
    return [
        {
            "board": report.board,
            "unit": unit,
            "groups_per_s_at_fmax": fastest,
            "groups_per_s_at_clock": clocked,
            "groups_per_s_over_link": line,
            "macs_per_s_at_fmax": fastest * GROUP if _multiplies(unit) else None,
        }
        for report in reports
        for unit, fastest, clocked, line in unit_rates(report)
    ]


def write_results(folder: Path, boards: Sequence[str] = tuple(BOARDS)) -> Path:
    """Build boards with default units and ``OTHERS``; write ``fpga.json`` and return its path.

    Proofs that lie beside the builds are kept too, if they are of these very builds. Raises what
    `m2xfp.fpga.flow.bitstream.build` does.
    """
    reports, proofs = [], []
    chosen = [(name, units) for name in boards for units in (None, *OTHERS.get(name, ()))]
    for name, units in chosen:
        report, built = build(name, units)
        reports.append(report)
        proof_file = built / "proof.json"
        if proof_file.exists():
            proof = json.loads(proof_file.read_text())
            if proof["build"]["key"] == report.key:
                proofs.append(proof)
    return write_figures(
        folder / FILE,
        {
            "builds": [asdict(report) for report in reports],
            "rates": rate_figures(reports),
            "proofs": proofs,
        },
    )
