"""Netlists of built chips: from the bitstream of an iCE40, from the routed netlist of an ECP5.

icestorm turns an iCE40 bitstream into Verilog that knows nothing of the design: LUTs, flip-flops,
carries and memories at their places on the die. It is read here, and a line that is not understood
is an error: nothing is passed over. For ECP5 there is no such way back, so the netlist is the one
that nextpnr routed and wrote.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from m2xfp.errors import MissingToolError
from m2xfp.files import write_atomic
from m2xfp.fpga.check.netlist import ONE, ZERO, Alias, Carry, FlipFlop, Lut, Memory, Netlist
from m2xfp.fpga.flow.bitstream import BuildError, find_tool
from m2xfp.fpga.flow.boards import Board

__all__ = [
    "SOURCES",
    "cell_names",
    "parse_icebox",
    "parse_routed",
    "read_back",
    "unpack_ice40",
]

SOURCES = {"ice40": "bitstream", "ecp5": "routed netlist"}
"""What is read back of a family's chips."""


# What the ports are called in the netlist -> pattern of what amaranth-boards calls them.
PORTS = {
    "clk": r"clk\d+_0__io",
    "rx": "uart_0__rx__io",
    "tx": "uart_0__tx__io",
    "led": "led_0__io",
}


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


def unpack_ice40(board: Board, folder: Path) -> Netlist:
    """Return the netlist of the bitstream ``top.bin`` in ``folder``.

    Which pin is which comes from the constraints there. All else comes from the bitstream.

    Raises
    ------
    MissingToolError
        icebox_vlog is not installed.
    BuildError
        It failed, or the bitstream uses something that `Netlist` has not.
    """
    if shutil.which("icebox_vlog") is None:
        raise MissingToolError(
            "icebox_vlog (reads iCE40 bitstreams)", "sudo apt-get install fpga-icestorm"
        )
    pins = (folder / "top.pcf").read_text()
    for short, name in PORTS.items():
        pins = re.sub(rf"\b{name}\b", short, pins)
    write_atomic(folder / "pins.pcf", pins)
    unpacker, _ = find_tool("iceunpack")
    package = board.device[board.device.index("--package") + 1]
    text = ""
    for command in (
        (unpacker, "top.bin", "unpacked.asc"),
        ("icebox_vlog", "-s", "-n", "chip", "-d", package, "-p", "pins.pcf", "unpacked.asc"),
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
        text = done.stdout
    return parse_icebox(text)


_CONSTANTS = {"1'b0": ZERO, "1'b1": ONE, "0": ZERO, "1": ONE}

# Statements of icebox_vlog, blanks collapsed.
_LUT = re.compile(r"assign (\w+) = /\* LUT (.+?) \*/ (.+)")
_CARRY = re.compile(
    r"assign (\w+) = /\* CARRY .+? \*/ \((\S+) & (\S+)\) \| \(\(\S+ \| \S+\) & (\S+)\)"
)
_THROUGH = re.compile(r"/\* FF .+? \*/ assign (\w+) = (\S+)")
_FLIP_FLOP = re.compile(
    r"/\* FF .+? \*/ always @\(posedge clk\) if \((\S+)\) (\w+) <= (\S+) \? 1'b([01]) : (\S+)"
)
_PAD = re.compile(r"(?:// .*? )?assign (tx|led) = (\S+) \? (\S+) : 1'bz")
_CONSTANT = re.compile(r"assign (\w+) = ([01])")
_ALIAS = re.compile(r"assign (\w+) = (\w+)")
_MEMORY = re.compile(r"(SB_RAM40_4K) #\((.*)\) \w+ \((.*)\)")
_IGNORED = re.compile(r"(module chip \(.*\)|wire .*|reg .*)")


def parse_icebox(text: str) -> Netlist:
    """Read what ``icebox_vlog -s`` writes; BuildError for a statement that it does not know."""
    luts, flip_flops, carries, aliases, memories = [], [], [], [], []
    body = re.sub(r"^//.*$", "", text, flags=re.MULTILINE).replace("endmodule", "")
    for statement in body.split(";"):
        line = " ".join(statement.split())
        if not line or _IGNORED.fullmatch(line):
            continue
        if m := _LUT.fullmatch(line):
            luts.append(_lut(" ".join(m[2].split()), m[1], m[3]))
        elif m := _CARRY.fullmatch(line):
            carries.append(Carry(m[1], (_net(m[2]), _net(m[3]), _net(m[4]))))
        elif m := _FLIP_FLOP.fullmatch(line):
            flip_flops.append(
                FlipFlop(
                    output=m[2],
                    data=_net(m[5]),
                    enable=_net(m[1]),
                    reset=_net(m[3]),
                    value=int(m[4]),
                    start=0,
                    reset_first=False,
                )
            )
        elif m := _MEMORY.fullmatch(line):
            memories.append(_memory(m[1], m[2], m[3]))
        elif m := _PAD.fullmatch(line):
            # A pad that is not driven is pulled up.
            luts.append(_multiplexer(m[1], _net(m[2]), _net(m[3])))
        elif m := _THROUGH.fullmatch(line) or _CONSTANT.fullmatch(line) or _ALIAS.fullmatch(line):
            aliases.append(Alias(m[1], _net(m[2])))
        else:
            raise BuildError(f"cannot read back what icebox_vlog calls {line[:200]!r}")
    netlist = Netlist(
        tuple(luts), tuple(flip_flops), tuple(carries), tuple(aliases), tuple(memories)
    ).folded()
    return replace(netlist, memories=tuple(map(_still, netlist.memories)))


def _net(text: str) -> str:
    return _CONSTANTS.get(text, text)


def _multiplexer(output: str, enable: str, data: str) -> Lut:
    return Lut("", output, (enable, data), 0b1101)


def _lut(place: str, output: str, expression: str) -> Lut:
    """Return the LUT of an expression of constants, ``!`` and ``? :``."""
    tokens = re.findall(r"1'b[01]|\w+|[()?:!]", expression)
    inputs = tuple(sorted({token for token in tokens if token[0].isalpha()}))
    rows = 1 << len(inputs)
    everything = (1 << rows) - 1
    columns = {
        net: sum(1 << row for row in range(rows) if row >> n & 1) for n, net in enumerate(inputs)
    }
    columns |= {"1'b0": 0, "1'b1": everything}
    at = 0

    def value() -> int:
        nonlocal at
        token = tokens[at]
        at += 1
        if token == "!":
            return everything ^ value()
        if token != "(":
            return columns[token]
        condition = value()
        at += 1  # ?
        high = value()
        at += 1  # :
        low = value()
        at += 1  # )
        return (condition & high) | (everything & ~condition & low)

    table = value()
    if at != len(tokens):
        raise BuildError(f"cannot read back the LUT {place}: {expression}")
    return Lut(place, output, inputs, table)


def _memory(model: str, parameters: str, ports: str) -> Memory:
    connected = dict(re.findall(r"\.(\w+)\((?:\{(.*?)\}|.*?)\)", ports))
    single = dict(re.findall(r"\.(\w+)\(([^{}]*?)\)", ports))
    nets = {
        port: tuple(_net(net) for net in (text or single[port]).split(", "))
        for port, text in connected.items()
    }
    clocks = [port for port in ("RCLK", "WCLK") if nets[port] == ("clk",)]
    # The write clock of a memory that is only read hangs on some constant; `_still` checks it.
    return Memory(
        model=model,
        settings=dict(re.findall(r"\.(\w+)\(([^)]*)\)", parameters)),
        inputs={port: value for port, value in nets.items() if port not in (*clocks, "RDATA")},
        outputs={"RDATA": tuple(None if net.startswith("open") else net for net in nets["RDATA"])},
        clocks=tuple(clocks),
    )


def _still(memory: Memory) -> Memory:
    """Stop the clocks that are constant; BuildError for one that is another net."""
    others = {port: memory.inputs[port] for port in ("RCLK", "WCLK") if port in memory.inputs}
    if not set(others.values()) <= {(ZERO,), (ONE,)}:
        raise BuildError(f"cannot read back a memory with the clocks {others}")
    inputs = {port: nets for port, nets in memory.inputs.items() if port not in others}
    return replace(memory, inputs=inputs, stopped=tuple(others))


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
