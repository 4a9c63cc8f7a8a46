"""Boards, builds and the check of a built chip. Building takes minutes: it is in the slow set."""

import json
import random
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from amaranth.back import verilog
from click.testing import CliRunner

from m2xfp.cli import cli
from m2xfp.errors import FileError, InputError, M2xfpError, UnknownNameError
from m2xfp.fpga.check.bitstream_check import check_bitstream
from m2xfp.fpga.check.ecp5 import parse_routed
from m2xfp.fpga.check.ice40 import parse_icebox
from m2xfp.fpga.check.netlist import ONE, ZERO, Alias, Carry, Fault, FlipFlop, Lut, Netlist
from m2xfp.fpga.check.pins import CELLS
from m2xfp.fpga.check.traffic import CheckError, refusals, traffic
from m2xfp.fpga.flow import bitstream as build_module
from m2xfp.fpga.flow.bitstream import (
    BuildReport,
    Cells,
    FitError,
    TimingError,
    build,
    parse_timing,
    parse_utilisation,
)
from m2xfp.fpga.flow.boards import BOARDS, find_board
from m2xfp.fpga.flow.families import FAMILIES
from m2xfp.fpga.flow.report import UnitRates, rate_figures, unit_rates, write_results
from m2xfp.fpga.flow.tables import rate_table
from m2xfp.fpga.flow.tools import BuildError, find_tool
from m2xfp.fpga.gateware.design import Design
from m2xfp.fpga.gateware.link import Link
from m2xfp.fpga.gateware.units import (
    board_instances,
    board_units,
    folder_name,
    instance_of_text,
    instance_text,
)
from m2xfp.fpga.host.patterns import patterns
from m2xfp.fpga.host.remote_unit import RemoteUnit
from m2xfp.fpga.protocol import Command, Frame, Status, encode
from m2xfp.golden import get_format
from m2xfp.golden.bits import from_bits
from m2xfp.results import read_figures
from m2xfp.rtl.catalog import find_unit
from m2xfp.synth.coverage import unreachable as flat_netlist
from m2xfp.synth.flow import yosys
from m2xfp.tb.verilator import find_verilator

RNG = np.random.default_rng(0)

LOG = """Info: Device utilisation:
Info: \t         ICESTORM_LC:    6131/   5280   116%
Info: \t        ICESTORM_RAM:       8/     30    26%
ERROR: Unable to place cell 'x', no BELs remaining to implement cell type 'ICESTORM_LC'
"""


def report(*units: str, **changes: object) -> BuildReport:
    instances = board_instances(units or ("quantizer",))
    facts = {
        "board": "icebreaker",
        "units": units or ("quantizer",),
        "instances": tuple(map(instance_text, instances)),
        "clock_hz": 12e6,
        "baud": 1_000_000,
        "cells": {name: Cells(3, 10) for name in ("luts", "flip_flops", "block_ram", "dsp")},
        "fmax_mhz": 16.0,
        "constraint_mhz": 12.0,
        "seed": 1,
        "tools": {"nextpnr-ice40": "0.11"},
        "bitstream": "top.bin",
        "key": "k",
    }
    return BuildReport(**facts | changes)


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_boards_have_pins_clock_and_units(board):
    platform = board.load_platform()
    assert platform.default_clk_frequency == board.clock_hz
    assert {("uart", 0), ("led", 0)} <= set(platform.resources)
    assert Design(board.clock_hz, board.baud, board_instances(board.units)).identity.units
    own = {kinds[0] for kinds in FAMILIES[board.family].cells.values()}
    assert own >= board.capacity.keys() - {"TRELLIS_FF"}


def test_unknown_names_are_listed():
    with pytest.raises(UnknownNameError, match=r"'zedboard'.*icebreaker"):
        find_board("zedboard")
    with pytest.raises(UnknownNameError, match=r"'adder'.*quantizer"):
        board_instances(["adder"])
    with pytest.raises(UnknownNameError, match="parameter 'lines'"):
        board_instances(["quantizer"], [], ["lines=16"])
    with pytest.raises(InputError, match=r"decoder.*quantizer, .*encoder"):
        build("icebreaker", [find_unit("activation_decoder").instance()])


def test_a_design_takes_any_parameters():
    (narrow,) = board_instances(["activation_quantizer"])
    assert folder_name([narrow]) == "quantizer"
    (wide,) = board_instances(["quantizer"], [], ["lanes=16"])
    assert wide.parameters == narrow.parameters | {"lanes": 16}
    assert folder_name([wide]) == "quantizer_bf16x8_lanes_16"
    (fp32,) = board_instances(["quantizer"], ["fp32x8"])
    assert fp32.facts.parameters["input_type"] == "fp32"
    dot, products = board_instances(
        ["dot", "accelerator"], ["dot.m2xfp-exact"], ["accelerator.max_k=64", "dot.depth=1"]
    )
    assert dot.facts.parameters["window"] is not None
    assert dot.parameters["depth"] == 1
    assert (products.parameters["max_k"], products.parameters["columns"]) == (64, 2)
    assert folder_name([dot, products]).startswith("dot_m2xfp_exact_depth_1-accelerator_")


@pytest.mark.parametrize(
    ("names", "configs", "settings", "message"),
    [
        (["dot", "accelerator"], [], ["depth=1"], r"depth=1: there are 2 units.*dot\.depth=1"),
        (["dot", "accelerator"], ["m2xfp-exact"], [], r"say which one: dot\.m2xfp-exact"),
        (["dot"], [], ["accelerator.depth=1"], "unit accelerator is not built"),
        (["quantizer"], [], ["lanes=3"], "lanes=3"),
        (["quantizer"], ["bf16x8", "fp16x8"], [], "bf16x8 and fp16x8: give one configuration"),
    ],
)
def test_parameters_that_belong_to_no_unit(names, configs, settings, message):
    with pytest.raises(InputError, match=message):
        board_instances(names, configs, settings)


def test_what_a_device_tells_of_a_unit_is_read_back():
    for name, unit in board_units().items():
        for config in unit.configs:
            (instance,) = board_instances([name], [config])
            found = instance_of_text(instance_text(instance))
            assert found.parameters == instance.parameters
            assert instance_text(found) == instance_text(instance)


def test_a_build_needs_a_unit_and_a_possible_rate():
    with pytest.raises(InputError, match="units"):
        build("icebreaker", [])
    with pytest.raises(InputError, match="baud=5000000"):
        build("icebreaker", baud=5_000_000)


@pytest.mark.parametrize(("groups", "faults", "name"), [(3, 0, "groups=3"), (12, -1, "faults=-1")])
def test_a_simulation_refuses_bad_counts(groups, faults, name):
    with pytest.raises(InputError, match=name):
        check_bitstream("icebreaker", groups=groups, faults=faults)


def test_a_chip_that_cannot_be_read_back_is_refused():
    with pytest.raises(InputError, match=r"tang-nano-9k: a gowin chip.*ice40, ecp5"):
        check_bitstream("tang-nano-9k")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_tools_that_pip_installs_are_found(monkeypatch, family):
    monkeypatch.setenv("PATH", "")
    for name in (family.nextpnr, family.packer):
        path, version = find_tool(name)
        assert Path(path).parent == Path(sys.executable).parent
        assert re.fullmatch(r"\S+ \d+(\.\w+)+", version)


def test_the_command_line_explains_itself_and_its_errors():
    runner = CliRunner()
    listing = runner.invoke(cli, ["fpga", "boards"])
    assert listing.exit_code == 0
    assert all(name in listing.output for name in BOARDS)
    wrong = runner.invoke(cli, ["fpga", "build", "zedboard"])
    assert isinstance(wrong.exception, M2xfpError)
    for command in ("boards", "build", "check", "table"):
        assert runner.invoke(cli, ["fpga", command, "--help"]).exit_code == 0


def test_cells_are_read_from_the_log():
    assert parse_utilisation(LOG) == {
        "ICESTORM_LC": Cells(6131, 5280),
        "ICESTORM_RAM": Cells(8, 30),
    }


def test_a_design_that_does_not_fit_says_what_it_needs_and_has(monkeypatch, tmp_path):
    """Through the whole build, with tools that only leave this log."""
    monkeypatch.setattr(build_module, "find_tool", lambda name: (name, "1"))

    def run(command, folder, log):
        (folder / "top.json").write_text('{"modules": {"top": {"cells": {}}}}')
        (folder / "nextpnr.log").write_text(LOG)
        return int(str(command[0]).startswith("nextpnr"))

    monkeypatch.setattr(build_module, "run_tool", run)
    with pytest.raises(FitError, match=r"needs 6131 of 5280 ICESTORM_LC; choose fewer units"):
        build("icebreaker", folder=tmp_path)
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize(("fmax", "needed"), [((10.0, 11.0, 12.5), 3), ((11.0,) * 8, None)])
def test_placements_are_tried_until_one_meets_the_clock(monkeypatch, tmp_path, fmax, needed):
    monkeypatch.setattr(build_module, "find_tool", lambda name: (name, "1"))
    placed = []

    def run(command, folder, log):
        (folder / "top.json").write_text('{"modules": {"top": {"cells": {}}}}')
        if str(command[0]).startswith("nextpnr"):
            clock = {"achieved": fmax[len(placed)], "constraint": 12.0}
            placed.append(command[command.index("--seed") + 1])
            (folder / "nextpnr.log").write_text("")
            used = {"ICESTORM_LC": {"used": 5, "available": 5280}}
            text = json.dumps({"fmax": {"clk": clock}, "utilization": used})
            (folder / "nextpnr.json").write_text(text)
        elif "packing-top.bin" in command:
            (folder / "packing-top.bin").write_bytes(b"\x7e")
        return 0

    monkeypatch.setattr(build_module, "run_tool", run)
    if needed is None:
        with pytest.raises(TimingError, match=r"reaches 11\.00 MHz and the clock is 12\.00 MHz"):
            build("icebreaker", folder=tmp_path)
        assert not (tmp_path / "report.json").exists()
        return
    report, folder = build("icebreaker", folder=tmp_path)
    assert placed == ["1", "2", "3"]
    assert (report.seed, report.fmax_mhz, report.cells["luts"]) == (3, 12.5, Cells(5, 5280))
    assert (folder / report.bitstream).read_bytes() == b"\x7e"
    assert build("icebreaker", folder=tmp_path)[0] == report
    assert len(placed) == 3  # the finished build was taken


@pytest.mark.parametrize("damage", ["top.bin", "report.json", "top.json", ".whole"])
def test_a_damaged_build_is_run_again(monkeypatch, tmp_path, damage):
    monkeypatch.setattr(build_module, "find_tool", lambda name: (name, "1"))
    packed = []

    def run(command, folder, log):
        (folder / "top.json").write_text('{"modules": {"top": {"cells": {}}}}')
        if str(command[0]).startswith("nextpnr"):
            (folder / "nextpnr.log").write_text("")
            clock = {"achieved": 13.0, "constraint": 12.0}
            text = json.dumps({"fmax": {"clk": clock}, "utilization": {}})
            (folder / "nextpnr.json").write_text(text)
        elif command[0] == "icepack":
            packed.append(command)
            (folder / "packing-top.bin").write_bytes(b"the bitstream")
        return 0

    monkeypatch.setattr(build_module, "run_tool", run)
    report, folder = build("icebreaker", folder=tmp_path)
    assert build("icebreaker", folder=tmp_path)[0] == report
    assert len(packed) == 1
    whole = (tmp_path / damage).read_bytes()
    for wrong in (whole[: len(whole) // 2], whole[:-2] + b"??", None):
        packed.clear()
        (tmp_path / damage).unlink() if wrong is None else (tmp_path / damage).write_bytes(wrong)
        assert build("icebreaker", folder=tmp_path)[0] == report
        assert len(packed) == 1
        assert (folder / report.bitstream).read_bytes() == b"the bitstream"


def test_a_disk_that_is_full_is_no_defect_of_the_design(monkeypatch, tmp_path):
    monkeypatch.setattr(build_module, "find_tool", lambda name: (name, "1"))
    script = "import sys; sys.exit('OSError: [Errno 28] No space left on device')"
    command = (sys.executable, "-c", script)
    monkeypatch.setattr(yosys, "yosys_command", lambda: (command, "yosys 1"))
    with pytest.raises(FileError, match=rf"{tmp_path}: No space left on device; make room"):
        build("icebreaker", folder=tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_the_clock_with_the_least_margin_counts():
    clocks = {"a": {"achieved": 50.0, "constraint": 12.0}, "b": {"achieved": 20, "constraint": 25}}
    assert parse_timing({"fmax": clocks}) == (20, 25)
    with pytest.raises(BuildError, match="no clock"):
        parse_timing({"fmax": {}})


def test_a_report_survives_its_file(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(report().to_json())
    assert BuildReport.load(path) == report()


def test_rates_follow_from_clocks_and_bytes():
    # Four beats a group, each 16 bytes and a tag.
    (rates,) = unit_rates(report())
    assert rates == UnitRates("quantizer", 4e6, 3e6, pytest.approx(1e5 / 68), None)
    # A beat a pair, 37 bytes and a tag; 32 products.
    (rates,) = unit_rates(report("dot"))
    assert rates == UnitRates("dot", 16e6, 12e6, pytest.approx(1e5 / 38), 32 * 16e6)
    # Two cells, whose operands are used again.
    (rates,) = unit_rates(report("accelerator"))
    assert rates == UnitRates("accelerator", 32e6, 24e6, None, 2 * 32 * 16e6)
    # Twelve clocks a group, though its four beats bring one in less.
    (rates,) = unit_rates(report("encoder"))
    assert rates == UnitRates(
        "encoder", pytest.approx(16e6 / 12), pytest.approx(1e6), pytest.approx(1e5 / 68), None
    )
    assert "0.51" in rate_table(rate_figures([report("dot")]))  # 32 * 16 MHz


def test_figures_of_other_boards_stay(monkeypatch, tmp_path):
    made = iter([report("quantizer", board="tang-nano-9k"), report("dot", board="icebreaker")])
    monkeypatch.setattr("m2xfp.fpga.flow.report.build", lambda *_: (next(made), tmp_path))
    write_results(tmp_path, ["tang-nano-9k"])
    figures = read_figures(write_results(tmp_path, ["icebreaker"]))
    assert [row["board"] for row in figures["builds"]] == ["icebreaker", "tang-nano-9k"]
    assert [row["unit"] for row in figures["rates"]] == ["dot", "quantizer"]
    assert figures["checks"] == []


def test_rates_are_those_that_were_accepted():
    figures = read_figures(Path("docs/results/fpga.json"))
    for built, rate in ((b, r) for b in figures["builds"] for r in figures["rates"]):
        if rate["board"] != built["board"] or rate["unit"] not in built["units"]:
            continue
        (found,) = rate_figures(
            [
                report(
                    rate["unit"],
                    **{key: built[key] for key in ("board", "clock_hz", "baud", "fmax_mhz")},
                )
            ]
        )
        assert found == pytest.approx(rate)


def test_a_look_up_table_is_read_as_written():
    text = "assign n9 = /* LUT    1  2  3 */ (n4 ? !n5 : (n6 ? n5 : 1'b0));"
    (lut,) = parse_icebox(text).luts
    assert (lut.place, lut.output, lut.inputs) == ("1 2 3", "n9", ("n4", "n5", "n6"))
    for row in range(8):
        n4, n5, n6 = (row >> n & 1 for n in range(3))
        assert lut.table >> row & 1 == ((1 - n5) if n4 else (n5 if n6 else 0))


def test_the_rest_of_a_bitstream_is_read_as_written():
    netlist = parse_icebox(
        """
module chip (input clk, input rx, output tx, output led);
wire n1, n2;
reg n3 = 0;
assign n1 = 1;
assign n2 = /* CARRY  1  1  0 */ (n1 & rx) | ((n1 | rx) & n3);
/* FF  1  1  0 */ always @(posedge clk) if (n1) n3 <= n2 ? 1'b1 : rx;
/* FF  1  1  1 */ assign n5 = n3;
// IO Cell (15, 0, 0)
assign tx = n1 ? n5 : 1'bz;
endmodule
"""
    )
    assert netlist.carries == (Carry("n2", (ONE, "rx", "n3")),)
    assert netlist.flip_flops == (FlipFlop("n3", "rx", ONE, "n2", 1, 0, False),)
    assert netlist.aliases == (Alias("n1", ONE), Alias("n5", "n3"))
    assert [(lut.output, lut.inputs, lut.table) for lut in netlist.luts] == [("tx", ("n5",), 0b10)]


@pytest.mark.parametrize(
    "statement",
    [
        "/* FF 1 1 0 */ always @(negedge clk) if (n1) n3 <= n2 ? 1'b1 : rx",
        "/* FF 1 1 0 */ always @(posedge n7) if (n1) n3 <= n2 ? 1'b1 : rx",
        "SB_PLL40_CORE #(.DIVF(1)) pll (.REFERENCECLK(clk))",
    ],
)
def test_nothing_in_a_bitstream_is_passed_over(statement):
    with pytest.raises(BuildError, match="cannot read back"):
        parse_icebox(f"{statement};\n")


def evaluate(netlist: Netlist, **known: int) -> dict[str, int]:
    """Return the nets of a netlist without flip-flops, from the Verilog that is written for it."""
    lines = netlist.verilog().splitlines()
    assigns = dict(
        line.removeprefix("assign ").removesuffix(";").split(" = ", 1)
        for line in lines
        if line.startswith("assign ")
    )
    value = {ZERO: 0, ONE: 1, **known}
    while len(value) < len(assigns) + len(known) + 2:
        for net, text in assigns.items():
            try:
                value[net] = eval(text.replace("rx_all", "rx"), {}, value) & 1
            except NameError:
                continue
    return value


@pytest.mark.parametrize("table", range(256))
def test_every_table_of_three_inputs_is_written_right(table):
    netlist = Netlist((Lut("1", "tx", ("a", "b", "c"), table),), ())
    for a, b, c in product((0, 1), repeat=3):
        assert evaluate(netlist, a=a, b=b, c=c)["tx"] == table >> (a + 2 * b + 4 * c) & 1


def test_an_ecp5_cell_reads_what_is_not_connected_as_one_and_chains_carries():
    def comb(bel, table, connections, **parameters):
        return {
            "type": "TRELLIS_COMB",
            "parameters": {"INITVAL": f"{table:016b}", **parameters},
            "attributes": {"NEXTPNR_BEL": f"X1/Y2/{bel}"},
            "connections": {port: [net] for port, net in connections.items()},
        }

    # A full adder in two halves of a slice, as nextpnr leaves it: carry in by the first one.
    ccu2 = {"MODE": "CCU2", "CCU2_INJECT1": "NO"}
    cells = {
        "feed": comb("0", 0x000A, {"A": 12, "FCO": 20}, **ccu2),
        "sum": comb(
            "1", 0x96AA, {"A": 10, "B": 11, "C": 30, "FCI": 20, "F": 21, "FCO": 22}, **ccu2
        ),
        "mux": comb("2", 0xAAAA, {"A": 10, "F1": 11, "M": 12, "F": 23, "OFX": 24}),
    }
    netlist = parse_routed({"cells": cells, "ports": {}})
    # INITVAL 96AA with C low and D high: A in the lower half, A xor B in the upper one.
    for a, b, c in product((0, 1), repeat=3):
        nets = evaluate(netlist, n10=a, n11=b, n12=c, n30=0)
        assert nets["n20"] == c
        assert nets["n21"] == a ^ b ^ c
        assert nets["n22"] == (a + b + c) // 2
        assert nets["n24"] == (b if c else a)
    assert all(lut.place for lut in netlist.luts if lut.output == "n23")


def test_an_ecp5_flip_flop_resets_with_the_chip():
    cells = {
        "gsr": {"type": "GSR", "parameters": {}, "connections": {"GSR": [5]}},
        "ff": {
            "type": "TRELLIS_FF",
            "parameters": {
                "CLKMUX": "CLK",
                "CEMUX": "CE",
                "LSRMUX": "LSR",
                "SRMODE": "LSR_OVER_CE",
                "GSR": "ENABLED",
                "REGSET": "SET",
                "SD": "1 ",
            },
            "connections": {"DI": [6], "Q": [7], "CE": [8], "LSR": []},
        },
    }
    netlist = parse_routed({"cells": cells, "ports": {}})
    (ff,) = netlist.flip_flops
    assert (ff.data, ff.output, ff.enable, ff.value, ff.start) == ("n6", "n7", "n8", 1, 1)
    assert evaluate(netlist, n5=0)[ff.reset] == 1
    assert evaluate(netlist, n5=1)[ff.reset] == 0
    cells["ff"]["parameters"]["CLKMUX"] = "INV"
    with pytest.raises(BuildError, match="cannot simulate the flip-flop ff"):
        parse_routed({"cells": cells, "ports": {}})


def wide_memory(**changes: str) -> dict:
    """Return a DP16KD of 36 bits as nextpnr routes it: A writes, B reads."""
    fixed = [f"{pin[:2]}{side}{pin[2:]}" for side in "AB" for pin in ("CS0", "CS1", "CS2")]
    parameters = {f"{pin}MUX": "INV" for pin in [*fixed, "RSTA", "RSTB", "WEB"]}
    for side in "AB":
        parameters |= {f"REGMODE_{side}": "NOREG", f"CSDECODE_{side}": "0b000"}
        parameters |= {f"DATA_WIDTH_{side}": f"{36:032b}", f"CLK{side}MUX": f"CLK{side}"}
    connections = {"CEB": [5], "DIB17": [6], "DOA0": [7], "ADA13": [8]}
    return {"type": "DP16KD", "parameters": parameters | changes, "connections": connections}


def test_a_wide_ecp5_memory_is_read():
    netlist = parse_routed({"cells": {"wide": wide_memory()}, "ports": {}})
    (memory,) = netlist.memories
    assert memory.model == "DP16KD_36"
    assert "WEB" not in memory.inputs
    assert memory.inputs["WEA"] == memory.inputs["CEA"] == (ONE,)
    assert memory.inputs["CEB"] == ("n5",)
    assert memory.inputs["DIB"][0] == "n6"
    assert memory.inputs["ADA"][0] == "n8"
    assert memory.outputs["DOA"][-1] == "n7"


@pytest.mark.parametrize(
    "changes",
    [{"WEBMUX": "WEB"}, {"DATA_WIDTH_B": f"{18:032b}"}, {"RSTAMUX": "RSTA"}, {"CLKAMUX": "INV"}],
    ids=str,
)
def test_an_ecp5_memory_used_otherwise_is_refused(changes):
    with pytest.raises(BuildError, match="cannot simulate the memory wide"):
        parse_routed({"cells": {"wide": wide_memory(**changes)}, "ports": {}})


WIDE_BENCH = """
module bench;
  reg clk = 0, ok = 1;
  reg [1:0] cea, ceb, wea;
  reg [13:0][1:0] ada, adb;
  reg [17:0][1:0] dia, dib;
  wire [17:0][1:0] doa, dob;
  DP16KD_36 #(.LANES(2)) dut (clk, clk, cea, ceb, wea, ada, adb, dia, dib, doa, dob);
  reg [35:0] words [0:1023];
  reg [35:0] given [0:1], expected [0:1], mask;
  reg [13:0] to [0:1], from [0:1];
  integer n, lane, b;
  initial begin
    for (n = 0; n < 1024; n = n + 1) words[n] = 0;
    expected[0] = 0; expected[1] = 0;
    for (n = 0; n < 20000; n = n + 1) begin
      cea = $urandom; ceb = $urandom; wea = $urandom;
      for (lane = 0; lane < 2; lane = lane + 1) begin
        given[lane] = {$urandom, $urandom};
        to[lane] = $urandom & 14'h00ff; from[lane] = $urandom & 14'h00ff;
        for (b = 0; b < 14; b = b + 1) begin
          ada[b][lane] = to[lane][b]; adb[b][lane] = from[lane][b];
        end
        for (b = 0; b < 18; b = b + 1) begin
          dia[b][lane] = given[lane][b]; dib[b][lane] = given[lane][18 + b];
        end
      end
      #1 clk = 1; #1;
      for (lane = 0; lane < 2; lane = lane + 1) begin
        if (ceb[lane]) expected[lane] = words[512 * lane + from[lane][13:5]];
        mask = {{9{to[lane][3]}}, {9{to[lane][2]}}, {9{to[lane][1]}}, {9{to[lane][0]}}};
        if (cea[lane] & wea[lane])
          words[512 * lane + to[lane][13:5]] =
            words[512 * lane + to[lane][13:5]] & ~mask | given[lane] & mask;
        for (b = 0; b < 18; b = b + 1)
          if (doa[b][lane] !== expected[lane][b] || dob[b][lane] !== expected[lane][18 + b]) ok = 0;
      end
      clk = 0; #1;
    end
    if (ok) $display("EQUAL"); else $display("DIFFERENT");
    $finish;
  end
endmodule
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("", "", "EQUAL"),
        ("address[2 + b / 9]", "address[b / 9]", "DIFFERENT"),
        ("DOB[d][m] <= value[18 + d]", "DOB[d][m] <= value[d]", "DIFFERENT"),
    ],
    ids=["as it is", "byte enables", "upper half"],
)
def test_the_model_of_a_wide_memory(tmp_path, old, new, told):
    """A byte of nine is written if its address bit says so; reading gives what was there before."""
    text = CELLS.read_text()
    assert old in text
    (tmp_path / "cells.v").write_text(text.replace(old, new) if old else text)
    (tmp_path / "bench.v").write_text(WIDE_BENCH)
    verilator = find_verilator()
    arguments = ["--binary", "--timing", "-Wno-fatal", "--top-module", "bench", "-O0"]
    done = verilator.run([*arguments, "bench.v", "cells.v"], tmp_path)
    assert not done.returncode, done.stdout
    command = [str(tmp_path / "obj_dir" / "Vbench")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert told in said


def test_constants_are_folded_and_nothing_else_changes():
    rng = random.Random(1)
    for _ in range(200):
        names = ["a", "b", ZERO, ONE]
        luts = []
        for n in range(6):
            inputs = tuple(rng.sample(names, rng.randint(0, min(4, len(names)))))
            luts.append(Lut(str(n), f"x{n}", inputs, rng.getrandbits(1 << len(inputs))))
            names.append(f"x{n}")
        netlist = Netlist(tuple(luts), ())
        folded = netlist.folded()
        assert not any({ZERO, ONE} & set(lut.inputs) for lut in folded.luts)
        for a, b in product((0, 1), repeat=2):
            assert evaluate(folded, a=a, b=b) == evaluate(netlist, a=a, b=b)


def small_netlist() -> Netlist:
    """Two registers, a decoder that excludes a combination, and a LUT that feeds nothing."""
    return Netlist(
        luts=(
            Lut("1", "both", ("p", "q"), 0b1000),
            Lut("2", "either", ("p", "q"), 0b1110),
            Lut("3", "d", ("both", "either"), 0b0110),
            Lut("4", "loose", ("p",), 0b10),
            Lut("", "tx", ("d",), 0b10),
        ),
        flip_flops=(
            FlipFlop("p", "rx", ONE, ZERO, 0, 0, False),
            FlipFlop("q", "p", ONE, ZERO, 0, 0, False),
        ),
    )


def test_faults_are_where_they_can_show():
    netlist = small_netlist()
    assert {lut.place for lut in netlist.used_luts()} == {"1", "2", "3"}
    last = netlist.luts[2]
    possible = [netlist.is_possible(Fault(last, entry)) for entry in range(4)]
    assert possible == [True, False, True, True]  # both registers, and not either: never
    assert len(netlist.possible_faults(whole=True)) == 3
    assert len(netlist.possible_faults(whole=False)) == 12


def test_faults_take_a_lane_each():
    netlist = small_netlist()
    faults = netlist.possible_faults(whole=True)
    text = netlist.verilog(3, faults)
    assert "wire [2:0] hit_0 = {3{batch == 16'd0}} & 3'd2;" in text
    assert "wire [2:0] hit_1 = {3{batch == 16'd0}} & 3'd4;" in text
    assert "wire [2:0] hit_2 = {3{batch == 16'd1}} & 3'd2;" in text
    assert "assign either = ((q) | (~q & p)) ^ hit_1;" in text or "^ hit_1;" in text


def test_values_exercise_a_quantizer():
    x = from_bits("bf16", patterns(np.random.default_rng(0), 2000))
    packed = get_format("m2xfp-act").quantize(x)
    assert (packed.scales == 0xFF).any()
    assert (packed.scales == 0).any()
    counts = np.bincount(packed.codes.numpy().ravel() & 15, minlength=16)
    assert counts.min() > 0.01 * counts.sum()


@pytest.mark.parametrize("unit", board_units())
def test_one_wrong_bit_is_noticed(unit, monkeypatch):
    """A unit that computes as the golden model does, and turns one bit of its eleventh answer."""
    (instance,) = board_instances([unit])
    remote = RemoteUnit(None, 0, instance, 1 << 14)
    left = [11]

    def run(arrays):
        found = remote.expected(arrays)
        left[0] -= 1
        if not left[0]:
            name, plane = next(iter(found.items()))
            found[name] = plane = plane.copy()
            plane.reshape(-1).view(np.uint8)[-1] ^= 1
        return found

    monkeypatch.setattr(remote, "run", run)
    device = SimpleNamespace(units={unit: remote})
    with pytest.raises(CheckError, match=f"{unit} differs.* 1 of "):
        traffic(device, None, 48, 0)
    assert left == [0]


@pytest.mark.parametrize(
    "answer",
    [
        lambda sent: b"",
        lambda sent: encode(Frame(Command.ECHO, 1, b"x")),
        lambda sent: encode(Frame(0, 0, status=Status.BAD_FRAME)),
    ],
    ids=["silence", "consent", "always bad"],
)
def test_what_must_be_refused_is(answer):
    with pytest.raises(CheckError, match="is answered with"):
        refusals(SimpleNamespace(exchange=answer))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_icebreaker_bitstream_computes_and_faults_show(tmp_path):
    shown = check_bitstream("icebreaker", folder=tmp_path, groups=120, faults=126)
    assert shown.source == "bitstream"
    assert shown.build.fmax_mhz >= shown.build.constraint_mhz
    assert shown.groups["quantizer"] >= 40
    assert shown.faults is not None
    # docs/fpga.md says why some cannot be.
    assert shown.faults.detected >= 0.95 * shown.faults.faults
    assert {survivor.reason for survivor in shown.faults.survivors} <= {"no effect"}
    again = build("icebreaker", folder=Path(tmp_path) / "again")[1] / "top.bin"
    assert again.read_bytes() == (tmp_path / "top.bin").read_bytes()


def test_no_buffer_is_read_while_it_is_written(tmp_path):
    """As builds tell yosys, so that it adds no logic for what would be read then."""
    text = verilog.convert(Link(104, 16), name="link", strip_internal_attrs=True)
    writes = {
        memory: name
        for name, memory in re.findall(r"if \((\\\S+) \)\s+(requests|results)\[.*\] <=", text)
    }
    netlist = flat_netlist.Netlist.of(text, "link", tmp_path)

    def never(*names: str) -> flat_netlist.Claim:
        return flat_netlist.Claim(tuple((netlist.bits(name)[0], 1) for name in names))

    claims = {never("fetch__en", writes["requests"]), never("drain__en", writes["results"])}
    assert flat_netlist.proved(netlist, claims, tmp_path) == claims
    assert not flat_netlist.proved(netlist, {never("fetch__en", writes["results"])}, tmp_path)
