"""Reports: one row for each unit, configuration and library, as JSON and as a markdown table."""

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2xfp.rtl.catalog import Unit
from m2xfp.rtl.emit import describe, emit
from m2xfp.synth.flow import ABC_SCRIPTS, BUILD, FlowOptions, synthesize, yosys_command
from m2xfp.synth.pdk import Pdk
from m2xfp.synth.timing import time_netlist

__all__ = ["Row", "markdown_table", "measure", "measure_all", "to_json"]

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
        Throughput when nothing stalls.
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
    groups_per_clock: float | None


def measure(unit: Unit, config: str, pdk: Pdk, options: FlowOptions, build: Path = BUILD) -> Row:
    """Emit, map and time one configuration."""
    facts = describe(unit, config)
    emitted = emit(unit, config, build / "verilog")
    netlist = synthesize(emitted.verilog, emitted.top, pdk, options, build)
    timing = time_netlist(netlist, pdk, build)
    beats = facts.get("beats_per_group")
    return Row(
        unit=unit.name,
        config=config,
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
        groups_per_clock=None if beats is None else 1 / beats,
    )


def measure_all(
    chosen: Sequence[tuple[Unit, str]], pdk: Pdk, options: FlowOptions, build: Path = BUILD
) -> list[Row]:
    """Measure several configurations, two at a time, with a progress bar; order is kept."""
    from tqdm import tqdm

    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [
            pool.submit(measure, unit, config, pdk, options, build) for unit, config in chosen
        ]
        try:
            return [
                future.result()
                for future in tqdm(futures, desc=f"Synthesis, {pdk.name}", disable=None)
            ]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def to_json(rows: Iterable[Row], pdk: Pdk, options: FlowOptions) -> str:
    """Return the report as JSON: how it was measured, and the rows."""
    flow: dict[str, Any] = {
        "yosys": yosys_command()[1],
        "pdk": pdk.name,
        "pdk_title": pdk.title,
        "liberty": pdk.library.name,
        "nand2": pdk.nand2_cell.name,
        "nand2_area_um2": pdk.nand2_cell.area,
        "flop_area_um2": pdk.flop_area_um2,
        "driver": pdk.driver_cell.name,
        "load_ff": round(pdk.load_ff, 6),
        "dont_use": list(pdk.dont_use),
        "wire_load": "off",
        **asdict(options),
        "abc_script": ABC_SCRIPTS[options.abc] or "yosys default with driver and load",
    }
    return json.dumps({"flow": flow, "rows": [asdict(row) for row in rows]}, indent=2) + "\n"


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
)


def markdown_table(rows: Sequence[Row], pdk: Pdk, options: FlowOptions) -> str:
    """Return the rows as a markdown table, under a line that says how they were measured."""
    table = [[title for title, _, _ in _COLUMNS]]
    for row in rows:
        values = [getattr(row, name) for _, name, _ in _COLUMNS]
        table.append(
            [
                "" if value is None else form.format(value)
                for value, (_, _, form) in zip(values, _COLUMNS, strict=True)
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "| "
        + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        + " |"
        for line in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    how = (
        f"{pdk.title}; {yosys_command()[1]}, abc script {options.abc!r}, "
        f"{'flat' if options.flatten else 'hierarchical'}; no wires, no clock tree; "
        f"GE = {pdk.nand2_cell.area:g} um2 ({pdk.nand2_cell.name})."
    )
    return f"{how}\n\n" + "\n".join(lines) + "\n"
