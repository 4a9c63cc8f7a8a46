"""What the MAC path costs: area of the dot product by module, and energy beside a bare product."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from m2xfp.synth.report.accepted import accepted_files
from m2xfp.synth.report.figures import Row
from m2xfp.tables import aligned_table

__all__ = ["area_table", "energy_table", "mac_report", "tables"]

# Energy a MAC in one Nangate45 flow with zero-delay activity, not this project's: a bare
# combinational E2M1 dot product of 32, and the dot engine of the open RISC-V M2XFP processor.
BARE_PJ, ENGINE_PJ = 0.21, 1.59
AIM = 0.4  # of that engine's energy

FORMATS = ("mxfp4", "m2xfp")
ENERGY_ROWS = (
    ("group_dot", "mxfp4"),
    ("group_dot", "m2xfp"),
    ("dot_product", "mxfp4-fp32"),
    ("dot_product", "m2xfp-fp32"),
    ("dot_product", "m2xfp-exact"),
    ("pe_tile", "mxfp4"),
    ("pe_tile", "m2xfp"),
)


def area_table(areas: Mapping[str, Mapping[str, float]]) -> str:
    """Return a table of the area of each module in both formats, and the difference.

    Parameters
    ----------
    areas
        For ``mxfp4`` and ``m2xfp``: area in um2 by module, all instances of one together.
    """
    base, other = (areas[name] for name in FORMATS)
    total = sum(base.values())
    rows = [("module", "mxfp4 um2", "m2xfp um2", "difference", "of mxfp4's total")]
    more = {name: other.get(name, 0.0) - base.get(name, 0.0) for name in base.keys() | other.keys()}
    for name in sorted(more, key=lambda name: (-round(more[name], 6), name)):
        rows.append(
            (
                name,
                f"{base.get(name, 0.0):.1f}",
                f"{other.get(name, 0.0):.1f}",
                f"{more[name]:+.1f}",
                f"{more[name] / total:+.1%}",
            )
        )
    grown = sum(other.values()) - total
    rows.append(
        ("all", f"{total:.1f}", f"{total + grown:.1f}", f"{grown:+.1f}", f"{grown / total:+.1%}")
    )
    return aligned_table(rows)


def energy_table(rows: Mapping[tuple[str, str], Row]) -> str:
    """Return a table of energy a MAC, and what it would be of the RISC-V engine's, estimated.

    The estimate takes ``group_dot mxfp4`` without its clock for the bare product, which is known in
    the engine's flow: energy / bare energy here * BARE_PJ / ENGINE_PJ.
    """
    bare = rows["group_dot", "mxfp4"]
    assert bare.energy_pj_per_group is not None
    assert bare.energy_pj_per_mac is not None
    assert bare.clock_energy_pj is not None
    share = 1 - bare.clock_energy_pj / bare.energy_pj_per_group
    unit_energy = bare.energy_pj_per_mac * share
    table = [("unit", "config", "area um2", "path ns", "pJ/MAC", "of bare product", "of engine")]
    for (unit, config), row in rows.items():
        assert row.energy_pj_per_mac is not None
        ratio = row.energy_pj_per_mac / unit_energy
        table.append(
            (
                unit,
                config,
                f"{row.area_um2:.0f}",
                f"{row.critical_path_ns:.3f}",
                f"{row.energy_pj_per_mac:.3g}",
                f"{ratio:.2f}",
                f"{ratio * BARE_PJ / ENGINE_PJ:.2f}",
            )
        )
    return aligned_table(table)


def mac_report(rows: Sequence[Row], title: str) -> str:
    """Return both tables for a library, as markdown; empty where a row that they need is missing.

    Parameters
    ----------
    rows
        Its accepted rows.
    title
        The library in words.
    """
    known = {(row.unit, row.config): row for row in rows}
    chosen = {key: known[key] for key in ENERGY_ROWS if key in known}
    splits = {name: known.get(("dot_product", f"{name}-fp32")) for name in FORMATS}
    areas = {
        name: _own_modules(row.module_area_um2)
        for name, row in splits.items()
        if row is not None and row.module_area_um2 is not None
    }
    energies = [row.energy_pj_per_mac for row in chosen.values()]
    if len(areas) < len(FORMATS) or len(chosen) < len(ENERGY_ROWS) or None in energies:
        return ""
    base, other = (known["dot_product", f"{name}-fp32"].area_um2 for name in FORMATS)
    return (
        f"{title}. Dot product with FP32 accumulation, by module, hierarchy kept; flat, as in "
        f"all other tables, M2XFP takes {other:.0f} um2 and MXFP4 {base:.0f}, "
        f"{other / base - 1:+.1%}.\n\n{area_table(areas)}\n"
        "Energy a MAC on tensors of the bundled model, from the mapped netlists. Last columns: "
        "over that of a bare E2M1 dot product (`group_dot mxfp4` without its clock), and, as an "
        "**estimate**, over that of the open RISC-V M2XFP engine, which is known beside a bare "
        f"product in another flow ({BARE_PJ} and {ENGINE_PJ} pJ/MAC in Nangate45); the aim there "
        f"is {AIM}.\n\n{energy_table(chosen)}"
    )


def _own_modules(areas: Mapping[str, float]) -> dict[str, float]:
    """Return the modules that have an area: the shell of AXI names, for one, has none."""
    return {module: area for module, area in areas.items() if area}


def tables(results: Path) -> dict[str, str]:
    """Return what the MAC path costs on each accepted library, ``mac-LIBRARY``."""
    found = {
        f"mac-{name}": mac_report(rows, flow["pdk_title"])
        for name, (flow, rows) in accepted_files(results).items()
    }
    return {name: table for name, table in found.items() if table}
