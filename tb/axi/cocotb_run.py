"""Running the cocotb tests of an accelerator before the bus models of cocotbext-axi."""

import importlib.metadata
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from cocotb_tools.runner import get_runner
from numpy.typing import NDArray

from m2xfp.facts import EmittedFiles
from m2xfp.tb.cache import BUILD_DIR, cached_build
from m2xfp.tb.protocol.harness import TestbenchError
from m2xfp.tb.verilator import find_verilator

__all__ = ["run_axi_testbench"]

_OPTIONS = ["-Wno-fatal", "--x-assign", "unique", "--x-initial", "unique"]


def run_axi_testbench(
    emitted: EmittedFiles, arrays: Mapping[str, NDArray[Any]], *, build_dir: Path = BUILD_DIR
) -> int:
    """Run all tests of ``cocotb_tests`` on an emitted accelerator; return how many there were.

    Parameters
    ----------
    emitted
        The emitted files.
    arrays
        ``before`` and ``after``, uint8: the memory; ``writes``: registers to write, [n, 2].
    build_dir
        Folder of the build cache.

    Raises
    ------
    TestbenchError
        If a test failed, none ran or the simulation died.
    """
    runner: Any = get_runner("verilator")
    verilator, top = find_verilator(), f"{emitted.top}_axi"

    def build(folder: Path) -> None:
        with verilator.environ():
            runner.build(
                sources=[folder / emitted.verilog.name],
                hdl_toplevel=top,
                build_args=_OPTIONS,
                build_dir=folder,
                log_file=folder / "build.log",
            )

    facts = [importlib.metadata.version("cocotb"), verilator.version, *_OPTIONS]
    built = cached_build(build_dir, f"{top}-cocotb", emitted.verilog, facts, build)
    with tempfile.TemporaryDirectory(dir=build_dir, prefix=".run-") as name:
        folder = Path(name).resolve()
        np.savez(folder / "vectors.npz", allow_pickle=False, **arrays)
        results, log = folder / "results.xml", folder / "run.log"
        with suppress(SystemExit):  # the runner's way to say that tests failed
            runner.test(
                test_module=["m2xfp.tb.axi.cocotb_tests"],
                hdl_toplevel=top,
                hdl_toplevel_lang="verilog",
                seed=1,
                extra_env={"M2XFP_VECTORS": str(folder / "vectors.npz")},
                build_dir=built,
                test_dir=folder,
                results_xml=str(results),
                log_file=log,
            )
        if not results.is_file():
            raise TestbenchError(f"the simulation ended without results:\n{log.read_text()}")
        cases = list(ElementTree.parse(results).getroot().iter("testcase"))
        failed = [
            str(case.get("name"))
            for case in cases
            if any(case.find(kind) is not None for kind in ("failure", "error"))
        ]
        if failed or not cases:
            raise TestbenchError(f"failed: {failed} of {len(cases)}\n{log.read_text()}")
        return len(cases)
