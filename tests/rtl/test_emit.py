"""Emission: the same bytes every time, facts that match the ports, no change of meaning."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
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
from m2xfp.rtl.verilog.emit import emit, verilog_text
from m2xfp.rtl.verilog.expression import parse, substitute
from m2xfp.synth.flow.yosys import yosys_command

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


def yosys(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    (folder / "run.ys").write_text(script)
    command, _ = yosys_command()
    return subprocess.run(
        [*command, "run.ys"], cwd=folder, capture_output=True, text=True, check=False
    )


def plain(name: str) -> str:
    """Return a hierarchical name without special characters, disambiguating numbers and u_."""
    name = re.sub(r"\$\d+", "", name)
    return re.sub(r"\W+", "_", re.sub(r"(^|\.)u_", r"\1", name))


def registers(path: Path) -> dict[frozenset[str], str]:
    """Return the register bits of a flat netlist: cell by the names that its output has."""
    module = json.loads(path.read_text())["modules"]["top"]
    outputs = {
        cell["connections"]["Q"][0]: name
        for name, cell in module["cells"].items()
        if cell["type"] == "$_DFF_P_"
    }
    names = defaultdict(set)
    for name, net in module["netnames"].items():
        for index, bit in enumerate(net["bits"]):
            if bit in outputs:
                names[bit].add(f"{plain(name)}[{index}]")
    assert names.keys() == outputs.keys()
    return {frozenset(names[bit]): cell for bit, cell in outputs.items()}


def cut(path: Path, cells: list[str]) -> None:
    """Replace registers by ports: what they hold comes in, what they take goes out."""
    netlist = json.loads(path.read_text())
    module = netlist["modules"]["top"]
    for n, cell in enumerate(cells):
        pins = module["cells"].pop(cell)["connections"]
        module["ports"][f"state_{n}"] = {"direction": "input", "bits": pins["Q"]}
        module["ports"][f"next_{n}"] = {"direction": "output", "bits": pins["D"]}
    module["netnames"] = {}
    assert not [cell for cell in module["cells"].values() if "ff" in cell["type"].lower()]
    path.write_text(json.dumps(netlist))


def equivalent(component: Component, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Prove Verilog ``text`` equal to Amaranth's own conversion, register by register."""
    (folder / "emitted.v").write_text(text)
    (folder / "amaranth.il").write_text(rtlil.convert(AxiStream(component), name="top"))
    for name, read in (
        ("amaranth", "read_rtlil amaranth.il"),
        ("emitted", "read_verilog -sv emitted.v"),
    ):
        done = yosys(
            folder,
            f"{read}\nhierarchy -top top\nproc\nflatten\nsetattr -unset init w:*\n"
            "opt_expr\nopt_clean\nopt_dff\nopt_clean\nsimplemap\ndffunmap\nopt_clean\n"
            f"write_json {name}.json\n",
        )
        assert done.returncode == 0, done.stdout + done.stderr
    gold = registers(folder / "amaranth.json")
    gate = registers(folder / "emitted.json")
    pairs = []
    for names, cell in gold.items():
        same = [other for others, other in gate.items() if names & others]
        assert len(same) == 1, f"{sorted(names)} has {len(same)} counterparts"
        pairs.append((cell, same[0]))
    assert len({other for _, other in pairs}) == len(gate)
    cut(folder / "amaranth.json", [cell for cell, _ in pairs])
    cut(folder / "emitted.json", [cell for _, cell in pairs])
    return yosys(
        folder,
        "read_json amaranth.json\nrename top gold\nread_json emitted.json\nrename top gate\n"
        "miter -equiv -flatten -make_assert -ignore_gold_x gold gate both\nhierarchy -top both\n"
        "opt_merge\nopt_clean\nsat -verify -prove-asserts -set-def-inputs both\n",
    )


def small() -> ActivationQuantizer:
    return ActivationQuantizer(lanes=8, block=replace(M2XFP_ACT, group=16))


@pytest.fixture(scope="module")
def small_text() -> str:
    return verilog_text(small(), "top")


def test_emitted_equals_amaranths_own(small_text: str, tmp_path: Path) -> None:
    done = equivalent(small(), small_text, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


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
    done = equivalent(small(), small_text.replace(old, new, 1), tmp_path)
    assert done.returncode != 0
    assert "proof did fail" in done.stderr


def test_no_leftovers(small_text: str) -> None:
    """Nothing that only makes sense inside a tool: escaped names, initial values, attributes."""
    assert "\\" not in small_text
    assert "$" not in small_text
    assert "initial" not in small_text
    assert "(*" not in small_text
    assert max(map(len, small_text.splitlines())) <= 104


@pytest.mark.parametrize(
    ("use", "value", "width", "place", "folded"),
    [
        ("a & t", "~ b", 1, 1, "a & ~b"),
        ("{ t, a }", "~ b", 1, 2, "{~b, a}"),
        ("v + t", "a & b", 1, 4, None),  # not at its own width there
        ("v + t", "~ b", 1, 4, None),  # would become four bits, three of them ones
        ("v + t", "v == w", 1, 4, "v + (v == w)"),
        ("v + w2", "v - w", 4, 5, None),
        ("{ w2, a }", "v - w", 4, 5, "{v - w, a}"),
        ("w2 == v", "v - w", 4, 1, "(v - w) == v"),
        ("t ? v : w", "a | b", 1, 4, "(a | b) ? v : w"),
        ("w2[1] & a", "v - w", 4, 1, None),  # no part of an expression
        ("| { t, a }", "~ b", 1, 1, "~b | a"),
    ],
)
def test_folding(use: str, value: str, width: int, place: int, folded: str | None) -> None:
    widths = {"a": 1, "b": 1, "t": 1, "v": 4, "w": 4, "w2": 4}
    outer, inner = parse(use, widths), parse(value, widths)
    assert outer
    assert inner
    assert inner.width == width
    result = substitute(outer, "t" if "t" in re.findall(r"\w+", use) else "w2", inner, place)
    assert (str(result) if result else None) == folded


@pytest.mark.parametrize("text", ["$signed(a) + $signed(b)", "f(a, b)", "- a", "a +", "other & a"])
def test_unknown_forms_stay(text: str) -> None:
    assert parse(text, {"a": 1, "b": 1}) is None
