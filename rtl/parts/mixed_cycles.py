"""The clocks of the mixed GEMM, counted without simulating it: exact where no stream pauses."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["MixedTiming", "SlotCommand"]

_CHECK = 3  # clocks in which a command's table is looked at


class _Core(Protocol):
    rows: int
    columns: int
    chains: int
    results: str
    array_latency: int
    output_latency: int


@dataclass(frozen=True)
class SlotCommand:
    """A product: m, n, and the beats behind each segment of k that is not empty."""

    m: int
    n: int
    ends: Sequence[int]


@dataclass(frozen=True)
class _Tile:
    """Results of the whole array: when they arrive, and what they are."""

    step: int
    rows: int
    place: int
    begins: bool
    command: int
    last: bool


class _Drain:
    """The results behind the array, which stands still while one finds no room.

    Parameters
    ----------
    slots
        Results of the whole array that the FIFO holds.
    wait
        Clocks from a row of a place to the next one that is added to it.
    """

    def __init__(self, slots: int, wait: int) -> None:
        self._stalls, self._wait = 0, wait
        self._expected: deque[_Tile] = deque()
        self._free = deque([0] * slots)
        self._drained = self._reported = 0
        self._left: dict[int, int] = {}  # clock in which the latest row of a place was taken
        self.finished: dict[int, int] = {}

    def expect(self, tile: _Tile) -> None:
        """Note results that are to come."""
        self._expected.append(tile)

    def clock(self, step: int) -> int:
        """Return the clock of a step, once all results that arrive until then are known."""
        while self._expected and self._expected[0].step <= step:
            self._arrive()
        return step + self._stalls

    def not_before(self, step: int, clock: int) -> int:
        """Return the first step from ``step`` on that is not before ``clock``."""
        while (gap := clock - self.clock(step)) > 0:
            step += min(gap, self._expected[0].step - step) if self._expected else gap
        return step

    def flush(self) -> None:
        """Let all results that are under way leave."""
        while self._expected:
            self._arrive()

    def _arrive(self) -> None:
        tile = self._expected.popleft()
        arrival = max(tile.step + self._stalls, self._free.popleft())
        self._stalls = arrival - tile.step
        self._drained = max(arrival, self._drained, self._reported if tile.last else 0)
        for place in range(tile.place, tile.place + tile.rows):
            earlier = 0 if tile.begins else self._left[place] + self._wait
            self._drained = self._left[place] = max(self._drained + 1, earlier)
        if tile.last:
            self._reported = self._drained + 1
        self._free.append(self._drained + 1)
        self.finished[tile.command] = self._drained


@dataclass(frozen=True)
class MixedTiming:
    """What the clocks of a mixed GEMM depend on.

    Members
    -------
    rows, columns, chains
        Size of the array, and accumulators a cell.
    array_latency, output_latency
        Steps through the array; clocks behind the FIFO of results.
    by_segment
        The results of each segment leave the array.
    """

    rows: int
    columns: int
    chains: int
    array_latency: int
    output_latency: int
    by_segment: bool

    @classmethod
    def of(cls, core: _Core) -> "MixedTiming":
        """Return the timing of a ``MixedGemm``."""
        return cls(
            core.rows,
            core.columns,
            core.chains,
            core.array_latency,
            core.output_latency,
            core.results == "segments",
        )

    def finish(self, commands: Iterable[SlotCommand]) -> list[int]:
        """Return when the last result of each command is accepted, the first command at clock 0.

        Commands and operands are offered at once; the core takes each as early as it can.
        """
        drain = _Drain(max(2, self.chains), self.output_latency)
        step = loaded = accepted = 0
        released = [0, 0]  # clock in which each weight buffer was last used up
        ended = [-1, -1]  # the same of the last two commands
        panel = 0
        for number, command in enumerate(commands):
            # One command runs, one waits for it, one is looked at, and the next waits outside.
            soonest = accepted + _CHECK + 1 if number else _CHECK
            accepted = max(loaded + 1, ended[0] + 1, soonest) if number else soonest
            loaded = max(loaded, accepted)
            earliest = max(accepted, ended[1]) + 2
            for column in range(0, command.n, self.columns):
                width = min(self.columns, command.n - column)
                loaded = max(loaded, released[panel % 2]) + width * command.ends[-1]
                step = drain.not_before(step, max(loaded + 1, earliest))
                final = column + self.columns >= command.n
                step = self._panel(drain, step, number, command, final)
                released[panel % 2] = drain.clock(step - 1)
                earliest = released[panel % 2] + 1
                panel += 1
            ended = [ended[1], earliest - 1]
        drain.flush()
        return [drain.finished[n] + self.output_latency for n in sorted(drain.finished)]

    def _panel(
        self, drain: _Drain, step: int, number: int, command: SlotCommand, final: bool
    ) -> int:
        """Note the results of a panel that begins with a step; return the step behind it."""
        ends = command.ends if self.by_segment else command.ends[-1:]
        for first in range(0, command.m, self.rows * self.chains):
            for segment, end in enumerate(ends):
                for chain in range(self.chains):
                    left = command.m - first - chain * self.rows
                    if left > 0:
                        drain.expect(
                            _Tile(
                                step + (end - 1) * self.chains + chain + self.array_latency,
                                min(left, self.rows),
                                chain * self.rows,
                                segment == 0,
                                number,
                                final and left <= self.rows and end == command.ends[-1],
                            )
                        )
            step += command.ends[-1] * self.chains
        return step
