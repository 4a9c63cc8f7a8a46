"""Area of on-chip buffers, by a model: no library of the registry comes with a memory compiler.

The model is one published figure a process, taken as area a bit. It is linear in size, so it
overstates memories larger than the figure's and understates smaller ones. It is no measurement, and
every table that uses it says so. Energy is not modelled: the published memories state none that
could be held against that of the mapped logic.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from m2xfp.tables import aligned_table

__all__ = ["CELL_28NM", "SRAMS", "Buffer", "SramModel", "buffer_table"]


@dataclass(frozen=True)
class SramModel:
    """A published memory, as area a bit.

    Members
    -------
    process
        A library of the registry, or a process by name.
    what
        The memory that the figure is of.
    bits, area_um2
        Its size.
    source
        Where the figure is published.
    """

    process: str
    what: str
    bits: int
    area_um2: float
    source: str

    def area(self, size_bytes: int) -> float:
        """Return the area of a memory of this size, um2."""
        return 8 * size_bytes * self.area_um2 / self.bits


_ORFS = "OpenROAD-flow-scripts, flow/platforms"

SRAMS = {
    model.process: model
    for model in (
        SramModel(
            "sky130_fd_sc_hd",
            "OpenRAM macro of 512 x 32 bits, one port to read and write and one to read",
            512 * 32,
            683.1 * 416.54,
            "VLSIDA/sky130_sram_macros, sky130_sram_2kbyte_1rw1r_32x512_8.lef, SIZE",
        ),
        SramModel(
            "nangate45",
            "abstract of 256 x 96 bits, one port, without layout",
            256 * 96,
            13701.66,
            f"{_ORFS}/nangate45/lib/fakeram45_256x96.lib, area",
        ),
        SramModel(
            "asap7",
            "abstract of 256 x 128 bits, without layout",
            256 * 128,
            16.72 * 67.2,
            f"{_ORFS}/asap7/lef/fakeram_256x128.lef, SIZE",
        ),
    )
}

# Beside the areas that the paper publishes; a bound from below, since it has no periphery.
CELL_28NM = SramModel(
    "28 nm",
    "six-transistor bit cell alone",
    1,
    0.127,
    "TSMC, Symposium on VLSI Technology 2009, as in Electronic Design, 9 July 2009",
)


@dataclass(frozen=True)
class Buffer:
    """Memory that a design needs.

    Members
    -------
    name
        What it holds.
    size_bytes
        How much.
    """

    name: str
    size_bytes: int


def buffer_table(pdk: str, buffers: Iterable[Buffer], logic_um2: float, logic: str) -> str:
    """Return the modelled areas of buffers as markdown, with the models and their sources.

    Parameters
    ----------
    pdk
        Name of a library; without a model of its own, the table has the 28 nm column alone.
    buffers
        A row each.
    logic_um2, logic
        A measured area on that library to hold the modelled ones against, and what it is of.
    """
    own = SRAMS.get(pdk)
    models = [model for model in (own, CELL_28NM) if model]
    titles = ["buffer", "KB", *(f"{model.process} um2, model" for model in models)]
    table = [[*titles, *([f"over {logic}"] if own else [])]]
    for buffer in buffers:
        areas = [model.area(buffer.size_bytes) for model in models]
        table.append(
            [
                buffer.name,
                f"{buffer.size_bytes / 1024:g}",
                *(f"{area:.0f}" for area in areas),
                *([f"{areas[0] / logic_um2:.2f}"] if own else []),
            ]
        )
    sources = "".join(
        f"- {model.process}: {model.area_um2 / model.bits:.4g} um2 a bit, {model.what} "
        f"({model.source}).\n"
        for model in models
    )
    missing = "" if own else f"There is no published memory to model {pdk} by.\n\n"
    return (
        "Buffers are not mapped: their areas are a model, the area a bit of one published memory.\n"
        f"\n{missing}{aligned_table(table)}\n{sources}"
    )
