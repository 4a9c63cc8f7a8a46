"""The rules by which a power-of-two scale follows from a group's largest magnitude."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from m2xfp.errors import UnknownNameError
from m2xfp.formats import E2M1, FloatElement, InputType

__all__ = ["FLOOR", "SCALE_RULES", "ScaleRule", "scale_rule"]

SCALE_RULES = ("floor", "ceil", "rtn1", "rtn2", "even", "even-e2m1")


@dataclass(frozen=True)
class ScaleRule:
    """A rule as thresholds of the largest magnitude's mantissa.

    With amax = m 2^f, 1 <= m < 2, the exponent before the clamp is f - emax, one less if ``lower``,
    and one more from the threshold on. That is all that these rules differ in.

    Members
    -------
    threshold
        Least mantissa field of a normal number that counts one more; None if there is none.
    subnormal
        Least mantissa field of a subnormal number of the top half of those, 2^(1 - bias) / 2 and
        more, that does; None where it cannot matter, since the clamp at 0 covers it.
    lower
        One less below the threshold.
    """

    threshold: int | None = None
    subnormal: int | None = None
    lower: bool = False

    @property
    def head(self) -> int:
        """Binades above the largest one of the element that values of a group can lie in."""
        return int(self.lower)


FLOOR = ScaleRule()


def scale_rule(name: str, kind: InputType, element: FloatElement) -> ScaleRule:
    """Return a rule of docs/format.md, section 2, for an input type and an element.

    Raises UnknownNameError for a name that is none.
    """
    if name not in SCALE_RULES:
        raise UnknownNameError("scale rule", name, SCALE_RULES)
    if name == "floor":
        return FLOOR
    top = element.max_value / Fraction(2) ** element.emax
    bits = (E2M1 if name == "even-e2m1" else element).fraction_bits_at_top
    reached: Callable[[Fraction], bool] = {
        "ceil": lambda m: m > top,
        "rtn1": lambda m: 2 * m * m >= top * top,  # log2(m / top) >= -1/2: not one less
        "rtn2": lambda m: m * m > 2,
        "even": lambda m: m >= 2 - Fraction(1, 2 << bits),
        "even-e2m1": lambda m: m >= 2 - Fraction(1, 2 << bits),
    }[name]
    lower = name == "rtn1"
    # One more by rtn1 needs m > top sqrt(2), which no m below 2 is where top >= sqrt(2).
    assert not lower or top * top >= 2
    step = 1 << kind.mantissa_bits
    threshold = _least(reached, step)
    # Only an element whose largest power of two is 1 has scales of subnormals above the least one.
    matters = kind.exponent_bits == 8 and element.emax == 0 and not lower
    subnormal = _least(reached, step // 2) if matters else None
    return ScaleRule(None if threshold is None else threshold - step, subnormal, lower)


def _least(reached: Callable[[Fraction], bool], step: int) -> int | None:
    """Return the least n for which n / step, 1 to 2, reaches the threshold; None if none does."""
    numbers = range(step, 2 * step)
    found = bisect_left(numbers, True, key=lambda n: reached(Fraction(n, step)))
    return numbers[found] if found < step else None
