"""The accelerator before a memory that pauses, fails, or does not answer; a descriptor fuzzer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutation import Mutation, emit_mutant
from numpy.typing import NDArray

from m2xfp.facts import EmittedFiles, Facts
from m2xfp.rtl.parts.descriptor_checker import CAUSES, ENCODE, GEMM, QUANTIZE
from m2xfp.tb.axi.model import AxiError, AxiModel
from m2xfp.tb.parts.accelerator_tasks import (
    Task,
    core_of,
    place,
    random_tasks,
    read_results,
    task_results,
    written,
)
from m2xfp.tb.parts.accelerator_traffic import Descriptor, Memory
from m2xfp.tb.parts.gemm_arrays import GemmStreams
from m2xfp.tb.parts.gemm_regression import random_products

UNIT, CONFIG = "accelerator", "m2xfp-2x2"
BYTES = 1 << 20
SLOT = 1 << 17  # of each descriptor's operands and results
SEQUENCES, SLOW_SEQUENCES = 60, 10_000
SLOW_SEEDS = range(17, 27)  # a hundred thousand sequences in all
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


def products(facts: Facts, seed: int, count: int, most: int = 3) -> list[Task]:
    rng = np.random.default_rng(seed)
    found = random_products(rng, GemmStreams(core_of(facts)), count, most)
    return [Task(GEMM, product=product) for product in found]


def prepare(model: AxiModel, task: Task, index: int, number: int = 0) -> Descriptor:
    """Place a task in its part of the memory; only its results may be written."""
    descriptor = place(task, model.facts, Place(model.memory), index * SLOT, number or index)
    for start, end in written(task, model.facts, descriptor):
        model.memory[start:end] = UNTOUCHED
        model.allow(start, end)
    return descriptor


def right(model: AxiModel, task: Task, descriptor: Descriptor) -> bool:
    """Whether the memory has a task's results."""
    found = read_results(task, model.facts, descriptor, Place(model.memory))
    return np.array_equal(found, task_results(task, model.facts))


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
        assert right(model, product, descriptor)
    assert cause(model) == (0, 0)
    assert model.read("cycles")[0] > 0


# --- what the bus does ----------------------------------------------------------------------------

PLANES = ("out", "out_scales", "out_meta")
PLACES = {
    GEMM: ("a_codes", "a_scales", "a_meta", "w_codes", "w_scales", "w_meta", "out"),
    QUANTIZE: ("a_codes", *PLANES),
    ENCODE: ("a_codes", *PLANES),
}
EVERY_PLACE = [(operation, name) for operation, names in PLACES.items() for name in names]


def tasks(facts: Facts, operation: int, seed: int, count: int) -> list[Task]:
    """Return tasks of one operation."""
    if operation == GEMM:
        return products(facts, seed, count)
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        found += [each for each in random_tasks(rng, facts, 8, 9) if each.operation == operation]
    return found[:count]


@pytest.mark.parametrize(("operation", "name"), EVERY_PLACE)
@pytest.mark.parametrize("response", [2, 3])
def test_an_error_of_the_bus_ends_the_descriptor_alone(
    model: AxiModel, operation: int, name: str, response: int
) -> None:
    model.set_memory(latency=9)
    first, _, third = given = tasks(model.facts, operation, 12, 3)
    placed = [prepare(model, product, n, 40 + n) for n, product in enumerate(given)]
    model.answer(placed[1][name], placed[1][name] + 1, response)
    for descriptor in placed:
        model.push(descriptor)
    ended(model, 3)
    kind = f"{'write' if name in PLANES else 'read'}_{'slverr' if response == 2 else 'decerr'}"
    assert cause(model) == (CAUSES[kind], 41)
    for product, descriptor in ((first, placed[0]), (third, placed[2])):
        assert right(model, product, descriptor)


@pytest.mark.parametrize(("operation", "name"), EVERY_PLACE)
def test_an_answer_that_does_not_come(model: AxiModel, operation: int, name: str) -> None:
    """It is a timeout; when the bus comes back, what it answers late belongs to nobody."""
    model.set_memory(latency=3)
    model.write("timeout", 300)
    first, second = tasks(model.facts, operation, 13, 2)
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
    assert right(model, second, again)


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
    assert right(model, product, again)


@pytest.mark.parametrize(("operation", "name"), [(QUANTIZE, "a_codes"), *EVERY_PLACE[-3:]])
def test_packing_beyond_the_last_address(model: AxiModel, operation: int, name: str) -> None:
    (task,) = tasks(model.facts, operation, 14, 1)
    whole = prepare(model, task, 0, 3)
    start = (1 << 32) - (512 if name == "a_codes" else 64 if name == "out" else 4)
    bad = Descriptor({**whole.words, name: start, "m": 9, "k": 256}, 3)
    for pitch in ("out_pitch", "out_scales_pitch"):  # rows one beside another
        bad = Descriptor({**bad.words, pitch: 128 if pitch == "out_pitch" else 8}, 3)
    if name == "a_codes":
        # Rows are too long for what remains; what is there is no memory either.
        bad = Descriptor({**bad.words, "a_codes_pitch": 1024}, 3)
    model.allow(0, 1 << 32)
    model.push(bad)
    ended(model, 1)
    assert cause(model)[0] in (CAUSES[each] for each in ("address", "write_decerr", "read_decerr"))
    model.set_memory()
    again = prepare(model, task, 1, 4)
    model.push(again)
    ended(model, 1)
    assert right(model, task, again)


@pytest.mark.parametrize("operation", [GEMM, QUANTIZE, ENCODE])
def test_a_reset_forgets_everything(model: AxiModel, operation: int) -> None:
    (product,) = tasks(model.facts, operation, 15, 1)
    for clocks in (1, 60, 90, 130, 200):
        model.push(prepare(model, product, 0))
        model.wait(clocks)
        model.reset()
        model.ended = 0  # type: ignore[attr-defined]
        model.write("int_enable", 1)
        again = prepare(model, product, 1)
        model.push(again)
        ended(model, 1)
        assert right(model, product, again)


# --- the fuzzer -----------------------------------------------------------------------------------

WORDS: dict[str, tuple[int, ...]] = {
    "operation": (0, 4, 1 << 31),
    "kind": (3, 1 << 20),
    "m": (0, 1 << 20, 0xFFFFFFFF),
    "k": (0, 16, 33, 1 << 25),
    "a_codes": (4, 1 << 40),
    "a_codes_pitch": (8, 0xFFFFFFF1),
    "out": (1, 3, 1 << 33),
    "out_pitch": (1, 5),
}
MORE_WORDS: dict[int, dict[str, tuple[int, ...]]] = {
    GEMM: {"n": (0, 1 << 20), "k": (544,), "w_scales": (1 << 32, 1 << 63)},
    QUANTIZE: {"out_scales": (1 << 32,), "out_meta": (1 << 40,), "a_codes": (32,)},
    ENCODE: {"out_scales": (1 << 63,), "out_meta": (1 << 33,), "out": (8,), "kind": (0,)},
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
    for index, product in enumerate(random_tasks(rng, model.facts, 4, 2)):
        number = int(rng.integers(1, 1 << 15)) * 2 + (index & 1)
        descriptor = prepare(model, product, index, number)
        kind = rng.choice(["good", "good", "good", "word", "bus"])
        if kind == "word":
            words = WORDS if rng.random() < 0.6 else MORE_WORDS[product.operation]
            name = str(rng.choice(list(words)))
            word = int(rng.choice(words[name]))
            descriptor = Descriptor({**descriptor.words, name: word}, number)
            wrong.add(index)
        elif kind == "bus":
            start = descriptor[str(rng.choice(PLACES[product.operation]))]
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
            assert right(model, product, descriptor), index


def test_sequences_of_descriptors(model: AxiModel) -> None:
    rng = np.random.default_rng(16)
    for _ in range(SEQUENCES):
        sequence(model, rng)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", SLOW_SEEDS)
def test_many_sequences_of_descriptors(model: AxiModel, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(SLOW_SEQUENCES):
        sequence(model, rng)


# --- mutations ------------------------------------------------------------------------------------

CHANNELS, READER, WRITER, FETCHER, STEPS, PACKER = (
    f"m2xfp.rtl.parts.{name}"
    for name in (
        *("axi_channels", "axi_reader", "axi_writer"),
        *("operand_fetcher", "operand_steps", "plane_writer"),
    )
)
FAULTS = [
    Mutation(
        "burst across 4 KB",
        CHANNELS,
        "Mux(left < room, left, room)",
        "Mux(left < room, left, left)",
    ),
    Mutation("response not waited for", WRITER, "busy.eq(~idle | (fresh != 0))", "busy.eq(~idle)"),
    Mutation("error of a response dropped", WRITER, "Mux(wanted, b.payload.data.resp, 0)", "0"),
    Mutation(
        "swapped pitch",
        FETCHER,
        "(held.codes_pitch, held.scales_pitch, held.scales_pitch)",
        "(held.scales_pitch, held.codes_pitch, held.codes_pitch)",
    ),
    Mutation(
        "swapped pitch of planes",
        PACKER,
        "(held.codes_pitch, held.scales_pitch, held.scales_pitch)",
        "(held.codes_pitch, held.codes_pitch, held.scales_pitch)",
    ),
    Mutation("stale buffer", FETCHER, "full[slot].eq(0), claimed[slot]", "claimed[slot]"),
    Mutation("buffer overwritten", FETCHER, "begins | ~claimed.bit_select(slot, 1)", "begins | 1"),
    Mutation("kept matrix lost", FETCHER, "Mux(passes.last, ends << slot, 0)", "ends << slot"),
    Mutation("second pass elsewhere", FETCHER, "slot.eq(passes.home)", "slot.eq(slot)"),
    Mutation("shared word not kept", FETCHER, "self.closes & (tag.row < row)", "Const(0, 1)"),
    Mutation("words behind a shared one lost", FETCHER, "self.first, tag.skips", "self.first, 0"),
    Mutation("word of a row elsewhere", STEPS, "beside & (first ==", "(first =="),
    Mutation("set of groups overwritten", PACKER, "self.i.ready.eq(~whole)", "self.i.ready.eq(1)"),
    Mutation("late answers taken", READER, "bursts.level == fresh", "bursts.level != 0"),
]


def everything(model: AxiModel) -> None:
    """All that is above, in short."""
    test_a_queue_of_products(model, {"latency": 100})
    rng = np.random.default_rng(16)
    for _ in range(SEQUENCES):
        sequence(model, rng)
    for operation, name in ((GEMM, "w_codes"), (GEMM, "out"), (QUANTIZE, "a_codes")):
        model.forget()
        test_an_answer_that_does_not_come(model, operation, name)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_faults_are_noticed(fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    mutant = emit_mutant(fault, UNIT, CONFIG, tmp_path)
    with AxiModel(mutant, BYTES, seed=7, build_dir=sim_dir) as broken:
        broken.write("int_enable", 1)
        with pytest.raises((AssertionError, AxiError)):
            everything(broken)


def test_without_a_fault_all_is_well(model: AxiModel) -> None:
    """What notices faults passes where there are none."""
    everything(model)
