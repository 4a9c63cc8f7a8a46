"""Jobs about the weight encoder: what a value adds to each choice, and where values wait."""

import re
from collections.abc import Iterator

from m2xfp.formats import block_format
from m2xfp.rtl.parts.multiplier_search import lane_layout
from m2xfp.rtl.units.weight_encoder import WeightEncoder
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, always, never
from m2xfp.synth.formal.job import LIMIT, Job, always_slow
from m2xfp.synth.formal.netlist import Flat, from_any_state, simple
from m2xfp.synth.formal.streams import harness

__all__ = ["JOBS"]

_MOVES = re.compile(r"wire moves_(\d+) =")


def _is_encoder(design: Design) -> bool:
    """Whether a unit is the encoder itself, and not one that has it as a part."""
    return isinstance(design.instance.component, WeightEncoder)


def _searches_one_scale(design: Design) -> bool:
    return _is_encoder(design) and not design.facts.parameters["adaptive"]


def _gains(design: Design, netlist: Flat) -> list[str]:
    """Return: a value's gain with a multiplier is the most that any element's value gives.

    With x = |x| / scale and the element's value v times 1 + k/4, x^2 - (x - v(1 + k/4))^2 is what
    the squared error is less than that of zero. In units of (4 + k) / 4 of what u counts, with c
    the value in the element's smallest steps, it is c u - (4 + k) c^2 2^(F - 4).
    """
    component = design.instance.component
    assert isinstance(component, WeightEncoder)
    element = block_format(design.facts.parameters["block"]).element
    steps = [int(element.magnitude(n) / element.magnitude(1)) for n in range(element.max_code + 1)]
    # Twice the smallest step is one, so two fraction bits are for c^2 / 4, and two for k / 4.
    unit = 1 << component.fraction_bits - 4
    fields = dict(lane_layout(component._ladder()))
    wide = len(netlist.ports["u"]) + 10
    body, wrong = [f"  wire signed [{wide}:0] x = u;"], []
    product, square = "0", "0"
    for n, multiplier in enumerate(range(7, 3, -1)):
        for name in ("product", "square"):
            field = fields[f"{name}_{n}"]
            body.append(
                f"  wire signed [{wide}:0] {name}_{n} = terms[{field.offset} +: {field.width}];"
            )
        product, square = f"{product} + product_{n}", f"{square} + square_{n}"
        body += [
            f"  wire signed [{wide}:0] gain_{n} = {product} - {multiplier * unit} * ({square});",
            f"  reg signed [{wide}:0] best_{n};",
            "  always @* begin",
            f"    best_{n} = 0;",
            *(
                f"    if ({c} * x - {multiplier * unit * c * c} > best_{n})"
                f" best_{n} = {c} * x - {multiplier * unit * c * c};"
                for c in steps[1:]
            ),
            "  end",
        ]
        wrong.append(f"gain_{n} != best_{n}")
    return [*body, f"  assign bad = {' | '.join(wrong)};"]


def _lane_gains(design: Design) -> Outcome:
    netlist = from_any_state(simple(design.module("lane_terms")))
    return never(netlist.text, harness(netlist, _gains(design, netlist)), LIMIT)


def _moves(design: Design) -> dict[str, str]:
    """Return the wires that say that a place of the queue moves on, by name."""
    return {f"moves_{n}": f"unit.waiting.moves_{n}" for n in _MOVES.findall(design.verilog)}


def _queue(design: Design) -> Outcome:
    netlist = from_any_state(simple(design.module().probed(_moves(design))))
    every = " & ".join(_moves(design))
    body = ["  wire clear = ~started | rst;", f"  assign bad = started & ~rst & ~({every});"]
    return always(netlist.text, harness(netlist, body), LIMIT)


def _queue_faults(design: Design) -> Iterator[Design]:
    return design.probe_faults(_moves(design))


JOBS = (
    Job(
        "lane-gains",
        "what a value adds to a multiplier's gain is the most of any element's, for all values",
        "SAT sweeping",
        _searches_one_scale,
        _lane_gains,
        lambda d: d.gate_faults("lane_terms"),
        slow=always_slow,
    ),
    Job(
        "queue-moves",
        "a group is chosen in the clock in which its values reach the end of their queue",
        "IC3",
        lambda design: _is_encoder(design) and "fall_through_fifo" in design.modules,
        _queue,
        _queue_faults,
    ),
)
