"""The stream rules as assertions: they hold for units, and stop a simulation that breaks them."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from m2xfp.cli import cli
from m2xfp.facts import EmittedFiles, Facts
from m2xfp.tb.protocol.rules import rules_text
from m2xfp.tb.verilator import find_verilator

# A unit whose output stalls after two beats, and a writer that breaks what +fault names. The output
# of the unit itself breaks a rule where the fault forces it to.
BENCH = """\
module bench;
  reg clk = 0, rst = 1, valid = 0, last = 0, ready = 1, moved = 0;
  reg [{width}:0] data = 0;
  wire taken;
  integer fault = 0, n;
  {top} unit (.clk(clk), .rst(rst), .s_axis_tvalid(valid), .s_axis_tready(taken),
    .s_axis_tlast(last), .s_axis_tdata(data), .m_axis_tready(ready),
    .m_axis_tvalid(), .m_axis_tlast(), .m_axis_tdata());
  always #5 clk = ~clk;
  initial begin
    if (!$value$plusargs("fault=%d", fault)) fault = 0;
    repeat (3) @(negedge clk);
    rst = 0;
    for (n = 0; n < 40; n = n + 1) begin
      @(negedge clk);
      ready = n < 4 || n > 20;
      valid = 1;
      if (moved) data = data + 1;
      if (n == 18 && !taken) begin
        if (fault == 1) valid = 0;
        if (fault == 2) data = data + 3;
        if (fault == 3) last = ~last;
        if (fault == 4) force unit.m_axis_tvalid = 0;
        if (fault == 5) force unit.m_axis_tdata = 7;
      end
      moved = valid && taken;
    end
    if (fault == 6) begin
      rst = 1;
      force unit.m_axis_tvalid = 1;
      repeat (2) @(negedge clk);
      rst = 0;
      repeat (2) @(negedge clk);
    end
    $display("came to its end");
    $finish;
  end
endmodule
"""

FAULTS = [
    (0, ""),
    (1, "s_axis: valid dropped"),
    (2, "s_axis: the payload changed"),
    (3, "s_axis: the payload changed"),
    (4, "m_axis: valid dropped"),
    (5, "m_axis: the payload changed"),
    (6, "m_axis: valid right after reset"),
]


@pytest.fixture(scope="module")
def simulation(
    emitted: Callable[[str, str], EmittedFiles], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the compiled bench with the rules bound to the unit."""
    files = emitted("group_dot", "mxfp4")
    facts = Facts.load(files.json)
    folder = tmp_path_factory.mktemp("rules")
    (folder / "rules.sv").write_text(rules_text(facts))
    (folder / "unit.v").write_text(files.verilog.read_text())
    width = 8 * facts.inputs[0].bytes - 1
    (folder / "bench.sv").write_text(BENCH.format(top=files.top, width=width))
    done = find_verilator().run(
        [
            *("--binary", "--timing", "--assert", "-Wno-fatal", "--top-module", "bench"),
            *("-Mdir", "obj", "-o", "bench", "bench.sv", "unit.v", "rules.sv"),
        ],
        folder,
    )
    assert done.returncode == 0, done.stdout
    return folder / "obj" / "bench"


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_violations_end_the_simulation(simulation: Path, fault: int, message: str) -> None:
    done = subprocess.run(
        [simulation, f"+fault={fault}"], capture_output=True, text=True, check=False
    )
    assert ("came to its end" in done.stdout) == (not message), done.stdout
    assert (done.returncode == 0) == (not message)
    assert message in done.stdout + done.stderr


def test_command_writes_them(tmp_path: Path) -> None:
    call = ["verilog", "group_dot", "--config", "mxfp4", "--rules", "-o", str(tmp_path)]
    done = CliRunner().invoke(cli, call, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "group_dot_mxfp4_rules.sv").read_text()
    assert "bind group_dot_mxfp4 group_dot_mxfp4_rules rules (.*);" in text
    assert text == rules_text(Facts.load(tmp_path / "group_dot_mxfp4.json"))
