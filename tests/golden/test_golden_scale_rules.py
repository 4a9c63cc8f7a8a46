"""Every E8M0 format under every scale rule, for each bfloat16 as largest value, by fractions."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import reference
from choices import usual_first

from m2xfp.golden.bits import quantize_bits
from m2xfp.golden.units.activation_quantizer import activation_quantizer

SPECS = {
    **{
        name: reference.SPECS[name]
        for name in (
            *("mxfp4", "mxfp6-e2m3", "mxfp6-e3m2", "mxfp8-e4m3", "mxfp8-e5m2"),
            *("mxint8", "int4", "smx4", "m2xfp-act"),
        )
    },
    "amxfp4:scale_mode=pot": replace(reference.SPECS["amxfp4"], scale="e8m0"),
}
RULES = ("floor", "ceil", "rtn1", "rtn2", "even", "even-e2m1")
USUAL = [("mxfp8-e5m2", "rtn1"), ("smx4", "even"), ("int4", "ceil"), ("mxfp6-e2m3", "rtn2")]


def _named(name: str) -> str:
    """Return a format in its smallest group."""
    base, _, options = name.partition(":")
    return f"{base}:" + ",".join(["group=8", *filter(None, [options])])


@pytest.mark.parametrize("case", usual_first(product(SPECS, RULES), USUAL), ids=" ".join)
def test_each_largest_value(case: tuple[str, str]) -> None:
    """All 32 768 magnitudes, a sign of chance each: scale, code and metadata are exact."""
    name, rule = case
    spec = replace(SPECS[name], rule=rule)
    part = spec.subgroup or 1  # of a group, with the largest value in front and zeros behind it
    rng = np.random.default_rng(3)
    patterns = (np.arange(1 << 15) | rng.integers(0, 2, 1 << 15) << 15).astype(np.uint16)
    raw = np.zeros((1 << 15, 8), np.uint16)
    raw[:, 0] = patterns
    zero = 126 * (spec.sides == 1)
    found = activation_quantizer(
        raw, input_type="bf16", block=_named(name), scale_rule=rule, zero_scale=zero
    )
    codes = found["codes"][:, 0] & ((1 << spec.element.bits) - 1)
    meta = found["meta"][:, 0] & 3 if spec.subgroup else np.zeros(1 << 15, np.uint8)
    if spec.metadata == "pair":
        meta &= 1
    wanted_codes, wanted_scales, wanted_meta = [], [], []
    for pattern in patterns.tolist():
        values = [reference.from_bits("bf16", pattern)] + [(0, reference.Fraction(0))] * (part - 1)
        group = reference.quantize(replace(spec, group=part), values)
        wanted_codes.append(group.codes[0])
        wanted_scales.append([zero] if not pattern & 0x7FFF and zero else group.scales)
        wanted_meta.append(group.meta[0] if group.meta else 0)
    assert np.array_equal(found["scales"], np.array(wanted_scales))
    assert np.array_equal(codes, np.array(wanted_codes))
    assert np.array_equal(meta, np.array(wanted_meta))


def test_the_rules_differ() -> None:
    """No two rules give all these values alike, so a rule that is not handed on would show."""
    raw = np.zeros((1 << 15, 8), np.uint16)
    raw[:, 0] = np.arange(1 << 15)
    for name in ("mxfp8-e4m3", "mxfp6-e3m2"):
        scales = [
            activation_quantizer(raw, input_type="bf16", block=_named(name), scale_rule=rule)[
                "scales"
            ]
            for rule in RULES
        ]
        assert len({plane.tobytes() for plane in scales}) == len(RULES)
        assert np.array_equal(scales[0], quantize_bits(_named(name), "bf16", raw)[1])
