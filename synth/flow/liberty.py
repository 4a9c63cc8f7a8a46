"""Liberty files as data: cells, areas, pins, logic functions and tables, read for area and power.

A library may be one file or several (ASAP7 comes in five), plain or gzipped. The whole text
becomes a tree of ``Group``; ``Library`` gives the few facts that the flow needs: area in the
library's own unit (um2 in every library of the registry), pin capacitance in fF, and the sizes of
the library's other units.

Source: Liberty User Guide, volumes 1 and 2. The parser is our own because the one on PyPI is under
the GPL and needs tens of seconds for ASAP7; this one needs one or two.
"""

import gzip
import itertools
import math
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from types import CodeType

from m2xfp.errors import InputError

__all__ = [
    "Cell",
    "ClockGate",
    "Group",
    "Library",
    "Pin",
    "compiled_function",
    "parse",
    "parse_function",
    "read_text",
]

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_STATEMENT = re.compile(
    r"""\s*;*\s*(?:
        (?P<close>\})
      | (?P<name>[A-Za-z_][\w.]*|"[^"]*")\s*(?:
            :\s*(?P<value>"[^"]*"|[^;{}\n]*)
          | \((?P<arguments>(?:"[^"]*"|[^()"])*)\)\s*(?P<open>\{)?
        )
    )""",
    re.VERBOSE,
)


@dataclass
class Group:
    """One Liberty group ``kind (arguments) { ... }``.

    Members
    -------
    kind, arguments
        ``cell`` and ``("NAND2X1",)``, say.
    values
        Simple attributes, quotes removed; of a name given twice the last.
    lists
        Complex attributes such as ``index_1``: the argument text, unsplit.
    groups
        Groups inside, in order.
    """

    kind: str
    arguments: tuple[str, ...]
    values: dict[str, str] = field(default_factory=dict)
    lists: dict[str, str] = field(default_factory=dict)
    groups: list["Group"] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The first argument."""
        return self.arguments[0] if self.arguments else ""

    def of(self, *kinds: str) -> Iterator["Group"]:
        """Return the groups inside that are of one of the kinds."""
        return (group for group in self.groups if group.kind in kinds)

    def number(self, attribute: str, default: float = 0.0) -> float:
        """Return an attribute as a finite number; InputError if it is none."""
        return _number(self.values.get(attribute, default), f"{attribute} of {self}")

    def amount(self, attribute: str) -> float:
        """Return an attribute as a number that is not negative, 0 if it is left out."""
        found = self.number(attribute)
        if found < 0:
            raise InputError(f"{attribute} of {self} is {found:g}; it must not be negative")
        return found

    def __str__(self) -> str:
        """Return kind and arguments, for messages."""
        return f"{self.kind} ({', '.join(self.arguments)})"


def _number(text: str | float, what: str) -> float:
    """Return text as a finite number."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"{what} is {text!r}; it must be a number")
    return found


def _arguments(text: str) -> tuple[str, ...]:
    return tuple(part.strip().strip('"').strip() for part in text.split(","))


def read_text(path: Path) -> str:
    """Return the text of a plain or gzipped file (recognised by content, not by name).

    Raises
    ------
    InputError
        The file is missing, or its gzip stream is damaged.
    """
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("latin-1")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"Liberty file {str(path)!r} cannot be read: {error}") from error


def parse(text: str, source: str = "text") -> Group:
    """Parse Liberty text into its ``library`` group.

    Raises
    ------
    InputError
        The text is not Liberty; the message has the line.
    """
    text = _COMMENT.sub(lambda found: "\n" * found[0].count("\n"), text)
    text = text.replace("\\\r\n", " \n").replace("\\\n", " \n")
    root = Group("", ())
    stack = [root]
    position = 0
    while match := _STATEMENT.match(text, position):
        position = match.end()
        if match["close"]:
            stack.pop()
            if not stack:
                break
        elif match["value"] is not None:
            stack[-1].values[match["name"].strip('"')] = match["value"].strip().strip('"')
        elif match["open"]:
            group = Group(match["name"], _arguments(match["arguments"]))
            stack[-1].groups.append(group)
            stack.append(group)
        else:
            stack[-1].lists[match["name"]] = match["arguments"]
    if len(stack) != 1 or text[position:].strip(" \t\r\n;"):
        line = text.count("\n", 0, position) + 1
        raise InputError(f"{source}, line {line}: not Liberty syntax")
    libraries = list(root.of("library"))
    if len(libraries) != 1:
        raise InputError(f"{source}: no library group; give a Liberty (.lib) file")
    return libraries[0]


_MOST_TOKENS, _MOST_NESTED = 4000, 150  # Python reads up to 200 brackets in brackets
_TOKEN = re.compile(r"\s*([A-Za-z_][\w.\[\]]*|[01]|[!'^*&+|()])", re.ASCII)
_BINARY = (("+", "|"), ("^",), ("*", "&"))  # loosest first; Liberty binds ^ tighter than +


def parse_function(function: str) -> str:
    """Translate a Liberty logic function to an expression of ``~ & ^ |``, fully bracketed.

    The result is at once Verilog and, on integers masked to one bit, Python. Liberty writes NOT as
    ``!a`` or ``a'``, AND as ``*``, ``&`` or nothing, OR as ``+`` or ``|``.

    Raises
    ------
    InputError
        The text is not a Liberty function.
    """
    tokens = _TOKEN.findall(function)
    if len(tokens) > _MOST_TOKENS:
        raise InputError(f"Liberty function {function[:60]!r}...: longer than any cell's")
    if "".join(tokens) != re.sub(r"\s", "", function, flags=re.ASCII):
        raise InputError(f"Liberty function {function!r} cannot be read")
    tokens.append("")

    def unary() -> str:
        token = tokens.pop(0)
        if token == "!":
            return f"(~{unary()})"
        if token == "(":
            inner = binary(0)
            if tokens.pop(0) != ")":
                raise InputError(f"Liberty function {function!r}: a bracket is not closed")
        elif token in {"0", "1"}:
            inner = f"1'b{token}"
        elif token and (token[0].isalpha() or token[0] == "_"):
            inner = token
        else:
            raise InputError(f"Liberty function {function!r}: {token or 'its end'!r} unexpected")
        while tokens[0] == "'":
            tokens.pop(0)
            inner = f"(~{inner})"
        return inner

    def binary(level: int) -> str:
        if level == len(_BINARY):
            return unary()
        left = binary(level + 1)
        while True:
            if tokens[0] in _BINARY[level]:
                tokens.pop(0)
            elif not (level == 2 and (tokens[0] in {"(", "!"} or tokens[0][:1].isalnum())):
                return left
            left = f"({left} {'|^&'[level]} {binary(level + 1)})"

    try:
        expression = binary(0)
    except RecursionError:
        expression = "(" * (_MOST_NESTED + 1)
    if max(itertools.accumulate((c == "(") - (c == ")") for c in expression)) > _MOST_NESTED:
        raise InputError(f"Liberty function {function[:60]!r}...: nested deeper than any cell's")
    if tokens != [""]:
        raise InputError(f"Liberty function {function!r}: {tokens[0]!r} unexpected")
    return expression


_NAME = re.compile(r"[A-Za-z_][\w.\[\]]*", re.ASCII)


@cache
def compiled_function(function: str) -> tuple[CodeType, tuple[str, ...]]:
    """Return a Liberty function as code in ``_0``, ``_1``, ..., and the names these stand for.

    The constants are ``_ZERO`` and ``_ONE``. No name of a library becomes a name in the code, where
    a point or an index in it would be more than a letter.
    """
    names: list[str] = []

    def variable(match: re.Match[str]) -> str:
        if match[0] not in names:
            names.append(match[0])
        return f"_{names.index(match[0])}"

    parts = re.split(r"1'b([01])", parse_function(function))
    parts[::2] = [_NAME.sub(variable, part) for part in parts[::2]]
    parts[1::2] = [("_ZERO", "_ONE")[int(part)] for part in parts[1::2]]
    return compile("".join(parts), "<Liberty function>", "eval"), tuple(names)


@dataclass(frozen=True)
class Pin:
    """A pin of a cell.

    Members
    -------
    name, direction
        ``input``, ``output``, ``inout`` or ``internal``.
    capacitance
        Input capacitance, fF.
    function
        Liberty text of an output's function, empty if it has none.
    group
        All else the library says of it.
    """

    name: str
    direction: str
    capacitance: float
    function: str
    group: Group = field(repr=False, compare=False)


@dataclass(frozen=True)
class ClockGate:
    """Pins of an integrated clock gate: a latch, open while the clock is low, and an AND.

    Members
    -------
    clock, enable, gated
        Clock in, enable, clock out. The clock that comes out has those pulses before which the
        enable was 1.
    test
        Lets the clock through as well, for scan; empty if the cell has none.
    """

    clock: str
    enable: str
    gated: str
    test: str = ""


# Carry and sum of three bits, which may come in any order.
_MAJORITY = (0, 0, 0, 1, 0, 1, 1, 1)
_PARITY = (0, 1, 1, 0, 1, 0, 0, 1)


@dataclass(frozen=True)
class FullAdder:
    """Outputs of a full adder.

    Members
    -------
    carry, carry_inverted
        The pin of the majority of the three inputs, and whether it is the complement of that.
    sum, sum_inverted
        The pin of their parity, likewise.
    """

    carry: str
    carry_inverted: bool
    sum: str
    sum_inverted: bool


def _check_name(name: str) -> None:
    """Raise InputError for a name that yosys, abc or OpenSTA could take for anything else.

    Their scripts have no quotes that hold in all three, so names are restricted instead.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.:]*(\[[0-9]+\])?", name):
        raise InputError(
            f"Liberty name {name!r}: libraries, cells and pins are called by letters, digits, "
            "underscores and points, a pin of a bus by an index too; rename it in the library"
        )


@dataclass(frozen=True, eq=False)
class Cell:
    """A cell of a library.

    Members
    -------
    name, area
        Area in the library's unit.
    pins
        By name.
    group
        All else the library says of it.
    """

    name: str
    area: float
    pins: dict[str, Pin]
    group: Group = field(repr=False, compare=False)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the input pins, in the library's order."""
        return tuple(pin.name for pin in self.pins.values() if pin.direction == "input")

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the output pins, in the library's order."""
        return tuple(pin.name for pin in self.pins.values() if pin.direction == "output")

    @property
    def is_flop(self) -> bool:
        """Whether the cell has an edge-triggered state."""
        return any(self.group.of("ff", "ff_bank"))

    @cached_property
    def clock_gate(self) -> ClockGate | None:
        """The pins of a clock gate for flip-flops on the rising edge; None for any other cell."""
        kind = self.group.values.get("clock_gating_integrated_cell", "")
        if kind not in {"latch_posedge", "latch_posedge_precontrol", "latch_posedge_postcontrol"}:
            return None
        roles = {
            role: pin.name
            for role in ("clock", "enable", "out", "test")
            for pin in self.pins.values()
            if pin.group.values.get(f"clock_gate_{role}_pin") == "true"
        }
        if not {"clock", "enable", "out"} <= roles.keys():
            return None
        return ClockGate(roles["clock"], roles["enable"], roles["out"], roles.get("test", ""))

    @property
    def is_stateful(self) -> bool:
        """Whether the cell holds state of any kind: flop, latch, clock gate."""
        return any(self.group.of("ff", "ff_bank", "latch", "latch_bank", "statetable"))

    def truth_table(self) -> tuple[int, ...] | None:
        """Return the output's values for input codes 0, 1, 2, ... (first input lowest).

        None for cells that are not one combinational output of at most six inputs, and for pads,
        whose output follows a pin that is input and output.
        """
        return self.table_of(self.outputs[0]) if len(self.outputs) == 1 else None

    def table_of(self, output: str) -> tuple[int, ...] | None:
        """Return the values of one output, as ``truth_table`` does of the only one."""
        if self.is_stateful or len(self.inputs) > 6:
            return None
        function = self.pins[output].function
        if not function or "three_state" in self.pins[output].group.values:
            return None
        code, names = compiled_function(function)
        if not set(names) <= set(self.inputs):
            return None
        constants = {"_ZERO": 0, "_ONE": 1, "__builtins__": {}}
        table = []
        for bits in itertools.product((0, 1), repeat=len(self.inputs)):
            pins = dict(zip(self.inputs, reversed(bits), strict=True))
            values = {f"_{i}": pins[name] for i, name in enumerate(names)}
            table.append(eval(code, constants, values) & 1)
        return tuple(table)

    @cached_property
    def full_adder(self) -> "FullAdder | None":
        """The outputs of a full adder; None for any other cell."""
        if len(self.inputs) != 3 or self.is_stateful:
            return None
        tables = {self.table_of(name): name for name in self.outputs}
        found: list[tuple[str, bool]] = []
        for table in (_MAJORITY, _PARITY):
            inverse = tuple(1 - value for value in table)
            name = tables.get(table) or tables.get(inverse)
            if name is None:
                return None
            found.append((name, table not in tables))
        return FullAdder(*found[0], *found[1])


_LOAD_FF = {"ff": 1.0, "pf": 1e3}
_TIME_NS = {"s": 1e9, "ms": 1e6, "us": 1e3, "ns": 1.0, "ps": 1e-3, "fs": 1e-6}
_POWER_NW = {"w": 1e9, "mw": 1e6, "uw": 1e3, "nw": 1.0, "pw": 1e-3, "fw": 1e-6}


def _unit(text: str, factors: dict[str, float], what: str) -> float:
    match = re.fullmatch(r"\s*([\d.eE+-]*?)\s*([a-zA-Z]+)\s*", text)
    if not match or match[2].lower() not in factors:
        raise InputError(f"{what} {text!r} of the library is not understood")
    size = _number(match[1] or 1, what) * factors[match[2].lower()]
    if not 0 < size < math.inf:
        raise InputError(f"{what} {text!r} of the library is not understood")
    return size


@dataclass(frozen=True)
class Library:
    """One or more Liberty files read as one library.

    Members
    -------
    name
        Name of the first file's library group.
    cells
        By name; a name in two files is an error.
    templates
        Table templates by name; they tell which index is slew and which is load.
    voltage
        Nominal supply, V.
    time_ns, capacitance_ff
        Size of the library's time and capacitance units.
    leakage_nw
        Size of its leakage unit.
    """

    name: str
    cells: dict[str, Cell]
    templates: dict[str, Group]
    voltage: float
    time_ns: float
    capacitance_ff: float
    leakage_nw: float

    @property
    def energy_pj(self) -> float:
        """Size of the unit of internal power tables: capacitance unit times V^2, in pJ."""
        return self.capacitance_ff * 1e-3

    @classmethod
    def read(cls, paths: Iterable[Path]) -> "Library":
        """Read plain or gzipped Liberty files.

        Raises
        ------
        InputError
            No file, an unreadable one, one that is not Liberty, files of different units, or a cell
            that two of them define.
        """
        files = tuple(paths)
        if not files:
            raise InputError("no Liberty file was given")
        parts = [cls._of(parse(read_text(path), str(path))) for path in files]
        first = parts[0]
        cells: dict[str, Cell] = {}
        templates: dict[str, Group] = {}
        for path, part in zip(files, parts, strict=True):
            for unit in ("voltage", "time_ns", "capacitance_ff", "leakage_nw"):
                if getattr(part, unit) != getattr(first, unit):
                    raise InputError(
                        f"{path}: {unit} is {getattr(part, unit)}, but {getattr(first, unit)} in "
                        f"{files[0]}; these files are not one library"
                    )
            if twice := cells.keys() & part.cells.keys():
                raise InputError(f"{path}: cell {min(twice)!r} was defined by a file before it")
            cells |= part.cells
            templates |= part.templates
        return cls(
            first.name,
            cells,
            templates,
            first.voltage,
            first.time_ns,
            first.capacitance_ff,
            first.leakage_nw,
        )

    @classmethod
    def _of(cls, library: Group) -> "Library":
        load = _arguments(library.lists.get("capacitive_load_unit", "1,pf"))
        femto = _unit(" ".join(load), _LOAD_FF, "capacitive_load_unit")
        cells = {}
        for group in library.of("cell"):
            pins = {}
            for pin in itertools.chain(
                group.of("pin"), *(bus.of("pin") for bus in group.of("bus"))
            ):
                for name in pin.arguments:
                    pins[name] = Pin(
                        name,
                        pin.values.get("direction", "internal"),
                        pin.amount("capacitance") * femto,
                        pin.values.get("function", ""),
                        pin,
                    )
            cells[group.name] = Cell(group.name, group.amount("area"), pins, group)
        for name in (library.name, *cells, *(pin for cell in cells.values() for pin in cell.pins)):
            _check_name(name)
        return cls(
            library.name,
            cells,
            {t.name: t for t in library.of("lu_table_template", "power_lut_template")},
            library.amount("nom_voltage"),
            _unit(library.values.get("time_unit", "1ns"), _TIME_NS, "time_unit"),
            femto,
            _unit(library.values.get("leakage_power_unit", "1nW"), _POWER_NW, "leakage_power_unit"),
        )

    def cheapest(self, table: tuple[int, ...]) -> Cell | None:
        """Return the smallest cell with this truth table; of equals the first name."""
        inputs = len(table).bit_length() - 1
        found = (
            cell
            for cell in self.cells.values()
            if len(cell.inputs) == inputs and cell.truth_table() == table
        )
        return min(found, key=lambda cell: (cell.area, cell.name), default=None)
