"""Values from memory, or results of the GEMM core, become packed groups."""

from typing import Any, Protocol

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from m2xfp.formats import BF16, FP32, InputType
from m2xfp.rtl.arith.datapath import named
from m2xfp.rtl.parts.layouts import value_layout
from m2xfp.rtl.parts.plane_writer import packed_layout
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.verilog.component import Component

__all__ = ["Engine", "PackingEngine", "ValueBeats", "engine_kinds"]


class Engine(Protocol):
    """A unit that packs values: a quantizer, or an encoder."""

    input_type: InputType
    i: stream.Interface
    o: stream.Interface

    def elaborate(self, platform: Any) -> Module:
        """Build it, as Amaranth asks for it."""
        ...


def engine_kinds(kind: InputType | None) -> tuple[bool, bool]:
    """Return whether an engine for a type takes FP32 values, and bf16 ones: those are FP32 too."""
    return kind is FP32, kind is not None


class ValueBeats(Component):
    """Turn beats of so many bytes into beats of values.

    Parameters
    ----------
    kind
        What comes out: FP32, into which bf16 is widened; or BF16 alone.
    lanes
        Values a beat: two bytes of bf16 each make a beat, or two beats of FP32.

    Members
    -------
    i : In(packet_stream(16 * lanes))
        The bytes.
    wide : In(1)
        They are FP32; constant while a matrix comes.
    o : Out(packet_stream(ArrayLayout(value, lanes)))
        The values.
    """

    def __init__(self, kind: InputType, lanes: int) -> None:
        self._kind, self._lanes = kind, lanes
        super().__init__(
            {
                "i": In(packet_stream(16 * lanes)),
                "wide": In(1),
                "o": Out(packet_stream(data.ArrayLayout(value_layout(kind), lanes))),
            }
        )

    def build(self) -> Module:
        """Build the register of the first half, or wires."""
        m = Module()
        i, o = self.i, self.o
        m.d.comb += o.payload.last.eq(i.payload.last)
        values = Value.cast(o.payload.data)
        if self._kind is BF16:
            m.d.comb += [
                o.valid.eq(i.valid),
                i.ready.eq(o.ready),
                values.eq(i.payload.data),
            ]
            return m
        has_half = Signal()
        half = Signal(16 * self._lanes, reset_less=True)
        first = named(m, "first_half", self.wide & ~has_half)
        widened = Cat(
            Cat(Const(0, 16), i.payload.data.word_select(n, 16)) for n in range(self._lanes)
        )
        m.d.comb += [
            o.valid.eq(i.valid & ~first),
            i.ready.eq(o.ready | first),
            values.eq(Mux(self.wide, Cat(half, i.payload.data), widened)),
        ]
        with m.If(i.valid & i.ready):
            m.d.sync += [has_half.eq(first), half.eq(i.payload.data)]
        return m


class PackingEngine(Component):
    """Pack values with an activation quantizer, or with a weight encoder.

    Parameters
    ----------
    code_bytes
        Bytes of a group's codes.
    quantizer, encoder
        What packs activations, and weights; none leaves one out.
    lanes
        Values a beat.
    columns
        Results a beat of the GEMM core if they can be packed: the group; 0 if they cannot.

    Members
    -------
    i : In(packet_stream(16 * lanes))
        Values as memory has them.
    results : In(stream of ArrayLayout(32, columns))
        Rows of results, of a group each, if they can be packed.
    wide, encode, packs_results : In(1)
        Values are FP32; they go to the encoder; results are packed, not values. Constant while a
        matrix comes.
    o : Out(packet_stream(packed_layout(code_bytes)))
        Packed groups.
    """

    def __init__(
        self,
        code_bytes: int,
        quantizer: Engine | None,
        encoder: Engine | None,
        lanes: int,
        columns: int,
    ) -> None:
        self._lanes, self._columns = lanes, columns
        self._quantizer, self._encoder = quantizer, encoder
        members = {
            "i": In(packet_stream(16 * lanes)),
            "wide": In(1),
            "encode": In(1),
            "packs_results": In(1),
            "o": Out(packet_stream(packed_layout(code_bytes))),
        }
        if columns:
            results = data.ArrayLayout(value_layout(FP32), columns)
            members["results"] = In(packet_stream(results))
        super().__init__(members)

    def build(self) -> Module:
        """Build the engines, and what leads to them and away."""
        m = Module()
        i, o = self.i, self.o
        engines: list[tuple[str, Engine | None, Value]] = [
            ("quantizer", self._quantizer, ~self.encode),
            ("encoder", self._encoder, self.encode),
        ]
        alone = self._quantizer is None or self._encoder is None
        for name, engine, is_meant in engines:
            if engine is None:
                continue
            chosen = Const(1) if alone else is_meant
            m.submodules[name] = engine
            beats = ValueBeats(engine.input_type, self._lanes)
            m.submodules[f"{name}_beats"] = beats
            m.d.comb += [
                beats.wide.eq(self.wide),
                beats.i.valid.eq(i.valid & chosen),
                beats.i.payload.eq(i.payload),
            ]
            if self._columns and name == "quantizer":
                self._choose(m, beats.o, engine.i)
            else:
                wiring.connect(m, beats.o, engine.i)
            group = engine.o.payload.data
            meta = Value.cast(group.meta) if "meta" in dict(group.shape()) else Const(0, 8)
            with m.If(chosen):
                m.d.comb += [
                    i.ready.eq(beats.i.ready),
                    o.valid.eq(engine.o.valid),
                    o.payload.last.eq(engine.o.payload.last),
                    o.payload.data.codes.eq(Value.cast(group.codes)),
                    o.payload.data.scales.eq(Value.cast(group.scale)),
                    o.payload.data.meta.eq(meta),
                    engine.o.ready.eq(o.ready),
                ]
        return m

    def _choose(self, m: Module, values: stream.Interface, target: stream.Interface) -> None:
        """Give the quantizer values from memory, or a row of results part by part."""
        parts = self._columns // self._lanes
        part = Signal(range(parts))
        last = named(m, "last_part", part == parts - 1)
        results = self.results
        m.d.comb += [
            values.ready.eq(target.ready & ~self.packs_results),
            results.ready.eq(target.ready & self.packs_results & last),
            target.valid.eq(Mux(self.packs_results, results.valid, values.valid)),
            target.payload.last.eq(last),
            Value.cast(target.payload.data).eq(
                Mux(
                    self.packs_results,
                    results.payload.data.as_value().word_select(part, 32 * self._lanes),
                    Value.cast(values.payload.data),
                )
            ),
        ]
        with m.If(self.packs_results & results.valid & target.ready):
            m.d.sync += part.eq(Mux(last, 0, part + 1))
