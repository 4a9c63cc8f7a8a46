"""Memories: one module with a behavioural body, or of a library's macros, which behave the same."""

import re
from pathlib import Path

import pytest
from test_every_unit import operands

from m2xfp.cli import cli
from m2xfp.errors import InputError, UnknownNameError
from m2xfp.processes import run
from m2xfp.rtl.catalog import Instance, find_unit
from m2xfp.rtl.parts.word_memory import WordMemory
from m2xfp.rtl.verilog.component import flat_ports
from m2xfp.rtl.verilog.emit import emit
from m2xfp.rtl.verilog.macros import MACROS, Macro, find_macro, read_macros
from m2xfp.tb.bench import find_bench
from m2xfp.tb.portable import write_bench
from m2xfp.tb.verilator import find_verilator

slow = pytest.mark.slow
CORE = find_unit("gemm_core").instance("m2xfp-2x2")
OPENRAM = "sky130_sram_1kbyte_1rw1r_32x256_8"
TEST_FILE = """
[two_port_40x64]
width = 40
depth = 64
holds = true
[two_port_40x64.ports]
ck = "clock"
we = "write"
wa = "write_address"
wd = "write_data"
ren = "not read"
ra = "read_address"
rd = "read_data"
mode = "zeros:2"
"""


def model(macro: Macro) -> str:
    """Return a model of a macro: what is at its output is known for one clock, if it holds none."""
    at = {"clock": "1'b0", "zeros": "", "ones": ""}
    ports = []
    for name, port in macro.ports.items():
        width = port.width if port.role in ("zeros", "ones") else macro.width_of(port)
        direction = "output reg" if port.role == "read_data" else "input wire"
        ports.append(f"  {direction} [{width - 1}:0] {name}")
        at[port.role] = f"{'~' * port.inverted}{name}"
    clocks = [name for name, port in macro.ports.items() if port.role == "clock"]
    lost = "" if macro.holds else f"    else {at['read_data']} <= {{{macro.width}{{1'bx}}}};\n"
    return (
        f"module {macro.name} (\n" + ",\n".join(ports) + "\n);\n"
        f"  reg [{macro.width - 1}:0] words [0:{macro.depth - 1}];\n"
        f"  always @(posedge {clocks[0]}) begin\n"
        f"    if ({at['write']}) words[{at['write_address']}] <= {at['write_data']};\n"
        f"    if ({at['read']}) {at['read_data']} <= words[{at['read_address']}];\n"
        f"{lost}  end\nendmodule\n"
    )


def bench_of(instance: Instance, folder: Path, macro: Macro | None) -> list[str]:
    """Write a unit, its testbench and a model of its macro; return the testbench and all files."""
    files = emit(instance, folder, macro=macro)
    bench = find_bench(instance.unit)
    vectors = bench.vectors(bench.sample(operands(1, 24), instance.facts), instance.facts)
    written = write_bench(instance.facts, vectors, folder)
    names = [written[0].name, files.verilog.name]
    if macro:
        (folder / f"{macro.name}.v").write_text(model(macro))
        names.append(f"{macro.name}.v")
    return [written[0].stem, *names]


def icarus(folder: Path, bench: str, *files: str) -> str:
    done = run(["iverilog", "-g2005", "-s", bench, "-o", "x.vvp", *files], cwd=folder)
    assert not done.returncode, done.stdout
    return run(["vvp", "-n", "x.vvp"], cwd=folder).stdout


def verilator(folder: Path, bench: str, *files: str) -> str:
    options = ["--binary", "--timing", "-Wno-fatal", "-O0", "-CFLAGS", "-O0", "--top-module", bench]
    done = find_verilator().run([*options, *files], folder)
    assert not done.returncode, done.stdout
    return run([f"obj_dir/V{bench}"], cwd=folder).stdout


def a_macro(name: str, folder: Path) -> Macro | None:
    (folder / "macros.toml").write_text(TEST_FILE)
    return None if name == "behavioural" else find_macro(name, folder / "macros.toml")


@pytest.mark.parametrize("play", [icarus, pytest.param(verilator, marks=slow)])
@pytest.mark.parametrize("name", ["behavioural", OPENRAM, "two_port_40x64"])
def test_the_unit_does_the_same(name: str, play: object, tmp_path: Path) -> None:
    """Whatever the memory is made of, every beat is the golden model's."""
    assert callable(play)
    said = play(tmp_path, *bench_of(CORE, tmp_path, a_macro(name, tmp_path)))
    assert re.search(r"^PASS: [1-9]", said, re.M), said


def test_a_wrong_macro_is_noticed(tmp_path: Path) -> None:
    """One that is said to hold its word, and does not."""
    macro = find_macro(OPENRAM)
    holding = Macro(macro.name, macro.width, macro.depth, macro.ports, holds=True)
    bench, *files = bench_of(CORE, tmp_path, holding)
    (tmp_path / f"{OPENRAM}.v").write_text(model(macro))
    assert icarus(tmp_path, bench, *files).startswith("FAIL: ")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == OPENRAM else [slow])
        for name in (*MACROS, "two_port_40x64")
    ],
)
def test_the_macro_is_an_instance_with_its_ports(name: str, tmp_path: Path) -> None:
    macro = a_macro(name, tmp_path)
    assert macro
    file = emit(CORE, tmp_path, macro=macro).verilog
    text = file.read_text()
    found = re.findall(rf"^  {name} macro_\d+ \(\n(.*?)^  \);", text, re.M | re.S)
    assert len(found) == -(-144 // macro.width)  # one bank of memory, used by both columns
    for connections in found:
        assert re.findall(r"^    \.(\w+)\(", connections, re.M) == sorted(macro.ports)
    assert " words [" not in text
    (tmp_path / f"{name}.v").write_text(model(macro))
    options = ["--lint-only", "-Wall", "-Wno-fatal", "--top-module", CORE.top]
    said = find_verilator().run([*options, file.name, f"{name}.v"], tmp_path).stdout
    assert set(re.findall(rf"^%\S+ {CORE.top}", said, re.M)) == {
        f"%Warning-DECLFILENAME: {CORE.top}"
    }


@pytest.mark.parametrize("unit", ["gemm_core", pytest.param("accelerator", marks=slow)])
def test_every_memory_is_a_module_of_its_own(unit: str, tmp_path: Path) -> None:
    """With the ports that docs/integration.md names, so that another module can take its place."""
    text = emit(find_unit(unit).instance(), tmp_path).verilog.read_text()
    modules = re.findall(r"^module (\w+) \(\n(.*?)^endmodule", text, re.M | re.S)
    memories = [body for name, body in modules if "_word_memory" in name]
    assert len(memories) == sum(" words [" in body for _, body in modules) > 0
    for body in memories:
        names = re.findall(r"^  (?:input|output) .*?(\w+),?$", body, re.M)
        assert names == ["clk", *(name for name, _, _ in flat_ports(WordMemory(8, 4)))]


def test_too_many_words() -> None:
    core = find_unit("gemm_core").instance("m2xfp-2x2", {"max_k": 8192})
    with pytest.raises(InputError, match="it has 256 words, the unit has a memory of 512 words"):
        emit(core, Path("nowhere"), macro=find_macro(OPENRAM))
    assert not Path("nowhere").exists()


def test_unknown_macros() -> None:
    with pytest.raises(UnknownNameError, match="memory macro"):
        find_macro("sram")
    for name in ("fakeram7_256x32", "fakeram_256x64", "sky130_sram_2kbyte_1rw_32x512_8"):
        with pytest.raises(InputError, match="through one port"):
            find_macro(name)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("width = 40", "width = 0", "width=0: give a whole number"),
        ("width = 40", "width = true", "width=True: give a whole number"),
        ("depth = 64", "", "needs width, depth and ports"),
        ("holds = true", "holds = 1", "holds=1: give true or false"),
        ('ck = "clock"', "", "none has the role 'clock'"),
        ('"not read"', '"unread"', "role of a port"),
        ('mode = "zeros:2"', 'mode = "zeros:0"', "role of a port"),
        ('mode = "zeros:2"', '"a;b" = "zeros:2"', "is no plain name"),
        ('mode = "zeros:2"', "mode = 2", "give a text for each"),
        ('mode = "zeros:2"', 'q = "read_data"', "several have the role"),
        ("[two_port_40x64]", "[two_port_40x64", "not a TOML file"),
    ],
)
def test_bad_files(old: str, new: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    assert old in TEST_FILE
    file.write_text(TEST_FILE.replace(old, new, 1))
    with pytest.raises(InputError, match=re.escape(said)):
        read_macros(file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_macros(tmp_path / "none.toml")


def test_command(tmp_path: Path) -> None:
    (tmp_path / "macros.toml").write_text(TEST_FILE)
    arguments = ["--memories", "two_port_40x64", "--macros", str(tmp_path / "macros.toml")]
    cli.main(
        ["verilog", "gemm_core", "--config", "m2xfp-2x2", "-o", str(tmp_path), *arguments],
        prog_name="m2xfp",
        standalone_mode=False,
    )
    assert "two_port_40x64 macro_3 (" in (tmp_path / f"{CORE.top}.v").read_text()
