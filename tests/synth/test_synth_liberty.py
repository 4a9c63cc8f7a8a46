"""Liberty reading: syntax, logic functions, roles of cells, and libraries in several files."""

import gzip
import itertools
from pathlib import Path

import pytest

from m2xfp.errors import InputError, MissingToolError, UnknownNameError
from m2xfp.synth.flow.liberty import Library, parse, parse_function
from m2xfp.synth.flow.pdk import PDKS, find_pdk, pdk_from_liberty

HEAD = 'library (tiny) { time_unit : "1ps"; capacitive_load_unit (1,ff); nom_voltage : 0.7;'


def cell(name: str, area: float, function: str, inputs: str = "AB", more: str = "") -> str:
    pins = "".join(f"pin ({i}) {{ direction : input; capacitance : 0.5; }}\n" for i in inputs)
    return (
        f"cell ({name}) {{ area : {area}; {more} {pins}"
        f'pin (Y) {{ direction : output; function : "{function}"; }} }}\n'
    )


def library(*cells: str) -> str:
    return HEAD + "\n".join(cells) + "}\n"


@pytest.fixture(scope="module")
def osu018():
    return find_pdk("osu018")


@pytest.mark.parametrize(
    ("function", "meaning"),
    [
        ("(!(A B))", lambda a, b, c: 1 - (a & b)),
        ("!A + B C", lambda a, b, c: (1 - a) | (b & c)),
        ("A'*B | C'", lambda a, b, c: ((1 - a) & b) | (1 - c)),
        ("A ^ B & C", lambda a, b, c: a ^ (b & c)),
        ("A ^ B + C", lambda a, b, c: (a ^ b) | c),
        ("(A + B)' !C", lambda a, b, c: (1 - (a | b)) & (1 - c)),
        ("!(A')", lambda a, b, c: a),
        ("(A)(B)C", lambda a, b, c: a & b & c),
        ("1 A + 0", lambda a, b, c: a),
    ],
)
def test_functions(function, meaning):
    code = parse_function(function).replace("1'b", "")
    for a, b, c in itertools.product((0, 1), repeat=3):
        assert eval(code, {"A": a, "B": b, "C": c}) & 1 == meaning(a, b, c), (function, a, b, c)


@pytest.mark.parametrize("function", ["", "A +", "(A", "A)", "A ? B", "+ A", "!"])
def test_a_damaged_function_is_refused(function):
    with pytest.raises(InputError, match="Liberty function"):
        parse_function(function)


def test_parser_keeps_attributes_lists_and_groups():
    tree = parse(
        "/* a */ library (x) {\n"
        '  date : "a; b { c }"; // comment\n'
        "  bare : value\n"
        '  index_1 ("1, 2", \\\n  "3");\n'
        '  values ( \\\n "4" ) ;\n'
        "  cell (a) { pin(A, B) { direction : input } }\n"
        "}\n"
    )
    assert tree.values == {"date": "a; b { c }", "bare": "value"}
    assert tree.lists["index_1"].split() == ['"1,', '2",', '"3"']
    (inner,) = tree.of("cell")
    assert inner.name == "a"
    assert next(inner.of("pin")).arguments == ("A", "B")


@pytest.mark.parametrize(
    "text", ["", "module x; endmodule", "library (x) {", "library (x) { } }", "cell (x) { }"]
)
def test_what_is_no_liberty_is_refused(text, tmp_path):
    path = tmp_path / "x.lib"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x\.lib"):
        Library.read([path])


def test_split_and_gzipped_files_are_one_library(tmp_path):
    one, two = tmp_path / "one.lib", tmp_path / "two.lib.gz"
    one.write_text(library(cell("ND", 2.0, "!(A B)"), cell("ND_SMALL", 1.0, "!A + !B")))
    two.write_bytes(gzip.compress(library(cell("BUF", 3.0, "A", "A")).encode()))
    pdk = pdk_from_liberty([one, two])
    assert pdk.name == "tiny"
    assert pdk.nand2_cell.name == "ND_SMALL"  # smallest by function, however that is written
    assert pdk.driver_cell.name == "BUF"
    assert pdk.load_ff == 4 * 0.5
    assert pdk_from_liberty([one, two], {"NAND2": "ND"}).nand2_cell.area == 2.0
    with pytest.raises(UnknownNameError, match="NOPE"):
        pdk_from_liberty([one], {"NAND2": "NOPE"})
    with pytest.raises(UnknownNameError, match="cell role"):
        pdk_from_liberty([one], {"XOR": "ND"})
    with pytest.raises(InputError, match="DRIVER"):
        _ = pdk_from_liberty([one]).driver_cell


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    one, twice, other = tmp_path / "a.lib", tmp_path / "b.lib", tmp_path / "c.lib"
    one.write_text(library(cell("ND", 2.0, "!(A B)")))
    twice.write_text(library(cell("ND", 2.5, "!(A B)")))
    other.write_text(library(cell("NR", 2.0, "!(A + B)")).replace("1ps", "1ns"))
    with pytest.raises(InputError, match=r"'ND'.*before"):
        Library.read([one, twice])
    with pytest.raises(InputError, match="time_ns"):
        Library.read([one, other])
    with pytest.raises(InputError, match="cannot be read"):
        Library.read([tmp_path / "none.lib"])
    damaged = tmp_path / "d.lib.gz"
    damaged.write_bytes(gzip.compress(one.read_bytes())[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        Library.read([damaged])


def test_osu018(osu018):
    cells = osu018.library.cells
    assert len(cells) == 32
    assert osu018.nand2_cell.name == "NAND2X1"
    assert osu018.nand2_cell.area == 24.0
    assert cells["NAND2X1"].truth_table() == (1, 1, 1, 0)
    assert cells["AOI21X1"].inputs == ("A", "B", "C")
    assert cells["AOI21X1"].truth_table() == tuple(
        1 - ((a & b) | c) for c, b, a in itertools.product((0, 1), repeat=3)
    )
    assert {name for name, c in cells.items() if c.is_flop} == {"DFFNEGX1", "DFFPOSX1", "DFFSR"}
    assert cells["LATCH"].is_stateful
    assert not cells["LATCH"].is_flop
    assert cells["TBUFX1"].truth_table() is None  # three-state
    assert osu018.flop_area_um2 == 96.0


def test_a_pad_is_no_gate(tmp_path):
    """osu035 has one whose output follows a pin that is both input and output."""
    path = tmp_path / "pads.lib"
    pad = cell("PAD", 0.5, "P", more="pin (P) { direction : inout; }")
    path.write_text(library(pad, cell("ND", 1, "!(A B)"), cell("BF", 1, "A", "A")))
    pdk = pdk_from_liberty([path])
    assert pdk.library.cells["PAD"].truth_table() is None
    assert (pdk.nand2_cell.name, pdk.driver_cell.name) == ("ND", "BF")


def test_a_library_is_found_where_users_have_it(tmp_path, monkeypatch):
    for variable in ("PDK_ROOT", "FLOW_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    with pytest.raises(MissingToolError, match=r"sky130_fd_sc_hd.*ciel enable"):
        find_pdk("sky130_fd_sc_hd")
    with pytest.raises(UnknownNameError, match=r"'tsmc7'.*osu018"):
        find_pdk("tsmc7")
    place = Path("sky130A/libs.ref/sky130_fd_sc_hd/lib/sky130_fd_sc_hd__tt_025C_1v80.lib")
    for root in (tmp_path / ".ciel", tmp_path / "own"):
        (root / place).parent.mkdir(parents=True)
        (root / place).write_text(library(cell("ND", 1.0, "!(A B)")))
    assert find_pdk("sky130_fd_sc_hd").liberty == (tmp_path / ".ciel" / place,)
    monkeypatch.setenv("PDK_ROOT", str(tmp_path / "own"))
    assert find_pdk("sky130_fd_sc_hd").liberty == (tmp_path / "own" / place,)


def test_a_library_of_several_files_needs_them_all(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOW_HOME", str(tmp_path))
    folder = tmp_path / "platforms/asap7/lib/NLDM"
    folder.mkdir(parents=True)
    for part in ("AO", "INVBUF", "OA", "SEQ"):
        (folder / f"asap7sc7p5t_{part}_RVT_TT_nldm_211120.lib.gz").touch()
    with pytest.raises(MissingToolError, match="asap7"):
        find_pdk("asap7")
    (folder / "asap7sc7p5t_SIMPLE_RVT_TT_nldm_211120.lib.gz").touch()
    assert len(find_pdk("asap7").liberty) == 5


def test_files_of_a_known_library_get_its_treatment(tmp_path):
    path = tmp_path / "any.lib"
    text = library(cell("sky130_fd_sc_hd__lpflow_x", 1.0, "!(A B)"), cell("ND", 2.0, "!(A B)"))
    path.write_text(text.replace("(tiny)", "(sky130_fd_sc_hd__tt_025C_1v80)"))
    pdk = pdk_from_liberty([path])
    assert pdk.name == "sky130_fd_sc_hd"
    assert pdk.bans(pdk.library.cells["sky130_fd_sc_hd__lpflow_x"])
    assert not pdk.bans(pdk.library.cells["ND"])


def test_every_row_of_the_table_says_where_to_get_it():
    for name, pdk in PDKS.items():
        assert pdk.name == name
        assert pdk.remedy
        assert pdk.places


@pytest.mark.parametrize(
    "name", ["a b", "a;b", "a[exec touch x]", "$x", "../x", "a/b", "-x", "", "a\\n"]
)
@pytest.mark.parametrize("place", ["library", "cell", "pin"])
def test_hostile_names_are_refused(tmp_path: Path, name: str, place: str) -> None:
    """Names go into scripts of yosys, abc and OpenSTA, and into names of folders."""
    names = {"library": "tiny", "cell": "INV", "pin": "A"} | {place: name}
    pin = f'pin ("{names["pin"]}") {{ direction : input; }}'
    text = HEAD.replace("(tiny)", f'("{names["library"]}")')
    text += f' cell ("{names["cell"]}") {{ area : 1; {pin} }} }}'
    (tmp_path / "x.lib").write_text(text)
    with pytest.raises(InputError):
        Library.read([tmp_path / "x.lib"])
