"""What every build of a unit must pass, as one call: lint, regression, streams, and so on.

The same functions that the tests call, for any unit with any parameters, so that whoever chooses
parameters of their own can check the result before taking it into a chip.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from m2xfp.errors import MissingToolError
from m2xfp.facts import EmittedFiles
from m2xfp.rtl.catalog import Instance
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.checks.cores import check_core, find_fusesoc
from m2xfp.synth.flow.lint import lint_file, linters
from m2xfp.tb.bench import find_bench, random_operands
from m2xfp.tb.bulk.simulator import BulkSimulator, SimulationError
from m2xfp.tb.four_state import FourStateError, run_regression
from m2xfp.tb.protocol.harness import TestbenchError, run_testbench
from m2xfp.tb.regression import Case, check_case

__all__ = ["CHECKS", "Checked", "check_instance", "left_out"]


@dataclass(frozen=True)
class Checked:
    """What came of a check.

    Members
    -------
    name
        A key of ``CHECKS``.
    count
        How much was checked, in the check's own measure.
    fault
        What is wrong; empty if nothing is.
    """

    name: str
    count: int
    fault: str = ""


@dataclass(frozen=True)
class _Check:
    """A check: what it counts, its title, and the function that counts or raises."""

    measure: str
    title: str
    run: Callable[[Instance, EmittedFiles, Path], int]


def _lint(instance: Instance, files: EmittedFiles, folder: Path) -> int:
    findings = lint_file(files.verilog, files.top)
    if findings:
        raise AssertionError("\n".join(findings))
    return len(linters()[0])


def _cases(instance: Instance) -> Iterator[Case]:
    return find_bench(instance.unit).regression(instance.facts)


def _regression(instance: Instance, files: EmittedFiles, folder: Path) -> int:
    simulator = BulkSimulator(files, build_dir=folder)
    beats = 0
    for case in _cases(instance):
        check_case(simulator, case)
        beats += sum(len(out) for phase in case.phases for out in phase.outputs.values())
    assert beats, "the regression expects no beats"
    return beats


def _streams(instance: Instance, files: EmittedFiles, folder: Path) -> int:
    if not instance.facts.streams:
        return 0
    bench = find_bench(instance.unit)
    arrays = bench.sample(random_operands(8, 5, 1), instance.facts)
    return run_testbench(files, bench.vectors(arrays, instance.facts, seed=4), build_dir=folder)


def _second(instance: Instance, files: EmittedFiles, folder: Path) -> int:
    return run_regression(files, _cases(instance), folder / f"{files.top}-four-state")


def _core(instance: Instance, files: EmittedFiles, folder: Path) -> int:
    return check_core(instance, folder / f"{files.top}-core")


CHECKS = {
    "lint": _Check(
        "tools", "Verilator, slang, Icarus and verible with all warnings, yosys' checks", _lint
    ),
    "regression": _Check("beats", "every case of the unit's regression in Verilator", _regression),
    "streams": _Check("tests", "cocotb: stalls, full rate, latency, resets", _streams),
    "second": _Check("beats", "a part of each case in Icarus, four-state", _second),
    "core": _Check("beats", "FuseSoC: lint, and vectors in Icarus and Verilator", _core),
}
"""The checks by name, in the order in which they run."""


def left_out() -> dict[str, MissingToolError]:
    """Return the checks that can be left out and whose tool is not installed, with its error."""
    try:
        find_fusesoc()
    except MissingToolError as error:
        return {"core": error}
    return {}


def check_instance(
    instance: Instance, folder: Path, names: tuple[str, ...] = tuple(CHECKS)
) -> Iterator[Checked]:
    """Emit an instance and yield what came of each check, in the order of ``names``.

    Parameters
    ----------
    instance
        A unit with its parameters.
    folder
        For the Verilog and for what is built; kept between runs as a cache.
    names
        Keys of ``CHECKS``.

    Raises
    ------
    MissingToolError
        A simulator is not installed.
    """
    files = emit(instance, folder / "verilog")
    for name in names:
        try:
            yield Checked(name, CHECKS[name].run(instance, files, folder))
        except (AssertionError, SimulationError, TestbenchError, FourStateError) as error:
            yield Checked(name, 0, str(error) or type(error).__name__)
