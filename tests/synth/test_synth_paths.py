"""Netlists of one design with abc's inputs in several orders: right, and other ones."""

import pytest

from m2xfp.errors import InputError
from m2xfp.facts import Facts
from m2xfp.formats import block_format
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.verilog.emit import emit
from m2xfp.synth.flow.pdk import find_pdk
from m2xfp.synth.flow.yosys import FlowOptions, synthesize
from m2xfp.synth.gate_sim.simulator import LevelizedNetlist, play
from m2xfp.synth.report.figures import flow_facts
from m2xfp.synth.studies import paths
from m2xfp.synth.studies.paths import measure_paths, path_table
from m2xfp.tb.bench import find_bench
from m2xfp.tb.parts import pair_stimulus
from m2xfp.tb.parts.pairs import pairs

SMALL = block_format("mxfp4:group=8")


def test_netlists_of_any_seed_are_right(tmp_path) -> None:
    """Every beat is the golden model's, though cells differ; and a seed gives one netlist."""
    unit, pdk = find_unit("group_dot"), find_pdk("osu018")
    made = unit.instance("mxfp4", {"act": SMALL, "weight": SMALL, "depth": 1})
    act, weight, _ = pair_stimulus.groups("near", (SMALL,) * 2, 20, 64, seed=3)
    sides = (side.reshape(-1, side.shape[2]) for side in (act, weight))
    vectors = find_bench(unit).vectors(pairs(*sides, made.facts), made.facts)
    emitted = emit(made, tmp_path)
    counts = []
    for script in ("default", "speed"):
        for seed in (0, 1, 2):
            options = FlowOptions(abc=script, seed=seed)
            mapped = synthesize(emitted.verilog, emitted.top, pdk, options, tmp_path)
            played = play(LevelizedNetlist(mapped, pdk), vectors, Facts.load(emitted.json), words=1)
            assert played.groups == vectors.groups
            counts.append(tuple(mapped.cell_counts.items()))
            assert ("permute" in (mapped.folder / "abc.script").read_text()) == (seed > 0)
    assert len(set(counts)) > 3
    again = synthesize(emitted.verilog, emitted.top, pdk, FlowOptions(seed=2), tmp_path / "again")
    assert tuple(again.cell_counts.items()) == counts[2]


def test_a_seed_is_a_fact_of_the_flow_if_there_is_one() -> None:
    pdk = find_pdk("osu018")
    assert "seed" not in flow_facts(pdk, FlowOptions())
    assert flow_facts(pdk, FlowOptions(seed=2))["seed"] == 2
    for seed in (-1, 1.5, True):
        with pytest.raises(InputError, match="seed"):
            FlowOptions(seed=seed)


def test_the_table(tmp_path) -> None:
    made = find_unit("activation_decoder").instance()
    figures = measure_paths([made], find_pdk("osu018"), range(2), build=tmp_path)
    assert [(r["abc"], r["seed"]) for r in figures["rows"]] == [
        *(("default", 0), ("default", 1), ("speed", 0), ("speed", 1))
    ]
    rows = [
        {"unit": "u", "config": "c", "abc": "default", "seed": seed, "area_um2": area}
        | {"critical_path_ns": path, "path_start": "", "path_end": ""}
        for seed, (area, path) in enumerate([(100, 7.0), (101, 6.0), (103, 9.0)])
    ]
    lines = path_table(figures | {"rows": rows}).splitlines()
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert cells == [
        *("u", "c", "default", "3", "100", "100", "103", "7.00", "6.00", "7.00", "9.00", "+50%")
    ]
    assert paths.tables(tmp_path) == {}
