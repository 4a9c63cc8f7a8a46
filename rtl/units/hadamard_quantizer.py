"""The Hadamard unit with the activation quantizer behind it: blocks of values to packed groups."""

from typing import Annotated

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from m2xfp.errors import InputError
from m2xfp.formats import M2XFP_ACT, BlockFormat
from m2xfp.rtl.parameters import Among, Between, Formats, Names, checked
from m2xfp.rtl.parts.layouts import group_layout
from m2xfp.rtl.parts.scale_rules import SCALE_RULES
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.units.activation_quantizer import ActivationQuantizer
from m2xfp.rtl.units.hadamard import Hadamard
from m2xfp.rtl.verilog.component import Component

__all__ = ["HadamardQuantizer"]


class HadamardQuantizer(Component):
    """Transform blocks of bfloat16 values with random signs, and quantize each 32 results.

    ``Hadamard`` and ``ActivationQuantizer`` as one unit. The transform is rounded to bfloat16
    before it is quantized, so the groups are those of the two units apart, bit for bit.

    Parameters
    ----------
    points
        Values of a block: 32, 64 or 128, which give one, two or four groups.
    lanes
        Values a beat, of both: they divide a group and are whole subgroups.
    bits
        Of a cut magnitude. A value 2^(bits - 8) times smaller than the largest keeps all its bits.
    levels
        Butterflies, of log2(points), between two registers.
    block
        The target: any element with an E8M0 scale and groups of 32, without metadata, with Elem-EM
        or bits of pairs.
    scale_rule
        How the scale follows from the largest result (docs/format.md, section 2).
    zero_scale
        Scale of a group of zeros: 0, or 126 for MicroMix, which has 2^-1.
    stages
        Pipeline stages of the quantizer. With 4 the top elements are chosen a clock after the
        codes.

    Members
    -------
    i : In(packet_stream(values, flips))
        As ``Hadamard`` takes them.
    o : Out(packet_stream(group_layout(block)))
        Packed groups; ``last`` on a block's final one.
    latency
        Clocks from the acceptance of a block's last beat to its last group, when nothing stalls.
    beats_per_group, results_per_group
        Beats of a block, and groups that it becomes.

    Raises
    ------
    InputError
        If the format has no groups of 32, or one of the two units refuses the parameters.
    """

    @checked
    def __init__(
        self,
        *,
        points: Annotated[int, Among((32, 64, 128))] = 32,
        lanes: Annotated[int, Between(1, 32, usual=(8, 16, 32))] = 32,
        bits: Annotated[int, Between(9, 24, usual=(9, 12, 16))] = 12,
        levels: Annotated[int, Between(1, 7)] = 3,
        block: Annotated[
            BlockFormat,
            Formats(
                (
                    "m2xfp-act",
                    "m2xfp-act:subgroup=4",
                    "mxfp4",
                    "mxfp6-e2m3",
                    "mxfp6-e3m2",
                    "mxfp8-e4m3",
                    "mxfp8-e5m2",
                    "mxint8",
                    "int4",
                    "smx4:group=32",
                    "amxfp4:scale_mode=pot",
                ),
                ("subgroup",),
            ),
        ] = M2XFP_ACT,
        scale_rule: Annotated[str, Names(SCALE_RULES)] = "floor",
        zero_scale: Annotated[int, Among((0, 126))] = 0,
        stages: Annotated[int, Between(3, 4)] = 3,
    ) -> None:
        if block.group != 32:
            raise InputError(
                f"block={block.name}: HadamardQuantizer makes groups of 32 values, not of "
                f"{block.group}; choose such a format, or give group=32"
            )
        self._hadamard = Hadamard(points=points, lanes=lanes, bits=bits, levels=levels)
        self._quantizer = ActivationQuantizer(
            lanes=lanes, block=block, scale_rule=scale_rule, zero_scale=zero_scale, stages=stages
        )
        self.beats_per_group, self.results_per_group = points // lanes, points // block.group
        self.latency = self._hadamard.latency + self._quantizer.latency
        super().__init__(
            {
                "i": In(self._hadamard.i.signature.flip()),
                "o": Out(packet_stream(group_layout(block))),
            }
        )

    def build(self) -> Module:
        """Connect the two units."""
        m = Module()
        m.submodules.hadamard = hadamard = self._hadamard
        m.submodules.quantizer = quantizer = self._quantizer
        wiring.connect(m, wiring.flipped(self.i), hadamard.i)
        wiring.connect(m, hadamard.o, quantizer.i)
        wiring.connect(m, quantizer.o, wiring.flipped(self.o))
        return m
