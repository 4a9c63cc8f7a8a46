"""The clocks of the accelerator's products without its values: a model of its own in C++."""

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
from m2xfp.tb.cache import BUILD_DIR, cached_build
from m2xfp.tb.shared_library import load_library

__all__ = ["Clocks", "product_clocks"]

SOURCE = Path(__file__).with_name("cycles.cpp")
_FLAGS = ("-O2", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden")


def _structure(name: str, fields: str, extra: Mapping[str, Any] | None = None) -> Any:
    """Return a C structure of 64-bit integers, or of what ``extra`` says."""
    known = [(field, (extra or {}).get(field, ctypes.c_int64)) for field in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": known})


_Build = _structure(
    "_Build",
    "rows columns chains depth chunk slots bus weight_rows group outstanding act_planes "
    "weight_planes",
)
_Plane = _structure("_Plane", "address pitch size")
_Product = _structure(
    "_Product",
    "m n k acts weights out out_pitch value_bytes",
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
        done = run([compiler, *_FLAGS, "-o", "cycles.so", SOURCE.name], cwd=folder)
        if done.returncode:
            raise tool_failure(compiler, SOURCE, done.stdout, done.returncode, build_dir)

    folder = cached_build(build_dir, "accelerator-cycles", SOURCE, [compiler, *_FLAGS], build)
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
    """Return the clocks of a product, the first descriptor after a while of rest.

    Parameters
    ----------
    parameters
        Of the accelerator, as its facts have them.
    words
        The descriptor: FP32 or bf16 results.
    latency, rate
        Of the memory: clocks from an address to its first word, and bytes a clock that all buses
        together move, 0 for no limit.
    build_dir
        Folder of the build cache.

    Raises
    ------
    InputError
        The descriptor is no product, or not of this kind.
    """
    if words.get("operation") != 1 or words.get("kind", 0) > 1:
        raise InputError(f"words={dict(words)}: the model counts products of FP32 or bf16 results")
    act, weight = block_format(parameters["act"]), block_format(parameters["weight"])
    bus = int(parameters["bus"]) // 8
    build = _Build(
        *(parameters[name] for name in ("rows", "columns", "chains", "depth", "chunk", "slots")),
        bus,
        gcd(parameters["columns"], max(1, bus // act.group_bytes[0])),
        act.group,
        parameters["outstanding"],
        *(3 if block.subgroups else 2 for block in (act, weight)),
    )
    sides = []
    for side, block in (("a", act), ("w", weight)):
        planes = [
            _Plane(
                words[f"{side}_{name}"],
                words[f"{side}_{'codes' if name == 'codes' else 'scales'}_pitch"],
                size,
            )
            for name, size in zip(("codes", "scales", "meta"), block.group_bytes, strict=True)
            if size
        ]
        sides.append((_Plane * 3)(*planes))
    product = _Product(
        *(words[name] for name in ("m", "n", "k")),
        *sides,
        words["out"],
        words["out_pitch"],
        2 if words.get("kind", 0) else 4,
    )
    counts = _Counts()
    _library(build_dir).cycles_run(build, product, latency, rate, counts)
    return Clocks(*(getattr(counts, name) for name, _ in _Counts._fields_))
