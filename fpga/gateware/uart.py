"""A UART: bytes from and to a serial line, 8 data bits, no parity, one stop bit."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.rtl.verilog.component import Component

__all__ = ["MIN_CLOCKS_PER_BIT", "UartReceiver", "UartTransmitter", "clocks_per_bit"]

MIN_CLOCKS_PER_BIT = 8
"""Below this, one clock of uncertainty about the start edge is more than an eighth of a bit."""

MAX_BAUD_ERROR = 0.02


def clocks_per_bit(clock_hz: float, baud: int) -> int:
    """Return the whole number of clocks that a bit takes, the nearest one.

    Raises
    ------
    InputError
        If the clock is too slow, or the rate that results is more than 2 % off: two ends that are
        off by 2 % in opposite directions still sample the stop bit, 9.5 bits after the start edge,
        within its 1 bit (9.5 * 4 % = 0.38 bits), and more would leave nothing for slow edges.
    """
    if baud < 1 or clock_hz <= 0:
        raise InputError(f"baud={baud}, clock_hz={clock_hz}: must both be positive")
    clocks = round(clock_hz / baud)
    if clocks < MIN_CLOCKS_PER_BIT:
        raise InputError(
            f"baud={baud}: a clock of {clock_hz:.0f} Hz gives {clock_hz / baud:.1f} clocks a bit, "
            f"at least {MIN_CLOCKS_PER_BIT} are needed; "
            f"choose at most {int(clock_hz / MIN_CLOCKS_PER_BIT)}"
        )
    error = clock_hz / clocks / baud - 1
    if abs(error) > MAX_BAUD_ERROR:
        raise InputError(
            f"baud={baud}: {clocks} clocks of {clock_hz:.0f} Hz are off by {error:+.1%}, at most "
            f"{MAX_BAUD_ERROR:.0%} is allowed; near it fit {clock_hz / clocks:.0f} and "
            f"{clock_hz / (clocks + (1 if error > 0 else -1)):.0f}"
        )
    return clocks


class UartReceiver(Component):
    """Receive bytes from a serial line.

    The line goes through two flip-flops and a majority of three samples, so a glitch shorter than a
    clock, which shows in one sample at most, changes nothing. A start bit that is not low any more
    in its middle is none. Each bit is taken in its middle.

    Parameters
    ----------
    divisor
        Clocks a bit, see ``clocks_per_bit``.

    Members
    -------
    rx : In(1)
        The line, asynchronous, high when idle.
    data : Out(8)
        The byte, while ``valid``.
    valid : Out(1)
        A byte has arrived; one clock.
    broken : Out(1)
        The stop bit was low: the line was disturbed, is off, or runs at another rate; one clock,
        instead of ``valid``. The receiver then waits for the line to be high.
    """

    def __init__(self, divisor: int) -> None:
        self._divisor = divisor
        super().__init__({"rx": In(1), "data": Out(8), "valid": Out(1), "broken": Out(1)})

    def build(self) -> Module:
        """Build the sampler and the shift register."""
        m = Module()
        # Where the line changes with the clock, the first flip-flop may waver; the second does not.
        samples = Signal(4, init=0b1111)
        settled = samples[1:]
        level = Signal()
        m.d.sync += samples.eq(Cat(self.rx, samples[:3]))
        m.d.comb += level.eq(
            (settled[0] & settled[1]) | (settled[0] & settled[2]) | (settled[1] & settled[2])
        )

        timer = Signal(range(self._divisor))
        bits = Signal(range(10))  # still to be taken, the stop bit too
        m.d.comb += self.data.eq(shift := Signal(8, reset_less=True))
        waiting = Signal(init=1)  # for a falling edge
        high = Signal()  # seen since the last byte
        starting = Signal()

        m.d.sync += [self.valid.eq(0), self.broken.eq(0)]
        with m.If(waiting):
            # An edge is seen up to a clock late, so half a bit is rounded down.
            m.d.sync += [timer.eq((self._divisor - 1) // 2 - 1), high.eq(high | level)]
            with m.If(high & ~level):
                m.d.sync += [waiting.eq(0), starting.eq(1), bits.eq(9)]
        with m.Elif(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Else():
            m.d.sync += [timer.eq(self._divisor - 1), starting.eq(0)]
            with m.If(starting):
                m.d.sync += waiting.eq(level)
            with m.Elif(bits != 1):
                m.d.sync += [bits.eq(bits - 1), shift.eq(Cat(shift[1:], level))]
            with m.Else():
                m.d.sync += [
                    waiting.eq(1),
                    high.eq(level),
                    self.valid.eq(level),
                    self.broken.eq(~level),
                ]
        return m


class UartTransmitter(Component):
    """Send bytes on a serial line, without a pause between them.

    Parameters
    ----------
    divisor
        Clocks a bit, see ``clocks_per_bit``.

    Members
    -------
    i : In(stream.Signature(8))
        Bytes.
    tx : Out(1)
        The line, high when idle.
    """

    def __init__(self, divisor: int) -> None:
        self._divisor = divisor
        super().__init__({"i": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def build(self) -> Module:
        """Build the timer and the shift register."""
        m = Module()
        timer = Signal(range(self._divisor))
        bits = Signal(range(11))  # still to be sent, this one included
        shift = Signal(9, init=0x1FF)
        ends = Signal()  # of the last bit, or nothing is sent
        m.d.comb += [
            ends.eq((bits == 0) | ((bits == 1) & (timer == 0))),
            self.i.ready.eq(ends),
            self.tx.eq(shift[0]),
        ]
        with m.If(ends):
            m.d.sync += bits.eq(0)
            with m.If(self.i.valid):
                m.d.sync += [
                    bits.eq(10),
                    timer.eq(self._divisor - 1),
                    shift.eq(Cat(0, self.i.payload)),
                ]
        with m.Elif(timer == 0):
            m.d.sync += [
                timer.eq(self._divisor - 1),
                bits.eq(bits - 1),
                shift.eq(Cat(shift[1:], 1)),
            ]
        with m.Else():
            m.d.sync += timer.eq(timer - 1)
        return m
