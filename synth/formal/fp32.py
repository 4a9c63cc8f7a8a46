"""FP32 addition as IEEE 754 defines it, by cases of the distance of the exponents.

The reference adds two integers exactly and rounds the sum once. Where the exponents are a fixed
distance apart the integers are shifted by constants, which is what makes the proof short: each case
has a reference of its own, and together they are all cases.
"""

from m2xfp.synth.formal.netlist import Flat

__all__ = ["FAR", "accumulates", "cases"]

# Beyond this distance of the exponents the smaller operand is only more than nothing: it lies below
# a 2^-8 of the last place of the larger one, or that is zero.
FAR = 32
SIGNIFICAND = 24


def cases(netlist: Flat) -> list[str]:
    """Return the cases: distances as numbers, ``above``, ``below``, ``special``, ``nothing``."""
    return ["special", "nothing", "above", "below", *map(str, range(-FAR, FAR + 1))]


def accumulates(netlist: Flat, case: str, chains: int) -> list[str]:
    """Return: acc' = RNE(acc + addend) after ``chains`` steps, in one case.

    ``addend`` is the significand, top bit set, ten bits of exponent, sign, nonzero and NaN.
    """
    bits = len(netlist.ports["addend"]) - 13
    align = bits - SIGNIFICAND  # of the addend's last place against the accumulator's
    extra = FAR + 2
    if case in ("special", "nothing", "above", "below"):
        shift_acc = 0 if case == "above" else extra
        shift_add = extra
    else:
        shift_acc = max(0, -(int(case) - align))
        shift_add = max(0, int(case) - align)
    size = {"above": bits, "below": SIGNIFICAND}.get(case, 0) + extra + 2
    if case.lstrip("-").isdigit():
        size = max(SIGNIFICAND + shift_acc, bits + shift_add) + 2
    left, right, base, when = {
        "above": (
            "acc_significand != 0",
            f"significand << {extra}",
            f"exponent - {bits - 1 + extra}",
            f"distance > {FAR}",
        ),
        "below": (
            f"acc_significand << {extra}",
            "1",
            f"acc_exponent - {SIGNIFICAND - 1 + extra}",
            f"distance < -{FAR}",
        ),
    }.get(
        case,
        (
            f"acc_significand << {shift_acc}",
            f"significand << {shift_add}",
            f"acc_exponent - {SIGNIFICAND - 1 + shift_acc}",
            f"distance == {case}",
        ),
    )
    body = [
        f"""
  wire clear = rst;
  wire [{bits - 1}:0] significand = addend[{bits - 1}:0];
  wire signed [11:0] exponent = $signed(addend[{bits} +: 10]);
  wire negative = addend[{bits + 10}], nonzero = addend[{bits + 11}], nan = addend[{bits + 12}];
  wire [31:0] from = first ? 0 : acc;
  wire [23:0] acc_significand = {{from[30:23] != 0, from[22:0]}};
  wire signed [11:0] acc_exponent = $signed({{4'd0, from[30:23] == 0 ? 8'd1 : from[30:23]}});
  wire signed [11:0] distance = exponent - acc_exponent;
  wire acc_special = &from[30:23];
  wire legal = ~nonzero | significand[{bits - 1}];
"""
    ]
    if case == "special":
        body.append("""
  wire is_nan = nan | (acc_special & from[22:0] != 0 & from[22]);
  wire [31:0] expected = is_nan ? 32'h7fc00000 : from;
  wire here = legal & (nan | (acc_special & (from[22:0] == 0 | from[22])));
""")
    elif case == "nothing":
        body.append("""
  wire [31:0] expected = from;
  wire here = legal & ~nan & ~acc_special & ~nonzero;
""")
    else:
        top = size - 1
        leading = "\n".join(f"    if (m[{n}]) p = {n};" for n in range(size))
        body.append(f"""
  wire [{top}:0] a = {left}, b = {right};
  wire signed [{size}:0] s = (from[31] ? -$signed({{1'b0, a}}) : $signed({{1'b0, a}}))
    + (negative ? -$signed({{1'b0, b}}) : $signed({{1'b0, b}}));
  wire [{size}:0] m = s < 0 ? -s : s;
  wire signed [11:0] base = {base};
  reg signed [11:0] p, cut, e;
  reg [{size + 24}:0] aligned;
  reg [{size}:0] lost;
  reg [31:0] rounded;
  reg [8:0] down;
  always @* begin
    p = 0;
{leading}
    e = p + base < 1 ? 1 : p + base;
    // Place of the last bit that is kept: 24 from the top, or where subnormals end.
    cut = e - base - 23;
    down = cut > {size + 1} ? {size + 1} : cut;
    if (cut <= 0) begin
      aligned = m << (-cut);
      rounded = aligned;
    end else begin
      aligned = m >> down;
      lost = (m << ({size + 1} - down));
      rounded = aligned + (lost[{size}] & (lost[{size - 1}:0] != 0 | aligned[0])
        & cut <= {size + 1});
    end
    rounded = rounded + ((e - 1) << 23);
    if (rounded >= 32'h7f800000) rounded = 32'h7f800000;
  end
  wire [31:0] expected = m == 0
    ? {{from[31] & negative & a == 0 & b == 0, 31'd0}} : {{s < 0, rounded[30:0]}};
  wire here = legal & ~nan & ~acc_special & nonzero & {when};
""")
    delays = [f"  reg [32:0] due_{n} = 0;" for n in range(chains)]
    steps = ["    due_0 <= {enable & here & ~started, expected};"]
    steps += [
        f"    due_{n} <= {{due_{n - 1}[32] & enable, due_{n - 1}[31:0]}};" for n in range(1, chains)
    ]
    return [
        *body,
        *delays,
        "  always @(posedge clk) begin",
        *steps,
        "  end",
        f"  assign bad = due_{chains - 1}[32] & acc != due_{chains - 1}[31:0];",
    ]
