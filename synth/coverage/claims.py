"""What must never happen in the netlist where a point of the Verilog cannot be covered."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from m2xfp.synth.coverage.unreachable import Claim, Net, Netlist
from m2xfp.tb.points import Point

__all__ = ["Reader"]

_TOGGLE = re.compile(r"(?P<name>.*?)(?:\[(?P<bit>\d+)\])?:(?P<way>0->1|1->0)")
_RANGE = re.compile(r":(\d+)\.(\d+)-(\d+)\.(\d+)")
_WORD = re.compile(r"(\w+)\[\d+\]")
_NUMBERED = re.compile(r"__0([0-9A-F]{2})")
_IF = re.compile(r"\bif \((?P<no>~?)(?P<name>\w+)(?:\[(?P<bit>\d+)\])?\) begin")
_FUNCTION = re.compile(r" *function .*?(\w+);")
_ARM = re.compile(r"\d+'b(\?*)1\?*:")

Place = tuple[int, int]  # line and column


class Reader:
    """Turns points of a unit that were not covered into claims about its netlist.

    Parameters
    ----------
    netlist, verilog
        The unit.
    """

    def __init__(self, netlist: Netlist, verilog: str) -> None:
        self._netlist, self._lines = netlist, verilog.splitlines()

    def claims(self, point: Point, before: Mapping[Point, int]) -> Sequence[Claim]:
        """Return what is to be shown, all of it, so that a point cannot be covered.

        Nothing for a point that this cannot tell of: a bit that did change once, or statements of
        other kinds than the Verilog writer makes.

        Parameters
        ----------
        point
            Not covered.
        before
            Counts from the begin, when all bits were 0, to a time at which every constant bit had
            its value.
        """
        if point.kind == "toggle":
            return self._toggle(point, before)
        if point.what.startswith("cond_"):
            return self._choice(point)
        if point.what in ("if", "else"):
            return self._side(point)
        return list(self._arm(point)) if point.what == "case" else []

    def _side(self, point: Point) -> Sequence[Claim]:
        """Return the claim of statements that are never executed, where a wire decides."""
        match = _IF.search(self._lines[point.line - 1])
        bits = self._netlist.bits(_written(_inside(point.place, match["name"]))) if match else None
        if match is None or bits is None:
            return []
        bit, value = bits[int(match["bit"] or 0)], int((point.what == "if") != bool(match["no"]))
        return [] if bit == str(value) else [Claim(((bit, value),))]

    def _toggle(self, point: Point, before: Mapping[Point, int]) -> Sequence[Claim]:
        match = _TOGGLE.fullmatch(point.what)
        assert match is not None
        table = _WORD.fullmatch(match["name"])
        if table and table[1] in self._tables:
            return [Claim((("0", 1),))]
        bits = self._netlist.bits(_written(_inside(point.place, match["name"])))
        up, down = (
            replace(point, what=point.what.replace(match["way"], way)) for way in ("0->1", "1->0")
        )
        if bits is None:
            return []
        bit = bits[int(match["bit"] or 0)]
        # A constant in the text never changes, not even to its value.
        value = int(bit) if bit in ("0", "1") else before[up] - before[down]
        return [Claim(((bit, 1 - value),))]

    @cached_property
    def _tables(self) -> set[str]:
        """Names of the memories that nothing writes: tables of constants."""
        text = "\n".join(self._lines)
        written = set(re.findall(r"\b(\w+)\[[^\]]*\] <=", text))
        return set(re.findall(r"reg \[\d+:0\] (\w+) \[", text)) - written

    @cached_property
    def _muxes(self) -> dict[str, tuple[Place, Place, Mapping[str, list[Net]]]]:
        """Begin, end and connections of each multiplexer."""
        found = {}
        for name, cell in self._netlist.module["cells"].items():
            ranges = _RANGE.findall(cell["attributes"].get("src", ""))
            if cell["type"] == "$mux" and ranges:
                first, column, last, end = map(int, ranges[-1])
                found[name] = ((first, column), (last, end), cell["connections"])
        return found

    @cached_property
    def _readers(self) -> dict[Net, list[tuple[str, str]]]:
        """Cell and pin that read each wire."""
        found: dict[Net, list[tuple[str, str]]] = {}
        for name, cell in self._netlist.module["cells"].items():
            for pin, bits in cell["connections"].items():
                if cell["port_directions"][pin] == "input":
                    for bit in bits:
                        found.setdefault(bit, []).append((name, pin))
        return found

    def _choice(self, point: Point) -> Sequence[Claim]:
        """Return the claims of a ``?`` whose one side is never taken.

        Verilator tells where the first side begins, and one column on for the second.
        """
        taken = point.what == "cond_then"
        at = (point.line, point.column - (not taken))
        path = _escaped(_written(point.place))
        around = [
            (start, name)
            for name, (start, end, _) in self._muxes.items()
            if name.startswith(f"$flatten{path}$") and "$ternary$" in name and start < at <= end
        ]
        if not around:
            return []
        nearest = max(start for start, _ in around)
        names = [name for start, name in around if start == nearest]
        return [Claim(tuple(self._selected(name, taken))) for name in names]

    def _selected(self, name: str, taken: bool) -> Iterator[tuple[Net, int]]:
        """Yield what a multiplexer and those behind it select when this one's choice counts."""
        _, _, pins = self._muxes[name]
        yield pins["S"][0], int(taken)
        following = {(cell, pin) for bit in pins["Y"] for cell, pin in self._readers.get(bit, [])}
        while len(following) == 1:
            [(cell, pin)] = following
            if cell not in self._muxes or pin == "S":
                return
            _, _, pins = self._muxes[cell]
            yield pins["S"][0], int(pin == "B")
            following = {
                (cell, pin) for bit in pins["Y"] for cell, pin in self._readers.get(bit, [])
            }

    def _arm(self, point: Point) -> Iterator[Claim]:
        """Yield the claims of one arm of a choice by one-hot bits, for each place it is used in."""
        start = point.line - 1
        while not (function := _FUNCTION.match(self._lines[start])):
            if start == 0 or "endfunction" in self._lines[start]:
                return
            start -= 1
        first = next(n for n in range(start, point.line) if "casez (s)" in self._lines[n]) + 1
        # What yosys calls the argument of each call.
        begins = f"$flatten{_escaped(_written(point.place))}$0\\{function[1]}$func$"
        for name, wire in self._netlist.module["netnames"].items():
            if not (name.startswith(begins) and ".s[" in name):
                continue
            earlier: list[tuple[Net, int]] = []
            for number, line in enumerate(self._lines[first:], first + 1):
                text = line.strip()
                arm = _ARM.fullmatch(text)
                if arm is None and text != "default:":
                    continue
                at = wire["bits"][len(text.partition("b")[2]) - 2 - len(arm[1])] if arm else None
                if number == point.line:
                    yield Claim((*earlier, *([] if at is None else [(at, 1)])))
                    break
                if at is not None:
                    earlier.append((at, 0))


def _escaped(place: str) -> str:
    """Return a path as it begins the names of cells that were flattened."""
    return "\\" + place.replace(".", ".\\") + "." if place else ""


def _written(name: str) -> str:
    """Return a name as the Verilog has it: Verilator writes some characters as numbers."""
    return _NUMBERED.sub(lambda found: chr(int(found[1], 16)), name)


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name
