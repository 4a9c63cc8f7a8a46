"""Where public libraries and the rule disagree, measured on what is installed.

Each finding compares a library, or the published formula of one, with this project's rule on all
inputs of a small set. They are listed so that nobody changes the rule to match a library.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from m2xfp.formats import E2M1, E2M3, E3M2, E4M3, E5M2, FloatElement
from m2xfp.golden.formats.elements import decode_magnitude, encode_magnitude
from m2xfp.golden.formats.format import get_format
from m2xfp.models.library_presets import CHECKS, compared
from m2xfp.models.lm import load_model
from m2xfp.results import read_figures
from m2xfp.tables import aligned_table

__all__ = ["Finding", "findings", "library_table", "tables"]


@dataclass(frozen=True)
class Finding:
    """One comparison.

    Members
    -------
    library
        Package and version, or the published formula compared.
    subject
        What was compared.
    compared, different
        How many inputs, and for how many of them the results differ.
    first
        The first difference in words, or "".
    """

    library: str
    subject: str
    compared: int
    different: int
    first: str = ""


def findings() -> list[Finding]:
    """Run every comparison whose library is installed."""
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("ml_dtypes", _ml_dtypes),
        ("torch", _torch),
        ("torch", _floating_logarithm),
        ("torch", _half_up),
        ("torch", _logarithm_of_groups),
        ("torch", _code_of_eight),
        ("torchao", _torchao),
        ("torchao", _torchao_rceil),
        ("compressed_tensors", _compressed_tensors),
        *((package, partial(_presets, library)) for library, (package, _, _) in CHECKS.items()),
    ]
    return [finding for name, check in checks if find_spec(name) for finding in check()]


def _presets(library: str) -> list[Finding]:
    """Compare what ``m2xfp formats --like`` names with the library."""
    found = []
    for name, subject, different, theirs, ours in compared(library):
        bad = different.nonzero().flatten().tolist()
        example = ""
        if bad:
            example = f"group {bad[0]}: library {theirs[bad[0]]:g}, rule {ours[bad[0]]:g}"
        found.append(Finding(name, subject, len(different), len(bad), example))
    return found


def _ml_dtypes() -> list[Finding]:
    """Compare all codes and the encoding of all non-negative bfloat16 patterns."""
    import ml_dtypes

    library = f"ml_dtypes {ml_dtypes.__version__}"
    types: dict[str, tuple[FloatElement, type]] = {
        "E2M1": (E2M1, ml_dtypes.float4_e2m1fn),
        "E2M3": (E2M3, ml_dtypes.float6_e2m3fn),
        "E3M2": (E3M2, ml_dtypes.float6_e3m2fn),
        "E4M3": (E4M3, ml_dtypes.float8_e4m3fn),
        "E5M2": (E5M2, ml_dtypes.float8_e5m2),
    }
    patterns = torch.arange(0x7F80, dtype=torch.int16).view(torch.bfloat16).double()
    found = []
    for name, (element, kind) in types.items():
        codes = np.arange(element.max_code + 1, dtype=np.uint8)
        theirs = codes.view(kind).astype(np.float64)
        ours = decode_magnitude(torch.from_numpy(codes).long(), element).numpy()
        found.append(_finding(library, f"{name}: values of codes", codes, theirs, ours))
        theirs = patterns.numpy().astype(kind).view(np.uint8).astype(np.int64)
        ours = encode_magnitude(patterns, element).numpy()
        found.append(
            _finding(library, f"{name}: codes of bfloat16", patterns.numpy(), theirs, ours)
        )
    return found


def _torch() -> list[Finding]:
    """Compare PyTorch's float8 casts on all non-negative bfloat16 patterns."""
    patterns = torch.arange(0x7F80, dtype=torch.int16).view(torch.bfloat16)
    found = []
    for name, element, dtype in (
        ("E4M3", E4M3, torch.float8_e4m3fn),
        ("E5M2", E5M2, torch.float8_e5m2),
    ):
        theirs = patterns.to(dtype).view(torch.uint8).long().numpy()
        ours = encode_magnitude(patterns.double(), element).numpy()
        x = patterns.double().numpy()
        library = f"torch {torch.__version__.partition('+')[0]}"
        found.append(_finding(library, f"{name}: codes of bfloat16", x, theirs, ours))
    return found


def _floating_logarithm() -> list[Finding]:
    """Compare floor(log2(amax)) in floating point, microxcaling's formula, with the exponent."""
    found = []
    for name, dtype, patterns in (
        ("bfloat16", torch.bfloat16, torch.arange(0x80, 0x7F80, dtype=torch.int16)),
        ("float32", torch.float32, torch.arange(0x00800000, 0x7F800000, 1021, dtype=torch.int32)),
        (
            "float32 just below powers of two",
            torch.float32,
            (torch.arange(1, 255, dtype=torch.int32) << 23) - 1 + (1 << 23),
        ),
    ):
        x = patterns.view(dtype)
        theirs = x.log2().floor().double().numpy()
        ours = np.frexp(x.double().numpy())[1] - 1.0
        subject = f"floor(log2(amax)), {name}"
        found.append(_finding("microxcaling's formula", subject, x.double().numpy(), theirs, ours))
    return found


def _logarithm_of_groups() -> list[Finding]:
    """Compare the same formula on the largest magnitudes of groups of 32, as models have them."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(200_000, 32, generator=generator)
    model = load_model().state_dict().values()
    weights = torch.cat([w.reshape(-1, 32) for w in model if w.ndim == 2])
    found = []
    for name, x in (
        ("groups of 32 normal values", normal),
        ("groups of 32 normal values, standard deviation 0.02", 0.02 * normal),
        ("groups of the bundled model's weights", weights),
    ):
        amax = x.bfloat16().abs().amax(-1)
        theirs = amax.log2().floor().double().numpy()
        ours = np.frexp(amax.double().numpy())[1] - 1.0
        subject = f"floor(log2(amax)), bfloat16, {name}"
        found.append(
            _finding("microxcaling's formula", subject, amax.double().numpy(), theirs, ours)
        )
    return found


def _half_up() -> list[Finding]:
    """Compare floor(|x| + 1/2), microxcaling's default "nearest", with ties to even on E2M1."""
    y = torch.arange(0, 6.0001, 1 / 64, dtype=torch.float64)
    codes = encode_magnitude(y, E2M1, ties="away").numpy()
    ours = encode_magnitude(y, E2M1).numpy()
    return [_finding("microxcaling's formula", "E2M1: rounding of ties", y.numpy(), codes, ours)]


def _code_of_eight() -> list[Finding]:
    """Compare MX-QLLM's int4-asym, without a limit of its codes, where min and max are opposite.

    The smallest value over the scale is -7.5 then, so the zero point is 0 and the largest is 7.5.
    """
    x = torch.randn(1000, 32, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    x[:, 0] = x.abs().amax(-1)
    x[:, 1] = -x[:, 0]
    step = (2 * x[:, :1]) / 15
    zero = -(x[:, 1:2] / step).round() - 8
    theirs = (x / step + zero).round().amax(-1)
    codes = get_format("int4-asym").quantize(x).unpack()[0].flatten(0, -2).long()
    ours = torch.where(codes > 7, codes - 16, codes).amax(-1)
    subject = "int4-asym: largest code of groups whose largest value is minus the smallest"
    return [
        _finding(
            "MX-QLLM's formula",
            subject,
            x[:, 0].double().numpy(),
            theirs.double().numpy(),
            ours.double().numpy(),
        )
    ]


def _torchao() -> list[Finding]:
    """Compare torchao's MXFP4 at the ends of the scale and with an infinity."""
    import torchao
    from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_mx

    library = f"torchao {torchao.__version__.partition('+')[0]}"
    fmt = get_format("mxfp4")
    found = []
    small = torch.ldexp(torch.ones(60), torch.arange(-149, -89))
    for subject, tops in (
        ("MXFP4: one power of two a group, 2^-149 to 2^-90", small),
        ("MXFP4: scale of a group with an infinity", torch.tensor([float("inf")])),
    ):
        x = torch.zeros(len(tops), 32)
        x[:, 0] = tops
        scales, codes = to_mx(x, torch.float4_e2m1fn_x2, 32, ScaleCalculationMode.FLOOR)
        packed = fmt.quantize(x)
        theirs = scales.view(torch.uint8).flatten().long() * 256 + codes[:, 0]
        ours = packed.scales.flatten().long() * 256 + packed.codes[:, 0]
        found.append(_finding(library, subject, tops.numpy(), theirs.numpy(), ours.numpy()))
    return found


def _torchao_rceil() -> list[Finding]:
    """Compare RCEIL just above 6 * 2^k in float32, and at the lowest scale."""
    import torchao
    from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_mx

    library = f"torchao {torchao.__version__.partition('+')[0]}"
    fmt = get_format("mxfp4", scale_rule="ceil")
    near = torch.tensor([6.0]).view(torch.int32) + torch.arange(1, 101, dtype=torch.int32)
    powers = 2.0 ** torch.arange(-40, 60, 10)
    tops = (near.view(torch.float32) * powers[:, None]).flatten()
    low = 2.0 ** torch.arange(-149, -99)
    found = []
    for subject, top in (
        ("MXFP4, RCEIL: 100 float32 values above each 6 * 2^k, k = -40, -30, .. 50", tops),
        ("MXFP4, RCEIL: one power of two a group, 2^-149 to 2^-100", low),
    ):
        x = torch.zeros(len(top), 32)
        x[:, 0] = top
        scales, codes = to_mx(x, torch.float4_e2m1fn_x2, 32, ScaleCalculationMode.RCEIL)
        packed = fmt.quantize(x)
        theirs = scales.view(torch.uint8).flatten().long() * 256 + codes[:, 0]
        ours = packed.scales.flatten().long() * 256 + packed.codes[:, 0]
        found.append(_finding(library, subject, top.double().numpy(), theirs.numpy(), ours.numpy()))
    return found


def _compressed_tensors() -> list[Finding]:
    """Compare scales near the largest number of a type, which rounding carries beyond it."""
    from importlib.metadata import version

    from compressed_tensors.quantization.utils import generate_mx_scales

    library = f"compressed-tensors {version('compressed-tensors')}"
    fmt = get_format("mxfp4", scale_rule="even")
    found = []
    for name, patterns, dtype in (
        ("bfloat16", torch.arange(0x7F00, 0x7F80, dtype=torch.int16), torch.bfloat16),
        ("float16", torch.arange(0x7800, 0x7C00, dtype=torch.int16), torch.float16),
    ):
        x = patterns.view(dtype)[:, None]
        theirs = generate_mx_scales(x.clone(), 4).double().flatten()
        ours = fmt.quantize(x).scales.flatten().double()
        subject = f"MXFP4: scale of {name} values of the highest binade"
        values = x.double().flatten().numpy()
        found.append(_finding(library, subject, values, theirs.numpy(), ours.numpy()))
    return found


def _finding(
    library: str, subject: str, x: np.ndarray, theirs: np.ndarray, ours: np.ndarray
) -> Finding:
    different = np.flatnonzero(theirs != ours)
    if not len(different):
        return Finding(library, subject, len(x), 0)
    i = different[0]
    example = f"{x[i]:.6g}: library {theirs[i]:g}, rule {ours[i]:g}"
    return Finding(library, subject, len(x), len(different), example)


def library_table(found: Iterable[Finding]) -> str:
    """Return findings as markdown."""
    rows = [("library", "subject", "inputs", "different", "first difference")]
    rows += [
        (f.library, f.subject, str(f.compared), str(f.different), f.first or "-") for f in found
    ]
    return aligned_table(rows)


def tables(results: Path) -> dict[str, str]:
    """Return the accepted table, ``libraries``."""
    path = results / "libraries.json"
    if not path.exists():
        return {}
    return {"libraries": library_table(Finding(**row) for row in read_figures(path)["findings"])}
