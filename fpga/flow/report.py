"""The table of figures: what each board holds, how fast, and what that means in groups and MACs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from m2xfp.files import write_atomic
from m2xfp.fpga.flow.bitstream import BuildReport, build
from m2xfp.fpga.flow.boards import BOARDS
from m2xfp.fpga.gateware.design import UNITS
from m2xfp.fpga.gateware.gateway import sinks
from m2xfp.rtl.verilog.component import Component

__all__ = ["markdown_table", "proof_table", "unit_rates", "write_results"]

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


def proof_table(proofs: Sequence[Mapping[str, Any]]) -> str:
    """Return what simulations of these builds have shown (`m2xfp.fpga.check.check.Proof`)."""
    lines = [
        "What `m2xfp fpga simulate` has shown of these builds; every answer is the golden model's.",
        "",
        "| board | units | read back from | LUTs | flip-flops | memories | requests | "
        "bytes both ways | groups | faults | detected |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    survivors = []
    for proof in proofs:
        board, faults = proof["build"]["board"], proof["faults"]
        units = ", ".join(proof["build"]["units"])
        groups = ", ".join(f"{unit} {count}" for unit, count in proof["groups"].items())
        found = "| |"
        if faults:
            kind = "LUTs inverted" if faults["kind"] == "lut" else "LUT bits inverted"
            found = f"| {faults['faults']} {kind} | {faults['detected'] / faults['faults']:.1%} |"
            survivors += [f"| {board} | {s['cell']} | {s['reason']} |" for s in faults["survivors"]]
        lines.append(
            f"| {board} | {units} | {proof['source']} | {proof['luts']} | "
            f"{proof['flip_flops']} | {proof['memories']} | {proof['requests']} | "
            f"{proof['bytes_sent'] + proof['bytes_received']} | {groups} {found}"
        )
    if survivors:
        lines += ["", "Faults that changed no byte:", "", "| board | LUT | why |", "|---|---|---|"]
    return "\n".join([*lines, *survivors, ""])


def write_results(folder: Path, boards: Sequence[str] = tuple(BOARDS)) -> tuple[Path, Path]:
    """Build boards with default units and ``OTHERS``; write ``fpga.md`` and ``fpga.json``.

    Returns the paths. Proofs that lie beside the builds are tabulated too, if they are of these
    very builds. Raises what `m2xfp.fpga.flow.bitstream.build` does.
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
    text = markdown_table(reports)
    if proofs:
        text += f"\n{proof_table(proofs)}"
    facts = {"builds": [asdict(report) for report in reports], "proofs": proofs}
    return (
        write_atomic(folder / "fpga.md", text),
        write_atomic(folder / "fpga.json", json.dumps(facts, indent=1) + "\n"),
    )
