"""What is argued of the accelerator's wires: what the checker of descriptors keeps away from them.

Offsets of fields are those of `m2xfp.rtl.parts.operand_job` and the layouts beside it.
"""

from collections.abc import Iterator

from m2xfp.facts import Facts
from m2xfp.formats import block_format
from m2xfp.rtl.parts.gemm_cycles import SIZE_BITS
from m2xfp.tb.arguments import Argument, Never
from m2xfp.tb.parts.accelerator_traffic import Memory, Traffic

__all__ = ["argued"]

_WHY_ALIGNED = "low bits of an address or of a pitch, which are 0 of whatever is not refused"
_WHY_BEHIND = "bytes and strobes of words that a piece does not lie in"
_WHY_BESIDE = "bytes beside a piece in its words, 0 already where an array has one column"
_WHY_WHOLE = "strobes of words between a piece's first one and its last, which are whole"
_WHY_COMES = "a word that a memory has given, after the clock in which it is looked at"
_WHY_INDEX = "a word that is not the first of its request has a place behind it"
_WHY_TAKEN = "sizes and frames that the core refuses, which are told before"


def argued(facts: Facts) -> list[Argument | Never]:
    """Return what is alike to all behind it, and what never is."""
    return [*_aligned(facts), *_pieces(facts), *_words(), *_read(facts), *_taken(facts)]


def _low(name: str, *places: tuple[int, int]) -> str:
    """Return Verilog for bits of a vector that are not all zero: so many from each place on."""
    return " | ".join(f"(|{name}[{first} +: {count}])" for first, count in places if count)


def _never(instance: str, reads: dict[str, str], condition: str, why: str) -> Never:
    return Never(instance, reads, f"  assign holds = {condition};", why)


def _packs(facts: Facts) -> bool:
    return any(facts.parameters[engine] is not None for engine in ("quantizer", "encoder"))


def _aligned(facts: Facts) -> Iterator[Never]:
    """Yield what is said of addresses: codes begin at multiples of a group, results of a value."""
    given = facts.parameters
    bits, block = given["address_bits"], block_format(given["act"])
    codes = block.group_bytes[0].bit_length() - 1
    values = (2 * block.group).bit_length() - 1
    fetchers = [("acts", codes), ("weights", codes)]
    if _packs(facts):
        fetchers.append(("values", values))
    for name, low in fetchers:
        yield from _codes(f"unit[.]{name}_fetcher", ("active", "here_0", "block_0"), low, bits)
    instance = "unit[.]result_writer"
    job = {"valid": "job__valid", "job": "job__payload"}
    condition = f"valid & ({_low('job', (0, 1), (bits, 1))}"
    half = bits + 32 + 2 * SIZE_BITS  # the bit that says bf16
    condition += f" | ~job[{half}] & ({_low('job', (0, 2), (bits, 2))}))"
    yield _never(instance, job, condition, _WHY_ALIGNED)
    held = {"busy": "busy", "here": "here", "panel": "panel", "held": "held"}
    condition = f"busy & (here[0] | panel[0] | held[{bits}]"
    condition += f" | ~held[{half}] & ((|here[1:0]) | (|panel[1:0]) | {_low('held', (bits, 2))}))"
    yield _never(instance, held, condition, _WHY_ALIGNED)
    if _packs(facts):
        yield from _codes("unit[.]plane_writer", ("busy", "codes_here", "codes_start"), codes, bits)


def _codes(instance: str, wires: tuple[str, str, str], low: int, bits: int) -> Iterator[Never]:
    """Yield what is said of the address and the pitch of codes, of a job and while it is at work.

    ``wires``: whether it is, and where a row and what it belongs to begin.
    """
    fields = ((0, low), (3 * bits, low))
    job = {"valid": "job__valid", "job": "job__payload"}
    yield _never(instance, job, f"valid & ({_low('job', *fields)})", _WHY_ALIGNED)
    held = {**dict(zip(("works", "here", "start"), wires, strict=True)), "held": "held"}
    off = [_low("here", (0, low)), _low("start", (0, low)), _low("held", *fields)]
    yield _never(instance, held, f"works & ({' | '.join(off)})", _WHY_ALIGNED)


def _pieces(facts: Facts) -> Iterator[Argument | Never]:
    """Yield what is said of pieces that are written."""
    given = facts.parameters
    bus, bits = int(given["bus"]) // 8, given["address_bits"]
    groups = Traffic(facts, Memory()).gather
    codes = groups * block_format(given["act"]).group_bytes[0] if _packs(facts) else 0
    most = max(codes, 4 * given["columns"])
    length = most.bit_length()
    yield Never(
        "unit[.]writer",
        {"valid": "piece__valid", "piece": "piece__payload", "strobes": "strobes"},
        f"""
  wire [31:0] lane = piece[{bits - 1}:0] % {bus}, length = piece[{bits} +: {length}];
  assign holds = valid & (length == 0 | lane + length > $bits(strobes));
""",
        _WHY_BEHIND,
    )
    yield Never(
        "unit[.]writer",
        {"strobes": "strobes", "left": "left", "burst": "burst"},
        f"""
  wire [31:0] words = 32'd0 + left + burst;
  integer n;
  reg part;
  always @* begin
    part = 0;
    for (n = 1; n < $bits(strobes) / {bus}; n = n + 1)
      part = part | (n + 1 < words & ~&strobes[n * {bus} +: {bus}]);
  end
  assign holds = part;
""",
        _WHY_WHOLE,
    )
    if given["columns"] == 1:
        yield Never(
            "unit[.]writer",
            {"valid": "piece__valid", "piece": "piece__payload"},
            f"""
  wire [31:0] lane = piece[{bits - 1}:0] % {bus}, length = piece[{bits} +: {length}];
  wire [31:0] room = (lane + length + {bus - 1}) / {bus} * {bus} - lane;
  wire [31:0] from = length > {groups} ? length : {groups};
  wire [{8 * most + 32}:0] one = 1, last = one << 8 * room, beside = last - (one << 8 * from);
  assign holds = valid & room > from & ((piece[{bits + length} +: {8 * most}] & beside) != 0);
""",
            _WHY_BESIDE,
        )
    for word, wide in (("strobes", bus), ("bytes_left", 8 * bus)):
        yield Argument(
            "unit[.]writer",
            (word,),
            f"""
  wire [$bits(right) + 31:0] some = 1;
  wire [$bits(right) + 31:0] lie = (some << ({wide} * (32'd0 + left + burst))) - 1;
  assign alike = ((right ^ wrong) & lie[$bits(right) - 1:0]) == 0;
""",
            _WHY_BEHIND,
            {"left": "left", "burst": "burst"},
        )


def _words() -> Iterator[Argument]:
    """Yield what is said of the memories of descriptors' words: one is looked at when it comes."""
    for memory, comes in (("queue", "comes"), ("staged", "arrives")):
        alike, reads = "  assign alike = ~comes;", {"comes": comes}
        yield Argument("unit[.]registers", (f"{memory}.t0",), alike, _WHY_COMES, reads)


def _read(facts: Facts) -> Iterator[Never]:
    """Yield what is said of words that are read."""
    reads = {"valid": "valid", "first": "first", "index": "index"}
    for name in ("acts", "weights", *(("values",) if _packs(facts) else ())):
        yield _never(f"unit[.]{name}_fetcher", reads, "valid & ~first & index == 0", _WHY_INDEX)


def _taken(facts: Facts) -> Iterator[Never]:
    """Yield what is said of the core's commands and packets."""
    given = facts.parameters
    group = block_format(given["act"]).group
    m, n, k = (f"cmd[{place * SIZE_BITS} +: {SIZE_BITS}]" for place in range(3))
    resync = 3 * SIZE_BITS + 3
    bad = f"{m} == 0 | {n} == 0 | {k} == 0 | {k} > {given['max_k']} | {k} % {group} != 0"
    instance = "unit[.]core[.]loader"
    reads = {"valid": "cmd__valid", "cmd": "cmd__payload"}
    yield _never(instance, reads, f"valid & ({bad} | cmd[{resync}])", _WHY_TAKEN)
    yield _never(instance, {"wrong": "misframed", "failed": "failed"}, "wrong | failed", _WHY_TAKEN)
    spare = {"spare": "spare_valid"}
    yield _never(f"{instance}[.]job_register", spare, "spare", _WHY_TAKEN)
    reads = {"given": "i__valid", "valid": "job__valid", "ready": "job__ready"}
    yield _never(instance, reads, "given & valid & ~ready", _WHY_TAKEN)
    reads = {"stop": "stop", "refusal": "refusal"}
    yield _never("unit[.]core[.]sequencer", reads, "stop | refusal", _WHY_TAKEN)
    first = given["rows"].bit_length() + given["columns"].bit_length() + 1
    reads = {"waiting": "waiting", "tile": "tile_1"}
    condition = f"waiting & {_low('tile', (first, 4))}"
    yield _never("unit[.]core[.]result_fifo", reads, condition, _WHY_TAKEN)
    rows, columns = (given[name].bit_length() for name in ("rows", "columns"))
    condition = f"waiting & tile[{rows} +: {columns}] == 0"
    yield _never("unit[.]core[.]result_fifo", reads, condition, _WHY_TAKEN)
