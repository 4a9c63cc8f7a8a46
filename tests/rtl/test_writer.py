"""The Verilog writer changes nothing: each module is proved equal to Amaranth's own."""

import os
import re
import sys
from functools import cache
from pathlib import Path

import pytest
from choices import usual_first

from m2xfp.processes import run
from m2xfp.rtl.catalog import find_unit, select
from m2xfp.rtl.verilog.component import EmittedModule
from m2xfp.rtl.verilog.emit import yosys_verilog
from m2xfp.rtl.verilog.exact import exact, substitute
from m2xfp.rtl.verilog.expression import Expression, Names, parse, part
from m2xfp.rtl.verilog.writer import rewrite
from m2xfp.synth.formal.equivalence import NotEqualError, prove_equal, read
from m2xfp.synth.formal.written import prove_written

ALL = [(instance.unit.name, instance.config) for instance in select()]
# The first configuration of every unit, but a small one where that takes long.
USUAL = {unit: (unit, config) for unit, config in reversed(ALL)}
USUAL |= {
    "activation_quantizer": ("activation_quantizer", "bf16x8"),
    "weight_encoder": ("weight_encoder", "bf16-fixed-4"),
}

# Modules that are proved, as text before and after; configurations have many in common.
PROVED: set[tuple[str, str]] = set()


@cache
def raw_emission(unit: str, config: str) -> tuple[str, dict[str, EmittedModule]]:
    instance = find_unit(unit).instance(config)
    return yosys_verilog(instance.component, instance.top)


def module_texts(text: str) -> dict[str, str]:
    return {
        match[1]: match[0]
        for match in re.finditer(r"^module (\w+) .*?^endmodule$", text, re.MULTILINE | re.DOTALL)
    }


def prove(unit: str, config: str, folder: Path, text: str | None = None) -> None:
    """Prove ``text``, the writer's if None, equal to what Amaranth gives."""
    raw, modules = raw_emission(unit, config)
    text = text or rewrite(raw, modules)
    top = next(reversed(modules))
    texts = module_texts(text)
    assert texts.keys() == modules.keys()
    keys = {
        name: (module.rtlil.replace(top, "top"), texts[name].replace(top, "top"))
        for name, module in modules.items()
    }
    known = {name for name, key in keys.items() if key in PROVED}
    prove_written(raw, modules, text, folder, known)
    PROVED.update(keys.values())


@pytest.mark.parametrize("names", usual_first(ALL, USUAL.values()), ids="-".join)
def test_written_equals_amaranths(names: tuple[str, str], tmp_path: Path) -> None:
    prove(*names, tmp_path)


# A change of the written text, of its first place that fits, whatever the names are there.
PLANTED = {
    "swapped operands of a subtraction": (r"\((\w+) - (\d'h\w+)\)", r"(\2 - \1)"),
    "dropped inversion": (r"~(?=\w+ &)", ""),
    "wrong slice": (r"(\.\w+\(\w+)\[31:0\]", r"\1[32:1]"),
    "wire too narrow": (r"wire \[17:0\] (?=\w+ =)", "wire [16:0] "),
    "inverted enable": (r"if \((?!rst)(\w+)\) begin", r"if (~\1) begin"),
    "no enable": (r"if \((?!rst)(\w+)\) begin", "if (1'h1) begin"),
    "inverted reset": (r"if \(rst\) begin", "if (~rst) begin"),
    "other reset value": (r"<= 1'h0;", "<= 1'h1;"),
    "undefined reset value": (r"<= 1'h0;", "<= 1'hx;"),
    "swapped branches": (r"\? (\w+) : (\w+);", r"? \2 : \1;"),
    "swapped parts": (r"= \{(\w+), (\w+)\};", r"= {\2, \1};"),
    "other clock": (r"\.clk\(clk\)", ".clk(rst)"),
    "other edge": (r"posedge clk", "negedge clk"),
    "lost register": (r"(\w+) <= (?!1'h0)(\w+);", ""),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_the_proof_notices(fault: str, tmp_path: Path) -> None:
    names = "group_dot", "m2xfp"
    text = rewrite(*raw_emission(*names))
    prove(*names, tmp_path)
    wrong, places = re.subn(*PLANTED[fault], text, count=1)
    assert places
    with pytest.raises(NotEqualError):
        prove(*names, tmp_path, wrong)


def test_the_proof_notices_a_wrong_writer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A writer that forgets the parentheses."""
    names = "group_dot", "m2xfp"
    monkeypatch.setattr(Expression, "_inner", lambda self, operand: str(operand))
    with pytest.raises(NotEqualError, match="proof did fail"):
        prove(*names, tmp_path)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("alone", "equal"), [("alone & a & b & ~(a & c)", True), ("alone & a & b & c", False)]
)
def test_a_register_that_one_side_has(
    alone: str, equal: bool, swapped: bool, tmp_path: Path
) -> None:
    """It may decide nothing, nor what another register takes, which yosys does not see at once."""
    head = "module top (input clk, input a, input b, input c, output reg q); "
    body = "reg alone; always @(posedge clk) begin alone <= c; q <= {}; end endmodule"
    netlists = []
    for name, value in (("with", f"b ^ ({alone} & c)"), ("without", "b")):
        (tmp_path / f"{name}.v").write_text(head + body.format(value))
        netlists.append(read(tmp_path, f"read_verilog {name}.v"))
    kept, gone = netlists
    cells = [list(each.modules["top"]["cells"].values()) for each in netlists]
    assert [sum(c["type"] == "$_DFF_P_" for c in side) for side in cells] == [2, 1]
    sides = (gone, kept) if swapped else (kept, gone)
    if equal:
        prove_equal(tmp_path, *sides)
    else:
        with pytest.raises(NotEqualError, match="proof did fail"):
            prove_equal(tmp_path, *sides)


def no_cut(e: Expression) -> Expression:
    raise AssertionError(f"{e} needs a wire of its own")


NAMES = Names(
    {"a": 1, "b": 1, "t": 1, "v": 4, "w": 4, "w2": 4, "long": 16}, {"table": 4}, {"choice_0": 4}
)


@pytest.mark.parametrize(
    ("text", "width", "written"),
    [
        ("v + a", 4, "v + {3'h0, a}"),
        ("v + a", 5, "{1'h0, v} + {4'h0, a}"),
        ("v + 1'h1", 6, "{2'h0, v} + 6'h01"),
        ("v + 7'h41", 4, "v + 4'h1"),
        ("~ v", 6, "~{2'h0, v}"),
        ("~ v", 2, "~v[1:0]"),
        ("- v", 5, "-{1'h0, v}"),
        ("v & w", 6, "{2'h0, v} & {2'h0, w}"),
        ("v == w", 3, "{2'h0, v == w}"),
        ("v == 2'h2", 1, "v == 4'h2"),
        ("v == 6'h02", 1, "v == 4'h2"),
        ("v == 6'h22", 1, "{2'h0, v} == 6'h22"),
        ("long > v", 1, "long > {12'h000, v}"),
        ("! v", 1, "v == 4'h0"),
        ("! a", 1, "~a"),
        ("v && a", 1, "(|v) & a"),
        ("| v", 2, "{1'h0, |v}"),
        ("a ? v : w2[1:0]", 4, "a ? v : {2'h0, w2[1:0]}"),
        ("v ? a : b", 1, "(|v) ? a : b"),
        ("a ? 4'hx : v", 4, "v"),
        ("a ? v : 4'hx", 4, "v"),
        ("a ? v : 4'bx01x", 4, "a ? v : 4'h2"),
        ("$signed(v) + $signed(w)", 5, "{v[3], v} + {w[3], w}"),
        ("$signed(v) - $signed({ 1'h0, a })", 4, "v - {3'h0, a}"),
        ("$signed(v) < $signed(w2[1:0])", 1, "$signed(v) < $signed({w2[1], w2[1], w2[1:0]})"),
        (
            "$signed(v) * $signed(w)",
            5,
            "$unsigned($signed({v[3], v}) * $signed({w[3], w}))",
        ),
        ("v * w", 8, "{4'h0, v} * {4'h0, w}"),
        ("v << w", 6, "{2'h0, v} << w"),
        ("$signed(v) << w", 6, "{v[3], v[3], v} << w"),
        ("v >> w", 4, "v >> w"),
        ("v >> w", 6, "{2'h0, v >> w}"),
        ("$signed(v) >>> w", 4, "$unsigned($signed(v) >>> w)"),
        ("long >> { v[1:0], 2'h0 }", 4, "long[{v[1:0], 2'h0} +: 4]"),
        ("long >> { v[0], 2'h0 }", 4, "long[{1'h0, v[0], 2'h0} +: 4]"),
        # An index as wide as the whole wire asks for, where its lower part alone is meant.
        ("long[7:0] >> { v[0], 2'h0 }", 4, "long[{1'h0, v[0], 2'h0} +: 4]"),
        ("table[v]", 6, "{2'h0, table[v]}"),
        ("choice_0(4'hx, { v, w }, { a, b })", 4, "({4{b}} & w) | ({4{a}} & v)"),
        ("choice_0(4'h0, { v, 4'hf }, { a, b })", 4, "{4{b}} | ({4{a}} & v)"),
        ("choice_0(w2, { v, w }, { a, b })", 4, "(b | a) ? (({4{b}} & w) | ({4{a}} & v)) : w2"),
        (
            "choice_0(4'hx, { v, w }, w2[1:0])",
            2,
            "({w2[0], w2[0]} & w[1:0]) | ({w2[1], w2[1]} & v[1:0])",
        ),
    ],
)
def test_exact_widths(text: str, width: int, written: str) -> None:
    source = parse(text, NAMES)
    assert source
    value = exact(source, width, no_cut)
    assert value.width == width
    assert str(value) == written


@pytest.mark.parametrize("text", ["long >> v", "v >> w", "table[v]", "$signed(v) >>> w"])
def test_a_part_of_an_expression_is_cut_from_a_wire(text: str) -> None:
    """Verilog has no part of an expression."""
    cut: list[str] = []

    def wire(e: Expression) -> Expression:
        cut.append(str(e))
        return part("t9", 0, e.width, e.width)

    source = parse(text, NAMES)
    assert source
    assert str(exact(source, 2, wire)) == "t9[1:0]"
    assert len(cut) == 1


@pytest.mark.parametrize(
    ("use", "value", "folded"),
    [
        ("a & t", "~ b", "a & ~b"),
        ("{ t, a }", "~ b", "{~b, a}"),
        ("v + t", "a & b", "v + {3'h0, a & b}"),
        ("v + t", "v == w", "v + {3'h0, v == w}"),
        ("v + w2", "v - w", "v + (v - w)"),
        ("{ w2, a }", "v - w", "{v - w, a}"),
        ("w2 == v", "v - w", "(v - w) == v"),
        ("t ? v : w", "a | b", "(a | b) ? v : w"),
        ("w2[1] & a", "v - w", None),  # no part of an expression
        ("| { t, a }", "~ b", "~b | a"),
    ],
)
def test_folding(use: str, value: str, folded: str | None) -> None:
    outer, inner = parse(use, NAMES), parse(value, NAMES)
    assert outer
    assert inner
    name = "t" if "t" in re.findall(r"\w+", use) else "w2"
    result = substitute(exact(outer, outer.width, no_cut), name, exact(inner, inner.width, no_cut))
    assert (str(result) if result else None) == folded


@pytest.mark.parametrize("text", ["f(a, b)", "a +", "other & a", "a ** b", "choice_0(v, w)"])
def test_unknown_forms_stay(text: str) -> None:
    assert parse(text, NAMES) is None


def test_text_does_not_depend_on_the_hashes_of_strings(tmp_path: Path) -> None:
    """A unit with a ring of several wires, whose parts once were named in the order of a set."""
    program = (
        "import sys\n"
        "from m2xfp.rtl.catalog import find_unit\n"
        "from m2xfp.rtl.verilog.emit import emit\n"
        "unit = find_unit('asymmetric_dot_product').instance('e5m2-full-exact')\n"
        "print(emit(unit, sys.argv[1]).verilog.read_text())\n"
    )
    texts = set()
    for seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = run([sys.executable, "-c", program, str(tmp_path / seed)], environment=environment)
        assert done.returncode == 0, done.stdout
        texts.add(done.stdout)
    assert len(texts) == 1
