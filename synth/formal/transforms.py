"""Jobs about the parts of a Walsh-Hadamard transform, from its definition in docs/rotation.md."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, never
from m2xfp.synth.formal.job import LIMIT, Job
from m2xfp.synth.formal.netlist import Flat, from_any_state, simple
from m2xfp.synth.formal.streams import harness

__all__ = ["JOBS"]

# Of bfloat16, and of where a sum lies in the port of its rounding.
MANTISSA, BIAS = 7, 127
ROUNDING = "sum_rounding"


def _applies(design: Design) -> bool:
    own = {"points", "lanes", "levels"} <= set(design.facts.parameters)
    return own and {"block_aligner", "normalise", "round"} <= set(design.modules)


def _aligned(netlist: Flat) -> list[str]:
    """Return: q = s trunc(|x| / u) with u = 2^(E - 127 - (bits - 1)), E at least x's exponent."""
    bits = len(netlist.ports["aligned"]) - 1
    return [
        "  wire [7:0] field = value[14:7] == 0 ? 8'd1 : value[14:7];",
        "  wire [7:0] significand = {value[14:7] != 0, value[6:0]};",
        f"  wire [{bits - 1}:0] size = {{significand, {bits - 1 - MANTISSA}'d0}};",
        f"  wire [{bits - 1}:0] cut = size >> (largest - field);",
        f"  wire signed [{bits}:0] expected = value[15] ? -$signed({{1'b0, cut}}) : cut;",
        "  assign bad = largest >= field & $signed(aligned) != expected;",
    ]


def _butterflies(netlist: Flat, lanes: int, distances: tuple[int, ...]) -> list[str]:
    """Return: each result is the sum of those as far away, signs as the matrix has them.

    The sign of lane j in lane k is -1 for each distance that both have as a bit.
    """
    width, size = (len(netlist.ports[port]) // lanes for port in "io")

    def total(k: int, lane: int, left: tuple[int, ...]) -> str:
        if not left:
            minus = sum(bool(k & lane & distance) for distance in distances) % 2
            return f"{'-' * minus}x{lane}"
        near, far = (total(k, at, left[:-1]) for at in (lane & ~left[-1], lane | left[-1]))
        return f"({near} + {far})"

    body = [
        f"  wire signed [{size - 1}:0] x{n} = $signed(i[{width * n} +: {width}]);"
        for n in range(lanes)
    ]
    body += [f"  wire signed [{size - 1}:0] y{k} = {total(k, k, distances)};" for k in range(lanes)]
    wrong = " | ".join(f"y{k} != $signed(o[{size * k} +: {size}])" for k in range(lanes))
    return [*body, f"  assign bad = {wrong};"]


def _lane_butterflies(design: Design) -> list[tuple[str, tuple[int, ...]]]:
    """Return the modules of butterflies between lanes with their distances, as stages have them."""
    given = design.facts.parameters
    points, lanes, levels = (given[name] for name in ("points", "lanes", "levels"))
    doublings = points.bit_length() - 1
    distances = [points >> n + 1 for n in range(doublings)]
    stages = -(-doublings // levels)
    size = -(-doublings // stages)
    within = [
        tuple(d for d in distances[n : n + size] if d < lanes) for n in range(0, doublings, size)
    ]
    names = ["lane_butterflies", *(f"lane_butterflies_{n}" for n in range(2, len(within) + 1))]
    # Equal stages are one module; as many bits more in each make them differ.
    return list(zip(names, [found for found in within if found], strict=False))


def _sum_rounded(netlist: Flat) -> list[str]:
    """Return: S u 2^-h to nearest bfloat16, ties to even, for any exponent of its top bit.

    ``i`` is S as a magnitude that is one short where S is negative, one place up, with the exponent
    E of that place: S counts 2^(E - 127 - size + 3), so bfloat16's field of a bit at p is
    p + E - size + 3, or 1 for those below it.
    """
    size = len(netlist.ports["i"]) - 13
    return [
        f"  wire negative = i[{size}];",
        f"  wire [{size - 1}:0] total = {{1'b0, i[{size - 1}:1]}} + negative;",
        f"  wire [8:0] exponent = i[{size + 2} +: 9];",
        f"  wire no_number = i[{size + 12}];",
        # As the unit gives it: the lowest place says that it is negative, a difference, no sign.
        f"  wire given = i[0] == negative & i[{size + 1}] & ~i[{size + 11}]",
        f"    & total[{size - 1}] <= negative & exponent >= 1 & exponent <= 9'd264;",
        "  integer n;",
        "  reg signed [11:0] top, field, down;",
        f"  reg [{size + 39}:0] wide;",
        f"  reg [{size + 39}:0] kept;",
        "  reg [17:0] code;",
        "  reg half, rest;",
        "  always @* begin",
        "    top = 0;",
        f"    for (n = 0; n < {size}; n = n + 1) if (total[n]) top = n;",
        f"    field = top + $signed({{3'b0, exponent}}) - {size - 3};",
        "    if (field < 1) field = 1;",
        # How many bits of S are below bfloat16's last place; 20 more below make it positive.
        f"    down = field - $signed({{3'b0, exponent}}) + {size - 3 - MANTISSA} + 20;",
        "    wide = {20'd0, total, 20'd0};",
        "    kept = down > 60 ? 0 : wide >> down;",
        "    half = down > 0 & down <= 60 ? wide[down - 1] : 0;",
        "    rest = 0;",
        f"    for (n = 0; n < {size + 40}; n = n + 1) if (n < down - 1) rest = rest | wide[n];",
        "    code = ((field - 1) << 7) + kept[8:0] + (half & (rest | kept[0]));",
        "    if (code > 18'h7f80) code = 18'h7f80;",
        "    if (total == 0) code = 0;",
        "  end",
        "  wire [15:0] expected = no_number ? 16'h7fc0",
        "    : {negative & total != 0, code[14:0]};",
        "  assign bad = given & acc != expected;",
    ]


def _with_rounding(design: Design) -> Design:
    """Return a unit with a module that normalises and rounds a sum, connected as in the unit."""
    top = design.facts.top
    bits = len(design.module("normalise").ports["i"])
    between = len(design.module("round").ports["i"])
    text = "\n".join(
        [
            f"module {top}_{ROUNDING}(input [{bits - 1}:0] i, output [15:0] acc);",
            f"  wire [{between - 1}:0] normalised;",
            f"  {top}_normalise first (.i(i), .o(normalised));",
            f"  {top}_round second (.i(normalised), .acc(acc));",
            "endmodule",
            "",
        ]
    )
    return replace(design, verilog=f"{design.verilog}\n{text}", _modules={})


def _prove(design: Design, module: str, body: Callable[[Flat], list[str]]) -> Outcome:
    netlist = from_any_state(simple(design.module(module)))
    return never(netlist.text, harness(netlist, body(netlist)), LIMIT)


def _all_butterflies(design: Design) -> Outcome:
    seconds, modules = 0.0, _lane_butterflies(design)
    lanes = design.facts.parameters["lanes"]
    for name, distances in modules:
        outcome = _prove(design, name, partial(_butterflies, lanes=lanes, distances=distances))
        seconds += outcome.seconds
        if not outcome.holds:
            return outcome
    return Outcome(True, "all inputs", seconds)


def _rounding_faults(design: Design) -> Iterator[Design]:
    return _with_rounding(design).gate_faults(ROUNDING)


JOBS = (
    Job(
        "aligned",
        "a value of a block, cut to the block's fixed point",
        "SAT sweeping",
        _applies,
        lambda d: _prove(d, "block_aligner", _aligned),
        lambda d: d.gate_faults("block_aligner"),
    ),
    Job(
        "butterflies",
        "sums and differences between lanes, signs as in Sylvester's matrix",
        "SAT sweeping",
        lambda d: _applies(d) and "lane_butterflies" in d.modules,
        _all_butterflies,
        lambda d: d.gate_faults("lane_butterflies"),
        slow=lambda d: d.facts.parameters["lanes"] > 8,
    ),
    Job(
        "sum-rounded",
        "a sum of a block, rounded once to bfloat16, for all sums and exponents",
        "SAT sweeping",
        _applies,
        lambda d: _prove(d if d.broken else _with_rounding(d), ROUNDING, _sum_rounded),
        _rounding_faults,
    ),
)
