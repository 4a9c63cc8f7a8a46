"""The clocks of the accelerator's descriptors without their values: a model of its own in C++."""

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import gcd
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError, tool_failure
from m2xfp.formats import block_format
from m2xfp.processes import run
from m2xfp.rtl.parts.descriptor_checker import BF16_VALUES, ENCODE, GEMM, PACKED, QUANTIZE
from m2xfp.tb.cache import BUILD_DIR, cached_build
from m2xfp.tb.shared_library import load_library

__all__ = ["Clocks", "product_clocks"]

SOURCE = Path(__file__).with_name("cycles.cpp")
HEADER = Path(__file__).with_name("packing_cycles.h")
VALUE_CHUNK = 16  # words of values that are read together


def gathered_groups(bus: int) -> int:
    """Return how many packed groups are written together, by the bytes of the bus."""
    return 4 if bus < 64 else 8


_FLAGS = ("-O2", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden")


def _structure(name: str, fields: str, extra: Mapping[str, Any] | None = None) -> Any:
    """Return a C structure of 64-bit integers, or of what ``extra`` says."""
    known = [(field, (extra or {}).get(field, ctypes.c_int64)) for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": known})


_Build = _structure(
    "_Build",
    "rows columns chains depth chunk slots bus weight_rows group outstanding act_planes "
    "weight_planes unit value_chunk gather code_bytes wide_quantizer wide_encoder",
)
_Plane = _structure("_Plane", "address pitch size")
_Product = _structure(
    "_Product",
    "operation packed m n k acts weights out out_pitch value_bytes out_scales out_meta "
    "out_scales_pitch",
    {"acts": _Plane * 3, "weights": _Plane * 3},
)
_Counts = _structure("_Counts", "clocks work wait_acts wait_weights wait_results read written")


@dataclass(frozen=True)
class Clocks:
    """What a product takes: what the accelerator counts, and bytes on its buses."""

    clocks: int
    work: int
    wait_acts: int
    wait_weights: int
    wait_results: int
    read: int
    written: int


@cache
def _library(build_dir: Path) -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or "g++"

    def build(folder: Path) -> None:
        (folder / HEADER.name).write_text(HEADER.read_text())
        done = run([compiler, *_FLAGS, "-o", "cycles.so", SOURCE.name], cwd=folder)
        if done.returncode:
            raise tool_failure(compiler, SOURCE, done.stdout, done.returncode, build_dir)

    facts = [compiler, HEADER.read_text(), *_FLAGS]
    folder = cached_build(build_dir, "accelerator-cycles", SOURCE, facts, build)
    signatures = {
        "run": (
            None,
            ctypes.POINTER(_Build),
            ctypes.POINTER(_Product),
            ctypes.c_int64,
            ctypes.c_double,
            ctypes.POINTER(_Counts),
        )
    }
    return load_library(folder / "cycles.so", "cycles", signatures)


def product_clocks(
    parameters: Mapping[str, Any],
    words: Mapping[str, int],
    *,
    latency: int = 0,
    rate: float = 0.0,
    build_dir: Path = BUILD_DIR,
) -> Clocks:
    """Return the clocks of a descriptor, the first one after a while of rest.

    Parameters
    ----------
    parameters
        Of the accelerator, as its facts have them.
    words
        The descriptor: one that the build can run.
    latency, rate
        Of the memory: clocks from an address to its first word, and bytes a clock that all buses
        together move, 0 for no limit.
    build_dir
        Folder of the build cache.

    Raises
    ------
    InputError
        The descriptor has no operation that there is.
    """
    operation, kind = words.get("operation"), words.get("kind", 0)
    if operation not in (GEMM, QUANTIZE, ENCODE):
        raise InputError(f"words={dict(words)}: no operation of the accelerator")
    act, weight = block_format(parameters["act"]), block_format(parameters["weight"])
    bus = int(parameters["bus"]) // 8
    build = _Build(
        *(parameters[name] for name in ("rows", "columns", "chains", "depth", "chunk", "slots")),
        bus,
        gcd(parameters["columns"], max(1, bus // act.group_bytes[0])),
        act.group,
        parameters["outstanding"],
        *(3 if block.subgroups else 2 for block in (act, weight)),
        min(bus, 2 * act.group),
        min(VALUE_CHUNK, parameters["chunk"] * parameters["slots"]),
        gathered_groups(bus),
        act.group_bytes[0],
        *(parameters[name] == "fp32" for name in ("quantizer", "encoder")),
    )
    sides = []
    for side, block in (("a", act), ("w", weight)):
        planes = [
            _Plane(
                words.get(f"{side}_{name}", 0),
                words.get(f"{side}_{'codes' if name == 'codes' else 'scales'}_pitch", 0),
                size,
            )
            for name, size in zip(("codes", "scales", "meta"), block.group_bytes, strict=True)
            if size
        ]
        sides.append((_Plane * 3)(*planes))
    product = _Product(
        operation,
        kind == PACKED,
        *(words.get(name, 1) for name in ("m", "n", "k")),
        *sides,
        words["out"],
        words["out_pitch"],
        2 if kind == BF16_VALUES else 4,
        *(words.get(name, 0) for name in ("out_scales", "out_meta", "out_scales_pitch")),
    )
    counts = _Counts()
    _library(build_dir).cycles_run(build, product, latency, rate, counts)
    return Clocks(*(getattr(counts, name) for name, _ in _Counts._fields_))
