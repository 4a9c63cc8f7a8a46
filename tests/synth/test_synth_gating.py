"""Clock gates: found, placed, timed through, simulated, and paid for.

No library that Debian has comes with a clock gate, so osu018 gets one here, in round numbers.
"""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from icarus import VENDOR, random_run, run_icarus

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.flow.liberty import ClockGate
from m2xfp.synth.flow.pdk import find_pdk, pdk_from_liberty
from m2xfp.synth.flow.timing import time_netlist
from m2xfp.synth.flow.yosys import FlowOptions, SynthesisError, synthesize
from m2xfp.synth.gate_sim.power import estimate_power, net_slews, toggle_counts
from m2xfp.synth.gate_sim.simulator import ALL, ONE, LevelizedNetlist, MismatchError, play
from m2xfp.synth.report import accepted
from m2xfp.synth.report.figures import Row
from m2xfp.tb.bench import bench_of

GATED = FlowOptions(clock_gating=True)

LIBERTY = """
cell (@) {
  area : #; cell_leakage_power : 1; clock_gating_integrated_cell : latch_posedge_precontrol;
  leakage_power () { when : "!CK & !GCK"; value : 2; }
  leakage_power () { when : "CK & GCK"; value : 6; }
  statetable ("CK E TE", "IQ") {
    table : "L L L : - : L, L L H : - : H, L H - : - : H, H - - : - : N"; }
  pin (IQ) { direction : internal; internal_node : "IQ"; }
  pin (CK) { direction : input; clock : true; clock_gate_clock_pin : true; capacitance : 0.01;
    internal_power () { when : "E & !GCK";
      rise_power (scalar) { values ("100"); } fall_power (scalar) { values ("0.25"); } }
    internal_power () { when : "!E & !GCK";
      rise_power (scalar) { values ("0.5"); } fall_power (scalar) { values ("0.125"); } } }
  pin (E) { direction : input; clock_gate_enable_pin : true; capacitance : 0.005;
    internal_power () { when : "CK";
      rise_power (scalar) { values ("0.03"); } fall_power (scalar) { values ("0.04"); } }
    internal_power () { when : "!CK & !GCK";
      rise_power (scalar) { values ("0.01"); } fall_power (scalar) { values ("0.02"); } }
    timing () { related_pin : "CK"; timing_type : setup_rising;
      rise_constraint (scalar) { values ("0.5"); } fall_constraint (scalar) { values ("0.5"); } } }
  pin (TE) { direction : input; clock_gate_test_pin : true; capacitance : 0.005; }
  pin (GCK) { direction : output; clock_gate_out_pin : true; state_function : "CK & IQ";
    internal_power () { related_pin : "CK";
      rise_power (scalar) { values ("1"); } fall_power (scalar) { values ("2"); } }
    timing () { related_pin : "CK"; timing_sense : positive_unate;
      cell_rise (scalar) { values ("0.1"); } rise_transition (scalar) { values ("0.1"); }
      cell_fall (scalar) { values ("0.1"); } fall_transition (scalar) { values ("0.1"); } } }
}
"""

# Every flip-flop moves together in the simulator that is tested; here a unit of time after the
# edge, so that none sees what another one takes over at the same edge.
VERILOG = """
module CG1 (input CK, input E, input TE, output GCK);
  reg iq; always @* if (!CK) iq = E | TE;
  assign GCK = CK & iq;
endmodule
module DFFPOSX1 (input CLK, input D, output reg Q); always @(posedge CLK) Q <= #1 D; endmodule
"""

BANK = """
module bank (input clk, input rst, input load, input hold, input step, input few,
             input [15:0] d, output reg [15:0] wide, output reg [11:0] kept,
             output reg [7:0] count, output reg [3:0] narrow);
  always @(posedge clk) begin
    if (load) wide <= d + count;
    if (!hold) kept <= wide[15:4] ^ d[11:0];
    count <= rst ? 8'd0 : step ? count + narrow : count;
    if (few) narrow <= d[3:0];
  end
endmodule
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return tmp_path_factory.mktemp("gating")


@pytest.fixture(scope="module")
def files(build):
    """Liberty and Verilog of osu018 with clock gates of two sizes."""
    (path,) = find_pdk("osu018").liberty
    text = path.read_text().replace("library(osu018_stdcells)", "library(gated018)")
    assert "gated018" in text
    cells = "".join(LIBERTY.replace("@", f"CG{n}").replace("#", f"{80 + n}") for n in (4, 1, 2))
    liberty = build / "gated018.lib"
    liberty.write_text(text[: text.rindex("}")] + cells + "}\n")
    vendor = build / "vendor.v"
    cells = re.sub(r"^module DFFPOSX1.*?^endmodule", "", VENDOR.read_text(), flags=re.M | re.S)
    vendor.write_text(VERILOG + cells)  # in front of the line that sets a time scale
    return liberty, vendor


@pytest.fixture(scope="module")
def pdk(files):
    return pdk_from_liberty([files[0]])


def mapped(text, pdk, build, options=GATED):
    top = re.search(r"module (\w+)", text)[1]
    source = build / f"{top}.v"
    source.write_text(text)
    return synthesize(source, top, pdk, options, build)


@pytest.fixture(scope="module")
def bank(pdk, build):
    return mapped(BANK, pdk, build)


def test_the_smallest_clock_gate_is_found(pdk, files):
    assert pdk.clock_gate_cell.name == "CG1"
    assert pdk.clock_gate_cell.clock_gate == ClockGate("CK", "E", "GCK", "TE")
    assert pdk_from_liberty(files[:1], {"GATE": "CG4"}).clock_gate_cell.name == "CG4"
    assert replace(pdk, dont_use=("CG*",)).clock_gate_cell.name == "CG1"
    with pytest.raises(InputError, match=r"GATE=LATCH is no integrated clock gate.*gated018"):
        _ = pdk_from_liberty(files[:1], {"GATE": "LATCH"}).clock_gate_cell


def test_a_library_without_clock_gate_says_so(build, monkeypatch, capsys, tmp_path):
    from m2xfp import cli

    with pytest.raises(InputError, match="'osu018_stdcells' has no integrated clock gate"):
        mapped(BANK, find_pdk("osu018"), build)
    monkeypatch.chdir(tmp_path)
    arguments = ["activation_decoder", "--clock-gating"]
    monkeypatch.setattr(sys, "argv", ["m2xfp", "synth", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert "--clock-gating" in capsys.readouterr().err


def test_registers_with_an_enable_get_gates(bank, pdk, build):
    """The wide ones do; a narrow one not, nor one whose reset goes before its enable."""
    assert bank.cell_counts["CG1"] == 2
    assert bank.flops == bank.cell_counts["DFFPOSX1"] == 16 + 12 + 8 + 4
    plain = mapped(BANK, pdk, build, FlowOptions())
    assert "CG1" not in plain.cell_counts
    assert plain.flops == bank.flops
    cells = pdk.library.cells
    areas = {kind: number * cells[kind].area for kind, number in bank.cell_counts.items()}
    assert areas["CG1"] == 2 * 81
    assert bank.area_um2 == pytest.approx(sum(areas.values()))
    assert bank.area_um2 < plain.area_um2 - 28 * 30
    assert bank.logic_area_um2 == pytest.approx(bank.area_um2 - 40 * 96)


def test_gated_netlist_equals_its_source_and_icarus_on_every_net(bank, pdk, files, build):
    """The mapped netlist here and in Icarus, and the Verilog it came from, under one stimulus."""
    gates, warm = LevelizedNetlist(bank, pdk), 40
    assert len(gates.clocks) == 3
    history = random_run(gates, 400, seed=5) & np.uint64(1)
    sources = [bank.verilog, files[1]]
    netlist = run_icarus(gates, history, "bank", sources, build, warm=warm, delay=1)
    source = run_icarus(gates, history, "bank", [build / "bank.v"], build, warm=warm, delay=1)
    nets = np.concatenate([gates.ports[name] for name in gates.outputs])[::-1]
    ours = ["".join(map(str, row)) for row in history[1:, nets, 0]]
    assert ours[warm:] == source.outputs[warm : len(ours)] == netlist.outputs[warm : len(ours)]
    assert len(set(ours[warm:])) > 300

    counts, named = toggle_counts(gates, history[warm:]), gates.names()
    compared = {name: (count, int(counts[named[name]])) for name, count in netlist.toggles.items()}
    del compared["clk"]
    assert {n: c for n, c in compared.items() if c[0] != c[1]} == {}
    pulses = [counts[net] for net in gates.clocks if net != gates.clock]
    assert all(200 < count < 520 for count in pulses)  # two for each of about half of 359 clocks


@pytest.fixture(scope="module")
def quantizer(pdk, build):
    """Return a gated quantizer with enough to play through it."""
    emitted = emit(find_unit("activation_quantizer").instance("bf16x8"), build)
    netlist = synthesize(emitted.verilog, emitted.top, pdk, GATED, build)
    facts = Facts.load(emitted.json)
    raw = np.random.default_rng(2).integers(0, 1 << 16, (64 * 4, 32), np.uint16)
    return netlist, facts, bench_of(facts).vectors({"x": raw}, facts)


def test_gate_level_regression(quantizer, pdk):
    netlist, facts, vectors = quantizer
    assert netlist.cell_counts["CG1"] >= 4
    gates = LevelizedNetlist(netlist, pdk)
    for stall in (0.0, 0.4):
        assert play(gates, vectors, facts, words=1, stall=stall).groups == vectors.groups


@pytest.mark.parametrize("fault", ["inverted", "always", "never"])
def test_a_wrong_enable_is_found(quantizer, pdk, build, fault):
    """One gate at a time; an enable that is always on must be seen as well."""
    netlist, facts, vectors = quantizer
    design = json.loads(netlist.json.read_text())
    cells = design["modules"][netlist.top]["cells"]
    folder = build / fault
    folder.mkdir()
    caught = []
    for name in [name for name, cell in cells.items() if cell["type"] == "CG1"]:
        enable = cells[name]["connections"]["E"]
        cells["fault"] = {"type": "INVX1", "connections": {"A": enable, "Y": ["fault"]}}
        wrong = {"inverted": "fault", "always": "1", "never": "0"}[fault]
        cells[name]["connections"]["E"] = [wrong]
        (folder / "netlist.json").write_text(json.dumps(design))
        cells[name]["connections"]["E"] = enable
        try:
            play(
                LevelizedNetlist(replace(netlist, folder=folder), pdk),
                vectors,
                facts,
                words=1,
                stall=0.3,
            )
        except MismatchError:
            caught.append(name)
    number = netlist.cell_counts["CG1"]
    assert len(caught) == number if fault != "always" else len(caught) >= number / 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "module latch (input clk, en, input [8:0] d, output reg [8:0] q, output reg y);"
            "always @(posedge clk) if (en) q <= d; always @* if (en) y = d[0]; endmodule",
            "is a latch",
        ),
        (
            "(* blackbox *) module CG2 (input CK, input E, input TE, output GCK); endmodule\n"
            "module other (input clk, en, d, output reg q); wire g;"
            "CG2 c (.CK(clk), .E(en), .TE(1'b0), .GCK(g)); always @(posedge g) q <= d; endmodule",
            "is a latch",
        ),
        (
            "(* blackbox *) module part (input a, output y); endmodule\n"
            "module box (input clk, en, a, output reg [8:0] q); wire y; part p (.a(a), .y(y));"
            "always @(posedge clk) if (en) q <= {9{y}}; endmodule",
            "is a part, which has no contents",
        ),
    ],
)
def test_what_is_no_gate_of_the_flow_is_refused(text, words, pdk, build):
    top = re.findall(r"module (\w+)", text)[-1]
    source = build / f"{top}.v"
    source.write_text(text)
    with pytest.raises(SynthesisError, match=words):
        synthesize(source, top, pdk, GATED, build)


def test_a_clock_that_is_data_cannot_be_simulated(pdk, build):
    text = (
        "module mixed (input clk, input en, input [8:0] d, output reg [8:0] q, output y);"
        "always @(posedge clk) if (en) q <= d; assign y = clk & d[0]; endmodule"
    )
    with pytest.raises(SynthesisError, match="reads a clock as data"):
        LevelizedNetlist(mapped(text, pdk, build), pdk)


@pytest.mark.parametrize(
    ("name", "condition", "result", "start", "end"),
    [
        ("into", "a * a == 12'd144", "q", r"a\[\d\]", r"enable of q\[0\]"),
        ("out_of", "a == 12'd144", "q * q", r"q\[\d+\]", r"r\[\d+\]"),
    ],
)
def test_paths_through_clock_gates_are_timed(name, condition, result, start, end, pdk, build):
    """Into the enable, with its setup time, and from one gated register on."""
    netlist = mapped(
        f"module {name} (input clk, input [11:0] i, d, output reg [11:0] r); reg [11:0] a, q;"
        f"always @(posedge clk) begin a <= i; if ({condition}) q <= d; r <= {result}; end "
        "endmodule",
        pdk,
        build,
    )
    assert netlist.cell_counts["CG1"] == 1
    timing = time_netlist(netlist, pdk, build)
    assert re.fullmatch(start, timing.start)
    assert re.fullmatch(end, timing.end)
    arrival = timing.stages[-1].time_ns
    assert timing.critical_path_ns - arrival > 0.05
    if name == "into":
        assert timing.critical_path_ns - arrival == pytest.approx(0.5, abs=1e-5)


def test_gated_figures_are_accepted_beside_the_others(pdk, tmp_path):
    row = Row(
        "activation_quantizer",
        "bf16x8",
        pdk.name,
        *(1.0, 1.0, 1.0, 1.0, 1, 1, 1.0, 1.0, 1.0, "", "", 1.0),
        module_area_um2={"lane": 1.0},
    )
    known = [(row.unit, row.config)]
    plain, gated = replace(row, area_um2=2.0), row
    accepted.accept(tmp_path, [], [plain], known, pdk, FlowOptions())
    path = accepted.accept(tmp_path, [], [gated], known, pdk, GATED)
    assert path.name == "synth-gated018-gated.json"
    assert accepted.load(tmp_path, pdk, FlowOptions()) == [plain]
    assert accepted.load(tmp_path, pdk, GATED) == [gated]
    report = json.loads(path.read_text())
    assert (report["flow"]["clock_gating"], report["flow"]["clock_gate"]) == (True, "CG1")
    assert "clock gates" in accepted.tables(tmp_path)["synth-gated018-gated"]
    with pytest.raises(InputError, match="clock_gate"):
        accepted.load(tmp_path, replace(pdk, gate="CG4"), GATED)


def test_power_of_a_clock_gate_by_hand(pdk, build):
    """Eight flip-flops that hold 0 behind one gate: all that moves is clocks and the enable."""
    netlist = mapped(
        "module eight (input clk, input en, input [7:0] d, output reg [7:0] q);"
        "always @(posedge clk) if (en) q <= d; endmodule",
        pdk,
        build,
    )
    # Nothing but gate, tie and flip-flops: a buffer in the enable would have energy of its own.
    assert netlist.cell_counts.keys() <= {"CG1", "DFFPOSX1"}
    gates = LevelizedNetlist(netlist, pdk)
    wave = (0, 1, 1, 0, 0, 1, 0)
    run = np.zeros((len(wave), gates.nets, 1), np.uint64)
    run[:, ONE] = ALL
    states = {"DFFPOSX1": np.zeros((8, 1), np.uint64)}
    for clock, enable in enumerate(wave):
        run[clock, gates.ports["en"]] = ALL * np.uint64(enable)
        gates.settle(run[clock])
        states = gates.next_states(run[clock], states)
        assert not states["DFFPOSX1"].any()
    power = estimate_power(gates, pdk, run)
    # Six edges, in clocks 0 to 5, three of them let through (1, 2 and 5). Clock pin of the gate:
    # the other three rise with the enable low, 3 * 0.5; they fall with what the enable is then,
    # high (0.25), low (0.125), high (0.25).
    pin = 3 * 0.5 + 0.25 + 0.125 + 0.25
    output = 3 * (1 + 2)
    # The enable rises twice and falls twice, each half as the clock is high, half as it is low.
    enable = 2 * (0.03 + 0.01) / 2 + 2 * (0.04 + 0.02) / 2
    # The flip-flops' clock pins: see the test of one flip-flop on a plain clock.
    rise = 0.006865 - 0.06 * (0.006943 - 0.006865) / 0.18
    fall = 0.11034 - 0.06 * (0.129769 - 0.11034) / 0.18
    flops = 3 * 8 * (rise + fall)
    assert power.internal_pj == pytest.approx((pin + output + enable + flops) / 6, rel=1e-5)
    # V^2 a pulse, half of it a transition; the enable has the gate's pin alone.
    gated = 3 * 8 * (27.9235 + 27.4634) / 2 * 1e-3 * 1.8**2
    clock = 6 * 0.01 * 1.8**2 + gated
    assert power.switching_pj == pytest.approx((clock + 4 * 0.005 * 1.8**2 / 2) / 6, rel=1e-5)
    assert power.clock_pj == pytest.approx((pin + output + flops + clock) / 6, rel=1e-5)
    # Leakage: half of the time low, 2; high with a pulse, 6; high without one, what is left: 1.
    flop = pdk.library.cells["DFFPOSX1"].group.number("cell_leakage_power")
    leakage = (2 + 6 * 3 / 6 + 1 * 3 / 6) / 2 + 8 * flop
    assert power.leakage_uw == pytest.approx(leakage * 1e-3, rel=1e-5)
    slews = net_slews(gates, pdk, {"rise": np.ones(gates.nets), "fall": np.ones(gates.nets)})
    assert not any(slews[edge][gates.clocks].any() for edge in slews)
