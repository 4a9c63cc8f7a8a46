"""What the MAC path costs: area of the dot product by module, and energy beside a bare product."""

from collections.abc import Mapping
from pathlib import Path

from m2xfp.synth.flow.pdk import Pdk, find_pdk
from m2xfp.synth.flow.yosys import BUILD, FlowOptions
from m2xfp.synth.report.figures import Row, aligned_table, measure

__all__ = ["area_table", "energy_table", "mac_report"]

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
    modules = sorted(base.keys() | other.keys(), key=lambda name: base.get(name, 0) - other[name])
    for name in modules:
        more = other[name] - base.get(name, 0.0)
        rows.append(
            (
                name,
                f"{base.get(name, 0.0):.1f}",
                f"{other[name]:.1f}",
                f"{more:+.1f}",
                f"{more / total:+.1%}",
            )
        )
    more = sum(other.values()) - total
    rows.append(
        ("all", f"{total:.1f}", f"{total + more:.1f}", f"{more:+.1f}", f"{more / total:+.1%}")
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


def mac_report(pdk_name: str, build: Path = BUILD) -> str:
    """Return both tables for a library, as markdown."""
    from tqdm import tqdm

    from m2xfp.rtl.catalog import find_unit

    pdk: Pdk = find_pdk(pdk_name)
    options = FlowOptions()
    areas, rows = {}, {}
    flat: dict[str, float] = {}
    with tqdm(total=len(ENERGY_ROWS), desc="synthesis and power", unit="unit") as bar:
        for name, config in ENERGY_ROWS:
            split = name == "dot_product" and config.endswith("-fp32")
            instance = find_unit(name).instance(config)
            row = measure(instance, pdk, options, power=True, breakdown=split, build=build)
            rows[name, config] = row
            if split:
                assert row.module_area_um2 is not None
                top = instance.top  # the shell of AXI names: no area
                areas[config.removesuffix("-fp32")] = {
                    part: area for part, area in row.module_area_um2.items() if part != top
                }
                flat[config.removesuffix("-fp32")] = row.area_um2
            bar.update()
    more = flat["m2xfp"] / flat["mxfp4"] - 1
    return (
        f"{pdk.title}. Dot product with FP32 accumulation, by module, hierarchy kept; flat, as in "
        f"all other tables, M2XFP takes {flat['m2xfp']:.0f} um2 and MXFP4 {flat['mxfp4']:.0f}, "
        f"{more:+.1%}.\n\n{area_table(areas)}\n"
        "Energy a MAC on tensors of the bundled model, from the mapped netlists. Last columns: "
        "over that of a bare E2M1 dot product (`group_dot mxfp4` without its clock), and, as an "
        "**estimate**, over that of the open RISC-V M2XFP engine, which is known beside a bare "
        f"product in another flow ({BARE_PJ} and {ENGINE_PJ} pJ/MAC in Nangate45); the aim there "
        f"is {AIM}.\n\n{energy_table(rows)}"
    )
