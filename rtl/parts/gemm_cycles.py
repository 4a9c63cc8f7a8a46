"""The clocks of the GEMM core, counted without simulating it: exact where no stream pauses."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from m2xfp.errors import InputError

SIZE_BITS = 20
"""Bits of m, n and k in a command: up to 1048575, beyond the vocabularies of language models."""

__all__ = ["SIZE_BITS", "GemmTiming"]


class _Pair(Protocol):
    @property
    def group(self) -> int: ...


class _Core(Protocol):
    pair: _Pair
    rows: int
    columns: int
    max_k: int
    depth: int
    chains: int
    input_latency: int
    output_latency: int
    weight_rows: int


class _Steps:
    """The steps of the array in clocks: it stands still while a result finds no room.

    Parameters
    ----------
    latency
        Steps from the last group of a result to its arrival at the result FIFO.
    slots
        Results of the whole array that the FIFO holds.
    """

    def __init__(self, latency: int, slots: int) -> None:
        self._latency = latency
        self._stalls = 0  # clocks in which the array stood still so far
        # step of arrival, rows, command, whether it is the command's last
        self._expected: deque[tuple[int, int, int, bool]] = deque()
        self._free = deque([0] * slots)  # when each slot can take a result, the next one first
        self._drained = 0  # clock in which the last row so far left
        self._reported = 0  # clock in which the last status so far left
        self.finished: dict[int, int] = {}  # clock of each command's last row

    def expect(self, step: int, rows: int, command: int, last: bool) -> None:
        """Note that the groups of ``step`` complete a result of so many rows."""
        self._expected.append((step + self._latency, rows, command, last))

    def clock(self, step: int) -> int:
        """Return the clock of a step, once all results that arrive until then are known."""
        while self._expected and self._expected[0][0] <= step:
            self._arrive()
        return step + self._stalls

    def not_before(self, step: int, clock: int) -> int:
        """Return the first step from ``step`` on that is not before ``clock``."""
        while (gap := clock - self.clock(step)) > 0:
            step += min(gap, self._expected[0][0] - step) if self._expected else gap
        return step

    def flush(self) -> None:
        """Let all results that are under way leave."""
        while self._expected:
            self._arrive()

    def _arrive(self) -> None:
        step, rows, command, last = self._expected.popleft()
        arrival = max(step + self._stalls, self._free.popleft())
        self._stalls = arrival - step
        # A command's last result waits until the status of the command before has left.
        self._drained = max(arrival, self._drained, self._reported if last else 0) + rows
        if last:
            self._reported = self._drained + 1
        self._free.append(self._drained + 1)
        self.finished[command] = self._drained


@dataclass(frozen=True)
class GemmTiming:
    """What the clocks of a GEMM core depend on.

    Members
    -------
    rows, columns
        Size of the array.
    max_k
        Largest k.
    depth, chains
        Register stages of a cell's product, and accumulators a cell.
    group
        Products a cell and clock.
    input_latency, output_latency
        Clocks through the input engines, and through the requantizer.
    weight_rows
        Weight rows that are loaded at the same time.
    """

    rows: int
    columns: int
    max_k: int
    depth: int = 2
    chains: int = 3
    group: int = 32
    input_latency: int = 0
    output_latency: int = 0
    weight_rows: int = 1

    @classmethod
    def of(cls, core: _Core) -> "GemmTiming":
        """Return the timing of a ``GemmCore``."""
        return cls(
            core.rows,
            core.columns,
            core.max_k,
            core.depth,
            core.chains,
            core.pair.group,
            core.input_latency,
            core.output_latency,
            core.weight_rows,
        )

    @property
    def macs_per_clock(self) -> int:
        """Multiplications a clock at most."""
        return self.rows * self.columns * self.group

    @property
    def array_latency(self) -> int:
        """Steps from a group to its accumulator: decoding, product, addend, addition."""
        return 1 + self.depth + 1 + self.chains

    @property
    def weight_bytes(self) -> int:
        """Bytes of both weight buffers: 18 a group of M2XFP."""
        return 2 * self.columns * (self.max_k // self.group) * 18

    @property
    def result_slots(self) -> int:
        """Results of the whole array that wait for their way out at most."""
        return max(2, self.chains)

    def check(self, m: int, n: int, k: int) -> None:
        """Raise InputError, with the limits, for sizes that the core refuses."""
        for name, number in (("m", m), ("n", n)):
            if not 1 <= number < 1 << SIZE_BITS:
                raise InputError(f"{name}={number}: must be from 1 to {(1 << SIZE_BITS) - 1}")
        if k < 1 or k % self.group or k > self.max_k:
            raise InputError(
                f"k={k}: must be a multiple of the group of {self.group}, from {self.group} to the "
                f"{self.max_k} that this core's weight buffers hold"
            )

    def clocks(self, m: int, n: int, k: int) -> int:
        """Return the clocks from the acceptance of a command to that of its last result.

        Streams never pause; weights and activations are there with the command; the core was idle.
        """
        return self.finish([(m, n, k)])[0]

    def utilisation(self, m: int, n: int, k: int) -> float:
        """Return the share of all multiplications in ``clocks`` that the product needs."""
        return m * n * k / (self.clocks(m, n, k) * self.macs_per_clock)

    def finish(self, commands: Iterable[tuple[int, int, int]]) -> list[int]:
        """Return when the last result of each command is accepted, the first command at clock 0.

        Commands are offered at once; the core takes each as early as it can.
        """
        steps = _Steps(self.array_latency, self.result_slots)
        step = 0  # next step of the array
        loaded = 0  # clock of the last weight group
        released = [0, 0]  # clock in which each weight buffer was last used up
        ended = [-1, -1]  # the same of the last two commands
        panel = 0
        for command, (m, n, k) in enumerate(commands):
            self.check(m, n, k)
            groups = k // self.group
            blocks = -(-m // (self.rows * self.chains))
            block_steps = self.chains * groups
            # If a block takes as long as its rows need to leave, no result ever waits, and only
            # those of the command's last block say when it ends.
            quiet = groups >= self.rows
            # One command runs, one waits for it, and the next waits outside.
            accepted = max(loaded + 1, ended[0] + 1) if command else 0
            loaded = max(loaded, accepted)
            earliest = max(max(accepted, ended[1]) + 2, self.input_latency)
            for column in range(0, n, self.columns):
                final = column + self.columns >= n
                loaded = max(loaded, released[panel % 2])
                loaded += -(-min(self.columns, n - column) // self.weight_rows) * groups
                step = steps.not_before(step, max(loaded + 1, earliest))
                for block in range(blocks - 1 if quiet else 0, blocks):
                    if final or not quiet:
                        self._expect(
                            steps, command, step + block * block_steps, block, m, groups, final
                        )
                step += blocks * block_steps
                released[panel % 2] = steps.clock(step - 1)
                earliest = released[panel % 2] + 1
                panel += 1
            ended = [ended[1], earliest - 1]
        steps.flush()
        return [steps.finished[n] + self.output_latency for n in sorted(steps.finished)]

    def _expect(
        self, steps: _Steps, command: int, step: int, block: int, m: int, groups: int, final: bool
    ) -> None:
        """Note the results of a block of rows that begins with ``step``."""
        for chain in range(self.chains):
            left = m - (block * self.chains + chain) * self.rows
            if left > 0:
                last = step + (groups - 1) * self.chains + chain
                steps.expect(last, min(left, self.rows), command, final and left <= self.rows)
