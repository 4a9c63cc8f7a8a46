"""Jobs about the lanes of a unit that switches between formats, for each pair of elements."""

from collections.abc import Iterator
from dataclasses import replace

from m2xfp.formats import FloatElement, IntElement
from m2xfp.pairs import PairSet, pair_set
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, never
from m2xfp.synth.formal.job import LIMIT, Job
from m2xfp.synth.formal.netlist import from_any_state, simple
from m2xfp.synth.formal.streams import harness

__all__ = ["JOBS"]

LANE, SHIFT, WHOLE = "wide_lane", "wide_shift", "wide_product"

Element = FloatElement | IntElement


def _pairs(design: Design) -> PairSet:
    return pair_set(design.facts.parameters["pairs"])


def _elements(pairs: PairSet, side: int) -> list[Element]:
    """Return the elements of a side in wide pairs, each once."""
    return list(dict.fromkeys(pair[side].element for pair in pairs.wide))


def _value(element: Element, name: str, mantissa: int) -> list[str]:
    """Return a code's value as ``size`` * 2^``up`` with a sign, in the longest mantissa's places.

    sig * 2^(max(e, 1) - 1) with sig = h.m (docs/format.md, section 7); of INT8 the code itself.
    """
    code, sign = f"{name}_code", element.bits - 1
    if isinstance(element, IntElement):
        size, up = f"{code}[{sign}] ? -{code}[{sign}:0] : {code}[{sign}:0]", "0"
    else:
        bits = element.mantissa_bits
        field = f"{code}[{bits} +: {element.exponent_bits}]"
        size = f"{{{field} != 0, {code}[{bits - 1}:0]}} << {mantissa - bits}"
        up = f"{field} == 0 ? 0 : {field} - 1'd1"
    return [
        f"  wire {name}_sign = {code}[{sign}];",
        f"  wire [7:0] {name}_size = {size};",
        f"  wire [4:0] {name}_up = {up};",
    ]


def _form(element: Element, code: str, mantissa: int, exponent: int, size: int) -> str:
    """Return a code as lanes take it: mantissa at its upper end, exponent, sign, integer apart."""
    if isinstance(element, IntElement):
        return f"{{{code}[{element.bits - 1}:0], {size - 8}'d0}}"
    bits = element.mantissa_bits
    parts = [f"{code}[{element.bits - 1}]"]
    if above := exponent - element.exponent_bits:
        parts.append(f"{above}'d0")
    parts.append(f"{code}[{element.bits - 2}:0]")
    if below := mantissa - bits:
        parts.append(f"{below}'d0")
    if rest := size - mantissa - exponent - 1:
        parts.insert(0, f"{rest}'d0")
    return f"{{{', '.join(parts)}}}"


def _special(element: Element, code: str) -> str:
    """Return whether a code is a NaN or an infinity."""
    if isinstance(element, IntElement) or element.bits < 8:
        return "1'b0"
    return f"{code}[6:0] > {element.max_code}"


def _product(design: Design, pair: tuple[Element, Element]) -> list[str]:
    """Return: the product of any two codes of a pair of elements, as integers."""
    pairs, width = _pairs(design), len(design.module(WHOLE).ports["product"])
    body = []
    for side, (name, element) in enumerate(zip("xw", pair, strict=True)):
        body += _value(element, name, pairs.mantissa_bits(side))
        body.append(f"  wire {name}_special = {_special(element, f'{name}_code')};")
    return [
        *body,
        "  wire [15:0] both = x_size * w_size;",
        "  wire [5:0] up = x_up + w_up;",
        f"  wire [{width - 1}:0] size = both << up;",
        f"  wire [{width - 1}:0] expected = x_sign ^ w_sign ? -size : size;",
        "  wire none = x_special | w_special;",
        "  assign bad = special != none | (~none & product != expected);",
    ]


def _with_product(design: Design, pair: tuple[Element, Element]) -> Design:
    """Return a unit with a module of a lane and its shift, connected as in the unit.

    It takes codes of a pair of elements.
    """
    top, lane, shift = design.facts.top, *(design.module(name).ports for name in (LANE, SHIFT))
    pairs, forms = _pairs(design), []
    for side, (name, element) in enumerate(zip("xw", pair, strict=True)):
        floats = [each for each in _elements(pairs, side) if isinstance(each, FloatElement)]
        exponent = max((each.exponent_bits for each in floats), default=0)
        mantissa, size = pairs.mantissa_bits(side), len(lane[name])
        form = _form(element, f"{name}_code", mantissa, exponent, size)
        forms.append(f"  wire [{size - 1}:0] {name} = {form};")
    text = [
        f"module {top}_{WHOLE}(input [7:0] x_code, input [7:0] w_code,",
        f"  output special, output [{len(shift['product']) - 1}:0] product);",
        *forms,
        f"  wire [{len(lane['o']) - 1}:0] o;",
        f"  {top}_{LANE} first (.x(x), .w(w), .o(o), .special(special));",
        f"  {top}_{SHIFT} second (.i(o), .product(product));",
        "endmodule",
        "",
    ]
    return replace(design, verilog="\n".join([design.verilog, *text]), _modules={})


def _wide(design: Design) -> list[tuple[Element, Element]]:
    """Return the pairs of wide elements, each once."""
    return list(dict.fromkeys((act.element, weight.element) for act, weight in _pairs(design).wide))


def _prove(design: Design) -> Outcome:
    """Prove it for each pair; a fault is in the lane of the first one."""
    seconds, pairs = 0.0, _wide(design)
    for pair in pairs[:1] if design.broken else pairs:
        whole = design if design.broken else _with_product(design, pair)
        netlist = from_any_state(simple(whole.module(WHOLE)))
        outcome = never(netlist.text, harness(netlist, _product(whole, pair)), LIMIT)
        seconds += outcome.seconds
        if not outcome.holds:
            return outcome
    return Outcome(True, f"{len(pairs)} pairs", seconds)


def _faults(design: Design) -> Iterator[Design]:
    return _with_product(design, _wide(design)[0]).gate_faults(WHOLE)


JOBS = (
    Job(
        "wide-product",
        "the product of any two codes of each pair of elements that a unit switches between",
        "SAT sweeping",
        lambda d: {LANE, SHIFT} <= set(d.modules) and "pairs" in d.facts.parameters,
        _prove,
        _faults,
    ),
)
