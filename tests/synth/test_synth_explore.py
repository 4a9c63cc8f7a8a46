"""Sweeps: what is swept, what is kept, and what is drawn."""

import json
import pickle
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.files import write_sealed
from m2xfp.results import RESULTS, read_figures
from m2xfp.rtl.catalog import UNITS, Instance, find_unit
from m2xfp.rtl.parameters import parameters_of
from m2xfp.synth.flow.pdk import find_pdk
from m2xfp.synth.flow.yosys import FlowOptions
from m2xfp.synth.report.figures import Row
from m2xfp.synth.studies import explore as module
from m2xfp.synth.studies.explore import Point, explore, front, parse_sweep, points_of
from m2xfp.synth.studies.explore_report import plots, tables, write_outcomes

ROOT = Path(__file__).parents[2]
SWEEP = ("input_type=bf16", "lanes=8,32", "stages=3")


def points(unit: str, *texts: str, config: str | None = None, **changes) -> list[Point]:
    row = find_unit(unit)
    return points_of(row, config, changes, parse_sweep(row, texts, changes))


@pytest.fixture(scope="module")
def osu018():
    return find_pdk("osu018")


def row(**figures) -> Row:
    known = dict.fromkeys(("area_um2", "critical_path_ns", "groups_per_clock"), 1.0)
    others = {name: 0 for name in Row.__dataclass_fields__ if name not in known}
    return Row(**(others | known | figures))


def test_front_is_what_no_point_beats():
    rng = random.Random(0)
    for _ in range(200):
        points = [(rng.randrange(8), rng.randrange(8)) for _ in range(rng.randrange(1, 12))]
        best = {points[i] for i in front(points)}
        slow = {
            p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)
        }
        assert best == slow


def test_sweeps_are_read_and_refused():
    unit = find_unit("activation_quantizer")
    sweep = parse_sweep(unit, SWEEP)
    assert sweep["lanes"] == ("8", "32")
    assert sweep["block"] == unit.sweep.axes["block"]
    assert list(sweep) == list(unit.sweep.axes)  # replaced in place
    with pytest.raises(UnknownNameError, match=r"'depth'.*lanes"):
        parse_sweep(unit, ["depth=3"])
    for text in ("lanes", "lanes=", "lanes=,"):
        with pytest.raises(InputError, match="NAME=VALUE"):
            parse_sweep(unit, [text])
    with pytest.raises(InputError, match="whole number"):
        parse_sweep(unit, ["lanes=many"])
    with pytest.raises(InputError, match=r"lanes.*give it once"):
        parse_sweep(unit, ["lanes=8", "lanes stages=8 3"])


def test_a_comma_in_the_options_of_a_format_ends_no_value():
    sweep = parse_sweep(
        find_unit("activation_quantizer"), ["block=m2xfp-act:group=64,subgroup=4,mxfp4"]
    )
    assert sweep["block"] == ("m2xfp-act:group=64,subgroup=4", "mxfp4")


def test_parameters_change_together_where_they_are_swept_together():
    found = points("fp32_accumulator", "act weight=mxfp4 mxfp4,m2xfp-act m2xfp-weight", chains=1)
    assert [point.swept for point in found] == [
        {"act": "mxfp4", "weight": "mxfp4"},
        {"act": "m2xfp-act", "weight": "m2xfp-weight"},
    ]
    assert all(point.instance.parameters["chains"] == 1 for point in found)
    with pytest.raises(InputError, match="give 2 values"):
        points("fp32_accumulator", "act weight=mxfp4")


def test_any_parameter_of_any_unit_is_swept_from_any_configuration():
    found = points("gemm_core", "rows=1,2", config="mxfp4-2x2", max_k=64)
    assert [point.instance.parameters["rows"] for point in found] == [1, 2]
    assert {point.instance.parameters["act"].name for point in found} == {"mxfp4"}
    assert {point.instance.parameters["max_k"] for point in found} == {64}
    assert {point.formats for point in found} == {None}  # its row names no formats
    with pytest.raises(InputError, match="--sweep NAME=VALUE"):
        parse_sweep(find_unit("gemm_core"), [])


@pytest.mark.parametrize("unit", [name for name, unit in UNITS.items() if unit.sweep])
def test_the_sweep_of_a_unit_is_of_its_parameters_and_has_points(unit: str):
    known = parameters_of(find_unit(unit).component)
    axes = find_unit(unit).sweep.axes
    assert {name for names in axes for name in names.split()} <= known.keys()
    found = points(unit)
    assert len({point.instance.top for point in found}) == len(found) > 1
    for point in found:
        assert any(name.startswith(("m2xfp", "mxfp4", "nvfp4")) for name in point.formats)


def test_points_that_are_the_same_or_impossible_are_left_out():
    found = points("activation_quantizer", *SWEEP[::2], "lanes=7,8", "block=mxfp4,mxfp4,nvfp4")
    assert [point.swept["lanes"] for point in found] == ["8"]
    with pytest.raises(InputError, match=r"none of the combinations.*lanes=7"):
        points("activation_quantizer", "lanes=7")


def test_a_dot_product_is_swept_over_what_it_can_be_built_for():
    """Formats of both sides go together, and the exact accumulation has one chain."""
    found = points("dot_product")
    labels = {tuple(point.swept[name] for name in ("act", "window", "chains")) for point in found}
    for act in ("mxfp4", "m2xfp-act"):
        assert {(act, "none", "1"), (act, "none", "3"), (act, "usual", "1")} <= labels
        assert (act, "usual", "3") not in labels
    assert {("mxfp4", "mxfp4"), ("m2xfp-weight", "m2xfp-act")} <= {p.formats for p in found}


def test_accepted_points_are_those_of_the_page():
    """The command that docs/silicon.md names gives the points of the accepted file, in order."""
    accepted = read_figures(ROOT / RESULTS / "explore-activation_quantizer.json")["points"]
    found = points("activation_quantizer", "input_type=bf16", "stages=3")
    assert [(point.instance.config, point.swept) for point in found] == [
        (point["config"], point["parameters"]) for point in accepted
    ]


@pytest.mark.parametrize("unit", [name for name, unit in UNITS.items() if unit.sweep])
def test_a_worker_builds_the_point_from_what_is_sent_to_it(unit: str):
    """Formats have an identity, which a copy that went through a socket has not."""
    for point in points(unit)[::5]:
        facts = pickle.loads(pickle.dumps(point.instance.facts))
        assert Instance.of(facts).facts == point.instance.facts


def test_kept_points_are_not_measured_again(osu018, tmp_path, monkeypatch):
    found = points("activation_quantizer", *SWEEP)
    options = FlowOptions()

    def no_client(*_args):
        raise AssertionError("Dask was started")

    monkeypatch.setattr(module, "_client", no_client)
    for index, point in enumerate(found):
        kept = tmp_path / f"{module._key(point, osu018, options)}.json"
        figures = row(area_um2=100.0 - index, critical_path_ns=1.0 + index, energy_pj_per_group=2.0)
        write_sealed(kept, json.dumps(asdict(figures)))
    outcomes = explore(found, [osu018], options, accuracy=False, folder=tmp_path)
    assert [outcome.row["area_um2"] for outcome in outcomes] == [
        100.0 - i for i in range(len(found))
    ]
    assert {outcome.bits_per_value for outcome in outcomes} == {4.25, 4.5, 4.75}

    results, drawn = tmp_path / "results", tmp_path / "drawn"
    written = write_outcomes(outcomes, results)
    assert written.name == "explore-activation_quantizer.json"
    (table,) = tables(results).values()
    assert table.count("\n") == 2 + len(found)
    (plot,) = plots(results, drawn)  # there is no accuracy to draw
    assert plot.name == "explore-activation_quantizer-osu018-area-time.svg"
    first = plot.read_bytes()
    plots(results, drawn)
    assert plot.read_bytes() == first

    with pytest.raises(AssertionError, match="Dask"):
        explore(found, [osu018], FlowOptions(booth=True), accuracy=False, folder=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonesuch"], "'nonesuch'"),
        (["activation_quantizer", "--sweep", "depth=1"], "'depth'"),
        (["activation_quantizer", "--pdk", "nonesuch"], "'nonesuch'"),
        (["activation_quantizer", "--workers", "0"], "--workers"),
        (["activation_quantizer", "--sweep", "lanes=7"], "none of the combinations"),
        (["activation_quantizer", "--set", "lanes=8", "--sweep", "lanes=8"], "give it once"),
        (["activation_quantizer", "--name", "x"], "--name"),
        (["gemm_core"], "--sweep NAME=VALUE"),
        (["activation_quantizer", "--clock-gating"], "no integrated clock gate"),
    ],
)
def test_command_refuses(arguments, words, tmp_path, monkeypatch, capsys):
    from m2xfp import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["m2xfp", "explore", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Dask's own processes, at their end
def test_a_sweep_on_dask(osu018, tmp_path):
    """One point for real: workers of their own, silicon and accuracy, kept for the next time."""
    found = points("activation_quantizer", *SWEEP[::2], "lanes=8", "block=mxfp4")
    (outcome,) = explore(found, [osu018], FlowOptions(), workers=1, folder=tmp_path)
    assert 1.02 < outcome.perplexity_ratio < 2
    assert outcome.row["gate_level_groups"] > 1000
    (again,) = explore(found, [osu018], FlowOptions(), accuracy=False, folder=tmp_path)
    assert again.row == outcome.row


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_sweep_on_a_scheduler_by_its_address(osu018, tmp_path):
    """A scheduler and a worker as a user starts them on a cluster: it is they who measure."""
    facts = tmp_path / "scheduler.json"
    options = ["--scheduler-file", str(facts), "--no-dashboard"]
    commands = (
        ["scheduler", "--host", "127.0.0.1", "--port", "0", *options],
        ["worker", "--nthreads", "1", "--no-nanny", "--local-directory", str(tmp_path), *options],
    )
    swept = points("fp32_accumulator", "act weight=mxfp4 mxfp4", "chains=1,3")
    with ExitStack() as stack:
        for role, *arguments in commands:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{role}", *arguments],
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            while not facts.exists():
                assert process.poll() is None
                time.sleep(0.1)
        address = json.loads(facts.read_text())["address"]
        found = explore(
            swept,
            [osu018],
            FlowOptions(),
            accuracy=False,
            scheduler=address,
            folder=tmp_path / "kept",
        )
    single, triple = (outcome.row for outcome in found)
    assert single["flops"] + 2 * 32 <= triple["flops"]
    assert all(row["gate_level_groups"] > 1000 for row in (single, triple))
    with pytest.raises(InputError, match=f"{address}.*does not answer"):
        explore(swept, [osu018], FlowOptions(booth=True), scheduler=address, folder=tmp_path)
