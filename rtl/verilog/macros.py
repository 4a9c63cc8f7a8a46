"""Memory macros of cell libraries: what their ports are, by name or from a file."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.plain import check_module_name

__all__ = ["MACROS", "Macro", "MacroPort", "find_macro", "read_macros"]

ROLES = ("clock", "write", "write_address", "write_data", "read", "read_address", "read_data")
_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class MacroPort:
    """What is at a port of a macro.

    Members
    -------
    role
        One of ``ROLES``, or "zeros" or "ones".
    inverted
        Whether the port is low where the role is high.
    width
        Bits, of zeros and ones.
    """

    role: str
    inverted: bool = False
    width: int = 1


@dataclass(frozen=True)
class Macro:
    """A memory that writes a word and reads another in the same clock.

    Members
    -------
    name
        Of its module.
    width, depth
        Bits of a word, and words.
    ports
        What is at each port; outputs that are not named stay open.
    holds
        Whether a word that was read stays at the output until the next read.
    """

    name: str
    width: int
    depth: int
    ports: Mapping[str, MacroPort]
    holds: bool = False

    def check_depth(self, width: int, depth: int) -> None:
        """Raise InputError unless macros side by side hold ``depth`` words."""
        if depth > self.depth:
            raise InputError(
                f"memory macro {self.name}: it has {self.depth} words, the unit has a memory of "
                f"{depth} words of {width} bits; name a deeper one, or set a smaller memory"
            )

    def width_of(self, port: MacroPort) -> int:
        """Return the bits of a port."""
        if port.role.endswith("address"):
            return max(1, (self.depth - 1).bit_length())
        return self.width if port.role.endswith("data") else 1


def _port(text: str) -> MacroPort:
    """Return the port of ``role``, ``not role``, ``zeros:bits`` or ``ones:bits``."""
    constant = re.fullmatch(r"(zeros|ones):([1-9]\d{0,3})", text)
    if constant:
        return MacroPort(constant[1], width=int(constant[2]))
    role = text.removeprefix("not ")
    if role not in ROLES:
        raise UnknownNameError("role of a port", text, [*ROLES, "zeros:1", "ones:1"])
    return MacroPort(role, text != role)


def _macro(name: str, width: int, depth: int, holds: bool, ports: Mapping[str, str]) -> Macro:
    return Macro(name, width, depth, {port: _port(text) for port, text in ports.items()}, holds)


def _openram(name: str, width: int, depth: int, masks: int) -> Macro:
    """Return a macro of OpenRAM: a port to write (and read), one to read."""
    ports = {
        **{"clk0": "clock", "csb0": "not write", "web0": "not write", "wmask0": f"ones:{masks}"},
        **{"addr0": "write_address", "din0": "write_data"},
        **{"clk1": "clock", "csb1": "not read", "addr1": "read_address", "dout1": "read_data"},
    }
    return _macro(name, width, depth, False, ports)


def _fakeram(name: str, width: int, depth: int) -> Macro:
    """Return a fakeram with two ports: A writes, B reads."""
    ports = {
        **{"clk_A": "clock", "ce_in_A": "write", "we_in_A": "write", "addr_in_A": "write_address"},
        **{"wd_in_A": "write_data", "w_mask_in_A": f"ones:{width}"},
        **{"clk_B": "clock", "ce_in_B": "read", "we_in_B": "zeros:1", "addr_in_B": "read_address"},
        **{"wd_in_B": f"zeros:{width}", "w_mask_in_B": f"zeros:{width}", "rd_out_B": "read_data"},
    }
    return _macro(name, width, depth, False, ports)


MACROS = {
    macro.name: macro
    for macro in (
        # github.com/VLSIDA/sky130_sram_macros
        _openram("sky130_sram_1kbyte_1rw1r_32x256_8", 32, 256, 4),
        _openram("sky130_sram_1kbyte_1rw1r_8x1024_8", 8, 1024, 1),
        _openram("sky130_sram_2kbyte_1rw1r_32x512_8", 32, 512, 4),
        # ASAP7, as bsg_fakeram writes true dual ports
        _fakeram("fakeram7_tdp_4096x32", 32, 4096),
    )
}
"""Macros with their names, as their libraries have them."""


def find_macro(name: str, file: Path | None = None) -> Macro:
    """Return a macro of a file or of ``MACROS``.

    Raises
    ------
    UnknownNameError
        There is none of that name.
    InputError
        It writes and reads through one port.
    """
    known = MACROS | (read_macros(file) if file else {})
    if name in known:
        return known[name]
    if re.fullmatch(r"fakeram(7|45)?_\d+x\d+|.*_1rw_.*", name):
        raise InputError(
            f"memory macro {name}: it writes and reads through one port, and the memories write "
            f"and read in the same clock; there are: {', '.join(known)}"
        )
    raise UnknownNameError("memory macro", name, known)


def read_macros(path: Path) -> dict[str, Macro]:
    """Return the macros of a TOML file, a table each: width, depth, holds, and ports by name.

    Raises
    ------
    InputError
        The file is not there, is no TOML, or a table is no macro; the text names the table.
    """
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"--macros {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # syntax, encoding, nesting
        raise InputError(f"--macros {path}: not a TOML file ({error})") from error
    return {name: _table(name, table, path) for name, table in tables.items()}


def _table(name: str, table: Any, path: Path) -> Macro:
    place = f"--macros {path}: [{name}]"
    if not isinstance(table, dict):
        raise InputError(f"{place} needs width, depth and ports")
    table = {"holds": False, **table}
    if set(table) != {"width", "depth", "holds", "ports"}:
        raise InputError(f"{place} needs width, depth and ports, may have holds, and nothing else")
    for key, limit in (("width", 4096), ("depth", 1 << 24)):
        value = table[key]
        if type(value) is not int or not 1 <= value <= limit:
            raise InputError(f"{place} {key}={value!r}: give a whole number from 1 to {limit}")
    ports = table["ports"]
    if not isinstance(ports, dict) or not all(isinstance(text, str) for text in ports.values()):
        raise InputError(f'{place} ports: give a text for each, such as clk = "clock"')
    if bad := [port for port in ports if not _NAME.fullmatch(port)]:
        raise InputError(f"{place} ports: {bad[0]!r} is no plain name")
    if type(table["holds"]) is not bool:
        raise InputError(f"{place} holds={table['holds']!r}: give true or false")
    try:
        check_module_name(name)
        macro = _macro(name, table["width"], table["depth"], table["holds"], ports)
    except ValueError as error:
        raise InputError(f"{place}: {error}") from error
    roles = [port.role for port in macro.ports.values()]
    if missing := [role for role in ROLES if role not in roles]:
        raise InputError(f"{place} ports: none has the role {missing[0]!r}")
    if roles.count("read_data") > 1:
        raise InputError(f"{place} ports: several have the role 'read_data'")
    return macro
