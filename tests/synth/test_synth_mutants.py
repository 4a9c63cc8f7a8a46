"""Mutants: a fault that shows is killed, a poor regression lets it live, and proofs tell which."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from m2xfp.cli import cli
from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles, Port
from m2xfp.rtl.catalog import find_unit
from m2xfp.synth.mutants import report
from m2xfp.synth.mutants.equivalence import Prover, Verdict
from m2xfp.synth.mutants.kill import killer, measure
from m2xfp.synth.mutants.netlist import MutatedUnit, mutate, run_yosys
from m2xfp.tb.bench import find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator
from m2xfp.tb.regression import Case

UNIT = find_unit("activation_decoder")
INSTANCE = UNIT.instance()
COUNT, SEED = 30, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose name would be something else to a shell or to Tcl."""
    return tmp_path_factory.mktemp("a[exec_touch_x]b")


@pytest.fixture(scope="module")
def mutated(folder: Path) -> MutatedUnit:
    return mutate(INSTANCE, COUNT, SEED, folder)


def test_list(mutated: MutatedUnit, tmp_path: Path) -> None:
    """Faults are numbered, of different places, and the same for a seed."""
    assert [each.number for each in mutated.mutants] == list(range(1, COUNT + 1))
    assert len({each.fault for each in mutated.mutants}) == COUNT
    lines = mutated.unit.verilog.read_text().splitlines()
    for each in mutated.mutants:
        assert lines[each.line - 1].strip() == each.text
    assert mutate(INSTANCE, COUNT, SEED, tmp_path).mutants == mutated.mutants


def test_clocks_are_left_alone(tmp_path: Path) -> None:
    unit = find_unit("fp32_accumulator").instance("m2xfp-single")
    mutants = mutate(unit, 200, 3, tmp_path).mutants
    assert len(mutants) == 200
    assert not [each for each in mutants if "CLK" in each.fault]


@pytest.mark.slow
def test_what_memories_hold_at_first_is_left_alone(tmp_path: Path) -> None:
    """A fault there would be no constant, which is what it has to be."""
    settings = {"bus": "128", "encoder": None, "max_k": 64}
    unit = find_unit("accelerator").instance("m2xfp-2x2", settings, name="few")
    mutants = mutate(unit, 400, 1, tmp_path).mutants
    assert len(mutants) == 400
    assert "$meminit$" in (tmp_path / "list.txt").read_text()
    assert not [each for each in mutants if "$meminit$" in each.fault]


def test_tables_are_logic(tmp_path: Path) -> None:
    """A unit with a table of constants has mutants, some of them in the table."""
    unit = find_unit("minifloat_quantizer").instance("nvfp4-bf16x8")
    mutants = mutate(unit, 400, 1, tmp_path).mutants
    assert len(mutants) == 400
    assert [each for each in mutants if "boundaries" in each.fault]


def test_regression_kills(folder: Path) -> None:
    """The unit's regression kills all that are not equivalent; a crippled one does not."""
    good = measure(INSTANCE, COUNT, SEED, folder)
    fates = {each.mutant.number: each.fate for each in good}
    killed = [number for number, fate in fates.items() if fate == "killed"]
    assert len(killed) > COUNT // 2
    assert {*fates.values()} == {"killed", "equivalent"}
    zeros = {"codes": np.zeros((1, 8), np.uint8), "meta": np.zeros(1, np.uint8)}
    crippled = [Case("zeros", (find_bench(UNIT).vectors(zeros, INSTANCE.facts),))]
    poor = measure(INSTANCE, COUNT, SEED, folder, cases=crippled)
    alive = [each.mutant.number for each in poor if each.fate == "alive"]
    assert alive
    assert {*alive} <= {*killed}
    row = report.row_of(INSTANCE, SEED, poor)
    assert (row["mutants"], row["alive"]) == (COUNT, len(alive))
    assert len(row["survivors"]) == len(alive)


def test_proofs(mutated: MutatedUnit) -> None:
    """The unit equals itself, and no mutant that is killed is proved equal."""
    prover = Prover(mutated)
    assert prover.prove(0).same
    outcomes = measure(INSTANCE, COUNT, SEED, mutated.folder)
    killed = [each.mutant.number for each in outcomes if each.fate == "killed"][:4]
    for number in killed:
        assert prover.prove(number).same is False


def test_proofs_with_state(tmp_path: Path) -> None:
    """In a unit with registers, no mutant that is killed is proved equal."""
    unit = find_unit("fp32_accumulator").instance("m2xfp-single")
    mutated = mutate(unit, 40, 5, tmp_path)
    prover, simulator = Prover(mutated, 2), BulkSimulator(mutated.emitted, build_dir=tmp_path)
    cases = list(find_bench(unit.unit).regression(unit.facts))[:4]
    noticed = {each.number: killer(simulator, cases, each.number) for each in mutated.mutants}
    killed = [number for number, by in noticed.items() if by][:3]
    assert killed
    assert not [number for number in killed if prover.prove(number).same]


def test_no_mutants_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="count=0"):
        mutate(INSTANCE, 0, 1, tmp_path)


def test_command(folder: Path, tmp_path: Path) -> None:
    """Counts are printed, written and drawn."""
    call = ["mutate", UNIT.name, "--count", "5", "--seed", "4", "--accept"]
    call += ["--build-dir", str(folder / "build"), "--results", str(tmp_path)]
    done = CliRunner().invoke(cli, call, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "of 5 killed" in done.output
    tables = report.tables(tmp_path)
    assert "| `activation_decoder` | m2xfp" in tables["mutants"]


def test_command_of_some(folder: Path, tmp_path: Path) -> None:
    """Some mutants alone are looked at, and are none that are accepted."""
    call = ["mutate", UNIT.name, "--count", "5", "--seed", "4", "--only", "2", "--only", "5"]
    call += ["--build-dir", str(folder / "build"), "--results", str(tmp_path)]
    done = CliRunner().invoke(cli, call, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "of 2 killed" in done.output
    for more, said in ((["--accept"], "--accept"), (["--only", "6"], "there are 5")):
        with pytest.raises(InputError, match=said):
            CliRunner().invoke(cli, [*call, *more], catch_exceptions=False)
    assert not list(tmp_path.iterdir())


HELD = """
module unit(input clk, input rst, input [3:0] i, input [2:0] mutant, output [3:0] o, output s);
  reg [3:0] held;
  reg sum;
  wire [3:0] wrong = mutant == 1 ? {3'b0, held[0]} : mutant == 2 ? {3'b0, held[1]} : 4'b0;
  assign o = held ^ wrong;
  assign s = sum;
  always @(posedge clk) begin
    if (i[0]) held <= {i[3:1], 1'b0};
    sum <= rst & mutant != 3 ? 1'b0 : mutant == 4 ? (sum | i[1]) & ~(sum & i[1]) : sum ^ i[1];
  end
endmodule
"""


def test_proofs_from_zeros(tmp_path: Path) -> None:
    """What no register ever holds makes no difference; what one does, and a lost reset, do.

    The same function in other gates needs no look at what the registers hold.
    """
    unit = find_unit("fp32_accumulator").instance("m2xfp-single")
    ports = [Port("i", "input", 4), Port("o", "output", 4), Port("s", "output", 1)]
    (tmp_path / "unit.json").write_text(
        replace(unit.facts, streams=(), signals=tuple(ports)).to_json()
    )
    (tmp_path / "unit.v").write_text(HELD)
    run_yosys(tmp_path, "read", "read_verilog unit.v\nproc\nopt_clean\nwrite_rtlil mutated.il\n")
    files = EmittedFiles("unit", *(tmp_path / f"unit{suffix}" for suffix in (".v", ".json", "")))
    prover = Prover(MutatedUnit(files, files, [], tmp_path), 5)
    assert prover.prove(1) == Verdict(True, "after reset, from zeros")
    assert [prover.prove(number).same for number in (2, 3)] == [False, False]
    assert prover.prove(4) == Verdict(True, "in any state")


THREE = """
module unit(input clk, input rst, input [1:0] mutant, input [3:0] i, output reg [3:0] o);
  reg [3:0] words [0:2];
  wire [3:0] found = words[i[1:0]];
  always @(posedge clk) begin
    words[i[3:2]] <= i;
    o <= mutant == 1 ? found ^ 4'd0 : mutant == 2 ? ~found : found;
  end
endmodule
"""


def test_proofs_beside_a_memory_that_is_no_power_of_two(tmp_path: Path) -> None:
    """What lies beyond its last word has no value of its own, and is the same in both."""
    unit = find_unit("fp32_accumulator").instance("m2xfp-single")
    ports = [Port("i", "input", 4), Port("o", "output", 4)]
    (tmp_path / "unit.json").write_text(
        replace(unit.facts, streams=(), signals=tuple(ports)).to_json()
    )
    (tmp_path / "unit.v").write_text(THREE)
    script = "read_verilog unit.v\nproc\nmemory_collect\nopt_clean\nwrite_rtlil mutated.il\n"
    run_yosys(tmp_path, "read", script)
    files = EmittedFiles("unit", *(tmp_path / f"unit{suffix}" for suffix in (".v", ".json", "")))
    prover = Prover(MutatedUnit(files, files, [], tmp_path), 5)
    assert [prover.prove(number).same for number in (1, 2)] == [True, False]
