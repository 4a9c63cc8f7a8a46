"""Every unit in a second simulator, with unknown values, and reset for one clock in mid-traffic.

Icarus Verilog keeps what is unknown: registers before the reset, data of a stream that offers
nothing. The unit is reset for a single clock while other traffic is under way, at a clock that the
seed chooses; then every beat must be the golden model's, known in every bit.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mutation import Mutation, emit_mutant
from test_every_unit import CASES, SMALL, operands

from m2xfp.facts import EmittedFiles
from m2xfp.rtl.catalog import UNITS, Instance, find_unit
from m2xfp.tb.bench import find_bench
from m2xfp.tb.four_state import FourStateError, run_four_state, run_regression
from m2xfp.tb.vectors import TestVectors

Emit = Callable[[str, str], EmittedFiles]
SEEDS = range(4)
QUICK = ("activation_decoder", "fp32_accumulator")
# Units whose operands can clear a sum: what is left by traffic before the reset shows only where
# they do not.
CLEARING = [
    pytest.param(each, id=each.top, marks=[] if each in SMALL else [pytest.mark.slow])
    for unit in UNITS.values()
    for each in (unit.instance(config) for config in unit.configs)
    if any(field.name == "first" for stream in each.facts.inputs for field in stream.fields)
]


def vectors_of(instance: Instance, *, clear: bool) -> TestVectors:
    """Return a few dozen groups in one piece, whose sums begin with the first groups.

    Without ``clear`` no group clears a sum, so they begin where the reset has left them.
    """
    bench, facts = find_bench(instance.unit), instance.facts
    vectors = bench.vectors(bench.sample(operands(1, 24), facts), facts)
    if clear:
        return vectors
    field = facts.stream("i").field("first")
    beats = vectors.inputs["i"]
    byte, mask = field.offset // 8, 1 << field.offset % 8
    begins = np.flatnonzero(beats.data[:, byte] & mask)
    assert begins[-1] < facts.parameters.get("chains", 1) * len(beats) // 24
    data = beats.data.copy()
    data[:, byte] &= 0xFF ^ mask
    return replace(vectors, inputs={"i": replace(beats, data=data)})


def play(files: EmittedFiles, vectors: TestVectors, folder: Path) -> None:
    for seed in SEEDS:
        run_four_state(
            files,
            vectors,
            folder / str(seed),
            seed=seed,
            stall=(0.0, 0.3, 0.7)[seed % 3],
            clocks_before=11 + 5 * seed,
        )


@pytest.mark.parametrize("instance", CASES)
def test_nothing_unknown_comes_out(emitted: Emit, instance: Instance, tmp_path: Path) -> None:
    files = emitted(instance.unit.name, instance.config)
    play(files, vectors_of(instance, clear=True), tmp_path)


REGRESSED = [
    pytest.param(each, id=each.top, marks=[] if each.unit.name in QUICK else [pytest.mark.slow])
    for each in SMALL
]


@pytest.mark.parametrize("instance", REGRESSED)
def test_regression(emitted: Emit, instance: Instance, tmp_path: Path) -> None:
    """A part of each case of the regression, with unknown and with random registers in turn."""
    files = emitted(instance.unit.name, instance.config)
    cases = find_bench(instance.unit).regression(instance.facts)
    assert run_regression(files, cases, tmp_path) > 30


@pytest.mark.parametrize("unit", QUICK)
def test_a_wrong_bit_is_noticed(emitted: Emit, unit: str, tmp_path: Path) -> None:
    instance = find_unit(unit).instance()
    vectors = vectors_of(instance, clear=True)
    name, beats = next(iter(vectors.outputs.items()))
    data = beats.data.copy()
    data[-1, 0] ^= 1
    wrong = replace(vectors, outputs={**vectors.outputs, name: replace(beats, data=data)})
    with pytest.raises(FourStateError, match="expected"):
        run_four_state(emitted(unit, instance.config), wrong, tmp_path)


def test_every_register_begins_at_random(emitted: Emit, tmp_path: Path) -> None:
    """Icarus finds no register unknown that the text was given a value for."""
    instance = find_unit("fp32_accumulator").instance("m2xfp-single")
    files = emitted(instance.unit.name, instance.config)
    vectors = vectors_of(instance, clear=True)
    run_four_state(files, vectors, tmp_path, random_registers=True)
    text = (tmp_path / "unit.v").read_text()
    declared = len(re.findall(r"\breg\b", text))
    assert declared == len(re.findall(r"^    \w+ = \d+'h[0-9a-f]+;$", text, re.M)) > 10


@pytest.mark.parametrize("instance", CLEARING)
def test_one_clock_of_reset_clears_every_sum(
    emitted: Emit, instance: Instance, tmp_path: Path
) -> None:
    files = emitted(instance.unit.name, instance.config)
    play(files, vectors_of(instance, clear=False), tmp_path)


@pytest.mark.parametrize(
    ("mutation", "unit", "config", "clear"),
    [
        (
            Mutation(
                "a product under way survives the reset",
                "m2xfp.rtl.parts.fp32_accumulation",
                "& self.valid, 1, reset=True)",
                "& self.valid, 1)",
            ),
            *("fp32_accumulator", "m2xfp-single", False),
        ),
        (
            Mutation(
                "a shift by an unknown distance",
                "m2xfp.rtl.parts.exact_accumulation",
                "i.exponent & self.valid.replicate(len(i.exponent))",
                "i.exponent",
            ),
            *("exact_accumulator", "m2xfp", True),
        ),
    ],
    ids=["reset", "unknown"],
)
def test_faults_are_noticed(
    mutation: Mutation, unit: str, config: str, clear: bool, tmp_path: Path
) -> None:
    files = emit_mutant(mutation, unit, config, tmp_path / "mutant")
    vectors = vectors_of(find_unit(unit).instance(config), clear=clear)
    with pytest.raises(FourStateError):
        play(files, vectors, tmp_path)


def test_tables_of_constants_keep_their_contents(emitted: Emit, tmp_path: Path) -> None:
    """A memory with an initial block is no register; random contents would be another unit."""
    instance = find_unit("minifloat_quantizer").instance()
    files = emitted(instance.unit.name, instance.config)
    table = re.search(
        r"  initial begin\n(?:    \w+\[\d+\] = \S+;\n)+  end", files.verilog.read_text()
    )
    assert table
    bench = find_bench(instance.unit)
    vectors = bench.vectors(bench.sample(operands(1, 24), instance.facts), instance.facts)
    run_four_state(files, vectors, tmp_path, random_registers=True)
    assert table[0] in (tmp_path / "unit.v").read_text()
