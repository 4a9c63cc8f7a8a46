"""A third simulator: every unit's regression in CXXRTL, and a fault that it notices too."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mutation import Mutation, emit_mutant

from m2xfp.facts import EmittedFiles
from m2xfp.rtl.catalog import UNITS, Unit, find_unit
from m2xfp.synth.cxxrtl.simulator import CxxrtlSimulator
from m2xfp.tb.bench import find_bench
from m2xfp.tb.bulk.simulator import SimulationError
from m2xfp.tb.regression import check_case

SMALL = ("activation_decoder", "fp32_accumulator")
# A model of a wide unit takes minutes to compile.
LONG = [pytest.mark.slow, pytest.mark.timeout(3600)]
EVERY = [
    pytest.param(unit, id=name, marks=[] if name in SMALL else LONG) for name, unit in UNITS.items()
]


@pytest.mark.parametrize("unit", EVERY)
def test_regression(unit: Unit, emitted: Callable[[str, str], EmittedFiles], sim_dir: Path) -> None:
    """The regression gives the golden model's beats, with the clocks that were stated."""
    instance = unit.instance()
    simulator = CxxrtlSimulator(emitted(unit.name, unit.default), build_dir=sim_dir)
    for case in find_bench(unit).regression(instance.facts):
        check_case(simulator, case)


def test_a_fault_is_noticed(tmp_path: Path, sim_dir: Path) -> None:
    mutation = Mutation(
        "no sticky bit",
        "m2xfp.rtl.parts.fp32_addition",
        "sticky = Mux(far, chosen.any(), lost) & live",
        "sticky = Const(0)",
    )
    unit = find_unit("fp32_accumulator")
    files = emit_mutant(mutation, unit.name, "m2xfp-single", tmp_path)
    simulator = CxxrtlSimulator(files, build_dir=sim_dir)
    cases = find_bench(unit).regression(unit.instance("m2xfp-single").facts)
    with pytest.raises((AssertionError, SimulationError)):
        _ = [check_case(simulator, case) for case in cases]
