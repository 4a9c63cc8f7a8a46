"""The accelerator's comparison: the paper's ratios within their tolerance, and our own figures."""

import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from m2xfp.accelerator.attention import AttentionCache
from m2xfp.accelerator.device import Device
from m2xfp.accelerator.memory import Allocator
from m2xfp.errors import InputError
from m2xfp.golden.formats.format import get_format
from m2xfp.results import RESULTS, read_figures
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.parameters import parse_settings
from m2xfp.rtl.parts.descriptor_checker import GEMM
from m2xfp.synth.studies import paper_accelerator as paper
from m2xfp.synth.studies.accelerator import AREA, MEASURED, PAPER, SIMULATED, plots
from m2xfp.synth.studies.measured_accelerator import compare_measured
from m2xfp.synth.studies.measured_clocks import Work, memory_bits
from m2xfp.synth.studies.measured_costs import INPUTS
from m2xfp.tb.axi.cycles import product_clocks
from m2xfp.tb.axi.layers import dense_words

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
    assert read_figures(RESULTS / MEASURED) == json.loads(json.dumps(measured()))


@cache
def measured() -> dict[str, Any]:
    return compare_measured(RESULTS)


def row_of(model: str) -> dict[str, Any]:
    (row,) = (row for row in measured()["models"] if row["model"] == model)
    return dict(row)


@cache
def built(act: str, weight: str, max_k: int, *more: str) -> dict[str, Any]:
    """Return the parameters of the paper's array."""
    unit = find_unit("accelerator")
    settings = (f"act={act}", f"weight={weight}", "chunk=144", f"max_k={max_k}", *more)
    instance = unit.instance("m2xfp-1x32", parse_settings(unit.component, settings))
    return dict(instance.facts.parameters)


@cache
def counted(act: str, weight: str, max_k: int, size: tuple[int, int, int], *more: str) -> int:
    """Return the clocks of a product on the paper's array: what tests hold the Verilog to."""
    given = built(act, weight, max_k, *more)
    return product_clocks(given, dense_words(given, size), latency=100, rate=128.0).clocks


OPT = [(4096, 4096)] * 4 + [(16384, 4096), (4096, 16384)]
OWN = ("m2xfp-act", "m2xfp-weight", 16384)


def test_clocks_of_layers_are_the_accelerators() -> None:
    """Those that its own page has for one token; and of many tokens, layer by layer."""
    for row in read_figures(RESULTS / SIMULATED)["layers"]:
        own = row_of(row["model"])["prefill" if row["tokens"] > 1 else "token"]["own"]
        if row["tokens"] == 1:
            assert own["clocks"] * (1 - own["packing"]) == pytest.approx(row["clocks"], abs=2)
            assert own["weights_of_bandwidth"] == row["weights_of_bandwidth"]
            assert 0.97 <= own["weights_of_bandwidth"] <= 0.9925
        # Of many tokens that page has 512 columns, each layer with its beginning and end.
        assert own["of_peak"] == pytest.approx(row["of_peak"], abs=5e-4)
    # Sixteen panels counted as a whole give what the first two do.
    own = row_of("opt6b7")["prefill"]["own"]
    whole = sum(counted(*OWN, (2048, 512, k)) * n / 512 for n, k in OPT)
    assert own["clocks"] * (1 - own["packing"]) == pytest.approx(whole, rel=3e-4)


def test_other_formats_have_their_own_accelerators() -> None:
    """One token: where the memory decides, its clocks; no area changes them."""
    row = row_of("opt6b7")["token"]
    own = sum(counted(*OWN, (1, n, k)) for n, k in OPT)
    mxfp4 = sum(counted("mxfp4", "mxfp4", 16384, (1, n, k)) for n, k in OPT)
    none = "quantizer=none", "encoder=none", "columns=64"
    nvfp4 = sum(counted("nvfp4", "nvfp4", 16384, (1, n, k), *none) for n, k in OPT)
    assert row["over"]["mxfp4"]["products"] == pytest.approx(mxfp4 / own, abs=1e-4)
    assert row["over"]["nvfp4"]["products"] == pytest.approx(nvfp4 / own, abs=1e-4)


def test_prefill_follows_area() -> None:
    """Where the array decides, clocks follow the area of a MAC; of MXFP8 as of the others."""
    cells = measured()["cells"]
    assert set(cells) == {"m2xfp", "mxfp4", "nvfp4", "mxfp8"}
    for row in measured()["models"]:
        for name in ("mxfp4", "nvfp4", "mxfp8"):
            area, bits = (cells[name][key] / cells["m2xfp"][key] for key in ("um2", "bits"))
            assert row["prefill"]["over"][name]["products"] == pytest.approx(area, rel=1e-3)
            of_bandwidth = row["token"]["own"]["weights_of_bandwidth"]
            assert row["memory"][name] == pytest.approx(bits * of_bandwidth, abs=2e-4)


def test_an_array_of_another_area() -> None:
    """Waits stay, the longer of array and memory decides: 128 bytes take a clock."""
    work = Work(clocks=130, array=100, read=128 * 60, written=128 * 20)
    assert [work.on_area(slower) for slower in (0.5, 0.8, 1, 2)] == [110, 110, 130, 230]
    slow = Work(clocks=130, array=50, read=128 * 100, written=0)
    assert [slow.on_area(slower) for slower in (0.5, 1, 2, 3)] == [130, 130, 130, 180]


def test_mxfp8_for_one_token_is_a_bound() -> None:
    """The core with three chains for one row, or 8.25 bits of weights, whichever are more."""
    cells = measured()["cells"]
    row = row_of("opt6b7")["token"]
    area = cells["mxfp8"]["um2"] / cells["m2xfp"]["um2"]
    clocks = 0.0
    for n, k in OPT:
        array = area * (k / 32) * (3 * n / 32 + 1)  # with the first load of weights
        moved = ((n + 1) * k * 8.25 / 8 + n * 2) / 128
        clocks += max(array, moved)
    own = row["own"]["clocks"] * (1 - row["own"]["packing"])
    assert row["over"]["mxfp8"]["products"] == pytest.approx(clocks / own, rel=5e-4)


def test_memories_are_those_of_the_emitted_verilog() -> None:
    """The accepted area counts them in the Verilog."""
    for row in read_figures(RESULTS / AREA)["rows"]:
        given = find_unit("accelerator").instance(row["config"]).facts.parameters
        assert memory_bits(given) == row["memory_bits"]


def test_a_cache_of_short_rows() -> None:
    """Keys are rows of four groups, values rows along the cache; eight heads of four queries."""
    rows = {row["cache"]: row for row in measured()["caches"]}
    for cached, row in rows.items():
        own = row["designs"]["m2xfp"]
        parts = [min(14336, cached - start) for start in range(0, cached, 14336)]
        llama = ("m2xfp-act", "m2xfp-weight", 14336)
        assert own["keys"] == 8 * counted(*llama, (4, cached, 128))
        assert own["values"] == 8 * sum(counted(*llama, (4, 128, k)) for k in parts)
        assert own["clocks"] == own["keys"] + own["values"] + own["packing"]
        assert row["cache_bytes"] == 2 * 8 * cached * 128 * 4.5 / 8
        assert row["dram_clocks"] == row["cache_bytes"] / 128
        # Bounds are the memory's, or three chains' for two blocks of rows.
        bound = row["designs"]["m2xfp_bound"]
        assert bound["keys"] + bound["values"] >= 8 * 2 * cached * 128 * 2 * 3 / 32 / 32
        assert bound["clocks"] < own["clocks"]
    own = rows[2048]["designs"]["m2xfp"]
    assert own["keys"] + own["values"] == 87272


class _Descriptors:
    """In place of a queue: what is pushed."""

    def __init__(self) -> None:
        self.found: list[dict[str, int]] = []

    def push(self, words: dict[str, int], job: object) -> None:
        self.found.append(words)

    def settle(self) -> None:
        """Nothing runs."""

    def wait(self, jobs: object) -> None:
        """Nothing runs."""


class _Memory:
    """In place of a transport: what is loaded is zero."""

    def store(self, address: int, content: object) -> None:
        """Keep nothing."""

    def load(self, address: int, length: int) -> object:
        return torch.zeros(length, dtype=torch.uint8).numpy()


def test_the_drivers_cache_takes_what_is_said() -> None:
    """Its own descriptors, counted: planes lie elsewhere, so pages end elsewhere."""
    device = Device.__new__(Device)
    device.queue = queue = _Descriptors()  # type: ignore[assignment]
    device.transport = _Memory()  # type: ignore[assignment]
    device.acts, device.weights = get_format("m2xfp-act"), get_format("m2xfp-weight")
    device.max_k, device.group = 14336, 32
    device.features = {"quantize_bf16", "encode_bf16"}
    device.memory = Allocator(0, 1 << 26)
    kept = AttentionCache(device, heads=8, width=128, capacity=2048)
    kept.length = 2048
    kept.scores(torch.zeros(32, 1, 128, dtype=torch.bfloat16))
    kept.mix(torch.zeros(32, 1, 2048, dtype=torch.bfloat16))
    products = [words for words in queue.found if words["operation"] == GEMM]
    assert len(products) == 2 * 32
    given = built("m2xfp-act", "m2xfp-weight", 14336)
    clocks = [product_clocks(given, words, latency=100, rate=128.0).clocks for words in products]
    rows = measured()["caches"]
    assert rows[0]["driver_clocks"] == pytest.approx(sum(clocks), rel=5e-3)
    assert [row["driver_clocks"] is None for row in rows] == [row["cache"] > 14336 for row in rows]
    with pytest.raises(InputError, match="larger max_k"):
        AttentionCache(device, heads=8, width=128, capacity=14337)


def test_figures_that_lack_a_unit_are_told(tmp_path: Path) -> None:
    (tmp_path / "synth-asap7.json").write_text('{"rows": []}')
    with pytest.raises(InputError, match="lacks figures"):
        compare_measured(tmp_path)


def test_energy_is_the_sum_of_its_parts() -> None:
    """By hand, of one model: DRAM's power, leakage, the array, and its quantizers and encoders."""
    figures, row = measured(), row_of("llama2_7b")
    layers = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    weights = sum(n * k for n, k in layers)
    # Weight buffers for k = 11008, slots and descriptors, as the Verilog has them for 4096.
    memory = 2 * 32 * (11008 // 32) * 18
    memory += (3 + 8) * 4 * (19 + 3 + 3) * 128 + 4 * 9 * 128 + 4 * 32 * 5
    for phase, tokens in (("prefill", 2048), ("token", 1)):
        own, parts = row[phase]["own"], row[phase]["energy"]["m2xfp"]
        assert sum(parts.values()) == pytest.approx(own["pj_per_mac"], abs=2e-4)
        per_mac = own["clocks"] / 500e6 * 1e12 / (tokens * weights)  # ps a MAC; mW give 1e-3 pJ
        assert parts["static"] == pytest.approx(484.6e-3 * per_mac, rel=1e-4)
        leakage = 63e-3 * memory / 1024 / 144
        assert parts["leakage"] == pytest.approx(leakage * per_mac, rel=1e-3)
        assert parts["macs"] == pytest.approx(figures["cells"]["m2xfp"]["pj"], abs=1e-5)
        # Four tensors are packed once; of one token a whole group of each column of values.
        values = tokens * (3 * 4096 + 11008) * figures["cells"]["m2xfp"]["quantizer_pj"]
        groups = tokens * 4096 / 32 + 4096 * max(1, tokens / 32)
        engines = values + groups * figures["encoder_pj"]
        share = engines / (tokens * weights) / own["pj_per_mac"]
        assert own["engine_share"] == pytest.approx(share, rel=0.03)


def test_layers_that_take_one_tensor_have_its_k() -> None:
    for model in paper.facts().models:
        inputs = INPUTS[model.name]
        assert len(inputs) == len(model.layers)
        for tensor in set(inputs):
            every = zip(inputs, model.layers, strict=True)
            assert len({k for which, (_, k) in every if which == tensor}) == 1


def test_one_token_packs_each_column_of_values() -> None:
    """Clocks of what is packed: four tensors, keys, and a group of each of 4096 columns."""
    row = row_of("llama2_7b")["token"]["own"]
    given = built("m2xfp-act", "m2xfp-weight", 11008)
    total = 0
    for operation, m, k in (
        *((2, 1, k) for k in (4096, 4096, 4096, 11008)),
        *((3, 1, 4096), (3, 4096, 32)),
    ):
        codes = 1 << 20
        words = {
            **{"operation": operation, "kind": 1, "m": m, "k": k},
            **{"a_codes": 0, "a_codes_pitch": 2 * k},
            **{"out": codes, "out_pitch": k // 2, "out_scales_pitch": k // 32},
            **{"out_scales": 2 * codes, "out_meta": 3 * codes},
        }
        total += product_clocks(given, words, latency=100, rate=128.0).clocks
    assert row["clocks"] * row["packing"] == pytest.approx(total, rel=1e-3)


def test_a_switching_unit_runs_wide_formats_four_times_as_long() -> None:
    over = measured()["switching"]["um2"] / measured()["cells"]["m2xfp"]["um2"]
    for row in measured()["models"]:
        for design in paper.BASELINES:
            fused, switching = (
                row["prefill"]["over"][f"{design}_{kind}"]["products"]
                for kind in ("fused", "switching")
            )
            assert switching == pytest.approx(over * fused, rel=1e-3)


def test_fused_macs_are_as_fast_as_the_paper_says() -> None:
    for row in measured()["models"]:
        (model,) = (model for model in paper.facts().models if model.name == row["model"])
        for design in paper.BASELINES:
            expected = 1 + 3 * paper.share_of_8_bits(model, design)
            found = row["prefill"]["over"][f"{design}_fused"]["products"]
            assert found == pytest.approx(expected, rel=1e-3)


def test_the_plots(tmp_path: Path) -> None:
    texts = {image.name: image.read_text() for image in plots(RESULTS, tmp_path)}
    assert all(name in texts["accelerator-speed.svg"] for name in paper.BASELINES.values())
    assert all(name in texts["accelerator-energy.svg"] for name in ("M2XFP", "NVFP4", "leakage"))
    assert "DRAM-bound, bf16" in texts["accelerator-caches.svg"]
    assert plots(tmp_path, tmp_path) == []
