"""Whether a fault can be seen at all: proofs for mutants that a regression lets live.

A unit and its mutant run side by side from one state, any state, with the same inputs. They share
all logic before the fault, and all registers but those that the fault has been seen to change: of
these the mutant has its own. Two questions are asked, each of every clock:

- ``in any state``: from any state whatever, with any inputs;
- ``after reset``: from any state in which the registers that have a reset hold its value, with
  inputs that keep the stream rules;
- ``after reset, from zeros``: from the one of these in which all other registers hold zero, with
  any inputs. What a register never holds, such as a large value with a last place, is out of reach
  there from the first clock on, and need not be shown to be harmless where no beat is.

If no output differs and no shared register would take two values, the mutant does nothing that the
unit does not do: it is equivalent. If a register would, it gets a copy too. If an output differs
after a reset, the fault can be seen, and the inputs that show it are at hand. ABC answers: SAT
sweeping where no register differs, IC3 (``pdr``) where some do, so a proof is of any number of
clocks.
"""

import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m2xfp.facts import Facts
from m2xfp.files import write_atomic
from m2xfp.synth.formal.engines import abc
from m2xfp.synth.formal.netlist import ProofError
from m2xfp.synth.mutants.aig import Aig, Logic
from m2xfp.synth.mutants.arguments import ArguedLogic, to_logic
from m2xfp.synth.mutants.netlist import PORT, MutatedUnit, YosysError, run_yosys
from m2xfp.tb.arguments import Argument, Never

__all__ = ["Prover", "Verdict", "cut_registers"]

ANY, RESET, ZEROS = "in any state", "after reset", "after reset, from zeros"
FOR_ANY = "for any input"
_STATE, _NEXT = "state_", "next_"
_STATEFUL = re.compile(r"ff|sr|latch|mem")
# Patterns and clocks of the search for registers that differ.
_WIDTH, _CLOCKS = 2048, 24
_PROVED = r"^Status = *1 |\bUNSATISFIABLE\b"
# So often registers that would differ get a copy, and so often one by one.
_ROUNDS, _PATIENT = 40, 6


@dataclass(frozen=True)
class Verdict:
    """What is known of a mutant.

    Members
    -------
    same
        Whether it is equivalent; None if there was no time to find out.
    how
        By which proof; or what shows the fault.
    trace
        Values of the inputs by clock that show it after a reset, each a number; by port.
    """

    same: bool | None
    how: str
    trace: tuple[Mapping[str, int], ...] = ()


def cut_registers(module: Mapping[str, Any]) -> dict[str, Any]:
    """Return a module, as ``write_json`` puts it, with ports in the place of its registers."""
    logic = dict(module["cells"])
    contents: dict[str, list[Any]] = {"Q": [], "D": []}
    for name, cell in module["cells"].items():
        if cell["type"] == "$dff":
            del logic[name]
            for pin, bits in contents.items():
                bits += cell["connections"][pin]
        elif _STATEFUL.search(cell["type"]):
            raise YosysError(f"{name} is a {cell['type']}, which proofs of mutants do not know")
    ports = dict(module["ports"])
    if contents["Q"]:
        ports |= {
            _STATE: {"direction": "input", "bits": contents["Q"]},
            _NEXT: {"direction": "output", "bits": contents["D"]},
        }
    return {"attributes": {}, "ports": ports, "cells": logic, "netnames": {}}


@dataclass(frozen=True)
class _Pair:
    """A unit and its mutant side by side.

    Members
    -------
    aig
        The circuit.
    ports
        Inputs by port.
    waits
        By input stream: a beat was not taken and must stay.
    seen
        High where an output differs.
    apart
        High where a shared register would take two values, by its number.
    bad
        Either, where all went well before.
    """

    aig: Aig
    ports: dict[str, list[int]]
    waits: dict[str, int]
    seen: int
    apart: dict[int, int]
    bad: int


class Prover:
    """Proofs about the mutants of a unit.

    Parameters
    ----------
    mutated
        The unit with its faults.
    seconds
        Time that an engine may take for an answer.
    arguments
        What is argued of the unit, see ``argue``.
    """

    def __init__(
        self, mutated: MutatedUnit, seconds: int = 30, arguments: Sequence[Argument | Never] = ()
    ) -> None:
        self._seconds, self._folder = seconds, mutated.folder
        self._facts = Facts.load(mutated.unit.json)
        # What lies beyond a memory's last word is nothing, the same in both.
        beyond = "setundef -undriven -zero"
        registers = ("memory_map", beyond, "opt_expr", "dffunmap", "opt_clean -purge")
        # Else a wire of several names would have any of them.
        kept = [f"setattr -set keep 1 w:*.{wire}" for each in arguments for wire in each.wires]
        script = [
            "read_rtlil mutated.il",
            *dict.fromkeys(kept),
            *registers,
            "write_json whole.json",
            "",
        ]
        run_yosys(self._folder, "whole", "\n".join(script))
        (module,) = json.loads((self._folder / "whole.json").read_text())["modules"].values()
        cut = cut_registers(module)
        write_atomic(self._folder / "cut.json", json.dumps({"modules": {"cut": cut}}))
        self._logic: Logic = to_logic(self._folder, "cut", "read_json cut.json")
        self._argued = (
            ArguedLogic(cut, module["netnames"], arguments, self._folder) if arguments else None
        )
        self._inputs = {
            name: len(bits)
            for name, bits in self._logic.inputs.items()
            if name not in (PORT, _STATE, self._facts.clock)
        }
        self._state = len(self._logic.inputs.get(_STATE, []))
        self._starts = {0: self._start(0)}

    def glance(self, number: int) -> Verdict:
        """Say whether a mutant's logic equals the unit's, whatever the registers hold."""
        return self._ask(number, ANY if self._state else FOR_ANY, registers=False)

    def prove(self, number: int) -> Verdict:
        """Say whether a mutant equals the unit, what is found soonest first."""
        verdict = self.glance(number)
        if not self._state:
            return verdict
        for begin in (ZEROS, ANY, RESET):
            if not verdict.same:
                verdict = self._ask(number, begin)
        return verdict

    def argue(self, number: int) -> str:
        """Return the arguments by which a mutant makes no difference; nothing if none do."""
        return self._argued.why(number, self._seconds) if self._argued else ""

    def _start(self, number: int) -> dict[int, int]:
        """Return what a reset puts into the registers that have one."""
        if not self._facts.reset:
            return {}
        aig = Aig()
        given = {name: aig.add_inputs(len(bits)) for name, bits in self._logic.inputs.items()}
        given[self._facts.reset] = [1]
        given[PORT] = [number >> n & 1 for n in range(len(given[PORT]))]
        following = aig.add(self._logic, given).get(_NEXT, [])
        return {bit: value for bit, value in enumerate(following) if value < 2}

    def _ask(self, number: int, where: str, *, registers: bool = True) -> Verdict:
        """Ask from some states; without ``registers`` only whether none differs, in any of them."""
        reset, zeros = where in (RESET, ZEROS), where == ZEROS
        own = self._simulated(number, reset, zeros)
        if own is None:
            return Verdict(False, f"differs {where}", ())
        for turn in range(_ROUNDS):
            if own and not registers:
                return Verdict(None, f"registers differ {where}")
            pair = self._pair(number, own, reset, zeros)
            if pair.bad == 0:
                return Verdict(True, where)
            found = self._engine(pair, f"mutant_{number}", where, bool(own) or reset)
            if found is None:
                return Verdict(None, f"no answer {where} in {self._seconds} s")
            if not found:
                return Verdict(True, where)
            values = pair.aig.run(found)
            if values[pair.seen] and zeros:
                return Verdict(None, f"no answer {where}: inputs may break the rules of streams")
            if values[pair.seen]:
                trace = [
                    {
                        name: sum(clock[bit] << n for n, bit in enumerate(pair.ports[name]))
                        for name in self._inputs
                    }
                    for clock in found
                ]
                return Verdict(False, f"differs {where}", tuple(trace))
            new = {bit for bit, apart in pair.apart.items() if values[apart]}
            assert new, "a counterexample in which nothing differs"
            # Where bit after bit turns out to differ, all that could differ get a copy.
            own |= new if turn < _PATIENT else set(pair.apart)
        return Verdict(None, f"too many registers differ {where}")

    def _simulated(self, number: int, reset: bool, zeros: bool) -> set[int] | None:
        """Return registers that differ in random runs; None if an output does."""
        rng, own = random.Random(number), set[int]()
        if reset:
            self._starts[number] = begin = self._start(number)
            right = self._starts[0]
            own |= {bit for bit in begin.keys() | right.keys() if begin.get(bit) != right.get(bit)}
        for _ in range(_ROUNDS):
            pair = self._pair(number, own, reset, zeros)
            new = set[int]()
            for values in self._played(pair, rng, _CLOCKS if reset else 2):
                if bad := values[pair.bad]:
                    if values[pair.seen] & bad:
                        return None
                    new |= {bit for bit, apart in pair.apart.items() if values[apart] & bad}
            if not new:
                return own
            own |= new
        return own

    def _played(self, pair: _Pair, rng: random.Random, clocks: int) -> Iterator[list[int]]:
        """Yield the values of random runs, clock by clock; half of them without pauses or resets.

        Beats that are not taken stay.
        """
        state, before = dict.fromkeys(pair.aig.registers, 0), dict[int, int]()
        steady = ((1 << _WIDTH) - 1) // 3
        for _ in range(clocks):
            given = pair.aig.random_inputs(rng, _WIDTH)
            for stream in self._facts.streams:
                (bit,) = pair.ports[stream.ports[1 if stream.is_input else 2]]
                given[bit] |= steady
            if self._facts.reset:
                (bit,) = pair.ports[self._facts.reset]
                given[bit] &= rng.getrandbits(_WIDTH) & ~steady
            for stream in self._facts.inputs if before else ():
                waits = state.get(pair.waits.get(stream.name, -1), 0)
                data, valid, _, last = stream.ports
                for bit in (*pair.ports[data], *pair.ports[valid], *pair.ports[last]):
                    given[bit] = before[bit] & waits | given[bit] & ~waits
            values, state = pair.aig.step(state, given, _WIDTH)
            before = given
            yield values

    def _pair(self, number: int, own: Iterable[int], reset: bool, zeros: bool) -> _Pair:
        """Build unit and mutant, the latter with registers of its own."""
        mine = sorted(own)
        aig = Aig()
        ports = {name: aig.add_inputs(width) for name, width in self._inputs.items()}
        begin = [0] * self._state if zeros else aig.add_inputs(self._state)
        # Rules make a circuit larger, and are not needed for what no input reaches.
        offered = self._facts.inputs if reset and not zeros else ()
        widths = {stream.name: 3 + stream.tdata_width for stream in offered}
        sequential = reset or mine
        if sequential:
            started, lawful = aig.add_registers(2)
            held, copies = aig.add_registers(self._state), aig.add_registers(len(mine))
            offers = {name: aig.add_registers(width) for name, width in widths.items()}
            first, others = (
                [
                    self._starts[of].get(bit, any_) if reset else any_
                    for bit, any_ in enumerate(begin)
                ]
                for of in (0, number)
            )
            state = [aig.choice(started, *two) for two in zip(held, first, strict=True)]
            other = list(state)
            for at, copy in zip(mine, copies, strict=True):
                other[at] = aig.choice(started, copy, others[at])
        else:
            started, lawful, held, copies, state, other = 1, 1, [], [], begin, begin
            offers = {}
        given: dict[str, Sequence[int]] = dict(ports)
        if self._facts.clock:
            given[self._facts.clock] = [0]
        given[_STATE] = state
        results = []
        for selected, contents in ((0, state), (number, other)):
            given[PORT] = [selected >> n & 1 for n in range(len(self._logic.inputs[PORT]))]
            results.append(aig.add(self._logic, given | {_STATE: contents}))
        right, wrong = results
        seen = self._seen(aig, right, wrong)
        differing = {
            bit: aig.differ(*two)
            for bit, two in enumerate(zip(right.get(_NEXT, []), wrong.get(_NEXT, []), strict=True))
        }
        apart = {bit: one for bit, one in differing.items() if one and bit not in set(mine)}
        bad = aig.any([seen, *apart.values()])
        if sequential:
            aig.following |= dict(zip(held, right[_NEXT], strict=True)) | {started: 1}
            aig.following |= {copy: wrong[_NEXT][at] for at, copy in zip(mine, copies, strict=True)}
            law = self._law(aig, offered, offers, given, right) if offered else 1
            fine = aig.both(aig.either(lawful, started ^ 1), law)
            aig.following[lawful] = fine
            bad = aig.both(bad, fine)
        waits = {name: offer[0] for name, offer in offers.items()}
        return _Pair(aig, ports, waits, seen, apart, bad)

    def _seen(
        self, aig: Aig, right: Mapping[str, list[int]], wrong: Mapping[str, list[int]]
    ) -> int:
        """Return where outputs differ: TDATA and TLAST count where TVALID is high."""
        words = {name: aig.any([*map(aig.differ, right[name], wrong[name])]) for name in right}
        found = [words[port.name] for port in self._facts.signals if port.name in words]
        for stream in self._facts.streams:
            data, valid, ready, last = stream.ports
            if stream.is_input:
                found.append(words[ready])
            else:
                payload = aig.either(words[data], words[last])
                found += [words[valid], aig.both(right[valid][0], payload)]
        return aig.any(found)

    def _law(
        self,
        aig: Aig,
        offered: Iterable[Any],
        offers: Mapping[str, list[int]],
        given: Mapping[str, Sequence[int]],
        right: Mapping[str, list[int]],
    ) -> int:
        """Return whether inputs stay as they are until they are taken; fill the registers."""
        broken = []
        for stream in offered:
            data, valid, ready, last = stream.ports
            waits, *was = offers[stream.name]
            payload = [*given[valid], *given[data], *given[last]]
            changed = aig.any([*map(aig.differ, was, payload)])
            broken.append(aig.both(waits, changed))
            stays = aig.both(payload[0], right[ready][0] ^ 1)
            waiting = aig.both(stays, given[self._facts.reset][0] ^ 1)
            aig.following |= {waits: waiting} | dict(zip(was, payload, strict=True))
        return aig.any(broken) ^ 1

    def _engine(
        self, pair: _Pair, name: str, where: str, sequential: bool
    ) -> list[dict[int, int]] | None:
        """Return the inputs of the clocks to a difference, nothing if there is none; None: no time.

        Where nothing has state, the one clock.
        """
        file, trace = f"{name}.aig", f"{name}.cex"
        pair.aig.write(self._folder / file, pair.bad)
        tries = ["iprove"]
        if sequential:
            less = "scorr; dc2; scorr -F 2; dc2"
            tries = ["bmc3 -F 8 -T 3", f"{less}; dprove", f"scorr; dc2; pdr -T {self._seconds}"]
        if where == ZEROS:
            # Most often the first removes all registers, and the question is answered.
            less = "scleanup; dc2; scorr; dc2"
            tries = ["bmc3 -F 8 -T 3", f"{less}; iprove", f"{less}; pdr -T {self._seconds}"]
        for solve in tries:
            commands = f"read_aiger {file}; {solve}; print_status; write_cex -a {trace}"
            (self._folder / trace).unlink(missing_ok=True)
            try:
                said = abc(self._folder, commands, (2 if "pdr" in solve else 1) * self._seconds)
            except ProofError:
                continue
            proved = "bmc3" not in solve and re.search(_PROVED, said, re.MULTILINE)
            if proved:
                return []
            # What dprove finds is of a circuit that it has retimed.
            moved = "dprove" in solve or "scorr; dc2; iprove" in solve
            if not moved and (self._folder / trace).exists():
                return _read_trace((self._folder / trace).read_text(), pair.aig)
        return None


def _read_trace(text: str, aig: Aig) -> list[dict[int, int]]:
    """Return the values of the inputs by clock, which follow a line with those of the registers."""
    rows = [line for line in text.split() if set(line) <= set("01x")]
    rows = rows[bool(aig.registers) :]
    return [
        {literal: int(bit == "1") for literal, bit in zip(aig.inputs, row, strict=True)}
        for row in rows
    ]
