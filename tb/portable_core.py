"""A unit with its portable testbench, as a FuseSoC core whose target ``sim`` plays the vectors."""

from pathlib import Path

from m2xfp.files import write_atomic
from m2xfp.rtl.catalog import Instance
from m2xfp.rtl.verilog.emit import core_text, emit
from m2xfp.tb.portable import Pauses, write_bench
from m2xfp.tb.vectors import TestVectors

__all__ = ["write_vectors"]


def write_vectors(
    instance: Instance, vectors: TestVectors, folder: Path, pauses: Pauses
) -> list[Path]:
    """Write a unit with its testbench, and a FuseSoC core with a target that runs it.

    Parameters
    ----------
    instance
        The unit.
    vectors, folder, pauses
        As of `write_bench`.

    Returns
    -------
    What `write_bench` does: the testbench and its files.
    """
    emitted = emit(instance, folder)
    written = write_bench(instance.facts, vectors, folder, pauses)
    write_atomic(emitted.core, core_text(instance.facts, [path.name for path in written]))
    return written
