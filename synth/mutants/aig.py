"""Logic as a graph of and-gates: read from yosys, folded, joined, simulated, written for ABC.

A literal is twice the number of a variable, plus one if it is inverted; 0 is false and 1 is true.
Equal gates become one as they are made, so that two copies of a unit share all that cannot differ.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from m2xfp.files import write_atomic

__all__ = ["Aig", "Logic", "read_logic"]


@dataclass(frozen=True)
class Logic:
    """Combinational logic.

    Members
    -------
    inputs, outputs
        Literals, by port and bit.
    gates
        Variable and its two operands, each after those that it needs.
    """

    inputs: Mapping[str, list[int]]
    outputs: Mapping[str, list[int]]
    gates: list[tuple[int, int, int]]


def read_logic(path: Path) -> Logic:
    """Read what yosys wrote with ``write_aiger -ascii -symbols`` of logic without registers."""
    lines = path.read_text().splitlines()
    _, _, inputs, latches, outputs, gates = lines[0].split()[:6]
    assert latches == "0", f"{latches} registers in {path.name}"
    ends = [1, 1 + int(inputs), 1 + int(inputs) + int(outputs)]
    literals = {
        "i": [int(line) for line in lines[ends[0] : ends[1]]],
        "o": [int(line) for line in lines[ends[1] : ends[2]]],
    }
    last = ends[2] + int(gates)
    ands = [(int(a) >> 1, int(b), int(c)) for a, b, c in map(str.split, lines[ends[2] : last])]
    found: dict[str, dict[str, dict[int, int]]] = {"i": {}, "o": {}}
    for line in lines[last:]:
        if line[:1] not in found or " " not in line:
            break
        place, name = line.split(" ", 1)
        port, _, bit = name.partition("[")
        bits = found[place[0]].setdefault(port, {})
        bits[int(bit.rstrip("]") or 0)] = literals[place[0]][int(place[1:])]
    ports = {
        side: {port: [bits[n] for n in sorted(bits)] for port, bits in named.items()}
        for side, named in found.items()
    }
    return Logic(ports["i"], ports["o"], ands)


@dataclass
class Aig:
    """A sequential circuit in the making: all inputs and registers first, then gates.

    Registers begin at 0.
    """

    inputs: list[int] = field(default_factory=list)
    registers: list[int] = field(default_factory=list)
    following: dict[int, int] = field(default_factory=dict)
    _gates: list[tuple[int, int]] = field(default_factory=list)
    _known: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def _first(self) -> int:
        return len(self.inputs) + len(self.registers) + 1

    def add_inputs(self, count: int) -> list[int]:
        """Return new inputs."""
        assert not self.registers
        made = [2 * (len(self.inputs) + 1 + n) for n in range(count)]
        self.inputs += made
        return made

    def add_registers(self, count: int) -> list[int]:
        """Return new registers; ``following`` says what each holds next."""
        assert not self._gates
        made = [2 * (self._first + n) for n in range(count)]
        self.registers += made
        return made

    def both(self, a: int, b: int) -> int:
        """Return a & b."""
        if a > b:
            a, b = b, a
        if a < 2:
            return b if a else 0
        if a >> 1 == b >> 1:
            return a if a == b else 0
        known = self._known.get((a, b))
        if known is None:
            known = self._known[a, b] = 2 * (self._first + len(self._gates))
            self._gates.append((b, a))
        return known

    def either(self, a: int, b: int) -> int:
        """Return a | b."""
        return self.both(a ^ 1, b ^ 1) ^ 1

    def choice(self, s: int, a: int, b: int) -> int:
        """Return a if s, else b."""
        return a if a == b else self.either(self.both(s, a), self.both(s ^ 1, b))

    def differ(self, a: int, b: int) -> int:
        """Return a ^ b."""
        return self.either(self.both(a, b ^ 1), self.both(a ^ 1, b))

    def any(self, literals: Sequence[int]) -> int:
        """Return the or of many, as a tree."""
        level = list(dict.fromkeys(literals))
        while len(level) > 1:
            odd = level[-1:] if len(level) % 2 else []
            level = [self.either(a, b) for a, b in zip(level[::2], level[1::2], strict=False)] + odd
        return level[0] if level else 0

    def add(self, logic: Logic, ports: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Add a copy of some logic with these at its inputs; return its outputs."""
        at = {0: 0}
        for port, literals in logic.inputs.items():
            for own, given in zip(literals, ports[port], strict=True):
                at[own >> 1] = given
        both = self.both
        for out, a, b in logic.gates:
            at[out] = both(at[a >> 1] ^ (a & 1), at[b >> 1] ^ (b & 1))
        return {
            port: [at[one >> 1] ^ (one & 1) for one in literals]
            for port, literals in logic.outputs.items()
        }

    def write(self, path: Path, bad: int) -> None:
        """Write a binary AIGER file with one output."""
        assert set(self.following) == set(self.registers)
        total = self._first + len(self._gates) - 1
        sizes = total, len(self.inputs), len(self.registers), 1, len(self._gates)
        head = [f"aig {' '.join(map(str, sizes))}"]
        head += [str(self.following[register]) for register in self.registers] + [str(bad)]
        body = bytearray()
        for number, (high, low) in enumerate(self._gates):
            for delta in (2 * (self._first + number) - high, high - low):
                while delta > 127:
                    body.append(delta & 127 | 128)
                    delta >>= 7
                body.append(delta)
        write_atomic(path, "\n".join([*head, ""]).encode() + bytes(body))

    def step(
        self, state: Mapping[int, int], given: Mapping[int, int], width: int
    ) -> tuple[list[int], dict[int, int]]:
        """Simulate a clock of ``width`` patterns at once.

        Parameters
        ----------
        state, given
            Patterns of registers and inputs, by literal.
        width
            Bits of a pattern.

        Returns
        -------
        list, dict
            Patterns of all literals, and the next state.
        """
        ones = (1 << width) - 1
        values = [0] * (2 * (self._first + len(self._gates)))
        values[1] = ones
        for held in (given, state):
            for literal, pattern in held.items():
                values[literal], values[literal + 1] = pattern, pattern ^ ones
        at = 2 * self._first
        for a, b in self._gates:
            values[at] = found = values[a] & values[b]
            values[at + 1] = found ^ ones
            at += 2
        return values, {register: values[to] for register, to in self.following.items()}

    def run(self, clocks: Iterable[Mapping[int, int]]) -> list[int]:
        """Return the values of all literals in the last of some clocks, of one pattern."""
        state, values = dict.fromkeys(self.registers, 0), list[int]()
        for given in clocks:
            values, state = self.step(state, given, 1)
        return values

    def random_inputs(self, rng: random.Random, width: int) -> dict[int, int]:
        """Return random patterns of all inputs."""
        return {literal: rng.getrandbits(width) for literal in self.inputs}
