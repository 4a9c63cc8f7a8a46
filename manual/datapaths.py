"""Pictures of how values move through three units, with the widths of the units as they are built.

Every width is asked of the component or its facts, so a picture that is drawn anew is right for the
unit of the day. Boxes lie on a grid by hand; what is between them is drawn by `Sheet`.
"""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from amaranth.hdl import Signal
from amaranth.lib.data import Layout

from m2xfp.formats import InputType
from m2xfp.manual.drawings import counted
from m2xfp.rtl.catalog import find_unit
from m2xfp.rtl.parts.fp32_addition import Add, Align, addend_layout, significand_bits
from m2xfp.rtl.parts.group_product import LaneProduct
from m2xfp.rtl.parts.layouts import group_layout
from m2xfp.rtl.units.accelerator import Accelerator
from m2xfp.rtl.units.dot_product import DotProduct
from m2xfp.rtl.units.gemm_core import GemmCore

__all__ = ["DATAPATHS", "Sheet"]

_FONT = 'font-family="sans-serif" font-size="13"'
_INK, _GREY = "#222", "#555"
_FILLS = {"logic": "#eef3f8", "memory": "#fdf3e7", "port": "#f2f2f2"}


class Sheet:
    """A drawing that grows box by box; on white, since a reader's page may be dark.

    Parameters
    ----------
    width, height
        Of the whole, in pixels.
    title
        What it shows, for those who do not see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._parts: list[str] = []

    def text(
        self, x: float, y: float, text: str, *, anchor: str = "middle", more: str = ""
    ) -> None:
        """Add a line of text."""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {_FONT} fill="{_INK}"'
            f"{more}>{escape(text)}</text>"
        )

    def box(
        self, x: float, y: float, width: float, title: str, lines: Sequence[str] = (), *,
        kind: str = "logic", height: float = 0,
    ) -> float:  # fmt: skip
        """Add a box with a title and lines below it, as high as they need; return its height."""
        height = height or 28 + 18 * len(lines)
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" '
            f'fill="{_FILLS[kind]}" stroke="#1f4e79"/>'
        )
        self.text(x + width / 2, y + 19, title, more=' font-weight="bold"')
        for number, line in enumerate(lines):
            self.text(x + width / 2, y + 38 + 18 * number, line)
        return height

    def arrow(self, *points: tuple[float, float], label: str = "") -> None:
        """Add a line through points with a head at its end, and a label beside its first part.

        Lines run along the axes. The label of an upright one stands right of its lower end, that of
        a level one in the midst above it.
        """
        (x0, y0), (x1, y1) = points[-2:]
        back = 7 if x1 < x0 or y1 < y0 else -7
        level, upright = (
            f"m {back} -4 l {-back} 4 l {back} 4",
            f"m -4 {back} l 4 {-back} l 4 {back}",
        )
        path = " L ".join(f"{x:g} {y:g}" for x, y in points)
        head = level if y0 == y1 else upright
        self._parts.append(f'<path d="M {path} {head}" fill="none" stroke="{_GREY}"/>')
        (x0, y0), (x1, y1) = points[:2]
        if label and y0 == y1:
            self.text((x0 + x1) / 2, y0 - 5, label)
        elif label:
            self.text(x0 + 6, y1 - 12, label, anchor="start")

    def registers(self, y: float, left: float, right: float, label: str) -> None:
        """Add a dashed line where a stage of registers stands, with what it holds."""
        self._parts.append(
            f'<path d="M {left:g} {y:g} H {right:g}" stroke="#c55a11" stroke-width="2" '
            'stroke-dasharray="7 4" fill="none"/>'
        )
        self.text(right + 8, y + 5, label, anchor="start", more=' style="fill: #a0480c"')

    def bar(self, x: float, y: float, height: float) -> None:
        """Add an upright dashed line: a stage of registers across an arrow."""
        self._parts.append(
            f'<path d="M {x:g} {y:g} v {height:g}" stroke="#c55a11" stroke-width="2" '
            'stroke-dasharray="7 4" fill="none"/>'
        )

    def svg(self) -> str:
        """Return the drawing."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" role="img">\n'
            f"<title>{escape(self.title)}</title>\n"
            f'<rect width="{self.width}" height="{self.height}" fill="white"/>\n'
            + "\n".join(self._parts)
            + "\n</svg>\n"
        )


def _bits(value: object) -> int:
    """Return the bits of a layout, or of anything that a signal can have as its shape."""
    return value.size if isinstance(value, Layout) else len(Signal(value))


# --- the dot product ------------------------------------------------------------------------------


def dot_product(unit: DotProduct) -> str:
    """Return the datapath of a dot product of E2M1 elements with FP32 accumulation."""
    sheet = Sheet(780, 748, "Datapath of dot_product: a group of products in each clock")
    _products(sheet, unit)
    _accumulation(sheet, unit)
    return sheet.svg()


def _products(sheet: Sheet, unit: DotProduct) -> None:
    """Draw what is above the exact product, and itself."""
    pair = unit.pair
    sums = pair.sums_layout
    lane, part = len(LaneProduct().product), _bits(sums["sums"].shape) // pair.parts
    exact, end = _bits(pair.product_layout["product"].shape), 620
    for name, block, x in (("activations", pair.act, 20), ("weights", pair.weight, 330)):
        meta = f", metadata {block.subgroups} x {block.metadata.bits}" if block.subgroups else ""
        line = f"codes {block.group} x {block.element.bits}, scale {block.scale.bits}{meta}"
        sheet.box(x, 12, 290, f"{name}: {_bits(group_layout(block))} bits", [line], kind="port")
    sheet.text(end + 12, 40, "s_axis", anchor="start")
    if pair.refined:
        sheet.box(20, 104, 170, f"{pair.parts} top-1 decoders", ["largest of each", "subgroup"])
        sheet.arrow((105, 58), (105, 104), label="codes, metadata")
        sheet.arrow((150, 168), (150, 216), label="refinements")
    sheet.box(250, 104, 180, f"{pair.group} lanes", ["exact products", f"{lane} bits each"])
    sheet.arrow((290, 58), (290, 104), label="codes")
    sheet.arrow((390, 58), (390, 104), label="codes")
    sheet.box(460, 104, 160, "scales", [f"exponent: {pair.exponent_bits} bits", "NaN: 1 bit"])
    sheet.arrow((540, 58), (540, 104), label="both scales")
    sheet.arrow((340, 168), (340, 216), label=f"{pair.group} x {lane} bits")
    refined = " and its refinement" if pair.refined else ""
    line = f"P = sum of {pair.part} lanes{refined}"
    sheet.box(120, 216, 310, f"{pair.parts} part sums", [line, f"{part} bits each"])
    if unit.depth == 2:
        sheet.registers(293, 20, end, f"{_bits(sums)} bits")
    factor = "(4 + k) P" if pair.multiplied else "P"
    line = f"D = sum of {pair.parts} {factor}: {exact} bits"
    sheet.box(120, 330, 310, "exact product", [line])
    sheet.arrow((275, 280), (275, 330), label=f"{pair.parts} x {part} bits")
    if pair.multiplied:
        sheet.text(438, 350, "k: metadata of", anchor="start")
        sheet.text(438, 368, f"weights, {pair.parts} x {pair.weight.metadata.bits}", anchor="start")
    sheet.arrow((600, 168), (600, 425))
    sheet.registers(389, 20, end, f"{_bits(pair.product_layout)} bits")
    sheet.arrow((275, 376), (275, 425), label=f"{exact} bits")


def _accumulation(sheet: Sheet, unit: DotProduct) -> None:
    """Draw what is below the exact product: the addend, and the ring of accumulators."""
    pair, end = unit.pair, 620
    addend = addend_layout(pair)
    align, add = Align(pair, False).o.shape(), Add(significand_bits(pair), False).o.shape()
    significand, exponent = (_bits(addend[name].shape) for name in ("significand", "exponent"))
    line = f"significand {significand}, exponent {exponent}, sign, zero, NaN"
    sheet.box(120, 425, 500, "addend", [line])
    sheet.registers(486, 20, end, f"{_bits(addend)} bits")
    sheet.arrow((200, 471), (200, 530), label=f"{_bits(addend)} bits")
    widths = f"{_bits(align['large'].shape)} and {_bits(align['small'].shape)} bits"
    stages = (
        ("align", ["larger and smaller,", widths]),
        ("add", ["magnitude:", f"{_bits(add['magnitude'].shape)} bits"]),
        ("normalise, round", ["to nearest even,", "32 bits"]),
    )
    for number, (title, lines) in enumerate(stages):
        x = 120 + 180 * number
        sheet.box(x, 530, 150, title, lines)
        if number:
            sheet.arrow((x - 30, 562), (x, 562))
            # Chains are the ring's stages of registers: the last one first, then from the left.
            if unit.chains >= (3, 2)[number - 1]:
                sheet.bar(x - 15, 538, 48)
    sheet.arrow((630, 562), (680, 562), (680, 630), (160, 630), (160, 594))
    sheet.bar(655, 538, 48)
    chains = f"{counted(unit.chains, 'accumulator')} of 32 bits in the ring"
    sheet.text(420, 624, f"{chains}, each of a dot product of its own")
    result = _bits(unit.o.payload.shape()["data"].shape)
    line = f"{counted(unit.latency, 'clock')} behind the group"
    sheet.box(480, 688, 280, f"results: {result} bits", [line], kind="port")
    sheet.arrow((680, 630), (680, 688))
    sheet.text(468, 716, "m_axis", anchor="end")
    orange = ' style="fill: #a0480c"'
    sheet.text(20, 690, "Orange lines are registers.", anchor="start", more=orange)
    sheet.text(20, 710, "All is exact down to the ring, which rounds", anchor="start")
    sheet.text(20, 728, "once a group.", anchor="start")


# --- the GEMM core --------------------------------------------------------------------------------


def gemm_core(unit: GemmCore) -> str:
    """Return how operands, sums and results move through a core of two rows and two columns."""
    pair = unit.pair
    group, weight = _bits(group_layout(pair.act)), _bits(group_layout(pair.weight))
    words = unit.max_k // pair.group
    stream = {name: _bits(getattr(unit, name).payload.shape()["data"].shape) for name in _GEMM}
    sheet = Sheet(780, 694, "Dataflow of gemm_core: weights stay, activations pass, sums stay")
    sheet.box(20, 12, 150, "commands", [f"m, n, k: {stream['cmd']} bits"], kind="port")
    line = f"row by row, {stream['weights']} bits a beat"
    sheet.box(300, 12, 350, "weights", [line], kind="port")
    sheet.box(300, 102, 350, "loader", ["fills one buffer while the other is read"])
    sheet.arrow((475, 58), (475, 102))
    sheet.arrow((170, 35), (235, 35), (235, 125), (300, 125))
    sheet.box(20, 190, 150, "sequencer", ["panels, blocks,", "groups, rows"])
    sheet.arrow((95, 58), (95, 190))
    columns = [300 + 200 * n for n in range(unit.columns)]
    for number, x in enumerate(columns):
        lines = [f"2 buffers of {words} groups,", f"{weight} bits each"]
        sheet.box(x, 190, 150, f"weights, column {number}", lines, kind="memory")
        sheet.arrow((x + 75, 148), (x + 75, 190), label=f"{weight} bits")
    sheet.arrow((170, 222), (300, 222), label="addresses")
    for row in range(unit.rows):
        y = 310 + 100 * row
        sheet.box(160, y, 100, "decoder", [f"of row {row}"])
        for number, x in enumerate(columns):
            lines = [f"{pair.group} products a clock,", f"{counted(unit.chains, 'FP32 sum')}"]
            sheet.box(x, y, 150, f"cell {row}, {number}", lines)
            last = columns[number - 1] + 150 if number else 260
            sheet.arrow((last, y + 32), (x, y + 32))
            above = 254 if not row else y - 36
            label = "" if row else f"{weight} bits"
            sheet.arrow((x + 75, above), (x + 75, y), label=label)
    middle = 310 + 100 * (unit.rows - 1) / 2
    lines = [f"{unit.rows} x {group} bits", f"and tag: {stream['acts']}", "bits a beat"]
    sheet.box(12, middle - 8, 110, "activations", lines, kind="port")
    for row in range(unit.rows):
        y = 310 + 100 * row
        sheet.arrow((122, middle + 33), (140, middle + 33), (140, y + 23), (160, y + 23))
    below = 310 + 100 * unit.rows
    for x in columns:
        sheet.arrow((x + 75, below - 36), (x + 75, below + 20))
    line = f"a row of {counted(unit.columns, 'result')} a beat: {stream['o']} bits"
    sheet.box(300, below + 20, 350, "results, once k is summed up", [line])
    sheet.box(300, below + 92, 350, "results out", ["panel by panel"], kind="port")
    sheet.arrow((475, below + 66), (475, below + 92))
    sheet.box(20, below + 92, 200, "status", [f"{stream['status']} bits a command"], kind="port")
    sheet.arrow((300, below + 43), (120, below + 43), (120, below + 92))
    return sheet.svg()


_GEMM = ("cmd", "weights", "acts", "o", "status")


# --- the accelerator ------------------------------------------------------------------------------


def accelerator(unit: Accelerator) -> str:
    """Return how descriptors and matrices move through an accelerator with both engines."""
    bus, chunks = 8 * unit.bus_bytes, f"{unit.slots} chunks of {unit.chunk} groups"
    sheet = Sheet(780, 600, "The accelerator: from memory to memory")
    sheet.box(12, 12, 150, "processor", ["writes descriptors"], kind="port", height=56)
    sheet.box(12, 120, 150, "registers", [f"queue of {unit.queue}", "descriptors"])
    sheet.arrow((60, 68), (60, 120), label="AXI4-Lite, 32")
    sheet.box(12, 246, 150, "checker", ["refuses what is", "wrong beforehand"])
    sheet.arrow((87, 184), (87, 246), label="descriptor")
    sheet.box(12, 372, 150, "run", ["starts movers,", "ends on an error"])
    sheet.arrow((87, 310), (87, 372))
    sheet.arrow((30, 372), (30, 340), (4, 340), (4, 152), (12, 152))
    sheet.text(12, 462, "status, interrupt: back", anchor="start")
    sheet.text(12, 480, "through the registers", anchor="start")
    sheet.box(210, 12, 558, "memory", ["planes of packed tensors, values, results"], kind="memory",
              height=56)  # fmt: skip
    for x, name in ((210, "activations"), (400, "weights")):
        sheet.box(x, 120, 160, f"reader, {name}", [f"{unit.outstanding} bursts under way"])
        sheet.arrow((x + 60, 68), (x + 60, 120), label=f"AXI4, {bus} bits")
    sheet.box(210, 218, 160, "activations' chunks", [chunks, "of each row"], kind="memory")
    sheet.box(400, 218, 160, "weights' chunks", [chunks, "of each row"], kind="memory")
    for x in (270, 460):
        sheet.arrow((x, 166), (x, 218))
    core = unit.core
    lines = [f"{core.rows} x {core.columns} cells", f"{core.macs_per_clock} MACs a clock"]
    sheet.box(210, 334, 350, "gemm_core", lines)
    rows = _bits(core.acts.payload.shape()["data"].shape)
    weights = _bits(core.weights.payload.shape()["data"].shape)
    sheet.arrow((270, 282), (270, 334), label=f"{rows} bits")
    sheet.arrow((460, 282), (460, 334), label=f"{weights} bits")
    engines = [f"{name}: {kind.name}" for name, kind in _engines(unit)]
    sheet.box(600, 334, 168, "packing engines", engines)
    sheet.box(600, 218, 168, "values", ["from the reader", "of activations"])
    sheet.arrow((340, 166), (340, 192), (684, 192), (684, 218))
    sheet.arrow((684, 282), (684, 334))
    out = _bits(core.o.payload.shape()["data"].shape)
    sheet.box(210, 442, 350, "result writer", ["FP32, bf16"])
    sheet.arrow((385, 398), (385, 442), label=f"{out} bits a row")
    sheet.box(600, 442, 168, "plane writer", ["codes, scales, meta"])
    sheet.arrow((684, 398), (684, 442), label="groups")
    if unit.abilities.packed_results:
        sheet.arrow((560, 366), (600, 366))
    sheet.box(210, 532, 558, "writer: to memory", [f"AXI4, {bus} bits"], kind="port")
    sheet.arrow((385, 488), (385, 532))
    sheet.arrow((684, 488), (684, 532))
    return sheet.svg()


def _engines(unit: Accelerator) -> list[tuple[str, InputType]]:
    """Return the packing engines that a build has, with the types that they take."""
    named = (("quantizer", unit.quantizer), ("encoder", unit.encoder))
    return [(name, kind) for name, kind in named if kind is not None]


def _drawn(draw: Callable[[Any], str], name: str, config: str | None = None) -> Callable[[], str]:
    return lambda: draw(find_unit(name).instance(config).component)


DATAPATHS: dict[str, Callable[[], str]] = {
    "dot-product": _drawn(dot_product, "dot_product"),
    "gemm-core": _drawn(gemm_core, "gemm_core"),
    "accelerator": _drawn(accelerator, "accelerator", "m2xfp-1x32"),
}
"""The pictures by name, of the configurations that the pages speak of."""
