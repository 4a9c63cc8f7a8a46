"""The accelerator's comparison: the paper's ratios within their tolerance, and our own figures."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pytest

from m2xfp.errors import InputError
from m2xfp.results import RESULTS, read_figures
from m2xfp.rtl.parts.gemm_cycles import GemmTiming
from m2xfp.synth.studies import paper_accelerator as paper
from m2xfp.synth.studies.accelerator import MEASURED, PAPER, plots
from m2xfp.synth.studies.measured_accelerator import compare_measured

SPEED, ENERGY = 0.01, 0.03  # what the ratios may differ from the log's
MEANS = {  # the means of the log, written down by hand
    "olive": (2.842, 2.242),
    "ant": (1.959, 1.621),
    "microscopiq": (1.912, 1.688),
}
ROWS = paper.compare()["rows"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['model']}-{row['design']}")
def test_each_ratio_is_the_logs(row: dict[str, float]) -> None:
    assert row["speed"] == pytest.approx(row["speed_log"], rel=SPEED)
    assert row["energy"] == pytest.approx(row["energy_log"], rel=ENERGY)


def test_the_means_are_the_logs() -> None:
    found = defaultdict(list)
    for row in ROWS:
        found[row["design"]].append((row["speed"], row["energy"]))
    assert len(ROWS) == 6 * len(MEANS)
    for design, (speed, energy) in MEANS.items():
        speeds, energies = zip(*found[design], strict=True)
        assert fmean(speeds) == pytest.approx(speed, rel=SPEED)
        assert fmean(energies) == pytest.approx(energy, rel=ENERGY)


def test_shares_follow_from_bits_but_where_these_were_changed() -> None:
    marked = {(row["model"], row["design"]) for row in ROWS if row["from_log"]}
    assert marked == {("llama3_8b", "olive"), ("llama3_8b", "ant"), ("mistral_7b", "ant")}
    for row in ROWS:
        if not row["from_log"]:
            assert row["speed"] == pytest.approx(row["speed_log"], rel=1e-4)


def test_static_energy_is_the_power_of_the_log() -> None:
    for model in paper.facts().models:
        for design in ("m2xfp", *paper.BASELINES):
            clocks, static = model.cycles[design], model.energy_nj[design][0]
            assert static == pytest.approx(clocks * 2 * 484.6e-3, rel=1e-3)


def test_the_accepted_figures_are_what_the_commands_give() -> None:
    assert read_figures(RESULTS / PAPER) == json.loads(json.dumps(paper.compare()))
    measured = json.loads(json.dumps(compare_measured(RESULTS)))
    assert read_figures(RESULTS / MEASURED) == measured


def test_measured_clocks_are_the_cycle_models() -> None:
    """One layer by hand: 4.5 bits a value, activations once a panel, DRAM not the limit."""
    figures = compare_measured(RESULTS)
    (row,) = (row for row in figures["models"] if row["model"] == "opt6b7")
    layers = [(4096, 4096)] * 4 + [(16384, 4096), (4096, 16384)]
    timing = GemmTiming(1, 32, max_k=16384, weight_rows=8)
    clocks = sum(timing.clocks(2048, n, k) for n, k in layers)
    macs = sum(2048 * n * k for n, k in layers)
    bits = sum(n * k * 4.5 + n // 32 * 2048 * k * 4.5 + 2048 * n * 16 for n, k in layers)
    assert row["prefill_of_peak"] == pytest.approx(macs / clocks / 1024, abs=1e-4)
    assert row["prefill_of_bandwidth"] == pytest.approx(bits / clocks / 1024, abs=1e-4)


def test_a_cache_of_128k_is_cut_where_the_weight_buffers_end() -> None:
    longest = compare_measured(RESULTS)["caches"][-1]
    assert longest["cache"] == 131072 > GemmTiming(1, 32, max_k=14336).max_k
    assert longest["cache_bytes"] == 2 * 8 * 131072 * 128 * 4.5 / 8
    assert longest["clocks"] >= 2 * 8 * 131072 * 128 / 32


def test_figures_that_lack_a_unit_are_told(tmp_path: Path) -> None:
    (tmp_path / "synth-asap7.json").write_text('{"rows": []}')
    with pytest.raises(InputError, match="lacks figures"):
        compare_measured(tmp_path)


def test_the_plot(tmp_path: Path) -> None:
    (image,) = plots(RESULTS, tmp_path)
    text = image.read_text()
    assert all(name in text for name in paper.BASELINES.values())
    assert plots(tmp_path, tmp_path) == []
