"""How the fetcher of an operand goes on: from a row to the next, from a pass to the next."""

from amaranth.hdl import Array, Module, Signal, Value
from amaranth.lib import stream

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS

__all__ = ["Passes", "next_row", "part_address", "shared_words"]


class Passes:
    """Over a matrix that stays in the slots; of others ``last`` is always high.

    Parameters
    ----------
    slots
        Chunks that are kept.

    Members
    -------
    keeps
        A matrix stays.
    ends, last
        A pass ends with this clock; it is the last one.
    next, home
        Slot of the next chunk that is asked for, and of the first one of the matrix that stays.
    """

    def __init__(self, slots: int) -> None:
        self.keeps = Signal(name="keeps")
        self.ends, self.last = Signal(name="pass_ends"), Signal(name="pass_is_last", init=1)
        self.next = Signal(range(slots), name="slot_next")
        self.home = Signal(range(slots), name="slot_home", reset_less=True)

    def count(self, m: Module, job: stream.Interface, fits: Value, step: int) -> None:
        """Keep a job that ``fits`` until so many passes have ended that all others had theirs."""
        left = Signal(SIZE_BITS, name="passes_left", reset_less=True)
        m.d.comb += self.last.eq(~self.keeps | (left <= step))
        with m.If(job.valid & job.ready):
            m.d.sync += [self.keeps.eq(fits), left.eq(job.payload.others), self.home.eq(self.next)]
        with m.If(self.ends):
            m.d.sync += left.eq(left - step)
            with m.If(self.last):
                m.d.sync += self.keeps.eq(0)


def shared_words(
    m: Module,
    asked: Value,
    plane: Signal,
    planes: int,
    beside: Value,
    first: Value,
    last: Value,
    ends: Value,
) -> tuple[Value, Value]:
    """Return what of a row is there, read as the last word of the row beside it.

    Its first word, and others are not; or all of it, so that nothing is to be read.

    Parameters
    ----------
    m
        Module to build in.
    asked
        The step to the next row or plane.
    plane, planes
        Which one it is, and how many there are.
    beside
        The row before is beside this one.
    first, last
        Words of the bus that the row's part begins and ends in.
    ends
        A chunk ends here, which is read always.
    """
    first, last = named(m, "first_word", first), named(m, "last_word", last)
    covered = Array(Signal(len(last), name=f"covered_{p}", reset_less=True) for p in range(planes))
    with m.If(asked):
        m.d.sync += covered[plane].eq(last)
    shares = named(m, "shares", beside & (first == covered[plane]))
    more = named(m, "more_words", first != last)
    return named(m, "skips", shares & more), named(m, "is_there", shares & ~more & ~ends)


def part_address(m: Module, row: Value, offset: Value, length: Value) -> tuple[Signal, Signal]:
    """Return where a part of a row begins, and whether it goes beyond the last address.

    The top bit of ``row``, where the row begins, is a carry, and so is that of the address: a row
    has less than 2^28 bytes (20 bits of groups, 128 bytes each), and an address 32 bits or more.
    """
    row = named(m, "row_start", row)
    address = named(m, "address", (row[:-1] + offset)[: len(row)])
    over = (address + length) > (1 << len(row) - 1)
    return address, named(m, "beyond", row[-1] | over)


def next_row(
    m: Module,
    now: Signal,
    start: Signal,
    base: Value,
    pitch: Value,
    last_row: Value,
    last_chunk: Value,
    last_block: Value | None,
) -> None:
    """Move an address: to the next row, back to the block, to the next one, or to the first.

    ``now`` is that of the row, ``start`` that of the block; ``last_row`` and the others say what
    ends with this row. Without a ``last_block`` nothing begins again at ``base``.
    """
    # The top bit is a carry beyond the last address, from where nothing goes on.
    after = named(m, f"{now.name}_after", now[:-1] + pitch)
    m.d.sync += now.eq(after)
    with m.If(last_row & ~last_chunk):
        m.d.sync += now.eq(start)
    with m.If(last_row & last_chunk):
        m.d.sync += start.eq(after)
        if last_block is not None:
            with m.If(last_block):
                m.d.sync += [now.eq(base), start.eq(base)]
