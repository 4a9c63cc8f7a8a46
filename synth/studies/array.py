"""What the metadata costs in an array: area of a cell and of what a row's columns share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2xfp.files import write_atomic
from m2xfp.formats import M2XFP_ACT, M2XFP_WEIGHT, MXFP4
from m2xfp.results import read_figures
from m2xfp.rtl.parts.dot_pair import DotPair
from m2xfp.rtl.parts.gemm_array import GemmArray
from m2xfp.rtl.parts.gemm_cycles import GemmTiming
from m2xfp.rtl.verilog.emit import verilog_text
from m2xfp.synth.flow.pdk import Pdk
from m2xfp.synth.flow.yosys import BUILD, FlowOptions, synthesize
from m2xfp.synth.studies.gemm import LARGEST_K
from m2xfp.synth.studies.paper import BUFFERS
from m2xfp.synth.studies.sram import Buffer, buffer_table
from m2xfp.tables import aligned_table

__all__ = ["array_table", "measure_array", "tables"]

_PAIRS = {"mxfp4": (MXFP4, MXFP4), "m2xfp": (M2XFP_ACT, M2XFP_WEIGHT)}
_COLUMNS = (1, 8, 32)  # of the arrays that are tabulated


def measure_array(pdk: Pdk, build: Path = BUILD) -> dict[str, Any]:
    """Map arrays of one row, and one and two columns, in M2XFP and MXFP4; return their figures.

    The difference of two and one columns is a cell; the rest is what the columns of a row share.
    All registers are counted, weight buffers and results are not.
    """
    from m2xfp.progress import track

    rows = []
    with track(total=2 * len(_PAIRS), desc="synthesis", unit="array") as bar:
        for name, (act, weight) in _PAIRS.items():
            row: dict[str, Any] = {"format": name}
            for columns in (1, 2):
                top = f"gemm_array_{name}_1x{columns}"
                array = GemmArray(DotPair(act, weight), 1, columns, depth=2, chains=3)
                source = write_atomic(build / f"{top}.v", verilog_text(array, top))
                netlist = synthesize(source, top, pdk, FlowOptions(), build)
                row[f"area_um2_1x{columns}"] = netlist.area_um2
                bar.update()
            rows.append(row)
    return {"pdk": pdk.name, "pdk_title": pdk.title, "rows": rows}


def _areas(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return the area of what a row shares, and of a cell."""
    one, two = row["area_um2_1x1"], row["area_um2_1x2"]
    return 2 * one - two, two - one


def array_table(figures: Mapping[str, Any]) -> str:
    """Return the areas of arrays, and those of buffers by a model, as markdown."""
    titles = ["format", "shared by a row um2", "cell um2", *(f"1 x {n} um2" for n in _COLUMNS)]
    table = [titles]
    base: list[float] = []
    arrays: list[float] = []
    for row in figures["rows"]:
        shared, cell = _areas(row)
        arrays = [shared + columns * cell for columns in _COLUMNS]
        base = base or arrays
        more = (
            f"{area:.0f} ({area / least - 1:+.1%})"
            for area, least in zip(arrays, base, strict=True)
        )
        table.append([row["format"], f"{shared:.0f}", f"{cell:.0f}", *more])
    columns = _COLUMNS[-1]
    own = [
        Buffer(f"both weight buffers for k up to {k}", GemmTiming(1, columns, k).weight_bytes)
        for k in (4096, 11008, LARGEST_K)
    ]
    core = f"the 1 x {columns} array in M2XFP"
    return (
        f"{figures['pdk_title']}: arrays of one row, FP32 accumulators included, over that of "
        f"MXFP4.\n\n{aligned_table(table)}\n"
        f"{buffer_table(figures['pdk'], [*own, *BUFFERS], arrays[-1], core)}"
    )


def tables(results: Path) -> dict[str, str]:
    """Return the table of each accepted library, ``array-LIBRARY``."""
    return {path.stem: array_table(read_figures(path)) for path in results.glob("array-*.json")}
