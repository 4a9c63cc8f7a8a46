"""Coverage: a regression that leaves nothing out, a poor one, and proofs that are none."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from m2xfp.cli import cli
from m2xfp.errors import InputError
from m2xfp.processes import run
from m2xfp.rtl.catalog import find_unit
from m2xfp.synth.coverage import record
from m2xfp.synth.coverage.claims import Reader
from m2xfp.synth.coverage.measure import Measured, measure
from m2xfp.synth.coverage.unreachable import Claim, Netlist, proved
from m2xfp.tb.bench import find_bench
from m2xfp.tb.bulk.simulator import COUNTING
from m2xfp.tb.cross import cross, merged
from m2xfp.tb.points import KINDS, Point, read_points
from m2xfp.tb.regression import Case
from m2xfp.tb.verilator import find_verilator

UNIT = find_unit("activation_decoder")
INSTANCE = UNIT.instance()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("coverage")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Measured:
    return measure(INSTANCE, folder)


@pytest.fixture(scope="module")
def poor(folder: Path) -> Measured:
    """Return what is covered by zeros and a one in the first lane."""
    codes = np.zeros((40, 8), np.uint8)
    codes[::2, 0] = 2
    arrays = {"codes": codes, "meta": np.zeros(40, np.uint8)}
    case = Case("zeros", (find_bench(UNIT).vectors(arrays, INSTANCE.facts),))
    return measure(INSTANCE, folder, cases=[case])


def test_regression_leaves_nothing_out(whole: Measured) -> None:
    assert not whole.holes
    assert not whole.surprises
    total, covered, shown, argued = whole.of("toggle")
    assert 0 < shown < covered
    assert (total, argued) == (covered + shown, 0)


def test_a_poor_regression_has_holes(whole: Measured, poor: Measured) -> None:
    """What it does not cover is told, and nothing that can be covered is proved not to be."""
    assert len(poor.holes) > 100
    assert any(hole.startswith("code in each lane: ") for hole in poor.holes)
    missed = {point for point, count in poor.counts.items() if not count}
    reached = {point for point, count in whole.counts.items() if count}
    assert missed & reached
    assert not poor.proved & reached
    assert poor.proved == whole.proved


def test_what_is_listed_must_not_be_covered(whole: Measured) -> None:
    listed = replace(whole, reasons={r"unit[.]codes\[0\]:0->1": "it never is"})
    assert listed.surprises == ["unit.codes[0]:0->1"]
    listed = replace(whole, reasons={"code in each lane: 0, 0": "it never is"})
    assert listed.surprises == ["code in each lane: 0, 0"]


def test_an_argument_fills_a_hole(poor: Measured) -> None:
    [hole, *_] = [name for name in poor.holes if name.endswith("0->1")]
    listed = replace(poor, reasons={hole.replace("[", "\\["): "only zeros come"})
    assert hole not in listed.holes
    assert "only zeros come" in record.row_of(listed)["argued"]


STAGES = """
module unit(input clk, input rst, input [3:0] i, output reg [3:0] o, output never, output late);
  reg [3:0] held;
  reg other;
  wire [4:0] sum = {1'b0, i[2:0]} + 5'd1;
  assign never = sum[4];
  assign late = held == 4'd9;
  always @(posedge clk) begin
    held <= {1'b0, i[2:0]};
    o <= held;
    other <= rst ? 1'b0 : other | late;
  end
endmodule
"""


def test_induction(tmp_path: Path) -> None:
    """Constants that follow from others over several stages are shown; what changes is not."""
    netlist = Netlist.of(STAGES, "unit", tmp_path)

    def claim(name: str, bit: int, value: int) -> Claim:
        bits = netlist.bits(name)
        assert bits is not None
        return Claim(((bits[bit], value),))

    true = {claim("never", 0, 1), claim("held", 3, 1), claim("o", 3, 1), claim("late", 0, 1)}
    true.add(claim("other", 0, 1))
    assert proved(netlist, true, tmp_path) == true
    false = {claim("o", 2, 1), claim("sum", 3, 1), claim("held", 0, 0)}
    assert proved(netlist, true | false, tmp_path, depth=2) == true
    # Without the register that it follows from, two clocks are needed.
    assert proved(netlist, {claim("late", 0, 1)}, tmp_path) == set()
    assert proved(netlist, {claim("late", 0, 1)}, tmp_path, depth=1) == {claim("late", 0, 1)}


TABLE = """
module unit(input clk, input [1:0] i, output [3:0] o__payload, output one__x);
  reg [3:0] t [0:3];
  reg [3:0] kept [0:3];
  initial begin t[0] = 1; t[1] = 5; t[2] = 9; t[3] = 0; end
  always @(posedge clk) kept[i] <= t[i];
  assign o__payload = t[i] ^ kept[i];
  assign one__x = 1'b1;
endmodule
"""


def test_what_never_changes(tmp_path: Path) -> None:
    """Constants and tables of them never do, by the names that Verilator gives; memories may."""
    netlist = Netlist.of(TABLE, "unit", tmp_path)
    reader = Reader(netlist, TABLE)

    def claims(what: str) -> set[Claim]:
        return set(reader.claims(Point("toggle", "", what, 1, 1), Counter()))

    for what in ("t[2][3]:0->1", "one___05Fx:0->1", "one___05Fx:1->0"):
        assert claims(what), what
        assert proved(netlist, claims(what), tmp_path) == claims(what)
    # What may change: there are claims, and they do not hold.
    for what in ("kept[2][3]:0->1", "o___05Fpayload[0]:0->1"):
        assert claims(what), what
        assert not proved(netlist, claims(what), tmp_path)


SIDES = """
module unit(input clk, input rst, input i, output reg o);
  wire never = i & ~i;
  wire other = i;
  reg [1:0] held;
  always @(posedge clk) begin
    if (never) begin
      o <= 1'b1;
    end else if (~held[1]) begin
      o <= i;
    end
    if (other) begin
      held <= {1'b0, i};
    end
  end
endmodule
"""


def test_statements_that_a_wire_decides(tmp_path: Path) -> None:
    """What is never executed follows from the wire of its condition, or from the other value."""
    netlist = Netlist.of(SIDES, "unit", tmp_path)
    reader, lines = Reader(netlist, SIDES), SIDES.splitlines()

    def claims(what: str, text: str) -> set[Claim]:
        line = next(number for number, each in enumerate(lines, 1) if text in each)
        return set(reader.claims(Point("branch", "", what, line, 5), Counter()))

    for what, text in (("if", "if (never)"), ("else", "if (~held[1])")):
        assert claims(what, text), text
        assert proved(netlist, claims(what, text), tmp_path, depth=1) == claims(what, text), text
    assert not claims("else", "if (never)")  # it always is
    for what, text in (("if", "if (other)"), ("else", "if (other)")):
        assert claims(what, text), text
        assert not proved(netlist, claims(what, text), tmp_path, depth=1), text


def test_points(tmp_path: Path) -> None:
    path = tmp_path / "coverage.dat"
    path.write_text(
        "# SystemC::Coverage-3\n"
        "C '\1f\2u.v\1l\0027\1n\0023\1page\2v_toggle/u\1o\2t[1]:0->1\1h\2top.u.unit' 3\n"
    )
    assert read_points(path) == {Point("toggle", "unit", "t[1]:0->1", 7, 3): 3}
    path.write_text("C 'nonsense\n")
    with pytest.raises(InputError, match="no point of coverage"):
        read_points(path)


def test_cross() -> None:
    """Events are counted where they are possible, and told where they are not."""
    axes = {"a": "xy", "b": range(2)}
    found = merged(
        [cross("c", axes, [0, 1, 9], [1, 1, 0], possible=[[True, True], [True, False]])]
    )["c"]
    assert (found.bins, found.covered) == (3, 1)
    assert found.holes == ["c: x, 0", "c: y, 0"]
    assert found.surprises == ["c: y, 1"]


def test_command(tmp_path: Path) -> None:
    """Counts are printed, written and drawn."""
    call = ["coverage", UNIT.name, "--accept", "--results", str(tmp_path)]
    call += ["--build-dir", str(tmp_path / "build")]
    done = CliRunner().invoke(cli, call, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "0 holes" in done.output
    tables = record.tables(tmp_path)
    assert "| `activation_decoder` | m2xfp" in tables["coverage"]
    assert all(kind in tables["coverage"] for kind in KINDS)


COUNTED = """
#include "obj/verilated_cov.h"
#include <cstdio>

int main() {
    VlWide<4> now{}, before{};
    uint32_t counts[2 * 100] = {};
    now[0] = 1u << 3;
    VL_COV_TOGGLE_CHG_ST_W(100, counts, now, before);
    for (int n = 0; n < 200; ++n)
        if (counts[n]) std::printf("%d:%u ", n, counts[n]);
    before = now;
    now[0] = 0, now[3] = 1u << 2;
    VL_COV_TOGGLE_CHG_ST_W(100, counts, now, before);
    for (int n = 0; n < 200; ++n)
        if (counts[n]) std::printf("%d:%u ", n, counts[n]);
}
"""


def test_a_bit_of_a_wide_signal_counts_as_itself_alone(tmp_path: Path) -> None:
    """Verilator 5.048 counts one as a bit of each word above it, too."""
    for name, text in COUNTING.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    (tmp_path / "main.cpp").write_text(COUNTED)
    verilator = find_verilator()
    asked = [str(verilator.executable), "--getenv", "VERILATOR_ROOT"]
    root = Path(run(asked, environment=verilator.environment).stdout.strip())
    call = ["g++", "-std=gnu++20", "-O1", "-I.", f"-I{root / 'include'}", "-o", "main", "main.cpp"]
    done = run(call, cwd=tmp_path)
    assert not done.returncode, done.stdout
    assert run([str(tmp_path / "main")]).stdout.split() == ["7:1", "6:1", "7:1", "197:1"]
