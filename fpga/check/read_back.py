"""Netlists of built chips: from the bitstream of an iCE40, from the routed netlist of an ECP5.

The bitstream of an ECP5 cannot be unpacked so far, so its netlist is the one that nextpnr routed
and wrote.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m2xfp.fpga.check.ecp5 import parse_routed
from m2xfp.fpga.check.ice40 import unpack_ice40
from m2xfp.fpga.check.netlist import Netlist
from m2xfp.fpga.flow.boards import Board

__all__ = ["SOURCES", "cell_names", "read_back"]

SOURCES = {"ice40": "bitstream", "ecp5": "routed netlist"}
"""What is read back of a family's chips."""


def read_back(board: Board, folder: Path) -> Netlist:
    """Return the netlist of what was built in ``folder``; see `unpack_ice40`, `parse_routed`."""
    if board.family == "ice40":
        return unpack_ice40(board, folder)
    return parse_routed(_routed(folder))


def _routed(folder: Path) -> Mapping[str, Any]:
    """Return the routed netlist, as nextpnr writes it."""
    module: Mapping[str, Any] = json.loads((folder / "routed.json").read_text())["modules"]["top"]
    return module


def cell_names(folder: Path) -> dict[str, str]:
    """Return the name in the design by place on the die, for messages."""
    places = {
        name: re.fullmatch(r"X(\d+)/Y(\d+)/(?:lc)?(\S+)", cell["attributes"].get("NEXTPNR_BEL", ""))
        for name, cell in _routed(folder)["cells"].items()
    }
    return {" ".join(place.groups()): name for name, place in places.items() if place}
