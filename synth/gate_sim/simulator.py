"""Gate-level simulation of a mapped netlist: thousands of independent runs at once, with numpy.

Every net holds one 64-bit word for 64 runs (lanes), and a gate is its Liberty function on whole
arrays of them. Delays are zero, so a net changes at most once a clock (no glitches). The value of a
clock net is whether it has a pulse at the coming edge: the clock itself always, one behind a clock
gate where the gate is enabled, since the gate's latch holds at the edge what stood before it. All
flip-flops whose clock has a pulse move together. Registers start from random bits, so that a
reset which does not reach everything it should is seen.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts, Stream
from m2xfp.synth.flow.liberty import Cell, compiled_function
from m2xfp.synth.flow.pdk import Pdk
from m2xfp.synth.flow.yosys import Netlist, SynthesisError
from m2xfp.tb.vectors import TestVectors

__all__ = [
    "Batch",
    "LevelizedNetlist",
    "MismatchError",
    "Played",
    "function_of",
    "pack_bits",
    "play",
    "play_ports",
    "unpack_bits",
]

Words = NDArray[np.uint64]
ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
ZERO, ONE, UNCONNECTED = 0, 1, 2  # nets that every netlist has
RESET_CLOCKS = 4


class MismatchError(AssertionError):
    """The netlist does not do what the golden model says."""


def function_of(expression: str) -> Callable[[Mapping[str, Any]], Any]:
    """Return a Liberty function as a Python function of words by pin name."""
    code, names = compiled_function(expression)
    constants = {"_ZERO": np.uint64(0), "_ONE": ALL, "__builtins__": {}}
    return lambda pins: eval(code, constants, {f"_{i}": pins[n] for i, n in enumerate(names)})


@dataclass(frozen=True)
class Batch:
    """All instances of one cell.

    Members
    -------
    cell
        The cell.
    names
        Instance names.
    nets
        Net of each instance by pin, int [instances].
    """

    cell: Cell
    names: tuple[str, ...]
    nets: dict[str, NDArray[np.int64]]

    def __len__(self) -> int:
        """Return the number of instances."""
        return len(self.names)

    @cached_property
    def clock(self) -> str:
        """Name of the clock pin of flip-flops and clock gates, empty for other cells."""
        if gate := self.cell.clock_gate:
            return gate.clock
        return self.state[2] if self.cell.is_flop else ""

    @cached_property
    def gated(self) -> str:
        """Name of the pin where a clock gate gives the gated clock, empty for other cells."""
        gate = self.cell.clock_gate
        return gate.gated if gate else ""

    @cached_property
    def functions(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        """Function of each output pin; of a flip-flop in terms of its state names."""
        if gate := self.cell.clock_gate:
            enable = f"{gate.enable} | {gate.test}" if gate.test else gate.enable
            return {gate.gated: function_of(f"{gate.clock} & ({enable})")}
        return {
            name: function_of(self.cell.pins[name].function)
            for name in self.cell.outputs
            if name in self.nets
        }

    @cached_property
    def state(self) -> tuple[str, str, str, Callable[[Mapping[str, Any]], Any]]:
        """Names of a flip-flop's state, of its inverse and of the clock pin, and the next state.

        Raises
        ------
        SynthesisError
            It is not a flip-flop on the rising edge.
        """
        groups = list(self.cell.group.of("ff"))
        whole = len(groups) == 1 and {"clocked_on", "next_state"} <= groups[0].values.keys()
        if not whole or len(groups[0].arguments) < 2:
            raise SynthesisError(
                f"{self.cell.name}: not one flip-flop with a state, its inverse, clocked_on and "
                "next_state"
            )
        (group,) = groups
        clock = group.values["clocked_on"].strip("() ")
        if clock not in self.cell.pins:
            raise SynthesisError(
                f"{self.cell.name}: only flip-flops on the rising edge can be simulated"
            )
        name, inverse = group.arguments[:2]
        return name, inverse, clock, function_of(group.values["next_state"])

    @cached_property
    def asynchronous(self) -> list[Callable[[Mapping[str, Any]], Any]]:
        """What sets or clears a flip-flop without a clock."""
        (group,) = self.cell.group.of("ff")
        return [function_of(group.values[k]) for k in ("clear", "preset") if k in group.values]


class LevelizedNetlist:
    """A mapped netlist in the order of evaluation.

    Parameters
    ----------
    netlist, pdk
        From ``synthesize``, flattened.

    Members
    -------
    nets
        Number of nets.
    ports
        Net of each bit by port name, lowest bit first.
    inputs, outputs
        Names of the ports.
    batches
        All instances by cell name.
    order
        (cell name, indices of instances) for all gates, each after those that drive it.
    clock
        Net of the clock, None without flip-flops.
    clocks
        That net and those behind clock gates.

    Raises
    ------
    SynthesisError
        The netlist has a loop, several clocks, a gate in the clock that is no integrated clock
        gate, or a cell without function.
    """

    def __init__(self, netlist: Netlist, pdk: Pdk) -> None:
        module = json.loads(netlist.json.read_text())["modules"][netlist.top]
        numbers: dict[int | str, int] = {"0": ZERO, "1": ONE, "x": ZERO, "z": ZERO}

        def net(bit: int | str) -> int:
            return numbers.setdefault(bit, len(numbers) - 1)

        self.ports = {
            name: np.array([net(bit) for bit in port["bits"]])
            for name, port in module["ports"].items()
        }
        self.inputs = tuple(n for n, p in module["ports"].items() if p["direction"] == "input")
        self.outputs = tuple(n for n, p in module["ports"].items() if p["direction"] == "output")
        instances: dict[str, list[tuple[str, dict[str, int]]]] = defaultdict(list)
        for name, cell in sorted(module["cells"].items()):
            nets = {
                pin: net(bits[0]) if bits else UNCONNECTED
                for pin, bits in cell["connections"].items()
            }
            instances[cell["type"]].append((name, nets))
        self.batches: dict[str, Batch] = {}
        for kind, rows in sorted(instances.items()):
            cell = pdk.library.cells[kind]
            pins = (*cell.inputs, *cell.outputs)
            self.batches[kind] = Batch(
                cell,
                tuple(name for name, _ in rows),
                {pin: np.array([nets.get(pin, UNCONNECTED) for _, nets in rows]) for pin in pins},
            )
        self._netnames: dict[str, list[int]] = {
            name: [net(bit) for bit in entry["bits"]] for name, entry in module["netnames"].items()
        }
        self.nets = len(numbers) - 1
        self.clock, self.clocks = self._clocks()
        self.order = tuple(self._levels())

    def names(self) -> dict[str, int]:
        """Return the net of each named bit: ``name`` for a single one, else ``name[index]``."""
        return {
            name if len(bits) == 1 else f"{name}[{index}]": bit
            for name, bits in self._netnames.items()
            for index, bit in enumerate(bits)
        }

    def _nets_of(self, pin_of: Callable[[Batch], str]) -> frozenset[int]:
        """Return the nets on one pin of each cell that has it."""
        return frozenset(
            int(net)
            for batch in self.batches.values()
            if (pin := pin_of(batch))
            for net in batch.nets[pin]
        )

    def _clocks(self) -> tuple[int | None, list[int]]:
        gated = self._nets_of(lambda batch: batch.gated)
        clocks = self._nets_of(lambda batch: batch.clock)
        if len(clocks - gated) > 1:
            raise SynthesisError("flip-flops on several clocks, or behind a gate in the clock")
        for kind, batch in self.batches.items():
            for pin in batch.cell.inputs:
                if pin != batch.clock and not clocks.isdisjoint(batch.nets[pin]):
                    raise SynthesisError(f"pin {pin} of a {kind} reads a clock as data")
        return next(iter(clocks - gated), None), sorted(clocks)

    def _levels(self) -> Iterator[tuple[str, NDArray[np.int64]]]:
        level = np.full(self.nets, -1, np.int64)
        level[[ZERO, ONE, UNCONNECTED]] = 0
        for name in self.inputs:
            level[self.ports[name]] = 0
        waiting: dict[str, NDArray[np.int64]] = {}
        for kind, batch in self.batches.items():
            if batch.cell.is_flop:
                for pin in batch.cell.outputs:
                    level[batch.nets[pin]] = 0
            else:
                waiting[kind] = np.arange(len(batch))
        while waiting:
            ready: list[tuple[str, NDArray[np.int64]]] = []
            for kind, indices in waiting.items():
                batch = self.batches[kind]
                known = np.ones(len(indices), bool)
                for pin in batch.cell.inputs:
                    known &= level[batch.nets[pin][indices]] >= 0
                if known.any():
                    ready.append((kind, indices[known]))
            if not ready:
                kind, indices = next(iter(waiting.items()))
                raise SynthesisError(f"a loop or an undriven net at {self.batches[kind].names[0]}")
            for kind, indices in ready:
                for pin in self.batches[kind].cell.outputs:
                    level[self.batches[kind].nets[pin][indices]] = 0
                rest = np.setdiff1d(waiting[kind], indices, assume_unique=True)
                if len(rest):
                    waiting[kind] = rest
                else:
                    del waiting[kind]
            yield from ready

    def settle(self, values: Words) -> None:
        """Evaluate all gates on ``values``, uint64 [nets, words], in place."""
        if self.clock is not None:
            values[self.clock] = ALL
        for kind, indices in self.order:
            batch = self.batches[kind]
            pins = {pin: values[batch.nets[pin][indices]] for pin in batch.cell.inputs}
            for pin, function in batch.functions.items():
                values[batch.nets[pin][indices]] = function(pins)

    def set_flops(self, values: Words, states: Mapping[str, Words]) -> None:
        """Drive the outputs of all flip-flops with their states, by cell name."""
        for kind, state in states.items():
            batch = self.batches[kind]
            name, inverse, _, _ = batch.state
            for pin, function in batch.functions.items():
                values[batch.nets[pin]] = function({name: state, inverse: ~state})

    def next_states(self, values: Words, states: Mapping[str, Words]) -> dict[str, Words]:
        """Return the states after a rising clock edge.

        Raises
        ------
        SynthesisError
            A flip-flop is set or cleared without a clock: libraries that have only such flip-flops
            are used with these inputs tied off.
        """
        following = {}
        for kind, state in states.items():
            batch = self.batches[kind]
            name, inverse, clock, function = batch.state
            pins = {pin: values[batch.nets[pin]] for pin in batch.cell.inputs}
            if any(np.any(active(pins)) for active in batch.asynchronous):
                raise SynthesisError(f"a {kind} is set or cleared without a clock")
            moved = function(pins | {name: state, inverse: ~state}) ^ state
            following[kind] = state ^ (moved & pins[clock])
        return following


def pack_bits(bits: NDArray[Any]) -> Words:
    """Pack bool [lanes, n] to uint64 [n, lanes / 64]; lane 0 is bit 0 of word 0."""
    packed = np.packbits(np.ascontiguousarray(bits.T), axis=1, bitorder="little")
    return packed.view("<u8").astype(np.uint64, copy=False)


def unpack_bits(words: Words) -> NDArray[np.uint8]:
    """Undo ``pack_bits``: uint64 [n, lanes / 64] to 0 and 1 [lanes, n]."""
    rows = np.ascontiguousarray(words).astype("<u8", copy=False).view(np.uint8)
    return np.ascontiguousarray(np.unpackbits(rows, axis=1, bitorder="little").T)


@dataclass(frozen=True)
class Played:
    """A gate-level run that gave what the golden model gives.

    Members
    -------
    groups
        Pieces of the vectors that were compared.
    clocks
        Clocks until the last lane was done, reset apart.
    history
        Settled value of each net in consecutive clocks of full activity, uint64
        [clocks, nets, words]; at most the length asked for.
    window_groups
        Groups whose worth of beats the input with most of them took in the transitions of
        ``history``.
    """

    groups: int
    clocks: int
    history: Words
    window_groups: float


def play_ports(gates: LevelizedNetlist, vectors: TestVectors, lanes: int) -> Played:
    """Give a netlist without flip-flops a word a clock in every lane, and compare all outputs.

    Parameters
    ----------
    gates
        The netlist.
    vectors
        Words of its ports; the first lane gets the first of them, and so on.
    lanes
        A multiple of 64 that divides the words.

    Raises
    ------
    MismatchError
        An output differs.
    """
    clocks = vectors.groups // lanes

    def by_lane(data: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
        """Return bits [clocks, lanes, width]."""
        bits = np.unpackbits(data, axis=1, count=width, bitorder="little")
        return bits.reshape(lanes, clocks, width).swapaxes(0, 1)

    given, wanted, compared = {}, {}, {}
    for name, words in vectors.inputs.items():
        given[name] = by_lane(words.data, len(gates.ports[name])).astype(bool)
    for name, words in vectors.outputs.items():
        wanted[name] = by_lane(words.data, len(gates.ports[name]))
        mask = vectors.compared.get(name, np.full_like(words.data, 0xFF))
        compared[name] = by_lane(mask, len(gates.ports[name]))
    values = np.zeros((gates.nets, lanes // 64), np.uint64)
    values[ONE] = ALL
    history = []
    for clock in range(clocks):
        for name, bits in given.items():
            values[gates.ports[name]] = pack_bits(bits[clock])
        gates.settle(values)
        for name, expected in wanted.items():
            found = unpack_bits(values[gates.ports[name]])
            wrong = ((found ^ expected[clock]) & compared[name][clock]).any(axis=1)
            if wrong.any():
                lane = int(np.argmax(wrong))
                raise MismatchError(
                    f"port {name}, clock {clock}, lane {lane}: {_hex(found[lane])}, expected "
                    f"{_hex(expected[clock, lane])}"
                )
        history.append(values.copy())
    return Played(clocks * lanes, clocks, np.array(history), float((clocks - 1) * lanes))


def _hex(bits: NDArray[np.uint8]) -> str:
    return hex(int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little"))


class _Side:
    """One stream of all lanes: beats to give or to expect, and how far each lane is."""

    def __init__(self, stream: Stream, vectors: TestVectors, lanes: int) -> None:
        beats = (vectors.inputs if stream.is_input else vectors.outputs)[stream.name]
        self.stream = stream
        self.per_lane = len(beats) // lanes
        self.data = beats.data.reshape(lanes, self.per_lane, stream.bytes)
        last = np.zeros(len(beats), bool) if beats.last is None else beats.last
        self.last = last.reshape(lanes, self.per_lane)
        self.position = np.zeros(lanes, np.int64)
        self.active = np.zeros(lanes, bool)

    @property
    def left(self) -> NDArray[np.bool_]:
        """Lanes with beats to come."""
        return self.position < self.per_lane

    def current(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return each lane's present beat; of a lane that is done its last."""
        lane = np.arange(len(self.position))
        at = np.minimum(self.position, self.per_lane - 1)
        return self.data[lane, at], self.last[lane, at]


def play(
    gates: LevelizedNetlist,
    vectors: TestVectors,
    facts: Facts,
    *,
    words: int = 16,
    stall: float = 0.0,
    seed: int = 0,
    window: int = 0,
    patience: int = 512,
) -> Played:
    """Play vectors through the netlist, 64 ``words`` parts of them at once, and compare all beats.

    Parameters
    ----------
    gates, facts
        The netlist, and the streams of its ports.
    vectors
        Beats in and out; groups that do not fill all lanes equally are left out.
    words
        Lanes over 64.
    stall
        Probability that a stream pauses in a clock, for each lane on its own.
    seed
        Of pauses and of the registers' contents before reset.
    window
        Clocks of history to record, from when every lane has delivered a beat and while every lane
        has input left.
    patience
        Clocks without any transfer after which a lane that is not done is hung.

    Raises
    ------
    ValueError
        The vectors have fewer groups than lanes.
    MismatchError
        A beat differs, comes unasked, or never comes.
    """
    lanes = 64 * words
    if vectors.groups < lanes:
        raise ValueError(f"there are {vectors.groups} groups; {lanes} lanes need at least one each")
    vectors = vectors.part(0, vectors.groups // lanes * lanes)
    rng = np.random.default_rng(seed)
    values = np.zeros((gates.nets, words), np.uint64)
    values[ONE] = ALL
    states: dict[str, Words] = {
        kind: rng.integers(0, 1 << 64, (len(batch), words), np.uint64)
        for kind, batch in gates.batches.items()
        if batch.cell.is_flop
    }
    sources = [_Side(stream, vectors, lanes) for stream in facts.inputs]
    sinks = [_Side(stream, vectors, lanes) for stream in facts.outputs]

    def port(name: str) -> NDArray[np.int64]:
        return gates.ports[name]

    def clock() -> None:
        nonlocal states
        states = gates.next_states(values, states)
        gates.set_flops(values, states)

    gates.set_flops(values, states)
    values[port("rst")] = ALL
    for _ in range(RESET_CLOCKS):
        gates.settle(values)
        clock()
    values[port("rst")] = 0

    busiest = max(sources, key=lambda side: side.per_lane)
    history: list[Words] = []
    accepted = idle = clocks = 0
    while any(side.left.any() for side in (*sources, *sinks)):
        for side in sources:
            # A beat once offered stays; whether the next is offered is a new throw.
            side.active = side.left & (side.active | (rng.random(lanes) >= stall))
            data, last = side.current()
            tdata, tvalid, _, tlast = map(port, side.stream.ports)
            bits = np.unpackbits(data, axis=1, bitorder="little")[:, : len(tdata)]
            values[tdata] = pack_bits(bits.astype(bool))
            values[tvalid] = pack_bits(side.active[:, None])
            values[tlast] = pack_bits(last[:, None])
        for side in sinks:
            side.active = rng.random(lanes) >= stall
            values[port(side.stream.ports[2])] = pack_bits(side.active[:, None])
        gates.settle(values)
        full = all((side.position > 0).all() for side in sinks) and all(
            side.left.all() for side in sources
        )
        if full and len(history) < window:
            history.append(values.copy())
            recording = True
        else:
            recording = False
        moved = 0
        for side in sources:
            ready = unpack_bits(values[port(side.stream.ports[2])])[:, 0].astype(bool)
            taken = side.active & ready
            if recording and side is busiest and len(history) > 1:
                accepted += int(taken.sum())
            side.active &= ~taken
            side.position += taken
            moved += int(taken.sum())
        for side in sinks:
            moved += _take(side, values, port, clocks)
        idle = 0 if moved else idle + 1
        if idle > patience:
            counts = [f"{s.stream.name}: {int(s.position.min())} of {s.per_lane}" for s in sinks]
            raise MismatchError(f"{facts.top}: nothing moved for {patience} clocks; {counts}")
        clock()
        clocks += 1
    return Played(
        groups=vectors.groups,
        clocks=clocks,
        history=np.array(history, np.uint64).reshape(-1, gates.nets, words),
        window_groups=accepted / facts.beats_per_group,
    )


def _take(side: _Side, values: Words, port: Callable[[str], NDArray[np.int64]], clocks: int) -> int:
    """Compare what an output stream delivers in this clock; return in how many lanes it did."""
    tdata, tvalid, _, tlast = map(port, side.stream.ports)
    taken = side.active & unpack_bits(values[tvalid])[:, 0].astype(bool)
    if not taken.any():
        return 0
    found = np.packbits(unpack_bits(values[tdata]), axis=1, bitorder="little")
    last = unpack_bits(values[tlast])[:, 0].astype(bool)
    data, expected_last = side.current()
    wrong = taken & (~side.left | (found != data).any(axis=1) | (last != expected_last))
    if wrong.any():
        lane = int(np.argmax(wrong))
        raise MismatchError(
            f"stream {side.stream.name}, clock {clocks}, lane {lane}, beat "
            f"{int(side.position[lane])} of {side.per_lane}: {found[lane].tobytes().hex()} "
            f"last {int(last[lane])}, expected {data[lane].tobytes().hex()} "
            f"last {int(expected_last[lane])}"
        )
    side.position += taken
    return int(taken.sum())
