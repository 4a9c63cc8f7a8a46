"""Jobs about the parts of units: modules of the emitted text against their references."""

from collections.abc import Callable, Iterator

from m2xfp.formats import (
    M2XFP_ACT,
    M2XFP_WEIGHT,
    BlockFormat,
    FloatElement,
    InputType,
    IntElement,
    block_format,
    input_type,
    window,
)
from m2xfp.synth.formal import fp32, references, streams
from m2xfp.synth.formal.design import Design
from m2xfp.synth.formal.engines import Outcome, always, never, within
from m2xfp.synth.formal.job import LIMIT, Job, always_slow
from m2xfp.synth.formal.netlist import Flat, from_any_state, simple
from m2xfp.synth.formal.streams import harness

__all__ = ["JOBS", "refined"]

# Bits of a digit of the carry-save sum.
DIGIT = 24


def _gates(design: Design, module: str) -> Flat:
    return from_any_state(simple(design.module(module)))


def _matches(*modules: str) -> Callable[[Design], bool]:
    return lambda design: any(module in design.modules for module in modules)


def _first(design: Design, *modules: str) -> str:
    return next(module for module in modules if module in design.modules)


def _stateless(
    name: str,
    text: str,
    body: Callable[[Design, Flat], list[str]],
    *modules: str,
    slow: Callable[[Design], bool] | None = None,
) -> Job:
    """Return a job about a module without state, the first of some that a unit has."""

    def prove(design: Design) -> Outcome:
        netlist = _gates(design, _first(design, *modules))
        return never(netlist.text, harness(netlist, body(design, netlist)), LIMIT)

    def faults(design: Design) -> Iterator[Design]:
        return design.gate_faults(_first(design, *modules))

    return Job(name, text, "SAT sweeping", _matches(*modules), prove, faults, slow)


def _formats(design: Design) -> tuple[BlockFormat, BlockFormat]:
    """Return the formats of activations and weights of a unit that multiplies.

    A unit of several pairs has parts of M2XFP's own beside those of all.
    """
    given = design.facts.parameters
    if not _has_one_pair(design):
        return M2XFP_ACT, M2XFP_WEIGHT
    return block_format(given["act"]), block_format(given["weight"])


def _has_one_pair(design: Design) -> bool:
    """Whether a unit multiplies groups of one pair of formats."""
    return "pairs" not in design.facts.parameters


def _part(design: Design) -> int:
    """Return how many products are added up before multipliers: a subgroup, or half a group."""
    act, weight = _formats(design)
    return act.metadata.subgroup or weight.metadata.subgroup or min(16, act.group)


def _places(block: BlockFormat) -> int:
    """Return the binary places of the smallest value of an element that is not zero."""
    element = block.element
    smallest = element.magnitude(1)
    return smallest.denominator.bit_length() - 1


def _largest(block: BlockFormat) -> int:
    """Return the largest magnitude of an element in units of the smallest; two's complement's."""
    element = block.element
    if isinstance(element, IntElement):
        return element.max_code + 1
    return int(element.max_value / element.magnitude(1))


def _has_usual_addends(design: Design) -> bool:
    """Whether group products have no more bits than FP32, for which the cases of fp32 are made."""
    if not _matches("accumulator")(design) or not _has_one_pair(design):
        return False
    return all(block.element.bits == 4 for block in _formats(design))


def _exponent_bits(act: BlockFormat, weight: BlockFormat) -> int:
    """Return the bits of a sum of both scales' exponent fields."""
    fields = (block.scale.grid.exponent_bits if block.scale.grid else 8 for block in (act, weight))
    return sum((1 << bits) - 1 for bits in fields).bit_length()


def _significand_bits(block: BlockFormat) -> int:
    """Return the bits of a scale's significand, none of a power of two's."""
    return block.scale.grid.mantissa_bits + 1 if block.scale.grid else 0


def _class_part(design: Design, netlist: Flat) -> list[str]:
    act, weight = (block.scaling == "split" for block in _formats(design))
    sums = design.facts.parameters["sums"]
    told = (sums < (1 << act + weight), sums < 2 and weight)
    classes = [
        (None if told[0] or one is None else one, None if told[1] or other is None else other)
        for one in ((0, 1) if act else (None,))
        for other in ((0, 1) if weight else (None,))
    ]
    return references.class_part(netlist, told=told, classes=classes[:sums])


def _scaled_product(design: Design, netlist: Flat) -> list[str]:
    act, weight = _formats(design)
    part, refined = _part(design), act.metadata.bits > 0
    # Magnitudes of 2x and 2w are 12 at most; of 8x', 48, and of a refined one 56.
    bound = (48 * (part - 1) + 56) * 12 if refined else _largest(act) * _largest(weight) * part
    exponent = _exponent_bits(act, weight)
    significands = _significand_bits(act), _significand_bits(weight)
    bits = (2 * bound + 1).bit_length()
    tail = exponent + 1 + sum(significands)
    each = bits + 2 * (weight.metadata.bits > 0)
    return references.scaled_product(
        netlist,
        bound=bound,
        parts=(len(netlist.ports["i"]) - tail) // each,
        multiplied=weight.metadata.bits > 0,
        significands=significands,
        exponent=exponent,
    )


def _addend(design: Design, netlist: Flat) -> list[str]:
    act, weight = _formats(design)
    exponent = _exponent_bits(act, weight)
    bits = len(netlist.ports["i"]) - exponent - 2
    # A product stands for D * 2^(exponent - bias): 2x 2w, or what else elements are multiples of,
    # the quarters of 8x', those of 4 + k, and the biases of both scales.
    bias = _places(act) + _places(weight)
    bias += 2 * (act.metadata.bits > 0) + 2 * (weight.metadata.bits > 0)
    for scale in (act.scale, weight.scale):
        bias += scale.bias + (scale.grid.mantissa_bits if scale.grid else 0)
    return references.addend(netlist, bits, exponent, bits - 1 + 127 - bias)


def _accumulated(design: Design) -> Outcome:
    netlist = _gates(design, "carry_save_sum")
    room = window(design.facts.parameters["window"])
    exponent = _exponent_bits(*_formats(design))
    # Several sums of a beat have been brought to their places before.
    placed = design.facts.parameters.get("sums", 1) > 1
    body = references.accumulated(
        netlist,
        digit=DIGIT,
        product=len(netlist.ports["i"]) - exponent - 1,
        exponent=exponent,
        low=room.lowest,
        high=room.lowest if placed else room.highest,
    )
    return within(netlist.text, harness(netlist, body), 2, LIMIT)


def refined(block: BlockFormat) -> FloatElement | None:
    """Return the element with the metadata's mantissa bits: E2M3 for E2M1 and two bits."""
    base, extra = block.element, block.metadata.bits
    assert isinstance(base, FloatElement)
    if not extra:
        return None
    largest = ((base.max_code + 1) << extra) - 1
    mantissa = base.mantissa_bits + extra
    return FloatElement("refined", base.exponent_bits, mantissa, base.bias, largest)


def _is_quantizer(design: Design) -> bool:
    return "element_rounder" in design.modules and "input_type" in design.facts.parameters


def _divides(design: Design) -> bool:
    """Whether a unit is a quantizer whose scales are minifloats."""
    return "ratio_rounder" in design.modules and "input_type" in design.facts.parameters


def _kind(design: Design) -> tuple[InputType, BlockFormat]:
    given = design.facts.parameters
    return input_type(given["input_type"]), block_format(given["block"])


def _spaced(design: Design) -> str:
    """Return the stream whose beats are two clocks apart or more, if there is one."""
    named = {stream.name for stream in design.facts.streams}
    if {"i", "o"} <= named and "half_rate_register" in design.modules:
        return "o"
    reports = {"result_fifo", "permutation_check"} & set(design.modules)
    return "status" if reports and "status" in named else ""


def _quantized(design: Design) -> Outcome:
    facts, netlist = design.facts, _gates(design, "")
    kind, block = _kind(design)
    body = references.quantizer(facts, netlist, kind, block, refined(block))
    # A clock of reset, the beats of a group, its way through, and a pause of one clock.
    clocks = 1 + facts.beats_per_group + facts.latency + 1
    return within(netlist.text, harness(netlist, body), clocks, LIMIT)


def _chains(netlist: Flat) -> int:
    """Return the steps from an addend to its sum: registers of 32 bits and those before them."""
    state = len(netlist.ports["any_state"])
    return 1 if state == 32 else 2 if state < 32 + 60 else 3


def _added(cases: Callable[[Flat], list[str]]) -> Callable[[Design], Outcome]:
    def prove(design: Design) -> Outcome:
        netlist = _gates(design, "accumulator")
        chains = _chains(netlist)
        seconds, names = 0.0, cases(netlist)
        for case in names:
            body = fp32.accumulates(netlist, case, chains)
            outcome = within(netlist.text, harness(netlist, body), 1 + chains, LIMIT)
            seconds += outcome.seconds
            if not outcome.holds:
                return Outcome(False, f"fails in case {case}", seconds)
        return Outcome(True, f"{len(names)} cases", seconds)

    return prove


JOBS = (
    _stateless(
        "decoder",
        "the top-1 element of any codes and metadata, and its refinement",
        lambda _, netlist: references.decoder(netlist),
        "top_element_decoder",
        "activation_decoder",
    ),
    _stateless(
        "lane-product",
        "the product of any two E2M1 codes",
        lambda _, netlist: references.lane_product(netlist),
        "lane_product",
    ),
    _stateless(
        "part-sum",
        "the sum of a part's products, the refinement of its top-1 element included",
        lambda _, netlist: references.part_sum(netlist),
        "part_sum",
    ),
    _stateless(
        "class-part",
        "sums of a part's products by the signs of their operands",
        _class_part,
        "class_part",
    ),
    _stateless(
        "scaled-product",
        "the exact product of a group from the sums of its parts, multipliers and scales",
        _scaled_product,
        "scaled_product",
        slow=_matches("class_part"),  # sums of both signs, and scales with significands
    ),
    _stateless(
        "addend",
        "an exact product as normalised significand and exponent",
        _addend,
        "addend",
    ),
    Job(
        "fp32-special",
        "NaN, infinities and zero products leave the accumulator as they must",
        "BMC, any state",
        _has_usual_addends,
        _added(lambda netlist: fp32.cases(netlist)[:2]),
        lambda d: d.gate_faults("accumulator"),
    ),
    Job(
        "fp32-add",
        "acc + addend, rounded once as IEEE 754 has it, for all values",
        "BMC, any state",
        _has_usual_addends,
        _added(fp32.cases),
        lambda d: d.gate_faults("accumulator"),
        slow=always_slow,
    ),
    _stateless(
        "carries",
        "the carry-save sum's digits and carries as one integer",
        lambda _, netlist: references.propagated(netlist, DIGIT),
        "carry_propagation",
    ),
    Job(
        "integer-sum",
        "a step of the exact accumulator adds the product, as integers, to the sum or to zero",
        "BMC, any state",
        lambda d: _matches("carry_save_sum")(d) and _has_one_pair(d),
        _accumulated,
        lambda d: d.gate_faults("carry_save_sum"),
        slow=always_slow,
    ),
    Job(
        "quantized",
        "scale, codes and metadata of the first group after reset, for all values",
        "BMC, any state",
        _is_quantizer,
        _quantized,
        lambda d: d.gate_faults("", [stream.ports[0] for stream in d.facts.outputs]),
        slow=always_slow,
    ),
    Job(
        "apart",
        "results of a unit of several clocks a group, or reports, are two clocks apart or more",
        "IC3",
        lambda d: bool(_spaced(d)),
        lambda d: always(d.control.text, streams.apart(d.facts, d.control, _spaced(d)), LIMIT),
        lambda d: d.register_faults([d.facts.stream(_spaced(d)).ports[1]]),
    ),
    Job(
        "taken-whole",
        "a quantizer that has taken a group's first beat takes the others as they come",
        "IC3",
        lambda d: (_is_quantizer(d) or _divides(d)) and d.facts.beats_per_group > 1,
        lambda d: always(d.control.text, streams.taken_whole(d.facts, d.control), LIMIT),
        lambda d: d.register_faults([stream.ports[2] for stream in d.facts.inputs]),
    ),
)
