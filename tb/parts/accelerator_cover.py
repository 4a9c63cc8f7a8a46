"""What an accelerator's descriptors, registers and buses have gone through."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2xfp.facts import Facts, Stream
from m2xfp.formats import block_format
from m2xfp.rtl.parts.accelerator_map import FIELDS, OFFSETS
from m2xfp.rtl.parts.descriptor_checker import CAUSES, GEMM
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.tb.cross import Cross, cross
from m2xfp.tb.fields import read, read_plane
from m2xfp.tb.parts.accelerator_read import pushed
from m2xfp.tb.parts.accelerator_tasks import kinds_of
from m2xfp.tb.parts.accelerator_traffic import PAGE, Memory, Traffic
from m2xfp.tb.vectors import Beats, TestVectors

__all__ = ["cover", "unreached"]

_KINDS = ("fp32", "bf16", "packed")
_OPERATIONS = ("gemm", "quantize", "encode")
# Of a build that works as it should none is ever reported.
_NEVER = "internal"


def _read(stream: Stream, name: str, beats: Beats) -> NDArray[Any]:
    if not len(beats):
        return np.zeros(0, np.int64)
    return np.asarray(read(stream.field(name), beats.data), np.int64)


def cover(vectors: TestVectors, facts: Facts) -> Iterator[Cross]:
    """Yield what some traffic was."""
    beats = {**vectors.inputs, **vectors.outputs}
    yield from _register_cases(beats, facts)
    yield from _descriptor_cases(pushed(beats, facts), facts)
    yield from _bus_cases(beats, facts)


def _register_cases(beats: Mapping[str, Beats], facts: Facts) -> Iterator[Cross]:
    """Yield which registers were written and read, with which answer, and the causes of errors."""
    registers = {"no register": -1, **OFFSETS}
    known = list(registers.values())
    first, last = OFFSETS["operation"], OFFSETS["push"]
    writable = [*range(first, last + 1, 4), *(OFFSETS[name] for name in _KEPT)]
    readable = [at for name, at in OFFSETS.items() if at < first]
    answers = {}
    for way, channel, allowed in (("written", "aw", writable), ("read", "ar", readable)):
        answer = {"aw": "b", "ar": "r"}[channel]
        stream = facts.stream(f"control_{channel}")
        at = _read(stream, "addr", beats[stream.name]) // 4 * 4
        back = facts.stream(f"control_{answer}")
        response = _read(back, "resp", beats[back.name])
        count = min(len(at), len(response))
        where = [known.index(each) if each in known else 0 for each in at[:count].tolist()]
        possible = [[each in allowed, way == "written" or each not in allowed] for each in known]
        yield cross(
            f"register that is {way}",
            {"register": list(registers), "answer": ("OKAY", "SLVERR")},
            np.array(where, np.int64),
            response[:count] // 2,
            possible=possible,
        )
        answers[way] = at[:count]
    back = facts.stream("control_r")
    words = _read(back, "data", beats["control_r"])[: len(answers["read"])]
    low, width = FIELDS["error"]["cause"]
    causes = [name for name in CAUSES if name != _NEVER]
    yield cross(
        "cause of an error",
        {"cause": causes},
        (words >> low & (1 << width) - 1) - 1,
        where=answers["read"] == OFFSETS["error"],
    )
    low, width = FIELDS["int_status"]["done"][0], 2
    yield cross(
        "pending interrupts",
        {"pending": ("none", "done", "both")},
        np.array([0, 1, -1, 2])[words & 3],
        where=answers["read"] == OFFSETS["int_status"],
    )
    waiting = FIELDS["status"]["waiting"][0]
    yield cross(
        "descriptors in the queue",
        {"waiting": range(facts.parameters["queue"] + 1)},
        words >> waiting & 0xFF,
        where=answers["read"] == OFFSETS["status"],
    )


_KEPT = ("error", "timeout", "int_enable", "int_status")


def _descriptor_cases(pushed: list[dict[str, int]], facts: Facts) -> Iterator[Cross]:
    """Yield operations, and where sizes lie among blocks, panels and chunks."""
    given = facts.parameters
    able = kinds_of(facts)
    group = block_format(given["act"]).group
    names = ("operation", "kind", "m", "n", "k")
    words = np.array([[each[name] for name in names] for each in pushed], np.int64)
    operation, kind, m, n, k = words.reshape(-1, 5).T
    pairs = list(zip(operation.tolist(), kind.tolist(), strict=True))
    yield cross(
        "operation",
        {"operation": [f"{_OPERATIONS[o - 1]} {_KINDS[c]}" for o, c in able]},
        np.array([able.index(pair) if pair in able else -1 for pair in pairs], np.int64),
    )
    gemm = (operation == GEMM) & (m > 0) & (m < PAGE) & (n > 0) & (n < PAGE) & (k % group == 0)
    height, most = given["rows"] * given["chains"], given["max_k"] // group
    yield cross("groups of k", {"groups": range(1, most + 1)}, k // group - 1, where=gemm)
    yield cross("rows beyond whole blocks", {"rows": range(height)}, m % height, where=gemm)
    columns = given["columns"]
    yield cross("columns beyond whole panels", {"columns": range(columns)}, n % columns, where=gemm)
    blocks, panels = (np.minimum(-(-x // y), 3) - 1 for x, y in ((m, height), (n, columns)))
    chunks = np.minimum(-(-(k // group) // given["chunk"]), 3) - 1
    some = min(3, -(-most // given["chunk"]))
    yield cross(
        "blocks, panels and chunks",
        {"blocks": (1, 2, "more"), "panels": (1, 2, "more"), "chunks": range(1, some + 1)},
        *(blocks, panels, chunks),
        where=gemm,
    )


def _bus_cases(beats: Mapping[str, Beats], facts: Facts) -> Iterator[Cross]:
    """Yield lengths of bursts, by whether a page ends there, strobes, and responses."""
    bus = int(facts.parameters["bus"]) // 8
    for name, lengths in Traffic(facts, Memory()).burst_lengths().items():
        stream = facts.stream(name)
        at, length = (_read(stream, field, beats[name]) for field in ("addr", "len"))
        ends = (at + (length + 1) * bus) % PAGE == 0
        yield cross(
            f"burst of {name}",
            {"beats": sorted(lengths), "page ends": ("no", "yes")},
            *(np.searchsorted(sorted(lengths), length + 1), ends),
        )
    for name, answers in (("acts_r", 4), ("weights_r", 4), ("results_b", 4)):
        response = _read(facts.stream(name), "resp", beats[name])
        yield cross(
            f"response of {name}",
            {"response": ("OKAY", "EXOKAY", "SLVERR", "DECERR")},
            response,
            possible=[code != 1 for code in range(answers)],
        )
    stream = facts.stream("results_w")
    if not len(beats["results_w"]):
        return
    plane = read_plane(stream.field("strb"), beats["results_w"].data)
    strobes = np.unpackbits(plane, axis=1, bitorder="little")[:, :bus]
    yield cross(
        "byte of a word that is written",
        {"byte": range(bus), "written": ("no", "yes")},
        np.arange(bus),
        strobes,
    )


def unreached(facts: Facts) -> dict[str, str]:
    """Return what no legal traffic reaches, or none that ends, with the reason."""
    found = {}
    for points, why in _reasons(facts):
        found[points] = why
    return found


def _bits(name: str, first: int, end: int, way: str = ".*") -> str:
    """Return a pattern of the upper bits of a wire."""
    return rf"unit[.]{name}\[({'|'.join(map(str, range(first, end)))})\]:{way}"


def _reasons(facts: Facts) -> Iterator[tuple[str, str]]:
    given = facts.parameters
    group = block_format(given["act"]).group
    apart = "an address or an answer leaves, and then the next one takes its place"
    names = ("control_b", "control_r", "acts_ar", "weights_ar", "results_aw")
    yield rf"beats of ({'|'.join(names)}): 0, (none|no ready)", apart
    long = "counts clocks, of which no run has so many"
    for name, up, down in (
        ("registers[.]cycles", 22, 21),
        ("registers[.]wait_acts", 21, 20),
        ("registers[.]wait_weights", 18, 17),
        ("registers[.]wait_results", 20, 19),
        ("registers[.]work", 20, 19),
        ("quiet", 16, 16),
    ):
        yield _bits(name, up, 32, "0->1"), long
        yield _bits(name, down, 32, "1->0"), long
    many = "counts descriptors, of which no run has so many"
    yield _bits("registers[.]completed", 10, 32, "0->1"), many
    yield _bits("registers[.]completed", 9, 32, "1->0"), many
    yield from _lengths(facts)
    yield from _addresses(facts)
    advance = given["chunk"]
    if advance > int(given["bus"]) // 8:
        advance = advance // (int(given["bus"]) // 8) * (int(given["bus"]) // 8)
    last = (-(-given["max_k"] // group // advance) - 1) * advance
    for side in ("acts", "weights"):
        first = max(1, last.bit_length())
        following = {"acts": "t54", "weights": "t15"}[side]
        yield _bits(f"{side}_fetcher[.]offset", first, SIZE_BITS), "k is at most max_k"
        yield _bits(f"{side}_fetcher[.]{following}", first, first + 1), "k is at most max_k"
    values = Traffic(facts, Memory()).value_offset()
    few = "k is below 2^20, so values are so many words of the bus at most"
    yield _bits("values_fetcher[.]offset", values.bit_length(), SIZE_BITS), few
    yield _bits("values_fetcher[.]t34", values.bit_length(), values.bit_length() + 1), few
    unpacked = "a product's results are not packed here, and k is below 2^20"
    yield _bits("plane_writer[.]held", 195, 201), unpacked
    yield _bits("plane_writer[.]inner_left", 15, SIZE_BITS), unpacked
    yield _bits("plane_writer[.]t18", 15, SIZE_BITS, "0->1"), unpacked
    framed = "what fetchers give the core is framed as it expects"
    yield r"unit[.]core[.]loader[.]misframed:.*", framed
    yield r"unit[.]core[.]sequencer[.]stop:.*", framed
    refused = "sizes that the core refuses are told before"
    yield r"unit[.]core[.]sequencer[.]refusal:.*", refused
    yield _bits("core[.]result_fifo[.](tile_0|tile_1_1)", 4, 7), refused
    yield _bits("core[.]result_fifo[.](tile_0|tile_1_1)", 2, 3, "1->0"), refused
    idle = "what takes a part of a descriptor is idle when that begins"
    yield r"unit[.]core[.]loader[.]job_register[.]spare_valid:.*", idle
    yield r"unit[.]t(65|68|71|74|77|80):.*", idle
    yield _bits("values_fetcher[.]groups_[01]", 0, 3, "1->0"), "a chunk of values is a group"
    yield _bits("values_fetcher[.]groups_[01]", 0, 2, "0->1"), "a chunk of values is a group"
    yield _bits("values_fetcher[.]request___05Fpayload", 36, 38), "a chunk of values is a group"
    yield r"unit[.]acts_fetcher[.]turn_ends:.*", "a block is as high as a beat"
    yield r"unit[.]plane_writer[.]held\[201\]:1->0", "both formats have metadata"
    if block_format(given["act"]).metadata.name == "elem-em":
        yield (
            r"unit[.].*u_addend[.]normalised_1\[0\]:.*",
            "a refined element adds last bits only where it is small, and so is the sum of its "
            "subgroup, of which it is the largest",
        )
    words = "a descriptor has 30 words"
    yield r"unit[.]registers[.]queue[.]words\[(30|31|62|63)\]\[\d+\]:.*", words


def _lengths(facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield the upper bits of lengths of bursts."""
    why = "no request, and no piece, lies in more words"
    bits = facts.parameters["address_bits"]
    lengths = {name: max(found) for name, found in Traffic(facts, Memory()).burst_lengths().items()}
    for side in ("acts", "weights"):
        most = lengths[f"{side}_ar"]
        first = (most - 1).bit_length()
        yield _bits(f"{side}_reader[.]ar___05Fpayload", bits + first, bits + 8), why
    most = lengths["results_aw"]
    yield _bits("writer[.]aw___05Fpayload", bits + (most - 1).bit_length(), bits + 8), why


def _addresses(facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield bits of addresses beyond what they may be, and below what they are multiples of."""
    aligned = "codes and values begin at multiples of a group, and so do their rows"
    for side in ("acts", "weights"):
        yield _bits(f"{side}_fetcher[.]here_0_after", 0, 4), aligned
    yield _bits("acts_fetcher[.](t157|t192)", 0, 4), aligned
    yield _bits("weights_fetcher[.]t85", 0, 4), aligned
    yield _bits("values_fetcher[.]here_0_after", 0, 6), aligned
    yield r"unit[.]t54\[0\]:.*", "results begin at multiples of two bytes"
    yield _bits("plane_writer[.]held", 0, 4), aligned
    yield _bits("plane_writer[.]held", 96, 100), aligned
    yield _bits("plane_writer[.]codes_(here|start|next|below)", 0, 4), aligned
