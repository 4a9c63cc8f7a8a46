"""Packed matrices in memory become the beats that the GEMM core takes."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from m2xfp.formats import BlockFormat
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.axi_reader import request_layout
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.rtl.parts.layouts import group_layout
from m2xfp.rtl.parts.operand_job import fetch_layout, tag_layout
from m2xfp.rtl.parts.operand_steps import Passes, next_row, part_address, shared_words
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.parts.word_memory import WordMemory
from m2xfp.rtl.verilog.component import Component

__all__ = ["OperandFetcher"]

_FIELDS = ("codes", "scale", "meta")


class OperandFetcher(Component):
    """Read a packed matrix from memory, as often as asked, and give it in the GEMM core's order.

    The matrix is cut into blocks of ``rows * turns`` rows, and these into chunks: of ``chunk``
    groups, in whole words of scales where it has some, and the last one of what is left once that
    is no more than ``chunk``. A chunk is read row by row, plane by plane, codes last, into one of a
    few slots, while the others are given away or read: for each group, for each turn, ``rows``
    groups a beat. A matrix of one block that fits the slots stays there until its last pass.

    Words lie in the slots as they lie in memory; where a row begins in its first word is kept
    beside them, so rows may begin at any byte, those of codes at any multiple of 16 or of the bus.
    Where a row ends in a word in which the row beside it begins, the word is read once.

    Parameters
    ----------
    block
        Format of the groups; or the bytes of one, at most a word of the bus, if the matrix is not
        packed: then it is one plane, that of the codes.
    address_bits, bus_bytes
        Of the bus.
    rows, turns
        Groups a beat, and beats a group of a block.
    chunk, most_groups
        Groups of a row that are read together, and groups of a row at most.
    step
        Rows of the other matrix that a pass is for; None if there is one pass whatever ``others``.
    slots
        Chunks that are read, or kept to be given, at the same time, a power of two.

    Members
    -------
    job : In(stream)
        A matrix, at least a row and a group.
    request : Out(stream)
        To an ``AxiReader``.
    valid, word, tag, first, closes : In
        What it brings.
    o : Out(packet_stream(ArrayLayout(group, rows)))
        The groups; ``last`` on the last beat of the last pass. Rows beyond the matrix are anything,
        beats of nothing else are left out.
    wraps : Out(1)
        A row lies beyond the last address; nothing more is read.
    """

    def __init__(
        self,
        block: BlockFormat | int,
        address_bits: int,
        bus_bytes: int,
        rows: int,
        turns: int,
        chunk: int,
        most_groups: int,
        step: int | None,
        slots: int,
    ) -> None:
        self._step, self._slots = step, slots
        self._bus, self._chunk, self._most_groups = bus_bytes, chunk, most_groups
        # Groups from a chunk to the next.
        self._advance = chunk if chunk <= bus_bytes else chunk // bus_bytes * bus_bytes
        self._rows, self._turns, self._address_bits = rows, turns, address_bits
        if isinstance(block, int):
            self.group_bytes, self._planes, self._first_plane = block, 1, 0
            layout = data.StructLayout({"codes": 8 * block})
        else:
            self.group_bytes = block.group * block.element.bits // 8
            self._planes, self._first_plane = 3 if block.subgroups else 2, 1
            layout = group_layout(block)
        self.length_bits = (chunk * self.group_bytes).bit_length()
        self._tag = tag_layout(rows, turns, slots)
        self.tag_bits = self._tag.size
        # Words that a row's part of a chunk lies in at most.
        code_words = -(-(chunk * self.group_bytes + bus_bytes - self.group_bytes) // bus_bytes)
        self._words = (code_words, *[-(-(chunk + bus_bytes - 1) // bus_bytes)] * 2)
        self.most_words = max(self._words[: self._planes])
        super().__init__(
            {
                "job": In(stream.Signature(fetch_layout(address_bits))),
                "request": Out(
                    stream.Signature(request_layout(address_bits, self.length_bits, self.tag_bits))
                ),
                "valid": In(1),
                "word": In(8 * bus_bytes),
                "tag": In(self.tag_bits),
                "first": In(1),
                "closes": In(1),
                "o": Out(packet_stream(data.ArrayLayout(layout, rows))),
                "wraps": Out(1),
            }
        )

    def build(self) -> Module:
        """Build what asks, the slots, and what gives."""
        m = Module()
        claimed, full = Signal(self._slots), Signal(self._slots)
        passes = Passes(self._slots)
        if self._step is not None:
            job, capacity = self.job.payload, self._chunk + (self._slots - 1) * self._advance
            groups = job.groups[: self._most_groups.bit_length()]
            fits = (job.rows <= self._rows * self._turns) & (groups <= capacity)
            passes.count(m, self.job, fits, self._step)
        used = self._give(m, full, passes, *self._ask(m, claimed, passes))
        self._fill(m, full)
        for slot in range(self._slots):
            with m.If(used[slot]):
                m.d.sync += [full[slot].eq(0), claimed[slot].eq(0)]
        return m

    def _ask(
        self, m: Module, claimed: Signal, passes: Passes
    ) -> tuple[list[Array], list[Signal], Array]:
        """Step through blocks, chunks, rows and planes; return what is kept of each slot."""
        job, request, planes, slots = self.job.payload, self.request, self._planes, self._slots
        bits, lanes = self._address_bits + 1, (self._bus - 1).bit_length()
        block_rows, most = self._rows * self._turns, self._most_groups
        active = Signal()
        slot = Signal(range(slots))
        plane = Signal(2, init=self._first_plane)
        row = Signal(range(self._rows), name="row")
        turn = Signal(range(self._turns), name="turn")
        begins = Signal()  # of a chunk
        held = Signal(job.shape(), reset_less=True)
        offset = Signal(range(max(2, most)), reset_less=True)  # groups before this chunk
        # This chunk included.
        groups_left = Signal(range(most + 1), reset_less=True)
        rows_left = Signal(SIZE_BITS, reset_less=True)  # this row included
        block_left = Signal(SIZE_BITS, reset_less=True)  # this block included
        others_left = Signal(SIZE_BITS, reset_less=True)
        here = [Signal(bits, name=f"here_{p}", reset_less=True) for p in range(planes)]
        block = [Signal(bits, name=f"block_{p}", reset_less=True) for p in range(planes)]

        last_chunk = named(m, "last_chunk", groups_left <= self._chunk)
        count = named(
            m,
            "count",
            Mux(last_chunk, groups_left, self._advance)[: self._chunk.bit_length()],
        )
        codes = named(m, "codes", plane == 0)
        scale = self.group_bytes.bit_length() - 1
        shift = Mux(codes, offset << scale, offset)
        length = named(m, "length", Mux(codes, count << scale, count)[: self.length_bits])
        address, beyond = part_address(m, Array(here)[plane], shift, length)
        last_plane = named(m, "last_plane", codes)
        last_row = named(
            m,
            "last_row",
            (rows_left == 1) | ((row == self._rows - 1) & (turn == self._turns - 1)),
        )
        last_block = named(m, "last_block", rows_left == 1)
        last_pass = named(
            m,
            "last_pass",
            1 if self._step is None else passes.keeps | (others_left <= self._step),
        )
        may = named(m, "may", active & (~begins | ~claimed.bit_select(slot, 1)))
        ends = named(m, "ends", last_plane & last_row)
        asked = Signal()
        skips: Value = Const(0, 1)
        is_there: Value = Const(0, 1)
        if self._rows > 1:
            first, final = (at[lanes : bits - 1] for at in (address, address + length - 1))
            beside = row != 0
            skips, is_there = shared_words(m, asked, plane, planes, beside, first, final, ends)
        tag = data.View(self._tag, request.payload.tag)
        m.d.comb += [
            self.job.ready.eq(~active & ~passes.keeps),
            passes.next.eq(slot),
            self.wraps.eq(may & beyond),
            request.valid.eq(may & ~beyond & ~is_there),
            request.payload.address.eq(address),
            request.payload.length.eq(length),
            request.payload.skips.eq(skips),
            tag.plane.eq(plane),
            tag.row.eq(row),
            tag.turn.eq(turn),
            tag.slot.eq(slot),
            tag.skips.eq(skips),
            tag.ends.eq(ends),
        ]

        # Where each row begins in its first word, in bytes or, of codes, in groups.
        place = Cat(row[: (self._rows - 1).bit_length()], turn[: (self._turns - 1).bit_length()])
        span = (1 << (self._rows - 1).bit_length()) * (1 << (self._turns - 1).bit_length())
        place = Cat(place, slot)
        skip = (scale, 0, 0)
        begin = [
            Array(
                Signal(max(0, lanes - skip[p]), name=f"begin_{p}_{n}", reset_less=True)
                for n in range(slots * span)
            )
            for p in range(planes)
        ]
        chunk_rows = Array(Signal(range(block_rows + 1), name=f"rows_{n}") for n in range(slots))
        chunk_groups = [
            Signal(range(self._chunk + 1), name=f"groups_{n}", reset_less=True)
            for n in range(slots)
        ]
        chunk_last = [Signal(name=f"last_{n}", reset_less=True) for n in range(slots)]

        with m.If(self.job.ready):
            m.d.sync += [
                active.eq(self.job.valid),
                held.eq(job),
                offset.eq(0),
                groups_left.eq(job.groups),
                rows_left.eq(job.rows),
                block_left.eq(job.rows),
                others_left.eq(job.others),
                begins.eq(1),
            ]
            for p, base in zip(range(planes), (job.codes, job.scales, job.meta), strict=False):
                m.d.sync += [here[p].eq(base), block[p].eq(base)]
        m.d.comb += asked.eq(may & ~beyond & (is_there | request.ready))
        bases = (held.codes, held.scales, held.meta)
        again = None if self._step is None else last_block
        pitches = (held.codes_pitch, held.scales_pitch, held.scales_pitch)
        with m.If(asked):
            for p in range(planes):
                with m.If(plane == p):
                    m.d.sync += begin[p][place].eq(address[skip[p] : lanes])
            m.d.sync += begins.eq(0)
            if planes > 1:
                # Codes come last: those of the last row are always read, and end the chunk.
                following = Mux(plane == planes - 1, 0, plane + 1)
                m.d.sync += plane.eq(Mux(last_plane, self._first_plane, following))
            with m.If(begins):
                for n in range(slots):
                    with m.If(slot == n):
                        m.d.sync += [
                            claimed[n].eq(1),
                            chunk_groups[n].eq(count),
                            chunk_rows[n].eq(Mux(block_left < block_rows, block_left, block_rows)),
                            chunk_last[n].eq(last_pass & last_chunk & (block_left <= block_rows)),
                        ]
            with m.If(last_plane):
                for pointers in zip(here, block, bases, pitches, strict=False):
                    next_row(m, *pointers, last_row, last_chunk, again)
                m.d.sync += [rows_left.eq(rows_left - 1), row.eq(row + 1)]
                with m.If(row == self._rows - 1):
                    m.d.sync += [row.eq(0), turn.eq(turn + 1)]
            with m.If(ends):
                m.d.sync += [
                    row.eq(0),
                    turn.eq(0),
                    slot.eq(slot + 1),
                    begins.eq(1),
                    rows_left.eq(block_left),
                    groups_left.eq(groups_left - self._advance),
                    offset.eq(offset + self._advance),
                ]
                with m.If(last_chunk):
                    m.d.sync += [groups_left.eq(held.groups), offset.eq(0)]
                    m.d.sync += [rows_left.eq(rows_left - 1), block_left.eq(rows_left - 1)]
                with m.If(last_chunk & last_block):
                    m.d.sync += active.eq(~last_pass)
                    if self._step is not None:
                        m.d.sync += [
                            rows_left.eq(held.rows),
                            block_left.eq(held.rows),
                            others_left.eq(others_left - self._step),
                        ]
        return begin, [*chunk_groups, *chunk_last], chunk_rows

    def _fill(self, m: Module, full: Signal) -> None:
        """Store what comes."""
        tag = data.View(self._tag, self.tag)
        index = Signal(range(max(self._words)), reset_less=True)
        at = named(m, "index_now", Mux(self.first, tag.skips, index))
        with m.If(self.valid):
            m.d.sync += index.eq(at + 1)
        with m.If(self.valid & self.closes & tag.ends):
            m.d.sync += full.bit_select(tag.slot, 1).eq(1)
        for plane in range(self._planes):
            place = self._place(m, plane, tag.turn, tag.slot, "filled")
            for row in range(self._rows):
                memory = self._memories[row][plane]
                mine = tag.row == row
                # The last word of a row may be the first one of those beside it. Where it is not,
                # their own first word comes later.
                begins = self.closes & (tag.row < row) if row else Const(0, 1)
                word = Mux(mine, at, 0) if row else at
                m.d.comb += [
                    memory.write.eq(self.valid & (mine | begins) & (tag.plane == plane)),
                    memory.write_address.eq(self._address(plane, word, place)),
                    memory.write_data.eq(self.word),
                ]

    def _place(self, m: Module, plane: int, turn: Value, slot: Value, name: str) -> Value:
        """Return where a turn of a slot begins in the memory of a plane."""
        start = (slot * self._turns + turn) * self._words[plane]
        bits = (self._slots * self._turns * self._words[plane] - 1).bit_length()
        return named(m, f"{_FIELDS[plane]}_{name}", start[:bits])

    def _address(self, plane: int, word: Value, place: Value) -> Value:
        """Return where a word behind ``place`` is kept."""
        return place + word[: (self._words[plane] - 1).bit_length()]

    def _give(
        self,
        m: Module,
        full: Signal,
        passes: Passes,
        begin: list[Array],
        kept: list[Signal],
        chunk_rows: Array,
    ) -> Signal:
        """Give the slots away; return which one is used up with this clock."""
        lanes = (self._bus - 1).bit_length()
        scale = self.group_bytes.bit_length() - 1
        slots = self._slots
        slot = Signal(range(slots), name="slot_given")
        group = Signal(range(self._chunk), name="group_given")
        turn = Signal(range(self._turns), name="turn_given")
        groups, last = (Array(kept[n : n + slots])[slot] for n in (0, slots))
        group_ends = named(m, "group_ends", group + 1 == groups)
        turn_ends = named(m, "turn_ends", (turn + 1) * self._rows >= chunk_rows[slot])
        there = Signal()
        go = named(m, "go", full.bit_select(slot, 1) & (~there | self.o.ready))
        ends = named(m, "chunk_ends", go & group_ends & turn_ends)
        used = Signal(slots)
        m.d.comb += [
            passes.ends.eq(ends & last),
            used.eq(Mux(passes.last, ends << slot, 0)),
        ]
        with m.If(self.o.ready):
            m.d.sync += there.eq(0)
        final = Signal(reset_less=True)
        with m.If(go):
            m.d.sync += [
                there.eq(1),
                final.eq(last & group_ends & turn_ends & passes.last),
                turn.eq(Mux(turn_ends, 0, turn + 1)),
            ]
            with m.If(turn_ends):
                m.d.sync += group.eq(group + 1)
            with m.If(ends):
                m.d.sync += [group.eq(0), slot.eq(slot + 1)]
                if self._step is not None:
                    with m.If(last & ~passes.last):
                        m.d.sync += slot.eq(passes.home)
        m.d.comb += [self.o.valid.eq(there), self.o.payload.last.eq(final)]

        row_bits, turn_bits = ((n - 1).bit_length() for n in (self._rows, self._turns))
        skip = (scale, 0, 0)
        width = (8 * self.group_bytes, 8, 8)
        places = [self._place(m, plane, turn, slot, "given") for plane in range(self._planes)]
        self._memories: list[list[WordMemory]] = []
        for row in range(self._rows):
            place = Cat(Const(row, row_bits), turn[:turn_bits], slot)
            found: list[WordMemory] = []
            for plane in range(self._planes):
                words = self._words[plane]
                memory = WordMemory(8 * self._bus, slots * self._turns * words)
                m.submodules[f"{_FIELDS[plane]}_{row}"] = memory
                found.append(memory)
                inside = max(0, lanes - skip[plane])
                start = begin[plane][place] if inside else Const(0, 1)
                where = named(m, f"{_FIELDS[plane]}_{row}_at", group + start)
                m.d.comb += [
                    memory.read.eq(go),
                    memory.read_address.eq(
                        self._address(plane, Cat(where[inside:], Const(0, 8)), places[plane])
                    ),
                ]
                read = memory.read_data
                if inside:
                    chosen = Signal(inside, name=f"{_FIELDS[plane]}_{row}_lane", reset_less=True)
                    with m.If(go):
                        m.d.sync += chosen.eq(where[:inside])
                    read = read.word_select(chosen, width[plane])
                target = getattr(self.o.payload.data[row], _FIELDS[plane])
                m.d.comb += Value.cast(target).eq(read)
            self._memories.append(found)
        return used
