"""The accelerator's AXI ports behind the bus models of cocotbext-axi, in Icarus.

Icarus needs no C++ to be compiled, so these few thousand clocks take a fraction of the time that
Verilator's build would, and it has unknown values.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest
from accelerator_bench import CONFIG, PACKING, UNIT, build
from cocotb_tools.runner import get_runner
from mutation import Mutation, emit_mutant

from m2xfp.facts import EmittedFiles
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.verilog.emit import emit
from m2xfp.tb.four_state import find_icarus

TESTS = 4
Emit = Callable[[str, str], EmittedFiles]


def run(files: EmittedFiles, folder: Path, *, rounds: int, seed: int = 1) -> dict[str, str]:
    """Run all tests of `axi_buses`; return the failure of each, empty if it passed."""
    find_icarus()
    runner, top = get_runner("icarus"), f"{files.top}_axi"
    log = folder / "run.log"
    runner.build(
        sources=[files.verilog.resolve()],
        hdl_toplevel=top,
        build_args=["-g2012"],
        timescale=("1ns", "1ns"),
        build_dir=folder,
        log_file=folder / "build.log",
    )
    with suppress(SystemExit):  # the runner's way to say that tests failed
        runner.test(
            test_module="axi_buses",
            hdl_toplevel=top,
            hdl_toplevel_lang="verilog",
            seed=seed,
            timescale=("1ns", "1ns"),
            extra_env={
                "M2XFP_FACTS": str(files.json.resolve()),
                "M2XFP_ROUNDS": str(rounds),
                "PYTHONWARNINGS": "ignore::DeprecationWarning",  # cocotbext-axi, of cocotb 2
            },
            build_dir=folder,
            test_dir=folder,
            results_xml=str(folder / "results.xml"),
            log_file=log,
        )
    assert (folder / "results.xml").is_file(), log.read_text()
    cases = ElementTree.parse(folder / "results.xml").getroot().iter("testcase")
    return {
        str(case.get("name")): "".join(str(fault.get("message")) for fault in case.findall("*"))
        if case.find("failure") is not None or case.find("error") is not None
        else ""
        for case in cases
    }


def passed(found: dict[str, str]) -> bool:
    assert len(found) == TESTS
    return not any(found.values())


def test_a_bus_of_others(emitted: Emit, tmp_path: Path) -> None:
    found = run(emitted(UNIT, CONFIG), tmp_path, rounds=1)
    assert passed(found), found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_errors_in_every_plane_of_packed_results(tmp_path: Path) -> None:
    """Nine places, each with both kinds of error, come first."""
    found = run(build(PACKING, tmp_path), tmp_path, rounds=12)
    assert passed(found), found


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [2, 3])
def test_more_of_it(emitted: Emit, tmp_path: Path, seed: int) -> None:
    found = run(emitted(UNIT, CONFIG), tmp_path, rounds=12, seed=seed)
    assert passed(found), found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_another_width(tmp_path: Path) -> None:
    instance = UNITS[UNIT].instance(CONFIG, {"bus": "512", "rows": 1, "columns": 4})
    found = run(emit(instance, tmp_path), tmp_path, rounds=3)
    assert passed(found), found


FAULTS = [
    Mutation(
        "burst across 4 KB",
        "m2xfp.rtl.parts.axi_channels",
        "Mux(left < room, left, room)",
        "Mux(left < room, left, left)",
    ),
    Mutation(
        "error of a response dropped",
        "m2xfp.rtl.parts.axi_writer",
        "Mux(wanted, b.payload.data.resp, 0)",
        "0",
    ),
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_faults_are_noticed(fault: Mutation, tmp_path: Path) -> None:
    assert not passed(run(emit_mutant(fault, UNIT, CONFIG, tmp_path), tmp_path, rounds=4))
