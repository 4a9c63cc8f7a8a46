"""The accelerator before a memory that pauses, fails, or does not answer; a descriptor fuzzer."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerator_bench import BUILDS, CONFIG, PACKING, UNIT, Bench, build
from accelerator_fuzzer import FATES, sequence
from mutation import Mutation, emit_mutant

from m2xfp.facts import EmittedFiles, Facts
from m2xfp.formats import block_format
from m2xfp.rtl.parts.descriptor_checker import (
    BF16_VALUES,
    CAUSES,
    ENCODE,
    FP32_VALUES,
    GEMM,
    PACKED,
    QUANTIZE,
)
from m2xfp.tb.axi.model import AxiError
from m2xfp.tb.parts.accelerator_tasks import Task, kinds_of, random_tasks
from m2xfp.tb.parts.accelerator_traffic import Descriptor

BYTES = 1 << 20
SEQUENCES = 100
# Builds, seeds and numbers of sequences, more than a hundred thousand in all. Of a large array the
# golden model and the simulation both take longer.
SLOW_SEQUENCES = [
    *((CONFIG, seed, 10_000) for seed in range(17, 21)),
    *((PACKING, seed, 10_000) for seed in range(21, 25)),
    *(("2x16", seed, 10_000) for seed in range(25, 27)),
    ("1x32", 27, 2_000),
]
Emit = Callable[[str], EmittedFiles]


@pytest.fixture(scope="module")
def built(emitted: Callable[[str, str], EmittedFiles], sim_dir: Path) -> Emit:
    """Return a function from the name of a build to its files."""

    @cache
    def files(name: str) -> EmittedFiles:
        return build(name, sim_dir / "verilog") if BUILDS[name] else emitted(UNIT, name)

    return files


@pytest.fixture
def model(built: Emit, sim_dir: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Return the accelerator of the catalog, or the one that a test names."""
    files = built(getattr(request, "param", CONFIG))
    with Bench(files, BYTES, seed=7, build_dir=sim_dir) as made:
        yield made


WORK: dict[str, tuple[tuple[int, int], ...]] = {
    "gemm": ((GEMM, FP32_VALUES), (GEMM, BF16_VALUES)),
    "packed": ((GEMM, PACKED),),
    "quantize": ((QUANTIZE, FP32_VALUES), (QUANTIZE, BF16_VALUES)),
    "encode": ((ENCODE, FP32_VALUES), (ENCODE, BF16_VALUES)),
}
EVERY_WORK = [
    (name, work)
    for name in (CONFIG, PACKING)
    for work in WORK
    if (name, work) != (CONFIG, "packed")
]


def tasks(facts: Facts, work: str, seed: int, count: int, most: int = 9) -> list[Task]:
    """Return tasks of some work, as far as the build can do it."""
    able = [pair for pair in kinds_of(facts) if pair in WORK[work]]
    most = min(most, facts.parameters["max_k"] // block_format(facts.parameters["act"]).group)
    return random_tasks(np.random.default_rng(seed), facts, count, most, able)


@pytest.mark.parametrize(
    "memory",
    [{}, {"latency": 100}, {"pauses": 0.3, "latency": 7}, {"rate": 3.0, "latency": 30}],
    ids=str,
)
def test_a_queue_of_products(model: Bench, memory: dict[str, Any]) -> None:
    model.set_memory(**memory)
    given = tasks(model.facts, "gemm", 11, 6, 16)
    placed = [(p, model.prepare(p, index)) for index, p in enumerate(given)]
    for _, descriptor in placed:
        model.push(descriptor)
    model.end(len(placed))
    for product, descriptor in placed:
        assert model.right(product, descriptor)
    assert model.cause() == (0, 0)
    assert model.read("cycles")[0] > 0


# --- what the bus does ----------------------------------------------------------------------------

OPERANDS = ("a_codes", "a_scales", "a_meta", "w_codes", "w_scales", "w_meta")
PLANES = ("out", "out_scales", "out_meta")
PLACES = {
    "gemm": (*OPERANDS, "out"),
    "packed": (*OPERANDS, *PLANES),
    "quantize": ("a_codes", *PLANES),
    "encode": ("a_codes", *PLANES),
}
every_place = pytest.mark.parametrize(
    ("model", "work", "name"),
    [(name, work, place) for name, work in EVERY_WORK for place in PLACES[work]],
    indirect=["model"],
)


@every_place
@pytest.mark.parametrize("response", [2, 3])
def test_an_error_of_the_bus_ends_the_descriptor_alone(
    model: Bench, work: str, name: str, response: int
) -> None:
    model.set_memory(latency=9)
    first, _, third = given = tasks(model.facts, work, 12, 3)
    placed = [model.prepare(product, n, 40 + n) for n, product in enumerate(given)]
    model.answer(placed[1][name], placed[1][name] + 1, response)
    for descriptor in placed:
        model.push(descriptor)
    model.end(3)
    kind = f"{'write' if name in PLANES else 'read'}_{'slverr' if response == 2 else 'decerr'}"
    assert model.cause() == (CAUSES[kind], 41)
    for product, descriptor in ((first, placed[0]), (third, placed[2])):
        assert model.right(product, descriptor)


@every_place
def test_an_answer_that_does_not_come(model: Bench, work: str, name: str) -> None:
    """It is a timeout; when the bus comes back, what it answers late belongs to nobody."""
    model.set_memory(latency=3)
    model.write("timeout", 300)
    first, second = tasks(model.facts, work, 13, 2)
    descriptor = model.prepare(first, 0, 8)
    model.answer(descriptor[name], descriptor[name] + 1, 4)
    model.push(descriptor)
    model.end(1)
    assert model.cause() == (CAUSES["timeout"], 8)
    model.push(model.prepare(second, 1, 9))  # the bus is still dead, or answers later ones first
    model.end(1)
    model.forget()
    model.cause()
    again = model.prepare(second, 2, 10)
    model.push(again)
    model.end(1)
    assert model.cause() == (0, 0)
    assert model.right(second, again)


@pytest.mark.parametrize("name", ["a_codes", "a_scales", "w_meta", "out"])
def test_beyond_the_last_address(model: Bench, name: str) -> None:
    """A row that does not fit below 2^32 is neither read nor written."""
    model.set_memory(latency=2000)
    (product,) = tasks(model.facts, "gemm", 14, 1)
    whole = model.prepare(product, 0, 3)
    # A chunk of 8 groups: of scales and metadata the first row ends with the last address.
    start = (1 << 32) - (16 if name in ("a_codes", "out") else 8)
    bad = Descriptor({**whole.words, name: start, "m": 9, "n": 9, "k": 256}, 3)
    model.allow(1 << 31, 1 << 32)
    model.push(bad)
    model.end(1)
    assert model.cause()[0] in (CAUSES["address"], CAUSES["write_decerr"])
    model.set_memory()
    again = model.prepare(product, 1, 4)
    model.push(again)
    model.end(1)
    assert model.right(product, again)


@pytest.mark.parametrize(
    ("model", "work", "name"),
    [
        (CONFIG, "quantize", "a_codes"),
        *((CONFIG, "encode", name) for name in PLANES),
        *((PACKING, "packed", name) for name in PLANES),
    ],
    indirect=["model"],
)
def test_packing_beyond_the_last_address(model: Bench, work: str, name: str) -> None:
    (task,) = tasks(model.facts, work, 14, 1)
    whole = model.prepare(task, 0, 3)
    given = model.facts.parameters
    groups, sizes = (2, {"n": 2 * model.group}) if work == "packed" else (8, {"k": 8 * model.group})
    codes = groups * block_format(given["act"]).group_bytes[0]
    space = 1 << given["address_bits"]
    # Half a row, or two of a product: what is written of it is written group by group.
    fits = {"a_codes": 512, "out": codes // 2}.get(name, groups // 2)
    fits *= 4 if work == "packed" else 1
    words = {name: space - fits, "out_pitch": codes, "out_scales_pitch": groups}  # side by side
    bad = Descriptor({**whole.words, **words, **sizes, "m": 9}, 3)
    if name == "a_codes":
        # Rows are too long for what remains; what is there is no memory either.
        bad = Descriptor({**bad.words, "a_codes_pitch": 1024}, 3)
    model.allow(0, space)
    model.push(bad)
    model.end(1)
    causes = ("address", "write_decerr", "read_decerr")
    assert model.cause()[0] in (CAUSES[each] for each in causes)
    model.set_memory()
    again = model.prepare(task, 1, 4)
    model.push(again)
    model.end(1)
    assert model.right(task, again)


@pytest.mark.parametrize(("model", "work"), EVERY_WORK, indirect=["model"])
def test_a_reset_forgets_everything(model: Bench, work: str) -> None:
    (task,) = tasks(model.facts, work, 15, 1)
    for clocks in (1, 60, 90, 130, 200):
        model.push(model.prepare(task, 0))
        model.wait(clocks)
        model.reset()
        again = model.prepare(task, 1)
        model.push(again)
        model.end(1)
        assert model.right(task, again)


# --- the fuzzer -----------------------------------------------------------------------------------


def fuzz(files: EmittedFiles, sim_dir: Path, seed: int, count: int) -> None:
    """Run so many sequences, in a memory as large as the address space; all kinds must occur."""
    rng, seen = np.random.default_rng(seed), Counter[str]()
    space = 1 << Facts.load(files.json).parameters["address_bits"]
    with Bench(files, space, seed=seed, build_dir=sim_dir) as bench:
        for _ in range(count):
            seen += sequence(bench, rng)
        pairs = kinds_of(bench.facts)
    wanted = [f"operation {operation} kind {kind}" for operation, kind in pairs]
    assert [each for each in (*FATES, *wanted, "reset", "hasty") if not seen[each]] == []


@pytest.mark.parametrize("name", [CONFIG, PACKING])
def test_sequences_of_descriptors(built: Emit, sim_dir: Path, name: str) -> None:
    fuzz(built(name), sim_dir, 16, SEQUENCES)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "seed", "count"), SLOW_SEQUENCES)
def test_many_sequences_of_descriptors(
    built: Emit, sim_dir: Path, name: str, seed: int, count: int
) -> None:
    fuzz(built(name), sim_dir, seed, count)


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
PACKED_FAULTS = [
    Mutation(
        "results side by side",
        PACKER,
        "row_ends | (place == self._gather - 1) | is_held_down",
        "row_ends | (place == self._gather - 1)",
    ),
    Mutation(
        "rows of results for their groups",
        PACKER,
        "inner_left.eq(Mux(is_held_down, held.rows, held.groups))",
        "inner_left.eq(held.groups)",
    ),
]


def everything(files: EmittedFiles, sim_dir: Path) -> None:
    """All that is above, in short."""
    with Bench(files, BYTES, seed=7, build_dir=sim_dir) as model:
        test_a_queue_of_products(model, {"latency": 100})
        for work, name in (("gemm", "w_codes"), ("gemm", "out"), ("quantize", "a_codes")):
            model.forget()
            test_an_answer_that_does_not_come(model, work, name)
    fuzz(files, sim_dir, 16, SEQUENCES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *(pytest.param(CONFIG, fault, id=fault.name) for fault in FAULTS),
        *(pytest.param(PACKING, fault, id=fault.name) for fault in PACKED_FAULTS),
    ],
)
def test_faults_are_noticed(name: str, fault: Mutation, sim_dir: Path, tmp_path: Path) -> None:
    mutant = emit_mutant(fault, UNIT, CONFIG, tmp_path, BUILDS[name])
    with pytest.raises((AssertionError, AxiError)):
        everything(mutant, sim_dir)


def test_without_a_fault_all_is_well(built: Emit, sim_dir: Path) -> None:
    """What notices faults passes where there are none."""
    everything(built(CONFIG), sim_dir)
