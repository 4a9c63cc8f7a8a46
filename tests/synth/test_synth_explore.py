"""Sweeps: what is swept, what is kept, and what is drawn."""

import json
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict

import pytest

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.rtl.catalog import UNITS
from m2xfp.synth.flow.pdk import find_pdk
from m2xfp.synth.flow.yosys import FlowOptions
from m2xfp.synth.report.figures import Row
from m2xfp.synth.studies import explore as module
from m2xfp.synth.studies.explore import SPACES, explore, front, parse_sweep, points_of
from m2xfp.synth.studies.explore_report import write_report

SWEEP = ("input_type=bf16", "lanes=8,32", "stages=3")


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
    sweep = parse_sweep("activation_quantizer", SWEEP)
    assert sweep["lanes"] == ("8", "32")
    assert sweep["subgroup"] == SPACES["activation_quantizer"].defaults["subgroup"]
    with pytest.raises(UnknownNameError, match=r"'depth'.*lanes"):
        parse_sweep("activation_quantizer", ["depth=3"])
    with pytest.raises(UnknownNameError, match="nonesuch"):
        parse_sweep("nonesuch", [])
    for text in ("lanes", "lanes=", "lanes=,"):
        with pytest.raises(InputError, match="NAME=VALUE"):
            parse_sweep("activation_quantizer", [text])


def test_every_space_belongs_to_a_unit_and_has_points():
    for unit, space in SPACES.items():
        assert unit in UNITS
        points = points_of(unit, space.defaults)
        assert len({point.label for point in points}) == len(points)
        for point in points:
            assert any(name.startswith(("m2xfp", "mxfp4", "nvfp4")) for name in point.golden)


def test_points_that_are_the_same_or_impossible_are_left_out():
    sweep = parse_sweep("activation_quantizer", [*SWEEP, "block=mxfp4,m2xfp-act", "subgroup=4,8"])
    labels = [point.label for point in points_of("activation_quantizer", sweep)]
    assert labels == [
        *("bf16-8-mxfp4-any-3", "bf16-8-m2xfp-act-4-3", "bf16-8-m2xfp-act-8-3"),
        *("bf16-32-mxfp4-any-3", "bf16-32-m2xfp-act-4-3", "bf16-32-m2xfp-act-8-3"),
    ]
    with pytest.raises(InputError, match="none of the combinations"):
        points_of("activation_quantizer", parse_sweep("activation_quantizer", ["lanes=7"]))
    with pytest.raises(InputError, match="none of the combinations"):
        points_of("activation_quantizer", parse_sweep("activation_quantizer", ["lanes=many"]))


def test_a_dot_product_is_swept_over_what_it_can_be_built_for():
    """Formats of both sides go together, and the exact accumulation has one chain."""
    points = points_of("dot_product", parse_sweep("dot_product", ["format=mxfp4,m2xfp"]))
    labels = [point.label for point in points]
    for name in ("mxfp4", "m2xfp"):
        for kind in ("fp32-1", "fp32-3", "exact-1"):
            assert {f"{name}-{kind}-1", f"{name}-{kind}-2"} <= set(labels)
    assert len(labels) == 12
    assert {point.golden for point in points} == {
        ("mxfp4", "mxfp4"),
        ("m2xfp-weight", "m2xfp-act"),
    }
    for sweep in ("format=mxfp5", "accumulator=fp16"):
        with pytest.raises(UnknownNameError, match=sweep.split("=")[1]):
            points_of("dot_product", parse_sweep("dot_product", [sweep]))


def test_kept_points_are_not_measured_again(osu018, tmp_path, monkeypatch):
    points = points_of("activation_quantizer", parse_sweep("activation_quantizer", SWEEP))
    options = FlowOptions()

    def no_client(*_args):
        raise AssertionError("Dask was started")

    monkeypatch.setattr(module, "_client", no_client)
    for index, point in enumerate(points):
        kept = tmp_path / f"{module._key(point, osu018, options)}.json"
        figures = row(area_um2=100.0 - index, critical_path_ns=1.0 + index, energy_pj_per_group=2.0)
        kept.write_text(json.dumps(asdict(figures)))
    found = explore(points, [osu018], options, accuracy=False, folder=tmp_path)
    assert [outcome.row["area_um2"] for outcome in found] == [100.0 - i for i in range(len(points))]
    assert {outcome.bits_per_value for outcome in found} == {4.25, 4.5, 4.75}

    lines = "\n".join(write_report(found, tmp_path / "out"))
    name = "explore-activation_quantizer"
    plot = tmp_path / f"out/{name}-osu018-area-time.svg"
    assert str(plot) in lines
    assert "area-accuracy" not in lines  # there is no accuracy to draw
    assert len(json.loads((tmp_path / f"out/{name}.json").read_text())) == len(points)
    drawn = plot.read_bytes()
    list(write_report(found, tmp_path / "out"))
    assert plot.read_bytes() == drawn

    with pytest.raises(AssertionError, match="Dask"):
        explore(points, [osu018], FlowOptions(booth=True), accuracy=False, folder=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonesuch"], "'nonesuch'"),
        (["activation_quantizer", "--sweep", "depth=1"], "'depth'"),
        (["activation_quantizer", "--pdk", "nonesuch"], "'nonesuch'"),
        (["activation_quantizer", "--workers", "0"], "--workers"),
        (["activation_quantizer", "--sweep", "lanes=7"], "none of the combinations"),
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
    sweep = parse_sweep("activation_quantizer", [*SWEEP[::2], "lanes=8", "block=mxfp4"])
    points = points_of("activation_quantizer", sweep)
    (outcome,) = explore(points, [osu018], FlowOptions(), workers=1, folder=tmp_path)
    assert 1.02 < outcome.perplexity_ratio < 2
    assert outcome.row["gate_level_groups"] > 1000
    (again,) = explore(points, [osu018], FlowOptions(), accuracy=False, folder=tmp_path)
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
    points = points_of("fp32_accumulator", {"format": ("mxfp4",), "chains": ("1", "3")})
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
            points,
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
        explore(points, [osu018], FlowOptions(booth=True), scheduler=address, folder=tmp_path)
