"""The products of a CPU: every kind of processor, every kind of integer, and faults in the code."""

import ctypes
from pathlib import Path

import pytest
import torch
from product_checks import Case, differences, operands, random_case, words

from m2xfp.errors import InputError
from m2xfp.golden import PackedTensor, computing, get_format, matmul
from m2xfp.golden.kernels import integers, library, products_native

M2XFP = ("m2xfp-act", "m2xfp-weight")
# What no pair of tests/product_checks.py has: three limbs, limbs beside bytes, other scales.
WIDE = (
    ("mxfp8-e5m2", "mxfp8-e5m2", "exact"),
    ("mxfp8-e5m2", "mxfp8-e4m3", "exact"),
    ("mxfp8-e4m3", "mxfp8-e4m3", "exact"),
    ("mxfp4", "mxfp8-e5m2", "fp32"),
    ("mxfp8-e5m2", "m2xfp-weight", "fp32_subgroup"),
    ("mxfp4:scale_mode=e5m2", "mxfp4:scale_mode=e5m2", "fp32"),
    ("mxfp4:scale_mode=e5m2", "mxfp4:scale_mode=e4m3", "exact"),
    ("m2xfp-act:subgroup=2", "m2xfp-weight:subgroup=2", "fp32_subgroup"),
    ("int4", "int4", "fp32"),
    ("mxfp8-e4m3:group=256", "mxfp8-e4m3:group=256", "exact"),
    ("mxfp6-e3m2:group=256", "mxfp6-e3m2:group=256", "fp32"),
)
# One of each mode and kind of integer.
KINDS = (
    Case(M2XFP, m=15, n=37, spread=9, nan=0.01, seed=1),
    Case(M2XFP, "fp32_subgroup", m=8, n=33, spread=90, seed=2),
    Case(M2XFP, "exact", m=13, n=35, groups=6, spread=9, cancel=True, seed=3),
    Case(M2XFP, "exact", m=5, n=35, groups=6, spread=80, nan=0.01, seed=4),
    Case(("mxfp6-e3m2", "mxfp6-e2m3"), m=13, n=35, seed=5),
    Case(("mxint8", "mxint8"), m=13, n=35, seed=6),
    Case(("mxfp8-e4m3", "mxfp8-e4m3"), m=13, n=35, groups=6, spread=40, cancel=True, seed=7),
    Case(("mxfp8-e4m3", "mxfp8-e4m3"), "exact", m=9, n=35, groups=6, spread=2, seed=8),
    Case(("mxfp8-e5m2", "mxfp8-e5m2"), "exact", m=9, n=35, groups=6, spread=2, seed=9),
    Case(("mxfp8-e5m2", "mxfp8-e5m2"), "exact", m=5, n=19, groups=6, spread=70, seed=10),
    Case(("m2nvfp4-act", "m2nvfp4-weight"), "exact", m=9, n=35, seed=11),
)
LEVELS = ("vnni512", "avx512", "vnni256", "avx2", "any")


@pytest.fixture(params=[n if n == "avx2" else pytest.param(n, marks=pytest.mark.slow)
                        for n in LEVELS])  # fmt: skip
def level(request, monkeypatch):
    """Load the library of a lower level of processors than this one may be."""
    features = frozenset(library._LEVELS[LEVELS.index(request.param)])
    here = library._features()
    if not here.issuperset(features):
        pytest.skip(f"this processor lacks {', '.join(sorted(features - here))}")
    monkeypatch.setattr(library, "_features", lambda: features)
    products_native.LIBRARY.forget()
    yield request.param
    products_native.LIBRARY.forget()


def directed() -> list[tuple[PackedTensor, PackedTensor, str]]:
    """Return products that random bytes do not make."""
    names = ("m2nvfp4-act:group=64", "m2nvfp4-weight:group=64")
    large = operands(Case(names, m=9, n=40, groups=6, seed=20))  # sums of over 24 bits with scales
    for field, packed in enumerate(large):
        packed.codes.bitwise_and_(0x11).bitwise_or_(0x66)
        groups = packed.codes.unflatten(-1, (-1, 32)), packed.meta.unflatten(-1, (-1, 2))
        groups[0][..., :4] = 0x11  # whose products make the sums odd
        groups[1][..., 0].bitwise_and_(0xFC).bitwise_or_(field)
        packed.scales.bitwise_and_(0x77).bitwise_or_(7)
    empty = operands(Case(M2XFP, m=3, n=35, groups=4, seed=21))
    empty[0].scales[1, 2], empty[1].scales[:, 2] = 250, 250  # but infinity times nothing is nothing
    empty[0].codes[1, 16 * 2 : 16 * 3] = 0
    empty[0].meta[1, 2] = 0x55
    nan = operands(Case(("mxfp8-e4m3", "mxfp8-e4m3"), m=3, n=35, groups=3, seed=22))
    nan[0].codes[1, 40], nan[1].codes[7, 3] = 127, 255
    tie = torch.zeros(2, 3, 17, dtype=torch.uint8)  # 1 + 2^-24 + 2^-100, and its opposite
    tie[0, :, 0], tie[1, :, 0] = 2, 10
    tie[..., 16] = torch.tensor([127, 103, 27])
    one = torch.zeros(1, 3, 17, dtype=torch.uint8)
    one[..., 0], one[..., 16] = 2, 127
    near = [PackedTensor.from_groups(get_format("mxfp4"), data) for data in (tie, one)]
    return [(*large, "fp32"), (*empty, "fp32"), (*nan, "fp32"), (*near, "exact")]


def directed_differences() -> int:
    """Count results of those that differ from the plain path in a bit."""
    total = 0
    for case in directed():
        with computing("plain"):
            wanted = matmul(*case)
        total += int((words(matmul(*case)) != words(wanted)).sum())
    return total


def test_directed_products():
    large, empty, nan, near = directed()
    with computing("fused"):
        assert directed_differences() == 0
        assert matmul(*large).isfinite().all()
        assert not matmul(*empty)[1].isnan().any()
        assert matmul(*nan).isnan().sum() == 35 + 2
        assert matmul(*near).flatten().tolist() == [1 + 2.0**-23, -1 - 2.0**-23]


def test_every_level_of_processors_gives_the_same_bits(level):
    limit = products_native.LIBRARY.load().m2xfp_largest_pair()
    assert limit == {"avx512": 32767, "avx2": 32767, "any": 0}.get(level, 1 << 30)
    for case in KINDS:
        with computing("fused"):
            assert differences(case) == 0, case


def test_the_level_is_part_of_a_library_s_name(monkeypatch, tmp_path):
    """Machines of different kinds may share a cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = []
    for features in ({}, {*library._AVX2, "mmx"}, {*library._AVX512}, {*library._LEVELS[0]}):
        monkeypatch.setattr(library, "_features", lambda features=features: frozenset(features))
        found.append(library._level_flags())
    assert found[0] == ()
    assert found[1] == ("-mavx2", "-mfma", "-mf16c", "-mbmi2")
    assert found[3][-1] == "-mavx512vnni"
    built = library.Library(Path(__file__).with_name("no.cpp"), (), lambda lib: None)
    names = []

    def compiled(command: list[str], path: Path) -> None:
        names.append(path.name)
        raise RuntimeError

    monkeypatch.setattr(Path, "read_text", lambda self, **_: "")
    monkeypatch.setattr(built, "_compile", compiled)
    for features in ({}, {*library._AVX2}):
        monkeypatch.setattr(library, "_features", lambda features=features: frozenset(features))
        with pytest.raises(RuntimeError):
            built._built()
    assert len(set(names)) == 2


@pytest.mark.parametrize(("act", "weight", "accumulator"), WIDE)
def test_wide_elements_and_other_scales(act, weight, accumulator):
    for spread, nan, cancel in ((2, 0.0, False), (60, 0.01, True)):
        case = Case((act, weight), accumulator, 9, 37, 6, 127, spread, nan, cancel, seed=spread)
        with computing("fused"):
            assert differences(case) == 0, case


@pytest.mark.slow
@pytest.mark.parametrize(("act", "weight", "accumulator"), WIDE)
def test_wide_elements_at_random(act, weight, accumulator):
    for seed in range(300):
        given = random_case(seed)
        case = Case((act, weight), accumulator, given.m, given.n, given.groups, given.center,
                    given.spread, given.nan, given.cancel, seed=seed)  # fmt: skip
        assert differences(case) == 0, case


@pytest.mark.parametrize("accumulator", ["fp32", "exact"])
def test_infinite_elements(accumulator):
    """Infinity, with its opposite or times zero too, poisons its group; other rows stay."""
    fmt, other = get_format("mxfp8-e5m2"), get_format("mxfp4")
    data = torch.zeros(5, 2, 33, dtype=torch.uint8)
    data[..., 32] = 127
    data[0, 0, 0] = data[1, 0, 0] = data[2, 0, 3] = 124
    data[1, 1, 0], data[3, 0, 0] = 252, 127  # the other infinity; NaN
    data[4, :, 0] = 60
    weights = torch.zeros(1, 2, 17, dtype=torch.uint8)
    weights[..., 0], weights[..., 16] = 2, 127
    a, w = PackedTensor.from_groups(fmt, data), PackedTensor.from_groups(other, weights)
    wanted = torch.tensor([*[float("nan")] * 4, 2.0])
    for path in ("plain", "auto"):
        with computing(path):
            found = matmul(a, w, accumulator).flatten()
            assert torch.equal(found.nan_to_num(7.0), wanted.nan_to_num(7.0)), path
            assert torch.equal(matmul(w, a, accumulator).flatten().isnan(), wanted.isnan())
    with computing("fused"), pytest.raises(InputError, match="infinite elements on the CPU"):
        matmul(a, w, accumulator)


@pytest.mark.parametrize("item", [1, 2])
def test_the_largest_integers_do_not_saturate(item, monkeypatch):
    """Bytes at their bounds, where sums of two products pass 16 bits."""
    fmt = get_format("mxint8")
    data = torch.full((8, 4, 33), 127, dtype=torch.uint8)
    data[::2, :, :32] = 128  # -128, which no quantizer gives
    packed = PackedTensor.from_groups(fmt, data)
    with computing("plain"):
        wanted = matmul(packed, packed)
    load = products_native.LIBRARY.load()
    limit = (1 << 30) if item == 1 and load.m2xfp_largest_pair() > 32767 else 32767
    integers.pair_of.cache_clear()
    monkeypatch.setattr(products_native, "pair_of",
                        lambda a, w, lanes, _: integers.pair_of(a, w, lanes, limit))  # fmt: skip
    assert torch.equal(words(matmul(packed, packed)), words(wanted))


# Each fault is one that a hand could make: old text, new text, the file.
FAULTS = {
    "no fma": ("products_vectors.h", "_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c)",
               "_mm512_add_ps(_mm512_mul_ps((__m512)a, (__m512)b), (__m512)c)"),
    "no rounding to odd": ("products_vectors.h", "_mm512_mask_blend_pd(take, above, below)",
                           "_mm512_add_pd(t, p)"),
    "zeros change an accumulator": ("products_vectors.h", "product == 0.0 ? acc : odd", "odd"),
    "limbs swapped": ("products_native.cpp", "sums[1] = d[2] - d[0] - d[1], sums[2] = d[1];",
                      "sums[1] = d[1], sums[2] = d[2] - d[0] - d[1];"),
    "a cross product forgotten": ("products_native.cpp", "d[4] - d[0] - d[2] + d[1]",
                                  "d[4] - d[0] - d[2]"),
    "NaN scales forgotten": ("products_unpack.h", "odd |= scale[2];", ""),
    "NaN elements forgotten": ("products_unpack.h", "odd |= r.special[codes[i]]", "odd |= 0"),
    "empty groups keep their scale": ("products_unpack.h", "counts ? scale[1] + r.unit : NOWHERE",
                                      "odd ? NOWHERE : scale[1] + r.unit"),
    "no corrections": ("products_unpack.h", "-r.is_right * sum", "0"),
    "the last of equals is refined": ("products_unpack.h", "<< 8 | (255 - i);\n", "<< 8 | i;\n"),
    "fields mixed up": ("products_unpack.h", "(s * r.field_bits % 8) & mask", "0 & mask"),
    "shifts start too high": ("products_unpack.h", "scale->exponent -= low;",
                              "scale->exponent -= low - 1;"),
    "significands forgotten": ("products_native.cpp", "factor *= a.factor", "factor *= 1"),
    "sums cut off": ("products_vectors.h", "kept |= (size &", "kept |= 0 & (size &"),
    "low digits cut off": ("products_vectors.h", "head |= more;", ""),
    "negative digits": ("products_vectors.h", "rounded(negative ? -head : head,", "rounded(head,"),
    "the second vector of outputs": ("products_native.cpp", "w_scales + v * LANES, job.limb",
                                     "w_scales, job.limb"),
    "rows beyond the last block": ("products_native.cpp", "for (; row < job.m; ++row) micro",
                                   "for (; row < 0; ++row) micro"),
}  # fmt: skip
NOTICED = (
    *KINDS,
    Case(("mxfp8-e4m3", "mxfp8-e4m3"), m=40, n=70, groups=8, spread=30, seed=12),
    Case(M2XFP, m=30, n=40, groups=8, center=10, spread=9, seed=13),
    Case(("mxfp4", "mxfp4"), m=30, n=40, groups=8, center=240, spread=14, seed=14),
)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_code_is_noticed(fault, monkeypatch, tmp_path):
    name, old, new = FAULTS[fault]
    if "_mm512" in old and "avx512dq" not in library._features():
        pytest.skip("this processor has no AVX-512")
    source = products_native.LIBRARY.source
    for path in (source, *products_native.LIBRARY.headers):
        text = path.read_text()
        if path.name == name:
            assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
            text = text.replace(old, new)
        (tmp_path / path.name).write_text(text)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = library.Library(
        tmp_path / source.name,
        ("-O1", "-ffp-contract=off"),  # no fma where there is none in the source
        products_native.LIBRARY.declare,
        tuple(path.name for path in products_native.LIBRARY.headers),
    )
    monkeypatch.setattr(products_native, "LIBRARY", broken)
    assert directed_differences() or any(differences(case) for case in NOTICED)


def test_what_libraries_are_given_has_the_size_that_they_read():
    """A field more or fewer in one of the two descriptions would shift all that follow."""
    assert ctypes.sizeof(products_native._Job) == 9 * 8 + 4 * 8 + 3 * 4 + 4
    assert ctypes.sizeof(products_native._Recipe) == 4 * 8 + 15 * 4 + 4
    assert ctypes.sizeof(products_native._Rows) == 11 * 8


def test_operands_have_the_integers_of_the_format():
    act = integers.integers_of(get_format("m2xfp-act").key)
    weight = integers.integers_of(get_format("m2xfp-weight").key)
    assert (act.unit, act.largest) == (-3, 56)
    assert (weight.unit, weight.largest) == (-3, 84)
    assert integers.integers_of(get_format("amxfp4").key) is None
    qa, qw = operands(Case(M2XFP))
    pair = products_native._pair(qa, qw, "fp32", 32)
    assert pair.planes == 1
    wide = integers.pair_of(get_format("mxfp8-e5m2").key, get_format("mxfp4").key, 32, 0)
    for value in (0, 1, -1, 57344 << 16, -(57344 << 16), 123456789):
        low, middle, high, *sums = wide.limbs(value)
        assert low + (middle << 11) + (high << 22) == value
        assert sums == [low + middle, low + high, middle + high]
        assert all(-(1 << 15) <= n < 1 << 15 for n in (low, middle, high, *sums))
