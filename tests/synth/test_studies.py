"""Studies: what they compute by hand, and what their tables say of figures."""

import torch

from m2xfp.models.quality import sample
from m2xfp.results import to_json
from m2xfp.rtl.parts.gemm_cycles import GemmTiming
from m2xfp.synth.studies.array import array_table
from m2xfp.synth.studies.fractions import encoders, excess, fraction_tables
from m2xfp.synth.studies.gemm import Layer, layer_table
from m2xfp.synth.studies.gemm_perplexity import PerplexityRun


def cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_fewer_fraction_bits_cost_accuracy_and_ten_cost_none() -> None:
    coarse, fine, exact = excess(sample("normal", 500), [5, 7, 10])
    assert coarse.over > fine.over > exact.over == 0
    assert coarse.changed > fine.changed > exact.changed == 0


def test_encoders_differ_in_fraction_bits_alone() -> None:
    first, second = (instance.facts.parameters for instance in encoders([5, 6]))
    assert (first["fraction_bits"], second["fraction_bits"]) == (5, 6)
    assert first | {"fraction_bits": 6} == second
    assert first["clocks_per_group"] == 4


def test_fraction_tables() -> None:
    cost = {"gate_equivalents": 10.0, "flops": 3, "critical_path_ns": 1.5}
    figures = {
        "pdk_title": "a library",
        "costs": [
            {"fraction_bits": 5, "area_um2": 100.0, **cost, "energy_pj_per_group": 7.0},
            {"fraction_bits": 6, "area_um2": 110.0, **cost, "energy_pj_per_group": None},
        ],
        "errors": [{"fraction_bits": 5, "normal": {"over": 2e-3, "changed": 0.25}}],
        "searches": [
            {"search": "a", "logic_area_um2": 200.0},
            {"search": "b", "logic_area_um2": 50.0},
        ],
    }
    costs, errors, searches = map(cells, fraction_tables(figures).values())
    assert [row[-1] for row in costs[2:]] == ["7", ""]
    assert errors[-1] == ["5", "2e+03 (25 %)"]
    assert searches[-1] == ["b", "50", "25 %"]


def test_an_array_is_what_its_columns_share_and_a_cell_a_column() -> None:
    rows = [
        {"format": "mxfp4", "area_um2_1x1": 60.0, "area_um2_1x2": 110.0},
        {"format": "m2xfp", "area_um2_1x1": 80.0, "area_um2_1x2": 140.0},
    ]
    table = cells(array_table({"pdk": "osu018", "pdk_title": "x", "rows": rows}))
    assert table[2][:4] == ["mxfp4", "10", "50", "60 (+0.0%)"]
    assert table[3] == ["m2xfp", "20", "60", "80 (+33.3%)", "500 (+22.0%)", "1940 (+20.5%)"]


def test_layers_of_a_model_add_up() -> None:
    timing = GemmTiming(1, 4, max_k=64)
    layers = [Layer("a", 8, 64, count=3), Layer("b", 4, 32)]
    table = cells(layer_table(timing, 30, {"model": layers}))
    one, other = timing.clocks(30, 8, 64), timing.clocks(30, 4, 32)
    assert [row[4] for row in table[2:]] == [str(one), str(other), str(3 * one + other)]
    share = 30 * (3 * 8 * 64 + 4 * 32) / ((3 * one + other) * timing.macs_per_clock)
    assert table[-1][-1] == f"{share:.2%}"
    refused = cells(layer_table(timing, 30, {"model": [*layers, Layer("c", 8, 96)]}))
    assert [row[4] for row in refused[2:]] == [str(one), str(other), "k > 64"]  # and no sum


def test_a_perplexity_is_told_to_the_last_digit() -> None:
    value = float(torch.tensor(1.0).double().exp())
    text = str(PerplexityRun(2, value, value, 77, equal=False))
    assert repr(value) in text
    assert "NOT equal" in text
    assert "NOT" not in str(PerplexityRun(2, value, value, 77, equal=True))


def test_a_row_of_figures_is_a_line() -> None:
    text = to_json({"a": 1, "rows": [{"x": 1}, {"x": None}], "flow": {"y": [], "z": 2}})
    assert text == (
        '{\n "a": 1,\n "rows": [\n  {"x": 1},\n  {"x": null}\n ],\n'
        ' "flow": {\n  "y": [],\n  "z": 2\n }\n}\n'
    )
