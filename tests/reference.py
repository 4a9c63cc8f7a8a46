"""The exact reference: every format in Fractions, slow and obvious.

Written from the format's definition and from nothing else: no torch, no numpy, no golden or RTL
code, not even the project's table of elements. It defines what "bit for bit" means.

A value is (sign, magnitude): sign 0 or 1, magnitude a Fraction, or None for NaN and infinity.
"""

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

Value = tuple[int, Fraction | None]
HALF = Fraction(1, 2)


def pow2(n: int) -> Fraction:
    return Fraction(2) ** n


def floor_log2(x: Fraction) -> int:
    n = x.numerator.bit_length() - x.denominator.bit_length()
    return n if pow2(n) <= x else n - 1


# --- IEEE types --------------------------------------------------------------

IEEE = {
    "fp64": (11, 52),
    "fp32": (8, 23),
    "bf16": (8, 7),
    "fp16": (5, 10),
}  # exponent, mantissa bits


def from_bits(kind: str, raw: int) -> Value:
    ebits, mbits = IEEE[kind]
    sign, e, m = raw >> (ebits + mbits), raw >> mbits & ((1 << ebits) - 1), raw & ((1 << mbits) - 1)
    bias = (1 << (ebits - 1)) - 1
    if e == (1 << ebits) - 1:
        return sign, None
    if e == 0:
        return sign, m * pow2(1 - bias - mbits)
    return sign, (m + (1 << mbits)) * pow2(e - bias - mbits)


def to_bits(kind: str, value: Value) -> int:
    """Round a value once: nearest, ties to even, overflow to infinity; None gives the quiet NaN."""
    ebits, mbits = IEEE[kind]
    sign, x = value
    bias = (1 << (ebits - 1)) - 1
    if x is None:
        return ((1 << ebits) - 1) << mbits | 1 << (mbits - 1)
    e = max(floor_log2(x), 1 - bias) if x else 1 - bias
    steps = round_even(x / pow2(e - mbits))
    raw = ((e + bias - 1) << mbits) + steps  # the hidden bit carries into the exponent field
    raw = min(raw, ((1 << ebits) - 1) << mbits)
    return sign << (ebits + mbits) | raw


def round_even(x: Fraction) -> int:
    return round(x)  # Python rounds a Fraction to the nearest integer, ties to even


def round_zero(x: Fraction) -> int:
    return ceil(x - HALF) if x >= 0 else floor(x + HALF)


def round_away(x: Fraction) -> int:
    return floor(x + HALF) if x >= 0 else ceil(x - HALF)


# --- elements ----------------------------------------------------------------


@dataclass(frozen=True)
class Minifloat:
    bits: int
    grid: tuple[Fraction, ...]
    emax: int
    top_fraction_bits: int

    @property
    def largest(self) -> Fraction:
        return self.grid[-1]

    def magnitude(self, y: Fraction, ties: str) -> int:
        return nearest(y, self.grid, ties)

    def code(self, sign: int, y: Fraction, ties: str) -> int:
        return sign << (self.bits - 1) | self.magnitude(y, ties)

    def value(self, code: int) -> Value:
        sign, magnitude = code >> (self.bits - 1), code & ((1 << (self.bits - 1)) - 1)
        return sign, self.grid[magnitude] if magnitude < len(self.grid) else None


@dataclass(frozen=True)
class Integer:
    bits: int
    fraction_bits: int
    emax: int = 0
    full_range: bool = False

    @property
    def top_fraction_bits(self) -> int:
        return self.fraction_bits

    @property
    def largest(self) -> Fraction:
        return Fraction((1 << (self.bits - 1)) - 1, 1 << self.fraction_bits)

    def code(self, sign: int, y: Fraction, ties: str) -> int:
        rounded = {"even": round_even, "away": round_away, "zero": round_zero}[ties]
        steps = rounded(y * (1 << self.fraction_bits))
        steps = min(steps, (1 << (self.bits - 1)) - 1 + bool(sign and self.full_range))
        return (-steps if sign else steps) % (1 << self.bits)

    def value(self, code: int) -> Value:
        signed = code - (1 << self.bits) if code >> (self.bits - 1) else code
        return int(signed < 0), Fraction(abs(signed), 1 << self.fraction_bits)


def nearest(y: Fraction, grid: tuple[Fraction, ...], ties: str) -> int:
    """Return the index of the nearest magnitude; ties to the even index, away, to zero."""
    low = bisect_right(grid, y) - 1
    if low == len(grid) - 1:
        return low
    middle = (grid[low] + grid[low + 1]) / 2
    if y == middle:
        return low + {"even": low % 2, "away": 1, "zero": 0}[ties]
    return low + int(y > middle)


def minifloat(ebits: int, mbits: int, bias: int, count: int) -> tuple[Fraction, ...]:
    grid = []
    for code in range(count):
        e, m = divmod(code, 1 << mbits)
        grid.append(
            m * pow2(1 - bias - mbits) if e == 0 else (m + (1 << mbits)) * pow2(e - bias - mbits)
        )
    return tuple(grid)


E2M1_GRID = tuple(Fraction(n, 2) for n in (0, 1, 2, 3, 4, 6, 8, 12))
E2M3_GRID = tuple(
    Fraction(code & 7, 8) if code < 8 else (1 + Fraction(code & 7, 8)) * pow2((code >> 3) - 1)
    for code in range(32)
)
E2M1 = Minifloat(4, E2M1_GRID, 2, 1)
E2M3 = Minifloat(6, E2M3_GRID, 2, 3)
E3M2 = Minifloat(6, minifloat(3, 2, 3, 32), 4, 2)
E4M3 = Minifloat(8, minifloat(4, 3, 7, 127), 8, 3)
E5M2 = Minifloat(8, minifloat(5, 2, 15, 124), 15, 2)
INT8 = Integer(8, 6)
INT4 = Integer(4, 2)
SM3 = Minifloat(3, (Fraction(0), HALF, Fraction(1), 3 * HALF), 0, 1)

SCALE_GRIDS = {
    "e4m3": minifloat(4, 3, 7, 127),
    "e4m3-480": minifloat(4, 3, 7, 128),
    "e5m2": minifloat(5, 2, 15, 124),
}
SCALE_NAN = {"e8m0": 0xFF, "e4m3": 0x7F, "e4m3-480": 0xFF, "e5m2": 0x7F, "fp32": 0x7FC00000}


# --- formats -----------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """One format with its options, as plain facts."""

    element: Minifloat | Integer
    scale: str = "e8m0"
    group: int = 32
    metadata: str = "none"
    subgroup: int = 0
    ties: str = "even"
    rule: str = "floor"
    sides: int = 1
    adaptive: bool = True
    fraction_bits: int | None = None  # None: exact search
    choice: str = "lowest"
    floor: Fraction = Fraction(0)  # the smallest scale
    reciprocal: bool = False
    octaves: bool = False


SPECS = {
    "mxfp4": Spec(E2M1),
    "mxfp6-e2m3": Spec(E2M3),
    "mxfp6-e3m2": Spec(E3M2),
    "mxfp8-e4m3": Spec(E4M3),
    "mxfp8-e5m2": Spec(E5M2),
    "mxint8": Spec(INT8),
    "m2xfp-act": Spec(E2M1, metadata="elem-em", subgroup=8),
    "m2xfp-weight": Spec(E2M1, metadata="sg-em", subgroup=8),
    "nvfp4": Spec(E2M1, scale="e4m3", group=16),
    "m2nvfp4-act": Spec(E2M1, scale="e4m3", group=16, metadata="elem-em", subgroup=4),
    "m2nvfp4-weight": Spec(E2M1, scale="e4m3", group=16, metadata="sg-em", subgroup=4),
    "smx4": Spec(SM3, group=16, metadata="pair", subgroup=2),
    "amxfp4": Spec(E2M1, scale="e5m2", sides=2, ties="away"),
    "int4": Spec(INT4, ties="away"),
    "int4-asym": Spec(INT4, scale="affine", ties="away"),
}


@dataclass(frozen=True)
class Group:
    """A quantized group: element codes, scale fields, metadata fields."""

    codes: tuple[int, ...]
    scales: tuple[int, ...]
    meta: tuple[int, ...]


def scale_value(spec: Spec, field: int) -> Fraction | None:
    if field == SCALE_NAN[spec.scale]:
        return None
    if spec.scale == "e8m0":
        return pow2(field - 127)
    if spec.scale == "fp32":
        return from_bits("fp32", field)[1]
    grid, magnitude = SCALE_GRIDS[spec.scale], field & 0x7F  # the sign bit is not looked at
    return grid[magnitude] if magnitude < len(grid) else None


def fit_scale(spec: Spec, amax: Fraction, unit: Fraction) -> int:
    if spec.scale == "e8m0":
        return fit_e8m0(spec, amax)
    wanted = amax / (spec.element.largest * unit)
    if spec.reciprocal:
        wanted = single(single(amax / spec.element.largest) / unit)
        wanted = SCALE_GRIDS[spec.scale][-1] if wanted is None else wanted
    if spec.scale == "fp32":
        code = fp32_nearest(wanted, spec.ties)
        return code or 0x3F800000
    code = nearest(max(wanted, spec.floor), SCALE_GRIDS[spec.scale], spec.ties)
    if code == 0 and spec.scale != "e4m3":
        code = SCALE_GRIDS[spec.scale].index(Fraction(1))
    return code


def single(x: Fraction | None) -> Fraction | None:
    """Round once to float32; None is an infinity."""
    return None if x is None else from_bits("fp32", to_bits("fp32", (0, x)))[1]


def scaled(spec: Spec, x: Fraction, scale: Fraction, unit: Fraction) -> Fraction:
    """Return a magnitude over its scale, as exactly as the convention has it."""
    if not scale:
        return Fraction(0)
    if not spec.reciprocal:
        return x / (scale * unit)
    factor = single(1 / unit)
    factor = None if factor is None else single(factor / scale)
    y = None if factor is None else single(x * factor)
    return y if y is not None else Fraction(bool(x)) * spec.element.largest


def fp32_nearest(x: Fraction, ties: str) -> int:
    even = to_bits("fp32", (0, x))
    if ties == "even":
        return even
    for code in (even, even + 1):  # a tie that went down to the even neighbour goes up instead
        if from_bits("fp32", code)[1] == x:
            return code
    above = from_bits("fp32", even + 1)[1]
    below = from_bits("fp32", even)[1]
    return even + 1 if below < x and x - below == above - x else even


def fit_e8m0(spec: Spec, amax: Fraction) -> int:
    if amax == 0:
        return 0
    emax, largest = spec.element.emax, spec.element.largest
    n = floor_log2(amax) - emax
    if spec.rule == "ceil":
        n = floor_log2(amax / largest)
        n += pow2(n) < amax / largest
    elif spec.rule == "rtn1":  # floor(log2 r + 1/2) = floor(log2(2 r^2) / 2)
        n = floor_log2(2 * (amax / largest) ** 2) // 2
    elif spec.rule == "rtn2":
        n = floor_log2(2 * amax**2) // 2 - emax
    elif spec.rule in ("even", "even-e2m1"):
        m = amax / pow2(floor_log2(amax))
        bits = 1 if spec.rule == "even-e2m1" else spec.element.top_fraction_bits
        n += m >= 2 - pow2(-(bits + 1))
    return min(max(n + 127, 0), 254)


def quantize(spec: Spec, values: list[Value], unit: Fraction = Fraction(1)) -> Group:
    """Quantize one group of ``spec.group`` values; ``unit`` is the tensor scale."""
    subgroups = spec.group // spec.subgroup if spec.subgroup else 0
    if any(magnitude is None for _, magnitude in values):
        if spec.scale == "affine":
            return Group((0,) * spec.group, (0x7FC00000, 0), ())
        nan = SCALE_NAN[spec.scale]
        return Group((0,) * spec.group, (nan,) * spec.sides, (0,) * subgroups)
    if spec.scale == "affine":
        return quantize_affine(values)
    if spec.sides == 2:
        p = max((m for s, m in values if not s), default=Fraction(0))
        n = max((m for s, m in values if s), default=Fraction(0))
        fields = (fit_scale(spec, p, unit), fit_scale(spec, n, unit))
        codes = tuple(
            spec.element.code(
                s, m / (scale_value(spec, fields[not (m and not s)]) * unit), spec.ties
            )
            for s, m in values
        )
        return Group(codes, fields, ())
    field = fit_scale(spec, max(m for _, m in values), unit)
    if spec.metadata == "sg-em":
        return search(spec, values, field, unit)
    y = [scaled(spec, m, scale_value(spec, field), unit) for _, m in values]
    meta: list[int] = []
    if spec.metadata == "pair":
        for i in range(0, spec.group, spec.subgroup):
            t = int(max(y[i : i + spec.subgroup]) < 1)
            y[i : i + spec.subgroup] = [v * (1 + t) for v in y[i : i + spec.subgroup]]
            meta.append(t)
    codes = tuple(spec.element.code(s, v, spec.ties) for (s, _), v in zip(values, y, strict=True))
    if spec.metadata == "elem-em":
        for i in range(0, spec.group, spec.subgroup):
            top = top_index([code & 7 for code in codes[i : i + spec.subgroup]], spec.choice)
            c4 = codes[i + top] & 7
            c6 = E2M3.magnitude(y[i + top], spec.ties)
            meta.append(min(max(c6 + 1, 4 * c4), 4 * c4 + 3) - 4 * c4)
    return Group(codes, (field,), tuple(meta))


def top_index(magnitudes: list[int], choice: str) -> int:
    largest = [i for i, magnitude in enumerate(magnitudes) if magnitude == max(magnitudes)]
    return largest[0 if choice == "lowest" else -1]


def search(spec: Spec, values: list[Value], fitted: int, unit: Fraction) -> Group:
    """Sg-EM: try every scale and every k and measure the squared error."""
    x = [m for _, m in values]
    measured = x
    if spec.fraction_bits is not None:
        step = scale_value(spec, fitted) / (1 << spec.fraction_bits)
        measured = []
        for m in x:
            v = m / step
            measured.append((floor(v) | (v != floor(v))) * step)
    if spec.scale == "e8m0":
        candidates = [c for c in (fitted - 1, fitted, fitted + 1) if 0 <= c <= 254]
    elif fitted == 0:
        candidates = [0]
    elif spec.octaves:
        grid = SCALE_GRIDS[spec.scale]
        wanted = [grid[fitted] * factor for factor in (HALF, 1, 2)]
        candidates = [grid.index(s) for s in wanted if s in grid and s >= spec.floor]
    else:
        candidates = [c for c in (fitted - 1, fitted, fitted + 1) if 1 <= c <= 126]
        candidates = [c for c in candidates if SCALE_GRIDS[spec.scale][c] >= spec.floor]
    best = None
    for candidate in candidates if spec.adaptive else [fitted]:
        total, codes, fields = Fraction(0), [], []
        for i in range(0, spec.group, spec.subgroup):
            error, k, found = min(
                (attempt(spec, x, measured, i, candidate, k, unit) for k in range(4)),
                key=lambda entry: entry[:2],  # least error, then the smallest k
            )
            total += error
            fields.append(k)
            codes += found
        if best is None or total < best[0]:
            best = (total, candidate, codes, fields)
    _, candidate, codes, fields = best
    signed = tuple(s << 3 | code for (s, _), code in zip(values, codes, strict=True))
    return Group(signed, (candidate,), tuple(fields))


def attempt(
    spec: Spec,
    x: list[Fraction],
    measured: list[Fraction],
    start: int,
    candidate: int,
    k: int,
    unit: Fraction,
) -> tuple[Fraction, int, list[int]]:
    scale = scale_value(spec, candidate) * (1 + Fraction(k, 4)) * unit
    error, codes = Fraction(0), []
    for i in range(start, start + spec.subgroup):
        code = nearest(x[i] / scale, E2M1_GRID, spec.ties) if scale else 0
        codes.append(code)
        error += (E2M1_GRID[code] * scale - measured[i]) ** 2
    return error, k, codes


def quantize_affine(values: list[Value]) -> Group:
    x = [-m if s else m for s, m in values]
    bits = to_bits("fp32", (0, (max(x) - min(x)) / 15)) or 0x3F800000
    s = from_bits("fp32", bits)[1]
    offset = round_away(min(x) / s)
    z = -offset - 8
    codes = tuple(min(max(round_away(v / s + z), -8), 7) % 16 for v in x)
    sign = int(offset < 0)
    return Group(codes, (bits, to_bits("fp64", (sign, Fraction(abs(offset))))), ())


def dequantize(spec: Spec, group: Group, unit: Fraction = Fraction(1)) -> list[Value]:
    """Return the exact values of a group, legal or not."""
    if spec.scale == "affine":
        s = from_bits("fp32", group.scales[0])[1]
        if s is None:
            return [(0, None)] * spec.group
        sign, offset = from_bits("fp64", group.scales[1])
        offset = -offset if sign else offset
        steps = [((code ^ 8) - 8 + 8 + offset) * s for code in group.codes]
        return [(int(v < 0), abs(v)) for v in steps]
    if spec.sides == 1 and scale_value(spec, group.scales[0]) is None:
        return [(0, None)] * spec.group
    values = [spec.element.value(code) for code in group.codes]
    if spec.metadata == "elem-em":
        for j, field in enumerate(group.meta):
            start = j * spec.subgroup
            magnitudes = [code & 7 for code in group.codes[start : start + spec.subgroup]]
            i = top_index(magnitudes, spec.choice)
            fine = E2M3_GRID[max(4 * magnitudes[i] + field - 1, 0)]
            values[start + i] = (values[start + i][0], fine)
    result: list[Value] = []
    for i, (sign, magnitude) in enumerate(values):
        scale = scale_value(spec, group.scales[sign if spec.sides == 2 else 0])
        if scale is None or magnitude is None:
            result.append((0, None))
            continue
        if spec.metadata == "sg-em":
            magnitude *= 1 + Fraction(group.meta[i // spec.subgroup], 4)
        if spec.metadata == "pair":
            magnitude /= 1 + group.meta[i // spec.subgroup]
        result.append((sign, magnitude * scale * unit))
    return result


def tensor_scale(spec: Spec, values: list[Value]) -> Fraction:
    """NVFP4's default second-level scale of a whole tensor."""
    amax = max((m for _, m in values if m is not None), default=Fraction(0))
    largest = spec.element.largest * SCALE_GRIDS[spec.scale][-1]
    return from_bits("fp32", to_bits("fp32", (0, amax / largest)))[1] or Fraction(1)


def group_bytes(spec: Spec, group: Group) -> bytes:
    """The group form: codes, then scale fields, then metadata, little-endian without gaps."""
    widths = {"fp32": [32], "affine": [32, 64]}.get(spec.scale, [8])
    bits, at = 0, 0
    for code in group.codes:
        bits |= code << at
        at += spec.element.bits
    for width, field in zip(widths * spec.sides, group.scales, strict=True):
        bits |= field << at
        at += width
    for field in group.meta:
        bits |= field << at
        at += 1 if spec.metadata == "pair" else 2
    return bits.to_bytes(-(-at // 8), "little")


# --- dot products --------------------------------------------------------------


def add_fp32(acc: int, addend: Fraction | None) -> int:
    """Return RNE_fp32(acc + addend) as bits; None is a NaN scale. A zero addend changes nothing."""
    sign, magnitude = from_bits("fp32", acc)
    infinite = acc & 0x7FFFFFFF == 0x7F800000
    if addend is None or (magnitude is None and not infinite):
        return 0x7FC00000
    if addend == 0 or infinite:
        return acc
    total = addend + (-magnitude if sign else magnitude)
    return to_bits("fp32", (int(total < 0), abs(total)))


def terms(
    specs: tuple[Spec, Spec], groups: tuple[Group, Group], lanes: int
) -> list[Fraction | None]:
    """Return what two groups add, in order: sums of ``lanes`` products, or, if a side has two
    scales, of the products of each class of signs: pp, pn, np, nn. None is no number."""
    values = [dequantize(spec, group) for spec, group in zip(specs, groups, strict=True)]
    classes = [(0, 1) if spec.sides == 2 else (None,) for spec in specs]
    signs = [
        [code >> (spec.element.bits - 1) for code in group.codes]
        for spec, group in zip(specs, groups, strict=True)
    ]
    found: list[Fraction | None] = []
    for s in classes[0]:
        for t in classes[1]:
            chosen = [
                i
                for i in range(specs[0].group)
                if (s is None or signs[0][i] == s) and (t is None or signs[1][i] == t)
            ]
            scales = [
                scale_value(spec, group.scales[side or 0])
                for spec, group, side in zip(specs, groups, (s, t), strict=True)
            ]
            if len(classes[0]) + len(classes[1]) > 2:
                parts = [chosen]
            else:
                parts = [chosen[i : i + lanes] for i in range(0, len(chosen), lanes)]
            for part in parts:
                pairs = [(values[0][i], values[1][i]) for i in part]
                if None in scales or any(m is None or n is None for (_, m), (_, n) in pairs):
                    found.append(None)
                    continue
                found.append(
                    sum(((-m * n if a != b else m * n) for (a, m), (b, n) in pairs), Fraction())
                )
    return found


def dot(
    specs: tuple[Spec, Spec],
    rows: tuple[list[Group], list[Group]],
    accumulator: str = "fp32",
    initial: int = 0,
    tensor_scales: tuple[Fraction, Fraction] | None = None,
) -> int:
    """Contract two rows of groups; return float32 bits."""
    acc, total, poisoned = initial, Fraction(0), False
    for a, w in zip(*rows, strict=True):
        lanes = specs[0].group
        if accumulator == "fp32_subgroup":
            lanes = specs[0].subgroup or specs[1].subgroup
        for addend in terms(specs, (a, w), lanes):
            if addend is None:
                poisoned = True
            else:
                total += addend
            acc = add_fp32(acc, addend)
    if accumulator == "exact":
        acc = 0x7FC00000 if poisoned else to_bits("fp32", (int(total < 0), abs(total)))
    if tensor_scales:
        g = from_bits("fp32", to_bits("fp32", (0, tensor_scales[0] * tensor_scales[1])))[1]
        sign, magnitude = from_bits("fp32", acc)
        if magnitude is not None:
            acc = to_bits("fp32", (sign, magnitude * g))
    return acc
