"""Packed groups become pieces of the three planes of a packed tensor in memory."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.axi_writer import piece_layout
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.operand_job import PITCH_BITS
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["PlaneWriter", "packed_layout", "planes_layout"]

PLANES = ("codes", "scales", "meta")


def packed_layout(code_bytes: int) -> data.StructLayout:
    """Return a packed group as memory has it: its codes, and a byte of each of the other planes."""
    return data.StructLayout({"codes": 8 * code_bytes, "scales": 8, "meta": 8})


def planes_layout(address_bits: int) -> data.StructLayout:
    """Return a job: where a packed matrix [rows, groups] goes, and in which order it comes.

    ``down``: column of groups by column of groups; otherwise row by row. ``metadata``: it has a
    plane of metadata.
    """
    return data.StructLayout(
        {
            **dict.fromkeys(PLANES, address_bits),
            "codes_pitch": PITCH_BITS,
            "scales_pitch": PITCH_BITS,
            "rows": SIZE_BITS,
            "groups": SIZE_BITS,
            "down": 1,
            "metadata": 1,
        }
    )


class PlaneWriter(Component):
    """Gather a few groups of a row, and write them plane by plane.

    Parameters
    ----------
    code_bytes
        Bytes of a group's codes.
    gather
        Groups of a row that are written together at most; of groups that come down the columns
        each is written by itself.
    address_bits
        Of the bus.
    down
        Whether groups may come column by column; otherwise ``down`` of a job is not looked at.

    Members
    -------
    job : In(stream)
        A matrix, at least a row and a group.
    i : In(packet_stream(packed_layout(code_bytes)))
        Its groups, none before it and none beyond; ``last`` is not looked at.
    piece : Out(stream)
        To an ``AxiWriter``.
    busy : Out(1)
        Groups are still to come, or to be written.
    wraps : Out(1)
        A row lies beyond the last address; nothing more is written.
    """

    def __init__(self, code_bytes: int, gather: int, address_bits: int, *, down: bool) -> None:
        self._code_bytes, self._gather, self._address_bits = code_bytes, gather, address_bits
        self._down = down
        self.most_bytes = gather * code_bytes
        super().__init__(
            {
                "job": In(stream.Signature(planes_layout(address_bits))),
                "i": In(packet_stream(packed_layout(code_bytes))),
                "piece": Out(stream.Signature(piece_layout(address_bits, self.most_bytes))),
                "busy": Out(1),
                "wraps": Out(1),
            }
        )

    def most_words(self, bus_bytes: int) -> int:
        """Return the words of a bus that a piece lies in at most.

        Codes begin at a multiple of a group's or of a word, other planes anywhere.
        """
        apart = max(0, bus_bytes - self._code_bytes)
        return max(
            -(-(apart + self.most_bytes) // bus_bytes),
            -(-(bus_bytes - 1 + self._gather) // bus_bytes),
        )

    def build(self) -> Module:
        """Build what gathers, and what sends."""
        m = Module()
        job = self.job.payload
        active = Signal()
        held = Signal(job.shape(), reset_less=True)
        begins = named(m, "begins", ~active & self.job.valid)
        m.d.comb += [self.job.ready.eq(~active), self.busy.eq(active)]
        with m.If(begins):
            m.d.sync += [active.eq(1), held.eq(job)]

        whole, moves = Signal(), Signal()  # a set is gathered; it goes on to be sent
        groups = [
            Signal(packed_layout(self._code_bytes), name=f"group_{n}", reset_less=True)
            for n in range(self._gather)
        ]
        count = Signal(range(self._gather + 1), reset_less=True)
        closes, final = Signal(reset_less=True), Signal(reset_less=True)
        self._collect(m, begins, held, whole, moves, groups, (count, closes, final))
        ended = self._send(m, begins, held, whole, moves, groups, (count, closes, final))
        with m.If(ended):
            m.d.sync += active.eq(0)
        return m

    def _collect(
        self,
        m: Module,
        begins: Signal,
        held: data.View,
        whole: Signal,
        moves: Signal,
        groups: list[data.View],
        marks: tuple[Signal, Signal, Signal],
    ) -> None:
        """Take groups until a set is full or a row ends."""
        job = self.job.payload
        count, closes, final = marks
        place = Signal(range(self._gather))
        inner_left = Signal(SIZE_BITS, reset_less=True)  # this one included
        outer_left = Signal(SIZE_BITS, reset_less=True)
        row_ends = named(m, "row_ends", inner_left == 1)
        is_down, is_held_down = (self._goes_down(each) for each in (job, held))
        ends = named(m, "set_ends", row_ends | (place == self._gather - 1) | is_held_down)
        m.d.comb += self.i.ready.eq(~whole)
        taken = named(m, "taken", self.i.valid & self.i.ready)
        with m.If(moves):
            m.d.sync += whole.eq(0)
        with m.If(taken):
            m.d.sync += [
                Array(groups)[place].eq(self.i.payload.data),
                place.eq(Mux(ends, 0, place + 1)),
                inner_left.eq(inner_left - 1),
            ]
            with m.If(ends):
                m.d.sync += [
                    whole.eq(1),
                    count.eq(place + 1),
                    closes.eq(row_ends),
                    final.eq(row_ends & (outer_left == 1)),
                ]
            with m.If(row_ends):
                m.d.sync += [
                    inner_left.eq(Mux(is_held_down, held.rows, held.groups)),
                    outer_left.eq(outer_left - 1),
                ]
        with m.If(begins):
            m.d.sync += [
                inner_left.eq(Mux(is_down, job.rows, job.groups)),
                outer_left.eq(Mux(is_down, job.groups, job.rows)),
            ]

    def _send(
        self,
        m: Module,
        begins: Signal,
        held: data.View,
        whole: Signal,
        moves: Signal,
        groups: list[data.View],
        marks: tuple[Signal, Signal, Signal],
    ) -> Signal:
        """Send a set plane by plane; return whether the last one of the job has left."""
        bits, piece = self._address_bits, self.piece
        sending = Signal()
        plane = Signal(range(len(PLANES)))
        contents = [
            Signal(len(groups) * len(Value.cast(groups[0][name])), name=name, reset_less=True)
            for name in PLANES
        ]
        count, closes, final = (
            Signal.like(mark, name=f"sent_{mark.name}", reset_less=True) for mark in marks
        )
        here = [Signal(bits + 1, name=f"{name}_here", reset_less=True) for name in PLANES]
        start = [Signal(bits + 1, name=f"{name}_start", reset_less=True) for name in PLANES]
        scale = self._code_bytes.bit_length() - 1
        lengths = (count << scale, count, count)
        length = named(m, "length", Array(lengths)[plane][: len(piece.payload.length)])
        address = named(m, "address", Array(here)[plane])
        beyond = named(m, "beyond", (address + length) > (1 << bits))
        last_plane = named(m, "last_plane", plane == 1 + held.metadata)
        sent = named(m, "sent", piece.valid & piece.ready)
        m.d.comb += [
            moves.eq(whole & ~sending),
            piece.valid.eq(sending & ~beyond),
            piece.payload.address.eq(address),
            piece.payload.length.eq(length),
            piece.payload.data.eq(Array(contents)[plane]),
            self.wraps.eq(sending & beyond),
        ]
        with m.If(moves):
            m.d.sync += [sending.eq(1), plane.eq(0)]
            for new, old in zip((count, closes, final), marks, strict=True):
                m.d.sync += new.eq(old)
            for name, content in zip(PLANES, contents, strict=True):
                m.d.sync += content.eq(Cat(group[name] for group in groups))
        with m.If(sent):
            m.d.sync += plane.eq(plane + 1)
            with m.If(last_plane):
                m.d.sync += sending.eq(0)
        pitches = (held.codes_pitch, held.scales_pitch, held.scales_pitch)
        sizes, is_down = (self._code_bytes, 1, 1), self._goes_down(held)
        for n, (now, first) in enumerate(zip(here, start, strict=True)):
            # A set that does not close a row is a whole one.
            inner = Mux(is_down, pitches[n], self._gather * sizes[n])
            outer = Mux(is_down, sizes[n], pitches[n])
            # The top bit is a carry beyond the last address, from where nothing goes on.
            following = named(m, f"{PLANES[n]}_next", (now[:bits] + inner)[: bits + 1])
            below = named(m, f"{PLANES[n]}_below", (first[:bits] + outer)[: bits + 1])
            with m.If(sent & (plane == n)):
                m.d.sync += now.eq(Mux(closes, below, following))
                with m.If(closes):
                    m.d.sync += first.eq(below)
            with m.If(begins):
                m.d.sync += [
                    now.eq(self.job.payload[PLANES[n]]),
                    first.eq(self.job.payload[PLANES[n]]),
                ]
        return named(m, "ended", sent & last_plane & final)

    def _goes_down(self, job: data.View) -> Value:
        """Return whether the groups of a job come column by column."""
        return job.down if self._down else Const(0, 1)
