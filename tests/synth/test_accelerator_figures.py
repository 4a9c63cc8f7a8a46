"""The accelerator's comparison: the paper's ratios within their tolerance, and our own figures."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pytest

from m2xfp.errors import InputError
from m2xfp.results import RESULTS, read_figures
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.parts.gemm_cycles import GemmTiming
from m2xfp.synth.studies import paper_accelerator as paper
from m2xfp.synth.studies.accelerator import MEASURED, PAPER, plots
from m2xfp.synth.studies.measured_accelerator import _timing, compare_measured

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
    assert longest["clocks"] >= 2 * 8 * 131072 * 128 / 32 / 8
    assert longest["clocks"] >= longest["dram_clocks"]


def test_the_weight_rows_are_the_accelerators() -> None:
    component = find_unit("accelerator").instance("m2xfp-1x32").component
    timing = _timing(paper.facts().models[0])
    assert (timing.rows, timing.columns) == (component.rows, component.columns)
    assert timing.weight_rows == component.weight_rows


def test_figures_that_lack_a_unit_are_told(tmp_path: Path) -> None:
    (tmp_path / "synth-asap7.json").write_text('{"rows": []}')
    with pytest.raises(InputError, match="lacks figures"):
        compare_measured(tmp_path)


def test_an_array_of_one_format_on_the_same_area() -> None:
    """Clocks follow area where the array is the limit; one token follows the stored bits."""
    figures = compare_measured(RESULTS)
    cells = figures["cells"]
    assert set(cells) == {"m2xfp", "mxfp4", "nvfp4", "mxfp8"}
    for row in figures["models"]:
        for name in ("mxfp4", "nvfp4", "mxfp8"):
            area, bits = (cells[name][key] / cells["m2xfp"][key] for key in ("um2", "bits"))
            assert row[name]["speed"] == pytest.approx(area, rel=1e-3)
            assert row[name]["token_memory"] == pytest.approx(bits, abs=1e-4)


def test_energy_is_the_sum_of_its_parts() -> None:
    """By hand, of one model: DRAM's static power, the array, and its quantizers and encoders."""
    figures = compare_measured(RESULTS)
    (row,) = (row for row in figures["models"] if row["model"] == "llama2_7b")
    parts = row["energy"]["m2xfp"]
    assert sum(parts.values()) == pytest.approx(row["pj_per_mac"], abs=2e-4)
    assert parts["static"] == pytest.approx(484.6 / 500 * 1e3 / 1024 / row["prefill_of_peak"], 1e-3)
    assert parts["macs"] == pytest.approx(figures["cells"]["m2xfp"]["pj"], abs=1e-5)
    layers = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    values = sum(k for _, k in layers) * figures["cells"]["m2xfp"]["quantizer_pj"]
    encoded = 2 * 4096 / 32 * figures["encoder_pj"]
    share = (values + encoded) / sum(n * k for n, k in layers) / row["pj_per_mac"]
    assert row["engine_share"] == pytest.approx(share, rel=0.02)


def test_a_switching_unit_runs_wide_formats_four_times_as_long() -> None:
    figures = compare_measured(RESULTS)
    over = figures["switching"]["um2"] / figures["cells"]["m2xfp"]["um2"]
    for row in figures["models"]:
        for design in paper.BASELINES:
            fused = row[design]["speed_fused"]
            assert row[design]["speed_switching"] == pytest.approx(over * fused, rel=1e-3)


def test_the_plots(tmp_path: Path) -> None:
    texts = {image.name: image.read_text() for image in plots(RESULTS, tmp_path)}
    assert all(name in texts["accelerator-speed.svg"] for name in paper.BASELINES.values())
    assert all(name in texts["accelerator-energy.svg"] for name in ("M2XFP", "NVFP4", "leakage"))
    assert "DRAM-bound, bf16" in texts["accelerator-caches.svg"]
    assert plots(tmp_path, tmp_path) == []
