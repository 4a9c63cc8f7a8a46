"""Gate-level simulation and power, held against independent tools and against hand arithmetic."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from icarus import VENDOR, random_run, run_icarus

from m2xfp.synth.flow.liberty import Library, parse
from m2xfp.synth.flow.pdk import find_pdk, pdk_from_liberty
from m2xfp.synth.flow.yosys import FlowOptions, Netlist, SynthesisError, synthesize
from m2xfp.synth.gate_sim.power import Table, estimate_power, net_loads, net_slews, toggle_counts
from m2xfp.synth.gate_sim.simulator import (
    ALL,
    ONE,
    LevelizedNetlist,
    MismatchError,
    pack_bits,
    play,
    play_ports,
    unpack_bits,
)
from m2xfp.tb.vectors import Beats


@pytest.fixture(scope="module")
def osu018():
    return find_pdk("osu018")


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return tmp_path_factory.mktemp("power")


@pytest.fixture(scope="module")
def emitted(build):
    from m2xfp.rtl.catalog import find_unit
    from m2xfp.rtl.verilog.emit import emit

    return emit(find_unit("activation_quantizer").instance("bf16x8"), build)


@pytest.fixture(scope="module")
def netlist(emitted, osu018, build):
    return synthesize(emitted.verilog, emitted.top, osu018, build=build)


@pytest.fixture(scope="module")
def gates(netlist, osu018):
    return LevelizedNetlist(netlist, osu018)


@pytest.fixture(scope="module")
def facts(emitted):
    from m2xfp.facts import Facts

    return Facts.load(emitted.json)


def make_vectors(facts, groups, seed=0):
    from m2xfp.tb.bench import bench_of

    raw = np.random.default_rng(seed).integers(0, 1 << 16, (groups, 32), np.uint16)
    return bench_of(facts).vectors({"x": raw}, facts, seed)


def test_toggle_counts_equal_those_of_icarus_on_the_vendors_cells(netlist, gates, build):
    """The same netlist and stimulus in an event simulator, with the library's own Verilog."""
    warm = 60
    history = random_run(gates, 260, seed=1) & np.uint64(1)
    sources = [netlist.verilog, VENDOR]
    theirs = run_icarus(gates, history, netlist.top, sources, build, warm=warm).toggles
    ours = (history[warm + 1 :] ^ history[warm:-1]).sum(axis=(0, 2))
    named = gates.names()
    assert len(theirs) > 1000
    compared = {name: (count, int(ours[named[name]])) for name, count in theirs.items()}
    del compared["clk"]
    assert {n: c for n, c in compared.items() if c[0] != c[1]} == {}
    assert sum(count for count, _ in compared.values()) > 100_000


def test_gate_level_regression(gates, facts):
    """All beats equal golden, at full rate and with stalls on every stream."""
    vectors = make_vectors(facts, 64 * 6)
    flowing = play(gates, vectors, facts, words=1, window=9)
    assert flowing.groups == 64 * 6
    assert flowing.history.shape == (9, gates.nets, 1)
    assert flowing.window_groups == 64 * 8 / 4
    stalled = play(gates, vectors, facts, words=1, stall=0.4, seed=3)
    assert stalled.clocks > 1.5 * flowing.clocks
    with pytest.raises(ValueError, match="64 lanes"):
        play(gates, vectors.part(0, 63), facts, words=1)


def test_a_wrong_gate_is_found(netlist, osu018, facts, build):
    """Single wrong gates in the mapped netlist; one or two of a dozen may change no beat at all."""
    text = netlist.json.read_text()
    vectors = make_vectors(facts, 64 * 6)
    folder = build / "faulty"
    folder.mkdir()
    faulty = replace(netlist, folder=folder)
    swaps = {"AND2X1": "OR2X1", "NAND2X1": "NOR2X1", "NOR2X1": "NAND2X1", "XNOR2X1": "XOR2X1"}
    places = list(re.finditer(rf'"type": "({"|".join(swaps)})"', text))
    assert len(places) > 120
    caught = 0
    for place in places[:: len(places) // 12][:12]:
        damaged = text[: place.start(1)] + swaps[place[1]] + text[place.end(1) :]
        (folder / "netlist.json").write_text(damaged)
        try:
            play(LevelizedNetlist(faulty, osu018), vectors, facts, words=1, stall=0.2)
        except MismatchError:
            caught += 1
    assert caught >= 10


@pytest.mark.parametrize("port", ["top", "refinement"])
def test_a_unit_without_streams_is_compared_and_measured(port, osu018, build):
    """Every vector counts as one group; a wrong bit at either output is found."""
    from m2xfp.facts import Facts
    from m2xfp.rtl.catalog import find_unit
    from m2xfp.rtl.verilog.emit import emit
    from m2xfp.synth.gate_sim.stimulus import vectors_for

    files = emit(find_unit("activation_decoder").instance("m2xfp"), build)
    netlist = synthesize(files.verilog, files.top, osu018, build=build)
    vectors = vectors_for(Facts.load(files.json), "random", lanes=64, depth=20)
    assert vectors.groups == 80 * 64  # four subgroups a group
    gates = LevelizedNetlist(netlist, osu018)
    played = play_ports(gates, vectors, 64)
    assert played.groups == 80 * 64
    assert played.window_groups == 79 * 64
    assert len(played.history) == 80
    assert estimate_power(gates, osu018, played.history).energy_pj > 0
    wrong = vectors.outputs[port].data.copy()
    mask = vectors.compared.get(port, np.full_like(wrong, 255))
    word = np.flatnonzero(mask[:, 0] & 8)[-1]
    wrong[word] ^= 8
    changed = replace(vectors, outputs={**vectors.outputs, port: Beats(wrong)})
    with pytest.raises(MismatchError, match=f"port {port}, clock {word % 80}, lane {word // 80}"):
        play_ports(gates, changed, 64)


def test_words_and_bits():
    bits = np.random.default_rng(0).random((128, 5)) < 0.5
    words = pack_bits(bits)
    assert words.shape == (5, 2)
    assert int(words[3, 1] >> np.uint64(7)) & 1 == bits[64 + 7, 3]
    assert (unpack_bits(words) == bits).all()


def synthesize_text(text, top, pdk, build):
    source = build / f"{top}.v"
    source.write_text(text)
    return synthesize(source, top, pdk, build=build)


NAND_LIBRARY = """
library (hand) {
  time_unit : "1ns"; capacitive_load_unit (1,pf); nom_voltage : 2.0; leakage_power_unit : "1nW";
  power_lut_template (p2) {
    variable_1 : input_transition_time; variable_2 : total_output_net_capacitance;
    index_1 ("0, 1"); index_2 ("0, 1");
  }
  lu_table_template (t2) {
    variable_1 : total_output_net_capacitance; variable_2 : input_net_transition;
    index_1 ("0, 1"); index_2 ("0, 1");
  }
  cell (ND) {
    area : 1;
    pg_pin (VP) { pg_type : primary_power; } pg_pin (VG) { pg_type : primary_ground; }
    leakage_power () { value : 3; when : "A B"; related_pg_pin : VP; }
    leakage_power () { value : 70; when : "A B"; related_pg_pin : VG; }
    leakage_power () { value : 1; related_pg_pin : VP; }
    pin (A) { direction : input; capacitance : 0.25;
      internal_power () {
        rise_power (scalar) { values ("0.5"); } fall_power (scalar) { values ("0.25"); } }
    }
    pin (B) { direction : input; capacitance : 0.125;
      internal_power () { when : "!A Y"; related_pg_pin : VP;
        rise_power (scalar) { values ("8"); } fall_power (scalar) { values ("16"); } }
    }
    pin (Y) { direction : output; function : "!(A B)";
      internal_power () { related_pin : "A"; related_pg_pin : VP;
        rise_power (p2) { values ("1, 2", "3, 4"); } fall_power (p2) { values ("0, 0", "0, 0"); } }
      internal_power () { related_pin : "B"; related_pg_pin : VP;
        rise_power (p2) { values ("10, 20", "30, 40"); }
        fall_power (p2) { values ("5, 5", "5, 5"); } }
      internal_power () { related_pin : "B"; related_pg_pin : VG;
        rise_power (scalar) { values ("1000"); } fall_power (scalar) { values ("1000"); } }
      timing () { related_pin : "A B"; timing_sense : negative_unate;
        rise_transition (t2) { values ("0.5, 0.5", "1.5, 1.5"); }
        fall_transition (t2) { values ("0.5, 0.5", "1.5, 1.5"); } }
    }
  }
  cell (BF) { area : 1;
    pin (A) { direction : input; capacitance : 0.25; }
    pin (Y) { direction : output; function : "A";
      timing () { related_pin : "A"; timing_sense : positive_unate;
        rise_transition (t2) { values ("0, 0", "1, 1"); }
        fall_transition (t2) { values ("0, 0", "2, 2"); } }
    }
  }
}
"""


def test_power_of_one_gate_by_hand(tmp_path):
    """y = !(a b) in a library of round numbers; every figure is worked out in the comments."""
    path = tmp_path / "hand.lib"
    path.write_text(NAND_LIBRARY)
    pdk = pdk_from_liberty([path])
    netlist = one_gate(tmp_path)
    gates = LevelizedNetlist(netlist, pdk)
    a, b, y = (int(gates.ports[name][0]) for name in "aby")

    # Loads: a 0.25 pF, b 0.125 pF, y four NAND2 inputs of 0.25 pF = 1 pF; in fF.
    loads = net_loads(gates, pdk)
    assert [loads["rise"][net] for net in (a, b, y)] == [250, 125, 1000]
    # The driver's transition is its load in pF (rise) and twice that (fall); y: 0.5 + 1.0.
    slews = net_slews(gates, pdk, loads)
    assert (slews["rise"][a], slews["fall"][a]) == (0.25, 0.5)
    assert (slews["rise"][b], slews["fall"][b]) == (0.125, 0.25)
    assert slews["rise"][y] == slews["fall"][y] == 1.5

    # Clocks:      0  1  2  3  4
    wave_a = (0, 1, 1, 0, 0)
    wave_b = (0, 0, 1, 0, 1)
    history = np.zeros((5, gates.nets, 1), np.uint64)
    history[:, ONE] = ALL
    for clock, (value_a, value_b) in enumerate(zip(wave_a, wave_b, strict=True)):
        history[clock, a] = ALL * np.uint64(value_a)
        history[clock, b] = ALL * np.uint64(value_b)
        gates.settle(history[clock])
    assert [int(w & np.uint64(1)) for w in history[:, y, 0]] == [1, 1, 0, 1, 1]
    toggles = toggle_counts(gates, history)
    assert (toggles[a], toggles[b], toggles[y]) == (2 * 64, 3 * 64, 2 * 64)

    power = estimate_power(gates, pdk, history)
    # Switching, half C V^2 = 2 C: a 2 * 0.5 pJ, b 3 * 0.25 pJ, y 2 * 2 pJ = 5.75 pJ in 4 clocks.
    assert power.switching_pj == pytest.approx(5.75 / 4)
    # Pin a: one rise 0.5, one fall 0.25 = 0.75.
    # Pin b, condition "!A Y" after and before: clock 1-2 rise a=1 no; clock 2-3 fall: after a=0 y=1
    #   yes, before a=1 y=0 no; clock 3-4 rise: yes, yes = 8.
    # Pin y falls once (1-2), only b moved: 5. It rises once (2-3), both moved, tables A and B
    #   weigh the same: A at slew (0.25 + 0.5) / 2 = 0.375 and load 1: 2 + 0.375 * 2 = 2.75;
    #   B at slew 0.1875: 20 + 0.1875 * 20 = 23.75; mean 13.25. The ground rail is not counted.
    assert power.internal_pj == pytest.approx((0.75 + 8 + 5 + 13.25) / 4)
    # Leakage over the states after each transition, a b = 10 11 00 01: 3 in one of four, else 1.
    assert power.leakage_uw == pytest.approx((3 + 1 + 1 + 1) / 4 * 1e-3)
    assert power.clock_pj == 0


def one_gate(folder: Path) -> Netlist:
    """Write the netlist of one ND gate, as yosys would."""
    cell = {"type": "ND", "connections": {"A": [2], "B": [3], "Y": [4]}}
    ports = {
        name: {"direction": "output" if name == "y" else "input", "bits": [bit]}
        for name, bit in (("a", 2), ("b", 3), ("y", 4))
    }
    module = {"ports": ports, "cells": {"g": cell}, "netnames": {}}
    (folder / "netlist.json").write_text(json.dumps({"modules": {"gate": module}}))
    options = FlowOptions()
    return Netlist("gate", "hand", options, "", 1, 1, 1, 1, 1, 0, {"ND": 1}, {"gate": 1}, folder)


def test_flip_flop_power_by_hand(osu018, build):
    """A toggling flip-flop of osu018: clock pin twice a clock, D and Q once, from the tables."""
    text = (
        "module flip (input clk, input rst, output reg q);"
        " always @(posedge clk) q <= rst ? 1'b0 : ~q; endmodule"
    )
    netlist = synthesize_text(text, "flip", osu018, build)
    gates = LevelizedNetlist(netlist, osu018)
    values = np.zeros((gates.nets, 1), np.uint64)
    values[ONE] = ALL
    states = {"DFFPOSX1": np.zeros((1, 1), np.uint64)}
    history = []
    for _ in range(9):
        gates.set_flops(values, states)
        gates.settle(values)
        history.append(values.copy())
        states = gates.next_states(values, states)
    run = np.array(history)
    loads, clock = net_loads(gates, osu018), int(gates.clock)
    assert toggle_counts(gates, run)[clock] == 2 * 8 * 64
    power = estimate_power(gates, osu018, run)
    # The clock pin's energies at slew 0, the first segment carried on: from the library's text.
    rise = 0.006865 - 0.06 * (0.006943 - 0.006865) / 0.18
    fall = 0.11034 - 0.06 * (0.129769 - 0.11034) / 0.18
    assert (loads["rise"][clock], loads["fall"][clock]) == pytest.approx((27.9235, 27.4634))
    switching = (27.9235 + 27.4634) / 2 * 1e-3 * 1.8**2
    assert power.clock_pj == pytest.approx(rise + fall + switching, rel=1e-4)
    assert power.energy_pj > power.clock_pj


def test_flip_flops_whose_set_and_reset_are_tied_off(osu018, build):
    """As in ihp-sg13g2, which has no others; here osu018 with nothing but DFFSR."""
    text = osu018.liberty[0].read_text()
    path = build / "resets.lib"
    path.write_text(re.sub(r"cell \((DFFPOSX1|DFFNEGX1)\)", r"cell (\1_GONE)", text))
    gone = ("DFF*_GONE",)
    pdk = replace(pdk_from_liberty([path]), name="resets", dont_use=gone)
    assert pdk.flop_area_um2 == pdk.library.cells["DFFSR"].area > osu018.flop_area_um2
    source = (
        "module count (input clk, input rst, input step, output reg [3:0] value);"
        " always @(posedge clk) value <= rst ? 4'd0 : value + step; endmodule"
    )
    netlist = synthesize_text(source, "count", pdk, build)
    assert netlist.cell_counts["DFFSR"] == netlist.flops == 4
    gates = LevelizedNetlist(netlist, pdk)
    history = random_run(gates, 40, seed=1)
    bits = history[4:, gates.ports["value"], 0] & np.uint64(1)
    step = history[4:, gates.ports["step"][0], 0] & np.uint64(1)
    value = bits @ (np.uint64(1) << np.arange(4, dtype=np.uint64))
    assert (value[1:] == np.cumsum(step)[:-1] % 16).all()
    assert estimate_power(gates, pdk, history).clock_pj > 0

    design = json.loads(netlist.json.read_text())
    cells = design["modules"]["count"]["cells"].values()
    next(cell for cell in cells if cell["type"] == "DFFSR")["connections"]["R"] = [
        design["modules"]["count"]["ports"]["step"]["bits"][0]
    ]
    folder = build / "asynchronous"
    folder.mkdir()
    (folder / "netlist.json").write_text(json.dumps(design))
    with pytest.raises(SynthesisError, match="DFFSR is set or cleared without a clock"):
        random_run(LevelizedNetlist(replace(netlist, folder=folder), pdk), 40, seed=1)


def test_tables_in_either_order_and_beyond_their_ends():
    text = """library (x) {
      lu_table_template (sl) { variable_1 : input_net_transition;
        variable_2 : total_output_net_capacitance; index_1 ("0, 2"); index_2 ("0, 1, 3"); }
      lu_table_template (ls) { variable_1 : total_output_net_capacitance;
        variable_2 : input_transition_time; index_1 ("0, 1, 3"); index_2 ("0, 2"); }
      cell (c) { area : 1; pin (y) { direction : output; timing () { related_pin : "a";
        a (sl) { values ("0, 1, 5", "2, 3, 7"); }
        b (ls) { values ("0, 2", "1, 3", "5, 7"); }
        c (scalar) { values ("4"); } } } } }"""
    library = Library._of(parse(text))
    (timing,) = library.cells["c"].pins["y"].group.of("timing")
    first, second, constant = (Table.read(group, library) for group in timing.groups)
    slew, load = np.array([0.0, 1.0, 3.0, -1.0]), np.array([2.0, 0.5, 4.0, -1.0])
    expected = [3.0, 1.5, 7.0 + 2.0 + 1.0, -1.0 - 1.0]
    assert first.at(slew, load) == pytest.approx(expected)
    assert second.at(slew, load) == pytest.approx(expected)
    assert constant.at(slew, load) == pytest.approx([4.0] * 4)


def test_slews_equal_those_of_opensta(netlist, gates, osu018, build):
    """Along the critical path, where OpenSTA prints them."""
    from m2xfp.synth.flow.timing import time_netlist

    time_netlist(netlist, osu018, build)
    slews = net_slews(gates, osu018, net_loads(gates, osu018))
    (script,) = netlist.folder.glob("timing-*.tcl")
    detailed = build / "slews.tcl"
    text = script.read_text().replace("-format full", "-format full -fields {slew net}")
    detailed.write_text(text)
    log = subprocess.run(
        ["sta", "-exit", "-no_splash", str(detailed.absolute())],
        cwd=netlist.folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    pattern = r"^ +([\d.]+) +[\d.]+ +[\d.]+ ([v^]) (\S+)/(\w+) \((\w+)\)$"
    cells = {
        name: (kind, index)
        for kind, batch in gates.batches.items()
        for index, name in enumerate(batch.names)
    }
    seen = 0
    for slew, edge, instance, pin, kind in re.findall(pattern, log, re.MULTILINE):
        if pin not in ("Y", "Q", "QN"):
            continue
        name = instance if instance in cells else instance.replace("\\\\", "\\")
        assert cells[name][0] == kind
        net = gates.batches[kind].nets[pin][cells[name][1]]
        ours = slews["rise" if edge == "^" else "fall"][net]
        assert ours == pytest.approx(float(slew), abs=2e-6), instance
        seen += 1
    assert seen > 10
