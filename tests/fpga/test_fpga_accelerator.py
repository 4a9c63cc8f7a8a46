"""The accelerator on a board: driver, bridge and block RAM behind a simulated serial line."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from amaranth.back import verilog
from amaranth.hdl import Module, Signal
from click.testing import CliRunner

from m2xfp.accelerator import Device, DeviceError
from m2xfp.accelerator.layer import run_layer
from m2xfp.cli import cli
from m2xfp.errors import InputError
from m2xfp.fpga.check.line import SimulatedLine, SimulatedPort
from m2xfp.fpga.gateware import block_memory
from m2xfp.fpga.gateware.design import Design
from m2xfp.fpga.gateware.units import board_instance, board_instances
from m2xfp.fpga.host.device import Device as Board
from m2xfp.fpga.host.link import FaultError, MissingUnitError
from m2xfp.fpga.host.remote_unit import RemoteUnit
from m2xfp.fpga.host.serial_transport import BusError, SerialTransport
from m2xfp.fpga.protocol import Operation
from m2xfp.golden import get_format, matmul
from m2xfp.rtl.parts.accelerator_map import OFFSETS
from m2xfp.synth.coverage import unreachable as flat_netlist

BAUD = 1_000_000
CLOCK = 8 * BAUD
ACT, WEIGHT = get_format("m2xfp-act"), get_format("m2xfp-weight")


@pytest.fixture(scope="module")
def line(sim_dir: Path) -> Iterator[SimulatedLine]:
    design = Design(CLOCK, BAUD, board_instances(["accelerator"]))
    with SimulatedLine(design, build_dir=sim_dir) as line:
        yield line


@pytest.fixture
def board(line: SimulatedLine) -> Iterator[Board]:
    with Board(SimulatedPort(line)) as board:
        yield board


@pytest.fixture
def transport(board: Board) -> SerialTransport:
    return SerialTransport(board)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_a_linear_layer(transport: SerialTransport) -> None:
    """Through the driver that runs the simulated accelerator and mapped registers."""
    device = Device(transport)
    assert (device.array, device.max_k, transport.memory_bytes) == ((1, 2), 512, 1 << 16)
    x, packed = normal(1, 2, 4, 80), WEIGHT.quantize(normal(2, 7, 80))
    found = device.linear(x, packed)
    assert torch.equal(found, matmul(ACT.quantize(x), packed, "fp32", torch.bfloat16))
    run = run_layer(device, normal(3, 2, 64), normal(4, 9, 64), 5)
    assert run.equal
    assert (run.m, run.n, run.k, run.outputs) == (2, 5, 64, 9)
    assert run.cycles > 0


def test_a_wrong_bit_of_a_layer_is_noticed(
    transport: SerialTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = SerialTransport.load

    def faulty(self: SerialTransport, address: int, length: int) -> Any:
        found = load(self, address, length)
        found[0] ^= 1
        return found

    monkeypatch.setattr(SerialTransport, "load", faulty)
    run = run_layer(Device(transport), normal(3, 1, 32), normal(4, 2, 32))
    assert run.planes == 3  # a byte of each plane
    assert run.results == 1


def test_memory(transport: SerialTransport) -> None:
    """In parts, at any address, up to the last byte."""
    rng = np.random.default_rng(0)
    size = transport.memory_bytes
    for address, length in ((0, 1), (5, 5000), (size - 4100, 4100), (7, 0)):
        content = rng.integers(0, 256, length, np.uint8)
        transport.store(address, content)
        assert np.array_equal(transport.load(address, length), content)
    for call in (
        lambda: transport.load(size - 4, 5),
        lambda: transport.store(-1, np.zeros(1, np.uint8)),
    ):
        with pytest.raises(InputError, match="not in the memory of 65536 bytes"):
            call()


def operation(kind: int, address: int, length: int, content: bytes = b"") -> bytes:
    head = bytes([kind]) + length.to_bytes(2, "little") + address.to_bytes(4, "little")
    return head + content


def test_errors_of_the_bus(transport: SerialTransport) -> None:
    transport.write(OFFSETS["id"], 1)
    with pytest.raises(BusError, match="register 0x00 answered with SLVERR"):
        transport.wait()
    with pytest.raises(BusError, match="register 0x80 answered with SLVERR"):
        transport.read(OFFSETS["operation"])
    before = transport.load(0, 16)
    end = transport.memory_bytes - 2
    for address in (end, 1 << 16, 0xFFFFFFFE, 1 << 31):
        answer = transport._unit.exchange(operation(Operation.LOAD, address, 4))
        assert answer == b"\3", hex(address)
        store = operation(Operation.STORE, address, 4, b"\x55" * 4)
        assert transport._unit.exchange(store) == b"\3", hex(address)
    assert np.array_equal(transport.load(0, 16), before)
    assert transport.read(OFFSETS["id"]) == 0x4D325846


@pytest.mark.parametrize(
    "payload", [operation(9, 0, 0), operation(Operation.STORE, 0, 3, b"\0"), b"\3"], ids=bytes.hex
)
def test_operations_that_are_none(transport: SerialTransport, payload: bytes) -> None:
    with pytest.raises(FaultError, match="status STALLED"):
        transport._unit.exchange(payload)
    assert transport.read(OFFSETS["version"]) == 2


def test_a_descriptor_beyond_the_memory(transport: SerialTransport) -> None:
    """What the buses say of it comes to the driver, and what follows is right."""
    device = Device(transport)
    x, packed = normal(1, 1, 32), WEIGHT.quantize(normal(2, 2, 32))
    right, acts = device.upload(packed), device.upload(ACT.quantize(x))
    out = device.empty_values(1, 2)
    lost = type(out)(1, 2, transport.memory_bytes, out.pitch, out.dtype)
    with pytest.raises(DeviceError, match="ended with: write_decerr"):
        device.wait([device.submit_matmul(acts, right, lost)])
    assert torch.equal(device.matmul(acts, right), matmul(ACT.quantize(x), packed))


def test_a_reset_at_any_moment(transport: SerialTransport) -> None:
    """Descriptors under way are gone, memory stays."""
    device = Device(transport)
    x, packed = ACT.quantize(normal(1, 3, 512)), WEIGHT.quantize(normal(2, 6, 512))
    acts, right = device.upload(x), device.upload(packed)
    for _ in range(3):
        device.submit_matmul(acts, right)
        transport.wait()
        transport.reset()
        assert transport.read(OFFSETS["completed"]) == 0
        device = Device(transport)
        device.memory.allocate(1 << 15)  # beside what is there
        assert torch.equal(device.matmul(acts, right), matmul(x, packed))


def test_a_bad_cable(line: SimulatedLine) -> None:
    """A push whose answer is lost comes again, and must not run twice."""
    rng = random.Random(3)

    def damaged(sent: bytes) -> bytes:
        if not sent or rng.random() > 0.15:
            return sent
        at = rng.randrange(len(sent))
        return sent[:at] + bytes([sent[at] ^ 1 << rng.randrange(8)]) + sent[at + 1 :]

    with Board(SimulatedPort(line, damaged, damaged), retries=8) as board:
        transport = SerialTransport(board)
        device, packed = Device(transport), WEIGHT.quantize(normal(2, 5, 64))
        for seed in range(6):
            x = normal(seed, 2, 64)
            expected = matmul(ACT.quantize(x), packed, "fp32", torch.bfloat16)
            assert torch.equal(device.linear(x, packed), expected)
        assert transport.read(OFFSETS["completed"]) == 12


def test_a_request_that_comes_twice(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes nothing, and tells of the error that its first answer told of."""
    transport = SerialTransport(board)
    link, unit = board._link, transport._unit
    sent = operation(Operation.WRITE, OFFSETS["timeout"], 0, b"\x07\0\0\0")
    wrong = operation(Operation.WRITE, OFFSETS["id"], 0, b"\0\0\0\0")
    read = operation(Operation.READ, OFFSETS["timeout"], 0)
    number = link._sequence
    assert unit.exchange(sent) == b"\0"
    link._sequence = number
    assert unit.exchange(operation(Operation.WRITE, OFFSETS["timeout"], 0, b"\x08\0\0\0")) == b"\0"
    assert unit.exchange(read) == b"\0\7\0\0\0"
    number = link._sequence
    assert unit.exchange(wrong) == b"\2"
    link._sequence = number
    assert unit.exchange(wrong) == b"\2"


def test_products_of_any_size(board: Board) -> None:
    """In tiles, and in the self-test."""
    unit = board.unit("accelerator")
    unit.memory = 1 << 13
    qa, qw = ACT.quantize(normal(1, 9, 100)), WEIGHT.quantize(normal(2, 40, 100))
    found = board.matmul(qa, qw)
    assert torch.equal(found.view(torch.int32), matmul(qa, qw).view(torch.int32))
    unit.memory = 1 << 16
    assert board.self_test(groups=8).groups["accelerator"] >= 8
    with pytest.raises(InputError, match=r"K = 544.*K = 512 at most.*unit dot"):
        board.matmul(ACT.quantize(normal(1, 1, 544)), WEIGHT.quantize(normal(2, 1, 544)))
    with pytest.raises(MissingUnitError, match="no unit dot; it has: accelerator"):
        board.dot(qa, ACT.quantize(normal(1, 9, 100)))


def test_other_boards_are_refused() -> None:
    quantizer = RemoteUnit(None, 0, board_instance("quantizer"), 2048)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unit quantizer: it has no registers"):
        SerialTransport(quantizer)

    def refuses(name: str) -> RemoteUnit:
        raise MissingUnitError(f"no unit {name}")

    with pytest.raises(MissingUnitError, match="no unit accelerator"):
        SerialTransport(SimpleNamespace(unit=refuses))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "message"),
    [(b"", "0 bytes came back"), (b"\0\1\2", "3 bytes came back"), (b"\7", "response 7")],
)
def test_answers_that_cannot_be(
    transport: SerialTransport, monkeypatch: pytest.MonkeyPatch, answer: bytes, message: str
) -> None:
    monkeypatch.setattr(transport._unit, "exchange", lambda _: answer)
    with pytest.raises(FaultError, match=message):
        transport.load(0, 4)
    with pytest.raises(FaultError):
        transport.read(0)


def test_the_command_takes_outputs_of_a_layer_alone() -> None:
    given = ["fpga", "check", "ulx3s-85f", "--unit", "accelerator", "--outputs", "3"]
    done = CliRunner().invoke(cli, given)
    assert isinstance(done.exception, InputError)
    assert "--outputs 3: name the --layer" in str(done.exception)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_layer_on_the_routed_netlist(tmp_path: Path) -> None:
    """Placed and routed for the board, and simulated on its pins."""
    given = ["fpga", "check", "ulx3s-85f", "--unit", "accelerator", "-o", str(tmp_path)]
    given += ["--groups", "12", "--layer", "layers.0.self_attn.k_proj", "--outputs", "4"]
    done = CliRunner().invoke(cli, given)
    assert not done.exception, done.output
    assert "4 of 192 outputs for 1 tokens, k = 192" in done.output
    assert ": 0 bytes of packed activations and 0 results differ" in done.output


# Block RAM


class Watched(block_memory.ByteLane):
    """Tells when a byte is read in the clock in which it is written."""

    def build(self) -> Module:
        m = super().build()
        collides = Signal()
        m.d.comb += collides.eq(self.read & self.write & (self.read_address == self.write_address))
        return m


@pytest.mark.parametrize("guarded", [True, False])
def test_no_byte_is_read_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """As builds tell yosys, so that it adds no logic for what would be read then."""
    monkeypatch.setattr(block_memory, "ByteLane", Watched)
    buses = {"acts": "r", "weights": "r", "results": "w"}
    memory = block_memory.BlockMemory(4096, 16, 32, buses)
    if not guarded:
        reads: Callable[..., None] = memory._reads
        monkeypatch.setattr(memory, "_reads", lambda m, lanes, _, at: reads(m, lanes, 0, at))
    text = verilog.convert(memory, name="memory", strip_internal_attrs=True)
    netlist = flat_netlist.Netlist.of(text, "memory", tmp_path)
    names = [name for name in netlist.module["netnames"] if name.endswith(".collides")]
    claims = {flat_netlist.Claim(((netlist.bits(name)[0], 1),)) for name in names}
    assert len(claims) == 16
    assert (flat_netlist.proved(netlist, claims, tmp_path) == claims) is guarded
