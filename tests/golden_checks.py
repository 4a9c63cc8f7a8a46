"""Comparing the golden model with the exact reference, shared by the golden tests."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import reference
import torch

from m2xfp.golden import Format, PackedTensor, computing, get_format
from m2xfp.golden.bits import from_bits, to_bits
from m2xfp.tb.parts import value_stimulus

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def spec_of(name: str, **options: object) -> reference.Spec:
    """Translate options into the reference's terms."""
    spec = reference.SPECS[name]
    facts: dict[str, object] = {}
    for option, value in options.items():
        if option == "scale_rule":
            facts["rule"] = "even" if value == "rtne" else value
        elif option == "scale_mode":
            facts["scale"] = {"float": "fp32", "e4m3": "e4m3-480", "e5m2": "e5m2"}.get(
                str(value), "e8m0"
            )
            facts["rule"] = "even" if value == "pot-r" else "floor"
        elif option in ("ties", "group", "subgroup", "adaptive", "fraction_bits", "choice"):
            facts[option] = value
        elif option == "scale_floor":
            facts["floor"] = Fraction(value)
        elif option == "full_range":
            facts["element"] = replace(spec.element, full_range=value)
        elif option in ("quotient", "candidates"):
            facts[{"quotient": "reciprocal", "candidates": "octaves"}[option]] = value in (
                *("reciprocal", "octaves"),
            )
        else:
            assert option in ("search", "tensor_scale"), option
    return replace(spec, **facts)


def check_bits(name: str, kind: str, raw: np.ndarray, **options: object) -> None:
    """Quantize and dequantize raw patterns in both models; every bit must agree."""
    fmt: Format = get_format(name, **options)
    spec = spec_of(name, **options)
    if options.get("search") == "fixed" and "fraction_bits" not in options:
        spec = replace(spec, fraction_bits={"bf16": 10, "fp16": 13, "fp32": 26}[kind])
    x = from_bits(kind, raw)
    with computing("plain"):
        packed = fmt.quantize(x)
    rows = [[reference.from_bits(kind, int(bits)) for bits in row] for row in raw]
    units = [Fraction(1)] * len(rows)
    if options.get("tensor_scale") == "token":
        units = [reference.tensor_scale(spec, row) for row in rows]
        assert [Fraction(g) for g in packed.tensor_scale.tolist()] == units
    elif options.get("tensor_scale") == "auto":
        units = [reference.tensor_scale(spec, [v for row in rows for v in row])] * len(rows)
        assert Fraction(packed.tensor_scale.item()) == units[0]
    elif options.get("tensor_scale") is not None:
        units = [Fraction(packed.tensor_scale.item())] * len(rows)
    pairs = zip(rows, units, strict=True)
    expected = [reference.quantize(spec, row, unit) for row, unit in pairs]
    found = packed.groups().squeeze(1).numpy()
    for i, group in enumerate(expected):
        wanted = reference.group_bytes(spec, group)
        if bytes(found[i]) != wanted:
            codes, scales, meta = (field[i, 0].tolist() for field in packed.unpack())
            raise AssertionError(
                f"{name} {options} {kind} group {i}: {[hex(v) for v in raw[i]]}\n"
                f"golden    {codes} {scales} {meta}\nreference {group}"
            )
    check_values(fmt, spec, packed.groups(), expected, units, packed.tensor_scale)
    for path in ("plain", "auto"):
        with computing(path):
            assert torch.equal(fmt.quantize(x).groups(), packed.groups())
            fake = to_bits(fmt.fake_quantize(x))
            assert np.array_equal(fake, to_bits(packed.dequantize(DTYPES[kind])))


def check_values(fmt, spec, groups, expected, units=None, tensor_scale=None) -> None:
    """Dequantize to every type and compare with one rounding of the exact values."""
    packed = PackedTensor.from_groups(fmt, groups, tensor_scale=tensor_scale)
    pairs = zip(expected, units or [Fraction(1)] * len(expected), strict=True)
    exact = [reference.dequantize(spec, group, unit) for group, unit in pairs]
    for kind, dtype in DTYPES.items():
        wanted = np.array([[reference.to_bits(kind, v) for v in row] for row in exact])
        for path in ("plain", "auto"):
            with computing(path):
                values = to_bits(packed.dequantize(dtype)).reshape(len(exact), -1)
            bad = np.argwhere(values != wanted)
            assert not len(bad), (
                f"{fmt.name} {fmt.options} as {kind}, {path}: group {bad[0]}: "
                f"{values[tuple(bad[0])]:#x}, exactly {wanted[tuple(bad[0])]:#x}"
            )


def check_distribution(
    name: str, kind: str, distribution: str, count: int, seed: int, **options: object
) -> None:
    """Check one seeded distribution; the seed is printed, pytest shows it on failure."""
    print(f"{name} {options} {kind} {distribution}: seed {seed}, {count} groups")
    group = get_format(name, **options).block.group
    check_bits(name, kind, value_stimulus.groups(distribution, kind, count, seed, group), **options)
