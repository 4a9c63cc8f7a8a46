"""The guide to adding a unit, as written: its files, its row, and every stage of its example."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from m2xfp.tb.parts import value_stimulus

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "adding-a-unit.md"
# All that the package consists of; results and pages are not needed.
PARTS = [
    *("m2xfp", "rtl", "golden", "models", "tb", "synth", "fpga", "accelerator", "manual"),
    *("tests", "pyproject.toml"),
]
COUNT = 300


def blocks() -> dict[str, str]:
    """Return the Python of the page by the file that its section is about."""
    found = re.findall(
        r"^## \d+\. [^\n]*: `([\w/.]+)`$.*?^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S
    )
    return dict(found)


def commands() -> dict[str, list[str]]:
    """Return the command lines of the page by their first word."""
    (listed,) = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    lines = [line.split()[1:] for line in listed.splitlines()]
    return {line[0]: line for line in lines}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the package with the files and the row of the page."""
    folder = tmp_path_factory.mktemp("guide")
    for part in PARTS:
        if (ROOT / part).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, folder / part, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / part, folder)
    for path, text in blocks().items():
        if path != "rtl/catalog.py":
            assert not (folder / path).exists()
            (folder / path).write_text(text)
    imported, row = blocks()["rtl/catalog.py"].split("\n\n", 1)
    catalog = folder / "rtl" / "catalog.py"
    text = catalog.read_text()
    first = "from m2xfp.rtl.units."
    assert text.count("\n    )\n}\n") == 1
    text = text.replace(first, f"{imported}\n{first}", 1)
    catalog.write_text(text.replace("\n    )\n}\n", f"\n        {row.strip()},\n    )\n}}\n"))
    return folder


def call(tree: Path, *arguments: object) -> str:
    """Run the command line of the copy in its folder; return what it prints."""
    program = "import sys; from m2xfp.cli import main; sys.argv[0] = 'm2xfp'; main()"
    return run(tree, "-c", program, *map(str, arguments))


def run(tree: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_files_are_those_of_a_unit(tree: Path) -> None:
    assert list(blocks()) == [
        "rtl/units/code_negator.py",
        "golden/units/code_negator.py",
        "tb/units/code_negator.py",
        "rtl/catalog.py",
        "tests/units/test_code_negator.py",
    ]
    assert "code_negator" in call(tree, "verilog", "--list")


def test_verilog_and_lint(tree: Path) -> None:
    call(tree, *commands()["verilog"])
    facts = json.loads((tree / "build/verilog/code_negator_mxfp4.json").read_text())
    assert facts["parameters"] == {"block": "mxfp4"}
    assert "2 files checked, 0 findings" in call(tree, *commands()["lint"])


def test_simulate(tree: Path) -> None:
    """The Verilog flips every sign and nothing else."""
    groups = value_stimulus.packed_groups(COUNT, seed=5)
    planes = {"codes": groups[:, :16], "scales": groups[:, 16], "meta": groups[:, 17]}
    np.savez(tree / "groups.npz", **planes)
    assert f"{COUNT} rows" in call(tree, *commands()["simulate"], "--stall", "0.3")
    with np.load(tree / "negated.npz") as found:
        assert np.array_equal(found["codes"], planes["codes"] ^ 0x88)
        assert np.array_equal(found["scales"], planes["scales"])
        assert np.array_equal(found["meta"], planes["meta"])


def test_explore_lists(tree: Path) -> None:
    assert call(tree, *commands()["explore"])


def test_own_tests(tree: Path) -> None:
    path = "tests/units/test_code_negator.py"
    assert "2 passed" in run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", path)


@pytest.mark.slow
def test_tests_of_every_unit(tree: Path) -> None:
    """Protocol, vectors, facts and simulation of both configurations, by the catalog alone."""
    path = "tests/units/test_every_unit.py"
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", path, "-k", "code_negator"]
    assert " passed" in run(tree, *arguments, "-m", "slow or not slow")


@pytest.mark.slow
def test_synth_with_power(tree: Path) -> None:
    """Area, path and energy, every gate-level beat compared with golden."""
    call(tree, *commands()["synth"], "--json", "report.json")
    rows = json.loads((tree / "report.json").read_text())["rows"]
    assert [row["config"] for row in rows] == ["m2xfp", "mxfp4"]
    for row in rows:
        assert row["area_um2"] > 0
        assert row["energy_pj_per_group"] > 0
        assert row["gate_level_groups"] > 1000


ON_A_BOARD = """
import pathlib, sys
import numpy as np
from m2xfp.fpga.check.line import SimulatedLine, SimulatedPort
from m2xfp.fpga.gateware.design import Design
from m2xfp.fpga.gateware.units import board_instances
from m2xfp.fpga.host.device import Device

design = Design(8e6, 1_000_000, board_instances(["negator"]))
with SimulatedLine(design, build_dir=pathlib.Path(sys.argv[1])) as line:
    with Device(SimulatedPort(line)) as device:
        assert device.self_test(groups=200).groups == {"negator": 200}
        unit = device.unit("code_negator")
        arrays = unit.bench.load(pathlib.Path("groups.npz"), unit.facts)
        found = device.run("negator", arrays)
assert np.array_equal(found["codes"], arrays["codes"] ^ 0x88)
assert np.array_equal(found["scales"], arrays["scales"])
print(unit.count(arrays), "groups")
"""


def test_on_a_board(tree: Path, sim_dir: Path) -> None:
    """The host drives the example on a simulated board, by its row and its testbench alone."""
    groups = value_stimulus.packed_groups(COUNT, seed=5)
    planes = {"codes": groups[:, :16], "scales": groups[:, 16], "meta": groups[:, 17]}
    np.savez(tree / "groups.npz", **planes)
    assert f"{COUNT} groups" in run(tree, "-c", ON_A_BOARD, str(sim_dir))


@pytest.mark.slow
def test_bitstream(tree: Path) -> None:
    """The example's board row is all that an FPGA build needs."""
    call(tree, *commands()["fpga"])
    assert list((tree / "build/fpga").rglob("*.bin"))
    assert "negator: " in call(tree, "fpga", "check", "icebreaker", "--unit", "negator")
