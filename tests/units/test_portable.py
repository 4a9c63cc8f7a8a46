"""Portable vectors: the testbench passes in two simulators, and fails for what is wrong."""

import re
import sys
from pathlib import Path

import pytest
from mutation import Mutation, emit_mutant
from test_every_unit import SMALL

from m2xfp.cli import cli
from m2xfp.errors import InputError
from m2xfp.processes import run
from m2xfp.rtl.catalog import UNITS, Instance, select
from m2xfp.rtl.verilog.axi_ports import has_axi_ports
from m2xfp.rtl.verilog.emit import emit, modules_of
from m2xfp.synth.checks.cores import CoreError, check_core, run_target
from m2xfp.synth.flow.lint import style_findings
from m2xfp.tb.portable import Pauses, bench_name
from m2xfp.tb.verilator import find_verilator

slow = pytest.mark.slow
NO_ROUNDING = Mutation(
    "no rounding", "m2xfp.rtl.arith.datapath", "guard & (rest | code[0])", "guard & Const(0, 1)"
)
CASES = [
    pytest.param(each, id=each.top, marks=[] if each in SMALL else [pytest.mark.slow])
    for each in select()
]


# A configuration of every unit; the normal run has one of a small unit.
FUSESOC = [
    pytest.param(
        each, id=each.unit.name, marks=[] if each.unit.name == "fp32_accumulator" else [slow]
    )
    for each in SMALL
]


def write(instance: Instance, folder: Path, *options: str) -> str:
    """Write the vectors of a unit by the command, and return the name of the testbench."""
    cli.main(
        ["vectors", instance.unit.name, "--config", instance.config, "-o", str(folder), *options],
        prog_name="m2xfp",
        standalone_mode=False,
    )
    return bench_name(instance.facts)


def icarus(folder: Path, bench: str) -> str:
    """Run the commands that stand in the testbench's head, and return what it prints."""
    commands = re.findall(
        r"^//   \$ ((?:iverilog|vvp) .*)$", (folder / f"{bench}.v").read_text(), re.M
    )
    assert len(commands) == 2
    for command in commands:
        done = run(command.split(), cwd=folder)
        assert not done.returncode, done.stdout
    return done.stdout


def verilator(folder: Path, bench: str) -> str:
    """The same in Verilator."""
    text = (folder / f"{bench}.v").read_text()
    (build,) = re.findall(r"^//   \$ verilator (.*)$", text, re.M)
    done = find_verilator().run([*build.split(), "-O0", "-CFLAGS", "-O0"], folder)
    assert not done.returncode, done.stdout
    done = run([f"obj_dir/V{bench}"], cwd=folder)
    assert not done.returncode, done.stdout
    return done.stdout


@pytest.mark.parametrize("instance", CASES)
def test_passes_in_icarus(instance: Instance, tmp_path: Path) -> None:
    """Also with the unit alone: nothing else is in the folder but the files of the command."""
    bench = write(instance, tmp_path, "--count", "24")
    assert re.search(r"^PASS: [1-9]\d* (beats|words) compared$", icarus(tmp_path, bench), re.M)


@pytest.mark.parametrize(
    "instance",
    [
        pytest.param(
            each.values[0],
            id=each.id,
            marks=[]
            if each.values[0] in SMALL and each.values[0].unit.name == "fp32_accumulator"
            else [pytest.mark.slow],
        )
        for each in CASES
    ],
)
def test_passes_in_verilator(instance: Instance, tmp_path: Path) -> None:
    bench = write(instance, tmp_path, "--count", "24")
    assert re.search(r"^PASS: ", verilator(tmp_path, bench), re.M)


@pytest.mark.parametrize("unit", ["activation_decoder", "fp32_accumulator"])
def test_a_wrong_bit_is_seen(unit: str, tmp_path: Path) -> None:
    """Whichever file it stands in: of what goes in, or of what must come out."""
    (instance,) = (each for each in SMALL if each.unit.name == unit)
    bench = write(instance, tmp_path, "--count", "24", "--stall", "0")
    facts = instance.facts
    outputs = [x.prefix for x in facts.outputs] or [x.name for x in facts.signals if not x.is_input]
    for name in outputs:
        file = tmp_path / f"{facts.top}_{name}.hex"
        kept = file.read_text()
        *lines, final = kept.splitlines()
        file.write_text("\n".join([*lines, f"{int(final, 16) ^ 1:0{len(final)}x}", ""]))
        said = icarus(tmp_path, bench)
        assert re.search(rf"^FAIL: {name}, (beat|word) {len(lines)} is ", said, re.M), said
        assert "PASS" not in said
        file.write_text(kept)


def test_missing_and_extra_beats_are_seen(tmp_path: Path) -> None:
    (instance,) = (each for each in SMALL if each.unit.name == "fp32_accumulator")
    bench = write(instance, tmp_path, "--count", "24")
    text = (tmp_path / f"{bench}.v").read_text()
    (count,) = set(re.findall(r"m_axis_found == (\d+)", text))
    for other, said in ((int(count) + 1, "beats are missing"), (int(count) - 1, "more beats than")):
        changed = re.sub(rf"(m_axis_found (?:==|>=) ){count}\b", rf"\g<1>{other}", text)
        assert changed != text
        (tmp_path / f"{bench}.v").write_text(changed)
        assert re.search(rf"^FAIL: .*{said}", icarus(tmp_path, bench), re.M)


def test_a_mutant_fails(tmp_path: Path) -> None:
    """A quantizer that rounds nothing up."""
    (instance,) = (each for each in SMALL if each.unit.name == "activation_quantizer")
    bench = write(instance, tmp_path, "--count", "100")
    files = emit_mutant(NO_ROUNDING, instance.unit.name, instance.config, tmp_path / "mutant")
    (tmp_path / f"{instance.facts.top}.v").write_text(files.verilog.read_text())
    assert re.search("^FAIL: m_axis, beat ", icarus(tmp_path, bench), re.M)


def with_fault(text: str, number: int, count: int) -> str:
    """Return Verilog with one assignment inverted, of ``count`` that lie far apart in the text."""
    parts = modules_of(text)
    inner = "".join(part for name, part in parts.items() if not name.endswith("_axi"))
    places = re.findall(r"^  assign (?!unused)\w+(?:\[[\d:]+\])? = (?!\d).*;$", inner, re.M)
    place = places[(2 * number + 1) * len(places) // (2 * count)]
    target, _, value = place.rstrip(";").partition(" = ")
    return text.replace(place, f"{target} = ~({value});", 1)


@pytest.mark.parametrize("instance", FUSESOC)
def test_a_fault_in_any_unit_is_seen(instance: Instance, tmp_path: Path) -> None:
    """An inverted assignment of the unit's text; four are tried, since some have no effect."""
    bench = write(instance, tmp_path, "--count", "24")
    file = tmp_path / f"{instance.top}.v"
    kept = file.read_text()
    said = []
    for number in range(4):
        file.write_text(with_fault(kept, number, 4))
        assert file.read_text() != kept
        said.append(icarus(tmp_path, bench))
        if re.search("^FAIL: ", said[-1], re.M):
            return
    pytest.fail(f"all faults passed: {said}")


def test_given_pauses(tmp_path: Path) -> None:
    """A reader that takes a beat every fourth clock makes the run that much longer."""
    (instance,) = (each for each in SMALL if each.unit.name == "fp32_accumulator")
    clocks = []
    for pattern in ("0", "1110"):
        options = [f"--pause=s_axis={pattern}", "--pause=m_axis=0", "--count", "64"]
        bench = write(instance, tmp_path, *options)
        file = tmp_path / f"{bench}.v"
        ended = '$display("%0d", clocks);\n    $finish;'
        file.write_text(file.read_text().replace("$finish;", ended))
        said = icarus(tmp_path, bench)
        assert re.search("^PASS: ", said, re.M)
        clocks.append(int(said.splitlines()[-1]))
    assert clocks[1] > 3 * clocks[0]


@pytest.mark.parametrize(
    ("pauses", "said"),
    [
        (Pauses(1.0), "stall 1.0: must be"),
        (Pauses(patterns={"x": "0"}), "pause x: no stream"),
        (Pauses(patterns={"m_axis": "11"}), "pause m_axis=11: must be"),
        (Pauses(patterns={"m_axis": "0; $finish"}), "must be 1 to 4096 digits"),
    ],
)
def test_bad_pauses(pauses: Pauses, said: str) -> None:
    facts = UNITS["fp32_accumulator"].instance(None).facts
    with pytest.raises(InputError, match=re.escape(said)):
        pauses.check(facts)


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    (instance,) = (each for each in SMALL if each.unit.name == "dot_product")
    for name in "ab":
        write(instance, tmp_path / name, "--count", "16")
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab"
    )
    assert first == second


@pytest.mark.parametrize("instance", FUSESOC)
def test_fusesoc(instance: Instance, tmp_path: Path) -> None:
    """Lint, and the vectors in both simulators, through the unit's core."""
    assert check_core(instance, tmp_path / "core") > 0


@pytest.mark.parametrize("instance", FUSESOC)
def test_fusesoc_lint(instance: Instance, tmp_path: Path) -> None:
    """With all warnings; with a file for each module none is excepted."""
    core = emit(instance, tmp_path / "one").core.read_text()
    assert "-Wall, -Wno-DECLFILENAME]" in core
    core = emit(instance, tmp_path, split=True).core.read_text()
    assert "-Wall]" in core
    run_target(tmp_path, instance.top, "lint")


def test_a_target_that_fails_is_told(tmp_path: Path) -> None:
    (instance,) = (each for each in SMALL if each.unit.name == "fp32_accumulator")
    write(instance, tmp_path, "--count", "24")
    file = tmp_path / f"{instance.top}.v"
    kept = file.read_text()
    file.write_text(kept.replace("endmodule", "  wire w;\nendmodule", 1))
    with pytest.raises(CoreError, match="UNUSEDSIGNAL"):
        run_target(tmp_path, instance.top, "lint")
    file.write_text(kept.replace("assign m_axis_tdata = ", "assign m_axis_tdata = ~", 1))
    assert file.read_text() != kept
    assert "FAIL: m_axis, beat 0 is " in run_target(tmp_path, instance.top, "sim", "icarus")


@pytest.mark.parametrize(
    "instance",
    [
        pytest.param(
            each, id=each.top, marks=[] if each.unit.name in ("activation_decoder",) else [slow]
        )
        for each in SMALL
    ],
)
def test_the_testbench_is_clean(instance: Instance, tmp_path: Path) -> None:
    """In four linters with all warnings."""
    bench = write(instance, tmp_path, "--count", "4")
    files = [f"{bench}.v", f"{instance.top}.v"]
    options = ["--lint-only", "-Wall", "--timing", "-Wno-DECLFILENAME", "--top-module", bench]
    done = find_verilator().run([*options, *files], tmp_path)
    assert not done.returncode, done.stdout
    done = run(["iverilog", "-g2005", "-Wall", "-t", "null", "-s", bench, *files], cwd=tmp_path)
    assert not done.stdout
    slang = [sys.executable, "-m", "m2xfp.synth.flow.slang", "--std", "1364-2005", "-Weverything"]
    tops = ["--top", bench]
    if has_axi_ports(instance.component):
        tops += ["--top", f"{instance.top}_axi"]
    done = run([*slang, *tops, *files], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert style_findings(tmp_path, files[:1]) == ""
