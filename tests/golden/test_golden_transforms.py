"""Hadamard rotation and the mixed MXFP4 / MXFP6 / MXFP8 split."""

from fractions import Fraction

import numpy as np
import pytest
import reference
import torch

from m2xfp.errors import InputError
from m2xfp.golden import get_format
from m2xfp.golden.bits import from_bits, to_bits
from m2xfp.golden.formats.mixed import Split, micromix_split, mixed_matmul, mxquant_splits
from m2xfp.golden.formats.rotation import Rotation, hadamard, rotate_blocks
from m2xfp.tb.parts import value_stimulus


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_hadamard_is_orthogonal():
    for n in (1, 2, 16):
        h = hadamard(n)
        assert torch.equal(h @ h.T, n * torch.eye(n, dtype=torch.float64))
    with pytest.raises(InputError, match="n=12"):
        hadamard(12)


def test_the_butterfly_is_the_matrix():
    rotation = Rotation(96, block=32, seed=3)
    h = torch.block_diag(*[hadamard(32)] * 3) / 32**0.5
    q = rotation.signs.diag() @ h
    assert torch.allclose(rotation(torch.eye(96, dtype=torch.float64)), q, atol=1e-15)
    assert torch.allclose(rotation.inverse(q), torch.eye(96, dtype=torch.float64), atol=1e-14)
    assert set(rotation.signs.tolist()) == {1.0, -1.0}
    assert set(Rotation(96, seed=None).signs.tolist()) == {1.0}


def test_rotation_leaves_a_linear_layer_as_it_is():
    x, w = torch.randn(5, 256, generator=generator(1)), torch.randn(7, 256, generator=generator(2))
    rotation = Rotation(256)
    assert rotation.block == 256
    assert torch.allclose(rotation(x) @ rotation(w).T, x @ w.T, atol=1e-4)
    assert rotation(x.bfloat16()).dtype == torch.bfloat16
    # an outlier spreads over its block
    spike = torch.zeros(256)
    spike[7] = 16.0
    assert (rotation(spike).abs() == 1.0).all()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [((96, 64), "block=64"), ((96, 24), "block=24"), ((0,), "channels=0")],
)
def test_wrong_rotations(arguments, text):
    with pytest.raises(InputError, match=text):
        Rotation(*arguments)
    with pytest.raises(InputError, match="last size is 32"):
        Rotation(32)(torch.ones(2, 64))
    with pytest.raises(TypeError, match="list"):
        Rotation(32)([1.0])


def activations(rows: int, k: int, seed: int) -> torch.Tensor:
    """Normal activations whose channels spread over some powers of two."""
    x = torch.randn(rows, k, generator=generator(seed))
    return x * torch.logspace(0, 4, k, base=2)[torch.randperm(k, generator=generator(seed))]


def test_micromix_counts_elements():
    x = activations(64, 1024, 5)
    split = micromix_split(x)
    scores = x.double().abs().mean(0)
    assert (scores[split.order].diff() >= 0).all()
    top = x.abs().amax(-1, keepdim=True).double()
    r4 = Fraction(int((x.abs() < top * (448 / 6) / 1024).sum()), x.numel())
    r6 = Fraction(int((x.abs() < top * (448 / 28) / 64).sum()), x.numel()) - r4
    p6 = 128 * -(-1024 * r6 // 128)
    p8 = 128 * -(-1024 * (1 - r4 - r6) // 128)
    assert split.sizes == (1024 - p6 - p8, p6, p8)
    assert all(split.sizes)
    assert micromix_split(torch.sign(x)).sizes == (0, 0, 1024)
    x = torch.sign(x)
    x[0, 0] = 0.1
    with pytest.raises(InputError, match="nothing is left for MXFP4"):
        micromix_split(x)


def test_mxquant_ranks_the_channels_of_all_layers():
    layers = [activations(16, 512, 6), 100 * activations(16, 256, 7)]
    layers[0][:, 3] *= 1000
    splits = mxquant_splits(layers, share=0.1)
    assert [split.sizes for split in splits] == [(384, 128, 0), (128, 128, 0)]
    assert splits[0].order[-1] == 3
    assert mxquant_splits(layers, share=0.0)[0].sizes == (512, 0, 0)
    assert mxquant_splits(layers, share=1.0)[1].sizes == (0, 256, 0)


def reference_segment(name: str, row: torch.Tensor) -> list[reference.Group]:
    spec = reference.Spec(reference.SPECS[name].element, rule="ceil")
    values = [reference.from_bits("fp32", int(bits)) for bits in to_bits(row.float())]
    groups = []
    for i in range(0, len(values), 32):
        group = reference.quantize(spec, values[i : i + 32])
        zero = not any(magnitude for _, magnitude in values[i : i + 32])
        groups.append(reference.Group(group.codes, (126,) if zero else group.scales, group.meta))
    return groups


def test_mixed_product_equals_the_reference():
    x, w = activations(3, 512, 8), torch.randn(2, 512, generator=generator(9))
    order = x.abs().mean(0).argsort(stable=True)
    split = Split(order, (256, 128, 128))
    w[:, order[:32]] = 0.0
    a, b = split.quantize(x), split.quantize(w)
    assert b.segments[0].scales[0, 0] == 126
    product = mixed_matmul(a, b)
    assert product.dtype == torch.bfloat16
    names = ("mxfp4", "mxfp6-e3m2", "mxfp8-e4m3")
    for m in range(3):
        for n in range(2):
            total, start = 0, 0
            for name, size in zip(names, split.sizes, strict=True):
                part = order[start : start + size]
                start += size
                rows = reference_segment(name, x[m, part]), reference_segment(name, w[n, part])
                acc = reference.dot((reference.SPECS[name],) * 2, rows)
                sign, magnitude = reference.from_bits("fp32", acc)
                old_sign, old = reference.from_bits("bf16", total)
                exact = (-magnitude if sign else magnitude) + (-old if old_sign else old)
                total = reference.to_bits("bf16", (int(exact < 0), abs(exact)))
            assert int(to_bits(product)[m, n]) == total


def test_mixed_dequantize_restores_the_order():
    x = activations(4, 384, 10)
    split = Split(x.abs().mean(0).argsort(stable=True), (128, 128, 128))
    back = split.quantize(x).dequantize()
    assert back.shape == x.shape
    assert (back - x).abs().mean() < 0.1 * x.abs().mean()
    eight = split.quantize(x, every="mxfp8-e4m3")
    assert [part.format.name for part in eight.segments] == ["mxfp8-e4m3"] * 3
    assert (eight.dequantize() - x).abs().mean() < (back - x).abs().mean()


def test_wrong_splits():
    order = torch.arange(256)
    with pytest.raises(InputError, match="multiple of 128"):
        Split(order, (192, 64, 0))
    with pytest.raises(InputError, match="the order 256"):
        Split(order, (128, 128, 128))
    split = Split(order, (128, 128, 0))
    with pytest.raises(InputError, match="256 channels"):
        split.quantize(torch.ones(2, 128))
    with pytest.raises(TypeError, match="list"):
        split.quantize([1.0])
    other = Split(order, (128, 128, 0))
    with pytest.raises(InputError, match="different splits"):
        mixed_matmul(split.quantize(torch.ones(1, 256)), other.quantize(torch.ones(1, 256)))
    for x in (torch.ones(2, 100), torch.full((1, 128), float("nan"))):
        with pytest.raises(InputError, match="x h"):
            micromix_split(x)
    with pytest.raises(InputError, match="share=2"):
        mxquant_splits([torch.ones(1, 128)], share=2)
    with pytest.raises(InputError, match="empty"):
        mxquant_splits([])


# --- the hardware's rotation, against fractions ---------------------------------------------------


def reference_rotation(block: list[int], flips: list[bool], bits: int, shift: int) -> list[int]:
    """Return the transform of bfloat16 patterns by its definition in docs/rotation.md."""
    largest = max(1, *(raw >> 7 & 0xFF for raw in block))
    if largest == 0xFF:
        return [0x7FC0] * len(block)
    unit = reference.pow2(largest - 127 - (bits - 1))
    cut = []
    for raw, flip in zip(block, flips, strict=True):
        sign, magnitude = reference.from_bits("bf16", raw)
        steps = magnitude // unit
        cut.append(-steps * unit if sign ^ flip else steps * unit)
    results = []
    for column in range(len(block)):
        signs = ((row & column).bit_count() & 1 for row in range(len(block)))
        total = sum(-x if sign else x for x, sign in zip(cut, signs, strict=True))
        result = total / reference.pow2(shift)
        results.append(reference.to_bits("bf16", (int(result < 0), abs(result))))
    return results


DRAWS = ("normal", "lognormal", "subnormal", "huge", "zero", "equal", "one-hot", "special", "wide")


@pytest.mark.parametrize(
    ("points", "bits", "shift"), [(2, 8, 1), (32, 16, 3), (64, 9, 3), (128, 24, 4)]
)
def test_rotated_blocks_equal_the_reference(points: int, bits: int, shift: int) -> None:
    rng = np.random.default_rng(points)
    for name in (*DRAWS, "finite-bits"):
        raw = value_stimulus.groups(name, "bf16", 4, 11, points)
        flips = rng.random(raw.shape) < 0.5
        found = to_bits(rotate_blocks(from_bits("bf16", raw), torch.from_numpy(flips), bits))
        for row, flipped, results in zip(raw.tolist(), flips.tolist(), found, strict=True):
            assert results.tolist() == reference_rotation(row, flipped, bits, shift), name


def test_rotated_blocks_are_the_rotation() -> None:
    """Of 64 points the two definitions differ by roundings alone, of 32 by sqrt 2 besides."""
    x = torch.randn(50, 64, generator=generator(12)).bfloat16()
    for block, factor in ((64, 1.0), (32, 2**-0.5)):
        rotation = Rotation(64, block=block)
        wanted = rotation(x.double()).unflatten(-1, (-1, block)) * factor
        flips = (rotation.signs < 0).unflatten(-1, (-1, block))
        found = rotate_blocks(x.unflatten(-1, (-1, block)), flips, bits=24).double()
        assert ((found - wanted).abs() <= 2**-8 * wanted.abs() + 2**-20).all()


def test_rotated_weights_take_the_other_half() -> None:
    """The two shifts add up to log2 of the points, and the product is that of x and w."""
    x = torch.randint(-8, 9, (5, 32), generator=generator(13)).bfloat16()
    w = torch.randint(-8, 9, (7, 32), generator=generator(14)).bfloat16()
    flips = torch.rand(32, generator=generator(15)) < 0.5
    rotated = rotate_blocks(x, flips, 24).double() @ rotate_blocks(w, flips, 24, shift=2).double().T
    assert torch.equal(rotated, x.double() @ w.double().T)


@pytest.mark.parametrize("points", [32, 128])
@pytest.mark.parametrize("outlier", [1.0, 50.0])
def test_twelve_bits_are_enough_for_four(points: int, outlier: float) -> None:
    """What docs/rotation.md says of the bits of the fixed point."""
    x = torch.randn(64_000 // points, points, generator=generator(16))
    at = torch.randint(0, points, (len(x),), generator=generator(17))
    x[torch.arange(len(x)), at] *= outlier
    x, flips = x.bfloat16(), torch.rand(x.shape, generator=generator(18)) < 0.5
    exact = rotate_blocks(x, flips, 32).double()

    def quality(bits: int, name: str) -> tuple[float, float]:
        """Return the share of other results, and the SQNR after quantization in dB."""
        rotated = rotate_blocks(x, flips, bits)
        groups = get_format(name).fake_quantize(rotated.float().reshape(-1, 32)).double()
        error = groups.reshape(x.shape) - exact
        ratio = (exact.square().sum() / error.square().sum()).log10().item()
        return (rotated.double() != exact).double().mean().item(), 10 * ratio

    for name in ("m2xfp-act", "mxfp4"):
        best = quality(32, name)[1]
        differ, ratio = quality(12, name)
        assert 0.01 < differ < 0.3
        assert abs(ratio - best) < 0.02
        assert quality(9, name)[1] > best - 0.35
        assert quality(16, name)[0] < 0.01


def test_wrong_blocks() -> None:
    flips = torch.zeros(32, dtype=torch.bool)
    with pytest.raises(TypeError, match="float32"):
        rotate_blocks(torch.ones(32), flips)
    for points in (1, 24):
        with pytest.raises(InputError, match=f"shape \\({points},\\)"):
            rotate_blocks(torch.ones(points).bfloat16(), flips[:points])
    with pytest.raises(InputError, match="bits=7"):
        rotate_blocks(torch.ones(32).bfloat16(), flips, bits=7)
