"""The exact accumulation: golden and Verilog against integers, windows, overflow, and faults."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from choices import usual_first
from exact_products import products
from mutation import Mutation, emit_mutant
from stream_checks import check as check_vectors

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.facts import EmittedFiles
from m2xfp.formats import (
    ALL_EXPONENTS,
    M2XFP_ACT,
    M2XFP_WEIGHT,
    MXFP4,
    NVFP4,
    USUAL_EXPONENTS,
    Window,
    window,
)
from m2xfp.golden import PackedTensor, dot, get_format
from m2xfp.golden.bits import running_exact_bits, to_bits
from m2xfp.golden.formats.products import running_exact
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.units.dot_product import DotProduct
from m2xfp.rtl.units.exact_accumulator import ExactAccumulator
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.parts import pair_stimulus
from m2xfp.tb.units.exact_accumulator import decode, encode, expected

UNIT = "exact_accumulator"
PAIR: Any = UNITS[UNIT].instance().component.pair  # type: ignore[attr-defined]
BLOCKS = (M2XFP_ACT, M2XFP_WEIGHT)
Emit = Callable[[str, str], EmittedFiles]
Words = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

# Each is a window where something happens that the usual one keeps far away.
NARROW = window("250..257/27")  # overflow after a few groups; three bits in a last digit
LOW = window("90..120/80")  # subnormal results, and sums that round to zero
HIGH = window("330..377/96")  # infinite results
ONE = window("254..254/48")  # a single exponent, a digit of one bit
WINDOWS = (USUAL_EXPONENTS, ALL_EXPONENTS, NARROW, LOW, HIGH, ONE)


def exact_steps(words: Words, bias: int, taken: Window) -> Iterable[tuple[int, bool]]:
    """Yield FP32 bits and ``inexact`` after each product, in integers, from the definition."""
    total, nan, inexact = 0, False, False
    for product, exponent, bad, first in zip(*(field.tolist() for field in words), strict=True):
        if first:
            total, nan, inexact = 0, False, False
        if bad:
            nan = True
        elif product and exponent < taken.lowest:
            inexact = True
        elif product and exponent > taken.highest:
            nan = inexact = True
        elif product and not nan:
            total += product << exponent - taken.lowest
            if not -(1 << taken.bits - 1) <= total < 1 << taken.bits - 1:
                nan = inexact = True
        value = Fraction(abs(total)) * reference.pow2(taken.lowest - bias)
        yield reference.to_bits("fp32", (int(total < 0), None if nan else value)), inexact


def words(taken: Window, count: int, seed: int) -> Words:
    """Return products of all lengths at exponents mostly inside a window, some that cancel."""
    rng = np.random.default_rng(seed)
    size = rng.integers(0, 1 << rng.integers(0, PAIR.product_bound.bit_length() + 1, count))
    product = np.minimum(size, PAIR.product_bound) * rng.choice([-1, 1], count)
    product[rng.random(count) < 0.05] = PAIR.product_bound
    exponent = rng.integers(taken.lowest, taken.highest + 1, count)
    outside = rng.random(count) < 0.02
    exponent[outside] = rng.integers(0, 509, outside.sum())
    edge = rng.random(count) < 0.02
    exponent[edge] = np.clip(rng.choice([taken.lowest - 1, taken.highest + 1], edge.sum()), 0, 508)
    # Every fourth takes back the one before it, some but for one unit: sums of 0 and of +-1.
    back = np.arange(3, count, 4)
    product[back] = -product[back - 1] + rng.integers(-1, 2, len(back)) * (rng.random() < 0.5)
    product = np.clip(product, -PAIR.product_bound, PAIR.product_bound)
    exponent[back] = exponent[back - 1]
    nan = rng.random(count) < 0.005
    first = rng.random(count) < 0.05
    first[back - 1] |= rng.random(len(back)) < 0.5
    return product, exponent, nan, first


def play(simulator: BulkSimulator, made: Words, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the accumulators and the warnings that the Verilog gives, with some pauses."""
    arrays = dict(zip(("product", "exponent", "nan", "first"), made, strict=True))
    run = simulator.run(encode(arrays, simulator.facts), stall=0.1, seed=seed)
    found = decode(run.outputs, arrays, simulator.facts)
    golden = expected(arrays, simulator.facts)
    assert np.array_equal(golden["acc"], found["acc"])
    assert np.array_equal(golden["inexact"], found["inexact"])
    return found["acc"], found["inexact"]


def check(simulator: BulkSimulator, taken: Window, count: int, seed: int) -> dict[str, int]:
    """Compare every result; return how often each special case came."""
    made = words(taken, count, seed)
    acc, inexact = play(simulator, made, seed)
    wanted = list(exact_steps(made, PAIR.bias, taken))
    for n, (bits, flag) in enumerate(wanted):
        assert (int(acc[n]), bool(inexact[n])) == (bits, flag), (taken.name, n, hex(bits), flag)
    magnitude = acc & 0x7FFFFFFF
    return {
        "inexact": int(inexact.sum()),
        "left out": int((inexact & (magnitude <= 0x7F800000)).sum()),
        "lost": int((inexact & (acc == 0x7FC00000)).sum()),
        "zero": int((acc == 0).sum()),
        "-0": int((acc == 0x80000000).sum()),
        "subnormal": int(((magnitude > 0) & (magnitude < 0x800000)).sum()),
        "infinite": int((magnitude == 0x7F800000).sum()),
    }


@pytest.fixture
def find_simulator(sim_dir: Path, tmp_path: Path) -> Callable[[Window], BulkSimulator]:
    """Return a function from a window to the simulation of the unit that is built for it."""

    def find(taken: Window) -> BulkSimulator:
        instance = UNITS[UNIT].instance(changes={"window": taken})
        return BulkSimulator(emit(instance, tmp_path), build_dir=sim_dir)

    return find


EXPECTED = {
    "usual": ("left out", "lost", "zero"),
    "all": ("zero", "subnormal", "infinite", "-0"),
    NARROW.name: ("left out", "lost", "zero"),
    LOW.name: ("subnormal", "-0", "zero"),
    HIGH.name: ("infinite", "zero"),
    ONE.name: ("left out", "lost", "zero"),
}


@pytest.mark.parametrize("taken", usual_first(WINDOWS, ["usual", NARROW.name, LOW.name]))
def test_accumulation(find_simulator: Callable[[Window], BulkSimulator], taken: Window) -> None:
    """Any D at any exponent against integers; each window's special cases do come."""
    found = check(find_simulator(taken), taken, 20_000, seed=1)
    assert all(found[case] > 10 for case in EXPECTED[taken.name]), found


@pytest.mark.slow
def test_accumulation_at_length(find_simulator: Callable[[Window], BulkSimulator]) -> None:
    for taken in WINDOWS:
        for seed in range(2, 6):
            check(find_simulator(taken), taken, 30_000, seed)


def test_carries_through_all_digits(find_simulator: Callable[[Window], BulkSimulator]) -> None:
    """-1 and +1 at the last place turn every digit at once, over and over."""
    taken = USUAL_EXPONENTS
    count = 4000
    rng = np.random.default_rng(5)
    product = rng.choice([-1, 1], count)
    exponent = np.where(rng.random(count) < 0.9, taken.lowest, taken.highest)
    first = rng.random(count) < 0.01
    made = product, exponent, np.zeros(count, bool), first
    acc, inexact = play(find_simulator(taken), made)
    wanted = list(exact_steps(made, PAIR.bias, taken))
    assert acc.tolist() == [bits for bits, _ in wanted]
    assert not inexact.any()


def test_room_to_grow(find_simulator: Callable[[Window], BulkSimulator]) -> None:
    """2^14 of the largest products fit the usual window, as its facts says; twice not."""
    count = 1 << 15
    made = (
        np.full(count, PAIR.product_bound),
        np.full(count, USUAL_EXPONENTS.highest),
        np.zeros(count, bool),
        np.arange(count) == 0,
    )
    _, inexact = play(find_simulator(USUAL_EXPONENTS), made)
    assert not inexact[: 1 << 14].any()
    assert inexact[-1]


def packed_groups(taken: Window, steps: int, count: int, seed: int) -> pair_stimulus.Groups:
    """Return random groups with exponents about a window, some that cancel, some NaN scales."""
    rng = np.random.default_rng(seed)
    act, weight, first = pair_stimulus.cancelling(rng, BLOCKS, steps, count)
    margin = rng.choice([0, 0, 0, 9], (steps, count))
    low, high = np.maximum(taken.lowest - margin, 0), np.minimum(taken.highest + margin, 508)
    total = rng.integers(low, high + 1)
    odd = np.arange(1, steps, 2)
    total[odd] = total[odd - 1]
    one = rng.integers(np.maximum(0, total - 254), np.minimum(254, total) + 1)
    one[odd] = one[odd - 1]
    act[..., 16], weight[..., 16] = one, total - one
    act[..., 16] |= np.where(rng.random((steps, count)) < 0.005, 0xFF, 0).astype(np.uint8)
    first |= rng.random((steps, count)) < 0.1
    return act, weight, first


@pytest.mark.parametrize("taken", WINDOWS, ids=lambda taken: taken.name)
def test_golden(taken: Window) -> None:
    """The golden model's running sums against integers, from packed bytes on."""
    act, weight, first = packed_groups(taken, 40, 30, seed=3)
    names = [block.name for block in BLOCKS]
    acc, inexact = running_exact_bits(
        *names, act.swapaxes(0, 1), weight.swapaxes(0, 1), first.T, taken
    )
    warned = 0
    for row in range(act.shape[1]):
        total, exponent, nan = products(PAIR, act[:, row], weight[:, row])
        wanted = list(exact_steps((total, exponent, nan, first[:, row]), PAIR.bias, taken))
        assert acc[row].tolist() == [bits for bits, _ in wanted]
        assert inexact[row].tolist() == [flag for _, flag in wanted]
        warned += sum(flag for _, flag in wanted)
    assert warned > 20 or taken is ALL_EXPONENTS


@pytest.mark.parametrize("starts", [True, False])
def test_golden_in_parts(starts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long sums are worked on in parts, which go on where the one before has ended."""
    act, weight, first = packed_groups(NARROW, 40, 3, seed=4)
    names = [block.name for block in BLOCKS]
    if not starts:
        first[:] = False
    given = (*names, act.swapaxes(0, 1), weight.swapaxes(0, 1), first.T, NARROW)
    whole = running_exact_bits(*given)
    assert whole[1].any()
    assert not whole[1].all()
    for steps in (1, 7):
        monkeypatch.setattr("m2xfp.golden.formats.running._CHUNK_SUMS", 23 * 3 * steps)
        for found, wanted in zip(running_exact_bits(*given), whole, strict=True):
            assert np.array_equal(found, wanted)


@pytest.mark.parametrize("names", [("m2xfp-act", "m2xfp-weight"), ("mxfp4", "mxfp4")])
def test_all_exponents_equal_the_plain_exact_product(names: tuple[str, str]) -> None:
    generator = torch.Generator().manual_seed(2)
    a, w = (
        get_format(name).quantize(
            torch.randn(50, 320, generator=generator) * torch.logspace(-20, 20, 320)
        )
        for name in names
    )
    acc, inexact = running_exact(a, w)
    assert np.array_equal(to_bits(acc[:, -1]), to_bits(dot(a, w, accumulator="exact")))
    assert not inexact.any()


def test_language_model_fits_the_usual_window() -> None:
    """The groups of the bundled model's layers on held-out text, eight exponents from its ends."""
    from m2xfp.synth.gate_sim.stimulus import operands

    given = operands("model", 1, 5_000)
    a = get_format("m2xfp-act").quantize(given.activations.reshape(100, -1))
    w = get_format("m2xfp-weight").quantize(given.weights.reshape(100, -1))
    there = (a.codes.unflatten(-1, (-1, 16)) & 0x77 != 0).any(-1)
    sums = (a.scales.int() + w.scales.int())[there]
    assert USUAL_EXPONENTS.lowest + 8 <= sums.min()
    assert sums.max() <= USUAL_EXPONENTS.highest - 8
    acc, inexact = running_exact(a, w, window=USUAL_EXPONENTS)
    assert not inexact.any()
    assert np.array_equal(to_bits(acc[:, -1]), to_bits(dot(a, w, accumulator="exact")))


@pytest.mark.parametrize("config", usual_first(["m2xfp-exact", "m2xfp-exact-all"], ["m2xfp-exact"]))
def test_dot_product(emitted: Emit, sim_dir: Path, config: str) -> None:
    """Packed groups through the whole unit against the golden model."""
    simulator = BulkSimulator(emitted("dot_product", config), build_dir=sim_dir)
    for seed in range(3):
        made = packed_groups(window(simulator.facts.parameters["window"]), 60, 500, seed)
        vectors = pair_stimulus.pair_vectors(simulator.facts, *made, seed=seed)
        check_vectors(simulator, vectors, stall=0.1 * seed, seed=seed)


@pytest.mark.parametrize("numbers", [(-1, 5, 40), (6, 5, 40), (0, 509, 600), (0, 40, 41)])
def test_what_is_no_window(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="window"):
        Window("wrong", *numbers)


def test_unknown_window() -> None:
    with pytest.raises(UnknownNameError, match="usual"):
        window("wide")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"window": Window("short", 208, 271, 81)}, "needs 82"),
        ({"window": Window("tiny", 254, 254, 25)}, "needs 26"),
        ({"window": Window("below", 0, 20, 60)}, "top must lie"),
        ({"window": Window("above", 400, 508, 300), "act": MXFP4, "weight": MXFP4}, "2\\^383"),
        ({"act": NVFP4, "weight": NVFP4}, "e8m0"),
    ],
)
def test_wrong_windows_are_refused(keywords: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExactAccumulator(**keywords)


def test_one_chain() -> None:
    with pytest.raises(InputError, match="chains=3"):
        DotProduct(window=USUAL_EXPONENTS)


def test_golden_refuses_other_scales() -> None:
    packed = get_format("nvfp4").quantize(torch.ones(2, 32))
    assert isinstance(packed, PackedTensor)
    with pytest.raises(InputError, match="E8M0"):
        running_exact(packed, packed)


EXACT, FP32 = "m2xfp.rtl.parts.exact_accumulation", "m2xfp.rtl.parts.fp32_rounding"
FAULTS = [
    Mutation("a digit's carry is lost", EXACT, "carry = held", "carry = Const(0, 1)"),
    Mutation("a carry kept over first", EXACT, "_DIGIT] + (carry & keep)", "_DIGIT] + carry"),
    Mutation("carries do not pass", EXACT, "((digit[0] ^ held) & passed)", "Const(0, 1)"),
    Mutation("carry beside a carry", EXACT, "(digit[0] & held) | (", "(Const(0, 1)) | ("),
    Mutation(
        "below is not told", EXACT, "return addend, number & low,", "return addend, Const(0, 1),"
    ),
    Mutation(
        "above is not told", EXACT, "number & low, number & high", "number & low, Const(0, 1)"
    ),
    Mutation("zero has an exponent", EXACT, "~i.nan & i.product.any()", "~i.nan"),
    Mutation("NaN has an exponent", EXACT, "self.valid & ~i.nan & i", "self.valid & i"),
    Mutation("overflow is not told", EXACT, "above | outside", "above"),
    Mutation("a warning is forgotten", EXACT, "(inexact & running.kept)", "Const(0, 1)"),
    Mutation("a warning stays over first", EXACT, "(inexact & running.kept)", "inexact"),
    Mutation("-1 vanishes", EXACT, "Cat(Const(0, 1), total[: bits - 1])", "total[:bits]"),
    Mutation("highest is left out", EXACT, "(distance > Const", "(distance >= Const"),
    Mutation("lowest is left out", EXACT, "place[:-1], place[-1]", "place[:-1], place < 1"),
    Mutation("not cleared by reset", EXACT, "Signal(init=1)", "Signal()"),
    Mutation("ties away", FP32, "guard & (odd | rest.any() | i.borrowed)", "guard"),
    Mutation("no sticky", FP32, "odd | rest.any() | i.borrowed", "odd | i.borrowed"),
    Mutation("NaN is not told", EXACT, "| running.nan |", "|"),
]


def regress(simulator: BulkSimulator) -> None:
    """Play what each fault must be seen in; AssertionError if a result differs."""
    for seed in range(3):
        made = words(USUAL_EXPONENTS, 6000, seed)
        made[3][0] = False  # nothing but reset clears the sum at the start
        acc, inexact = play(simulator, made, seed)
        wanted = list(exact_steps(made, PAIR.bias, USUAL_EXPONENTS))
        assert [(int(a), bool(b)) for a, b in zip(acc, inexact, strict=True)] == wanted
    test_room_to_grow(lambda _: simulator)


@pytest.mark.parametrize(
    "fault",
    usual_first(FAULTS, ["overflow is not told", "below is not told"]),
    ids=lambda fault: fault.name,
)
def test_regression_notices(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    simulator = BulkSimulator(emit_mutant(fault, UNIT, "m2xfp", tmp_path), build_dir=sim_dir)
    with pytest.raises((AssertionError, SimulationError)):
        regress(simulator)
