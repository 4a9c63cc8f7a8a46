"""The page of a unit, from its facts and from what commands have measured."""

import re
from collections.abc import Iterator
from pathlib import Path

from m2xfp.facts import Facts, Field
from m2xfp.manual.drawings import block, counted, packet
from m2xfp.manual.waves import timing_diagram
from m2xfp.results import read_figures
from m2xfp.rtl.catalog import Unit
from m2xfp.rtl.parameters import parameters_of
from m2xfp.synth.checks.status import own_rows
from m2xfp.tables import aligned_table

__all__ = ["unit_page"]


def unit_page(unit: Unit, results: Path) -> str:
    """Return the page as markdown.

    Parameters
    ----------
    unit
        The unit; its default configuration is drawn.
    results
        Folder of the accepted figures.
    """
    instance = unit.instance()
    facts = instance.facts
    name = unit.name
    parts = [
        f"# {name}",
        f"{unit.purpose[0].upper()}{unit.purpose[1:]}. With this page you can connect it: what "
        "goes in, what comes out, when, and what it costs. All of it is drawn from the unit "
        f"itself, in its default configuration, `{facts.config}`.",
        _raw(block(facts)),
        f"```sh\nm2xfp verilog {name} --config {facts.config} -o rtl/\n"
        f"m2xfp check {name} --config {facts.config}\n```",
        "## Ports",
        _ports(facts),
        "## Fields",
        *_words(facts),
        "## Timing",
        *_timing(facts, timing_diagram(instance) if facts.clock else ""),
        "## Parameters",
        f"Any of them can be set: `m2xfp verilog {name} --set PARAMETER=VALUE`.",
        _parameters(unit),
        "## Configurations",
        _configurations(unit),
        "## Area, timing, energy",
        _figures(unit, results),
        "## Status",
        _own_rows(unit, results),
    ]
    return "\n\n".join(parts) + "\n"


def _raw(svg: str) -> str:
    """Return a drawing within a page."""
    return f"```{{raw}} html\n{svg}\n```"


def _ports(facts: Facts) -> str:
    rows = [["port", "direction", "bits"]]
    rows += [[f"`{name}`", direction, str(width)] for name, direction, width in facts.ports()]
    return aligned_table(rows)


def _words(facts: Facts) -> Iterator[str]:
    """Yield a drawing and a table for each stream and port."""
    words = [(f"{x.prefix}_tdata", x.fields, x.tdata_width) for x in facts.streams]
    words += [(x.name, x.fields, x.width) for x in facts.signals]
    for name, fields, width in words:
        yield f"### `{name}`"
        yield _raw(packet(name, fields, width))
        rows = [["field", "bits", "kind"], *map(_field_row, fields)]
        yield aligned_table(rows)


def _field_row(field: Field) -> list[str]:
    sizes = " x ".join(map(str, field.shape))
    kind = "signed" if field.signed else "unsigned or a pattern"
    bits = counted(field.width, "bit")
    kind = f"{sizes} values of {bits}, {kind}" if sizes else f"{bits}, {kind}"
    return [f"`{field.title}`", f"`{field.formula}`", kind]


def _timing(facts: Facts, diagram: str) -> Iterator[str]:
    if not facts.clock:
        yield "The unit is combinational: its outputs follow from its inputs in the same clock."
        return
    yield (
        f"A result comes {counted(facts.latency, 'clock')} after the last beat of its group, when "
        f"nothing pauses. A group has {counted(facts.beats_per_group, 'beat')} and takes "
        f"{counted(facts.clocks_per_group, 'clock')}. Data is drawn in the clocks in which it is "
        "taken; numbers count the beats. The diagram is a simulation of the emitted Verilog."
    )
    yield _raw(diagram)


def _parameters(unit: Unit) -> str:
    rows = [["parameter", "default", "what it is", "allowed"]]
    for name, parameter in parameters_of(unit.component).items():
        text = re.sub(r"\s+", " ", parameter.text.replace("``", "`")).strip()
        rows.append(
            [f"`{name}`", f"`{parameter.write(parameter.default)}`", text, parameter.allowed]
        )
    return aligned_table([[cell.replace("|", "\\|") for cell in row] for row in rows])


def _configurations(unit: Unit) -> str:
    known = parameters_of(unit.component)
    rows = [["configuration", "what differs from the defaults"]]
    for name, given in unit.configs.items():
        values = " ".join(
            f"{key}={known[key].write(value)}"
            for key, value in given.items()
            if value != known[key].default
        )
        rows.append([f"`{name}`", f"`{values}`" if values else "nothing"])
    return aligned_table(rows)


def _figures(unit: Unit, results: Path) -> str:
    """Return area, path and energy of every configuration and library."""
    rows = [["library", "configuration", "area um2", "path ns", "pJ a group"]]
    for path in sorted(results.glob("synth-*.json")):
        figures = read_figures(path)
        if figures["flow"].get("clock_gating"):
            continue
        without = ", no full adders" * (not figures["flow"].get("full_adder"))
        for row in figures["rows"]:
            if row["unit"] == unit.name:
                energy = row.get("energy_pj_per_group")
                rows.append(
                    [
                        *(row["pdk"] + without, f"`{row['config']}`", f"{row['area_um2']:.0f}"),
                        f"{row['critical_path_ns']:.3f}",
                        "-" if energy is None else f"{energy:.1f}",
                    ]
                )
    if len(rows) == 1:
        return f"Nothing was measured yet: `m2xfp synth {unit.name}`."
    return f"{aligned_table(rows)}\n`m2xfp synth {unit.name}` measures them again."


def _own_rows(unit: Unit, results: Path) -> str:
    """Return the unit's row of both status tables, turned: a line a column."""
    cells = own_rows(results, unit)
    del cells["unit"]
    return aligned_table([["what", "result"], *([name, cell] for name, cell in cells.items())])
