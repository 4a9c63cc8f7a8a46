"""The link: CRC, frames, UART pins and the device's end, held against zlib and exhausted faults."""

import itertools
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator
from hypothesis import given
from hypothesis import strategies as st
from mutation import Mutation

from m2xfp.errors import InputError, UnknownNameError
from m2xfp.fpga.check.line import SimulatedLine, line_bytes, line_toggles
from m2xfp.fpga.gateware.design import Design
from m2xfp.fpga.gateware.link import Crc32
from m2xfp.fpga.gateware.uart import clocks_per_bit
from m2xfp.fpga.gateware.units import board_instances, board_units, find_board_unit
from m2xfp.fpga.protocol import (
    ESCAPE,
    FLAG,
    FLIP,
    Command,
    Decoder,
    Frame,
    Identity,
    Record,
    Status,
    encode,
    pack_records,
    unpack_records,
)
from m2xfp.rtl.catalog import Board, Instance, Unit
from m2xfp.rtl.parts.streams import packet_stream
from m2xfp.rtl.verilog.component import Component
from m2xfp.rtl.verilog.emit import verilog_text
from m2xfp.synth.flow.lint import lint_file

BAUD = 1_000_000
CLOCK = 8 * BAUD  # the fewest clocks a bit that the UART takes


class Repeater(Component):
    """Give each beat five times: more comes out than went in, as from no unit of the catalog."""

    latency = 0
    beats_per_group = 1

    def __init__(self) -> None:
        super().__init__({"i": In(packet_stream(16)), "o": Out(packet_stream(16))})

    def build(self) -> Module:
        m = Module()
        count = Signal(range(5))
        last = Signal()
        m.d.comb += [
            last.eq(count == 4),
            self.o.valid.eq(self.i.valid),
            self.o.payload.eq(self.i.payload),
            self.i.ready.eq(self.o.ready & last),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += count.eq(count + 1)
            with m.If(last):
                m.d.sync += count.eq(0)
        return m


REPEATER = Unit(
    name="repeater",
    purpose="each beat five times",
    component=Repeater,
    configs={"plain": {}},
    board=Board(name="repeater", config="plain", buffer=512),
)


def chosen(names: list[str]) -> list[Instance]:
    """Return units of the catalog, or the repeater."""
    return [
        REPEATER.instance() if name == REPEATER.name else board_instances([name])[0]
        for name in names
    ]


@pytest.fixture(scope="module")
def line(sim_dir: Path) -> Iterator[SimulatedLine]:
    """The smallest design: the link in front of a repeater."""
    with SimulatedLine(Design(CLOCK, BAUD, chosen(["repeater"])), build_dir=sim_dir) as line:
        yield line


def answers(line: SimulatedLine, sent: bytes) -> list[Frame | None]:
    return list(Decoder().feed(line.exchange(sent)))


def ask(line: SimulatedLine, command: int, payload: bytes = b"", sequence: int = 0xA55A) -> Frame:
    (answer,) = answers(line, encode(Frame(command, sequence, payload)))
    assert answer is not None
    assert (answer.command, answer.sequence) == (command, sequence)
    return answer


# The vocabulary


@given(st.binary(max_size=300), st.integers(0, 255), st.integers(0, 65535), st.randoms())
def test_frames_survive_any_cut(payload: bytes, command: int, sequence: int, random: Any) -> None:
    frame = Frame(command, sequence, payload)
    sent = b"\x00" + encode(frame) + encode(frame)
    cuts = sorted(random.sample(range(len(sent) + 1), min(5, len(sent))))
    decoder = Decoder()
    pieces = [sent[a:b] for a, b in itertools.pairwise([0, *cuts, len(sent)])]
    assert [x for piece in pieces for x in decoder.feed(piece)] == [None, frame, frame]


def test_flags_appear_nowhere_inside() -> None:
    sent = encode(Frame(FLAG, FLAG | ESCAPE << 8, bytes(range(256)) * 2))
    assert FLAG not in sent[1:-1]
    assert sent[0] == sent[-1] == FLAG


SMALL = Frame(Command.ECHO, 0x1234, b"\x7e\x00\x7d\xff")


def damaged(sent: bytes) -> Iterator[bytes]:
    """Every frame with two bits flipped, a byte changed, lost, doubled or put in."""
    number = int.from_bytes(sent, "little")
    for a, b in itertools.combinations(range(8 * len(sent)), 2):
        yield (number ^ 1 << a ^ 1 << b).to_bytes(len(sent), "little")
    for at in range(len(sent)):
        for byte in range(256):
            yield sent[:at] + bytes([byte]) + sent[at + 1 :]
            yield sent[:at] + bytes([byte]) + sent[at:]
        yield sent[:at] + sent[at + 1 :]


def test_no_small_damage_makes_another_frame() -> None:
    """Exhaustive: double bit errors and changed, lost and invented bytes."""
    whole = broken = 0
    for sent in damaged(encode(SMALL)):
        found = [frame for frame in Decoder().feed(sent) if frame is not None]
        assert found in ([], [SMALL]), sent.hex()
        whole += bool(found)
        broken += not found
    assert whole > 100  # bytes before the frame, and flags that are still one
    assert broken > 10000


def with_length(length: int) -> bytes:
    """A frame with a payload of five bytes and a good CRC, whatever its length field says."""
    body = b"\x01\x00\x34\x12" + length.to_bytes(2, "little") + b"abcde"
    return bytes([FLAG]) + body + zlib.crc32(body).to_bytes(4, "little") + bytes([FLAG])


def test_the_length_counts_even_if_the_crc_is_right() -> None:
    assert list(Decoder().feed(with_length(5))) == [Frame(Command.ECHO, 0x1234, b"abcde")]
    for length in (0, 4, 6, 5 + 256, 65535):
        assert list(Decoder().feed(with_length(length))) == [None]


def test_records() -> None:
    records = [Record(0, b"ab"), Record(1, b"cde", last=True), Record(0, b"fg")]
    payload = pack_records(records)
    assert payload == b"\x00ab\x81cde\x00fg"
    assert unpack_records(payload, [2, 3]) == records
    assert unpack_records(b"", [2, 3]) == []
    for wrong in (payload[:-1], b"\x02ab", b"\x00"):
        with pytest.raises(ValueError, match="no record"):
            unpack_records(wrong, [2, 3])


def test_identity() -> None:
    identity = Identity("1", 8, 1, 512, (("a", "b"), ("c", "d"))).sealed()
    assert Identity.parse(identity.payload()) == identity
    assert identity.names == ("a", "c")
    for other in (
        replace(identity, version="2"),
        replace(identity, clock_hz=9),
        replace(identity, baud=2),
        replace(identity, buffer=1024),
        replace(identity, units=(("a", "x"), ("c", "d"))),
        replace(identity, units=(("c", "d"), ("a", "b"))),
    ):
        assert other.sealed().build != identity.build
    for wrong in (b"", b"{}", b"[1]", b"\xff", identity.payload().replace(b"m2xfp", b"other")):
        with pytest.raises(InputError, match="no identification"):
            Identity.parse(wrong)
    with pytest.raises(InputError, match="protocol 99"):
        Identity.parse(replace(identity, protocol=99).payload())


# Parameters


@pytest.mark.parametrize(
    ("clock", "baud", "clocks"), [(12e6, 1_000_000, 12), (12e6, 115_200, 104), (8e6, 1_000_000, 8)]
)
def test_clocks_per_bit(clock: float, baud: int, clocks: int) -> None:
    assert clocks_per_bit(clock, baud) == clocks


@pytest.mark.parametrize(
    ("clock", "baud", "message"),
    [
        (12e6, 921_600 * 2, r"12000000 Hz gives 6\.5 clocks a bit"),
        (12e6, 1_300_000, r"9 clocks of 12000000 Hz are off by \+2\.6%.*1333333 and 1200000"),
        (12e6, 0, "must both be positive"),
        (-1.0, 9600, "must both be positive"),
    ],
)
def test_rates_that_the_clock_cannot_make(clock: float, baud: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        clocks_per_bit(clock, baud)


@pytest.mark.parametrize(
    ("units", "options", "message"),
    [
        ([], {}, "at least one"),
        (["quantizer", "quantizer"], {}, "each once"),
        (["quantizer"], {"buffer": 3000}, "power of two"),
        (["quantizer"], {"buffer": 64}, "power of two from 512"),
        (["quantizer"], {"buffer": 65536}, "to 32768"),
    ],
)
def test_designs_that_are_refused(units: list[str], options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Design(CLOCK, BAUD, chosen(units), **options)


def test_unknown_units_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"'nosuch'; there are: quantizer, .*encoder, .*dot"):
        find_board_unit("nosuch")


@pytest.mark.parametrize(
    "units", [["repeater"], pytest.param(list(board_units()), marks=pytest.mark.slow)]
)
def test_the_emitted_design_is_clean(units: list[str], tmp_path: Path) -> None:
    """Verilator's and yosys' checks, as for every emitted file."""
    (verilog := tmp_path / "board.v").write_text(
        verilog_text(Design(CLOCK, BAUD, chosen(units)), "board")
    )
    assert lint_file(verilog, "board") == []


# The CRC in hardware


def test_crc_equals_zlib() -> None:
    """A step is affine in state and byte, so states and bytes that span them prove all others.

    Any four bytes after the start lead to another state, one for one; none and each of their bits
    alone span all states, and no bit and each bit alone span all bytes.
    """
    starts = [0, *(1 << bit for bit in range(32))]
    crc = Crc32()

    async def bench(ctx: Any) -> None:
        for start in starts:
            for byte in (0, *(1 << bit for bit in range(8))):
                message = start.to_bytes(4, "little") + bytes([byte])
                for place, octet in enumerate(message):
                    ctx.set(crc.i.start, place == 0)
                    ctx.set(crc.i.data, octet)
                    ctx.set(crc.i.valid, 1)
                    await ctx.tick()
                assert ctx.get(crc.i.crc) == zlib.crc32(message), message
                ctx.set(crc.i.start, 0)
                if byte == 4:
                    for octet in zlib.crc32(message).to_bytes(4, "little"):
                        assert not ctx.get(crc.i.match_detected)
                        ctx.set(crc.i.data, octet)
                        await ctx.tick()
                    assert ctx.get(crc.i.match_detected)

    simulator = Simulator(crc)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


# The line


def test_waveforms_of_bytes() -> None:
    assert list(line_toggles(b"\x55", 8)) == [8.0 * bit for bit in range(10)]
    assert list(line_toggles(b"\x00\xff", 10, start=5)) == [5, 95, 105, 115]
    rng = np.random.default_rng(1)
    for sent in (b"", b"\x00", rng.bytes(300)):
        assert line_bytes(line_toggles(sent, 12.5, 100), 12.5) == sent
    with pytest.raises(ValueError, match="no byte on the line"):
        line_bytes([0, 200], 8)


def test_commands_of_the_link(line: SimulatedLine) -> None:
    identity = Identity.parse(ask(line, Command.IDENTIFY, b"ignored").payload)
    assert identity.units == (("repeater", "repeater i:16 o:16"),)
    assert identity.build == identity.sealed().build
    assert (identity.clock_hz, identity.baud, identity.buffer) == (CLOCK, BAUD, 512)
    for payload in (b"", b"\x7e\x7d\x5e", bytes(range(256)), bytes([FLAG]) * 512):
        answer = ask(line, Command.ECHO, payload)
        assert (answer.status, answer.payload) == (Status.OK, payload)
    for command in (2, Command.UNIT - 1, Command.UNIT + 1, 255):
        answer = ask(line, command, b"abc")
        assert (answer.status, answer.payload) == (Status.UNKNOWN_COMMAND, b"")


def test_records_go_through_a_unit(line: SimulatedLine) -> None:
    records = [Record(0, b"ab"), Record(0, b"cd", last=True)]
    answer = ask(line, Command.UNIT, pack_records(records))
    assert unpack_records(answer.payload, [2]) == [records[0]] * 5 + [records[1]] * 5
    assert ask(line, Command.UNIT).payload == b""


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (b"\x01ab", Status.STALLED),  # no such stream
        (b"\x00ab\x00c", Status.STALLED),  # ends within a record
        (b"\x00", Status.STALLED),
        (b"\x00ab" * 34, Status.OK),  # 510 bytes
        (b"\x00ab" * 35, Status.OVERFLOW),
        (b"\x00ab" * 170, Status.OVERFLOW),
    ],
)
def test_requests_that_cannot_be_carried_out(
    line: SimulatedLine, payload: bytes, status: Status
) -> None:
    """The error is told, and the next request begins from reset."""
    answer = ask(line, Command.UNIT, payload)
    assert answer.status == status
    assert len(answer.payload) == (5 * len(payload) if status == Status.OK else 0)
    assert ask(line, Command.UNIT, b"\x00xy").payload == b"\x00xy" * 5


def test_a_request_longer_than_the_buffer_is_broken(line: SimulatedLine) -> None:
    (answer,) = answers(line, encode(Frame(Command.ECHO, 1, bytes(513))))
    assert answer is not None
    assert (answer.status, answer.payload) == (Status.BAD_FRAME, b"")
    (answer,) = answers(line, encode(Frame(Command.ECHO, 1, bytes(5000))))
    assert answer is not None
    assert answer.status == Status.BAD_FRAME
    assert ask(line, Command.ECHO, bytes(512)).payload == bytes(512)


def test_the_device_checks_the_length_too(line: SimulatedLine) -> None:
    for length in (0, 4, 5, 6, 5 + 256, 65535):
        (answer,) = answers(line, with_length(length))
        assert answer is not None
        assert answer.status == (Status.OK if length == 5 else Status.BAD_FRAME)
        assert answer.payload == (b"abcde" if length == 5 else b"")


def device_damage() -> Iterator[bytes]:
    """Small damage to a request: each bit, and each byte lost, doubled, or made special."""
    sent = encode(SMALL)
    for bit in range(8 * len(sent)):
        yield (int.from_bytes(sent, "little") ^ 1 << bit).to_bytes(len(sent), "little")
    for at in range(len(sent)):
        yield sent[:at] + sent[at + 1 :]
        yield sent[: at + 1] + sent[at:]
        for byte in (0x00, 0xFF, FLAG, ESCAPE):
            yield sent[:at] + bytes([byte]) + sent[at + 1 :]
            yield sent[:at] + bytes([byte]) + sent[at:]


def test_damaged_requests_have_no_effect(line: SimulatedLine) -> None:
    """The device agrees with the host's decoder on what is broken, and the next request works."""
    outcomes: dict[object, int] = {}
    for sent in device_damage():
        expected = [frame for frame in Decoder().feed(sent) if frame is not None]
        found = answers(line, sent)
        good = [frame for frame in found if frame is not None and frame.status == Status.OK]
        bad = [frame for frame in found if frame not in good]
        assert [(frame.sequence, frame.payload) for frame in good] == [
            (frame.sequence, frame.payload) for frame in expected
        ], sent.hex()
        for frame in bad:
            assert frame is not None
            assert (frame.status, frame.payload) == (Status.BAD_FRAME, b"")
        outcomes[len(good), len(bad)] = outcomes.get((len(good), len(bad)), 0) + 1
        # A frame that lost its last flag ends with the next one's first, which is then answered
        # with an error while the next request comes; from there on all is well.
        recovered = answers(line, encode(SMALL)) if sent[-1] != FLAG else []
        assert [frame for frame in recovered if frame == SMALL] in ([], [SMALL])
        assert ask(line, Command.ECHO, b"well").payload == b"well"
    assert outcomes[0, 1] > 100
    assert outcomes[1, 0] > 5
    assert set(outcomes) <= {(0, 0), (0, 1), (1, 0), (0, 2), (1, 1)}


def test_noise_between_requests_costs_nothing(line: SimulatedLine) -> None:
    """Fewer bytes than any frame has are passed over; more are answered with an error."""
    request = encode(SMALL)
    for noise in (b"\x00", b"\x7e\x7e", b"\x7d", b"123456789"):
        found = answers(line, noise + request)
        assert found == [replace(SMALL, status=Status.OK)], noise
    found = answers(line, b"1234567890\x7e")
    assert [frame.status for frame in found if frame] == [Status.BAD_FRAME]


@pytest.mark.parametrize("error", [-0.04, -0.02, 0.0, 0.02, 0.04])
def test_the_other_end_may_be_off(line: SimulatedLine, error: float) -> None:
    payload = np.random.default_rng(2).bytes(400)
    request = encode(Frame(Command.ECHO, 9, payload))
    toggles = line_toggles(request, line.divisor * (1 + error), start=0.37)
    (answer,) = Decoder().feed(line_bytes(line.run(toggles), line.divisor * (1 + error)))
    assert answer is not None
    assert answer.payload == payload


def test_a_rate_that_is_far_off_gives_errors_only(line: SimulatedLine) -> None:
    request = encode(Frame(Command.ECHO, 9, bytes(range(200))))
    for error in (-0.3, -0.12, 0.12, 0.3):
        found = list(
            Decoder().feed(line_bytes(line.run(line_toggles(request, 8 * (1 + error))), 8))
        )
        assert all(frame is not None and frame.status == Status.BAD_FRAME for frame in found)
        answers(line, bytes([FLAG]))
    assert ask(line, Command.ECHO, b"well").payload == b"well"


def test_glitches_of_one_sample_change_nothing(line: SimulatedLine) -> None:
    """One wrong sample in every five, at each phase."""
    payload = np.random.default_rng(3).bytes(100)
    toggles = line_toggles(encode(Frame(Command.ECHO, 5, payload)), line.divisor)
    for phase in range(5):
        times = np.arange(phase, int(toggles[-1]) + 60, 5)
        # A wrong sample beside an edge moves the edge; keep to those between edges.
        clear = np.abs(times[:, None] - toggles[None]).min(axis=1) >= 2
        glitches = np.concatenate([times[clear], times[clear] + 1])
        answer = next(Decoder().feed(line_bytes(line.run([*toggles, *glitches]), line.divisor)))
        assert answer is not None
        assert answer.payload == payload


def test_a_pulse_shorter_than_half_a_bit_is_no_start_bit(line: SimulatedLine) -> None:
    """It passes the majority, and is over in the middle of the bit that it would begin."""
    request = encode(Frame(Command.ECHO, 5, b"abc"))
    for before in range(10, 60, 7):
        toggles = line_toggles(request, line.divisor, start=100)
        pulse = [100 - before, 103 - before]
        (answer,) = Decoder().feed(line_bytes(line.run([*pulse, *toggles]), line.divisor))
        assert answer is not None
        assert answer.payload == b"abc"


def test_stop_bits_that_are_low_break_the_frame(line: SimulatedLine) -> None:
    """A break, and a frame in the middle of which the line falls for two bytes."""
    request = encode(Frame(Command.ECHO, 5, bytes(20)))
    bit = line.divisor
    assert line_bytes(line.run([0, 500 * bit]), bit) == b""
    assert ask(line, Command.ECHO, b"well").payload == b"well"
    # The line is high during the stop bit of byte 9; from there it is low for 20 bits, and what
    # follows is late by as much.
    cut = 10 * 10 * bit - bit // 2
    toggles = line_toggles(request, bit)
    later = toggles[toggles > cut] + 20 * bit
    (answer,) = Decoder().feed(
        line_bytes(
            line.run([*toggles[toggles <= cut], cut, cut + 20 * bit - bit // 2, *later]), bit
        )
    )
    assert answer is not None
    assert answer.status == Status.BAD_FRAME
    assert ask(line, Command.ECHO, b"well").payload == b"well"


def test_answers_go_back_to_back(line: SimulatedLine) -> None:
    """The bytes U, which toggle in every bit, leave no clock between them."""
    request = encode(Frame(Command.ECHO, 5, b"U" * 100))
    changes = np.diff(line.run(line_toggles(request, line.divisor)).astype(int))
    runs = np.split(changes, np.flatnonzero(changes != line.divisor) + 1)
    assert max(len(run) for run in runs) >= 999


def test_requests_that_come_while_one_is_answered_are_lost_whole(line: SimulatedLine) -> None:
    request = encode(Frame(Command.ECHO, 5, b"abc"))
    found = answers(line, request * 7)
    good = [frame for frame in found if frame is not None and frame.status == Status.OK]
    assert 1 <= len(good) < 7
    assert all(frame.payload == b"abc" for frame in good)
    assert ask(line, Command.ECHO, b"well").payload == b"well"


def test_a_design_that_never_rests_is_noticed(line: SimulatedLine) -> None:
    request = line_toggles(encode(Frame(Command.ECHO, 5, bytes(100))), line.divisor)
    with pytest.raises(RuntimeError, match="still busy"):
        line.run(request, longest=50)
    line.run([])
    assert ask(line, Command.ECHO, b"well").payload == b"well"


def test_escapes_are_those_of_rfc_1662() -> None:
    assert (FLAG, ESCAPE, FLIP) == (0x7E, 0x7D, 0x20)
    assert encode(Frame(1, 0, b"\x7e"))[7:9] == b"\x7d\x5e"
    assert encode(Frame(1, 0, b"\x7d"))[7:9] == b"\x7d\x5d"


# Faults in the hardware and in the vocabulary, which these tests must notice

LINK, UART = "m2xfp.fpga.gateware.link", "m2xfp.fpga.gateware.uart"
MUTANTS = [
    Mutation("no CRC", LINK, "complete & crc.match_detected &", "complete &"),
    Mutation("no length", LINK, "ok = complete & ", "ok = "),
    Mutation("escape before a flag", LINK, "match_detected & ~escaped", "match_detected"),
    Mutation("double escape", LINK, "wrong.eq(wrong | escaped)", "wrong.eq(wrong)"),
    Mutation("low stop bits pass", LINK, "Elif(self.broken)", "Elif(0)"),
    Mutation("a long frame passes", LINK, "(count == whole)", "(count == 2 * whole)"),
    Mutation("noise is answered", LINK, "self.bad.eq(~short & ~ok)", "self.bad.eq(~ok)"),
    Mutation("escapes stay", LINK, "clear ^ FLIP, ESCAPE)", "clear, ESCAPE)"),
    Mutation("CRC not begun anew", LINK, ".eq(FLAG), crc.start.eq(1)]", ".eq(FLAG)]"),
    Mutation("overflow is hidden", LINK, "overflow | (count == capacity)", "overflow"),
    Mutation("half records pass", LINK, "Elif(waiting | ~self.idle)", "Elif(waiting)"),
    Mutation("stalls are hidden", LINK, "Elif(waiting | ~self.idle)", "Elif(0)"),
    Mutation("unknown commands pass", LINK, "Status.UNKNOWN_COMMAND", "Status.OK"),
    Mutation("sequence", LINK, "sequence.eq(header.sequence)", "sequence.eq(0)"),
    Mutation("no reset", "m2xfp.fpga.gateware.design", ".eq(~link.active)", ".eq(ResetSignal())"),
    Mutation("one sample", UART, "(settled[0] & settled[1]) |", "settled[0] |"),
    Mutation("start bits are not checked", UART, "waiting.eq(level)", "waiting.eq(0)"),
    Mutation("stop bits are not checked", UART, "self.broken.eq(~level)", "self.broken.eq(0)"),
    Mutation("late samples", UART, "- 1) // 2 - 1)", "- 1) // 2 + 1)"),
    Mutation("a pause", UART, "bits.eq(10)", "bits.eq(11)"),
    Mutation(
        "last is lost", "m2xfp.fpga.gateware.gateway", "Cat(bits, tag[7])", "Cat(bits, tag[6])"
    ),
    Mutation("any stream", "m2xfp.fpga.gateware.gateway", "(tag[:7] == n)", "(tag[:1] >= n)"),
]
WITH_MUTANT = """
import sys, pytest
sys.path.insert(0, "tests")
from mutation import _load_mutated
_load_mutated(*sys.argv[1:5])
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "tests/fpga/test_fpga_link.py"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutants_are_noticed(mutant: Mutation, pytestconfig: pytest.Config) -> None:
    """One of the normal tests above fails."""
    done = subprocess.run(
        [
            *(sys.executable, "-c", WITH_MUTANT),
            *(mutant.module, mutant.old, mutant.new, mutant.scope),
        ],
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "AssertionError: " not in done.stderr  # the mutation applied
