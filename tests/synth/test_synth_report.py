"""The report: rows with power, the accepted figures, what changed against them, the plots."""

import json
import re
import sys
from dataclasses import asdict, replace

import pytest

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.rtl.catalog import find_unit
from m2xfp.synth.flow.pdk import find_pdk
from m2xfp.synth.flow.yosys import FlowOptions
from m2xfp.synth.report import accepted
from m2xfp.synth.report.figures import Row, flow_facts, markdown_table, measure, measure_all
from m2xfp.synth.studies.paper import paper_table

CONFIG = "bf16x8"


@pytest.fixture(scope="module")
def osu018():
    return find_pdk("osu018")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the command is run."""
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def build(folder):
    return folder / "build/synth"


@pytest.fixture(scope="module")
def row(osu018, build):
    unit = find_unit("activation_quantizer").instance(CONFIG)
    return measure(unit, osu018, FlowOptions(), power=True, breakdown=True, build=build)


def test_a_row_is_whole_and_consistent(row):
    assert row.gate_level_groups >= 2 * 64
    assert row.power_mw == pytest.approx(
        row.energy_pj_per_group * row.groups_per_clock * row.fmax_mhz * 1e-3, rel=1e-4
    )
    assert 0 < row.clock_energy_pj < row.energy_pj_per_group * row.groups_per_clock
    assert row.leakage_uw > 0
    assert row.energy_pj_per_mac is None
    # Hierarchy costs a little, and its parts are the whole.
    assert sum(row.module_area_um2.values()) == pytest.approx(row.area_um2, rel=0.15)
    assert row.energy_pj_per_group_random == pytest.approx(row.energy_pj_per_group, rel=0.3)


def test_a_second_run_is_the_same(row, osu018, build):
    (again,) = measure_all(
        [find_unit("activation_quantizer").instance(CONFIG)],
        osu018,
        FlowOptions(),
        power=True,
        breakdown=True,
        build=build,
    )
    assert again == row


def test_table_leaves_out_what_nobody_has(row, osu018):
    text = markdown_table([row], flow_facts(osu018, FlowOptions()))
    assert "pJ/group" in text
    assert "pJ/MAC" not in text
    header, rule, line = text.splitlines()[-3:]
    assert len(header) == len(rule) == len(line)
    assert f"| {row.area_um2:.0f} " in line


OLD = Row("u", "a", "p", 100.0, 1, 1, 1, 1, 1, 2.0, 1, 1, "", "", 1.0)


def test_a_figure_that_was_zero_is_compared():
    old = replace(OLD, energy_pj_per_group=0.0)
    (change,) = accepted.changes([old], [replace(old, energy_pj_per_group=9.0)])
    assert change.growth == float("inf")
    assert str(change) == "worse: u a energy_pj_per_group 0 -> 9 (it was zero)"
    (area,) = accepted.changes([replace(OLD, area_um2=0.0)], [OLD])
    assert area.is_regression


@pytest.mark.parametrize("wrong", ["many", None, -1.0, float("nan"), [1]])
def test_an_accepted_figure_that_is_none_is_named(tmp_path, wrong):
    rows = [{**asdict(OLD), "area_um2": wrong}]
    path = tmp_path / "synth-osu018.json"
    path.write_text(json.dumps({"flow": {}, "rows": rows}))
    with pytest.raises(InputError, match=r"area_um2 of u a is .*git checkout"):
        accepted.accepted_files(tmp_path)


def test_changes():
    old = Row("u", "a", "p", 100.0, 1, 1, 1, 1, 1, 2.0, 1, 1, "", "", 1.0)
    new = replace(old, area_um2=103.1, critical_path_ns=2.05, energy_pj_per_group=5.0)
    other = replace(old, config="b", area_um2=900.0)
    (area, path) = accepted.changes([old], [new, other])  # nothing to compare b or energy with
    assert (area.figure, area.is_regression) == ("area_um2", True)
    assert (path.figure, path.is_regression) == ("critical_path_ns", False)  # 2.5 %
    assert str(area).startswith("REGRESSION: u a area_um2 100 -> 103.1 (+3.1%)")
    assert not accepted.changes([old], [old])
    (better,) = accepted.changes([old], [replace(old, area_um2=50.0)])
    assert not better.is_regression
    dear = replace(old, energy_pj_per_group=5.0)
    (energy,) = accepted.changes([dear], [replace(dear, energy_pj_per_group=9.0)])
    assert not energy.is_regression  # watched, not guarded


def test_accepted_figures_come_back_and_are_the_same_bytes(row, osu018, tmp_path):
    options, known = FlowOptions(), [("activation_quantizer", CONFIG)]
    gone = replace(row, unit="gone")
    path = accepted.accept(tmp_path, [gone], [row], known, osu018, options)
    assert list(tmp_path.iterdir()) == [path]  # figures, and nothing that can be drawn from them
    first = path.read_bytes()
    assert accepted.load(tmp_path, osu018, options) == [row]
    accepted.accept(tmp_path, [row], [], known, osu018, options)
    assert path.read_bytes() == first
    with pytest.raises(InputError, match=r"another flow.*booth"):
        accepted.load(tmp_path, osu018, FlowOptions(booth=True))
    path.write_text("{}")
    with pytest.raises(InputError, match="not a report"):
        accepted.load(tmp_path, osu018, options)
    assert accepted.load(tmp_path / "none", osu018, options) == []


def test_tables_and_plots_are_drawn_from_the_figures_alone(row, osu018, tmp_path):
    known = [("activation_quantizer", "bf16x32"), ("activation_quantizer", CONFIG)]
    rows = [replace(row, config="bf16x32"), row]
    accepted.accept(tmp_path, [], rows, known, osu018, FlowOptions())
    tables = accepted.tables(tmp_path)
    assert set(tables) == {
        *("synth-osu018", "synth-osu018-units", "synth-osu018-activation_quantizer")
    }
    assert CONFIG in tables["synth-osu018"]
    assert CONFIG not in tables["synth-osu018-units"]  # the first configuration of each unit
    assert tables["synth-osu018"] == markdown_table(rows, flow_facts(osu018, FlowOptions()))
    drawn = accepted.plots(tmp_path, tmp_path / "drawn")
    assert {path.name for path in drawn} == {
        *("synth-osu018-area.svg", "synth-osu018-tradeoff.svg")
    }
    first = [path.read_bytes() for path in drawn]
    assert row.module_area_um2
    largest = max(row.module_area_um2, key=row.module_area_um2.__getitem__)
    assert largest.encode() in first[0]
    accepted.plots(tmp_path, tmp_path / "drawn")
    assert [path.read_bytes() for path in drawn] == first


def test_paper_table():
    """Densities and ratios by hand."""
    base = Row("pe_tile", "mxfp4", "osu018", 3200.0, 1, 1, 1, 1, 1, 1, 1, 1, "", "", 1)
    rows = [base, replace(base, config="m2xfp", area_um2=3520.0)]
    macs = {(row.unit, row.config): 8 for row in rows}
    assert paper_table([], "osu018", {}) == ""
    _, _, plain, refined = paper_table(rows, "osu018", macs).splitlines()
    cells = [cell.strip() for cell in refined.strip("|").split("|")]
    assert cells == [
        *("PE tile, M2XFP", "2140.12", "267.5", "+4.0%"),
        *("pe_tile m2xfp", "3520", "440.0", "+10.0%"),
    ]
    assert plain.count("+0.0%") == 2


def run(monkeypatch, *arguments: str) -> int:
    from m2xfp import cli

    monkeypatch.setattr(sys, "argv", ["m2xfp", "synth", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return exit_.value.code


@pytest.mark.usefixtures("row")  # what it measures is then in the cache
def test_check_fails_on_a_regression_and_accept_settles_it(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    choice = ["activation_quantizer", "--config", CONFIG, "--no-power"]
    assert run(monkeypatch, *choice, "--accept") == 0
    path = folder / "docs/results/synth-osu018.json"
    figures = path.read_text()
    report = json.loads(figures)
    report["rows"][0]["area_um2"] *= 0.95
    path.write_text(json.dumps(report))
    capsys.readouterr()
    assert run(monkeypatch, *choice, "--check") == 1
    told = capsys.readouterr()
    assert re.search(r"REGRESSION: activation_quantizer bf16x8 area_um2 .*\+5\.3%", told.out)
    assert "--accept" in told.err
    assert run(monkeypatch, *choice, "--accept") == 0
    assert path.read_text() == figures
    assert run(monkeypatch, *choice, "--check", "--accept") == 2


def test_command_writes_the_report(row, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    choice = ["activation_quantizer", "--config", CONFIG, "--json", "out.json"]
    assert run(monkeypatch, *choice, "--markdown", "out.md") == 0
    report = json.loads((folder / "out.json").read_text())
    assert report["rows"] == [asdict(replace(row, module_area_um2=None))]
    assert report["flow"]["wire_load"] == "off"
    assert report["flow"]["nand2"] == "NAND2X1"
    assert capsys.readouterr().out == (folder / "out.md").read_text()


def test_an_unknown_stimulus_is_refused():
    from m2xfp.synth.gate_sim.stimulus import operands

    with pytest.raises(UnknownNameError, match=r"'noise'.*model, random"):
        operands("noise", 64, 1)


def test_stimulus_comes_from_the_whole_text(monkeypatch):
    import torch

    from m2xfp.models.lm import HELD_OUT, as_tokens
    from m2xfp.models.windows import cut_windows
    from m2xfp.synth.gate_sim import stimulus

    read = []

    def layer_inputs(model, tokens):
        read.append(tokens)
        return {"layer": torch.zeros(1, 32)}

    monkeypatch.setattr("m2xfp.models.activations.layer_inputs", layer_inputs)
    stimulus._model_rows.__wrapped__()
    windows = cut_windows(as_tokens(HELD_OUT.read_bytes()), read[0].shape[1])
    total = len(windows)
    places = [(windows == window).all(1).nonzero()[0].item() for window in read[0]]
    assert [place * 8 // total for place in places] == [*range(8)]  # one in each eighth


def test_stimulus_is_what_it_says():
    import torch

    from m2xfp.synth.gate_sim.stimulus import operands

    model, random = operands("model", 64, 10), operands("random", 64, 10)
    for part in (model.activations, model.weights, random.activations, random.weights):
        assert part.shape == (640, 32)
        assert part.dtype == torch.float32
        assert part.isfinite().all()
    assert torch.equal(operands("random", 64, 10).weights, random.weights)
    # Any number of groups takes different runs of neighbours, from the first to the last.
    odd = operands("model", 80, 1).weights
    assert odd.shape == (80, 32)
    assert not torch.equal(odd[32:48], odd[64:80])
    # Real activations have heavier tails than a normal distribution.
    assert model.activations.abs().max() / model.activations.std() > 6
    assert random.activations.abs().max() / random.activations.std() < 6
