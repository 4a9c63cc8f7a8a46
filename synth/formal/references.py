"""What emitted modules compute, written from the definition of the formats (docs/format.md).

Each function returns the body of a harness (see ``streams``): Verilog that computes, in the
plainest way, what the module's outputs must be, and sets ``bad`` where they are not. Nothing of it
is taken from the hardware's description; only the places of fields in ports are the module's.
"""

from collections.abc import Sequence

from m2xfp.facts import Facts
from m2xfp.formats import BlockFormat, FloatElement, InputType
from m2xfp.synth.formal.netlist import Flat

__all__ = [
    "accumulated",
    "addend",
    "class_part",
    "decoder",
    "lane_product",
    "propagated",
    "scaled_product",
]

# Signs of activations and weights, 1 for negative; None where one is as good as the other.
Signs = tuple[int | None, int | None]


# Twice an E2M1 magnitude: 0 .5 1 1.5 2 3 4 6.
TWICE_E2M1 = """
  function [3:0] twice(input [2:0] code);
    case (code)
      0: twice = 0; 1: twice = 1; 2: twice = 2; 3: twice = 3;
      4: twice = 4; 5: twice = 6; 6: twice = 8; 7: twice = 12;
    endcase
  endfunction
  function signed [4:0] doubled(input [3:0] code);
    doubled = code[3] ? -$signed({1'b0, twice(code[2:0])}) : $signed({1'b0, twice(code[2:0])});
  endfunction
"""
# Eight times an E2M3 magnitude: m for exponent field 0, (8 + m) * 2^(e - 1) above.
EIGHTFOLD_E2M3 = """
  function [5:0] eightfold(input [4:0] code);
    eightfold = code[4:3] == 0 ? code[2:0] : {1'b1, code[2:0]} << (code[4:3] - 1);
  endfunction
"""


def width(netlist: Flat, port: str) -> int:
    """Return the bits of a port."""
    return len(netlist.ports[port])


def lane_product(netlist: Flat) -> list[str]:
    """Return: the product of two E2M1 codes is (2x)(2w), or zero if it is not to be taken."""
    taken = "take ? doubled(x) * doubled(w) : 0" if "take" in netlist.ports else ""
    return [
        TWICE_E2M1,
        f"  wire signed [8:0] expected = {taken or 'doubled(x) * doubled(w)'};",
        "  assign bad = product != expected;",
    ]


def decoder(netlist: Flat) -> list[str]:
    """Return: top-1 element and refinement of an Elem-EM subgroup (section 4)."""
    lanes = width(netlist, "codes") // 4
    return [
        TWICE_E2M1,
        EIGHTFOLD_E2M3,
        "  integer n;",
        "  reg [2:0] c4;",
        f"  reg [{lanes - 1}:0] where;",
        "  always @* begin",
        "    c4 = codes[2:0]; where = 1;",
        f"    for (n = 1; n < {lanes}; n = n + 1)",
        "      if (codes[4*n +: 3] > c4) begin c4 = codes[4*n +: 3]; where = 1 << n; end",
        "  end",
        "  wire [5:0] fine = {1'b0, c4, 2'b00} + meta;",
        "  wire [5:0] refined = eightfold(fine == 0 ? 0 : fine - 1);",
        "  wire signed [7:0] expected = $signed({2'b00, refined})",
        "    - $signed({2'b00, twice(c4), 2'b00});",
        "  wire signed [7:0] size = $signed(8'd1) <<< refinement[1:0];",
        "  wire signed [7:0] given = refinement[3] ? (refinement[2] ? -size : size) : 8'sd0;",
        "  assign bad = top != where | given != expected;",
    ]


def part_sum(netlist: Flat) -> list[str]:
    """Return: P of a part, 4 sum (2x)(2w) + r 2w(top), or sum (2x)(2w) without refinement."""
    lanes = width(netlist, "x") // 4
    bits = width(netlist, "total")
    refined = "top" in netlist.ports
    terms = [f"doubled(x[{4 * n} +: 4]) * doubled(w[{4 * n} +: 4])" for n in range(lanes)]
    products = [f"  wire signed [{bits}:0] p{n} = {term};" for n, term in enumerate(terms)]
    names = [f"p{n}" for n in range(lanes)]
    while len(names) > 1:
        names = [f"({' + '.join(names[n : n + 2])})" for n in range(0, len(names), 2)]
    body = [TWICE_E2M1, *products, f"  wire signed [{bits}:0] plain = {names[0]};"]
    if not refined:
        return [*body, "  assign bad = $signed(total) != plain;"]
    return [
        *body,
        "  integer n;",
        "  reg signed [4:0] weight;",
        "  reg sign;",
        "  always @* begin",
        "    weight = 0; sign = 0;",
        f"    for (n = 0; n < {lanes}; n = n + 1)",
        "      if (top[n]) begin weight = doubled(w[4*n +: 4]); sign = x[4*n + 3]; end",
        "  end",
        "  wire one_hot = top != 0 & (top & (top - 1'd1)) == 0;",
        f"  wire signed [{bits}:0] size = weight <<< refinement[1:0];",
        "  wire minus = sign ^ refinement[2];",
        f"  wire signed [{bits}:0] more = ~refinement[3] ? 0 : minus ? -size : size;",
        "  assign bad = one_hot & $signed(total) != plain * 4 + more;",
    ]


def class_part(netlist: Flat, *, told: tuple[bool, bool], classes: Sequence[Signs]) -> list[str]:
    """Return: sums of products by the signs of their operands.

    ``told`` says of which sides ``signs`` has the sign that counts, and each of ``classes`` the
    signs of a sum beside; of two signs the sum is one of magnitudes.
    """
    lanes = width(netlist, "x") // 4
    bits = width(netlist, "totals") // len(classes)
    body, bad = [TWICE_E2M1], []
    for number, (act, weight) in enumerate(classes):
        terms = []
        for n in range(lanes):
            x, w = (f"{name}[{4 * n} +: 4]" for name in "xw")
            conditions = []
            for name, sign, beat in zip("xw", (act, weight), told, strict=True):
                top = f"{name}[{4 * n + 3}]"
                if sign is not None:
                    conditions.append(f"{top} == {sign}")
                elif beat:
                    place = width(netlist, "signs") - 1 if name == "x" else 0
                    conditions.append(f"{top} == signs[{place}]")
            product = f"doubled({x}) * doubled({w})"
            if len(conditions) == 2:
                sizes = (f"$signed({{1'b0, twice({name}[{4 * n} +: 3])}})" for name in "xw")
                product = " * ".join(sizes)
            terms.append(f"({' & '.join(conditions) or 1} ? {product} : 0)")
        names = [f"p{number}_{n}" for n in range(lanes)]
        body += [f"  wire signed [{bits}:0] {a} = {b};" for a, b in zip(names, terms, strict=True)]
        while len(names) > 1:
            names = [f"({' + '.join(names[n : n + 2])})" for n in range(0, len(names), 2)]
        body.append(f"  wire signed [{bits}:0] sum{number} = {names[0]};")
        bad.append(f"$signed(totals[{bits * number} +: {bits}]) != sum{number}")
    return [*body, f"  assign bad = {' | '.join(bad)};"]


def scaled_product(
    netlist: Flat,
    *,
    bound: int,
    parts: int,
    multiplied: bool,
    significands: tuple[int, int],
    exponent: int,
) -> list[str]:
    """Return: D = sum (4 + k) P, or sum P, times the significands of the scales if they have some.

    ``i`` has the sums of the parts, none beyond ``bound``, then the multipliers, the exponent and
    two significands of so many bits, of which scales without have none, and NaN.
    """
    bits = (2 * bound + 1).bit_length()
    sums = [f"$signed(i[{bits * n} +: {bits}])" for n in range(parts)]
    at = bits * parts
    factors = [f"(4 + i[{at + 2 * n} +: 2])" if multiplied else "1" for n in range(parts)]
    at += 2 * parts * multiplied
    places = (at + exponent, at + exponent + significands[0])
    scales = [f"i[{p} +: {n}]" for p, n in zip(places, significands, strict=True) if n]
    size = width(netlist, "o") - exponent - 1
    body = []
    for n, (one, factor) in enumerate(zip(sums, factors, strict=True)):
        body += [
            f"  wire signed [31:0] p{n} = {one}, f{n} = {factor};",
            f"  wire ok{n} = p{n} <= {bound} & p{n} >= -{bound};",
        ]
    rows = []
    for first in range(0, parts, 2):
        pair = range(first, min(first + 2, parts))
        if not multiplied:
            rows += [f"p{n}" for n in pair]
            continue
        rows.append("4 * (" + " + ".join(f"p{n}" for n in pair) + ")")
        # k = 2 k1 + k0: twice P where k1 is set, and P where k0 is.
        rows += [
            f"{1 << bit} * (" + " + ".join(f"(f{n}[{bit}] ? p{n} : 0)" for n in pair) + ")"
            for bit in range(2)
        ]
    while len(rows) > 1:
        rows = [
            " + ".join(["(" + " + ".join(rows[n : n + 2]) + ")"]) for n in range(0, len(rows), 2)
        ]
    scale = "".join(f" * $signed({{1'b0, {each}}})" for each in scales)
    ok = " & ".join(f"ok{n}" for n in range(parts))
    return [
        *body,
        f"  wire signed [31:0] total = {rows[0]}{scale};",
        f"  assign bad = {ok} & (total[{size - 1}:0] != o[{size - 1}:0]",
        f"    | o[{size} +: {exponent}] != i[{at} +: {exponent}]",
        f"    | o[{size + exponent}] != i[{at + exponent + sum(significands)}]);",
    ]


def addend(netlist: Flat, bits: int, exponent: int, offset: int) -> list[str]:
    """Return: a product as normalised significand and exponent, equal in value.

    ``i`` is the product with ``bits`` bits and a sign, its exponent and NaN; ``offset`` what the
    exponent of its top bit has beyond ``exponent``.
    """
    at = bits + 1
    return [
        f"  wire signed [{bits}:0] product = i[{bits}:0];",
        f"  wire [{bits}:0] magnitude = product < 0 ? -product : product;",
        f"  wire [{bits - 1}:0] significand = o[{bits - 1}:0];",
        f"  wire signed [9:0] found = o[{bits} +: 10];",
        f"  wire negative = o[{bits + 10}], nonzero = o[{bits + 11}], nan = o[{bits + 12}];",
        f"  wire signed [12:0] given = $signed({{1'b0, i[{at} +: {exponent}]}});",
        f"  wire signed [12:0] zeros = given + {offset} - found;",
        f"  wire in_range = ~product[{bits}] | magnitude[{bits - 1}:0] != 0;",
        f"  wire [{2 * bits - 1}:0] whole = magnitude[{bits - 1}:0];",
        f"  assign bad = nan != i[{at + exponent}] | (in_range & (nonzero != (product != 0)",
        "    | (product != 0 & (negative != (product < 0) | zeros < 0",
        f"      | zeros > {bits - 1} | ~significand[{bits - 1}]",
        f"      | {{{bits}'d0, significand}} != (whole << zeros)))));",
    ]


def propagated(netlist: Flat, digit: int) -> list[str]:
    """Return: digits and the carries above them, as one number."""
    bits = width(netlist, "digits")
    count = width(netlist, "carries")
    carries = " + ".join(
        f"({{{bits}'d0, carries[{n}]}} << {digit * (n + 1)})" for n in range(count)
    )
    return [
        f"  wire [{bits - 1}:0] expected = digits + {carries};",
        "  assign bad = total != expected;",
    ]


def accumulated(
    netlist: Flat, *, digit: int, product: int, exponent: int, low: int, high: int
) -> list[str]:
    """Return: a step of the carry-save sum adds the product at its place, to the sum or to zero."""
    bits, count = width(netlist, "digits"), width(netlist, "carries")
    value = " + ".join(f"({{{bits}'d0, carries[{n}]}} << {digit * (n + 1)})" for n in range(count))
    extended = "{{" + str(bits - product) + f"{{i[{product - 1}]}}}}, i[{product - 1}:0]}}"
    return [
        "  wire clear = rst;",
        f"  wire [{bits - 1}:0] value = digits + {value};",
        f"  wire [{exponent - 1}:0] place = i[{product} +: {exponent}];",
        f"  wire no_number = i[{product + exponent}];",
        f"  wire inside = place >= {low} & place <= {high};",
        "  wire adds = valid & ~no_number & inside;",
        f"  wire [{bits - 1}:0] term = adds ? {extended} << (place - {low}) : 0;",
        f"  reg [{bits - 1}:0] before, expected;",
        "  reg stepped = 0;",
        "  always @(posedge clk) begin",
        "    stepped <= enable & ~clear; before <= value; expected <= term;",
        "  end",
        "  assign bad = stepped & value != (kept ? before + expected : expected);",
    ]


def _rounded(name: str, element: FloatElement, kind: InputType) -> str:
    """Return a function: the magnitude code of a value under a scale, to nearest, ties to even.

    Both sides of a comparison with the middle between two codes are integers: no division.
    """
    # The middle between codes c and c + 1, in halves of the smallest step.
    middles = [
        (element.magnitude(c) + element.magnitude(c + 1)) / element.magnitude(1)
        for c in range(element.max_code)
    ]
    assert all(middle.denominator == 1 for middle in middles)
    mantissa = kind.mantissa_bits
    zero = element.bias + element.mantissa_bits + 127 - kind.bias - mantissa
    size = element.emax + 3 + element.bias + element.mantissa_bits + mantissa
    terms = " + ".join(
        f"(left {'>=' if c % 2 else '>'} ({size}'d{int(middle)} << down))"
        for c, middle in enumerate(middles)
    )
    return f"""
  function [{element.bits - 1}:0] {name}(
    input [{kind.exponent_bits - 1}:0] e, input [{mantissa - 1}:0] m, input [7:0] scale
  );
    reg signed [11:0] s;
    reg [{size - 1}:0] left;
    reg [5:0] down;
    begin
      // |x| / 2^(scale - 127) in halves of the smallest step is significand * 2^s
      s = $signed({{1'b0, e == 0 ? {kind.exponent_bits}'d1 : e}});
      s = s - $signed({{1'b0, scale}}) + {zero};
      left = {{e != 0, m}};
      down = 0;
      if (s > 0) left = left << s;
      else if (-s > {mantissa + 1}) down = {mantissa + 2};
      else down = -s;
      {name} = {terms};
    end
  endfunction
"""


def quantizer(
    facts: Facts, netlist: Flat, kind: InputType, block: BlockFormat, fine: FloatElement | None
) -> list[str]:
    """Return: scale, codes and metadata of the first group after reset (sections 2 to 4).

    Of any one lane and of its subgroup, which ``mark`` chooses. ``fine`` is the element of the
    metadata.
    """
    [i], [o] = facts.inputs, facts.outputs
    element = block.element
    assert isinstance(element, FloatElement)
    bits, beats, group = kind.width, facts.beats_per_group, block.group
    exponent, mantissa = kind.exponent_bits, kind.mantissa_bits
    whole = beats * i.tdata_width
    codes, scale = o.field("codes"), o.field("scale")
    code_bits = element.bits
    # floor(log2 |x|) as an exponent field, below 1 for subnormals; the lowest for zero
    offset = 127 - kind.bias - element.emax
    leading = "\n".join(f"      if (m[{n}]) f = {n + 1 - mantissa};" for n in range(mantissa))
    body = [
        _rounded("coarse", element, kind),
        f"""
  function signed [11:0] floor_log2(input [{exponent - 1}:0] e, input [{mantissa - 1}:0] m);
    reg signed [11:0] f;
    begin
      f = -1000;
{leading}
      if (e != 0) f = e;
      floor_log2 = f;
    end
  endfunction
  wire clear = ~started;
  reg [7:0] lane;
  reg [7:0] taken = 0;
  reg done = 0;
  reg [{whole - 1}:0] group;
  always @(posedge clk) begin
    if (~started) lane <= mark % {group};
    else begin
      if ({i.ports[1]} & {i.ports[2]} & taken < {beats}) begin
        group[{i.tdata_width} * taken +: {i.tdata_width}] <= {i.ports[0]};
        taken <= taken + 1;
      end
      done <= done | ({o.ports[1]} & {o.ports[2]});
    end
  end
  wire check = started & ~done & {o.ports[1]};
  wire [7:0] scale = {o.ports[0]}[{scale.offset} +: 8];
  wire [{codes.width * group - 1}:0] codes = {o.ports[0]}[{codes.offset} +: {codes.width * group}];
  wire [{bits - 1}:0] x = group[{bits} * lane +: {bits}];
  wire [{exponent - 1}:0] e = x[{mantissa} +: {exponent}];
  wire [{mantissa - 1}:0] m = x[{mantissa - 1}:0];
  wire signed [11:0] peak = $signed({{1'b0, scale}}) - {offset};
  integer n;
  reg special, reached;
  always @* begin
    special = 0; reached = scale == 0;
    for (n = 0; n < {group}; n = n + 1) begin
      special = special | &group[{bits} * n + {mantissa} +: {exponent}];
      reached = reached | peak == floor_log2(
        group[{bits} * n + {mantissa} +: {exponent}], group[{bits} * n +: {mantissa}]);
    end
  end
  wire bad_scale = special ? scale != 255 : ~reached | floor_log2(e, m) > peak;
  wire [{code_bits - 1}:0] rounded = coarse(e, m, scale);
  wire [{code_bits - 1}:0] expected = special ? 0 : {{x[{bits - 1}], rounded[{code_bits - 2}:0]}};
  wire bad_code = codes[{code_bits} * lane +: {code_bits}] != expected;
""",
    ]
    bad = "bad_scale | bad_code"
    if fine is not None:
        size, meta = block.metadata.subgroup, o.field("meta")
        step = block.metadata.bits
        body += [
            _rounded("finer", fine, kind),
            f"""
  reg [7:0] top;
  reg [{code_bits - 2}:0] largest;
  integer k;
  always @* begin
    top = lane / {size} * {size};
    largest = codes[{code_bits} * top +: {code_bits - 1}];
    for (k = 1; k < {size}; k = k + 1)
      if (codes[{code_bits} * (lane / {size} * {size} + k) +: {code_bits - 1}] > largest) begin
        top = lane / {size} * {size} + k;
        largest = codes[{code_bits} * top +: {code_bits - 1}];
      end
  end
  wire [{bits - 1}:0] y = group[{bits} * top +: {bits}];
  wire signed [11:0] c6 = finer(y[{mantissa} +: {exponent}], y[{mantissa - 1}:0], scale);
  wire signed [11:0] low = largest << {step};
  wire signed [11:0] high = low + {(1 << step) - 1};
  wire signed [11:0] clamped = c6 + 1 < low ? low : c6 + 1 > high ? high : c6 + 1;
  wire [{step - 1}:0] meta = special ? 0 : clamped - low;
  wire bad_meta = {o.ports[0]}[{meta.offset} + {step} * (lane / {size}) +: {step}] != meta;
""",
        ]
        bad += " | bad_meta"
    return [*body, f"  assign bad = check & ({bad});"]
