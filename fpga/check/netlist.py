"""A netlist of LUTs, flip-flops, carries and memories, whatever chip it came from.

It is written as Verilog for several machines at once: each net is a word with a bit, a lane, for
each machine. In one run, lane 0 computes without a fault and each other lane with one of its own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

__all__ = [
    "ONE",
    "PORTS",
    "ZERO",
    "Alias",
    "Carry",
    "Fault",
    "FlipFlop",
    "Lut",
    "Memory",
    "Netlist",
]

ZERO, ONE = "zero", "one"
"""Names of the constant nets."""

PORTS = {
    "clk": r"clk\d+_0__io",
    "rx": "uart_0__rx__io",
    "tx": "uart_0__tx__io",
    "led": "led_0__io",
}
"""What the ports are called in the netlist -> pattern of what amaranth-boards calls them."""


@dataclass(frozen=True)
class Lut:
    """A look-up table.

    Members
    -------
    place
        Where it is on the die. Empty for what is no look-up table in the chip, but a fixed
        multiplexer or gate that is written as one; faults are not put there.
    output
        Net.
    inputs
        Nets that the output depends on.
    table
        Bit ``sum(value of input i << i)`` is the output for those values.
    """

    place: str
    output: str
    inputs: tuple[str, ...]
    table: int


@dataclass(frozen=True)
class FlipFlop:
    """A flip-flop on the rising edge of the clock.

    Members
    -------
    output, data, enable, reset
        Nets. Where ``enable`` is low nothing changes, unless ``reset_first``.
    value
        Taken while ``reset`` is high.
    start
        Value after configuration.
    reset_first
        The reset needs no enable.
    """

    output: str
    data: str
    enable: str
    reset: str
    value: int
    start: int
    reset_first: bool


@dataclass(frozen=True)
class Carry:
    """A carry cell: the majority of three nets."""

    output: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Alias:
    """A net that follows another one."""

    output: str
    source: str


@dataclass(frozen=True)
class Memory:
    """A memory cell, known by its Verilog model.

    Members
    -------
    model
        Name of the module.
    settings
        As Verilog text.
    inputs, outputs
        Port -> nets, most significant first; None where nothing is connected.
    clocks
        Ports that have the clock.
    stopped
        Clock ports that never change: of a memory that is only read.
    """

    model: str
    settings: Mapping[str, str]
    inputs: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, tuple[str | None, ...]]
    clocks: tuple[str, ...]
    stopped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fault:
    """One wrong look-up table.

    Members
    -------
    lut
        Which.
    entry
        The bit of its table that is inverted; None inverts the whole table.
    """

    lut: Lut
    entry: int | None

    def __str__(self) -> str:
        if self.entry is None:
            return f"LUT {self.lut.place}, inverted"
        bits = ", ".join(f"{net}={self.entry >> n & 1}" for n, net in enumerate(self.lut.inputs))
        return f"LUT {self.lut.place}, bit for {bits}"


@dataclass(frozen=True)
class Netlist:
    """A chip between ``rx`` on one side, ``tx`` and ``led`` on the other, with one clock.

    Every net is named like a Verilog identifier; see `ZERO` and `ONE`.
    """

    luts: tuple[Lut, ...]
    flip_flops: tuple[FlipFlop, ...]
    carries: tuple[Carry, ...] = ()
    aliases: tuple[Alias, ...] = ()
    memories: tuple[Memory, ...] = field(default=())

    @cached_property
    def _reads(self) -> dict[str, tuple[str, ...]]:
        """Net -> nets that it is computed from, in this clock or the last."""
        reads: dict[str, tuple[str, ...]] = {}
        reads |= {lut.output: lut.inputs for lut in self.luts}
        reads |= {ff.output: (ff.data, ff.enable, ff.reset) for ff in self.flip_flops}
        reads |= {carry.output: carry.inputs for carry in self.carries}
        reads |= {alias.output: (alias.source,) for alias in self.aliases}
        for memory in self.memories:
            sources = tuple(net for nets in memory.inputs.values() for net in nets)
            reads |= {net: sources for nets in memory.outputs.values() for net in nets if net}
        return reads

    def folded(self) -> "Netlist":
        """Return the netlist with constants in place of the nets that are constant."""
        constant = {ZERO: 0, ONE: 1}
        luts, aliases = list(self.luts), list(self.aliases)
        known = 0
        while known < len(constant):
            known = len(constant)
            luts = [_restricted(lut, constant) for lut in luts]
            constant |= {lut.output: lut.table for lut in luts if not lut.inputs}
            constant |= {a.output: constant[a.source] for a in aliases if a.source in constant}

        def net(name: str) -> str:
            return (ZERO, ONE)[constant[name]] if name in constant else name

        def nets(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(map(net, names))

        return Netlist(
            tuple(luts),
            tuple(
                replace(ff, data=net(ff.data), enable=net(ff.enable), reset=net(ff.reset))
                for ff in self.flip_flops
            ),
            tuple(replace(c, inputs=nets(c.inputs)) for c in self.carries),
            tuple(Alias(alias.output, net(alias.source)) for alias in aliases),
            tuple(
                replace(m, inputs={port: nets(given) for port, given in m.inputs.items()})
                for m in self.memories
            ),
        )

    def used_luts(self) -> list[Lut]:
        """Return the LUTs that ``tx`` can depend on, through any number of clocks.

        Left out are constant ones, fixed gates, and what feeds nothing or the lamp alone.
        """
        seen, todo = {"tx"}, ["tx"]
        while todo:
            new = set(self._reads.get(todo.pop(), ())) - seen
            seen |= new
            todo += new
        return [lut for lut in self.luts if lut.place and lut.inputs and lut.output in seen]

    def possible_faults(self, *, whole: bool) -> list[Fault]:
        """Return all faults: of whole tables, or of each bit that the inputs can name."""
        return [
            Fault(lut, entry)
            for lut in self.used_luts()
            for entry in ((None,) if whole else range(1 << len(lut.inputs)))
        ]

    def is_possible(self, fault: Fault, limit: int = 18) -> bool:
        """Whether some state of flip-flops, memories and ``rx`` selects the wrong bit.

        Decided by trying all values of the registers that the LUT's inputs depend on in this clock.
        More than ``limit`` of them are too many, and count as possible.
        """
        if fault.entry is None:
            return True
        logic: dict[str, Lut | Carry | Alias] = {
            cell.output: cell for cells in (self.luts, self.carries, self.aliases) for cell in cells
        }
        order: dict[str, None] = {}  # nets of the cone, each after those it is computed from
        todo = [(net, False) for net in fault.lut.inputs]
        while todo:
            net, done = todo.pop()
            if done:
                order[net] = None
            elif net not in order:
                todo.append((net, True))
                if net in logic:
                    todo += [(source, False) for source in self._reads[net]]
        roots = [net for net in order if net not in logic and net not in (ZERO, ONE)]
        if len(roots) > limit:
            return True
        states = 1 << len(roots)
        everything = (1 << states) - 1
        # A net's value in every state, as the bits of one number.
        value = {ZERO: 0, ONE: everything}
        for n, net in enumerate(roots):
            block = ((1 << (1 << n)) - 1) << (1 << n)
            value[net] = sum(block << at for at in range(0, states, 2 << n))
        for net in order:
            match logic.get(net):
                case Lut(inputs=inputs, table=table):
                    value[net] = 0
                    for row in range(1 << len(inputs)):
                        if table >> row & 1:
                            value[net] |= _selected(inputs, row, value, everything)
                case Carry(inputs=inputs):
                    a, b, c = (value[source] for source in inputs)
                    value[net] = (a & b) | ((a | b) & c)
                case Alias(source=source):
                    value[net] = value[source]
        return _selected(fault.lut.inputs, fault.entry, value, everything) != 0

    def verilog(self, lanes: int = 1, faults: Sequence[Fault] = ()) -> str:
        """Return the module ``chip`` with ``lanes`` machines.

        ``rx`` is common to all lanes. With faults, the input ``batch`` counts through groups of
        ``lanes - 1`` of them, the first in lane 1; the output ``hit`` is high in the lanes whose
        fault makes its LUT wrong now.
        """
        word = f"[{lanes - 1}:0]"
        nets = sorted(set(self._reads) - {"tx", "led"})
        lines = [
            f"module chip (input clk, input rx, input [15:0] batch, output {word} tx,",
            f"  output {word} led, output {word} hit);",
            f"wire {word} {ZERO} = {{{lanes}{{1'b0}}}};",
            f"wire {word} {ONE} = {{{lanes}{{1'b1}}}};",
            f"wire {word} rx_all = {{{lanes}{{rx}}}};",
        ]
        starts = {ff.output: ff.start for ff in self.flip_flops}
        for net in nets:
            if net in starts:
                lines.append(f"reg {word} {net} = {{{lanes}{{1'b{starts[net]}}}}};")
            else:
                lines.append(f"wire {word} {net};")
        hits = dict(self._hits(lanes, faults))
        lines += [f"wire {word} {name} = {value};" for name, value in hits.items()]
        lines.append(f"assign hit = {' | '.join(hits) or ZERO};")
        wrong: dict[str, list[str]] = {}
        for name, fault in zip(hits, faults, strict=True):
            wrong.setdefault(fault.lut.output, []).append(name)
        for lut in self.luts:
            value = _expression(lut.inputs, lut.table)
            flips = "".join(f" ^ {name}" for name in wrong.get(lut.output, ()))
            lines.append(f"assign {lut.output} = {value}{flips};")
        for carry in self.carries:
            a, b, c = map(_net, carry.inputs)
            lines.append(f"assign {carry.output} = ({a} & {b}) | (({a} | {b}) & {c});")
        lines += [f"assign {alias.output} = {_net(alias.source)};" for alias in self.aliases]
        lines += [_flip_flop(ff) for ff in self.flip_flops]
        for number, memory in enumerate(self.memories):
            lines += _instance(number, memory, lanes)
        return "\n".join([*lines, "endmodule", ""])

    @staticmethod
    def _hits(lanes: int, faults: Iterable[Fault]) -> Iterator[tuple[str, str]]:
        for number, fault in enumerate(faults):
            batch, lane = divmod(number, lanes - 1)
            terms = [f"{{{lanes}{{batch == 16'd{batch}}}}}", f"{lanes}'d{1 << (lane + 1)}"]
            if fault.entry is not None:
                for n, net in enumerate(fault.lut.inputs):
                    terms.append(f"{'' if fault.entry >> n & 1 else '~'}{_net(net)}")
            yield f"hit_{number}", " & ".join(terms)


def _restricted(lut: Lut, constant: Mapping[str, int]) -> Lut:
    """Return a LUT without the inputs that are constant or change nothing."""
    inputs, table = lut.inputs, lut.table
    for n in reversed(range(len(inputs))):
        rows = [row for row in range(1 << len(inputs)) if not row >> n & 1]
        low = sum((table >> row & 1) << i for i, row in enumerate(rows))
        high = sum((table >> (row | 1 << n) & 1) << i for i, row in enumerate(rows))
        if inputs[n] in constant or low == high:
            table = high if constant.get(inputs[n]) else low
            inputs = inputs[:n] + inputs[n + 1 :]
    return replace(lut, inputs=inputs, table=table)


def _selected(inputs: tuple[str, ...], row: int, value: Mapping[str, int], everything: int) -> int:
    """Return the states in which ``inputs`` select a row of a table."""
    states = everything
    for n, net in enumerate(inputs):
        states &= value[net] if row >> n & 1 else everything ^ value[net]
    return states


def _net(name: str) -> str:
    return "rx_all" if name == "rx" else name


def _expression(inputs: tuple[str, ...], table: int) -> str:
    """Return Verilog for a table, one multiplexer an input, equal branches joined."""
    if not inputs:
        return ONE if table & 1 else ZERO
    half = 1 << (len(inputs) - 1)
    low = _expression(inputs[:-1], table & ((1 << half) - 1))
    high = _expression(inputs[:-1], table >> half)
    net = _net(inputs[-1])
    match low, high:
        case _ if low == high:
            return low
        case "zero", "one":
            return net
        case "one", "zero":
            return f"~{net}"
        case "zero", _:
            return f"({net} & {high})"
        case _, "zero":
            return f"(~{net} & {low})"
    return f"(({net} & {high}) | (~{net} & {low}))"


def _flip_flop(ff: FlipFlop) -> str:
    data, enable, reset = map(_net, (ff.data, ff.enable, ff.reset))
    loaded = data
    if ff.reset != ZERO:
        loaded = f"({data} | {reset})" if ff.value else f"({data} & ~{reset})"
    if ff.enable != ONE:
        active = f"({enable} | {reset})" if ff.reset_first and ff.reset != ZERO else enable
        loaded = f"({loaded} & {active}) | ({ff.output} & ~{active})"
    return f"always @(posedge clk) {ff.output} <= {loaded};"


def _instance(number: int, memory: Memory, lanes: int) -> list[str]:
    """Return the lines of a memory; its ports are arrays of words."""
    parameters = {"LANES": str(lanes), **memory.settings}
    ports = [f".{port}(clk)" for port in memory.clocks]
    ports += [f".{port}(1'b0)" for port in memory.stopped]
    for port, nets in memory.inputs.items():
        ports.append(f".{port}({{{', '.join(map(_net, nets))}}})")
    unused: list[str] = []
    for port, outputs in memory.outputs.items():
        names = []
        for net in outputs:
            names.append(net or f"unused_{number}_{len(unused)}")
            if net is None:
                unused.append(names[-1])
        ports.append(f".{port}({{{', '.join(names)}}})")
    chosen = ", ".join(f".{name}({value})" for name, value in parameters.items())
    return [
        *(f"wire [{lanes - 1}:0] {name};" for name in unused),
        f"{memory.model} #({chosen}) m{number} ({', '.join(ports)});",
    ]
