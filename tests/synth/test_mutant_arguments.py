"""What is argued of mutants: that no more is let through, and that the arguments hold."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles, Port
from m2xfp.formats import block_format
from m2xfp.rtl.catalog import UNITS, find_unit, select
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.formal.engines import abc
from m2xfp.synth.mutants.aig import Aig, Logic
from m2xfp.synth.mutants.arguments import to_logic
from m2xfp.synth.mutants.equivalence import Prover, cut_registers
from m2xfp.synth.mutants.netlist import MutatedUnit, run_yosys
from m2xfp.tb.arguments import Argument, Never
from m2xfp.tb.bench import Cover
from m2xfp.tb.units import hadamard_quantizer

# Of a word, 2 is said to be 3 where ``high`` is set. Mutants: 1 makes 3 of 2 then, 2 always, 3
# makes 1 of it, 4 does what 1 does and turns an output too, 5 and a register.
WORDS = """
module part(input [1:0] i, input [2:0] mutant, input high, output [1:0] o);
  wire [1:0] changed = mutant == 3 ? 2'd1 : 2'd3;
  wire may = mutant == 2 | mutant == 3 | (mutant != 0 & high);
  assign o = i == 2 & may ? changed : i;
endmodule
module unit(input clk, input rst, input [1:0] i, input [2:0] mutant, output [1:0] o, output s);
  reg [1:0] held;
  reg high, other;
  wire [1:0] found;
  part named(.i(i), .mutant(mutant), .high(high), .o(found));
  assign o = held;
  assign s = other ^ (mutant == 4);
  always @(posedge clk) begin
    held <= found;
    high <= i[0];
    other <= i[1] ^ (mutant == 5);
  end
endmodule
"""
# The same in registers. Mutants: 1 makes 3 of 2 where ``h`` becomes high, 2 where it is, 3 always.
HELD = """
module part(input clk, input [1:0] i, input [2:0] mutant, output reg [1:0] o, output reg h);
  reg g;
  wire may = mutant == 1 ? g : mutant == 2 ? h : mutant == 3;
  always @(posedge clk) begin
    g <= i[0];
    h <= g;
    o <= i == 2 & may ? 2'd3 : i;
  end
endmodule
module unit(input clk, input rst, input [1:0] i, input [2:0] mutant, output [1:0] o, output s);
  part named(.clk(clk), .i(i), .mutant(mutant), .o(o), .h(s));
endmodule
"""
ARGUED = Argument(
    "named",
    ("o",),
    "assign alike = high & right == 2 & wrong == 3;",
    "two is as good as three",
    {"high": "high"},
)


def words(folder: Path, *arguments: Argument | Never, text: str = WORDS) -> Prover:
    """Return a prover of the mutants of ``WORDS``."""
    unit = find_unit("fp32_accumulator").instance("m2xfp-single")
    ports = [Port("i", "input", 2), Port("o", "output", 2), Port("s", "output", 1)]
    (folder / "unit.json").write_text(
        replace(unit.facts, streams=(), signals=tuple(ports)).to_json()
    )
    (folder / "unit.v").write_text(text)
    script = ("read_verilog unit.v", "hierarchy -top unit", "proc", "flatten", "opt_clean")
    run_yosys(folder, "read", "\n".join([*script, "write_rtlil mutated.il", ""]))
    files = EmittedFiles("unit", *(folder / f"unit{suffix}" for suffix in (".v", ".json", "")))
    return Prover(MutatedUnit(files, files, [], folder), 5, arguments)


def test_only_what_is_argued(tmp_path: Path) -> None:
    """A mutant passes if the word alone differs, and to a value that is alike."""
    prover = words(tmp_path, ARGUED)
    assert [prover.argue(number) for number in range(6)] == ["", ARGUED.why, "", "", "", ""]
    assert prover.prove(1).same is False


def test_only_where_it_never_is(tmp_path: Path) -> None:
    """A mutant passes if it differs only where wires have what they never have."""
    never = Never("named", {"i": "i", "high": "high"}, "assign holds = i == 2 & high;", "so it is")
    other = Never("named", {"i": "i"}, "assign holds = i == 1;", "of no use")
    prover = words(tmp_path, other, never)
    assert [prover.argue(number) for number in range(6)] == ["", never.why, "", "", "", ""]
    both = replace(never, holds="assign holds = i == 2;")
    prover = words(tmp_path, other, both)
    assert [prover.argue(n) for n in range(6)] == ["", *[both.why] * 3, "", ""]


def test_registers_that_hold_what_is_alike(tmp_path: Path) -> None:
    """Of registers it is what they hold next that may be alike, to what others hold next."""
    argument = Argument(
        "named", ("o",), "assign alike = high & right == 2 & wrong == 3;", "so it is", {"high": "h"}
    )
    prover = words(tmp_path, argument, text=HELD)
    assert [prover.argue(number) for number in range(4)] == ["", argument.why, "", ""]


def test_no_such_wire(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="elsewhere"):
        words(tmp_path, replace(ARGUED, instance="elsewhere"))


@pytest.mark.parametrize("name", UNITS)
def test_wires(name: str, tmp_path: Path) -> None:
    """What a testbench argues about are wires of its unit."""
    unit = find_unit(name)
    instance = min(select(name), key=lambda each: sum(width for *_, width in each.facts.ports()))
    arguments = Cover(unit).argued(instance.facts)
    if not arguments:
        return
    files = emit(instance, tmp_path)
    script = [f"read_verilog {files.verilog.name}", f"hierarchy -top {files.top}", "proc"]
    run_yosys(tmp_path, "flat", "\n".join([*script, "flatten", "write_json flat.json", ""]))
    (module,) = json.loads((tmp_path / "flat.json").read_text())["modules"].values()
    for argument in arguments:
        for wire in argument.wires:
            there = [each for each in module["netnames"] if each.endswith(f".{wire}")]
            assert [
                each
                for each in there
                if re.fullmatch(argument.instance, each.removesuffix(f".{wire}"))
            ], (argument.instance, wire)


@pytest.mark.parametrize("block", ["m2xfp-act", "mxfp8-e4m3"])
def test_small_results(block: str, tmp_path: Path) -> None:
    """The line of Verilog lets results pass up to the limit that the golden model is tried with."""
    facts = find_unit("hadamard_quantizer").instance("32x8", {"block": block_format(block)}).facts
    below = hadamard_quantizer.negligible(facts)
    assert below is not None
    rng = np.random.default_rng(3)
    for lane in (0, 1):
        argument = hadamard_quantizer.argued(facts)[2 * lane]
        (tmp_path / "related.sv").write_text(
            argument.module({"right": 16, "wrong": 16, "largest": 8})
        )
        relation = to_logic(tmp_path, "related", "read_verilog -sv related.sv")
        for largest in (*range(1, 30), 127, 253, 254, 255):
            field = largest - 3 - below[lane]
            limit = field << 7 if field >= 1 else 0
            if -6 <= field < 1 and largest > 1:
                limit = 1 << (field + 6)
            for _ in range(6):
                right, wrong = (int(limit + rng.integers(-2, 3)) & 0x7FFF for _ in range(2))
                wrong |= int(rng.integers(0, 4) == 0) << 15
                found = Aig().add(
                    relation,
                    {
                        name: [value >> n & 1 for n in range(bits)]
                        for name, value, bits in (
                            ("right", right, 16),
                            ("wrong", wrong, 16),
                            ("largest", largest, 8),
                        )
                    },
                )
                same = not wrong >> 15 and max(right, wrong & 0x7FFF) <= limit
                infinite = right >= 0x7F80 and wrong & 0x7FFF >= 0x7F80
                assert found["alike"][0] == int(same or infinite), (largest, right, wrong)


# --- addends of FP32 sums -----------------------------------------------------------------------

# ``one`` is acc + addend, the accumulator's modules one after the other. ``places`` is how much
# lower the significand of the second addend stands; the addend's exponent is that of acc and
# ``apart``. Exponents are those that products have, and the top bit of the first addend is set.
SUMS = """
module one(input [31:0] acc, input [N+12:0] addend, output [31:0] o);
  wire [{aligned}:0] a;
  wire [{summed}:0] b;
  wire [{normal}:0] c;
  {top}_align align(.acc(acc), .addend(addend), .o(a));
  {top}_add add(.i(a), .o(b));
  {top}_normalise normalise(.i(b), .o(c));
  {top}_round round(.i(c), .acc(o));
endmodule
module sums(input [31:0] acc, input [N-1:0] digits, input negative, input [4:0] places,
    input signed [11:0] apart, output differ, output strange, output far);
  wire signed [11:0] from = $signed({{4'd0, acc[30:23] == 0 ? 8'd1 : acc[30:23]}});
  wire signed [11:0] exponent = from + apart, other = exponent + places;
  wire [N-1:0] low = (digits | 1 << (N - 1)) >> places;
  wire [N+12:0] right = {{2'b01, negative, exponent[9:0], low << places}};
  wire [N+12:0] wrong = {{2'b01, negative, other[9:0], low}};
  wire [31:0] found, expected;
  wire alike;
  one first(.acc(acc), .addend(right), .o(expected));
  one second(.acc(acc), .addend(wrong), .o(found));
  related relation(.right(right), .wrong(wrong), .alike(alike));
  wire legal = exponent >= -260 & exponent <= 420 & acc[30:23] != 255;
  assign differ = legal & found != expected;
  assign strange = legal & ~alike;
  assign far = differ & (apart > N + 6 | apart < -N - 22);
endmodule
"""
PAIRS = {
    "micromix-8": "switching_dot_product",
    "mxfp8-mxfp4-fp32": "dot_product",
    "micromix-2x2": "mixed_gemm",
}
LARGE = [pytest.param(name, marks=[pytest.mark.slow] * (name == "micromix-2x2")) for name in PAIRS]


@pytest.fixture(scope="module", params=LARGE)
def sums(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Sums":
    return Sums(request.param, tmp_path_factory.mktemp("sums"))


def possible(folder: Path, aig: Aig, bad: int) -> bool:
    """Return whether some inputs make a literal true."""
    aig.write(folder / "case.aig", bad)
    said = abc(folder, "read_aiger case.aig; iprove", 300)
    found = re.search(r"\b(UNSATISFIABLE|SATISFIABLE)\b", said)
    assert found, said
    return found[1] == "SATISFIABLE"


class Sums:
    """The addition of a unit, twice.

    Parameters
    ----------
    config
        A configuration of ``PAIRS``.
    folder
        For all files.
    """

    def __init__(self, config: str, folder: Path) -> None:
        self.folder = folder
        unit = find_unit(PAIRS[config]).instance(config)
        files = emit(unit, folder)
        text = files.verilog.read_text()

        def top_bit(module: str, port: str) -> int:
            found = re.search(rf"module \w+_{module} \(.*?\[(\d+):0\]\s+{port}\b", text, re.S)
            assert found
            return int(found[1])

        self.bits = top_bit("align", "addend") - 12
        tops = {"aligned": "align", "summed": "add", "normal": "normalise"}
        harness = SUMS.format(
            top=files.top, **{name: top_bit(module, "o") for name, module in tops.items()}
        ).replace("N", str(self.bits))
        argument = Cover(unit.unit).argued(unit.facts)[0]
        widths = dict.fromkeys(("right", "wrong"), self.bits + 13)
        (folder / "sums.sv").write_text(argument.module(widths) + harness)
        read = f"read_verilog -sv sums.sv {files.verilog.name}\nhierarchy -top sums\nflatten"
        self.logic: Logic = to_logic(folder, "sums", read)

    def differ(self, places: int, apart: int | None, output: str = "differ") -> bool:
        """Return whether any two sums do, with addends and exponents so far apart.

        None for any exponents.
        """
        aig = Aig()
        given: dict[str, Sequence[int]] = {"places": [places >> n & 1 for n in range(5)]}
        if apart is not None:
            given["apart"] = [apart >> n & 1 for n in range(12)]
        for name, literals in self.logic.inputs.items():
            if name not in given:
                given[name] = aig.add_inputs(len(literals))
        (bad,) = aig.add(self.logic, given)[output]
        if bad < 2:
            return bool(bad)
        return possible(self.folder, aig, bad)


def test_low_addends(sums: Sums) -> None:
    """An addend in lower places gives the same sum, up to so many places and no more."""
    most = sums.bits - 24
    for places, apart in ((1, -2), (1, 1), (most, -most // 2), (most, 30)):
        assert not sums.differ(places, apart, "strange")
        assert not sums.differ(places, apart)
    assert sums.differ(most + 1, most + 1)
    assert sums.differ(most + 1, 1, "strange")


@pytest.mark.slow
def test_low_addends_of_all_exponents(sums: Sums) -> None:
    """Each distance at which anything of an operand is left of the last place, and all beyond."""
    for places in range(1, sums.bits - 23):
        assert not sums.differ(places, None, "far")
        for apart in range(-sums.bits - 22, sums.bits + 7):
            assert not sums.differ(places, apart), (places, apart)


# --- bytes behind a piece -------------------------------------------------------------------------


# What the writer's last stage holds, and where that counts.
STAGE = {"out.spare": "out.spare_valid", "out.o__payload": "out.o__valid"}


class Writer:
    """The accelerator's writer, twice, that hold different bytes and strobes.

    Parameters
    ----------
    folder
        For all files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        unit = find_unit("accelerator").instance("m2xfp-2x2")
        files = emit(unit, folder)
        (top,) = re.findall(r"^module (\w+_axi_writer) ", files.verilog.read_text(), re.M)
        script = (f"read_verilog {files.verilog.name}", f"hierarchy -top {top}", "proc", "flatten")
        run_yosys(folder, "writer", "\n".join([*script, "dffunmap", "write_json writer.json", ""]))
        (module,) = json.loads((folder / "writer.json").read_text())["modules"].values()
        cut = cut_registers(module)
        (folder / "cut.json").write_text(json.dumps({"modules": {"cut": cut}}))
        self.logic: Logic = to_logic(folder, "cut", "read_json cut.json")
        at = {bit: n for n, bit in enumerate(cut["ports"]["state_"]["bits"])}
        wires = {"strobes", "bytes_left", "left", "burst", *STAGE.values(), *STAGE}
        self.at = {
            name: [at[bit] for bit in module["netnames"][name]["bits"]] for name in sorted(wires)
        }
        arguments = Cover(unit.unit).argued(unit.facts)
        self.argued = [
            each for each in arguments if isinstance(each, Argument) and each.word[0] in wires
        ]
        assert len(self.argued) == 2

    def differ(self, arguments: Sequence[Argument]) -> bool:
        """Return whether what is alike may differ in an output or become what is not alike."""
        aig, widths = Aig(), {name: len(places) for name, places in self.at.items()}
        ports = {name: aig.add_inputs(len(bits)) for name, bits in self.logic.inputs.items()}
        # What its last stage holds counts where it is valid.
        held = "assign alike = ~valid | right == wrong;"
        arguments = [
            *arguments,
            *(Argument("", (word,), held, "", {"valid": valid}) for word, valid in STAGE.items()),
        ]
        states = [ports["state_"], list(ports["state_"])]
        kept = [n for each in arguments for n in self.at[each.word[0]]]
        for n, literal in zip(kept, aig.add_inputs(len(kept)), strict=True):
            states[1][n] = literal
        results = [aig.add(self.logic, ports | {"state_": state}) for state in states]

        def alike(contents: list[list[int]]) -> int:
            found = 1
            for argument in arguments:
                word = argument.word[0]
                sides = {"right": widths[word], "wrong": widths[word]}
                reads = {name: widths[wire] for name, wire in argument.reads.items()}
                file = f"alike_{word}"
                (self.folder / f"{file}.sv").write_text(argument.module(sides | reads))
                relation = to_logic(self.folder, file, f"read_verilog -sv {file}.sv")
                words = ([each[n] for n in self.at[word]] for each in contents)
                given = dict(zip(sides, words, strict=True))
                for name, wire in argument.reads.items():
                    given[name] = [contents[0][n] for n in self.at[wire]]
                found = aig.both(found, aig.add(relation, given)["alike"][0])
            return found

        right, wrong = results
        apart = [
            aig.both(aig.differ(*two), right["w__valid"][0] if name == "w__payload" else 1)
            for name in right
            for n, two in enumerate(zip(right[name], wrong[name], strict=True))
            if name != "next_" or n not in set(kept)
        ]
        becomes = alike([result["next_"] for result in results]) ^ 1
        bad = aig.both(alike(states), aig.any([*apart, becomes]))
        return possible(self.folder, aig, bad)


def test_bytes_behind_a_piece(tmp_path: Path) -> None:
    """Words that a piece does not lie in are never looked at, in any state and for all time."""
    writer = Writer(tmp_path)
    assert not writer.differ(writer.argued)
    fewer = [
        replace(each, alike=each.alike.replace("32'd0 +", "32'hffffffff +"))
        for each in writer.argued
    ]
    assert fewer != writer.argued
    assert writer.differ(fewer)
