"""What the project's own units take in one library: area and energy of MACs, and of engines."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError
from m2xfp.formats import block_format
from m2xfp.results import read_figures

__all__ = ["CELLS", "PDK", "Cell", "Units"]

PDK = "asap7"

# Of a format: configurations of its dot product and its activation quantizer.
CELLS = {
    "m2xfp": ("m2xfp-act", "m2xfp-fp32", ("activation_quantizer", "bf16x32")),
    "mxfp4": ("mxfp4", "mxfp4-fp32", ("activation_quantizer", "mxfp4-bf16x32")),
    "nvfp4": ("nvfp4", "nvfp4-fp32", ("minifloat_quantizer", "nvfp4-bf16x16")),
    "mxfp8": ("mxfp8-e4m3", "mxfp8-fp32", ("activation_quantizer", "mxfp8-e4m3-bf16x32")),
}
# The unit that switches between MXFP4, MXFP6 and MXFP8, whose wide groups take four clocks.
_SWITCHING = "micromix-8"


@dataclass(frozen=True)
class Cell:
    """A MAC of one format in the library.

    Members
    -------
    bits
        Stored bits a value.
    um2, pj
        Area and energy of a MAC, its share of FP32 accumulation included.
    quantizer_pj
        Energy of the activation quantizer, a value.
    """

    bits: float
    um2: float
    pj: float
    quantizer_pj: float


@dataclass(frozen=True)
class Units:
    """What the project's units take in the library.

    Members
    -------
    cells
        A MAC of each format.
    switching
        One of the unit that switches formats, as large and as costly for each of them: area is that
        of a MAC of 4 bits, energy the mean over its regression's formats.
    encoder_pj
        A group through the encoder of a cache.
    """

    cells: Mapping[str, Cell]
    switching: Cell
    encoder_pj: float

    @property
    def m2xfp(self) -> Cell:
        """A MAC of M2XFP."""
        return self.cells["m2xfp"]

    @classmethod
    def of(cls, results: Path) -> "Units":
        """Return the accepted figures of the library; InputError if one is missing."""
        path = results / f"synth-{PDK}.json"
        try:
            return cls._of(
                {(row["unit"], row["config"]): row for row in read_figures(path)["rows"]}
            )
        except (LookupError, TypeError, ZeroDivisionError) as error:
            raise InputError(
                f"{path} lacks figures of this project's units ({type(error).__name__}: {error}); "
                f"restore it: git checkout {path}"
            ) from error

    @classmethod
    def _of(cls, rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> "Units":
        def cell(name: str, config: str, quantizer: tuple[str, str]) -> Cell:
            row, block = rows["dot_product", config], block_format(name)
            return Cell(
                float(block.bits_per_value),
                row["area_um2"] / block.group,
                row["energy_pj_per_mac"],
                rows[quantizer]["energy_pj_per_group"] / block.group,
            )

        cells = {name: cell(*known) for name, known in CELLS.items()}
        row = rows["switching_dot_product", _SWITCHING]
        mac = row["area_um2"] / 32, row["energy_pj_per_group"] / 32
        switching = Cell(0.0, *mac, cells["mxfp8"].quantizer_pj)
        return cls(cells, switching, rows["weight_encoder", "bf16-kv"]["energy_pj_per_group"])
