"""The vocabulary: elements against ml_dtypes and torch, derived facts, and ``m2xfp formats``."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import reference
import torch
from click.testing import CliRunner

from m2xfp import formats
from m2xfp.cli import cli
from m2xfp.errors import UnknownNameError
from m2xfp.golden import get_format
from m2xfp.golden.formats.elements import decode, encode
from m2xfp.models import libraries, quality
from m2xfp.models.libraries import findings
from m2xfp.models.quality import DISTRIBUTIONS, sample, sqnr
from m2xfp.results import read_figures

ELEMENTS = {
    "e2m1": (formats.E2M1, ml_dtypes.float4_e2m1fn, reference.E2M1),
    "e2m3": (formats.E2M3, ml_dtypes.float6_e2m3fn, reference.E2M3),
    "e3m2": (formats.E3M2, ml_dtypes.float6_e3m2fn, reference.E3M2),
    "e4m3": (formats.E4M3, ml_dtypes.float8_e4m3fn, reference.E4M3),
    "e5m2": (formats.E5M2, ml_dtypes.float8_e5m2, reference.E5M2),
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_all_codes_against_ml_dtypes_and_the_reference(name):
    element, theirs, exact = ELEMENTS[name]
    codes = np.arange(1 << element.bits, dtype=np.uint8)
    ours = decode(torch.from_numpy(codes).long(), element).numpy()
    assert np.array_equal(ours, codes.view(theirs).astype(np.float64), equal_nan=True)
    magnitudes = [element.magnitude(code) for code in range(element.max_code + 1)]
    assert magnitudes == list(exact.grid)
    assert (element.max_value, element.emax) == (exact.largest, exact.emax)
    assert element.fraction_bits_at_top == exact.top_fraction_bits
    with pytest.raises(ValueError, match="finite codes: 0"):
        element.magnitude(element.max_code + 1)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_all_codes_against_torch(dtype):
    element = {torch.float8_e4m3fn: formats.E4M3, torch.float8_e5m2: formats.E5M2}[dtype]
    codes = torch.arange(256, dtype=torch.uint8)
    theirs = codes.view(dtype).double()
    assert torch.equal(decode(codes.long(), element).nan_to_num(), theirs.nan_to_num())


@pytest.mark.parametrize("name", ELEMENTS)
def test_encoding_against_ml_dtypes(name):
    element, theirs, _ = ELEMENTS[name]
    every = torch.arange(-32768, 32768, dtype=torch.int16).view(torch.bfloat16).double()
    # ml_dtypes' 8-bit types overflow to NaN or infinity where the rule saturates.
    x = every[every.abs() <= float(element.max_value)]
    wanted = x.numpy().astype(theirs).view(np.uint8)
    assert np.array_equal(encode(x, element).numpy(), wanted)


def test_e8m0_bytes_are_torch_e8m0():
    codes = torch.arange(256, dtype=torch.uint8)
    scale = get_format("mxfp4").coder.scale
    theirs = codes.view(torch.float8_e8m0fnu).double()
    assert torch.equal(scale.value(codes.long()).nan_to_num(-1), theirs.nan_to_num(-1))


@pytest.mark.parametrize(
    ("element", "exact"),
    [(formats.INT8, reference.INT8), (formats.INT4, reference.INT4), (formats.SM3, reference.SM3)],
)
def test_fixed_point_elements(element, exact):
    assert (element.max_value, element.emax) == (exact.largest, exact.emax)
    assert element.fraction_bits_at_top == exact.top_fraction_bits
    for code in range(1 << element.bits):
        sign, magnitude = exact.value(code)
        value = decode(torch.tensor([code]), element).item()
        assert value == float(-magnitude if sign else magnitude)
    assert element.magnitude(1) == exact.value(1)[1]


def test_facts_of_scales_and_blocks():
    assert formats.FP32_SCALE.grid.max_value == Fraction(
        *(3.4028234663852886e38).as_integer_ratio()
    )
    assert formats.E4M3_WIDE_SCALE.grid.max_value == 480
    assert formats.M2XFP_ACT.group_bytes == (16, 1, 1)
    assert formats.AMXFP4.group_bytes == (16, 2, 0)
    assert formats.SMX4.group_bytes == (6, 1, 1)
    with pytest.raises(ValueError, match="subgroup 8 does not divide the group of 20"):
        formats.BlockFormat(
            "x", formats.E2M1, formats.E8M0, 20, formats.Metadata("sg-em", bits=2, subgroup=8)
        )
    with pytest.raises(UnknownNameError, match="unknown input type 'fp64'; there are: bf16"):
        formats.input_type("fp64")


# The expected SQNR in dB, and by how much seeds may differ.
TOLERANCE = {"normal": 0.2, "laplace": 0.2, "t3": 1.0, "lognormal": 2.0}
EXPECTED = {
    "mxfp4": (18.8, 17.9, 17.1, 16.8),
    "nvfp4": (20.5, 20.7, 20.9, 30.6),
    "smx4": (15.7, 14.9, 14.5, 16.8),
    "amxfp4": (20.2, 20.2, 20.1, 26.0),
    "m2xfp-act": (20.6, 20.3, 19.6, 26.7),
    "m2xfp-weight": (21.9, 21.5, 20.9, 28.0),
    "mxfp6-e2m3": (30.9, 30.2, 29.3, 31.1),
    "mxfp8-e4m3": (30.7, 30.0, 29.7, 28.9),
    "mxint8": (41.3, 39.7, 37.9, 43.5),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_sqnr(name):
    fmt = get_format(name, **({"tensor_scale": "auto"} if name == "nvfp4" else {}))
    for distribution, expected in zip(DISTRIBUTIONS, EXPECTED[name], strict=True):
        measured = sqnr(fmt, sample(distribution))
        print(f"{name} {distribution}: {measured:.2f} dB, expected {expected}")
        assert abs(measured - expected) <= TOLERANCE[distribution] + 0.05


def test_known_disagreements_are_still_there():
    """If a library changes its mind, the page that lists the disagreements has to follow."""
    found = {(f.library.split()[0], f.subject): f for f in findings()}
    assert found["microxcaling's", "floor(log2(amax)), bfloat16"].different > 6000
    assert found["microxcaling's", "E2M1: rounding of ties"].different == 4
    assert found["ml_dtypes", "E4M3: codes of bfloat16"].different > 0
    for name in ("E2M1", "E2M3", "E3M2"):
        assert found["ml_dtypes", f"{name}: codes of bfloat16"].different == 0


def test_the_command_prints_every_format():
    result = CliRunner().invoke(cli, ["formats"])
    assert result.exit_code == 0
    for name, block in formats.BLOCK_FORMATS.items():
        row = next(line for line in result.output.splitlines() if line.startswith(f"| {name} "))
        assert f" {float(block.bits_per_value):g} " in row


def test_studies_measure_and_write(tmp_path):
    arguments = ["study", "sqnr", "--groups", "50", "-o", str(tmp_path)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    rows = read_figures(tmp_path / "sqnr.json")["rows"]
    assert [row["format"].partition(",")[0] for row in rows] == list(formats.BLOCK_FORMATS)
    assert quality.tables(tmp_path)["sqnr"] in result.output
    result = CliRunner().invoke(cli, ["study", "libraries", "-o", str(tmp_path)])
    assert "ml_dtypes" in libraries.tables(tmp_path)["libraries"]
    assert libraries.tables(tmp_path)["libraries"] in result.output
