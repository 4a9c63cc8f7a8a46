"""Standard-cell libraries by name: where each is found, and how the flow should treat it.

A library is found where its users have it: apt's qflow packages (osu018 is the default: ``make``
installs it), PDK_ROOT as ciel and volare lay it out, or an OpenROAD-flow-scripts checkout
(FLOW_HOME). Files in any other place are named one by one, and a library that the table knows by
its Liberty name gets the table's treatment from there too.
"""

import fnmatch
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from m2xfp.errors import InputError, MissingToolError, UnknownNameError
from m2xfp.synth.flow.liberty import Cell, Library

__all__ = ["DEFAULT_PDK", "PDKS", "Pdk", "find_pdk", "pdk_from_liberty"]

DEFAULT_PDK = "osu018"
LOAD_GATES = 4  # NAND2 inputs that every output drives
_NAND2, _BUFFER = (1, 1, 1, 0), (0, 1)


@cache
def _library(files: tuple[Path, ...]) -> Library:
    return Library.read(files)


@dataclass(frozen=True)
class Pdk:
    """A standard-cell library as the flow uses it.

    Members
    -------
    name
        ``osu018``, ...; of a library that the table does not know, its Liberty name.
    title
        Process and corner, for reports.
    library_name
        Regular expression for the Liberty name of its files.
    places
        Sets of glob patterns, the first set of which every pattern has a match wins; they may begin
        with ``$PDK_ROOT`` or ``$FLOW_HOME``.
    remedy
        Where to get it.
    liberty
        The files; empty until found.
    nand2, driver, gate
        Cell names; empty means the smallest cell of that function. The gate is the integrated
        clock gate.
    dont_use
        Patterns of cells that the mapper must not take, beside those the library itself marks.
    """

    name: str
    title: str
    library_name: str = ""
    places: tuple[tuple[str, ...], ...] = ()
    remedy: str = ""
    liberty: tuple[Path, ...] = ()
    nand2: str = ""
    driver: str = ""
    gate: str = ""
    dont_use: tuple[str, ...] = ()

    @property
    def library(self) -> Library:
        """The cells, read when first asked for."""
        return _library(self.liberty)

    def _cell(self, name: str, table: tuple[int, ...], option: str) -> Cell:
        if name:
            if name not in self.library.cells:
                raise UnknownNameError(f"{option} cell of {self.name}", name, self.library.cells)
            return self.library.cells[name]
        found = self.library.cheapest(table)
        if found and found.area > 0:
            return found
        raise InputError(
            f"library {self.library.name!r} has no cell that is a {option} by its function; "
            f"name it with --cell {option}=CELL"
        )

    @cached_property
    def nand2_cell(self) -> Cell:
        """The gate whose area is one gate equivalent."""
        return self._cell(self.nand2, _NAND2, "NAND2")

    @cached_property
    def driver_cell(self) -> Cell:
        """The buffer that drives every input."""
        return self._cell(self.driver, _BUFFER, "DRIVER")

    @cached_property
    def clock_gate_cell(self) -> Cell:
        """The integrated clock gate; banned or not, since no mapper chooses it by function.

        Raises
        ------
        InputError
            The library has none, or the cell named for it is none.
        """
        cells = self.library.cells
        if self.gate:
            if not cells[self.gate].clock_gate:
                raise InputError(
                    f"GATE={self.gate} is no integrated clock gate for the rising edge by "
                    f"library {self.library.name!r}"
                )
            return cells[self.gate]
        found = [(cell.area, cell.name) for cell in cells.values() if cell.clock_gate]
        if not found:
            raise InputError(
                f"library {self.library.name!r} has no integrated clock gate (latch_posedge); "
                "map onto it without --clock-gating"
            )
        return cells[min(found)[1]]

    @cached_property
    def _full_adders(self) -> list[tuple[float, str]]:
        return [
            (cell.area, cell.name)
            for cell in self.library.cells.values()
            if cell.full_adder and not self.bans(cell)
        ]

    @property
    def has_full_adder(self) -> bool:
        """Whether a cell that may be taken has the functions of a full adder."""
        return bool(self._full_adders)

    @property
    def full_adder_cell(self) -> Cell:
        """The smallest full adder, by its functions; InputError of a library that has none."""
        found = self._full_adders
        if not found:
            raise InputError(
                f"library {self.library.name!r} has no full adder; map onto it without "
                "--full-adders"
            )
        return self.library.cells[min(found)[1]]

    @cached_property
    def flop_area_um2(self) -> float:
        """Area of the smallest plain flip-flop: one clock edge, data, no set, reset or enable.

        Of a library without such a one, the smallest of those with the fewest pins.
        """
        flops = [
            (len(cell.inputs), cell.area)
            for cell in self.library.cells.values()
            if cell.is_flop and not self.bans(cell)
        ]
        if not flops:
            raise InputError(f"library {self.library.name!r} has no flip-flop")
        return min(flops)[1]

    @cached_property
    def load_ff(self) -> float:
        """Load on every output, fF: four inputs of the smallest NAND2."""
        gate = self.nand2_cell
        return LOAD_GATES * max(gate.pins[name].capacitance for name in gate.inputs)

    def tie(self, value: int) -> tuple[str, str] | None:
        """Return cell and pin of the smallest constant ``value``, None if the library has none."""
        found = [
            (cell.area, cell.name, pin.name)
            for cell in self.library.cells.values()
            for pin in cell.pins.values()
            if not cell.inputs and pin.function.strip() == str(value) and not self.bans(cell)
        ]
        return min(found)[1:] if found else None

    def bans(self, cell: Cell) -> bool:
        """Whether the mapper must not take a cell."""
        return cell.group.values.get("dont_use") == "true" or any(
            fnmatch.fnmatchcase(cell.name, pattern) for pattern in self.dont_use
        )


_QFLOW = "/usr/share/qflow/tech"
_APT = "apt-get install {} (Debian 12 has it, 13 has not), or take another library with --liberty"
_ORFS = (
    "clone https://github.com/The-OpenROAD-Project/OpenROAD-flow-scripts and set FLOW_HOME to its "
    "flow folder"
)

PDKS: Mapping[str, Pdk] = {
    pdk.name: pdk
    for pdk in (
        Pdk(
            "osu018",
            "OSU 0.18 um, typical, 25 C, 1.8 V",
            library_name=r"osu018_stdcells",
            places=((f"{_QFLOW}/osu018/osu018_stdcells.lib",),),
            remedy=_APT.format("qflow-tech-osu018"),
        ),
        Pdk(
            "osu035",
            "OSU 0.35 um, typical",
            library_name=r"osu035_stdcells",
            places=((f"{_QFLOW}/osu035/osu035_stdcells.lib",),),
            remedy=_APT.format("qflow-tech-osu035"),
        ),
        Pdk(
            "osu050",
            "OSU 0.5 um, typical",
            library_name=r"osu05_stdcells",
            places=((f"{_QFLOW}/osu050/osu05_stdcells.lib",),),
            remedy=_APT.format("qflow-tech-osu050"),
        ),
        Pdk(
            "nangate45",
            "Nangate 45 nm open cell library, typical",
            library_name=r"NangateOpenCellLibrary.*",
            places=(("$FLOW_HOME/platforms/nangate45/lib/NangateOpenCellLibrary_typical.lib*",),),
            remedy=_ORFS,
        ),
        Pdk(
            "sky130_fd_sc_hd",
            "SkyWater 130 nm high density, tt, 25 C, 1.80 V",
            library_name=r"sky130_fd_sc_hd__.*",
            places=(
                ("$PDK_ROOT/sky130A/libs.ref/sky130_fd_sc_hd/lib/*__tt_025C_1v80.lib",),
                ("$FLOW_HOME/platforms/sky130hd/lib/sky130_fd_sc_hd__tt_025C_1v80.lib*",),
            ),
            remedy=f"pip install ciel && ciel enable --pdk-family sky130, or {_ORFS}",
            driver="sky130_fd_sc_hd__buf_1",
            # Power gating and probe points; and flip-flops with enable, since abc, which inserts
            # the buffers, sees no pin of a flip-flop: hundreds of enables would hang on one gate.
            dont_use=(
                "sky130_fd_sc_hd__lpflow_*",
                "sky130_fd_sc_hd__probe*",
                "sky130_fd_sc_hd__edf*",
            ),
        ),
        Pdk(
            "asap7",
            "ASAP7 7.5 track, RVT, TT, 25 C, 0.70 V",
            library_name=r"asap7sc7p5t_.*_RVT_TT_nldm_.*",
            places=(
                tuple(
                    f"$FLOW_HOME/platforms/asap7/lib/NLDM/asap7sc7p5t_{part}_RVT_TT_nldm_*.lib*"
                    for part in ("AO", "INVBUF", "OA", "SEQ", "SIMPLE")
                ),
            ),
            remedy=_ORFS,
            nand2="NAND2xp33_ASAP7_75t_R",
            driver="BUFx2_ASAP7_75t_R",
            # What OpenROAD-flow-scripts bans (fractional drives, scan, clock gates, set and reset),
            # and the quadruple-drive flip-flops, which yosys would prefer for their plain output.
            dont_use=("*x1p*_ASAP7*", "*xp*", "SDF*", "ICG*", "DFFASRHQN*", "DFF?Qx4*"),
        ),
        Pdk(
            "ihp-sg13g2",
            "IHP SG13G2 130 nm, typical, 25 C, 1.20 V",
            library_name=r"sg13g2_stdcell_.*",
            places=(
                ("$PDK_ROOT/ihp-sg13g2/libs.ref/sg13g2_stdcell/lib/*_typ_1p20V_25C.lib",),
                ("$FLOW_HOME/platforms/ihp-sg13g2/lib/sg13g2_stdcell_typ_1p20V_25C.lib*",),
            ),
            remedy=f"pip install ciel && ciel enable --pdk-family ihp-sg13g2, or {_ORFS}",
            dont_use=("sg13g2_lgcp_1", "sg13g2_sighold", "sg13g2_slgcp_1"),
        ),
    )
}


def _root(variable: str) -> list[str]:
    """Return the folders that a place's variable stands for, the user's own setting first."""
    if value := os.environ.get(variable):
        return [value]
    home = Path.home()
    return {
        "PDK_ROOT": [str(home / ".ciel"), str(home / ".volare")],
        "FLOW_HOME": [str(home / "OpenROAD-flow-scripts" / "flow")],
    }[variable]


def _expand(pattern: str) -> list[str]:
    variable, slash, rest = pattern.partition("/")
    if not variable.startswith("$"):
        return [pattern]
    return [root + slash + rest for root in _root(variable[1:])]


def _first_match(pattern: str) -> Path | None:
    for place in _expand(pattern):
        path = Path(place)
        anchor = Path(path.anchor or ".")
        if found := sorted(anchor.glob(str(path.relative_to(anchor) if path.anchor else path))):
            return found[0]
    return None


def find_pdk(name: str) -> Pdk:
    """Return a library of the table with its files.

    Raises
    ------
    UnknownNameError
        No such library in the table.
    MissingToolError
        It is not installed; the message says where to get it and where it was looked for.
    """
    if name not in PDKS:
        raise UnknownNameError("cell library", name, PDKS)
    pdk = PDKS[name]
    for patterns in pdk.places:
        found = [_first_match(pattern) for pattern in patterns]
        files = tuple(path for path in found if path)
        if len(files) == len(patterns):
            return replace(pdk, liberty=files)
    looked = "; ".join(place for patterns in pdk.places for place in _expand(patterns[0]))
    raise MissingToolError(f"cell library {name!r} (looked for: {looked})", pdk.remedy)


def pdk_from_liberty(files: Sequence[Path | str], cells: Mapping[str, str] | None = None) -> Pdk:
    """Return a library given by its files, in any order, plain or gzipped.

    Parameters
    ----------
    files
        Liberty files that together make the library.
    cells
        Cell names for the roles ``NAND2``, ``DRIVER`` and ``GATE``, instead of the smallest by
        function.

    Raises
    ------
    InputError
        A file cannot be read or is not Liberty.
    UnknownNameError
        A role or a cell that does not exist.
    """
    paths = tuple(sorted(Path(file).absolute() for file in files))
    library = _library(paths)
    known = (pdk for pdk in PDKS.values() if re.fullmatch(pdk.library_name, library.name))
    pdk = replace(next(known, Pdk(library.name, library.name)), liberty=paths)
    chosen = {"NAND2": pdk.nand2, "DRIVER": pdk.driver, "GATE": pdk.gate}
    for role, cell in (cells or {}).items():
        if role not in chosen:
            raise UnknownNameError("cell role", role, chosen)
        if cell not in library.cells:
            raise UnknownNameError(f"cell of {library.name}", cell, library.cells)
        chosen[role] = cell
    return replace(pdk, nand2=chosen["NAND2"], driver=chosen["DRIVER"], gate=chosen["GATE"])
