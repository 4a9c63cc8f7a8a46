"""Layers as a driver places them: plane by plane, row by row, rows in whole words."""

from collections.abc import Mapping
from math import gcd
from typing import Any

import numpy as np

from m2xfp.errors import InputError
from m2xfp.formats import block_format
from m2xfp.rtl.parts.descriptor_checker import BF16_VALUES, FP32_VALUES, GEMM
from m2xfp.tb.axi.cycles import Clocks
from m2xfp.tb.axi.model import AxiModel
from m2xfp.tb.parts.accelerator_traffic import PAGE, Descriptor

__all__ = ["dense_words", "measure_layer", "read_together"]


def read_together(parameters: Mapping[str, Any], side: str) -> int:
    """Return how many rows of an operand, ``a`` or ``w``, the accelerator reads side by side."""
    if side == "a":
        return int(parameters["rows"])
    code_bytes = block_format(parameters["act"]).group_bytes[0]
    return gcd(parameters["columns"], max(1, int(parameters["bus"]) // 8 // code_bytes))


def dense_words(
    parameters: Mapping[str, Any], size: tuple[int, int, int], kind: int = BF16_VALUES
) -> dict[str, int]:
    """Return the descriptor of a product [m, n, k] whose rows take few words of the bus.

    Rows that are read in several chunks, or alone, begin with a word if they are longer than one.
    Others have no gap between them: where one ends in a word, the next one is not read again.
    """
    m, n, k = size
    words = {"operation": GEMM, "m": m, "n": n, "k": k, "kind": kind}
    at, bus = 0, int(parameters["bus"]) // 8
    for side, rows, name in (("a", m, "act"), ("w", n, "weight")):
        block = block_format(parameters[name])
        groups = k // block.group
        alone = groups > parameters["chunk"] or read_together(parameters, side) == 1
        for plane, bytes_ in zip(("codes", "scales", "meta"), block.group_bytes, strict=True):
            pitch = groups * bytes_
            if alone and pitch > bus:
                pitch = -(-pitch // bus) * bus
            words[f"{side}_{plane}"] = at
            if plane != "meta":
                words[f"{side}_{plane}_pitch"] = pitch
            at = -(-(at + rows * pitch) // PAGE) * PAGE
    words["out"], words["out_pitch"] = at, n * (4 if kind == FP32_VALUES else 2)
    return words


def measure_layer(model: AxiModel, words: Mapping[str, int]) -> Clocks:
    """Run a product alone, and return what the accelerator and the memory count."""
    names = ("cycles", "work", "wait_acts", "wait_weights", "wait_results")
    end = words["out"] + words["m"] * words["out_pitch"]
    if end > len(model.memory):
        raise InputError(f"memory={len(model.memory)}: the layer needs {end} bytes")
    model.write("int_enable", 1)
    model.write("int_status", 3)
    # A while of rest, so that the memory's rate is not used up.
    before = [model.read(name)[0] for name in names]
    moved = [model.count(name) for name in ("read", "written")]
    model.push(Descriptor(dict(words), 1))
    if not model.wait() or model.field("error", "valid"):
        raise InputError(f"words={dict(words)}: ended with {model.read('error')[0]:#x}")
    after = [model.read(name)[0] for name in names]
    counted = [(int(b) - int(a)) & 0xFFFFFFFF for a, b in zip(before, after, strict=True)]
    bytes_ = [model.count(name) - old for name, old in zip(("read", "written"), moved, strict=True)]
    return Clocks(*counted, *bytes_)


def fill(model: AxiModel, seed: int = 0) -> None:
    """Fill the memory with noise."""
    rng = np.random.default_rng(seed)
    model.memory[:] = rng.integers(0, 256, len(model.memory), np.uint8)
