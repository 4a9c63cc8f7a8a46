"""Reports: one row for each unit, configuration and library, as JSON and as a markdown table."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from m2xfp.facts import Facts
from m2xfp.rtl.catalog import Instance
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.flow.pdk import Pdk
from m2xfp.synth.flow.timing import time_netlist
from m2xfp.synth.flow.yosys import (
    ABC_SCRIPTS,
    BUILD,
    FlowOptions,
    Netlist,
    adder_of,
    synthesize,
    yosys_command,
)
from m2xfp.tables import aligned_table

__all__ = [
    "Row",
    "flow_facts",
    "markdown_table",
    "measure",
    "measure_all",
    "report",
]

WORKERS = 2  # syntheses at a time: each takes one core and up to 1 GB


@dataclass(frozen=True)
class Row:
    """The figures of one configuration on one library; the names are those of the JSON report.

    Members
    -------
    unit, config, pdk
        What was measured.
    area_um2, gate_equivalents
        All cells, and over the area of the smallest two-input NAND.
    logic_area_um2, logic_gate_equivalents
        The same less one plain flip-flop for every flip-flop.
    cells, flops
        Counts.
    critical_path_ns, fmax_mhz, slack_ns
        From static timing; slack against the clock target.
    path_start, path_end
        Ends of the critical path in names of the RTL.
    groups_per_clock
        Throughput when nothing stalls; of units that multiply, pairs of groups.
    power_mw
        At ``fmax_mhz`` and full rate on tensors of the bundled model, leakage included. This and
        the figures below are None where power was not asked for or the unit has no stimulus.
    energy_pj_per_group, energy_pj_per_mac
        The same over groups, and over multiply-accumulates where the unit has any.
    energy_pj_per_group_random
        On standard normal values instead.
    clock_energy_pj
        What clock net and clock pins take in a clock, part of the above.
    leakage_uw
        Leakage.
    gate_level_groups
        Groups that the mapped netlist was given for it, each compared with the golden model; of
        the GEMM core, sets of four products.
    module_area_um2
        From a run that keeps the hierarchy, beside the flat one of all other figures: area by
        module of what stands directly in it, all its instances together.
    """

    unit: str
    config: str
    pdk: str
    area_um2: float
    gate_equivalents: float
    logic_area_um2: float
    logic_gate_equivalents: float
    cells: int
    flops: int
    critical_path_ns: float
    fmax_mhz: float
    slack_ns: float
    path_start: str
    path_end: str
    groups_per_clock: float
    power_mw: float | None = None
    energy_pj_per_group: float | None = None
    energy_pj_per_mac: float | None = None
    energy_pj_per_group_random: float | None = None
    clock_energy_pj: float | None = None
    leakage_uw: float | None = None
    gate_level_groups: int | None = None
    module_area_um2: dict[str, float] | None = None


def measure(
    instance: Instance,
    pdk: Pdk,
    options: FlowOptions,
    *,
    power: bool = False,
    breakdown: bool = False,
    build: Path = BUILD,
) -> Row:
    """Emit, map and time one configuration; its power and its area by module if asked."""
    facts = instance.facts
    emitted = emit(instance, build / "verilog")
    netlist = synthesize(emitted.verilog, emitted.top, pdk, options, build)
    timing = time_netlist(netlist, pdk, build)
    row = Row(
        unit=facts.unit,
        config=facts.config,
        pdk=pdk.name,
        area_um2=netlist.area_um2,
        gate_equivalents=netlist.gate_equivalents,
        logic_area_um2=netlist.logic_area_um2,
        logic_gate_equivalents=netlist.logic_gate_equivalents,
        cells=netlist.cells,
        flops=netlist.flops,
        critical_path_ns=timing.critical_path_ns,
        fmax_mhz=timing.fmax_mhz,
        slack_ns=timing.slack_ns,
        path_start=timing.start,
        path_end=timing.end,
        groups_per_clock=facts.groups_per_clock,
    )
    if breakdown:
        whole = replace(options, flatten=False)
        parts = synthesize(emitted.verilog, emitted.top, pdk, whole, build)
        row = replace(
            row,
            module_area_um2={
                name.removeprefix(f"{emitted.top}_"): area
                for name, area in parts.module_area_um2.items()
            },
        )
    return _with_power(row, netlist, pdk, facts) if power else row


def _with_power(row: Row, netlist: Netlist, pdk: Pdk, facts: Facts) -> Row:
    from m2xfp.synth.gate_sim.power import depth_for, lanes_for, unit_power
    from m2xfp.synth.gate_sim.stimulus import vectors_for

    found = {}
    for source in ("model", "random"):
        vectors = vectors_for(facts, source, lanes_for(netlist), depth_for(facts))
        found[source] = unit_power(netlist, pdk, facts, vectors)

    def energy(source: str) -> float:
        """Energy of a clock, with what leaks in it (uW times ns is fJ)."""
        power = found[source].power
        return power.energy_pj + power.leakage_uw * row.critical_path_ns * 1e-3

    model = found["model"]
    macs = facts.macs_per_clock

    def rate(source: str) -> float:
        """Share of the unit's full rate at which it worked."""
        return found[source].groups_per_clock * facts.clocks_per_group

    return replace(
        row,
        power_mw=_figures(energy("model") * row.fmax_mhz * 1e-3),
        energy_pj_per_group=_figures(energy("model") / (row.groups_per_clock * rate("model"))),
        energy_pj_per_mac=_figures(energy("model") / (macs * rate("model"))) if macs else None,
        energy_pj_per_group_random=_figures(
            energy("random") / (row.groups_per_clock * rate("random"))
        ),
        clock_energy_pj=_figures(model.power.clock_pj),
        leakage_uw=_figures(model.power.leakage_uw),
        gate_level_groups=sum(part.groups for part in found.values()),
    )


def _figures(value: float) -> float:
    """Round to six significant figures, for files that are compared."""
    return float(f"{value:.6g}")


def measure_all(
    chosen: Sequence[Instance],
    pdk: Pdk,
    options: FlowOptions,
    *,
    power: bool = False,
    breakdown: bool = False,
    build: Path = BUILD,
) -> list[Row]:
    """Measure several configurations, two at a time, with a progress bar; order is kept."""
    from m2xfp.progress import track

    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [
            pool.submit(
                measure, instance, pdk, options, power=power, breakdown=breakdown, build=build
            )
            for instance in chosen
        ]
        try:
            return [future.result() for future in track(futures, desc=f"Synthesis, {pdk.name}")]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def flow_facts(pdk: Pdk, options: FlowOptions) -> dict[str, Any]:
    """Return how figures were measured: only those of equal facts compare."""
    return {
        "yosys": yosys_command()[1],
        "pdk": pdk.name,
        "pdk_title": pdk.title,
        "liberty": pdk.library.name,
        "nand2": pdk.nand2_cell.name,
        "nand2_area_um2": pdk.nand2_cell.area,
        "flop_area_um2": pdk.flop_area_um2,
        "clock_gate": pdk.clock_gate_cell.name if options.clock_gating else None,
        "full_adder": adder.name if (adder := adder_of(pdk, options)) else None,
        "driver": pdk.driver_cell.name,
        "load_ff": round(pdk.load_ff, 6),
        "dont_use": list(pdk.dont_use),
        "wire_load": "off",
        # A seed of 0 is none.
        **{name: value for name, value in asdict(options).items() if name != "seed" or value},
        "abc_script": ABC_SCRIPTS[options.abc] or "yosys default with driver and load",
    }


def report(rows: Iterable[Row], pdk: Pdk, options: FlowOptions) -> dict[str, Any]:
    """Return the figures of a report: how it was measured, and the rows."""
    return {"flow": flow_facts(pdk, options), "rows": [asdict(row) for row in rows]}


_COLUMNS = (
    ("unit", "unit", "{}"),
    ("config", "config", "{}"),
    ("area um2", "area_um2", "{:.0f}"),
    ("GE", "gate_equivalents", "{:.0f}"),
    ("logic um2", "logic_area_um2", "{:.0f}"),
    ("logic GE", "logic_gate_equivalents", "{:.0f}"),
    ("cells", "cells", "{}"),
    ("flops", "flops", "{}"),
    ("path ns", "critical_path_ns", "{:.3f}"),
    ("fmax MHz", "fmax_mhz", "{:.0f}"),
    ("groups/clock", "groups_per_clock", "{:g}"),
    ("pJ/group", "energy_pj_per_group", "{:.4g}"),
    ("pJ/MAC", "energy_pj_per_mac", "{:.3g}"),
    ("mW", "power_mw", "{:.3g}"),
)


def markdown_table(rows: Sequence[Row], flow: Mapping[str, Any]) -> str:
    """Return the rows as a markdown table, under a line that says how they were measured.

    Columns without a figure in any row are left out.

    Parameters
    ----------
    rows
        The figures.
    flow
        How they were measured, see ``flow_facts``.
    """
    columns = [
        column for column in _COLUMNS if any(getattr(row, column[1]) is not None for row in rows)
    ]
    table = [[title for title, _, _ in columns]]
    for row in rows:
        values = [getattr(row, name) for _, name, _ in columns]
        table.append(
            [
                "" if value is None else form.format(value)
                for value, (_, _, form) in zip(values, columns, strict=True)
            ]
        )
    how = (
        f"{flow['pdk_title']}; {flow['yosys']}, abc script {flow['abc']!r}, "
        f"{'flat' if flow['flatten'] else 'hierarchical'}"
        f"{', clock gates' * bool(flow['clock_gating'])}"
        f"{', full adders' * bool(flow.get('full_adder'))}; no wires, no clock tree; "
        f"GE = {flow['nand2_area_um2']:g} um2 ({flow['nand2']})."
    )
    return f"{how}\n\n{aligned_table(table)}"
