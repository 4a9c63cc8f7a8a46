"""What every unit must pass, whatever it computes: parametrised over the catalog.

The normal run takes one small configuration of each unit, `make test-slow` all of them. Regressions
are also played for all that the table of mutants is of: they are what kills those mutants.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from amaranth.hdl import Const
from amaranth.lib import data
from mutation import Mutation, emit_mutant
from stream_checks import check

from m2xfp.cli import main
from m2xfp.facts import EmittedFiles, Facts, Field
from m2xfp.results import read_figures
from m2xfp.rtl.catalog import UNITS, Instance, Unit, find_unit, select
from m2xfp.synth.flow.lint import lint_file
from m2xfp.tb.bench import Arrays, Bench, Operands, find_bench
from m2xfp.tb.bulk.simulator import BulkSimulator
from m2xfp.tb.protocol.harness import TestbenchError, exempt, run_testbench
from m2xfp.tb.regression import check_case
from m2xfp.tb.vectors import Beats, TestVectors

ROOT = Path(__file__).parents[2]
Emit = Callable[[str, str], EmittedFiles]
PORT = r"^ *(input|output) +(?:wire|reg)? *(?:\[(\d+):0\])? *(\w+)[,)]?$"
PROTOCOL_TESTS = 10  # five patterns of random stalls, and five other tests


def _cost(instance: Instance) -> int:
    """Return what simulating a configuration costs, roughly: bits of the ports, and state."""
    facts = instance.facts
    return sum(width for _, _, width in facts.ports()) * (1 + facts.latency)


INSTANCES = {f"{each.unit.name}-{each.config}": each for each in select()}
SMALL = [min(select(unit), key=_cost) for unit in UNITS]
CASES = [
    pytest.param(each, id=name, marks=[] if each in SMALL else [pytest.mark.slow])
    for name, each in INSTANCES.items()
]
every = pytest.mark.parametrize("instance", CASES)


def _mutated() -> Iterator[Instance]:
    """Yield what the rows of the table of mutants are of, as they are played here."""
    for row in read_figures(ROOT / "docs" / "results" / "mutants.json")["rows"]:
        if row["unit"] != "accelerator":  # tests/tb/test_nevers.py plays it
            yield find_unit(row["unit"]).labelled(row["config"])


MUTATED = {f"{each.unit.name}-{each.config}": each for each in _mutated()}
REGRESSIONS = [
    pytest.param(each, id=name, marks=[] if each in SMALL or name in MUTATED else pytest.mark.slow)
    for name, each in (INSTANCES | MUTATED).items()
]


@pytest.fixture
def files(emitted: Emit, instance: Instance) -> EmittedFiles:
    return emitted(instance.unit.name, instance.config)


@cache
def operands(lanes: int, depth: int) -> Operands:
    """Return values at powers of two of their own, zeros among them."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, lanes * depth, 32)
    values = torch.randn(shape, generator=generator)
    values *= 2.0 ** torch.randint(-12, 13, (*shape[:2], 1), generator=generator)
    values *= torch.rand(shape, generator=generator) > 0.1
    return Operands(lanes, depth, *values)


def sample(instance: Instance, lanes: int, depth: int) -> tuple[Bench, Arrays]:
    bench = find_bench(instance.unit)
    return bench, bench.sample(operands(lanes, depth), instance.facts)


# --- the files of a unit ------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS.values(), ids=list(UNITS))
def test_files(unit: Unit) -> None:
    """One name in all rooms, one golden function, one testbench with the functions of a Bench."""
    for path in (
        f"rtl/units/{unit.name}.py",
        f"golden/units/{unit.name}.py",
        f"tb/units/{unit.name}.py",
        f"tests/units/test_{unit.name}.py",
    ):
        assert (ROOT / path).is_file(), path
    module, _, name = unit.golden.rpartition(".")
    golden = getattr(import_module(module), name)
    assert golden.__module__ == module
    bench = find_bench(unit)
    for called, function in inspect.getmembers(Bench, inspect.isfunction):
        if not called.startswith("_"):
            wanted = list(inspect.signature(function).parameters)[1:]
            assert list(inspect.signature(getattr(bench, called)).parameters) == wanted, called


def test_no_other_files() -> None:
    """A room has no unit that the catalog does not know."""
    for room in ("rtl", "golden", "tb"):
        found = {file.stem for file in (ROOT / room / "units").glob("*.py")}
        assert found - {"__init__"} == set(UNITS), room


# --- facts --------------------------------------------------------------------------------------


@every
def test_facts(instance: Instance, files: EmittedFiles) -> None:
    """The JSON says what the instance does, and the ports are those of the Verilog."""
    assert Facts.load(files.json) == instance.facts
    assert Instance.of(instance.facts).facts == instance.facts
    text = files.verilog.read_text()
    (module,) = re.findall(rf"^module {files.top}\b.*?^endmodule", text, re.M | re.S)
    ports = re.findall(PORT, module, re.M)
    found = {(name, way, int(high or 0) + 1) for way, high, name in ports}
    assert found == set(instance.facts.ports())


def _set(layout: Any, path: list[str], index: list[int], value: int) -> Any:
    """Return what initialises a payload whose one field, or element of it, is set."""
    if isinstance(layout, data.ArrayLayout):
        return {index[0]: _set(layout.elem_shape, path, index[1:], value)}
    if isinstance(layout, data.StructLayout):
        return {path[0]: _set(layout[path[0]].shape, path[1:], index, value)}
    return value


def _bits(layout: Any, path: list[str], index: list[int], width: int) -> int:
    """Return the word in which all bits of one value are set."""
    init = _set(layout, path, index, (1 << width) - 1)
    if not isinstance(layout, data.Layout):
        return int(init)
    return Const.cast(layout.const(init)).value


def _indices(field: Field) -> Iterator[tuple[int, ...]]:
    """Yield the ends of every dimension, and the places beside them."""
    yield from product(*(sorted({0, 1, size - 1} & set(range(size))) for size in field.shape))


@every
def test_field_maps(instance: Instance) -> None:
    """Every field is where the component's payload has it, and together they are the payload."""
    members = instance.component.signature.members
    words: list[tuple[Any, tuple[Field, ...], int]] = []
    for stream in instance.facts.streams:
        payload = members[stream.name].signature.members["payload"].shape
        words.append((payload["data"].shape, stream.fields, stream.data_width))
    words += [(members[p.name].shape, p.fields, p.width) for p in instance.facts.signals]
    for layout, fields, width in words:
        covered = 0
        for field in fields:
            for index in _indices(field):
                bits = _bits(layout, field.name.split("."), list(index), field.width)
                assert bits == ((1 << field.width) - 1) << field.at(*index), (field.name, index)
            for index in product(*map(range, field.shape)):
                mask = ((1 << field.width) - 1) << field.at(*index)
                assert not covered & mask, field.name
                covered |= mask
        assert covered == (1 << width) - 1


# --- Verilog ------------------------------------------------------------------------------------


@every
def test_lint(files: EmittedFiles) -> None:
    """Four linters with all warnings and yosys' checks have nothing to say."""
    assert lint_file(files.verilog, files.top) == []


# --- values -------------------------------------------------------------------------------------


@every
def test_vectors(instance: Instance, files: EmittedFiles, sim_dir: Path) -> None:
    """What gate-level runs and power are measured on is what the Verilog gives, with pauses too."""
    simulator = BulkSimulator(files, build_dir=sim_dir)
    bench, arrays = sample(instance, lanes=24, depth=7)
    vectors = bench.vectors(arrays, instance.facts, seed=2)
    assert vectors.groups >= 24
    for stall in (0.0, 0.3) if instance.facts.streams else (0.0,):
        check(simulator, vectors, stall, seed=3)


@pytest.mark.parametrize("instance", REGRESSIONS)
def test_regression(instance: Instance, files: EmittedFiles, sim_dir: Path) -> None:
    """What every build must pass, and what `m2xfp mutate` plays through faults."""
    simulator = BulkSimulator(files, build_dir=sim_dir)
    cases = list(find_bench(instance.unit).regression(instance.facts))
    assert cases
    for case in cases:
        check_case(simulator, case)


@every
def test_a_wrong_bit_is_noticed(instance: Instance, files: EmittedFiles, sim_dir: Path) -> None:
    """The comparison of vectors sees any single bit of any output."""
    simulator = BulkSimulator(files, build_dir=sim_dir)
    bench, arrays = sample(instance, lanes=24, depth=1)
    vectors = bench.vectors(arrays, instance.facts)
    for name, beats in vectors.outputs.items():
        mask = vectors.compared.get(name, np.full_like(beats.data, 0xFF))
        beat, byte = np.argwhere(mask)[-1]
        changed = beats.data.copy()
        changed[beat, byte] ^= mask[beat, byte] & -mask[beat, byte].astype(int)
        outputs = {**vectors.outputs, name: Beats(changed, beats.last)}
        wrong = TestVectors(vectors.inputs, outputs, vectors.groups, vectors.compared)
        with pytest.raises(AssertionError, match=f"{name}: 1 of"):
            check(simulator, wrong)


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write arrays as a user has them: one alone as .npy, several as .npz."""
    if len(arrays) == 1:
        np.save(path.with_suffix(".npy"), next(iter(arrays.values())))
        return path.with_suffix(".npy")
    np.savez(path.with_suffix(".npz"), **arrays)
    return path.with_suffix(".npz")


@every
def test_simulate(
    instance: Instance,
    sim_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`m2xfp simulate` gives what the golden function does, by name, type and shape."""
    bench, arrays = sample(instance, lanes=24, depth=3)
    source = _save(tmp_path / "in", arrays)
    call = ["simulate", instance.unit.name, "--config", instance.config]
    call += ["--build-dir", str(sim_dir), "--input", str(source)]
    call += ["--output", str(tmp_path / "out.npz")]
    monkeypatch.setattr(sys, "argv", ["m2xfp", *call])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    expected = bench.expected(arrays, instance.facts)
    with np.load(tmp_path / "out.npz") as found:
        assert sorted(found.files) == sorted(expected)
        for name, wanted in expected.items():
            assert found[name].dtype == wanted.dtype, name
            assert np.array_equal(found[name], wanted), name


# --- streams ------------------------------------------------------------------------------------


@every
def test_protocol(
    instance: Instance,
    files: EmittedFiles,
    sim_dir: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Stalls, resets, full rate, latency, handshakes; what does not apply is said with a reason."""
    if not instance.facts.streams:
        _check_ports(instance, files, sim_dir)
        return
    bench, arrays = sample(instance, lanes=8, depth=5)
    vectors = bench.vectors(arrays, instance.facts, seed=4)
    left_out = exempt(instance.facts)
    for name, reason in left_out.items():
        record_property(f"not applied: {name}", reason)
    ran = run_testbench(files, vectors, build_dir=sim_dir)
    assert ran == PROTOCOL_TESTS - len(left_out)


TWO_CLOCKS = Mutation(
    "the second clock of reset clears the midst of a pipeline",
    "m2xfp.rtl.parts.registers",
    "reset_less=not reset",
    "reset_less=not reset or step == 1",
)


def test_a_reset_that_needs_two_clocks_is_noticed(sim_dir: Path, tmp_path: Path) -> None:
    """One clock is what the emitted files promise, so the protocol's resets last one clock."""
    instance = find_unit("fp32_accumulator").instance("m2xfp")
    bench, arrays = sample(instance, lanes=8, depth=5)
    files = emit_mutant(TWO_CLOCKS, instance.unit.name, instance.config, tmp_path)
    with pytest.raises(TestbenchError):
        run_testbench(files, bench.vectors(arrays, instance.facts, seed=4), build_dir=sim_dir)


def _check_ports(instance: Instance, files: EmittedFiles, sim_dir: Path) -> None:
    """A unit without streams: each answer follows from its own question, whatever came before."""
    assert instance.facts.latency == 0
    bench, arrays = sample(instance, lanes=20, depth=3)
    vectors = bench.vectors(arrays, instance.facts)
    simulator = BulkSimulator(files, build_dir=sim_dir)
    order = np.random.default_rng(5).permutation(vectors.groups)
    there = simulator.run(vectors.inputs).outputs
    shuffled = {name: Beats(words.data[order]) for name, words in vectors.inputs.items()}
    for name, words in simulator.run(shuffled, seed=6).outputs.items():
        assert np.array_equal(words.data, there[name].data[order]), name
