"""Power of a mapped netlist from what its nets did in a gate-level run.

Three parts. **Switching**: half C V^2 for every transition of a net, C the capacitance of the pins
on it, and four NAND2 inputs on an output. **Internal**: the library's tables of energy a
transition, by input slew and output load, with their ``when`` conditions. **Leakage**: by the
state that each cell was in.

How the tables are read:

- An output transition is charged once. Where the tables name several inputs and more than one of
  them changed, it is the mean of their tables, weighted by how often each changed with the output.
- An input transition is charged by the group whose condition holds after it, by the group without
  condition where none does. A condition that names an output must hold before it too: where the
  output changed, the output's own table has the energy.
- A condition on the clock holds for half of the time, since the clock is high for half of it; on a
  gated clock, for half of those clocks in which it has a pulse.
- A clock gate's energy is in the tables of its clock pin where no pulse comes out, and in those of
  its output where one does. Conditions hold before a rising and after a falling edge of the clock.
- A library that gives energy for supply and ground rails (ASAP7) measures the same charge twice, on
  its way in and on its way out; the supply's figures count.

Slews come from the library's own tables, the slowest arc of each pin as in static timing. The clock
is ideal, before and behind clock gates. Not in it: glitches (delays are zero), wires, a clock tree,
and what drives the inputs.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts
from m2xfp.files import read_sealed, sources_digest, write_sealed
from m2xfp.synth.flow.liberty import Cell, Group, Library, Pin
from m2xfp.synth.flow.pdk import Pdk
from m2xfp.synth.flow.yosys import Netlist
from m2xfp.synth.gate_sim.simulator import (
    ALL,
    Batch,
    LevelizedNetlist,
    Words,
    function_of,
    play,
    play_ports,
)
from m2xfp.tb.vectors import TestVectors

__all__ = [
    "Power",
    "Table",
    "UnitPower",
    "clocks_for",
    "depth_for",
    "estimate_power",
    "lanes_for",
    "net_loads",
    "net_slews",
    "toggle_counts",
    "unit_power",
]

Floats = NDArray[np.float64]
_EDGES: tuple[str, ...] = ("rise", "fall")
_LOAD = "total_output_net_capacitance"


@dataclass(frozen=True)
class Table:
    """A Liberty table over slew and load, in the library's units.

    Members
    -------
    slews, loads
        Index values; one value where the table does not depend on it.
    values
        [slews, loads].
    """

    slews: Floats
    loads: Floats
    values: Floats

    @classmethod
    def read(cls, group: Group, library: Library) -> "Table":
        """Read a table group; its template says which index is which."""
        values = _numbers(group.lists["values"])
        template = library.templates.get(group.name)
        axes: dict[str, Floats] = {}
        for number in (1, 2, 3):
            variable = template.values.get(f"variable_{number}") if template else None
            if variable is None:
                continue
            index = f"index_{number}"
            given = group.lists.get(index) or (template.lists[index] if template else "")
            axes["load" if variable == _LOAD else "slew"] = _numbers(given)
        load_first = list(axes) == ["load", "slew"]
        slews, loads = axes.get("slew", np.zeros(1)), axes.get("load", np.zeros(1))
        shape = (len(loads), len(slews)) if load_first else (len(slews), len(loads))
        table = values.reshape(shape)
        return cls(slews, loads, table.T if load_first else table)

    def at(self, slew: Floats, load: Floats) -> Floats:
        """Interpolate bilinearly; beyond the ends the outermost segments go on."""
        i, u = _segment(self.slews, slew)
        j, v = _segment(self.loads, load)
        i1 = np.minimum(i + 1, len(self.slews) - 1)
        j1 = np.minimum(j + 1, len(self.loads) - 1)
        low = self.values[i, j] * (1 - v) + self.values[i, j1] * v
        high = self.values[i1, j] * (1 - v) + self.values[i1, j1] * v
        result: Floats = low * (1 - u) + high * u
        return result


def _numbers(text: str) -> Floats:
    return np.array([float(word) for word in re.split(r'[\s,"]+', text) if word])


def _segment(axis: Floats, x: Floats) -> tuple[NDArray[np.int64], Floats]:
    if len(axis) == 1:
        return np.zeros(len(x), np.int64), np.zeros(len(x))
    i = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, len(axis) - 2)
    return i, (x - axis[i]) / (axis[i + 1] - axis[i])


def net_loads(gates: LevelizedNetlist, pdk: Pdk) -> dict[str, Floats]:
    """Return the capacitance on each net when it rises and when it falls, fF.

    That of the pins on it, which libraries give for each edge, and the load of the outputs.
    """
    loads = {edge: np.zeros(gates.nets) for edge in _EDGES}
    for edge, load in loads.items():
        for batch in gates.batches.values():
            for name in batch.cell.inputs:
                pin = batch.cell.pins[name]
                unit = pdk.library.capacitance_ff
                own = pin.group.values.get(f"{edge}_capacitance")
                np.add.at(load, batch.nets[name], float(own) * unit if own else pin.capacitance)
        for name in gates.outputs:
            np.add.at(load, gates.ports[name], pdk.load_ff)
    return loads


def _arcs(pin: Pin, library: Library) -> Iterator[tuple[str, str, str, Table]]:
    """Yield (related pin, its edge, output edge, transition table) of an output's delay arcs."""
    for timing in pin.group.of("timing"):
        kind = timing.values.get("timing_type", "combinational")
        sense = timing.values.get("timing_sense", "non_unate")
        for table in timing.of("rise_transition", "fall_transition"):
            out = table.kind.split("_")[0]
            if kind in {"rising_edge", "falling_edge"}:
                edges: tuple[str, ...] = ("rise",) if kind == "rising_edge" else ("fall",)
            elif kind in {"combinational", "combinational_rise", "combinational_fall"}:
                other = "fall" if out == "rise" else "rise"
                unate = {"positive_unate": (out,), "negative_unate": (other,)}
                edges = unate.get(sense, _EDGES)
            else:
                continue
            for related in timing.values["related_pin"].split():
                for edge in edges:
                    yield related, edge, out, Table.read(table, library)


def net_slews(gates: LevelizedNetlist, pdk: Pdk, loads: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return the slowest transition of each net, in the library's time unit, by edge.

    Inputs are driven by the library's buffer with an ideal step at its own input; the clock and
    the clocks behind clock gates are ideal.
    """
    library = pdk.library
    scaled = {edge: load / library.capacitance_ff for edge, load in loads.items()}
    slews = {edge: np.zeros(gates.nets) for edge in _EDGES}

    def drive(
        batch: Batch, indices: NDArray[np.int64], arcs: list[tuple[str, str, str, str, Table]]
    ) -> None:
        found: dict[tuple[str, str], Floats] = {}
        for pin, related, edge, out, table in arcs:
            nets = batch.nets[pin][indices]
            slew = table.at(slews[edge][batch.nets[related][indices]], scaled[out][nets])
            found[pin, out] = np.maximum(found.get((pin, out), slew), slew)
        for (pin, out), slew in found.items():
            slews[out][batch.nets[pin][indices]] = slew

    def arcs_of(cell: Cell) -> list[tuple[str, str, str, str, Table]]:
        return [(name, *arc) for name in cell.outputs for arc in _arcs(cell.pins[name], library)]

    driver = pdk.driver_cell
    zero = np.zeros(gates.nets)
    for _, _, _, out, table in arcs_of(driver):
        for name in gates.inputs:
            nets = gates.ports[name]
            slews[out][nets] = np.maximum(slews[out][nets], table.at(zero[nets], scaled[out][nets]))
    if gates.clock is not None:
        for edge in _EDGES:
            slews[edge][gates.clock] = 0.0
    for batch in gates.batches.values():
        if batch.cell.is_flop:
            drive(batch, np.arange(len(batch)), arcs_of(batch.cell))
    arcs = {
        kind: [] if batch.gated else arcs_of(batch.cell) for kind, batch in gates.batches.items()
    }
    for kind, indices in gates.order:
        drive(gates.batches[kind], indices, arcs[kind])
    return slews


def _count(words: Words) -> Floats:
    """Count the ones of each instance over clocks and lanes: [clocks, instances, words]."""
    counts: Floats = np.bitwise_count(words).sum(axis=(0, 2), dtype=np.float64)
    return counts


def toggle_counts(gates: LevelizedNetlist, history: Words) -> Floats:
    """Return the transitions of each net in a run, all lanes together; of clocks two a pulse."""
    counts = np.zeros(gates.nets)
    for first in range(0, gates.nets, 1024):
        part = history[:, first : first + 1024]
        counts[first : first + 1024] = _count(part[1:] ^ part[:-1])
    counts[gates.clocks] = 2 * _count(history[:-1, gates.clocks])
    return counts


@dataclass(frozen=True)
class Power:
    """Energy and leakage of a netlist at work.

    Members
    -------
    switching_pj, internal_pj
        Energy a clock.
    clock_pj
        The part of both that the clock nets, the clock gates and the clock pins take.
    leakage_uw
        Leakage.
    """

    switching_pj: float
    internal_pj: float
    clock_pj: float
    leakage_uw: float

    @property
    def energy_pj(self) -> float:
        """Dynamic energy a clock."""
        return self.switching_pj + self.internal_pj


@cache
def _rails(cell: Cell) -> frozenset[str]:
    return frozenset(
        pin.name
        for pin in cell.group.of("pg_pin")
        if pin.values.get("pg_type", "") == "primary_power"
    )


def _groups(owner: Group, kind: str, cell: Cell) -> list[Group]:
    """Return the groups of a kind that count: all, or those of the supply rails."""
    return [
        group
        for group in owner.of(kind)
        if group.values.get("related_pg_pin", "") in {"", *_rails(cell)}
    ]


class _Activity:
    """What the instances of one cell saw: words of each pin before and after each transition.

    Of clocks, in and out, the words say whether they had a pulse between the two.
    """

    def __init__(self, batch: Batch, history: Words) -> None:
        self.batch = batch
        self.before = {pin: history[:-1, nets] for pin, nets in batch.nets.items()}
        self.clocks = {pin: self.before[pin] for pin in (batch.clock, batch.gated) if pin}
        self.after = {pin: history[1:, nets] for pin, nets in batch.nets.items()} | self.clocks
        (shape,) = {words.shape for words in self.after.values()}
        self.everywhere = np.full(shape, ALL)

    def edge(self, pin: str, edge: str) -> Words:
        """Return where a pin rises or falls; a clock does both."""
        if pin in self.clocks:
            return self.clocks[pin]
        before, after = self.before[pin], self.after[pin]
        return ~before & after if edge == "rise" else before & ~after

    def conditions(
        self, when: str | None, pin: str = "", edge: str = "", strict: bool = False
    ) -> list[tuple[float, Words]]:
        """Return where a condition holds, as (weight, words): twice by half if it names a clock.

        Of an edge of a clock it is what held before it rose or after it fell. With ``strict`` a
        condition that names an output must hold before any other transition too.
        """
        if when is None:
            return [(1.0, self.everywhere)]
        function = function_of(when)
        if pin in self.clocks:
            return [(1.0, self._spread(function(self.before if edge == "rise" else self.after)))]
        names = set(re.findall(r"[A-Za-z_]\w*", when))
        levels: list[dict[str, Words]] = [{}]
        if not names.isdisjoint(self.clocks):
            levels = [dict.fromkeys(self.clocks, ~self.everywhere), self.clocks]
        found = []
        for level in levels:
            words = function(self.after | level)
            if strict and names & set(self.batch.cell.outputs):
                words = words & function(self.before | level)
            found.append((1 / len(levels), self._spread(words)))
        return found

    def _spread(self, words: Words) -> Words:
        return np.broadcast_to(words, self.everywhere.shape)

    def share(self, events: Words, conditions: Iterable[tuple[float, Words]]) -> Floats:
        """Count the events at which a condition holds."""
        return sum(
            (weight * _count(events & words) for weight, words in conditions),
            np.zeros(len(self.batch)),
        )


def _energy(group: Group, edge: str, library: Library, slew: Floats, load: Floats) -> Floats | None:
    for table in group.of(f"{edge}_power", "power"):
        return Table.read(table, library).at(slew, load)
    return None


def _input_energy(
    activity: _Activity, pin: str, library: Library, slews: Mapping[str, Floats]
) -> Floats:
    """Energy of each instance from the transitions of an input, in the library's unit."""
    batch = activity.batch
    groups = _groups(batch.cell.pins[pin].group, "internal_power", batch.cell)
    conditional = [g.values["when"] for g in groups if "when" in g.values]
    total = np.zeros(len(batch))
    for edge in _EDGES:
        events = default = activity.edge(pin, edge)
        for condition in conditional:
            for _, words in activity.conditions(condition, pin, edge):
                default = default & ~words
        slew = slews[edge][batch.nets[pin]]
        for group in groups:
            energy = _energy(group, edge, library, slew, np.zeros(len(batch)))
            if energy is None:
                continue
            when = group.values.get("when")
            if when is None:
                total += energy * _count(default)
            else:
                held = activity.conditions(when, pin, edge, strict=True)
                total += energy * activity.share(events, held)
    return total


def _output_energy(
    activity: _Activity,
    pin: str,
    library: Library,
    slews: Mapping[str, Floats],
    loads: Mapping[str, Floats],
) -> Floats:
    """Energy of each instance from the transitions of an output, in the library's unit."""
    batch = activity.batch
    groups = _groups(batch.cell.pins[pin].group, "internal_power", batch.cell)
    total = np.zeros(len(batch))
    for edge in _EDGES:
        load = loads[edge][batch.nets[pin]] / library.capacitance_ff
        events = activity.edge(pin, edge)
        weighted, weights = np.zeros(len(batch)), np.zeros(len(batch))
        plain, tables = np.zeros(len(batch)), 0
        for group in groups:
            related = group.values.get("related_pin", "").split()
            slew = np.zeros(len(batch))
            moved = activity.everywhere
            if related and related[0] != batch.clock:
                moved = np.zeros_like(activity.everywhere)
                for name in related:
                    moved = moved | (activity.before[name] ^ activity.after[name])
                nets = batch.nets[related[0]]
                slew = (slews["rise"][nets] + slews["fall"][nets]) / 2
            energy = _energy(group, edge, library, slew, load)
            if energy is None:
                continue
            held = activity.conditions(group.values.get("when"), pin, edge)
            weight = activity.share(events & moved, held)
            weighted += weight * energy
            weights += weight
            plain += energy
            tables += 1
        if tables:
            mean = np.where(weights > 0, weighted / np.maximum(weights, 1e-300), plain / tables)
            total += mean * _count(events)
    return total


def _leakage(activity: _Activity) -> Floats:
    """Mean leakage of each instance, in the library's unit."""
    batch = activity.batch
    cell = batch.cell
    samples = 64.0 * activity.everywhere[:, 0].size
    groups = _groups(cell.group, "leakage_power", cell)
    total, covered = np.zeros(len(batch)), np.zeros(len(batch))
    for group in groups:
        if "when" not in group.values:
            continue
        held = activity.conditions(group.values["when"])
        share = activity.share(activity.everywhere, held) / samples
        total += group.number("value") * share
        covered += share
    rest = [group.number("value") for group in groups if "when" not in group.values]
    default = sum(rest) if rest else cell.group.number("cell_leakage_power", math.nan)
    uncovered = np.clip(1 - covered, 0, 1)
    if math.isnan(default):
        default = float((total / np.maximum(covered, 1e-300)).mean()) if groups else 0.0
    return total + uncovered * default


def estimate_power(gates: LevelizedNetlist, pdk: Pdk, history: Words) -> Power:
    """Return energy a clock and leakage of a netlist from the history of its nets.

    Parameters
    ----------
    gates, pdk
        The netlist and its library.
    history
        uint64 [clocks, nets, words] as ``play`` records it, two clocks at least.
    """
    if len(history) < 2:
        raise ValueError(f"history has {len(history)} clocks; a transition needs two")
    library = pdk.library
    clocks = float((len(history) - 1) * history.shape[2] * 64)
    loads = net_loads(gates, pdk)
    slews = net_slews(gates, pdk, loads)
    mean_load = (loads["rise"] + loads["fall"]) / 2
    # fF * V^2 = fJ
    switching = toggle_counts(gates, history) * mean_load * (0.5 * library.voltage**2 * 1e-3)
    internal = clock = leakage = 0.0
    for batch in gates.batches.values():
        if not (batch.cell.inputs and batch.cell.outputs):  # a tie cell never switches
            leakage += len(batch) * batch.cell.group.number("cell_leakage_power")
            continue
        activity = _Activity(batch, history)
        for pin in batch.cell.inputs:
            energy = float(_input_energy(activity, pin, library, slews).sum())
            internal += energy
            clock += energy if pin == batch.clock else 0.0
        for pin in batch.cell.outputs:
            energy = float(_output_energy(activity, pin, library, slews, loads).sum())
            internal += energy
            clock += energy if pin == batch.gated else 0.0
        leakage += float(_leakage(activity).sum())
    clock_switching = float(switching[gates.clocks].sum())
    return Power(
        switching_pj=float(switching.sum()) / clocks,
        internal_pj=internal * library.energy_pj / clocks,
        clock_pj=(clock * library.energy_pj + clock_switching) / clocks,
        leakage_uw=leakage * library.leakage_nw * 1e-3,
    )


@dataclass(frozen=True)
class UnitPower:
    """What a unit takes at full rate, and the gate-level run that shows it.

    Members
    -------
    power
        Energy a clock and leakage.
    groups_per_clock
        Groups accepted in a clock while recording.
    groups
        Groups compared with the golden model, all equal, or there would be no figure.
    """

    power: Power
    groups_per_clock: float
    groups: int


_TRANSITIONS = 16  # recorded at least
_SPARE = 4  # groups that a lane plays beside those recorded and those that fill the pipeline
_NET_WORDS = 1 << 17  # nets times words: bounds each clock of the history to 1 MB


def lanes_for(netlist: Netlist) -> int:
    """Return how many lanes a netlist is played with."""
    return 64 * max(1, min(16, _NET_WORDS // max(netlist.cells, 1)))


def depth_for(facts: Facts) -> int:
    """Return how many groups each lane of the vectors for ``unit_power`` needs."""
    clocks = clocks_for(facts) + facts.latency
    return -(-clocks // facts.clocks_per_group) + _SPARE


def clocks_for(facts: Facts) -> int:
    """Return how many clocks count: whole groups and blocks, since their clocks are not alike."""
    period = facts.clocks_per_block
    return -(-_TRANSITIONS // period) * period


def _contents(vectors: TestVectors) -> Iterator[bytes]:
    """Yield all that a run depends on."""
    for streams in (vectors.inputs, vectors.outputs):
        for name, beats in streams.items():
            last = b"" if beats.last is None else beats.last.tobytes()
            yield name.encode() + beats.data.tobytes() + last
    for name, mask in vectors.compared.items():
        yield name.encode() + mask.tobytes()


def unit_power(netlist: Netlist, pdk: Pdk, facts: Facts, vectors: TestVectors) -> UnitPower:
    """Play vectors through a netlist without stalls and return what it takes; cached beside it.

    Raises
    ------
    MismatchError
        The netlist gives a beat that the golden model does not.
    """
    window = 1 + clocks_for(facts)
    key = sha256(repr((window, lanes_for(netlist), facts)).encode())
    key.update(sources_digest("m2xfp.synth.gate_sim", "m2xfp.synth.flow"))
    for content in _contents(vectors):
        key.update(content)
    kept = netlist.folder / f"power-{key.hexdigest()[:16]}.json"
    if (found := read_sealed(kept)) is not None:
        known = json.loads(found)
        return UnitPower(Power(**known.pop("power")), **known)
    gates = LevelizedNetlist(netlist, pdk)
    lanes = lanes_for(netlist)
    if facts.streams:
        played = play(gates, vectors, facts, words=lanes // 64, window=window)
    else:
        played = play_ports(gates, vectors, lanes)
    if len(played.history) < window:
        raise RuntimeError(f"{facts.top}: {len(played.history)} of {window} clocks recorded")
    clocks = (len(played.history) - 1) * lanes
    result = UnitPower(
        estimate_power(gates, pdk, played.history), played.window_groups / clocks, played.groups
    )
    write_sealed(kept, json.dumps(asdict(result)))
    return result
