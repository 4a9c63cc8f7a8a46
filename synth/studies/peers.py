"""Area a MAC beside open designs of others, one library and one flow.

Source of the peers: their open RTL through yosys 0.70 (flattened, abc's default script with a
buffer as driver and a load of four gates) and OpenSTA on ASAP7, in runs of November 2026 outside of
this repository, which has none of their sources. Those runs left compressor trees to abc, so ours
beside them are the rows that were measured with ``--no-full-adders``; with the library's full
adders, the flow's default, ours are smaller, and theirs would be too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m2xfp.rtl.catalog import find_unit
from m2xfp.synth.report.accepted import accepted_files
from m2xfp.synth.report.figures import Row
from m2xfp.tables import aligned_table

__all__ = ["PEERS", "Peer", "peers_table", "tables"]

LIBRARY = "asap7-no-adders"


@dataclass(frozen=True)
class Peer:
    """A complete multiply-accumulate unit of others.

    Members
    -------
    name
        Where it is from.
    area_um2, path_ns
        As measured.
    macs
        Multiply-accumulates a clock.
    """

    name: str
    area_um2: float
    path_ns: float
    macs: int


# What is done, ours (unit, configuration, MACs a clock), and theirs.
PEERS: tuple[tuple[str, tuple[str, str, int], tuple[Peer, ...]], ...] = (
    (
        "M2XFP, FP32 sums",
        ("dot_product", "m2xfp-fp32", 32),
        (
            Peer("RISC-V M2XFP4 fused dot engine", 1195, 2.02, 16),
            Peer("M2XFP's authors, PE tile completed", 636, 3.02, 8),
        ),
    ),
    (
        "MXFP4, FP32 sums",
        ("dot_product", "mxfp4-fp32", 32),
        (Peer("RISC-V MXFP4 fused dot engine", 972, 1.90, 16),),
    ),
    (
        "NVFP4, FP32 sums",
        ("dot_product", "nvfp4-fp32", 16),
        (Peer("M2XFP's authors, NVFP4 PE tile", 591, 2.69, 8),),
    ),
    (
        "MXFP8, and MXFP4 at twice the rate",
        ("switching_dot_product", "micromix-16", 16),
        (Peer("KU Leuven, precision-scalable", 484, 4.46, 4),),
    ),
)


def peers_table(rows: Sequence[Row]) -> str:
    """Return the comparison for what has been measured, as markdown; empty if nothing has."""
    known: Mapping[tuple[str, str], Row] = {(row.unit, row.config): row for row in rows}
    lines: list[tuple[str, ...]] = [
        ("what", "um2 a MAC", "path, ns", "beside", "um2 a MAC", "path, ns", "share of its area")
    ]
    for what, (unit, config, macs), peers in PEERS:
        row = known.get((find_unit(unit).name, config))
        if row is None:
            continue
        own = row.area_um2 / macs
        for peer in peers:
            theirs = peer.area_um2 / peer.macs
            lines.append(
                (
                    f"{what} (`{unit} {config}`)",
                    f"{own:.1f}",
                    f"{row.critical_path_ns:.2f}",
                    peer.name,
                    f"{theirs:.1f}",
                    f"{peer.path_ns:.2f}",
                    f"{own / theirs:.2f}",
                )
            )
    return aligned_table(lines) if len(lines) > 1 else ""


def tables(results: Path) -> dict[str, str]:
    """Return the table ``peers`` if rows in ASAP7 are accepted."""
    found = accepted_files(results).get(LIBRARY)
    text = peers_table(found[1]) if found else ""
    return {"peers": text} if text else {}
