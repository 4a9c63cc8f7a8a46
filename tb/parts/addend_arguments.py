"""What is argued of the addends of an FP32 accumulation."""

from m2xfp.tb.arguments import Argument

__all__ = ["addends"]

# An addend has N bits of significand, ten of exponent, sign, nonzero and NaN. The operands of the
# addition have three bits more than N. With an addend that stands s places low the sum has its top
# bit s + 1 places below where it could have, at most, as soon as anything of the accumulator is
# lost: 24 bits, the one that decides, and one of what is below are left up to N - 24 places.
_ALIKE = """
  localparam N = $bits(right) - 13;
  integer s;
  reg low;
  always @* begin
    low = 0;
    for (s = 1; s <= N - 24; s = s + 1)
      low = low | ((wrong[N-1:0] << s) == right[N-1:0] & (wrong[N-1:0] >> (N - s)) == 0
        & wrong[N +: 10] == (right[N +: 10] + s & 10'h3ff));
  end
  wire nothing = ~right[N + 11] & ~wrong[N + 11];
  assign alike = right[N + 12] == wrong[N + 12]
    & (right[N + 12] | nothing | low & right[N + 11 : N + 10] == wrong[N + 11 : N + 10]);
"""
_WHY = "an addend of the same value in lower places, or fields of one that is NaN or nothing"

_NAN = """
  assign alike = right[$bits(right) - 1] & wrong[$bits(right) - 1];
"""
_NAN_WHY = "fields of a product that is NaN"


def addends(instance: str, wire: str, product: str = "") -> list[Argument]:
    """Return the arguments about addends on a wire of some instances, and about their products.

    The top bit of ``product``, if it is given, says that it is NaN.
    """
    found = [Argument(instance, (wire,), _ALIKE, _WHY)]
    return [*found, Argument(instance, (product,), _NAN, _NAN_WHY)] if product else found
