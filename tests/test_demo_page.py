"""The page of `m2xfp demo --report`: it shows the run's figures, and nothing but them."""

import base64
import re
import struct
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from m2xfp.commands import demo
from m2xfp.commands.demo_page import FIGURES, demo_page, read_page, shades, tones
from m2xfp.golden import get_format

X = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.fixture
def figures() -> dict:
    def row(config: str, area: float) -> dict:
        return {
            "unit": "activation_quantizer",
            "config": config,
            "area_um2": area,
            "logic_area_um2": area / 2,
            "gate_equivalents": area / 24,
            "cells": 8427,
            "flops": 970,
            "critical_path_ns": 5.0637,
            "fmax_mhz": 197.48,
        }

    return {
        "version": "0.2.0",
        "input_type": "bf16",
        "comparisons": [
            {"unit": "a", "config": "x<y", "groups": 1391, "clocks": 1523, "mismatches": 0},
            {"unit": "b", "config": "z", "groups": 552, "clocks": 2214, "mismatches": 0},
        ],
        "linear": {
            **{"layer": "layers.0", "config": "m2xfp", "m": 64, "n": 512, "k": 192},
            **{"clocks": 50709, "utilisation": 0.969, "mismatches": 0, "groups_mismatched": 0},
        },
        "mixed": {
            **{"rule": "micromix", "layer": "layers.1", "config": "mm", "m": 16, "n": 512},
            "k": 192,
            "segments": [["mxfp4", "mxfp4", 128], ["mxfp8-e4m3", "mxfp8-e4m3", 64]],
            **{"clocks": 7001, "mismatches": 0, "groups": 96, "groups_mismatched": 0},
        },
        "dots": [
            {
                **{"unit": "asymmetric", "config": "e5m2", "layer": "layers.2", "what": "amx&"},
                **{"m": 4, "n": 512, "k": 192, "groups": 12288, "clocks": 7002, "mismatches": 0},
            }
        ],
        "generated": {
            **{"unit": "accelerator", "text": "The <b>", "tokens": 4, "logits": 1024},
            **{"cache_bytes": 9216, "clocks": 812345, "busy": 0.512, "different": []},
        },
        "group": demo._typical_group("layers.0.gate_proj", X),
        "shown": [64, 96],
        "sqnr": {
            "attention input": {"mxfp4": 18.184, "m2xfp-act": 20.141},
            "all": {"mxfp4": 17.223, "m2xfp-act": 19.812},
        },
        "perplexity": [
            {"activations": "fp32", "value": 2.0462, "low": 1.9, "high": 2.2},
            *(
                {
                    **{"activations": name, "value": value, "low": 1.9, "high": 2.2},
                    "over": {"value": over, "low": over - 1, "high": over + 1.25},
                }
                for name, value, over in (("mxfp4", 2.1287, 4.04), ("m2xfp-act", 2.0773, 1.52))
            ),
        ],
        "bytes": 4096,
        "area": {"title": "OSU", "yosys": "pyosys", "rows": [row("p", 292888.0), row("q", 1e5)]},
        "verilog": ["build/a & b.v"],
    }


def text_of(page: str) -> str:
    """Return what a reader sees, without the figures for programs."""
    found: list[str] = []

    class Reader(HTMLParser):
        hidden = 0

        def handle_starttag(self, tag: str, attributes: object) -> None:
            self.hidden += tag in ("script", "style")

        def handle_endtag(self, tag: str) -> None:
            self.hidden -= tag in ("script", "style")

        def handle_data(self, data: str) -> None:
            if not self.hidden:
                found.append(data)

    Reader().feed(page)
    return " ".join(" ".join(found).split())


def drawn(page: str) -> Iterator[ElementTree.Element]:
    """Yield the drawings, each well-formed."""
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        yield ElementTree.fromstring(svg)


def test_every_figure_is_on_the_page(figures: dict) -> None:
    text = text_of(demo_page(figures, {}))
    for shown in (
        *("m2xfp 0.2.0", "a x<y", "1391 groups", "44512 values", "1523", "552 groups", "2214"),
        *("[64, 192] x [512, 192]", "32768 results", "50709, 96.9% of peak", "every bit is equal"),
        *("1024 logits, 9216 bytes of cache", "812345, array busy in 51.2%", "The <b>"),
        *("mixed_gemm mm: layers.1 in 128 mxfp4 x mxfp4 + 64 mxfp8-e4m3 x mxfp8-e4m3", "7001"),
        *("asymmetric e5m2: layers.2 in amx&", "2048 results", "7002", "43008 results of linear"),
        *("1943 groups", "18.18 dB", "20.14 dB", "17.22 dB", "19.81 dB", "4096 bytes"),
        *("2.0462", "2.1287", "2.0773", "+4.04 %", "+3.04 .. +5.29 %", "+0.52 .. +2.77 %"),
        *("292888 um2", "100000 um2", "12204", "8427", "970", "5.064", "197", "build/a & b.v"),
    ):
        assert shown in text, shown


def test_a_program_reads_the_figures_from_the_page(figures: dict) -> None:
    figures["verilog"] = ["</script><b>.v"]
    page = demo_page(figures, {})
    assert read_page(page) == figures
    assert page.count("</script>") == 1
    assert "<b>" not in page.partition(FIGURES)[0]


def test_the_same_run_gives_the_same_bytes_that_load_nothing(figures: dict) -> None:
    pictures = demo._pictures(X)
    page = demo_page(figures, pictures)
    assert page == demo_page(figures, demo._pictures(X))
    assert not re.search(r"https?:|<link|@import|url\(", page)
    assert set(re.findall(r'src="(.{15})', page)) == {"data:image/png;"}
    assert page.count("<img") == len(pictures) == 3


def test_bars_are_as_long_as_their_figures(figures: dict) -> None:
    (bars,) = (svg for svg in drawn(demo_page(figures, {})) if svg[0].text.startswith("Signal"))
    lengths = [float(rect.get("width", 0)) for rect in bars.iter("rect")]
    values = [value for row in figures["sqnr"].values() for value in row.values()]
    assert lengths == pytest.approx([lengths[1] * value / values[1] for value in values], abs=0.1)


def test_areas_are_as_long_as_their_figures(figures: dict) -> None:
    (bars,) = (svg for svg in drawn(demo_page(figures, {})) if svg[0].text.startswith("Area"))
    lengths = [float(rect.get("width", 0)) for rect in bars.iter("rect")]
    assert lengths[0] == pytest.approx(lengths[1], abs=0.2)  # half of it is logic
    assert sum(lengths[2:]) / sum(lengths[:2]) == pytest.approx(1e5 / 292888, abs=0.01)


def test_the_bits_are_those_of_the_group(figures: dict) -> None:
    group = figures["group"]
    (bits,) = (svg for svg in drawn(demo_page(figures, {})) if "144 bits" in svg[0].text)
    cells = [int(rect.get("fill") != "#ffffff") for rect in bits.iter("rect")]
    assert len(cells) == 8 + 128 + 8
    codes = [int("".join(map(str, cells[at : at + 4])), 2) for at in range(8, 136, 4)]
    packed = get_format("m2xfp-act").quantize(X.reshape(-1, 32)[group["index"]])
    assert int("".join(map(str, cells[:8])), 2) == packed.scales.item()
    pairs = [low | high << 4 for low, high in zip(codes[::2], codes[1::2], strict=True)]
    assert pairs == packed.codes.flatten().tolist()
    subgroups = [2 * cells[at] + cells[at + 1] for at in range(136, 144, 2)]
    assert sum(meta << 2 * n for n, meta in enumerate(subgroups)) == packed.meta.item()
    assert group["m2xfp-act"] == packed.dequantize().flatten().tolist()


def test_the_group_is_in_the_middle(figures: dict) -> None:
    groups = X.reshape(-1, 32)
    errors = [
        (get_format(name).quantize(groups).dequantize() - groups.float()).double().square().sum(1)
        for name in demo.FORMATS
    ]
    ratios = (errors[1] / errors[0]).sort().values
    assert figures["group"]["ratio"] == pytest.approx(ratios[len(ratios) // 2].item())
    assert 0 < figures["group"]["ratio"] < 1


@pytest.mark.parametrize("values", [torch.zeros(32), torch.full((32,), 6.0), -torch.ones(32)])
def test_a_group_without_error_is_drawn(figures: dict, values: torch.Tensor) -> None:
    figures["group"] = demo._typical_group("zeros", values.bfloat16())
    assert list(drawn(demo_page(figures, demo._pictures(values.bfloat16()[None]))))


def test_pictures_have_the_pixels(figures: dict) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    (data,) = re.findall(r"base64,([^\"]+)", demo_page(figures, {"caption": colors}))
    image = base64.b64decode(data)
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", image[16:24]) == (7, 5)
    start = image.index(b"IDAT") + 4
    (size,) = struct.unpack(">I", image[start - 8 : start - 4])
    rows = np.frombuffer(zlib.decompress(image[start : start + size]), np.uint8).reshape(5, 22)
    assert not rows[:, 0].any()
    assert np.array_equal(rows[:, 1:].reshape(5, 7, 3), colors)


def test_colours_tell_sign_and_size() -> None:
    blue, white, orange = tones(np.array([-2.0, 0.0, 1.0]), 1.0)
    assert tuple(white) == (255, 255, 255)
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]
    dark, light = shades(np.array([-5.0, 0.0]), 1.0)
    assert dark.max() < 60
    assert light.min() == 255


@pytest.mark.parametrize("layer", ["", "linear", "mixed", "dots"])
def test_a_difference_is_told(figures: dict, layer: str) -> None:
    run = figures[layer] if layer else figures["comparisons"][1]
    (run[0] if layer == "dots" else run)["mismatches"] = 3
    page = demo_page(figures, {})
    assert "3 differ" in text_of(page)
    assert "every bit is equal" not in page
    assert 'class="verdict wrong"' in page


def test_a_missing_library_is_told(figures: dict) -> None:
    figures["area"] = {"missing": "not measured: no library"}
    assert "not measured: no library" in text_of(demo_page(figures, {}))
