"""Random products of packed bytes: what the fast products are held against the plain path on."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from m2xfp.golden import PackedTensor, computing, get_format, matmul

PAIRS = (
    ("m2xfp-act", "m2xfp-weight"),
    ("m2xfp-act:group=16,subgroup=4", "m2xfp-weight:group=16,subgroup=4"),
    ("m2xfp-act:group=64", "mxfp4:group=64"),
    ("mxfp4", "mxfp4"),
    ("mxfp4", "m2xfp-weight"),
    ("mxfp6-e2m3", "mxfp6-e3m2"),
    ("mxfp6-e3m2", "mxfp6-e3m2"),
    ("mxfp8-e4m3", "mxfp8-e4m3"),
    ("mxfp8-e4m3", "mxfp4"),
    ("mxint8", "mxint8"),
    ("nvfp4", "nvfp4"),
    ("m2nvfp4-act", "m2nvfp4-weight"),
    ("smx4", "smx4"),
)
"""Formats of both operands."""

SUBGROUPS = frozenset(
    pair for pair in PAIRS if any(get_format(name).block.metadata.bits for name in pair)
)
"""Pairs that the fp32_subgroup accumulator takes."""


@dataclass(frozen=True)
class Case:
    """A product.

    Members
    -------
    names, accumulator
        Formats and accumulator.
    m, n, groups
        Its size.
    center, spread
        E8M0 bytes lie within ``spread`` of ``center``.
    nan
        Share of groups with a NaN scale.
    cancel
        The second half of the groups takes back what the first half adds.
    levels
        With tensor scales (NVFP4).
    seed
        Of the bytes.
    """

    names: tuple[str, str]
    accumulator: str = "fp32"
    m: int = 9
    n: int = 11
    groups: int = 4
    center: int = 127
    spread: int = 4
    nan: float = 0.0
    cancel: bool = False
    levels: bool = False
    seed: int = 0


def random_case(seed: int) -> Case:
    """Return a case of any shape, formats and exponents."""
    rng = np.random.default_rng([97, seed])
    names = PAIRS[rng.integers(len(PAIRS))]
    accumulators = ["fp32", "exact"] + ["fp32_subgroup"] * (names in SUBGROUPS)
    m, n = (int(rng.choice([1, 2, 7, 16, 33, 65, 130], p=[0.1, 0.1, *[0.2] * 3, 0.1, 0.1]))
            for _ in range(2))  # fmt: skip
    return Case(
        names,
        str(rng.choice(accumulators)),
        m,
        n,
        int(rng.integers(1, 9)),
        int(rng.choice([127, 127, 127, 1, 60, 192, 250])),
        int(rng.choice([0, 1, 3, 8, 20, 60, 254])),
        float(rng.choice([0.0, 0.0, 0.01])),
        bool(rng.integers(2)),
        "nvfp4" in names[0] and bool(rng.integers(2)),
        seed,
    )


def operands(case: Case) -> tuple[PackedTensor, PackedTensor]:
    """Return the packed operands of a case."""
    rng = np.random.default_rng([98, case.seed])
    half = case.groups // 2
    found = []
    for side, (name, rows) in enumerate(zip(case.names, (case.m, case.n), strict=True)):
        fmt = get_format(name)
        codes, scales, meta = fmt.block.group_bytes
        data = rng.integers(0, 256, (rows, case.groups, codes + scales + meta), dtype=np.uint8)
        if fmt.block.element.name == "e4m3":  # NaN codes are rare enough to leave numbers
            nan = (data[..., :codes] & 127 == 127) & (rng.random((*data.shape[:2], codes)) > 1e-3)
            data[..., :codes] ^= nan.astype(np.uint8)
        if fmt.block.element.name == "e5m2":  # neither infinities nor NaN
            data[..., :codes] -= np.where(data[..., :codes] & 127 > 123, 4, 0).astype(np.uint8)
        if fmt.block.scale.name == "e8m0":
            low, high = case.center - case.spread, case.center + case.spread
            scale = np.clip(rng.integers(low, high + 1, data.shape[:2]), 0, 254)
            empty = rng.random(data.shape[:2]) < 0.1  # zero groups, as quantizers make them
            data[empty] = 0
            data[..., codes] = np.where(empty, 0, scale)
            bad = 255
        else:
            top = fmt.block.scale.grid.max_code
            data[..., codes] = np.where(data[..., codes] & 127 > top, 8, data[..., codes])
            bad = 127
        if case.cancel and half:
            again = data[:, :half].copy()
            if side == 0 and fmt.block.element.bits == 4:
                again[..., :codes] ^= 0x88  # both signs of a byte
            data[:, half : 2 * half] = again
        data[..., codes] = np.where(rng.random(data.shape[:2]) < case.nan, bad, data[..., codes])
        packed = PackedTensor.from_groups(fmt, torch.from_numpy(data))
        if case.levels:
            level = torch.tensor(float(rng.lognormal(0, 5)))
            packed = PackedTensor.from_planes(
                replace(fmt, level="auto"),
                {**packed.planes(), "tensor_scale": level},
                tuple(packed.shape),
            )
        found.append(packed)
    return found[0], found[1]


def words(x: Tensor) -> Tensor:
    """Return the bits of float32 values."""
    return x.contiguous().view(torch.int32)


def differences(case: Case, device: str = "cpu") -> int:
    """Return how many results of the automatic path differ from the plain path in a bit."""
    qa, qw = operands(case)
    with computing("plain"):
        wanted = matmul(qa, qw, case.accumulator)
    found = matmul(qa.to(device), qw.to(device), case.accumulator).cpu()
    assert found.shape == wanted.shape
    return int((words(found) != words(wanted)).sum())
