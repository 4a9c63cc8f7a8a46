"""Loader and sequencer of the mixed GEMM: those of ``GemmCore``, with segments of k."""

from amaranth.hdl import Array, Const, Module
from amaranth.lib import data
from amaranth.lib.wiring import Out

from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.gemm_loader import PanelLoader
from m2xfp.rtl.parts.gemm_sequencer import Ends, Position, Sequencer, Sums
from m2xfp.rtl.parts.mixed_layouts import (
    SEGMENTS,
    checked_layout,
    job_layout,
    kind_layout,
    marked_tile_layout,
    word_layout,
)
from m2xfp.rtl.parts.switch_front import is_mode
from m2xfp.rtl.parts.switch_pair import SwitchPair

__all__ = ["SlotLoader", "SlotSequencer"]


class SlotLoader(PanelLoader):
    """Fill the weight buffers with the beats of a command's segments.

    Parameters
    ----------
    pair
        Numbers of the cells.
    columns
        Weight rows (columns of the result) a panel.
    depth
        Beats that a buffer holds of each.
    """

    def __init__(self, pair: SwitchPair, columns: int, depth: int) -> None:
        super().__init__(columns, depth, checked_layout, job_layout, ("beat", word_layout(pair)))

    def check(self, m: Module, command: data.View, job: data.View) -> None:
        """Hand on what ``SegmentChecker`` found."""
        m.d.comb += [
            job.groups.eq(command.groups),
            job.slots.eq(command.slots),
            *(
                job.faults[name].eq(command.faults[name])
                for name in ("bad_k", "bad_segments", "bad_pair")
            ),
        ]


class SlotSequencer(Sequencer):
    """Step through a command, beat by beat of k, and say what the beats are.

    Parameters
    ----------
    rows, columns, chains
        Size of the array, and accumulators a cell.
    depth
        Beats that a weight buffer holds of each row.
    pair
        Numbers of the cells.
    by_segment
        Each segment is a sum of its own, and its results leave the array.
    """

    def __init__(
        self, rows: int, columns: int, chains: int, depth: int, pair: SwitchPair, by_segment: bool
    ) -> None:
        self._pair, self._by_segment = pair, by_segment
        tile = marked_tile_layout(rows, columns, chains)
        more = {"kind": Out(kind_layout)}
        self._set_up(rows, columns, chains, depth, job_layout, tile, more)

    def _sums(self, m: Module, at: Position, ends: Ends) -> Sums:
        """Find the segment of the beat, and where in it the beat is."""
        pair, slots = self._pair, self.job.payload.slots
        ends_at = [slots[n].end[: self._max_groups.bit_length()] for n in range(SEGMENTS)]
        behind = [named(m, f"behind_{n}", at.group >= end) for n, end in enumerate(ends_at[:-1])]
        number = named(m, "segment", sum(behind[1:], behind[0]))
        now = Array(slots[n].as_value() for n in range(SEGMENTS))[number]
        slot = data.View(slots[0].shape(), named(m, "slot", now))
        start = named(m, "segment_start", Array([Const(0, 1), *ends_at[:-1]])[number])
        end = named(m, "segment_end", Array(ends_at)[number])
        within = named(m, "within", (at.group - start)[: len(at.group)])
        beat_bits = (pair.beats - 1).bit_length()
        beat = named(m, "beat", within[:beat_bits])
        # A group's beats all count as the first of the sum.
        opening = named(m, "opening_group", ~within[beat_bits:].any() & (slot.wide | ~beat.any()))
        last_of_segment = named(m, "segment_ends", at.group + 1 == end)
        mode = self.kind.mode
        m.d.comb += [
            mode.act.eq(slot.act),
            mode.weight.eq(slot.weight),
            self.kind.narrow.eq(is_mode(mode, pair.pairs.narrow)),
            self.kind.opening.eq(~slot.wide | ~beat.any()),
            self.kind.closing.eq(~slot.wide | beat.all()),
            self.tile.begins.eq(start == 0),
            self.tile.given.eq(1),
            self.tile.chain.eq(at.chain),
        ]
        if not self._by_segment:
            return Sums(opening & (start == 0), ends.group)
        m.d.comb += self.tile.given.eq(ends.group | self.tile.last)
        return Sums(opening, last_of_segment, ~ends.group)
