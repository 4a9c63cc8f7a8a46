"""The accelerator before a memory that pauses, fails, or does not answer; a descriptor fuzzer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from m2xfp.facts import EmittedFiles, Facts
from m2xfp.rtl.parts.descriptor_checker import CAUSES
from m2xfp.tb.axi.model import AxiModel
from m2xfp.tb.parts.accelerator_traffic import Descriptor, Memory
from m2xfp.tb.parts.gemm_arrays import GemmStreams, Product
from m2xfp.tb.parts.gemm_regression import random_products
from m2xfp.tb.units.accelerator import core_of, golden_product, place

UNIT, CONFIG = "accelerator", "m2xfp-2x2"
BYTES = 1 << 20
SLOT = 1 << 17  # of each descriptor's operands and results
SEQUENCES, SLOW_SEQUENCES = 60, 100_000
Emit = Callable[[str, str], EmittedFiles]
UNTOUCHED = 0xEE


class Place(Memory):
    """The model's memory, for what places operands."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        super().__init__()
        self._memory = memory

    def write(self, address: int, content: NDArray[np.uint8]) -> None:
        self._memory[address : address + len(content)] = content

    def read(self, address: int, length: int) -> NDArray[np.uint8]:
        return self._memory[address : address + length]


@pytest.fixture
def model(emitted: Emit, sim_dir: Path) -> Iterator[AxiModel]:
    with AxiModel(emitted(UNIT, CONFIG), BYTES, seed=7, build_dir=sim_dir) as made:
        made.write("int_enable", 1)
        yield made


def products(facts: Facts, seed: int, count: int, most: int = 3) -> list[Product]:
    rng = np.random.default_rng(seed)
    return random_products(rng, GemmStreams(core_of(facts)), count, most)


def prepare(model: AxiModel, product: Product, index: int, number: int = 0) -> Descriptor:
    """Place a product in its part of the memory; only its results may be written."""
    memory = Place(model.memory)
    descriptor = place(product, model.facts, memory, index * SLOT, number or index)
    m, n, _ = product.sizes
    length, pitch = n * descriptor.value_bytes, descriptor["out_pitch"]
    start = descriptor["out"]
    model.memory[start - 4 : start + m * pitch] = UNTOUCHED
    for row in range(m):
        model.allow(start + row * pitch, start + row * pitch + length)
    return descriptor


def results(model: AxiModel, product: Product, descriptor: Descriptor) -> NDArray[Any]:
    m, n, _ = product.sizes
    rows = Place(model.memory).read_rows(descriptor["out"], descriptor["out_pitch"], m, 4 * n)
    return np.ascontiguousarray(rows).view("<u4")


def ended(model: AxiModel, count: int) -> None:
    """Wait until so many descriptors have ended since the last call."""
    before = getattr(model, "ended", 0)
    for _ in range(count + 1):
        assert model.wait(200_000), "it hangs"
        model.write("int_status", 3)
        if model.read("completed")[0] == before + count:
            break
    assert model.read("completed")[0] == before + count
    assert not model.field("status", "busy")
    model.ended = before + count  # type: ignore[attr-defined]


def cause(model: AxiModel) -> tuple[int, int]:
    """Return cause and descriptor of the error, and clear it."""
    found = model.field("error", "cause"), model.field("error", "descriptor")
    assert model.field("error", "valid") == (found[0] != 0)
    model.write("error", 1 << 31)
    assert model.read("error")[0] == 0
    return found


@pytest.mark.parametrize(
    "memory",
    [{}, {"latency": 100}, {"pauses": 0.3, "latency": 7}, {"rate": 3.0, "latency": 30}],
    ids=str,
)
def test_a_queue_of_products(model: AxiModel, memory: dict[str, Any]) -> None:
    model.set_memory(**memory)
    given = products(model.facts, 11, 6, 16)
    placed = [(p, prepare(model, p, index)) for index, p in enumerate(given)]
    for _, descriptor in placed:
        model.push(descriptor)
    ended(model, len(placed))
    for product, descriptor in placed:
        assert np.array_equal(
            results(model, product, descriptor), golden_product(product, model.facts)
        )
    assert cause(model) == (0, 0)
    assert model.read("cycles")[0] > 0


# --- what the bus does ----------------------------------------------------------------------------

PLACES = ("a_codes", "a_scales", "a_meta", "w_codes", "w_scales", "w_meta", "out")


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("response", [2, 3])
def test_an_error_of_the_bus_ends_the_descriptor_alone(
    model: AxiModel, name: str, response: int
) -> None:
    model.set_memory(latency=9)
    first, _, third = given = products(model.facts, 12, 3)
    placed = [prepare(model, product, n, 40 + n) for n, product in enumerate(given)]
    model.answer(placed[1][name], placed[1][name] + 1, response)
    for descriptor in placed:
        model.push(descriptor)
    ended(model, 3)
    kind = f"{'write' if name == 'out' else 'read'}_{'slverr' if response == 2 else 'decerr'}"
    assert cause(model) == (CAUSES[kind], 41)
    for product, descriptor in ((first, placed[0]), (third, placed[2])):
        assert np.array_equal(
            results(model, product, descriptor), golden_product(product, model.facts)
        )


@pytest.mark.parametrize("name", PLACES)
def test_an_answer_that_does_not_come(model: AxiModel, name: str) -> None:
    """It is a timeout; when the bus comes back, what it answers late belongs to nobody."""
    model.set_memory(latency=3)
    model.write("timeout", 300)
    first, second = products(model.facts, 13, 2)
    descriptor = prepare(model, first, 0, 8)
    model.answer(descriptor[name], descriptor[name] + 1, 4)
    model.push(descriptor)
    ended(model, 1)
    assert cause(model) == (CAUSES["timeout"], 8)
    model.push(prepare(model, second, 1, 9))  # the bus is still dead, or answers later ones first
    ended(model, 1)
    model.forget()
    cause(model)
    again = prepare(model, second, 2, 10)
    model.push(again)
    ended(model, 1)
    assert cause(model) == (0, 0)
    assert np.array_equal(results(model, second, again), golden_product(second, model.facts))


@pytest.mark.parametrize("name", ["a_codes", "a_scales", "w_meta", "out"])
def test_beyond_the_last_address(model: AxiModel, name: str) -> None:
    """A row that does not fit below 2^32 is neither read nor written."""
    model.set_memory(latency=2000)
    (product,) = products(model.facts, 14, 1)
    whole = prepare(model, product, 0, 3)
    # A chunk of 8 groups: of scales and metadata the first row ends with the last address.
    start = (1 << 32) - (16 if name in ("a_codes", "out") else 8)
    bad = Descriptor({**whole.words, name: start, "m": 9, "n": 9, "k": 256}, 3)
    model.allow(1 << 31, 1 << 32)
    model.push(bad)
    ended(model, 1)
    assert cause(model)[0] in (CAUSES["address"], CAUSES["write_decerr"])
    model.set_memory()
    again = prepare(model, product, 1, 4)
    model.push(again)
    ended(model, 1)
    assert np.array_equal(results(model, product, again), golden_product(product, model.facts))


def test_a_reset_forgets_everything(model: AxiModel) -> None:
    (product,) = products(model.facts, 15, 1, 16)
    for clocks in (1, 60, 90, 130, 200):
        model.push(prepare(model, product, 0))
        model.wait(clocks)
        model.reset()
        model.ended = 0  # type: ignore[attr-defined]
        model.write("int_enable", 1)
        again = prepare(model, product, 1)
        model.push(again)
        ended(model, 1)
        assert np.array_equal(results(model, product, again), golden_product(product, model.facts))


# --- the fuzzer -----------------------------------------------------------------------------------

WORDS = {
    "operation": (0, 4, 1 << 31),
    "kind": (3, 1 << 20),
    "m": (0, 1 << 20, 0xFFFFFFFF),
    "n": (0, 1 << 20),
    "k": (0, 16, 33, 544, 1 << 25),
    "a_codes": (4, 1 << 40),
    "w_scales": (1 << 32, 1 << 63),
    "a_codes_pitch": (8, 0xFFFFFFF1),
    "out": (1, 2, 3, 1 << 33),
    "out_pitch": (2, 5),
}


def sequence(model: AxiModel, rng: np.random.Generator) -> None:
    """Push a few descriptors, right and wrong, before a memory of some kind; all must be told."""
    model.forget()
    model.set_memory(
        pauses=float(rng.choice([0, 0, 0.2, 0.6])), latency=int(rng.choice([0, 1, 20, 100]))
    )
    placed = []
    wrong: set[int] = set()
    failing: dict[int, int] = {}
    for index, product in enumerate(products(model.facts, int(rng.integers(1 << 30)), 4, 2)):
        number = int(rng.integers(1, 1 << 15)) * 2 + (index & 1)
        descriptor = prepare(model, product, index, number)
        kind = rng.choice(["good", "good", "good", "word", "bus"])
        if kind == "word":
            name = str(rng.choice(list(WORDS)))
            word = int(rng.choice(WORDS[name]))
            descriptor = Descriptor({**descriptor.words, name: word}, number)
            wrong.add(index)
        elif kind == "bus":
            start = descriptor[str(rng.choice(PLACES))]
            model.answer(start, start + 1, int(rng.choice([2, 3])))
            failing[index] = number
        placed.append((product, descriptor))
    for _, descriptor in placed:
        model.push(descriptor)
    ended(model, len(placed))
    found = cause(model)
    bad = sorted(wrong | set(failing))
    assert bool(found[0]) == bool(bad)
    if bad:
        assert found[1] == placed[bad[0]][1].number
    for index, (product, descriptor) in enumerate(placed):
        if index not in wrong and index not in failing:
            wanted = golden_product(product, model.facts)
            assert np.array_equal(results(model, product, descriptor), wanted), index


def test_sequences_of_descriptors(model: AxiModel) -> None:
    rng = np.random.default_rng(16)
    for _ in range(SEQUENCES):
        sequence(model, rng)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_sequences_of_descriptors(model: AxiModel) -> None:
    rng = np.random.default_rng(17)
    for _ in range(SLOW_SEQUENCES):
        sequence(model, rng)
