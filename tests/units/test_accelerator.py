"""The accelerator: its traffic in other shapes, bad descriptors, and its registers."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stream_checks import check

from m2xfp.errors import InputError
from m2xfp.facts import EmittedFiles, Facts
from m2xfp.formats import BF16, FP32, block_format, input_type
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.parts.accelerator_map import FIELDS, OFFSETS
from m2xfp.rtl.parts.descriptor_checker import BF16_VALUES, CAUSES, ENCODE, GEMM, QUANTIZE
from m2xfp.rtl.units.accelerator import Accelerator
from m2xfp.rtl.verilog.emit import emit
from m2xfp.rtl.verilog.registers import SOURCE, register_files
from m2xfp.synth.flow.lint import lint_file
from m2xfp.tb.bulk.simulator import BulkSimulator
from m2xfp.tb.fields import read
from m2xfp.tb.parts.accelerator_counters import counting
from m2xfp.tb.parts.accelerator_story import Story, scattered
from m2xfp.tb.parts.accelerator_tasks import (
    Task,
    core_of,
    place,
    random_tasks,
    task_results,
    written,
)
from m2xfp.tb.parts.accelerator_traffic import Descriptor, Memory, Traffic
from m2xfp.tb.parts.gemm_arrays import GemmStreams
from m2xfp.tb.parts.gemm_regression import random_products
from m2xfp.tb.regression import Case, check_case
from m2xfp.tb.vectors import TestVectors

UNIT, CONFIG = "accelerator", "m2xfp-2x2"
ROOT = Path(__file__).parents[2]
Emit = Callable[[str, str], EmittedFiles]

# Shapes in which words, groups, blocks and chunks meet in other ways.
SMALL = {"act": block_format("m2xfp-act:group=8"), "weight": block_format("m2xfp-weight:group=8")}
SHAPES: list[dict[str, Any]] = [
    {"bus": "512", "rows": 1, "columns": 8, "chunk": 5, "slots": 8},
    {"bus": "1024", "rows": 3, "columns": 4, "chunk": 1, "chains": 1, "address_bits": 40},
    {"bus": "256", "rows": 1, "columns": 32, "chunk": 16, "chains": 2, "queue": 2},
    SMALL | {"rows": 1, "columns": 8, "max_k": 64, "chunk": 4},
    {"bus": "512", "rows": 1, "columns": 3, "slots": 2, "quantizer": None, "encoder": None},
    {"bus": "256", "columns": 8, "chunk": 40, "slots": 2, "max_k": 4096},
    {"bus": "1024", "columns": 2, "slots": 2, "quantizer": BF16, "encoder": FP32},
]


@pytest.fixture
def simulator(emitted: Emit, sim_dir: Path) -> BulkSimulator:
    return BulkSimulator(emitted(UNIT, CONFIG), build_dir=sim_dir)


@pytest.mark.slow
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_shapes(changes: Mapping[str, Any], tmp_path: Path, sim_dir: Path) -> None:
    given = {
        name: input_type(kind) if kind in ("bf16", "fp32") else kind
        for name, kind in changes.items()
    }
    instance = UNITS[UNIT].instance(CONFIG, given, name="shape")
    files = emit(instance, tmp_path)
    assert lint_file(files.verilog, f"{files.top}_axi") == []
    facts, rng = instance.facts, np.random.default_rng(1)
    traffic = Traffic(facts, Memory(1))
    most = facts.parameters["max_k"] // GemmStreams(core_of(facts)).act.group
    most = min(most, max(16, 2 * facts.parameters["chunk"] + 9))
    for index, task in enumerate(random_tasks(rng, facts, 12, most)):
        descriptor = place(task, facts, traffic.memory, index << 20, index)
        traffic.configure(descriptor)
        traffic.run(descriptor, task_results(task, facts))
    vectors = TestVectors(traffic.streams(facts.inputs), traffic.streams(facts.outputs), 1)
    for stall in (0.0, 0.3):
        check(BulkSimulator(files, build_dir=sim_dir), vectors, stall, seed=2)


def test_axi_ports_are_clean(emitted: Emit) -> None:
    files = emitted(UNIT, CONFIG)
    assert lint_file(files.verilog, f"{files.top}_axi") == []


# --- bad descriptors ------------------------------------------------------------------------------

BAD: dict[str, dict[str, int]] = {
    "operation": {"operation": 7},
    "kind": {"kind": 3},
    "packed results": {"kind": 2},
    "zero": {"n": 0},
    "large": {"k": 544},
    "multiple": {"k": 48},
    "misaligned": {"w_codes": 8},
    "address": {"a_scales": 1 << 32},
}
MORE: list[tuple[str, dict[str, int]]] = [
    ("zero", {"m": 0}),
    ("zero", {"k": 0}),
    ("large", {"m": 1 << 20}),
    ("large", {"n": 1 << 31}),
    ("misaligned", {"a_codes_pitch": 17}),
    ("misaligned", {"out": 2}),
    ("misaligned", {"out_pitch": 6}),
    ("address", {"out": 1 << 63}),
    ("address", {"a_meta": 5 << 40}),
    ("kind", {"operation": QUANTIZE, "kind": 2}),
    ("kind", {"operation": ENCODE, "kind": 0}),
    ("zero", {"operation": QUANTIZE, "k": 0}),
    ("zero", {"operation": ENCODE, "m": 0}),
    ("large", {"operation": QUANTIZE, "k": 1 << 20}),
    ("multiple", {"operation": ENCODE, "k": 33}),
    ("misaligned", {"operation": QUANTIZE, "a_codes": 32}),
    ("misaligned", {"operation": QUANTIZE, "kind": 0, "a_codes_pitch": 192, "a_codes": 1 << 10}),
    ("misaligned", {"operation": ENCODE, "a_codes_pitch": 16}),
    ("misaligned", {"operation": ENCODE, "out": 8}),
    ("misaligned", {"operation": QUANTIZE, "out_pitch": 24}),
    ("address", {"operation": QUANTIZE, "out_scales": 1 << 32}),
    ("address", {"operation": ENCODE, "out_meta": 1 << 50}),
]


def played(simulator: BulkSimulator, bad: Descriptor) -> dict[str, int]:
    """Run a bad descriptor between two good ones; return the registers ``error``, and what ended.

    The buses see nothing but the good ones, or this fails.
    """
    facts, rng = simulator.facts, np.random.default_rng(3)
    tasks = random_tasks(rng, facts, 2, 4)
    traffic = Traffic(facts, Memory(3))
    good = [place(task, facts, traffic.memory, n << 20, n) for n, task in enumerate(tasks)]
    for descriptor in (good[0], bad, good[1]):
        traffic.configure(descriptor)
    for descriptor, task in zip(good, tasks, strict=True):
        traffic.run(descriptor, task_results(task, facts))
    asked = Traffic(facts, Memory())
    for name in ("error", "completed", "int_status"):
        asked.read_register(name)
    inputs = [traffic.streams(facts.inputs), asked.streams(facts.inputs)]
    runs = simulator.run_phases(inputs, stalls=[0.1, 0.0])
    wanted = TestVectors(inputs[0], traffic.streams(facts.outputs), 1)
    for name in wanted.outputs:
        assert not len(wanted.differing(name, runs[0].outputs[name])), name
    answers = read(facts.stream("control_r").field("data"), runs[1].outputs["control_r"].data)
    return dict(zip(("error", "completed", "int_status"), map(int, answers), strict=True))


def field(register: str, name: str, word: int) -> int:
    low, width = FIELDS[register][name]
    return word >> low & (1 << width) - 1


@pytest.mark.parametrize(
    ("cause", "words"),
    [*BAD.items(), *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE)],
)
def test_a_bad_descriptor_does_nothing_but_say_so(
    simulator: BulkSimulator, cause: str, words: dict[str, int]
) -> None:
    facts = simulator.facts
    (product,) = random_products(np.random.default_rng(4), GemmStreams(core_of(facts)), 1, 4)
    values = np.zeros((3, 64), np.uint16)
    task = Task(GEMM, product=product)
    if words.get("operation") in (QUANTIZE, ENCODE):
        task = Task(words["operation"], BF16_VALUES, values=values)
    whole = place(task, facts, Memory(), 7 << 20)
    bad = Descriptor({**whole.words, **words}, 0xBAD)
    found = played(simulator, bad)
    assert field("error", "valid", found["error"])
    known = CAUSES.get(cause, CAUSES["operation"])
    assert field("error", "cause", found["error"]) == known
    assert field("error", "descriptor", found["error"]) == 0xBAD
    assert found["completed"] == 3
    assert found["int_status"] == 3


# --- registers ------------------------------------------------------------------------------------


def test_files_follow_from_the_register_description() -> None:
    """`m2xfp registers -o .` was run after the last change of the description."""
    for name, text in register_files().items():
        assert (ROOT / name).read_text() == text, name


def test_a_register_description_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.rdl"
    path.write_text("addrmap {")
    with pytest.raises(InputError, match="no register description"):
        register_files(path)


def test_the_registers_are_those_of_the_description(simulator: BulkSimulator) -> None:
    """Each register is read, and written with ones, as SystemRDL's own model says it can be."""
    from systemrdl import RDLCompiler

    compiler = RDLCompiler()
    compiler.compile_file(str(SOURCE))
    model = {node.inst_name: node for node in compiler.elaborate().top.registers()}
    facts = simulator.facts
    traffic = Traffic(facts, Memory())
    holes = [at for at in range(0, 256, 4) if at not in set(OFFSETS.values())]
    offsets = [*OFFSETS.values(), *holes]
    for offset in offsets:
        traffic.ask(offset)
    writes = [at for at in offsets if at != OFFSETS["push"]]
    for offset in writes:
        traffic.tell(offset, 0xFFFFFFFF)
    after = Traffic(facts, Memory())
    for name in OFFSETS:
        after.ask(OFFSETS[name])
    runs = simulator.run_phases([t.streams(facts.inputs) for t in (traffic, after)], stalls=[0, 0])
    answers = facts.stream("control_r")
    responses = read(answers.field("resp"), runs[0].outputs["control_r"].data)
    words = read(answers.field("data"), runs[1].outputs["control_r"].data).tolist()
    taken = read(facts.stream("control_b").field("resp"), runs[0].outputs["control_b"].data)
    given = {at: int(response) for at, response in zip(offsets, responses, strict=True)}
    wrote = {at: int(response) for at, response in zip(writes, taken, strict=True)}
    kept = dict(zip(OFFSETS, words, strict=True))
    for name, node in model.items():
        readable = any(part.is_sw_readable for part in node.fields())
        writable = any(part.is_sw_writable for part in node.fields())
        assert given[node.absolute_address] == (0 if readable else 2), name
        if name != "push":
            assert wrote[node.absolute_address] == (0 if writable else 2), name
        for part in node.fields():
            stays = part.is_sw_writable and part.get_property("onwrite") is None
            if readable and stays:
                assert field(name, part.inst_name, kept[name]) == (1 << part.width) - 1, name
    assert all(given[at] == 2 and wrote[at] == 2 for at in holes)
    assert kept["id"].to_bytes(4, "big") == b"M2XF"
    assert field("array", "columns", kept["array"]) == facts.parameters["columns"]
    assert field("limits", "max_k", kept["limits"]) == facts.parameters["max_k"]
    assert field("bus", "bus_bytes", kept["bus"]) == 16


# --- phases of the regression ---------------------------------------------------------------------


def told(facts: Facts, enabled: int, expected: int) -> Case:
    """Return a descriptor that is wrong, and what is said of the interrupt and of a counter."""
    story = Story(facts, 1)
    story.phase()
    story.tell("int_enable", enabled)
    story.now.configure(Descriptor({"operation": 9}, 7))
    story.ended(7, "operation")
    story.phase()
    story.look()
    story.registers["int_status"] = expected
    return story.case("told")


def test_registers_and_the_interrupt_are_held_against_the_story(simulator: BulkSimulator) -> None:
    facts = simulator.facts
    check_case(simulator, told(facts, 2, 3))
    with pytest.raises(AssertionError, match=r"told: irq is \[1, 1\], not \[1, 0\]"):
        check_case(simulator, told(facts, 2, 1))
    case = told(facts, 1, 3)
    wrong = case.phases[1].outputs["control_r"].data.copy()
    wrong[list(OFFSETS).index("completed"), 0] ^= 1
    beats = replace(case.phases[1].outputs["control_r"], data=wrong)
    phases = (case.phases[0], replace(case.phases[1], outputs={"control_r": beats}))
    with pytest.raises(AssertionError, match="told: control_r differs"):
        check_case(simulator, replace(case, phases=phases))


def test_counters_are_held_against_the_clocks(simulator: BulkSimulator) -> None:
    case = next(counting(simulator.facts, 0))
    assert case.story is not None
    runs = check_case(simulator, case)
    assert not case.story(runs, simulator.facts)
    shifted = [replace(run, cycles=run.cycles + 3 * n) for n, run in enumerate(runs)]
    assert "grew by" in case.story(shifted, simulator.facts)


def test_planes_lie_beside_each_other(simulator: BulkSimulator) -> None:
    """Wherever they are put, what is placed is what the descriptor's rows hold."""
    facts, rng = simulator.facts, np.random.default_rng(5)
    for number, task in enumerate(random_tasks(rng, facts, 30, 4)):
        memory = Memory(number)
        at = scattered(rng, task, facts, memory, number)
        spans = sorted(written(task, facts, at))
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert spans[-1][1] <= 1 << facts.parameters["address_bits"]
        if task.product is not None:
            block = block_format(facts.parameters["weight"])
            codes, (_, count, _) = block.group_bytes[0], task.product.weights.shape
            rows = memory.read_rows(
                at["w_codes"], at["w_codes_pitch"], len(task.product.weights), count * codes
            )
            assert np.array_equal(rows, task.product.weights[..., :codes].reshape(len(rows), -1))


# --- parameters -----------------------------------------------------------------------------------


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(InputError, match="queue=3: must be a power of two"):
        Accelerator(queue=3)
    with pytest.raises(InputError, match="slots=12: must be a power of two"):
        Accelerator(slots=12)
    with pytest.raises(InputError, match="quantizer=fp16"):
        Accelerator(quantizer=input_type("fp16"))
    with pytest.raises(InputError, match="more than a byte of scale or of metadata"):
        Accelerator(
            act=block_format("m2xfp-act:subgroup=4"), weight=block_format("m2xfp-weight:subgroup=4")
        )


def test_it_can_be_described() -> None:
    """Facts and JSON of the paper's size, which is too large to simulate here."""
    facts = UNITS[UNIT].instance("m2xfp-1x32").facts
    assert Facts.from_json(facts.to_json()) == facts
    assert facts.macs_per_clock == 1024
