"""Jobs about quantizers whose scales are minifloats: scales, codes and metadata of exact quotients.

References are from sections 3, 4 and 8 of docs/format.md: both sides of a comparison with the
middle between two codes, multiplied by the scale, are integers, so nothing is divided. A value
comes as the unit stores it, (1 + m) 2^(e - offset), 0 standing for all that decides nothing; with
two levels it stands over the power of two of the tensor scale, whose significand is ``unit``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from m2xfp.formats import BlockFormat, FloatElement, block_format
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, never
from m2xfp.synth.formal.job import LIMIT, Job, always_slow
from m2xfp.synth.formal.netlist import from_any_state, simple
from m2xfp.synth.formal.parts import refined
from m2xfp.synth.formal.streams import harness

__all__ = ["JOBS"]

SCALE, LANE, BOUNDARIES, REFINER = (
    *("minifloat_scale", "ratio_rounder", "scale_boundaries"),
    "ratio_refiner",
)
# The lane with what it compares with and what refines it, connected as in the unit.
WHOLE = "ratio_lane"


@dataclass(frozen=True)
class _Numbers:
    """How values and scales compare.

    Members
    -------
    block, grid
        The format, and the minifloat of its scales.
    exponent, mantissa, unit
        Bits of a stored value, and of a tensor scale's mantissa.
    """

    block: BlockFormat
    grid: FloatElement
    exponent: int
    mantissa: int
    unit: int

    @classmethod
    def of(cls, design: Design) -> "_Numbers":
        block = block_format(design.facts.parameters["block"])
        assert block.scale.grid is not None
        ports = design.module(LANE).ports
        unit = len(design.module(SCALE).ports.get("unit", ()))
        return cls(block, block.scale.grid, len(ports["exponent"]), len(ports["mantissa"]), unit)

    def value(self, more: int = 0) -> str:
        """Return |x| as an integer, in steps that ``steps`` counts."""
        return f"({{{self._bits}'d1, mantissa}} << exponent)" + f" << {self._left + more}"

    @property
    def _bits(self) -> int:
        return (1 << self.exponent) + self.unit + 12

    @property
    def width(self) -> int:
        """Bits that hold both sides of a comparison."""
        return self._bits + self.mantissa + self._left

    @property
    def _shift(self) -> int:
        """What the exponent of the scale's smallest step is, in the value's last places."""
        offset = (1 << self.exponent - 1) - 1
        lowest = 1 - self.grid.bias - self.grid.mantissa_bits
        return offset + self.mantissa + lowest - self.unit

    @property
    def _left(self) -> int:
        return max(0, 8 - self._shift)

    def steps(self, count: Fraction, name: str) -> str:
        """Return ``count`` times the smallest step of a scale, times ``name``, as an integer."""
        number = count * 2 ** (self._shift + self._left)
        assert number.denominator == 1
        return f"({self.width}'d{int(number)} * {name})"

    def rounded(self, element: FloatElement, value: str, steps: str, ties: str) -> str:
        """Return the code nearest to value over steps, as a sum of what it is beyond."""
        terms = []
        for code in range(element.max_code):
            middle = (element.magnitude(code) + element.magnitude(code + 1)) / 2
            sign = ">=" if ties == "away" or code % 2 else ">"
            terms.append(f"({value} {sign} {self.steps(middle, steps)})")
        return " + ".join(terms)


def _scale(numbers: _Numbers) -> list[str]:
    """Return: the minifloat nearest to amax / 6 over the tensor scale, saturating."""
    grid, ties = numbers.grid, numbers.block.ties
    largest = numbers.block.element.max_value
    unit = grid.magnitude(1)
    terms = []
    for code in range(grid.max_code):
        middle = (grid.magnitude(code) + grid.magnitude(code + 1)) / 2 / unit * largest
        sign = ">=" if ties == "away" or code % 2 else ">"
        terms.append(f"(size {sign} {numbers.steps(middle, 'tensor')})")
    one = next(c for c in range(grid.max_code + 1) if grid.magnitude(c) == 1)
    # A scale that rounds to zero is one, but of E4M3, where it is zero.
    nothing = 0 if numbers.block.scale.name == "e4m3" else one
    exponent = f"key[{numbers.mantissa} +: {numbers.exponent}]"
    return [
        f"  wire [{numbers.exponent - 1}:0] exponent = {exponent};",
        f"  wire [{numbers.mantissa - 1}:0] mantissa = key[{numbers.mantissa - 1}:0];",
        f"  wire [{numbers.width - 1}:0] size = {numbers.value()};",
        f"  wire [{numbers.width - 1}:0] tensor = {_tensor(numbers)};",
        f"  wire [7:0] nearest = exponent == 0 ? 0 : {' + '.join(terms)};",
        f"  assign bad = code != (nearest == 0 ? {nothing} : nearest);",
    ]


def _tensor(numbers: _Numbers) -> str:
    return "{1'b1, unit}" if numbers.unit else "1"


def _codes(numbers: _Numbers) -> list[str]:
    """Return: the code of a value over any scale, and its metadata as a subgroup's top element.

    Of two scales none is zero.
    """
    grid, block = numbers.grid, numbers.block
    element = block.element
    assert isinstance(element, FloatElement)
    width, field = numbers.width, grid.mantissa_bits
    fine = refined(block)
    body = [
        f"  wire [{width - 1}:0] size = {numbers.value()};",
        f"  wire [6:0] field = code >> {field};",
        f"  wire [{field - 1}:0] low = code[{field - 1}:0];",
        f"  wire [{width - 1}:0] significand = field == 0 ? low : {{1'b1, low}} << (field - 1);",
        f"  wire [{width - 1}:0] scale = significand * {_tensor(numbers)};",
        f"  wire known = code <= {grid.max_code}{' & code != 0' * (block.scaling == 'split')};",
        "  wire nothing = exponent == 0 | code == 0;",
        "  wire [2:0] coarse = nothing ? 0 : "
        + numbers.rounded(element, "size", "scale", block.ties)
        + ";",
    ]
    bad = "magnitude != coarse"
    if fine is not None:
        step = block.metadata.bits
        body += [
            "  wire signed [7:0] finer = nothing ? 0 : "
            + numbers.rounded(fine, "size", "scale", "even")
            + ";",
            f"  wire signed [7:0] lowest = {{1'b0, coarse}} << {step};",
            f"  wire signed [7:0] highest = lowest + {(1 << step) - 1};",
            "  wire signed [7:0] kept = finer + 1 < lowest ? lowest",
            "    : finer + 1 > highest ? highest : finer + 1;",
            f"  wire [{step - 1}:0] expected = kept - lowest;",
        ]
        bad = f"({bad} | meta != expected)"
    return [*body, f"  assign bad = known & {bad};"]


def _with_lane(design: Design) -> Design:
    """Return a unit with a module of a lane and what it needs, connected as in the unit."""
    top, lane = design.facts.top, design.module(LANE).ports
    parts = {name: design.module(name).ports for name in (BOUNDARIES, LANE)}
    if REFINER in design.modules:
        parts[REFINER] = design.module(REFINER).ports
    wires = {name: len(bits) for name, bits in parts[BOUNDARIES].items()}
    given = {"exponent": len(lane["exponent"]), "mantissa": len(lane["mantissa"]), "code": 7}
    given |= {"unit": wires["unit"]} if "unit" in wires else {}
    split = block_format(design.facts.parameters["block"]).scaling == "split"
    # The unit makes all codes zero where the only scale is zero.
    none = "origin" if split else f"origin | {{{wires['origin']}{{zero}}}}"
    special = {
        (LANE, "origin"): none,
        (LANE, "fraction"): "significand",
        (REFINER, "odd"): "magnitude[0]",
        (REFINER, "divisor"): "significand",
        (REFINER, "poisoned"): "1'b0",
    }
    results = {"magnitude": 3} | ({"meta": 2} if REFINER in parts else {})
    inner = {name: bits for name, bits in wires.items() if name not in given}
    inner["place"] = len(lane["place"])
    ports = [f"input [{bits - 1}:0] {name}" for name, bits in given.items()]
    ports += [f"output [{bits - 1}:0] {name}" for name, bits in results.items()]
    text = [f"module {top}_{WHOLE}({', '.join(ports)});"]
    text += [f"  wire [{bits - 1}:0] {name};" for name, bits in inner.items()]
    for part, pins in parts.items():
        wired = [f".{pin}({special.get((part, pin), pin)})" for pin in pins]
        text.append(f"  {top}_{part} {part} ({', '.join(wired)});")
    return replace(design, verilog="\n".join([design.verilog, *text, "endmodule", ""]), _modules={})


def _prove(design: Design, module: str, body: list[str]) -> Outcome:
    netlist = from_any_state(simple(design.module(module)))
    return never(netlist.text, harness(netlist, body), LIMIT)


def _lane_faults(design: Design) -> Iterator[Design]:
    return _with_lane(design).gate_faults(WHOLE)


def _applies(design: Design) -> bool:
    own = {"block", "tensor_scale"} <= set(design.facts.parameters)
    return own and {SCALE, LANE, BOUNDARIES} <= set(design.modules)


JOBS = (
    Job(
        "minifloat-scale",
        "the scale of a group as a minifloat, from the exact quotient, for all largest values",
        "SAT sweeping",
        lambda d: _applies(d) and not d.facts.parameters["tensor_scale"],
        lambda d: _prove(d, SCALE, _scale(_Numbers.of(d))),
        lambda d: d.gate_faults(SCALE),
        slow=always_slow,
    ),
    Job(
        "ratio-codes",
        "code and metadata of a value from its exact quotient with any scale that is a minifloat",
        "SAT sweeping",
        _applies,
        lambda d: _prove(d if d.broken else _with_lane(d), WHOLE, _codes(_Numbers.of(d))),
        _lane_faults,
        slow=always_slow,
    ),
)
