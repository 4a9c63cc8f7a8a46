"""Netlists of iCE40 chips, from the bitstream.

icestorm turns a bitstream into Verilog that knows nothing of the design: LUTs, flip-flops, carries
and memories at their places on the die. It is read here, and a line that is not understood is an
error: nothing is passed over.
"""

import re
import shutil
from dataclasses import replace
from pathlib import Path

from m2xfp.errors import MissingToolError
from m2xfp.files import write_atomic
from m2xfp.fpga.check.netlist import ONE, PORTS, ZERO, Alias, Carry, FlipFlop, Lut, Memory, Netlist
from m2xfp.fpga.flow.boards import Board
from m2xfp.fpga.flow.tools import BuildError, find_tool
from m2xfp.processes import run

__all__ = ["parse_icebox", "unpack_ice40"]


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
        done = run(command, cwd=folder, merged=False)
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
