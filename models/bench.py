"""Speed and memory of the formats, against a memory copy on the same device in the same run."""

import ctypes
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2xfp.formats import BLOCK_FORMATS
from m2xfp.golden.formats.format import Format, get_format
from m2xfp.golden.formats.packed import PackedTensor
from m2xfp.golden.kernels.fused import computing, kernels
from m2xfp.results import read_figures
from m2xfp.tables import aligned_table

__all__ = [
    "OPERATIONS",
    "ROWS",
    "Measurement",
    "bench",
    "bench_table",
    "peak_extra_bytes",
    "seconds",
    "tables",
]

_MAIN = ("copy", "mxfp4", "m2xfp-act", "m2xfp-weight")
OPERATIONS = ("fake-quantize", "quantize", "dequantize")
Row = tuple[str, dict[str, str | bool]]
ROWS: tuple[Row, ...] = (
    *((name, {}) for name in BLOCK_FORMATS),
    ("m2xfp-weight", {"adaptive": False}),
    ("nvfp4", {"tensor_scale": "auto"}),
    ("m2nvfp4-act", {"tensor_scale": "auto"}),
    ("m2nvfp4-weight", {"tensor_scale": "auto"}),
    ("mxfp4", {"scale_rule": "even"}),
    ("mxfp4", {"ties": "away"}),
    ("mxfp4", {"scale_mode": "float"}),
)


@dataclass(frozen=True)
class Measurement:
    """One operation of one format.

    Members
    -------
    format, operation
        What ran; ``copy`` is the memory copy of the same tensor.
    path
        ``fused`` or ``plain``.
    gvalues_per_second
        Values per second, in 10^9, the best of several runs.
    output_bytes, peak_extra_bytes
        Bytes of the result, and the largest amount allocated meanwhile, the result included.
    first_seconds
        Time of the first call, which compiles what is not in a cache; None of figures that were
        taken without it.
    """

    format: str
    operation: str
    path: str
    gvalues_per_second: float
    output_bytes: int
    peak_extra_bytes: int
    first_seconds: float | None = None


def seconds(run: Callable[[], object], device: torch.device, budget: float = 1.0) -> float:
    """Return the least time of ``run``: at least three runs, then as many as the budget allows."""
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 50):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            torch.cuda.synchronize(device)
            times.append(start.elapsed_time(end) / 1000)
        else:
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
    return min(times)


def _status(field: str) -> int:
    """Return a field of /proc/self/status in bytes, 0 where there is none."""
    path = Path("/proc/self/status")
    if not path.exists():
        return 0
    lines = [line for line in path.read_text().splitlines() if line.startswith(field + ":")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def peak_extra_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Return how much more memory than before ``run`` needed at its peak, result included.

    On CUDA what the allocator handed out; on CPU the resident set, which Linux alone reports (0
    elsewhere).
    """
    run()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return 0
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # what malloc kept from earlier runs would hide what this one needs
    reset.write_text("5")  # forget the high-water mark
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _measure(
    name: str, operation: str, path: str, run: Callable[[], object], x: Tensor, output: int
) -> Measurement:
    begin = time.perf_counter()
    run()
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    first = time.perf_counter() - begin
    return Measurement(
        name,
        operation,
        path,
        x.numel() / seconds(run, x.device) / 1e9,
        output,
        peak_extra_bytes(run, x.device),
        first,
    )


def _label(fmt: Format) -> str:
    return fmt.name + "".join(f", {key}={value}" for key, value in fmt.options)


def bench(
    device: torch.device,
    dtype: torch.dtype,
    values: int,
    rows: tuple[Row, ...] = ROWS,
    path: str = "auto",
    plain_values: int | None = None,
) -> Iterator[Measurement]:
    """Measure the copy and every operation of every format on ``values`` normal values.

    Formats on the plain path, which is much slower, run on the first ``plain_values`` of them.
    """
    generator = torch.Generator(device=device).manual_seed(0)
    x = torch.empty(values // 4096, 4096, dtype=dtype, device=device)
    x.normal_(generator=generator)
    yield _measure("copy", "copy", "-", x.clone, x, x.nbytes)
    for name, options in rows:
        fmt = get_format(name, **options)
        with computing(path):
            fused = kernels(fmt, device, dtype) is not None
            part = x if fused else x[: max(1, (plain_values or values) // 4096)]
            how = "fused" if fused else "plain"

            def fake(fmt: Format = fmt, part: Tensor = part) -> object:
                return fmt.fake_quantize(part)

            def quantize(fmt: Format = fmt, part: Tensor = part) -> object:
                return fmt.quantize(part)

            yield _measure(_label(fmt), "fake-quantize", how, fake, part, part.nbytes)
            size = len(part) * sum(fmt.block.group_bytes) * (part.shape[1] // fmt.block.group)
            yield _measure(_label(fmt), "quantize", how, quantize, part, size)
            packed = fmt.quantize(part)

            def dequantize(packed: PackedTensor = packed) -> object:
                return packed.dequantize(dtype)

            yield _measure(_label(fmt), "dequantize", how, dequantize, part, part.nbytes)


def bench_table(figures: Mapping[str, Any]) -> str:
    """Return figures of ``m2xfp bench`` as markdown; speeds also as a share of the copy's.

    Parameters
    ----------
    figures
        Device, dtype, values, torch, and measurements as ``Measurement`` has them.
    """
    found = [Measurement(**row) for row in figures["measurements"]]
    copy = {m.operation: m.gvalues_per_second for m in reversed(found)}["copy"]
    timed = any(m.first_seconds is not None for m in found)
    first = ["first call, s"] * timed
    rows = [("format", "operation", "path", "Gvalues/s", "of copy", "peak extra / output", *first)]
    rows += [
        (
            m.format,
            m.operation,
            m.path,
            f"{m.gvalues_per_second:.3g}",
            f"{100 * m.gvalues_per_second / copy:.1f} %",
            f"{m.peak_extra_bytes / m.output_bytes:.2f}",
            *(["" if m.first_seconds is None else f"{m.first_seconds:.2g}"] * timed),
        )
        for m in found
    ]
    return (
        f"{figures['device']}, {figures['dtype']}, {figures['values']} values, torch "
        f"{figures['torch']}.\n\n{aligned_table(rows)}"
    )


def tables(results: Path) -> dict[str, str]:
    """Return the accepted tables by name, ``bench-DEVICE-DTYPE``.

    ``...-main`` has the copy, MXFP4 and M2XFP.
    """
    found = {}
    for path in sorted(results.glob("bench-*.json")):
        figures = read_figures(path)
        main = [row for row in figures["measurements"] if row["format"] in _MAIN]
        found[path.stem] = bench_table(figures)
        found[f"{path.stem}-main"] = bench_table({**figures, "measurements": main})
    return found
