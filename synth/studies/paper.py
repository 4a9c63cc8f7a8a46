"""The areas that the M2XFP paper publishes, with ours from one flow beside them.

Source: M2XFP, ASPLOS 2026, arXiv 2601.19213, Table 5 and its comparison of PE tiles; 28 nm,
500 MHz.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m2xfp.rtl.catalog import find_unit
from m2xfp.synth.report.accepted import accepted_files
from m2xfp.synth.report.figures import Row
from m2xfp.synth.studies.sram import Buffer
from m2xfp.tables import aligned_table

__all__ = ["BUFFERS", "PUBLISHED", "Published", "paper_table", "tables"]


@dataclass(frozen=True)
class Published:
    """A published area.

    Members
    -------
    name
        As the paper calls it.
    area_um2
        28 nm.
    macs
        Multiply-accumulates a clock, 0 for what multiplies nothing.
    unit, config
        What of ours does the same work.
    """

    name: str
    area_um2: float
    macs: int
    unit: str
    config: str


PUBLISHED = (
    Published("top-1 decode unit", 82.91, 0, "activation_decoder", "m2xfp"),
    Published("quantization engine", 2451.47, 0, "activation_quantizer", "bf16x32"),
    Published("PE tile, MXFP4", 2057.6, 8, "pe_tile", "mxfp4"),
    Published("PE tile, NVFP4", 2104.7, 8, "pe_tile", "nvfp4"),
    Published("PE tile, M2XFP", 2140.12, 8, "pe_tile", "m2xfp"),
)
# What the paper's accelerator has.
BUFFERS = tuple(
    Buffer(f"the paper's {what} buffer", kilobytes * 1024)
    for what, kilobytes in (("activation", 144), ("weight", 144), ("result", 36))
)
_REFERENCE = "PE tile, MXFP4"  # what the paper gives the cost of metadata against


def paper_table(rows: Sequence[Row], pdk: str, macs: Mapping[tuple[str, str], int]) -> str:
    """Return the comparison for what has been measured, as markdown; empty if nothing has.

    Parameters
    ----------
    rows, pdk
        What was measured, and the name of the library.
    macs
        Multiply-accumulates a clock by unit and configuration, where there are any.
    """
    measured = {(row.unit, row.config): row for row in rows}

    def density(entry: Published) -> float | None:
        """Our area, over the multiply-accumulates where there are any."""
        row = measured.get((entry.unit, entry.config))
        return row.area_um2 / (macs[entry.unit, entry.config] if entry.macs else 1) if row else None

    (reference,) = (entry for entry in PUBLISHED if entry.name == _REFERENCE)
    ours = density(reference)
    ratio = ("um2/MAC", "over MXFP4")
    table = [["paper", "28 nm um2", *ratio, "ours", f"{pdk} um2", *ratio]]
    for entry in PUBLISHED:
        row, own = measured.get((entry.unit, entry.config)), density(entry)
        if row is None or own is None:
            continue
        tile = bool(entry.macs)
        over = (entry.area_um2 / entry.macs) / (reference.area_um2 / reference.macs) if tile else 0
        table.append(
            [
                entry.name,
                f"{entry.area_um2:g}",
                f"{entry.area_um2 / entry.macs:.1f}" if tile else "",
                f"{over - 1:+.1%}" if tile else "",
                f"{entry.unit} {entry.config}",
                f"{row.area_um2:.0f}",
                f"{own:.1f}" if tile else "",
                f"{own / ours - 1:+.1%}" if tile and ours else "",
            ]
        )
    return aligned_table(table) if len(table) > 1 else ""


def tables(results: Path) -> dict[str, str]:
    """Return the comparison with each accepted library, ``paper-LIBRARY``, where it has any."""
    macs = {}
    for entry in PUBLISHED:
        facts = find_unit(entry.unit).instance(entry.config).facts
        if facts.macs_per_clock:
            macs[entry.unit, entry.config] = facts.macs_per_clock
    found = {
        f"paper-{name}": paper_table(rows, flow["pdk"], macs)
        for name, (flow, rows) in accepted_files(results).items()
    }
    return {name: table for name, table in found.items() if table}
