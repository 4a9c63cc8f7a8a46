"""Timing diagrams from a real simulation: the unit's testbench in Icarus, its ports as WaveDrom."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import wavedrom

from m2xfp.errors import tool_failure
from m2xfp.facts import Facts, Stream
from m2xfp.processes import run
from m2xfp.rtl.catalog import Instance
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bench import find_bench, random_operands
from m2xfp.tb.four_state import find_icarus
from m2xfp.tb.portable import Pauses, bench_name, write_bench

__all__ = ["timing_diagram", "waves_of"]

_CLOCKS = 24
"""Clocks that a diagram shows at most; beats beyond are not drawn."""
_WIDE_CLOCKS = 12
_DUMP = """\
module {top}_dump;
  initial begin
    $dumpfile("unit.vcd");
    $dumpvars(1, {bench}.unit);
  end
endmodule
"""


def timing_diagram(instance: Instance) -> str:
    """Return how a few groups go through a unit when nothing pauses, as SVG.

    Raises
    ------
    MissingToolError
        Icarus Verilog is not installed.
    ToolError
        It failed.
    """
    drawn = wavedrom.render(json.dumps(waves_of(instance))).tostring()
    # As wide as its page at most, and on white: its lines are black.
    style = 'style="max-width: 100%; height: auto; background: white"'
    return re.sub(r"<svg ", f"<svg {style} ", str(drawn), count=1)


def waves_of(instance: Instance) -> dict[str, object]:
    """Return the same as WaveDrom's data: clock, and valid, ready, last and data of each stream."""
    find_icarus()
    facts, bench = instance.facts, find_bench(instance.unit)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        emit(instance, folder)
        arrays = bench.sample(random_operands(1, 4, 1), facts)
        write_bench(facts, bench.vectors(arrays, facts), folder, Pauses(stall=0.0, before=0))
        top = bench_name(facts)
        (folder / "dump.v").write_text(_DUMP.format(top=facts.top, bench=top))
        for command in (
            [
                *("iverilog", "-g2005", "-s", top, "-s", f"{facts.top}_dump", "-o", "x.vvp"),
                *(f"{top}.v", f"{facts.top}.v", "dump.v"),
            ],
            ["vvp", "-n", "x.vvp"],
        ):
            done = run(command, cwd=folder)
            if done.returncode:
                raise tool_failure(command[0], facts.top, done.stdout, done.returncode, name)
        clocks = _sampled((folder / "unit.vcd").read_text(), facts)
    return _drawn(facts, clocks)


def _sampled(text: str, facts: Facts) -> list[Mapping[str, str]]:
    """Return the values of the unit's ports just before each rising edge of its clock."""
    names = {name for name, _, _ in facts.ports()}
    codes: dict[str, str] = {}
    for code, name in re.findall(r"\$var \w+ +\d+ (\S+) (\w+)(?: \[[\d:]+\])? \$end", text):
        if name in names:
            codes.setdefault(name, code)
    values: dict[str, str] = {}
    found: list[Mapping[str, str]] = []
    for line in text.partition("$enddefinitions")[2].splitlines():
        change = re.fullmatch(r"b(\S+) (\S+)|([01xz])(\S+)", line)
        if not change:
            continue
        code = change[2] or change[4]
        if facts.clock and code == codes[facts.clock] and change[3] == "1":
            found.append({name: values.get(at, "x") for name, at in codes.items()})
        values[code] = change[1] or change[3]
    return found


def _drawn(facts: Facts, clocks: Sequence[Mapping[str, str]]) -> dict[str, object]:
    """Return WaveDrom's data from the clock of the last reset on."""
    resets = [n for n, clock in enumerate(clocks) if clock[facts.reset] == "1"]
    shown = clocks[resets[-1] :]
    moved = [n for n, clock in enumerate(shown) for x in facts.outputs if _taken(clock, x)]
    shown = shown[: min(_CLOCKS, max(moved, default=_CLOCKS) + 3)]
    signals: list[object] = [{"name": facts.clock, "wave": "p" + "." * (len(shown) - 1)}]
    signals.append(_bit(facts.reset, [clock[facts.reset] for clock in shown]))
    for stream in facts.streams:
        tdata, tvalid, tready, tlast = stream.ports
        group: list[object] = [stream.prefix]
        group += [_bit(port, [clock[port] for clock in shown]) for port in (tvalid, tready, tlast)]
        group.insert(1, _beats(tdata, [_taken(clock, stream) for clock in shown]))
        signals.append(group)
    # Clocks half as wide where there are many: the page would shrink the drawing and its letters.
    skin = "narrow" if len(shown) > _WIDE_CLOCKS else "default"
    return {"signal": signals, "config": {"hscale": 1, "skin": skin}}


def _taken(clock: Mapping[str, str], stream: Stream) -> bool:
    _, tvalid, tready, _ = stream.ports
    return clock[tvalid] == "1" and clock[tready] == "1"


def _bit(name: str, values: list[str]) -> dict[str, str]:
    """Return a signal of one bit; a point repeats what was before."""
    wave, before = "", ""
    for value in values:
        wave += "." if value == before else value
        before = value
    return {"name": name, "wave": wave}


def _beats(name: str, taken: list[bool]) -> dict[str, object]:
    """Return data as numbered beats, in the clocks in which they are taken."""
    wave, before = "", ""
    labels: list[str] = []
    for each in taken:
        if each:
            wave += "="
            labels.append(str(len(labels)))
            before = "="
        else:
            wave += "." if before == "x" else "x"
            before = "x"
    return {"name": name, "wave": wave, "data": labels}
