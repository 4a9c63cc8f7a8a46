"""Emission: the same bytes every time, facts that match the ports, no change of meaning."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from amaranth.back import rtlil
from amaranth.lib.wiring import In

from m2xfp.errors import UnknownNameError
from m2xfp.formats import M2XFP_ACT
from m2xfp.rtl.catalog import UNITS
from m2xfp.rtl.units.activation_quantizer import ActivationQuantizer
from m2xfp.rtl.verilog.axi import AxiStream
from m2xfp.rtl.verilog.component import Component, flat_ports
from m2xfp.rtl.verilog.emit import emit, modules_of, verilog_text
from m2xfp.synth.formal.equivalence import NotEqualError, prove_equal, read

UNIT, CONFIG = "activation_quantizer", "bf16x8"


def m2xfp(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from m2xfp.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_same_bytes_again_and_in_another_process(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        emit(UNITS[UNIT].instance(CONFIG), tmp_path / folder)
    for seed in ("1", "2"):
        done = m2xfp(
            *("verilog", UNIT, "--config", CONFIG, "-o", str(tmp_path / seed)), PYTHONHASHSEED=seed
        )
        assert done.returncode == 0, done.stderr
    first = contents(tmp_path / "first")
    assert set(first) == {f"{UNIT}_{CONFIG}{suffix}" for suffix in (".v", ".json", ".core")}
    for folder in ("second", "1", "2"):
        assert contents(tmp_path / folder) == first


def test_facts_match_the_ports(tmp_path: Path) -> None:
    files = emit(UNITS[UNIT].instance(CONFIG), tmp_path)
    facts = json.loads(files.json.read_text())
    text = files.verilog.read_text()
    head = re.search(rf"^module {files.top} \((.*?)\);", text, re.MULTILINE | re.DOTALL)
    assert head
    declared = [
        {"name": name, "direction": direction, "width": int(top or 0) + 1}
        for direction, top, name in re.findall(
            r"(input|output) +(?:wire|reg) +(?:\[(\d+):0\])? *(\w+)", head[1]
        )
    ]
    assert declared == facts["ports"]
    component = UNITS[UNIT].instance(CONFIG).component
    shell = {
        (name, "input" if flow == In else "output", len(value))
        for name, flow, value in flat_ports(AxiStream(component))
    }
    assert shell == {tuple(port.values()) for port in declared} - {
        ("clk", "input", 1),
        ("rst", "input", 1),
    }
    assert facts["latency"] == component.latency
    assert facts["beats_per_group"] == component.beats_per_group == 4
    comment = text[: text.index("\nmodule")]
    assert f"Latency: {component.latency} clocks" in comment
    for port in declared:
        assert re.search(rf"//   {port['name']} +{port['direction']} +{port['width']}\n", comment)
    assert files.top in files.core.read_text()


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="bf16x8"):
        emit(UNITS[UNIT].instance("bf17x8"), tmp_path)
    for arguments, told in (
        (["no_such_unit"], "activation_quantizer"),
        ([UNIT, "--config", "bf17x8"], "bf16x8"),
    ):
        target = tmp_path / "none"
        done = m2xfp("verilog", *arguments, "-o", str(target))
        assert done.returncode == 2
        assert told in done.stderr
        assert "Traceback" not in done.stderr
        assert not target.exists()
    assert not list(tmp_path.iterdir())


def test_emission_needs_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from m2xfp.rtl.catalog import UNITS\n"
        "from m2xfp.rtl.verilog.emit import emit\n"
        f"emit(UNITS[{UNIT!r}].instance({CONFIG!r}), sys.argv[1])\n"
        "assert not [name for name in sys.modules if name.startswith('m2xfp.golden')]\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == 3


def plain(name: str) -> str:
    """Return a hierarchical name without special characters, disambiguating numbers and u_."""
    name = re.sub(r"\$\d+", "", name)
    return re.sub(r"\W+", "_", re.sub(r"(^|\.)u_", r"\1", name))


def prove(component: Component, text: str, folder: Path) -> None:
    """Prove Verilog ``text`` equal to Amaranth's own conversion, both as one module."""
    (folder / "emitted.v").write_text(text)
    (folder / "amaranth.il").write_text(rtlil.convert(AxiStream(component), name="top"))
    gold, gate = (
        read(folder, command, lambda _, name: plain(name), flatten=True)
        for command in ("read_rtlil amaranth.il", "read_verilog -sv emitted.v")
    )
    prove_equal(folder, gold, gate)


def small() -> ActivationQuantizer:
    return ActivationQuantizer(lanes=8, block=replace(M2XFP_ACT, group=16))


@pytest.fixture(scope="module")
def small_text() -> str:
    return verilog_text(small(), "top")


def test_emitted_equals_amaranths_own(small_text: str, tmp_path: Path) -> None:
    prove(small(), small_text, tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("if (rst)", "if (1'h0)"),
        ("~poisoned", "poisoned"),
        ("o__valid ? ~o__ready", "o__valid ? o__ready"),
    ],
)
def test_the_proof_notices(small_text: str, tmp_path: Path, old: str, new: str) -> None:
    assert old in small_text
    with pytest.raises(NotEqualError, match="proof did fail"):
        prove(small(), small_text.replace(old, new, 1), tmp_path)


def test_split(tmp_path: Path) -> None:
    """A file for each module, of the same text; the core names them all."""
    instance = UNITS[UNIT].instance(CONFIG)
    whole = emit(instance, tmp_path / "whole").verilog.read_text()
    files = emit(instance, tmp_path / "split", split=True)
    parts = {path.stem: path.read_text() for path in (tmp_path / "split").glob("*.v")}
    assert parts == modules_of(whole)
    assert "\n".join(modules_of(whole).values()) == whole
    assert len(parts) == whole.count("\nendmodule")
    core = files.core.read_text()
    assert all(f"- {name}.v\n" in core for name in parts)


def test_no_leftovers(small_text: str) -> None:
    """Nothing that only makes sense inside a tool: escaped names, initial values, attributes."""
    assert "\\" not in small_text
    assert "$" not in small_text
    assert "initial" not in small_text
    assert set(re.findall(r"\(\*.*?\*\)", small_text)) <= {"(* unused *)"}
    assert not re.findall(r"\d'[hbd]\w*[xz]", small_text)
    assert max(map(len, small_text.splitlines())) <= 104
