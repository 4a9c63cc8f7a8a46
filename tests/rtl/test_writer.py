"""The Verilog writer changes nothing: each module is proved equal to Amaranth's own."""

import re
from functools import cache
from pathlib import Path

import pytest
from choices import usual_first

from m2xfp.rtl.catalog import find_unit, select
from m2xfp.rtl.verilog.component import EmittedModule
from m2xfp.rtl.verilog.emit import yosys_verilog
from m2xfp.rtl.verilog.expression import Expression, parse, substitute
from m2xfp.rtl.verilog.writer import rewrite
from m2xfp.synth.formal.equivalence import NotEqualError
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
    "swapped operands of a subtraction": (r"= (\w+) - (\d'h\w+);", r"= \2 - \1;"),
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


@pytest.mark.parametrize(
    ("use", "value", "width", "place", "folded"),
    [
        ("a & t", "~ b", 1, 1, "a & ~b"),
        ("{ t, a }", "~ b", 1, 2, "{~b, a}"),
        ("v + t", "a & b", 1, 4, None),  # not at its own width there
        ("v + t", "~ b", 1, 4, None),  # would become four bits, three of them ones
        ("v + t", "v == w", 1, 4, "v + (v == w)"),
        ("v + w2", "v - w", 4, 5, None),
        ("{ w2, a }", "v - w", 4, 5, "{v - w, a}"),
        ("w2 == v", "v - w", 4, 1, "(v - w) == v"),
        ("t ? v : w", "a | b", 1, 4, "(a | b) ? v : w"),
        ("w2[1] & a", "v - w", 4, 1, None),  # no part of an expression
        ("| { t, a }", "~ b", 1, 1, "~b | a"),
    ],
)
def test_folding(use: str, value: str, width: int, place: int, folded: str | None) -> None:
    widths = {"a": 1, "b": 1, "t": 1, "v": 4, "w": 4, "w2": 4}
    outer, inner = parse(use, widths), parse(value, widths)
    assert outer
    assert inner
    assert inner.width == width
    result = substitute(outer, "t" if "t" in re.findall(r"\w+", use) else "w2", inner, place)
    assert (str(result) if result else None) == folded


@pytest.mark.parametrize("text", ["$signed(a) + $signed(b)", "f(a, b)", "- a", "a +", "other & a"])
def test_unknown_forms_stay(text: str) -> None:
    assert parse(text, {"a": 1, "b": 1}) is None
