"""Netlists of ECP5 chips, from the netlist that nextpnr routed."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from m2xfp.fpga.check.netlist import ONE, PORTS, ZERO, Alias, FlipFlop, Lut, Memory, Netlist
from m2xfp.fpga.flow.tools import BuildError

__all__ = ["parse_routed"]


def parse_routed(module: Mapping[str, Any]) -> Netlist:
    """Read the netlist that nextpnr routed for an ECP5.

    An input of a look-up table that nothing drives reads 1, as in the chip.
    """
    nets = {
        bit: short
        for short, pattern in PORTS.items()
        for name, port in module["ports"].items()
        if re.fullmatch(pattern, name)
        for bit in port["bits"]
    }
    cells = module["cells"]
    # The reset that reaches every flip-flop without a wire of its own.
    released = [
        _connected(cell, "GSR", ONE, {}) for cell in cells.values() if cell["type"] == "GSR"
    ]
    reader = _Ecp5(nets, released[0] if released else ONE)
    for name, cell in cells.items():
        read = getattr(reader, cell["type"].lower(), None)
        if read is None:
            raise BuildError(f"cannot simulate {cell['type']} {name}")
        read(name, cell)
    return reader.netlist()


def _connected(cell: Mapping[str, Any], port: str, default: str, nets: Mapping[int, str]) -> str:
    """Return the net at a port; ``default`` if there is none."""
    bits = cell["connections"].get(port, [])
    return nets.get(bits[0], f"n{bits[0]}") if bits else default


class _Ecp5:
    """Collects the cells of a routed ECP5 netlist; a method a type of cell."""

    def __init__(self, nets: Mapping[int, str], released: str) -> None:
        self._nets = nets
        self._luts: list[Lut] = []
        self._flip_flops: list[FlipFlop] = []
        self._aliases: list[Alias] = []
        self._memories: list[Memory] = []
        self._gate("in_reset", (released,), lambda n: not n)

    def netlist(self) -> Netlist:
        """Return what was collected."""
        return Netlist(
            tuple(self._luts),
            tuple(self._flip_flops),
            (),
            tuple(self._aliases),
            tuple(self._memories),
        ).folded()

    def _net(self, cell: Mapping[str, Any], port: str, default: str = ONE) -> str:
        return _connected(cell, port, default, self._nets)

    def _gate(self, output: str, inputs: tuple[str, ...], function: Callable[..., bool]) -> str:
        """Add a fixed gate and return its output."""
        rows = range(1 << len(inputs))
        values = (function(*(row >> n & 1 for n in range(len(inputs)))) for row in rows)
        table = sum(bool(value) << row for row, value in zip(rows, values, strict=True))
        self._luts.append(Lut("", output, inputs, table))
        return output

    def trellis_comb(self, name: str, cell: Mapping[str, Any]) -> None:
        """Add a look-up table, its half of a carry chain, and the multiplexer behind it."""
        parameters, own = cell["parameters"], f"c{len(self._luts)}"
        mode = parameters.get("MODE", "LOGIC")
        if mode not in ("LOGIC", "CCU2"):
            raise BuildError(f"cannot simulate {name} in mode {mode}")
        table = int(parameters["INITVAL"], 2)
        inputs = tuple(self._net(cell, port) for port in "ABCD")
        place = " ".join(re.findall(r"X(\d+)/Y(\d+)/(\S+)", cell["attributes"]["NEXTPNR_BEL"])[0])
        f = self._net(cell, "F", f"{own}_f")
        plain = f if mode == "LOGIC" else f"{own}_lut"
        self._luts.append(Lut(place, plain, inputs, table))
        if mode == "CCU2":
            carry = self._net(cell, "FCI", ZERO)
            first = parameters["CCU2_INJECT1"] == "YES"
            half = self._gate(
                f"{own}_half", inputs[:2], lambda a, b: not first and table >> (a + 2 * b) & 1
            )
            self._gate(f, (plain, carry), lambda x, c: x ^ (not first and c))
            self._gate(
                self._net(cell, "FCO", f"{own}_fco"),
                (plain, half, carry),
                lambda x, h, c: c if x else h,
            )
        if cell["connections"].get("OFX"):
            if cell["connections"].get("FXA"):
                low, high = self._net(cell, "FXA"), self._net(cell, "FXB")
            else:
                low, high = f, self._net(cell, "F1")
            self._gate(
                self._net(cell, "OFX"),
                (low, high, self._net(cell, "M", ZERO)),
                lambda x, y, choose: y if choose else x,
            )

    def trellis_ff(self, name: str, cell: Mapping[str, Any]) -> None:
        """Add a flip-flop with its own reset and the one that reaches all."""
        parameters = {key: str(value).strip() for key, value in cell["parameters"].items()}
        reset = self._net(cell, "LSR", ZERO)
        modes = (parameters["CLKMUX"], parameters.get("LSRMODE", "LSR"))
        own = reset == ZERO or (parameters["SRMODE"], parameters["LSRMUX"]) == (
            "LSR_OVER_CE",
            "LSR",
        )
        if modes != ("CLK", "LSR") or not own or parameters["CEMUX"] not in ("CE", "INV", "1"):
            raise BuildError(f"cannot simulate the flip-flop {name}: {parameters}")
        if parameters["GSR"] == "ENABLED":
            reset = self._gate(f"r{len(self._luts)}", (reset, "in_reset"), lambda a, b: a or b)
        value = int(parameters["REGSET"] == "SET")
        self._flip_flops.append(
            FlipFlop(
                output=self._net(cell, "Q"),
                data=self._net(cell, "M" if parameters["SD"] == "0" else "DI"),
                enable=self._pin(cell, "CE"),
                reset=reset,
                value=value,
                start=value,
                reset_first=True,
            )
        )

    def _pin(self, cell: Mapping[str, Any], port: str) -> str:
        """Return the net behind the multiplexer of a pin: the pin, its inverse, 0 or 1."""
        chosen = str(cell["parameters"].get(f"{port}MUX", port)).strip()
        if chosen in ("0", "1"):
            return (ZERO, ONE)[int(chosen)]
        net = self._net(cell, port)
        if chosen == "INV":
            return self._gate(f"i{len(self._luts)}", (net,), lambda n: not n)
        return net

    def dp16kd(self, name: str, cell: Mapping[str, Any]) -> None:
        """Add a block RAM."""
        parameters = {key: str(value).strip() for key, value in cell["parameters"].items()}
        widths = {side: int(parameters[f"DATA_WIDTH_{side}"], 2) for side in "AB"}
        wide = 36 in widths.values()  # then A only writes, and B only reads

        def low(pin: str) -> bool:
            """Whether nothing is at a pin, which reads 1, and it is inverted."""
            return parameters[f"{pin}MUX"] == "INV" and not cell["connections"].get(pin)

        known = {"REGMODE": "NOREG", "CSDECODE": "0b000"}
        known |= {} if wide else {"WRITEMODE": "READBEFOREWRITE"}
        inputs: dict[str, tuple[str, ...]] = {}
        outputs: dict[str, tuple[str | None, ...]] = {}
        for side in "AB":
            found = {key: parameters[f"{key}_{side}"] for key in known}
            # Selected always and reset never.
            fixed = [f"{pin}{side}{n}" for pin, n in (("CS", 0), ("CS", 1), ("CS", 2), ("RST", ""))]
            if found != known or parameters[f"CLK{side}MUX"] != f"CLK{side}":
                raise BuildError(f"cannot simulate the memory {name}: {parameters}")
            if not all(map(low, fixed)):
                raise BuildError(f"cannot simulate the memory {name}: {', '.join(fixed)} not low")
            enables = ("CE",) if wide and side == "B" else ("CE", "WE")
            inputs |= {f"{pin}{side}": (self._pin(cell, f"{pin}{side}"),) for pin in enables}
            for pin, width in (("AD", 14), ("DI", 18)):
                bits = [self._pin(cell, f"{pin}{side}{n}") for n in reversed(range(width))]
                inputs[f"{pin}{side}"] = tuple(bits)
            outputs[f"DO{side}"] = tuple(
                self._net(cell, f"DO{side}{n}", "") or None for n in reversed(range(18))
            )
        if wide and not (widths == {"A": 36, "B": 36} and low("WEB")):
            raise BuildError(f"cannot simulate the memory {name}: widths {widths}, or B writes")
        contents = "".join(
            parameters.get(f"INITVAL_{n:02X}", "").replace("x", "0").zfill(320)
            for n in reversed(range(64))
        )
        sizes = {} if wide else {f"DATA_WIDTH_{side}": str(widths[side]) for side in "AB"}
        self._memories.append(
            Memory(
                model="DP16KD_36" if wide else "DP16KD",
                settings={**sizes, "INITIAL": f"20480'h{int(contents, 2):x}"},
                inputs=inputs,
                outputs=outputs,
                clocks=("CLKA", "CLKB"),
            )
        )

    def trellis_io(self, name: str, cell: Mapping[str, Any]) -> None:
        """Add a pad; the clock's is the clock itself."""
        pad = self._net(cell, "B")
        if cell["parameters"]["DIR"] == "OUTPUT":
            # T is high to float, and a pad that floats is high.
            self._gate(pad, (self._net(cell, "I"), self._net(cell, "T", ZERO)), lambda i, t: i or t)
        elif pad != "clk":
            self._aliases.append(Alias(self._net(cell, "O"), pad))

    def dcca(self, name: str, cell: Mapping[str, Any]) -> None:
        """Pass over the clock buffer: all flip-flops have the one clock."""

    def gsr(self, name: str, cell: Mapping[str, Any]) -> None:
        """Pass over the reset that reaches all flip-flops: they have it already."""
