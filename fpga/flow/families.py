"""How each family of devices is mapped, placed, routed and packed."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True)
class Family:
    """How one family of devices is built.

    Members
    -------
    synthesis
        The yosys commands that map to the family, the last without its output. No multiplier cells:
        icestorm cannot read them back from a bitstream, and products of a few bits need none.
    constraints
        File of the constraints.
    nextpnr, packer
        Programs.
    place
        Arguments of nextpnr: its constraints, and its result for the packer.
    pack
        Arguments of the packer.
    bitstream
        File that it writes.
    flip_flops
        Pattern of the flip-flop cells in the mapped netlist.
    cells
        What the report calls a resource -> nextpnr's names of cells that take one each; the first
        is the resource's own.
    """

    synthesis: str
    constraints: str
    nextpnr: str
    packer: str
    place: tuple[str, ...]
    pack: tuple[str, ...]
    bitstream: str
    flip_flops: str
    cells: Mapping[str, tuple[str, ...]]


FAMILIES: dict[str, Family] = {
    "ice40": Family(
        synthesis="synth_ice40 -abc9 -device {abc_device} -top top",
        constraints="top.pcf",
        nextpnr="nextpnr-ice40",
        packer="icepack",
        place=("--pcf", "top.pcf", "--asc", "top.asc"),
        pack=("top.asc", "top.bin"),
        bitstream="top.bin",
        flip_flops=r"SB_DFF\w*",
        cells={
            "luts": ("ICESTORM_LC",),
            "block_ram": ("ICESTORM_RAM",),
            "dsp": ("ICESTORM_DSP",),
        },
    ),
    "ecp5": Family(
        # abc between the labels, in place of abc9: with dot_product, abc9 of yosys 0.70 stops at an
        # assertion of its own (rtlil.cc: GetSize(conn.first) == GetSize(conn.second)).
        # The identification is a table of look-up tables however long it is: a block RAM of which
        # one port has no clock is none of those that the check of a built chip knows.
        synthesis='setattr -set ram_style "logic" top.design.identification/m:*\n'
        "synth_ecp5 -nodsp -nolutram -top top -run begin:map_luts\n"
        "techmap -map +/lattice/latches_map.v\n"
        "abc -dress -lut 4:7\n"
        "clean\n"
        "synth_ecp5 -nodsp -nolutram -top top -run map_cells:",
        constraints="top.lpf",
        nextpnr="nextpnr-ecp5",
        packer="ecppack",
        place=("--lpf", "top.lpf", "--textcfg", "top.config"),
        pack=("--input", "top.config", "--bit", "top.bit"),
        bitstream="top.bit",
        flip_flops="TRELLIS_FF",
        cells={"luts": ("TRELLIS_COMB",), "block_ram": ("DP16KD",), "dsp": ("MULT18X18D",)},
    ),
    "gowin": Family(
        # Memory in look-up tables is left out, as for ECP5: the buffers are block RAM.
        synthesis="synth_gowin -nolutram -top top",
        constraints="top.cst",
        nextpnr="nextpnr-himbaechel-gowin",
        packer="gowin_pack",
        place=("--vopt", "family=GW1N-9C", "--vopt", "cst=top.cst"),
        # The pins of the configuration flash are the design's afterwards.
        pack=(
            *("-d", "GW1N-9C", "--sspi_as_gpio", "--mspi_as_gpio"),
            *("-o", "top.fs", "routed.json"),
        ),
        bitstream="top.fs",
        flip_flops=r"DFF\w*",
        cells={
            "luts": ("LUT4", "ALU"),  # a bit of a carry chain takes the place of a LUT
            "flip_flops": ("DFF",),
            "block_ram": ("BSRAM",),
            "dsp": ("MULT18X18",),
        },
    ),
}
