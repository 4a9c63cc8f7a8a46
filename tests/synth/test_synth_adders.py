"""Full adders: found by their functions, taken for compressor trees, right bit for bit."""

import re

import pytest
from click.testing import CliRunner

from m2xfp.cli import cli
from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.formats import block_format
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.flow import yosys
from m2xfp.synth.flow.liberty import Cell, FullAdder, Library, parse
from m2xfp.synth.flow.pdk import find_pdk, pdk_from_liberty
from m2xfp.synth.flow.yosys import FlowOptions, synthesize
from m2xfp.synth.gate_sim.simulator import LevelizedNetlist, MismatchError, play
from m2xfp.synth.report import accepted
from m2xfp.synth.report.figures import flow_facts
from m2xfp.tb.bench import find_bench
from m2xfp.tb.parts import pair_stimulus
from m2xfp.tb.parts.pairs import pairs

PLAIN = FlowOptions(full_adders=False)
SMALL = block_format("mxfp4:group=8")


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return tmp_path_factory.mktemp("adders")


def cell_of(carry: str, total: str) -> Cell:
    pins = "".join(f"pin ({n}) {{ direction : input; capacitance : 0.01; }}" for n in "ABC")
    outputs = "".join(
        f'pin ({name}) {{ direction : output; function : "{function}"; }}'
        for name, function in (("P", carry), ("Q", total))
    )
    text = f"library (l) {{ cell (X) {{ area : 1; {pins} {outputs} }} }}"
    return Library._of(parse(text)).cells["X"]


@pytest.mark.parametrize(
    ("carry", "total", "found"),
    [
        ("(A&B)|(C&(A|B))", "A^B^C", FullAdder("P", False, "Q", False)),
        ("!((A&B)|(C&(A|B)))", "!(A^B^C)", FullAdder("P", True, "Q", True)),
        ("A^B^C", "(!A&!B)|(!C&(!A|!B))", FullAdder("Q", True, "P", False)),
        ("A&B&C", "A^B^C", None),
        ("(A&B)|(C&(A|B))", "A^B", None),
        ("", "A^B^C", None),
    ],
)
def test_adders_are_found_by_function(carry, total, found) -> None:
    assert cell_of(carry, total).full_adder == found


def test_a_library_without_adders(product, build) -> None:
    """It is refused where adders are asked for, and maps without them by default."""
    text = find_pdk("osu018").liberty[0].read_text()
    banned, count = re.subn(r"(cell ?\(FAX1\) ?{)", r"\1 dont_use : true;", text)
    assert count == 1
    path = build / "none.lib"
    path.write_text(banned)
    with pytest.raises(InputError, match=r"no full adder.*--full-adders"):
        _ = pdk_from_liberty([path]).full_adder_cell
    call = ["synth", "activation_decoder", "--liberty", str(path), "--no-power", "--full-adders"]
    done = CliRunner().invoke(cli, call)
    assert isinstance(done.exception, InputError)
    assert "no full adder" in str(done.exception)
    emitted, _ = product
    mapped = synthesize(emitted.verilog, emitted.top, pdk_from_liberty([path]), build=build)
    assert "FAX1" not in mapped.cell_counts
    assert flow_facts(pdk_from_liberty([path]), FlowOptions())["full_adder"] is None


@pytest.fixture(scope="module")
def product(build):
    """Return a small product of two groups, emitted, with vectors."""
    unit = find_unit("group_dot")
    instance = unit.instance("mxfp4", {"act": SMALL, "weight": SMALL, "depth": 1})
    act, weight, _ = pair_stimulus.groups("near", (SMALL,) * 2, 20, 64, seed=3)
    sides = (side.reshape(-1, side.shape[2]) for side in (act, weight))
    arrays = pairs(*sides, instance.facts)
    return emit(instance, build), find_bench(unit).vectors(arrays, instance.facts)


def test_a_netlist_with_adders_is_smaller_and_right(product, build) -> None:
    """Every beat of the mapped netlist is the golden model's."""
    emitted, vectors = product
    pdk = find_pdk("osu018")
    plain = synthesize(emitted.verilog, emitted.top, pdk, PLAIN, build)
    mapped = synthesize(emitted.verilog, emitted.top, pdk, build=build)
    assert "FAX1" not in plain.cell_counts
    assert mapped.cell_counts["FAX1"] >= 20
    assert mapped.area_um2 < plain.area_um2
    facts = Facts.load(emitted.json)
    played = play(LevelizedNetlist(mapped, pdk), vectors, facts, words=1)
    assert played.groups == vectors.groups


def test_a_wrong_adder_is_found(product, build, monkeypatch) -> None:
    """With carry and sum exchanged, the netlist gives other beats than the golden model."""
    emitted, vectors = product
    pdk = find_pdk("osu018")
    right = yosys._adders(pdk.full_adder_cell)
    wrong = right.replace("(carry)", "(#)").replace("(total)", "(carry)").replace("(#)", "(total)")
    monkeypatch.setattr(yosys, "_adders", lambda _: wrong)
    mapped = synthesize(emitted.verilog, emitted.top, pdk, build=build)
    with pytest.raises(MismatchError):
        play(LevelizedNetlist(mapped, pdk), vectors, Facts.load(emitted.json), words=1)


def test_figures_without_adders_have_a_file_of_their_own(tmp_path) -> None:
    pdk = find_pdk("osu018")
    names = {
        accepted.accept(tmp_path, [], [], [], pdk, options).name
        for options in (FlowOptions(), PLAIN)
    }
    assert names == {
        "synth-osu018.json",
        "synth-osu018-no-adders.json",
    }
